//! Data transfer (SDM Vol. 1 5.1.1): moves, conversions. The stack is in [`stack`](crate::stack), exchanges are in
//! [`exchange`](crate::exchange). MOV to segment, control and debug registers is a callout.

use x86::Width;

use crate::{ConditionCode, Insn, Machine, Operand, Register, operand, stack};

const RAX: u8 = 0;
const RDX: u8 = 2;

/// MOV between registers, memory and immediates, and from a segment register.
#[inline(always)]
pub fn mov<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let value = match i.operand(1) {
        Operand::Segment(segment) => {
            let selector = stack::selector(m, segment);
            m.resize(Width::Word, width, selector)
        }
        Operand::Immediate => m.constant(width, i.immediate),
        _ => operand::read(m, i, 1)?,
    };
    operand::write(m, i, 0, value)
}

/// MOVZX.
#[inline(always)]
pub fn movzx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let value = operand::read(m, i, 1)?;
    let value = m.resize(i.operand_width(1), i.operand_width(0), value);
    operand::write(m, i, 0, value)
}

/// MOVSX, MOVSXD.
#[inline(always)]
pub fn movsx<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let value = operand::read(m, i, 1)?;
    let value = m.resize_signed(i.operand_width(1), i.operand_width(0), value);
    operand::write(m, i, 0, value)
}

/// CMOVcc: the source is read, and a 32-bit destination's upper half cleared, whatever the condition.
pub fn cmovcc<M: Machine, const CODE: u8>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(0);
    let new = operand::read(m, i, 1)?;
    let old = operand::read(m, i, 0)?;
    let condition = m.condition(ConditionCode::from_number(CODE));
    let value = m.select(width, condition, new, old);
    operand::write(m, i, 0, value)
}

/// MOVBE.
pub fn movbe<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let value = operand::read(m, i, 1)?;
    let value = m.swap_bytes(i.operand_width(1), value);
    operand::write(m, i, 0, value)
}

/// CBW.
pub fn cbw<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    extend_accumulator(m, Width::Byte, Width::Word)
}

/// CWDE.
pub fn cwde<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    extend_accumulator(m, Width::Word, Width::Dword)
}

/// CDQE.
pub fn cdqe<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    extend_accumulator(m, Width::Dword, Width::Qword)
}

fn extend_accumulator<M: Machine>(m: &mut M, from: Width, to: Width) -> Result<(), M::Stop> {
    let value = m.gpr(Register::new(RAX, from));
    let value = m.resize_signed(from, to, value);
    m.set_gpr(Register::new(RAX, to), value);
    Ok(())
}

/// CWD.
pub fn cwd<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    spread_sign(m, Width::Word)
}

/// CDQ.
pub fn cdq<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    spread_sign(m, Width::Dword)
}

/// CQO.
pub fn cqo<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    spread_sign(m, Width::Qword)
}

fn spread_sign<M: Machine>(m: &mut M, width: Width) -> Result<(), M::Stop> {
    let value = m.gpr(Register::new(RAX, width));
    let last = m.constant(width, u64::from(width.bits() - 1));
    let sign = m.shift_right_signed(width, value, last);
    m.set_gpr(Register::new(RDX, width), sign);
    Ok(())
}
