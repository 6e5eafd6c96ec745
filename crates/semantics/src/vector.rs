//! What the SSE and MMX instructions have in common: when they trap, how their operands are read and written, and the
//! forms over which the rows of `table`'s vector section are laid. A form takes the instruction and the
//! [`VectorOp`] that computes it.
//!
//! An MMX instruction runs on the vector operation of its SSE namesake with its operands in the low half; the forms
//! [`pairwise`], [`unpack_high`], … say where that alone would not give the same result.

use core::mem::offset_of;

use x86::{CpuState, Exception, Width, control};

use crate::{Flag, Insn, Machine, Operand, Register, helper::VectorOp, mmx, operand};

pub use crate::sse_string::{
    explicit_to_index, explicit_to_mask, explicit64_to_index, explicit64_to_mask, implicit_to_index,
    implicit_to_mask,
};

/// Where a definition puts an operand of a vector operation beyond `a` and `b` (two qwords of `CpuState::scratch`),
/// directly before the operation and after everything that may stop.
pub const EXTRA_OPERAND: usize = offset_of!(CpuState, scratch) + 6 * 8;

/// Reads [`EXTRA_OPERAND`] in a vector operation.
#[inline]
pub(crate) fn extra_operand(state: &CpuState) -> (u64, u64) {
    (state.scratch[6], state.scratch[7])
}

/// Sets [`EXTRA_OPERAND`].
pub(crate) fn set_extra_operand<M: Machine>(m: &mut M, low: M::Int, high: M::Int) {
    m.set_state(EXTRA_OPERAND, Width::Qword, low);
    m.set_state(EXTRA_OPERAND + 8, Width::Qword, high);
}

/// #UD if CR0.EM is set or CR4.OSFXSR clear, #NM if CR0.TS is set (SDM Vol. 3A 13.1, table 23-2 and following).
pub fn check_sse<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    if !m.mode().sse_traps() {
        return Ok(());
    }
    let cr0 = m.state(offset_of!(CpuState, cr0), Width::Qword);
    let cr4 = m.state(offset_of!(CpuState, cr4), Width::Qword);
    let emulation = m.bit(Width::Qword, cr0, control::cr0::EM.trailing_zeros());
    let enabled = m.bit(Width::Qword, cr4, control::cr4::OSFXSR.trailing_zeros());
    let disabled = m.bool_not(enabled);
    let undefined = m.bool_or(emulation, disabled);
    m.raise_if(undefined, Exception::UD)?;
    let task_switched = m.bit(Width::Qword, cr0, control::cr0::TS.trailing_zeros());
    m.raise_if(task_switched, Exception::NM)
}

/// Whether one of the operands is an MMX register.
pub fn uses_mmx(i: &Insn) -> bool {
    i.operands.iter().any(|operand| matches!(operand, Operand::Mm(_)))
}

/// The traps of an instruction that has an MMX and an SSE form of the same name.
pub fn begin<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    if uses_mmx(i) { mmx::check(m) } else { check_sse(m) }
}

/// The traps of an instruction that works on both kinds of registers at once.
pub fn begin_both<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    check_sse(m)?;
    mmx::check(m)
}

/// An integer in the low bits of a vector that is zero elsewhere.
pub fn low<M: Machine>(m: &mut M, width: Width, value: M::Int) -> M::Vector {
    let value = m.resize(width, Width::Qword, value);
    let zero = m.constant(Width::Qword, 0);
    m.vector(value, zero)
}

/// Reads operand `n` as a vector; what is narrower than 16 bytes is zero-extended. `aligned`: 16-byte memory operands
/// must be.
pub fn read<M: Machine>(m: &mut M, i: &Insn, n: usize, aligned: bool) -> Result<M::Vector, M::Stop> {
    match i.operand(n) {
        Operand::Xmm(index) => Ok(m.xmm(index)),
        Operand::Mm(index) => {
            let value = m.mm(index);
            Ok(low(m, Width::Qword, value))
        }
        Operand::Gpr(register) => {
            let value = m.gpr(register);
            Ok(low(m, register.width, value))
        }
        Operand::Memory if i.memory_bytes == 16 => {
            let address = operand::address(m, i, 16, false)?;
            m.load_vector(address, aligned)
        }
        Operand::Memory => {
            let Some(width) = Width::from_bytes(usize::from(i.memory_bytes)) else {
                return Err(m.decline("memory operand is not a vector"));
            };
            let address = operand::address(m, i, i.memory_bytes, false)?;
            if let Width::Dword | Width::Qword = width {
                return m.load_low(width, address);
            }
            let value = m.load(width, address)?;
            Ok(low(m, width, value))
        }
        Operand::Immediate => {
            // Shift counts.
            let count = m.constant(Width::Qword, i.immediate & 0xff);
            Ok(low(m, Width::Qword, count))
        }
        _ => Err(m.decline("operand is not a vector")),
    }
}

