//! Binary arithmetic (SDM Vol. 1 5.1.2).

use memory::AtomicOp;

use crate::{Insn, Machine, Operand, operand};

/// ADD.
pub fn add<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let b = operand::read_as(m, i, 1, width)?;
    if i.lock && i.operand(0) == Operand::Memory {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        let a = m.atomic(AtomicOp::Add, width, address, b)?;
        let result = m.add(width, a, b);
        m.set_add_flags(width, a, b, None, result);
        return Ok(());
    }
    let (place, a) = operand::read_place(m, i, 0)?;
    let result = m.add(width, a, b);
    operand::write_place(m, place, width, result)?;
    m.set_add_flags(width, a, b, None, result);
    Ok(())
}

/// CMP.
pub fn cmp<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let a = operand::read(m, i, 0)?;
    let b = operand::read_as(m, i, 1, width)?;
    let result = m.sub(width, a, b);
    m.set_sub_flags(width, a, b, None, result);
    Ok(())
}
