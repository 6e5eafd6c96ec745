//! Stack instructions: PUSH, POP, PUSHA, POPA, ENTER, LEAVE (SDM Vol. 1 5.1.1, 5.1.7). PUSHF, POPF and POP to a
//! segment register are callouts.

use core::mem::offset_of;

use x86::{CpuState, Segment, SegmentRegister, Width};

use crate::{Insn, Machine, Operand, Register, operand};

const RSP: u8 = x86::state::RSP as u8;
const RBP: u8 = 5;

/// rSP, as wide as the stack segment says.
#[inline]
pub(crate) fn pointer<M: Machine>(m: &M) -> Register {
    Register::new(RSP, width_of(m))
}

#[inline]
fn width_of<M: Machine>(m: &M) -> Width {
    match m.mode().stack_bits() {
        64 => Width::Qword,
        32 => Width::Dword,
        _ => Width::Word,
    }
}

/// The linear address of `bytes` at `pointer` (of the stack's width) in the stack segment.
#[inline]
fn address<M: Machine>(m: &mut M, pointer: M::Int, bytes: u64, write: bool) -> Result<M::Int, M::Stop> {
    let width = width_of(m);
    let offset = m.resize(width, Width::Qword, pointer);
    m.linear(SegmentRegister::Ss, offset, bytes as u16, write)
}

/// Pushes a value.
#[inline(always)]
pub(crate) fn push<M: Machine>(m: &mut M, width: Width, value: M::Int) -> Result<(), M::Stop> {
    push_partly(m, width, width, value)
}

/// Moves rSP by `width`, of which only `stored` is written.
#[inline(always)]
fn push_partly<M: Machine>(m: &mut M, width: Width, stored: Width, value: M::Int) -> Result<(), M::Stop> {
    let new = store_below(m, width, stored, value)?;
    let register = pointer(m);
    m.set_gpr(register, new);
    Ok(())
}

/// Writes where a push would, and gives what rSP is to be after it.
#[inline(always)]
pub(crate) fn store_below<M: Machine>(
    m: &mut M,
    width: Width,
    stored: Width,
    value: M::Int,
) -> Result<M::Int, M::Stop> {
    let register = pointer(m);
    let bytes = m.constant(register.width, width.bytes());
    let old = m.gpr(register);
    let new = m.sub(register.width, old, bytes);
    let address = address(m, new, width.bytes(), true)?;
    m.store(stored, address, value)?;
    Ok(new)
}

/// Reads the top of the stack: the value, and what rSP is after popping it.
#[inline(always)]
pub(crate) fn peek<M: Machine>(m: &mut M, width: Width) -> Result<(M::Int, M::Int), M::Stop> {
    let register = pointer(m);
    let old = m.gpr(register);
    let address = address(m, old, width.bytes(), false)?;
    let value = m.load(width, address)?;
    let bytes = m.constant(register.width, width.bytes());
    let new = m.add(register.width, old, bytes);
    Ok((value, new))
}

/// PUSH.
#[inline(always)]
pub fn push_operand<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.width;
    match i.operand(0) {
        Operand::Segment(segment) => {
            let selector = selector(m, segment);
            // Processors store 16 bits of a 32-bit push (SDM Vol. 2B "PUSH").
            if width == Width::Qword {
                let value = m.resize(Width::Word, width, selector);
                push(m, width, value)
            } else {
                push_partly(m, width, Width::Word, selector)
            }
        }
        Operand::Immediate => {
            let value = m.constant(width, i.immediate);
            push(m, width, value)
        }
        _ => {
            let value = operand::read(m, i, 0)?;
            push(m, width, value)
        }
    }
}

/// The visible part of a segment register.
pub(crate) fn selector<M: Machine>(m: &mut M, segment: SegmentRegister) -> M::Int {
    let offset = offset_of!(CpuState, segments)
        + segment as usize * size_of::<Segment>()
        + offset_of!(Segment, selector);
    m.state(offset, Width::Word)
}

