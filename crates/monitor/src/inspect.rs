//! Instructions that ask about selectors without loading them: LAR LSL VERR VERW ARPL (SDM Vol. 3A 5.10; Vol. 2).

use semantics::{Insn, Operand, Register};
use x86::{Exception, Flags, Width, flags, segment::system};

use crate::{
    Context, Result,
    descriptor::{Descriptor, is_null},
};

/// The descriptor of a selector, if it exists and CPL and RPL allow its use.
fn visible(cx: &mut Context<'_>, selector: u16) -> Result<Option<Descriptor>> {
    if is_null(selector) {
        return Ok(None);
    }
    let Some(descriptor) = Descriptor::find(cx, selector)? else { return Ok(None) };
    let level = cx.state.cpl.max(selector as u8 & 3);
    let allowed = descriptor.is_conforming() || level <= descriptor.dpl();
    Ok(allowed.then_some(descriptor))
}

fn set_zero_flag(cx: &mut Context<'_>, set: bool) {
    let bits = cx.state.flags.to_bits() & !flags::ZF;
    cx.state.flags = Flags::from_bits(if set { bits | flags::ZF } else { bits });
}

/// LAR and LSL: ZF tells whether the destination was written.
fn answer(cx: &mut Context<'_>, insn: &Insn, value: Option<u64>) -> Result {
    let Operand::Gpr(destination) = insn.operand(0) else { return Err(Exception::UD.into()) };
    if let Some(value) = value {
        cx.set_gpr(destination, value);
    }
    set_zero_flag(cx, value.is_some());
    cx.advance(insn);
    Ok(())
}

/// LAR: the access rights.
pub(crate) fn lar(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_selectors()?;
    let selector = cx.read_operand(insn, 1, Width::Word)? as u16;
    let long = cx.state.mode.is_long();
    let rights = visible(cx, selector)?.and_then(|descriptor| {
        let valid = match descriptor.system_type() {
            None => true,
            Some(system::LDT | system::TSS_AVAILABLE | system::TSS_BUSY | system::CALL_GATE) => true,
            Some(system::TSS16_AVAILABLE | system::TSS16_BUSY | system::CALL_GATE16 | system::TASK_GATE) => {
                !long
            }
            Some(_) => false,
        };
        let mask = if insn.width == Width::Word { 0xff00 } else { 0x00f0_ff00 };
        valid.then_some(descriptor.bits >> 32 & mask)
    });
    answer(cx, insn, rights)
}

/// LSL: the limit in bytes.
pub(crate) fn lsl(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_selectors()?;
    let selector = cx.read_operand(insn, 1, Width::Word)? as u16;
    let long = cx.state.mode.is_long();
    let limit = visible(cx, selector)?.and_then(|descriptor| {
        let valid = match descriptor.system_type() {
            None | Some(system::LDT | system::TSS_AVAILABLE | system::TSS_BUSY) => true,
            Some(system::TSS16_AVAILABLE | system::TSS16_BUSY) => !long,
            Some(_) => false,
        };
        valid.then(|| u64::from(descriptor.segment().limit))
    });
    answer(cx, insn, limit)
}

/// VERR: whether the segment can be read.
pub(crate) fn verr(cx: &mut Context<'_>, insn: &Insn) -> Result {
    verify(cx, insn, Descriptor::is_readable)
}

/// VERW: whether the segment can be written.
pub(crate) fn verw(cx: &mut Context<'_>, insn: &Insn) -> Result {
    verify(cx, insn, Descriptor::is_writable)
}

fn verify(cx: &mut Context<'_>, insn: &Insn, test: fn(&Descriptor) -> bool) -> Result {
    cx.require_selectors()?;
    let selector = cx.read_operand(insn, 0, Width::Word)? as u16;
    let usable = visible(cx, selector)?.is_some_and(|descriptor| test(&descriptor));
    set_zero_flag(cx, usable);
    cx.advance(insn);
    Ok(())
}

/// ARPL: raises the destination's RPL to the source's.
pub(crate) fn arpl(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_selectors()?;
    let destination = cx.read_operand(insn, 0, Width::Word)?;
    let source = cx.read_operand(insn, 1, Width::Word)?;
    let raised = destination & 3 < source & 3;
    if raised {
        let value = destination & !3 | source & 3;
        match insn.operand(0) {
            // 16 bits whatever the operand size.
            Operand::Gpr(register) => cx.set_gpr(Register::new(register.index, Width::Word), value),
            _ => cx.write_operand(insn, 0, Width::Word, value)?,
        }
    }
    set_zero_flag(cx, raised);
    cx.advance(insn);
    Ok(())
}
