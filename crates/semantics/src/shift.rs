//! Shift and rotate (SDM Vol. 1 5.1.5).
//!
//! A count of zero (after masking) changes no flag, so flags depend on the count at run time where it is CL. OF is
//! defined for a count of one only; here it is what the same formula gives for every count. AF is undefined: clear.

use x86::Width;

use crate::{Flag, Insn, Machine, Operand, operand};

/// A masked count: known at translation time, or CL's.
#[derive(Clone, Copy)]
enum Count<I> {
    Constant(u32),
    /// At the width asked for.
    Variable(I),
}

impl<I: Copy> Count<I> {
    /// The count in operand `n`, masked to 5 bits (6 for 64-bit operands), as an integer of `work` bits.
    #[inline(always)]
    fn read<M: Machine<Int = I>>(m: &mut M, i: &Insn, n: usize, work: Width) -> Result<Self, M::Stop> {
        let mask = if i.operand_width(0) == Width::Qword { 63 } else { 31 };
        if i.operand(n) == Operand::Immediate {
            return Ok(Self::Constant(i.immediate as u32 & mask));
        }
        let count = operand::read(m, i, n)?;
        let count = m.resize(Width::Byte, work, count);
        let mask = m.constant(work, u64::from(mask));
        Ok(Self::Variable(m.and(work, count, mask)))
    }

    #[inline(always)]
    fn value<M: Machine<Int = I>>(self, m: &mut M, work: Width) -> I {
        match self {
            Self::Constant(count) => m.constant(work, u64::from(count)),
            Self::Variable(count) => count,
        }
    }

    /// Does `then` unless the count is zero; it gets the count less one.
    #[inline(always)]
    fn unless_zero<M: Machine<Int = I>>(
        self,
        m: &mut M,
        work: Width,
        then: impl FnOnce(&mut M, I),
    ) -> Result<(), M::Stop> {
        match self {
            Self::Constant(0) => Ok(()),
            Self::Constant(count) => {
                let less_one = m.constant(work, u64::from(count - 1));
                then(m, less_one);
                Ok(())
            }
            Self::Variable(count) => {
                let zero = m.constant(work, 0);
                let is_zero = m.equal(work, count, zero);
                let counts = m.bool_not(is_zero);
                m.when(counts, |m| {
                    let one = m.constant(work, 1);
                    let less_one = m.sub(work, count, one);
                    then(m, less_one);
                    Ok(())
                })
            }
        }
    }
}

/// Counts reach 31, so narrow operands are shifted as 32 bits.
fn working_width(width: Width) -> Width {
    width.max(Width::Dword)
}

#[inline(always)]
fn set_flags<M: Machine>(m: &mut M, width: Width, result: M::Int, carry: M::Bool, overflow: M::Bool) {
    m.set_logic_flags(width, result);
    m.set_flag(Flag::Carry, carry);
    m.set_flag(Flag::Overflow, overflow);
}

#[inline(always)]
fn top_bit<M: Machine>(m: &mut M, width: Width, value: M::Int) -> M::Bool {
    m.bit(width, value, width.bits() - 1)
}

/// SHL (and SAL).
#[inline(always)]
pub fn shl<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let work = working_width(width);
    let count = Count::read(m, i, 1, work)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let wide = m.resize(width, work, a);
    let shift = count.value(m, work);
    let shifted = m.shift_left(work, wide, shift);
    let result = m.resize(work, width, shifted);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, work, |m, less_one| {
        let before_last = m.shift_left(work, wide, less_one);
        let carry = m.bit(work, before_last, width.bits() - 1);
        let sign = top_bit(m, width, result);
        let overflow = m.bool_xor(carry, sign);
        set_flags(m, width, result, carry, overflow);
    })
}

/// SHR.
#[inline(always)]
pub fn shr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let work = working_width(width);
    let count = Count::read(m, i, 1, work)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let wide = m.resize(width, work, a);
    let shift = count.value(m, work);
    let shifted = m.shift_right(work, wide, shift);
    let result = m.resize(work, width, shifted);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, work, |m, less_one| {
        let before_last = m.shift_right(work, wide, less_one);
        let carry = m.bit(work, before_last, 0);
        let overflow = m.bit(work, before_last, width.bits() - 1);
        set_flags(m, width, result, carry, overflow);
    })
}

/// SAR.
#[inline(always)]
pub fn sar<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let work = working_width(width);
    let count = Count::read(m, i, 1, work)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let wide = m.resize_signed(width, work, a);
    let shift = count.value(m, work);
    let shifted = m.shift_right_signed(work, wide, shift);
    let result = m.resize(work, width, shifted);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, work, |m, less_one| {
        let before_last = m.shift_right_signed(work, wide, less_one);
        let carry = m.bit(work, before_last, 0);
        let overflow = m.truth(false);
        set_flags(m, width, result, carry, overflow);
    })
}