/// Writes a vector register: all of an XMM register, or an MMX register from the low half.
fn write_register<M: Machine>(m: &mut M, operand: Operand, value: M::Vector) -> Result<(), M::Stop> {
    match operand {
        Operand::Xmm(index) => m.set_xmm(index, value),
        Operand::Mm(index) => {
            let value = m.lane(Width::Qword, value, 0);
            mmx::write(m, index, value);
        }
        _ => return Err(m.decline("destination is not a vector register")),
    }
    Ok(())
}

/// `destination = op(destination, source, immediate)`: most instructions. Operations with one operand ignore `a`;
/// shifts by an immediate have it as source.
pub fn binary<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    begin(m, i)?;
    let a = read(m, i, 0, true)?;
    let b = read(m, i, 1, true)?;
    let result = m.vector_op(op, a, b, i.immediate as u8)?;
    write_register(m, i.operand(0), result)
}

/// PACK*, PHADD*, PHSUB*: the low half of the result comes from `a`, the high half from `b`. In MMX registers, that
/// is the low half of the operation on `b:a`.
pub fn pairwise<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    if !uses_mmx(i) {
        return binary(m, i, op);
    }
    mmx::check(m)?;
    let b = read(m, i, 1, true)?;
    let a = read(m, i, 0, true)?;
    let (a, b) = (m.lane(Width::Qword, a, 0), m.lane(Width::Qword, b, 0));
    let both = m.vector(a, b);
    let result = m.vector_op(op, both, both, 0)?;
    write_register(m, i.operand(0), result)
}

/// PUNPCKH*: in MMX registers, bytes 4..8 are interleaved, so the operands go to the high half.
pub fn unpack_high<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    if !uses_mmx(i) {
        return binary(m, i, op);
    }
    mmx::check(m)?;
    let b = read(m, i, 1, true)?;
    let a = read(m, i, 0, true)?;
    let zero = m.constant(Width::Qword, 0);
    let (a, b) = (m.lane(Width::Qword, a, 0), m.lane(Width::Qword, b, 0));
    let (a, b) = (m.vector(zero, a), m.vector(zero, b));
    let result = m.vector_op(op, a, b, 0)?;
    let high = m.lane(Width::Qword, result, 1);
    let result = low(m, Width::Qword, high);
    write_register(m, i.operand(0), result)
}

/// PSHUFB: three bits of index in MMX registers.
pub fn shuffle_bytes<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    if !uses_mmx(i) {
        return binary(m, i, op);
    }
    mmx::check(m)?;
    let b = read(m, i, 1, true)?;
    let a = read(m, i, 0, true)?;
    let indices = m.constant(Width::Qword, 0x8787_8787_8787_8787);
    let b = m.lane(Width::Qword, b, 0);
    let b = m.and(Width::Qword, b, indices);
    let b = low(m, Width::Qword, b);
    let result = m.vector_op(op, a, b, 0)?;
    write_register(m, i.operand(0), result)
}

/// PALIGNR: in MMX registers, the 16 bytes `a:b` shifted right.
pub fn align<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    if !uses_mmx(i) {
        return binary(m, i, op);
    }
    mmx::check(m)?;
    let b = read(m, i, 1, true)?;
    let a = read(m, i, 0, true)?;
    let (a, b) = (m.lane(Width::Qword, a, 0), m.lane(Width::Qword, b, 0));
    let both = m.vector(b, a);
    let result = m.vector_op(VectorOp::Psrldq, both, both, i.immediate as u8)?;
    write_register(m, i.operand(0), result)
}

