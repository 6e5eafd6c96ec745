//! Flag control (SDM Vol. 1 5.1.11). CLI, STI, PUSHF and POPF are callouts.

use x86::Width;

use crate::{Flag, Insn, Machine, Register};

const AH: Register = Register { index: 0, width: Width::Byte, high: true };

/// The flags that LAHF and SAHF move, with their bits.
const IN_AH: [(Flag, u32); 5] =
    [(Flag::Carry, 0), (Flag::Parity, 2), (Flag::Adjust, 4), (Flag::Zero, 6), (Flag::Sign, 7)];

/// CLC.
pub fn clc<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let value = m.truth(false);
    m.set_flag(Flag::Carry, value);
    Ok(())
}

/// STC.
pub fn stc<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let value = m.truth(true);
    m.set_flag(Flag::Carry, value);
    Ok(())
}

/// CMC.
pub fn cmc<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let carry = m.flag(Flag::Carry);
    let value = m.bool_not(carry);
    m.set_flag(Flag::Carry, value);
    Ok(())
}

/// CLD.
pub fn cld<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    m.set_direction(false);
    Ok(())
}

/// STD.
pub fn std<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    m.set_direction(true);
    Ok(())
}

/// LAHF.
pub fn lahf<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let mut value = m.constant(Width::Byte, x86::flags::FIXED_ONE);
    for (flag, bit) in IN_AH {
        let set = m.flag(flag);
        let set = m.bool_to_int(Width::Byte, set);
        let count = m.constant(Width::Byte, u64::from(bit));
        let set = m.shift_left(Width::Byte, set, count);
        value = m.or(Width::Byte, value, set);
    }
    m.set_gpr(AH, value);
    Ok(())
}

/// SAHF.
pub fn sahf<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    let value = m.gpr(AH);
    for (flag, bit) in IN_AH {
        let set = m.bit(Width::Byte, value, bit);
        m.set_flag(flag, set);
    }
    Ok(())
}
