//! Exchanges (SDM Vol. 1 5.1.1): XCHG, XADD, CMPXCHG and its pairs, BSWAP.

use memory::AtomicOp;
use x86::{Exception, Width};

use crate::{Flag, Insn, Machine, Operand, Register, operand, operand::Place};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RDX: u8 = 2;
const RBX: u8 = 3;

/// XCHG: atomic with memory, LOCK or not.
pub fn xchg<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read(m, i, 1)?;
    let a = if i.operand(0) == Operand::Memory {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        m.atomic(AtomicOp::Exchange, width, address, b)?
    } else {
        let a = operand::read(m, i, 0)?;
        operand::write(m, i, 0, b)?;
        a
    };
    operand::write(m, i, 1, a)
}

/// XADD.
pub fn xadd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read(m, i, 1)?;
    if i.operand(0) == Operand::Memory {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        let a = if i.lock {
            m.atomic(AtomicOp::Add, width, address, b)?
        } else {
            let a = m.load_for_update(width, address)?;
            let sum = m.add(width, a, b);
            m.store(width, address, sum)?;
            a
        };
        operand::write(m, i, 1, a)?;
        let sum = m.add(width, a, b);
        m.set_add_flags(width, a, b, None, sum);
        return Ok(());
    }
    let a = operand::read(m, i, 0)?;
    let sum = m.add(width, a, b);
    // Of twice the same register the sum stays.
    operand::write(m, i, 1, a)?;
    operand::write(m, i, 0, sum)?;
    m.set_add_flags(width, a, b, None, sum);
    Ok(())
}

/// CMPXCHG: flags as CMP accumulator, destination. Memory is written in any case; of the registers only one is, and
/// the other keeps its upper half also in the 32-bit form.
pub fn cmpxchg<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let accumulator = Register::new(RAX, width);
    let expected = m.gpr(accumulator);
    let new = operand::read(m, i, 1)?;
    let seen = if i.operand(0) == Operand::Memory && i.lock {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        m.compare_exchange(width, address, expected, new)?
    } else {
        let (place, seen) = operand::read_place(m, i, 0)?;
        let equal = m.equal(width, seen, expected);
        match place {
            Place::Register(register) => {
                let unequal = m.bool_not(equal);
                load_unless(m, register, unequal, new);
            }
            Place::Memory(address) => {
                let value = m.select(width, equal, new, seen);
                m.store(width, address, value)?;
            }
        }
        seen
    };
    let equal = m.equal(width, seen, expected);
    if i.operand(0) != Operand::Gpr(accumulator) {
        load_unless(m, accumulator, equal, seen);
    }
    let result = m.sub(width, expected, seen);
    m.set_sub_flags(width, expected, seen, None, result);
    Ok(())
}

/// CMPXCHG8B.
pub fn cmpxchg8b<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let address = operand::address(m, i, 8, true)?;
    let expected = pair_as_qword(m, RDX, RAX);
    let new = pair_as_qword(m, RCX, RBX);
    let seen = if i.lock {
        m.compare_exchange(Width::Qword, address, expected, new)?
    } else {
        let seen = m.load_for_update(Width::Qword, address)?;
        let equal = m.equal(Width::Qword, seen, expected);
        let value = m.select(Width::Qword, equal, new, seen);
        m.store(Width::Qword, address, value)?;
        seen
    };
    let equal = m.equal(Width::Qword, seen, expected);
    let thirty_two = m.constant(Width::Qword, 32);
    let high = m.shift_right(Width::Qword, seen, thirty_two);
    let high = m.resize(Width::Qword, Width::Dword, high);
    let low = m.resize(Width::Qword, Width::Dword, seen);
    load_unless(m, Register::new(RDX, Width::Dword), equal, high);
    load_unless(m, Register::new(RAX, Width::Dword), equal, low);
    m.set_flag(Flag::Zero, equal);
    Ok(())
}

fn pair_as_qword<M: Machine>(m: &mut M, high: u8, low: u8) -> M::Int {
    let high = m.gpr(Register::new(high, Width::Dword));
    let low = m.gpr(Register::new(low, Width::Dword));
    let high = m.resize(Width::Dword, Width::Qword, high);
    let low = m.resize(Width::Dword, Width::Qword, low);
    let thirty_two = m.constant(Width::Qword, 32);
    let high = m.shift_left(Width::Qword, high, thirty_two);
    m.or(Width::Qword, high, low)
}

/// Writes the register unless `keeps`: then it keeps as a whole, also the half that a 32-bit write would clear.
fn load_unless<M: Machine>(m: &mut M, register: Register, keeps: M::Bool, value: M::Int) {
    let (place, value) = if register.width == Width::Dword {
        (Register::new(register.index, Width::Qword), m.resize(Width::Dword, Width::Qword, value))
    } else {
        (register, value)
    };
    let old = m.gpr(place);
    let value = m.select(place.width, keeps, old, value);
    m.set_gpr(place, value);
}

/// CMPXCHG16B: #GP(0) unless the operand is aligned. Always carried out atomically.
pub fn cmpxchg16b<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = Width::Qword;
    let address = operand::address(m, i, 16, true)?;
    let fifteen = m.constant(width, 15);
    let zero = m.constant(width, 0);
    let offset = m.and(width, address, fifteen);
    let aligned = m.equal(width, offset, zero);
    let misaligned = m.bool_not(aligned);
    m.raise_if(misaligned, Exception::GP0)?;
    let expected = (m.gpr(Register::new(RAX, width)), m.gpr(Register::new(RDX, width)));
    let new = (m.gpr(Register::new(RBX, width)), m.gpr(Register::new(RCX, width)));
    let seen = m.compare_exchange_pair(address, expected, new)?;
    let low_equal = m.equal(width, seen.0, expected.0);
    let high_equal = m.equal(width, seen.1, expected.1);
    let equal = m.bool_and(low_equal, high_equal);
    m.set_gpr(Register::new(RAX, width), seen.0);
    m.set_gpr(Register::new(RDX, width), seen.1);
    m.set_flag(Flag::Zero, equal);
    Ok(())
}

/// BSWAP. Of a 16-bit register it is undefined: here, as in processors, zero.
pub fn bswap<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let value = if width == Width::Word {
        m.constant(width, 0)
    } else {
        let value = operand::read(m, i, 0)?;
        m.swap_bytes(width, value)
    };
    operand::write(m, i, 0, value)
}
