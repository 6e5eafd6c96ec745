//! Bit manipulation: BMI1, BMI2 and LZCNT (SDM Vol. 1 5.1.16). The VEX-encoded ones work on general registers only:
//! XCR0 and CR4.OSXSAVE have no part in them (SDM Vol. 2A 2.5.1, exception type 13).

use x86::{CpuState, Width};

use crate::{Flag, Insn, Machine, Register, helper::Helper, operand};

const RDX: u8 = 2;

/// ANDN: destination := not first source and second source. AF and PF are undefined, as after all instructions here that set flags.
pub fn andn<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let inverted = operand::read(m, i, 1)?;
    let other = operand::read(m, i, 2)?;
    let mask = m.not(width, inverted);
    let result = m.and(width, mask, other);
    operand::write(m, i, 0, result)?;
    m.set_logic_flags(width, result);
    Ok(())
}

/// BLSI: the lowest one alone. CF = the source is not zero.
pub fn blsi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let zero = m.constant(width, 0);
    let negative = m.sub(width, zero, source);
    let result = m.and(width, source, negative);
    let is_zero = m.equal(width, source, zero);
    let carry = m.bool_not(is_zero);
    finish(m, i, result, carry)
}

/// BLSMSK: ones up to and with the lowest one. CF = the source is zero.
pub fn blsmsk<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    by_predecessor(m, i, |m, width, source, less| m.xor(width, source, less))
}

/// BLSR: all but the lowest one. CF = the source is zero.
pub fn blsr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    by_predecessor(m, i, |m, width, source, less| m.and(width, source, less))
}

fn by_predecessor<M: Machine>(
    m: &mut M,
    i: &Insn,
    combine: impl FnOnce(&mut M, Width, M::Int, M::Int) -> M::Int,
) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let one = m.constant(width, 1);
    let less = m.sub(width, source, one);
    let result = combine(m, width, source, less);
    let carry = m.below(width, source, one);
    finish(m, i, result, carry)
}

/// Writes the first operand; SF and ZF from it, OF clear.
fn finish<M: Machine>(m: &mut M, i: &Insn, result: M::Int, carry: M::Bool) -> Result<(), M::Stop> {
    operand::write(m, i, 0, result)?;
    m.set_logic_flags(i.operand_width(0), result);
    m.set_flag(Flag::Carry, carry);
    Ok(())
}

/// BEXTR: a bit field whose start and length are in the lower two bytes of the last operand. SF is undefined too.
pub fn bextr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let control = operand::read(m, i, 2)?;
    let eight = m.constant(width, 8);
    let length = m.shift_right(width, control, eight);
    let (start, start_is_within) = index(m, width, control);
    let zero = m.constant(width, 0);
    let shifted = m.shift_right(width, source, start);
    let from_start = m.select(width, start_is_within, shifted, zero);
    let (result, _) = low_bits(m, width, from_start, length);
    operand::write(m, i, 0, result)?;
    m.set_logic_flags(width, result);
    Ok(())
}

/// BZHI: the bits below the one that the last operand's lowest byte names. CF = there is no such bit.
pub fn bzhi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let count = operand::read(m, i, 2)?;
    let (result, is_within) = low_bits(m, width, source, count);
    let carry = m.bool_not(is_within);
    finish(m, i, result, carry)
}

/// The lowest bits of a value, as many as the lowest byte of `count` says: all of them if there are no more; and whether there are.
fn low_bits<M: Machine>(m: &mut M, width: Width, value: M::Int, count: M::Int) -> (M::Int, M::Bool) {
    let (count, is_within) = index(m, width, count);
    let one = m.constant(width, 1);
    let bit = m.shift_left(width, one, count);
    let mask = m.sub(width, bit, one);
    let cut = m.and(width, value, mask);
    (m.select(width, is_within, cut, value), is_within)
}