/// POP to a register or memory.
#[inline(always)]
pub fn pop_operand<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.width;
    let (value, after) = peek(m, width)?;
    let register = pointer(m);
    if let Operand::Gpr(destination) = i.operand(0) {
        m.set_gpr(register, after);
        m.set_gpr(destination, value);
        return Ok(());
    }
    // The destination's address is computed with rSP as it is after the pop, but rSP must keep if the store faults.
    let mut destination = *i;
    if destination.memory.base == RSP {
        destination.memory.displacement = destination.memory.displacement.wrapping_add(width.bytes());
    }
    operand::write(m, &destination, 0, value)?;
    m.set_gpr(register, after);
    Ok(())
}

/// PUSHA, PUSHAD: AX CX DX BX SP BP SI DI, with SP as it was before.
pub fn pusha<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let register = pointer(m);
    let bytes = m.constant(register.width, i.width.bytes());
    let mut top = m.gpr(register);
    for index in 0..8 {
        let value = m.gpr(Register::new(index, i.width));
        top = m.sub(register.width, top, bytes);
        let address = address(m, top, i.width.bytes(), true)?;
        m.store(i.width, address, value)?;
    }
    m.set_gpr(register, top);
    Ok(())
}

/// POPA, POPAD: the reverse, but SP's value is skipped.
pub fn popa<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let register = pointer(m);
    let bytes = m.constant(register.width, i.width.bytes());
    let mut top = m.gpr(register);
    let mut values = [top; 8];
    for index in (0..8).rev() {
        let address = address(m, top, i.width.bytes(), false)?;
        values[index] = m.load(i.width, address)?;
        top = m.add(register.width, top, bytes);
    }
    m.set_gpr(register, top);
    for (index, value) in (0u8..).zip(values) {
        if index != RSP {
            m.set_gpr(Register::new(index, i.width), value);
        }
    }
    Ok(())
}

/// ENTER imm16, imm8 (SDM Vol. 2A "ENTER"): the nesting level is a constant, so its loop is unrolled.
pub fn enter<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.width;
    let stack = pointer(m);
    let level = u64::from(i.immediate2) & 31;
    let bytes = m.constant(stack.width, width.bytes());
    let frame = m.gpr(Register::new(RBP, width));
    let old = m.gpr(stack);
    let mut top = m.sub(stack.width, old, bytes);
    let at = address(m, top, width.bytes(), true)?;
    m.store(width, at, frame)?;
    let frame_pointer = frame_pointer_of(m, stack, top, width);
    if level > 0 {
        let mut link = m.gpr(Register::new(RBP, stack.width));
        for _ in 1..level {
            link = m.sub(stack.width, link, bytes);
            top = m.sub(stack.width, top, bytes);
            let from = address(m, link, width.bytes(), false)?;
            let value = m.load(width, from)?;
            let to = address(m, top, width.bytes(), true)?;
            m.store(width, to, value)?;
        }
        top = m.sub(stack.width, top, bytes);
        let to = address(m, top, width.bytes(), true)?;
        m.store(width, to, frame_pointer)?;
    }
    let locals = m.constant(stack.width, i.immediate);
    let top = m.sub(stack.width, top, locals);
    // ENTER faults where the new top could not be written (the same chapter).
    let end = address(m, top, width.bytes(), true)?;
    m.probe_write(end, width.bytes() as u16)?;
    m.set_gpr(stack, top);
    m.set_gpr(Register::new(RBP, width), frame_pointer);
    Ok(())
}

/// Where the stack's top is, at a width. A push by SP leaves the upper half of ESP, which is part of a frame pointer of 32 bits.
fn frame_pointer_of<M: Machine>(m: &mut M, stack: Register, top: M::Int, width: Width) -> M::Int {
    let low = m.resize(stack.width, width, top);
    if width <= stack.width {
        return low;
    }
    let whole = m.gpr(Register::new(stack.index, width));
    let upper = m.constant(width, !0 << stack.width.bits());
    let upper = m.and(width, whole, upper);
    m.or(width, upper, low)
}

/// LEAVE.
pub fn leave<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let stack = pointer(m);
    let frame = m.gpr(Register::new(RBP, stack.width));
    let at = address(m, frame, i.width.bytes(), false)?;
    let value = m.load(i.width, at)?;
    let bytes = m.constant(stack.width, i.width.bytes());
    let top = m.add(stack.width, frame, bytes);
    m.set_gpr(stack, top);
    m.set_gpr(Register::new(RBP, i.width), value);
    Ok(())
}