/// ROL: only CF and OF change.
pub fn rol<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let count = Count::read(m, i, 1, width)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let by = count.value(m, width);
    let result = m.rotate_left(width, a, by);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, width, |m, _| {
        let carry = m.bit(width, result, 0);
        let sign = top_bit(m, width, result);
        let overflow = m.bool_xor(carry, sign);
        m.set_flag(Flag::Carry, carry);
        m.set_flag(Flag::Overflow, overflow);
    })
}

/// ROR.
pub fn ror<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let count = Count::read(m, i, 1, width)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let by = count.value(m, width);
    let result = m.rotate_right(width, a, by);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, width, |m, _| {
        let carry = top_bit(m, width, result);
        let second = m.bit(width, result, width.bits() - 2);
        let overflow = m.bool_xor(carry, second);
        m.set_flag(Flag::Carry, carry);
        m.set_flag(Flag::Overflow, overflow);
    })
}

/// RCL: rotates the operand with CF above it.
pub fn rcl<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    through_carry(m, i, true)
}

/// RCR: rotates the operand with CF above it, the other way.
pub fn rcr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    through_carry(m, i, false)
}

fn through_carry<M: Machine>(m: &mut M, i: &Insn, left: bool) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let work = Width::Qword;
    let count = Count::read(m, i, 1, work)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let carry = m.flag(Flag::Carry);
    let by = count.value(m, work);
    let by = modulo_ring(m, width, by);
    let wide = m.resize(width, work, a);
    let rotate = if width == Width::Qword { rotate_65 } else { rotate_narrow };
    let (rotated, new_carry) = rotate(m, width, wide, carry, by, left);
    let result = m.resize(work, width, rotated);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, work, |m, _| {
        let sign = top_bit(m, width, result);
        let other = if left { new_carry } else { m.bit(width, result, width.bits() - 2) };
        let overflow = m.bool_xor(sign, other);
        m.set_flag(Flag::Carry, new_carry);
        m.set_flag(Flag::Overflow, overflow);
    })
}

/// A count below 32 modulo 9 or 17, by subtracting; others are below the ring's size already.
fn modulo_ring<M: Machine>(m: &mut M, width: Width, mut count: M::Int) -> M::Int {
    let multiples: &[u64] = match width {
        Width::Byte => &[18, 9],
        Width::Word => &[17],
        _ => &[],
    };
    for &multiple in multiples {
        let multiple = m.constant(Width::Qword, multiple);
        let fits = m.below(Width::Qword, count, multiple);
        let less = m.sub(Width::Qword, count, multiple);
        count = m.select(Width::Qword, fits, count, less);
    }
    count
}

/// Rotates a ring of 9, 17 or 33 bits, CF on top, held in 64 bits.
fn rotate_narrow<M: Machine>(
    m: &mut M,
    width: Width,
    a: M::Int,
    carry: M::Bool,
    count: M::Int,
    left: bool,
) -> (M::Int, M::Bool) {
    let work = Width::Qword;
    let bits = width.bits();
    let position = m.constant(work, u64::from(bits));
    let size = m.constant(work, u64::from(bits) + 1);
    let carry = m.bool_to_int(work, carry);
    let carry = m.shift_left(work, carry, position);
    let ring = m.or(work, a, carry);
    let rest = m.sub(work, size, count);
    let (left_count, right_count) = if left { (count, rest) } else { (rest, count) };
    let high = m.shift_left(work, ring, left_count);
    let low = m.shift_right(work, ring, right_count);
    let rotated = m.or(work, high, low);
    let new_carry = m.bit(work, rotated, bits);
    (rotated, new_carry)
}

