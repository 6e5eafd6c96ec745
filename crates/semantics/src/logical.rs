//! Logical instructions (SDM Vol. 1 5.1.4), and TEST. AF is undefined after them: here it is clear, as in processors.

use memory::AtomicOp;

use crate::{Insn, Machine, Operand, arithmetic::update, operand};

/// AND.
#[inline(always)]
pub fn and<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let b = operand::read_as(m, i, 1, i.operand_width(0))?;
    update(
        m,
        i,
        (AtomicOp::And, b),
        |m, width, a| m.and(width, a, b),
        |m, width, _, result| m.set_logic_flags(width, result),
    )
}

/// OR.
#[inline(always)]
pub fn or<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let b = operand::read_as(m, i, 1, i.operand_width(0))?;
    update(
        m,
        i,
        (AtomicOp::Or, b),
        |m, width, a| m.or(width, a, b),
        |m, width, _, result| m.set_logic_flags(width, result),
    )
}

/// XOR. Of a register with itself it is a constant and depends on nothing.
#[inline(always)]
pub fn xor<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    if let (Operand::Gpr(a), Operand::Gpr(b)) = (i.operand(0), i.operand(1))
        && a == b
    {
        let zero = m.constant(width, 0);
        m.set_gpr(a, zero);
        m.set_logic_flags(width, zero);
        return Ok(());
    }
    let b = operand::read_as(m, i, 1, width)?;
    update(
        m,
        i,
        (AtomicOp::Xor, b),
        |m, width, a| m.xor(width, a, b),
        |m, width, _, result| m.set_logic_flags(width, result),
    )
}

/// NOT: no flags.
pub fn not<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let ones = m.constant(i.operand_width(0), u64::MAX);
    update(m, i, (AtomicOp::Xor, ones), |m, width, a| m.not(width, a), |_, _, _, _| {})
}

/// TEST.
#[inline(always)]
pub fn test<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let a = operand::read(m, i, 0)?;
    let b = operand::read_as(m, i, 1, width)?;
    let result = m.and(width, a, b);
    m.set_logic_flags(width, result);
    Ok(())
}