/// The lowest byte of a value as the number of a bit, and whether there is that bit. If there is not, the number is another's.
fn index<M: Machine>(m: &mut M, width: Width, value: M::Int) -> (M::Int, M::Bool) {
    let byte = m.resize(width, Width::Byte, value);
    let bits = m.constant(Width::Byte, u64::from(width.bits()));
    let is_within = m.below(Width::Byte, byte, bits);
    let last = m.constant(width, u64::from(width.bits() - 1));
    (m.and(width, value, last), is_within)
}

/// TZCNT: trailing zeros. CF = the source is zero, ZF = the result is; all others are undefined.
pub fn tzcnt<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let count = m.trailing_zeros(width, source);
    finish_count(m, i, source, count)
}

/// LZCNT: leading zeros, with TZCNT's flags.
pub fn lzcnt<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let count = m.leading_zeros(width, source);
    finish_count(m, i, source, count)
}

fn finish_count<M: Machine>(m: &mut M, i: &Insn, source: M::Int, count: M::Int) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let zero = m.constant(width, 0);
    let carry = m.equal(width, source, zero);
    finish(m, i, count, carry)
}

/// MULX: first operand (high half) and second (low half) := rDX times the third. No flags. Of one register for both halves the high one remains.
pub fn mulx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read(m, i, 2)?;
    let a = m.gpr(Register::new(RDX, width));
    let (low, high) = if width == Width::Qword {
        m.multiply_wide(false, a, b)
    } else {
        (m.multiply(width, a, b), m.multiply_high(width, false, a, b))
    };
    operand::write(m, i, 1, low)?;
    operand::write(m, i, 0, high)
}

/// RORX: rotates right by a constant. No flags.
pub fn rorx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let count = m.constant(width, i.immediate & u64::from(width.bits() - 1));
    let result = m.rotate_right(width, source, count);
    operand::write(m, i, 0, result)
}

/// SARX. Shifts by a register, whose lowest 5 or 6 bits count, set no flags.
pub fn sarx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    shift(m, i, |m, width, source, count| m.shift_right_signed(width, source, count))
}

/// SHLX.
pub fn shlx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    shift(m, i, |m, width, source, count| m.shift_left(width, source, count))
}

/// SHRX.
pub fn shrx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    shift(m, i, |m, width, source, count| m.shift_right(width, source, count))
}

fn shift<M: Machine>(
    m: &mut M,
    i: &Insn,
    compute: impl FnOnce(&mut M, Width, M::Int, M::Int) -> M::Int,
) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let count = operand::read(m, i, 2)?;
    let last = m.constant(width, u64::from(width.bits() - 1));
    let count = m.and(width, count, last);
    let result = compute(m, width, source, count);
    operand::write(m, i, 0, result)
}

/// PDEP: the lowest bits of the second operand, put where the third has ones. No flags.
pub fn pdep<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    by_mask(m, i, Helper::Pdep)
}

/// PEXT: the bits of the second operand where the third has ones, next to each other. No flags.
pub fn pext<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    by_mask(m, i, Helper::Pext)
}

fn by_mask<M: Machine>(m: &mut M, i: &Insn, helper: Helper) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let source = operand::read(m, i, 1)?;
    let source = m.resize(width, Width::Qword, source);
    let mask = operand::read(m, i, 2)?;
    let mask = m.resize(width, Width::Qword, mask);
    let result = m.call(helper, 0, source, mask)?;
    let result = m.resize(Width::Qword, width, result);
    operand::write(m, i, 0, result)
}

/// [`Helper::Pdep`]: one step for each one of the mask, so that no host is slow at it.
pub(crate) extern "C" fn deposit(_: &mut CpuState, _: u64, source: u64, mut mask: u64) -> u64 {
    let (mut source, mut result) = (source, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & 1 != 0 {
            result |= lowest;
        }
        source >>= 1;
        mask ^= lowest;
    }
    result
}

/// [`Helper::Pext`].
pub(crate) extern "C" fn extract(_: &mut CpuState, _: u64, source: u64, mut mask: u64) -> u64 {
    let (mut result, mut to) = (0, 1_u64);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if source & lowest != 0 {
            result |= to;
        }
        to <<= 1;
        mask ^= lowest;
    }
    result
}
