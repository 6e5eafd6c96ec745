//! Reading and writing operands.

use x86::Width;

use crate::{Insn, Machine, MemoryOperand, Operand, Register};

/// The offset that the memory operand names, within its segment, as a 64-bit integer.
#[inline(always)]
pub fn effective_address<M: Machine>(m: &mut M, i: &Insn) -> M::Int {
    let offset = narrow_address(m, i);
    m.resize(i.memory.width, Width::Qword, offset)
}

/// The same at the address width, for definitions that go on computing with it.
#[inline(always)]
pub fn narrow_address<M: Machine>(m: &mut M, i: &Insn) -> M::Int {
    let operand = &i.memory;
    let width = operand.width;
    let mut sum = None;
    if operand.base != MemoryOperand::NONE {
        sum = Some(m.gpr(Register::new(operand.base, width)));
    }
    if operand.index != MemoryOperand::NONE {
        let mut index = m.gpr(Register::new(operand.index, width));
        if operand.scale != 0 {
            let scale = m.constant(width, u64::from(operand.scale));
            index = m.shift_left(width, index, scale);
        }
        sum = Some(match sum {
            Some(base) => m.add(width, base, index),
            None => index,
        });
    }
    match sum {
        None => m.constant(width, operand.displacement),
        Some(sum) if operand.displacement == 0 => sum,
        Some(sum) => {
            let displacement = m.constant(width, operand.displacement);
            m.add(width, sum, displacement)
        }
    }
}

/// The linear address of the memory operand, checked for an access of `bytes`.
#[inline(always)]
pub fn address<M: Machine>(m: &mut M, i: &Insn, bytes: u16, write: bool) -> Result<M::Int, M::Stop> {
    let offset = effective_address(m, i);
    m.linear(i.memory.segment, offset, bytes, write)
}

/// Reads operand `n` at its width.
#[inline(always)]
pub fn read<M: Machine>(m: &mut M, i: &Insn, n: usize) -> Result<M::Int, M::Stop> {
    let width = i.operand_width(n);
    match i.operand(n) {
        Operand::Gpr(register) => Ok(m.gpr(register)),
        Operand::Memory => {
            let address = address(m, i, width.bytes() as u16, false)?;
            m.load(width, address)
        }
        Operand::Immediate | Operand::Near => Ok(m.constant(width, i.immediate)),
        Operand::Immediate2 => Ok(m.constant(width, u64::from(i.immediate2))),
        _ => Err(m.decline("operand is not an integer")),
    }
}

/// Reads operand `n` of an instruction whose other operand is wider or narrower, as `width`: immediates are taken at
/// `width`, registers and memory at their own.
#[inline(always)]
pub fn read_as<M: Machine>(m: &mut M, i: &Insn, n: usize, width: Width) -> Result<M::Int, M::Stop> {
    match i.operand(n) {
        Operand::Immediate => Ok(m.constant(width, i.immediate)),
        _ => {
            let own = i.operand_width(n);
            let value = read(m, i, n)?;
            Ok(m.resize(own, width, value))
        }
    }
}

/// Writes operand `n` at its width.
#[inline(always)]
pub fn write<M: Machine>(m: &mut M, i: &Insn, n: usize, value: M::Int) -> Result<(), M::Stop> {
    let width = i.operand_width(n);
    match i.operand(n) {
        Operand::Gpr(register) => {
            m.set_gpr(register, value);
            Ok(())
        }
        Operand::Memory => {
            let address = address(m, i, width.bytes() as u16, true)?;
            m.store(width, address, value)
        }
        _ => Err(m.decline("operand can't be written")),
    }
}

/// A place that is read, changed and written: a register, or memory whose address is computed once.
#[derive(Clone, Copy)]
pub enum Place<I> {
    /// General register.
    Register(Register),
    /// Memory at a linear address.
    Memory(I),
}

/// A place and what it held.
pub type Loaded<I> = (Place<I>, I);

/// Finds the place of operand `n` and loads it for an update.
#[inline(always)]
pub fn read_place<M: Machine>(m: &mut M, i: &Insn, n: usize) -> Result<Loaded<M::Int>, M::Stop> {
    let width = i.operand_width(n);
    match i.operand(n) {
        Operand::Gpr(register) => Ok((Place::Register(register), m.gpr(register))),
        _ => {
            let address = address(m, i, width.bytes() as u16, true)?;
            let value = m.load_for_update(width, address)?;
            Ok((Place::Memory(address), value))
        }
    }
}

/// Writes back to a place.
#[inline(always)]
pub fn write_place<M: Machine>(
    m: &mut M,
    place: Place<M::Int>,
    width: Width,
    value: M::Int,
) -> Result<(), M::Stop> {
    match place {
        Place::Register(register) => {
            m.set_gpr(register, value);
            Ok(())
        }
        Place::Memory(address) => m.store(width, address, value),
    }
}
