//! Bit and byte instructions (SDM Vol. 1 5.1.6): bit tests, scans, counts, SETcc.

use memory::AtomicOp;
use x86::Width;

use crate::{ConditionCode, Flag, Insn, Machine, Operand, Register, operand, operand::Place};

/// What a bit test does to the bit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    None,
    Set,
    Reset,
    Complement,
}

/// BT. All bit tests set CF only; the other flags are undefined (ZF keeps) and here keep.
pub fn bt<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    bit_test(m, i, Change::None)
}

/// BTS.
pub fn bts<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    bit_test(m, i, Change::Set)
}

/// BTR.
pub fn btr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    bit_test(m, i, Change::Reset)
}

/// BTC.
pub fn btc<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    bit_test(m, i, Change::Complement)
}

fn bit_test<M: Machine>(m: &mut M, i: &Insn, change: Change) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let offset = operand::read_as(m, i, 1, width)?;
    let index_mask = m.constant(width, u64::from(width.bits() - 1));
    let index = m.and(width, offset, index_mask);
    let one = m.constant(width, 1);
    let mask = m.shift_left(width, one, index);

    let (place, value) = match i.operand(0) {
        Operand::Gpr(register) => (Place::Register(register), m.gpr(register)),
        _ => {
            let address = bit_string_address(m, i, width, offset, change != Change::None)?;
            if i.lock {
                return locked(m, width, address, mask, index, change);
            }
            let value = match change {
                Change::None => m.load(width, address)?,
                _ => m.load_for_update(width, address)?,
            };
            (Place::Memory(address), value)
        }
    };
    let result = match change {
        Change::None => None,
        Change::Set => Some(m.or(width, value, mask)),
        Change::Reset => {
            let keep = m.not(width, mask);
            Some(m.and(width, value, keep))
        }
        Change::Complement => Some(m.xor(width, value, mask)),
    };
    if let Some(result) = result {
        operand::write_place(m, place, width, result)?;
    }
    set_carry_from(m, width, value, index);
    Ok(())
}

fn set_carry_from<M: Machine>(m: &mut M, width: Width, value: M::Int, index: M::Int) {
    let shifted = m.shift_right(width, value, index);
    let carry = m.bit(width, shifted, 0);
    m.set_flag(Flag::Carry, carry);
}

fn locked<M: Machine>(
    m: &mut M,
    width: Width,
    address: M::Int,
    mask: M::Int,
    index: M::Int,
    change: Change,
) -> Result<(), M::Stop> {
    let (op, operand) = match change {
        Change::Set => (AtomicOp::Or, mask),
        Change::Reset => (AtomicOp::And, m.not(width, mask)),
        Change::Complement | Change::None => (AtomicOp::Xor, mask),
    };
    let value = m.atomic(op, width, address, operand)?;
    set_carry_from(m, width, value, index);
    Ok(())
}

/// A bit offset in a register is signed and reaches beyond the operand: it selects the operand-sized word, counted
/// from the address (SDM Vol. 2A 3.1.1.9, "Bit(BitBase, BitOffset)"). One in an immediate stays within the operand.
fn bit_string_address<M: Machine>(
    m: &mut M,
    i: &Insn,
    width: Width,
    offset: M::Int,
    write: bool,
) -> Result<M::Int, M::Stop> {
    let bytes = width.bytes() as u16;
    if i.operand(1) == Operand::Immediate {
        return operand::address(m, i, bytes, write);
    }
    let address_width = i.memory.width;
    let base = operand::narrow_address(m, i);
    let wide = m.resize_signed(width, Width::Qword, offset);
    let bits_shift = m.constant(Width::Qword, u64::from(width.bits().trailing_zeros()));
    let words = m.shift_right_signed(Width::Qword, wide, bits_shift);
    let bytes_shift = m.constant(Width::Qword, u64::from(bytes.trailing_zeros()));
    let distance = m.shift_left(Width::Qword, words, bytes_shift);
    let distance = m.resize(Width::Qword, address_width, distance);
    let address = m.add(address_width, base, distance);
    let address = m.resize(address_width, Width::Qword, address);
    m.linear(i.memory.segment, address, bytes, write)
}

/// BSF: index of the lowest one. For zero ZF is set and the destination keeps. The other flags are undefined.
pub fn bsf<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    scan(m, i, |m, width, value| m.trailing_zeros(width, value))
}

/// BSR: index of the highest one.
pub fn bsr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    scan(m, i, |m, width, value| {
        let zeros = m.leading_zeros(width, value);
        let last = m.constant(width, u64::from(width.bits() - 1));
        m.sub(width, last, zeros)
    })
}

fn scan<M: Machine>(
    m: &mut M,
    i: &Insn,
    index: impl FnOnce(&mut M, Width, M::Int) -> M::Int,
) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let Operand::Gpr(destination) = i.operand(0) else {
        return Err(m.decline("bit scan into no register"));
    };
    let value = operand::read(m, i, 1)?;
    let zero = m.constant(width, 0);
    let is_zero = m.equal(width, value, zero);
    let found = index(m, width, value);
    if width == Width::Word {
        let old = m.gpr(destination);
        let new = m.select(width, is_zero, old, found);
        m.set_gpr(destination, new);
    } else {
        // The whole register keeps, also the upper half that a 32-bit write would clear.
        let whole = Register::new(destination.index, Width::Qword);
        let old = m.gpr(whole);
        let found = m.resize(width, Width::Qword, found);
        let new = m.select(Width::Qword, is_zero, old, found);
        m.set_gpr(whole, new);
    }
    m.set_flag(Flag::Zero, is_zero);
    Ok(())
}

/// POPCNT: ZF for a zero source, the other flags clear.
pub fn popcnt<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let value = operand::read(m, i, 1)?;
    let ones = m.count_ones(width, value);
    operand::write(m, i, 0, ones)?;
    m.set_logic_flags(width, ones);
    let clear = m.truth(false);
    m.set_flag(Flag::Parity, clear);
    Ok(())
}

/// SETcc.
pub fn setcc<M: Machine, const CODE: u8>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let condition = m.condition(ConditionCode::from_number(CODE));
    let value = m.bool_to_int(Width::Byte, condition);
    operand::write(m, i, 0, value)
}
