//! Decimal arithmetic (SDM Vol. 1 5.1.3): not in 64-bit mode.

use x86::{Exception, Width};

use crate::{Flag, Insn, Machine, Register};

const AL: Register = Register::new(0, Width::Byte);
const AH: Register = Register { index: 0, width: Width::Byte, high: true };
const AX: Register = Register::new(0, Width::Word);

/// (AL & 0x0f) > 9, or AF.
fn low_digit_overflows<M: Machine>(m: &mut M, al: M::Int) -> M::Bool {
    let mask = m.constant(Width::Byte, 0x0f);
    let nine = m.constant(Width::Byte, 9);
    let digit = m.and(Width::Byte, al, mask);
    let above = m.below(Width::Byte, nine, digit);
    let adjust = m.flag(Flag::Adjust);
    m.bool_or(above, adjust)
}

/// AAA. OF, SF, ZF and PF are undefined: here they keep.
pub fn aaa<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    adjust_ascii(m, |m, ax| {
        let change = m.constant(Width::Word, 0x106);
        m.add(Width::Word, ax, change)
    })
}

/// AAS.
pub fn aas<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    adjust_ascii(m, |m, ax| {
        let change = m.constant(Width::Word, 0x106);
        m.sub(Width::Word, ax, change)
    })
}

fn adjust_ascii<M: Machine>(m: &mut M, change: impl FnOnce(&mut M, M::Int) -> M::Int) -> Result<(), M::Stop> {
    let al = m.gpr(AL);
    let ax = m.gpr(AX);
    let carry = low_digit_overflows(m, al);
    let changed = change(m, ax);
    let result = m.select(Width::Word, carry, changed, ax);
    let mask = m.constant(Width::Word, 0xff0f);
    let result = m.and(Width::Word, result, mask);
    m.set_gpr(AX, result);
    m.set_flag(Flag::Adjust, carry);
    m.set_flag(Flag::Carry, carry);
    Ok(())
}

/// DAA. OF is undefined: here it is clear.
pub fn daa<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let al = m.gpr(AL);
    let (low_carries, high_carries, low, high) = decimal_corrections(m, al);
    let half = m.add(Width::Byte, al, low);
    let result = m.add(Width::Byte, half, high);
    // Where adding 6 carries, AL was above 0x99.
    write_decimal(m, result, low_carries, high_carries);
    Ok(())
}

/// DAS. As DAA, but CF is also set where subtracting 6 borrows.
pub fn das<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let al = m.gpr(AL);
    let (low_carries, high_carries, low, high) = decimal_corrections(m, al);
    let half = m.sub(Width::Byte, al, low);
    let result = m.sub(Width::Byte, half, high);
    let borrows = m.below(Width::Byte, al, low);
    let carry = m.bool_or(high_carries, borrows);
    write_decimal(m, result, low_carries, carry);
    Ok(())
}

/// Whether the low and the high digit of AL need correction, and by how much: 6 or 0, 0x60 or 0.
fn decimal_corrections<M: Machine>(m: &mut M, al: M::Int) -> (M::Bool, M::Bool, M::Int, M::Int) {
    let zero = m.constant(Width::Byte, 0);
    let six = m.constant(Width::Byte, 6);
    let sixty = m.constant(Width::Byte, 0x60);
    let limit = m.constant(Width::Byte, 0x99);
    let low_carries = low_digit_overflows(m, al);
    let above = m.below(Width::Byte, limit, al);
    let carry = m.flag(Flag::Carry);
    let high_carries = m.bool_or(above, carry);
    let low = m.select(Width::Byte, low_carries, six, zero);
    let high = m.select(Width::Byte, high_carries, sixty, zero);
    (low_carries, high_carries, low, high)
}

fn write_decimal<M: Machine>(m: &mut M, result: M::Int, adjust: M::Bool, carry: M::Bool) {
    m.set_gpr(AL, result);
    m.set_logic_flags(Width::Byte, result);
    m.set_flag(Flag::Adjust, adjust);
    m.set_flag(Flag::Carry, carry);
}

/// AAM: AH, AL := AL / imm8, AL % imm8; #DE for 0. OF, AF and CF are undefined: here they are clear.
pub fn aam<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    if i.immediate as u8 == 0 {
        return Err(m.raise(Exception::DE));
    }
    let al = m.gpr(AL);
    let zero = m.constant(Width::Byte, 0);
    let base = m.constant(Width::Byte, i.immediate);
    let (quotient, remainder) = m.divide(Width::Byte, false, zero, al, base)?;
    m.set_gpr(AH, quotient);
    m.set_gpr(AL, remainder);
    m.set_logic_flags(Width::Byte, remainder);
    Ok(())
}

/// AAD: AL := AL + AH * imm8, AH := 0. OF, AF and CF are undefined: here they are clear.
pub fn aad<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let al = m.gpr(AL);
    let ah = m.gpr(AH);
    let base = m.constant(Width::Byte, i.immediate);
    let zero = m.constant(Width::Byte, 0);
    let tens = m.multiply(Width::Byte, ah, base);
    let result = m.add(Width::Byte, al, tens);
    m.set_gpr(AL, result);
    m.set_gpr(AH, zero);
    m.set_logic_flags(Width::Byte, result);
    Ok(())
}

/// SALC (undocumented, in every processor outside 64-bit mode): AL := CF ? 0xff : 0.
pub fn salc<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let carry = m.flag(Flag::Carry);
    let ones = m.constant(Width::Byte, 0xff);
    let zero = m.constant(Width::Byte, 0);
    let value = m.select(Width::Byte, carry, ones, zero);
    m.set_gpr(AL, value);
    Ok(())
}