/// Rotates a ring of 65 bits: the operand and CF.
fn rotate_65<M: Machine>(
    m: &mut M,
    _: Width,
    a: M::Int,
    carry: M::Bool,
    count: M::Int,
    left: bool,
) -> (M::Int, M::Bool) {
    let w = Width::Qword;
    let one = m.constant(w, 1);
    let zero = m.constant(w, 0);
    let sixty_four = m.constant(w, 64);
    let is_zero = m.equal(w, count, zero);
    // With a count of zero the rest is computed as if for one, and not used: shifts must stay below 64.
    let count = m.select(w, is_zero, one, count);
    let before_last = m.sub(w, count, one);
    let complement = m.sub(w, sixty_four, count);
    let carry_value = m.bool_to_int(w, carry);
    let (moved, inserted, wrapped, last_out);
    if left {
        moved = m.shift_left(w, a, count);
        inserted = m.shift_left(w, carry_value, before_last);
        let half = m.shift_right(w, a, one);
        wrapped = m.shift_right(w, half, complement);
        let last = m.shift_left(w, a, before_last);
        last_out = m.bit(w, last, 63);
    } else {
        moved = m.shift_right(w, a, count);
        inserted = m.shift_left(w, carry_value, complement);
        let double = m.shift_left(w, a, one);
        wrapped = m.shift_left(w, double, complement);
        let last = m.shift_right(w, a, before_last);
        last_out = m.bit(w, last, 0);
    }
    let rotated = m.or(w, moved, inserted);
    let rotated = m.or(w, rotated, wrapped);
    let rotated = m.select(w, is_zero, a, rotated);
    let keeps = m.bool_and(is_zero, carry);
    let leaves = m.bool_not(is_zero);
    let leaves = m.bool_and(leaves, last_out);
    (rotated, m.bool_or(keeps, leaves))
}

/// SHLD: shifts the destination left, bits of the source come in from below.
pub fn shld<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    double_shift(m, i, true)
}

/// SHRD: shifts the destination right, bits of the source come in from above.
pub fn shrd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    double_shift(m, i, false)
}

/// 16-bit counts above 16 are undefined: here the source is followed by the destination again.
fn double_shift<M: Machine>(m: &mut M, i: &Insn, left: bool) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let work = Width::Qword;
    let count = Count::read(m, i, 2, work)?;
    let b = operand::read(m, i, 1)?;
    let (place, a) = operand::read_place(m, i, 0)?;
    let by = count.value(m, work);
    let a_wide = m.resize(width, work, a);
    let b_wide = m.resize(width, work, b);
    let shifted = if width == Width::Qword {
        double_64(m, a, b, by, left)
    } else {
        double_narrow(m, width, a_wide, b_wide, by, left)
    };
    let result = m.resize(work, width, shifted);
    operand::write_place(m, place, width, result)?;
    count.unless_zero(m, work, |m, less_one| {
        // The last bit out is at the edge of the result for a count one lower.
        let before_last = if width == Width::Qword {
            double_64(m, a, b, less_one, left)
        } else {
            double_narrow(m, width, a_wide, b_wide, less_one, left)
        };
        let edge = if left { width.bits() - 1 } else { 0 };
        let carry = m.bit(work, before_last, edge);
        let new_sign = top_bit(m, width, result);
        let old_sign = top_bit(m, width, a);
        let overflow = m.bool_xor(new_sign, old_sign);
        set_flags(m, width, result, carry, overflow);
    })
}

/// Counts to 31 of 16- and 32-bit operands: the operands side by side in 64 bits.
fn double_narrow<M: Machine>(
    m: &mut M,
    width: Width,
    a: M::Int,
    b: M::Int,
    count: M::Int,
    left: bool,
) -> M::Int {
    let w = Width::Qword;
    let bits = u64::from(width.bits());
    let at = |m: &mut M, value: M::Int, position: u64| {
        let position = m.constant(w, position);
        m.shift_left(w, value, position)
    };
    if left {
        // a:b (32 bits), a:b:a (16 bits), the first a on top of what is kept.
        let top = if width == Width::Word { 2 * bits } else { bits };
        let mut row = at(m, a, top);
        let next = at(m, b, top - bits);
        row = m.or(w, row, next);
        if width == Width::Word {
            row = m.or(w, row, a);
        }
        let shifted = m.shift_left(w, row, count);
        let top = m.constant(w, top);
        m.shift_right(w, shifted, top)
    } else {
        let next = at(m, b, bits);
        let mut row = m.or(w, a, next);
        if width == Width::Word {
            let again = at(m, a, 2 * bits);
            row = m.or(w, row, again);
        }
        m.shift_right(w, row, count)
    }
}

fn double_64<M: Machine>(m: &mut M, a: M::Int, b: M::Int, count: M::Int, left: bool) -> M::Int {
    let w = Width::Qword;
    let one = m.constant(w, 1);
    let last = m.constant(w, 63);
    let complement = m.sub(w, last, count);
    let (kept, incoming) = if left {
        let half = m.shift_right(w, b, one);
        (m.shift_left(w, a, count), m.shift_right(w, half, complement))
    } else {
        let double = m.shift_left(w, b, one);
        (m.shift_right(w, a, count), m.shift_left(w, double, complement))
    };
    m.or(w, kept, incoming)
}