/// The result is an integer in the low half of the operation's, and goes to a general register.
pub fn to_register<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    begin(m, i)?;
    let source = read(m, i, 1, true)?;
    let result = m.vector_op(op, source, source, i.immediate as u8)?;
    let Operand::Gpr(register) = i.operand(0) else {
        return Err(m.decline("destination is not a general register"));
    };
    if uses_mmx(i) {
        mmx::enter(m);
    }
    let result = m.lane(register.width, result, 0);
    m.set_gpr(register, result);
    Ok(())
}

/// CVTSI2SS, CVTSI2SD: the source, an integer of 4 or 8 bytes, is sign-extended into the low half of `b`.
pub fn from_integer<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let width = i.operand_width(1);
    let source = operand::read(m, i, 1)?;
    let source = m.resize_signed(width, Width::Qword, source);
    let a = read(m, i, 0, true)?;
    let b = low(m, Width::Qword, source);
    let result = m.vector_op(op, a, b, 0)?;
    write_register(m, i.operand(0), result)
}

/// CVTSS2SI and relatives: the immediate of the operation is the number of bytes of the integer.
pub fn to_integer<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let Operand::Gpr(register) = i.operand(0) else {
        return Err(m.decline("destination is not a general register"));
    };
    let source = read(m, i, 1, true)?;
    let result = m.vector_op(op, source, source, register.width.bytes() as u8)?;
    let result = m.lane(register.width, result, 0);
    m.set_gpr(register, result);
    Ok(())
}

/// PTEST: the low half of the result holds CF, PF and ZF at their places in RFLAGS; the others are cleared.
pub fn to_flags<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let a = read(m, i, 0, true)?;
    let b = read(m, i, 1, true)?;
    let result = m.vector_op(op, a, b, 0)?;
    set_compared_flags(m, result);
    Ok(())
}

/// COMISS, COMISD, UCOMISS, UCOMISD.
pub fn compare_floats<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let a = read(m, i, 0, true)?;
    let b = read(m, i, 1, true)?;
    m.compare_floats(op, a, b)
}

/// Sets the flags as the result of such an operation says.
pub fn set_compared_flags<M: Machine>(m: &mut M, result: M::Vector) {
    let bits = m.lane(Width::Byte, result, 0);
    let carry = m.bit(Width::Byte, bits, 0);
    let parity = m.bit(Width::Byte, bits, 2);
    let zero = m.bit(Width::Byte, bits, 6);
    set_flags(m, &[(Flag::Carry, carry), (Flag::Parity, parity), (Flag::Zero, zero)]);
}

/// Clears all six status flags but those given.
pub fn set_flags<M: Machine>(m: &mut M, values: &[(Flag, M::Bool)]) {
    let clear = m.truth(false);
    for flag in [Flag::Carry, Flag::Parity, Flag::Adjust, Flag::Zero, Flag::Sign, Flag::Overflow] {
        let value = values.iter().find(|(name, _)| *name == flag).map_or(clear, |(_, value)| *value);
        m.set_flag(flag, value);
    }
}

/// Blends whose selector is the sign of each element of XMM0. The operation turns XMM0 into a mask of whole elements.
pub fn blend_variable<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let a = read(m, i, 0, true)?;
    let b = read(m, i, 1, true)?;
    let selector = m.xmm(0);
    let mask = m.vector_op(op, selector, selector, 0)?;
    let from_b = m.vector_op(VectorOp::Pand, b, mask, 0)?;
    let from_a = m.vector_op(VectorOp::Pandn, mask, a, 0)?;
    let result = m.vector_op(VectorOp::Por, from_a, from_b, 0)?;
    write_register(m, i.operand(0), result)
}

/// As [`binary`], with XMM0 as extra operand (SHA256RNDS2).
pub fn with_xmm0<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    check_sse(m)?;
    let a = read(m, i, 0, true)?;
    let b = read(m, i, 1, true)?;
    let xmm0 = m.xmm(0);
    let result = m.vector_op_with(op, a, b, xmm0, i.immediate as u8)?;
    write_register(m, i.operand(0), result)
}

/// General register `index` at `width`.
pub(crate) fn gpr<M: Machine>(m: &mut M, index: u8, width: Width) -> M::Int {
    m.gpr(Register::new(index, width))
}
