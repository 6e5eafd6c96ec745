//! JMP and CALL to another code segment: direct, through call gates, through task gates and TSSs
//! (SDM Vol. 3A 5.8; Vol. 2 JMP, CALL).

use memory::GuestVirt;
use semantics::{Insn, Operand};
use x86::{
    Exception, Segment, Width,
    segment::{attribute, system},
    state::RSP,
};

use crate::{
    Context, Result,
    delivery::null_stack_segment,
    descriptor::{Descriptor, is_null},
    gate::{Gate, gate_code_segment, legacy_inner_stack, long_inner_stack},
    segment_load::real_segment,
    stack::Stack,
    task,
};

/// The two transfers; a call leaves a return address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Kind {
    Jump,
    Call,
}

/// JMP ptr16:16, ptr16:32, m16:16, m16:32, m16:64.
pub(crate) fn jmp(cx: &mut Context<'_>, insn: &Insn) -> Result {
    transfer(cx, insn, Kind::Jump)
}

/// CALL with the same operands.
pub(crate) fn call(cx: &mut Context<'_>, insn: &Insn) -> Result {
    transfer(cx, insn, Kind::Call)
}

fn transfer(cx: &mut Context<'_>, insn: &Insn, kind: Kind) -> Result {
    let (selector, offset, width) = match insn.operand(0) {
        Operand::Far => (insn.immediate2, insn.width.truncate(insn.immediate), insn.width),
        Operand::Memory => {
            let width = match insn.memory_bytes {
                4 => Width::Word,
                6 => Width::Dword,
                10 => Width::Qword,
                _ => return Err(Exception::UD.into()),
            };
            let offset = cx.load_operand(insn, 0, width)?;
            (cx.load_operand(insn, width.bytes(), Width::Word)? as u16, offset, width)
        }
        _ => return Err(Exception::UD.into()),
    };
    if cx.is_real_style() {
        let cs = real_segment(cx, 1, selector);
        return enter(cx, insn, kind, width, cs, offset);
    }
    if is_null(selector) {
        return Err(Exception::GP0.into());
    }
    let target = Descriptor::read(cx, selector, Exception::gp(selector))?;
    if target.is_code() {
        return to_code_segment(cx, insn, kind, width, target, offset);
    }
    let long = cx.state.mode.is_long();
    match target.system_type() {
        Some(system::CALL_GATE) => through_call_gate(cx, insn, kind, target),
        Some(system::CALL_GATE16) if !long => through_call_gate(cx, insn, kind, target),
        Some(system::TASK_GATE | system::TSS_AVAILABLE | system::TSS16_AVAILABLE) if !long => {
            check_gate_access(cx, &target)?;
            let reason = if kind == Kind::Call { task::Reason::Call } else { task::Reason::Jump };
            task::enter_by_transfer(cx, &target, reason, insn.next_rip())
        }
        _ => Err(Exception::gp(selector).into()),
    }
}

/// DPL and RPL of a gate or TSS, then presence.
fn check_gate_access(cx: &Context<'_>, gate: &Descriptor) -> Result {
    let rpl = gate.selector as u8 & 3;
    if gate.dpl() < cx.state.cpl || rpl > gate.dpl() {
        return Err(Exception::gp(gate.selector).into());
    }
    if !gate.is_present() {
        return Err(Exception::np(gate.selector).into());
    }
    Ok(())
}

/// A code segment named directly: CPL stays.
fn to_code_segment(
    cx: &mut Context<'_>,
    insn: &Insn,
    kind: Kind,
    width: Width,
    mut code: Descriptor,
    offset: u64,
) -> Result {
    let selector = code.selector;
    let cpl = cx.state.cpl;
    let rpl = selector as u8 & 3;
    let allowed = if code.is_conforming() { code.dpl() <= cpl } else { rpl <= cpl && code.dpl() == cpl };
    if !allowed || (cx.state.mode.is_long() && code.is_long() && code.is_default_32()) {
        return Err(Exception::gp(selector).into());
    }
    if !code.is_present() {
        return Err(Exception::np(selector).into());
    }
    check_entry(cx, &code.segment(), offset)?;
    code.mark_accessed(cx)?;
    let mut cs = code.segment();
    cs.selector = selector & !3 | u16::from(cpl);
    enter(cx, insn, kind, width, cs, offset)
}

/// #GP(0) unless the code segment reaches the entry point (64-bit code: unless it is canonical).
pub(crate) fn check_entry(cx: &Context<'_>, cs: &Segment, offset: u64) -> Result<(), Exception> {
    let inside = if cx.state.mode.is_long() && cs.has(attribute::LONG) {
        GuestVirt(offset).is_canonical()
    } else {
        offset <= u64::from(cs.limit)
    };
    if inside { Ok(()) } else { Err(Exception::GP0) }
}

/// Pushes the return address for calls, and goes there. No change of CPL.
fn enter(cx: &mut Context<'_>, insn: &Insn, kind: Kind, width: Width, cs: Segment, offset: u64) -> Result {
    check_entry(cx, &cs, offset)?;
    let mut stack = Stack::current(cx.state);
    if kind == Kind::Call {
        stack.push(cx, width, u64::from(cx.state.segments[1].selector))?;
        stack.push(cx, width, insn.next_rip())?;
    }
    stack.commit(cx.state);
    cx.state.segments[1] = cs;
    cx.state.rip = offset;
    cx.state.update_mode();
    Ok(())
}

/// A call gate; a call to a non-conforming segment of a higher privilege switches stacks.
fn through_call_gate(cx: &mut Context<'_>, insn: &Insn, kind: Kind, descriptor: Descriptor) -> Result {
    let long = cx.state.mode.is_long();
    let fault = Exception::gp(descriptor.selector);
    check_gate_access(cx, &descriptor)?;
    let upper = if long { descriptor.upper(cx)?.ok_or(fault)? } else { 0 };
    // The type field of the second half must be zero (SDM Vol. 3A 5.8.3.1).
    if upper >> 40 & 0x1f != 0 {
        return Err(fault.into());
    }
    let gate = Gate::parse(descriptor.bits, upper & 0xffff_ffff);
    let width = match gate.kind {
        _ if long => Width::Qword,
        system::CALL_GATE => Width::Dword,
        _ => Width::Word,
    };
    let mut code = gate_code_segment(cx, gate.selector, 0)?;
    let cpl = cx.state.cpl;
    if code.is_conforming() || code.dpl() == cpl {
        check_entry(cx, &code.segment(), gate.offset)?;
        code.mark_accessed(cx)?;
        let mut cs = code.segment();
        cs.selector = gate.selector & !3 | u16::from(cpl);
        return enter(cx, insn, kind, width, cs, gate.offset);
    }
    if kind == Kind::Jump {
        return Err(Exception::gp(gate.selector).into());
    }
    call_inner(cx, insn, &gate, code, width)
}

fn call_inner(cx: &mut Context<'_>, insn: &Insn, gate: &Gate, mut code: Descriptor, width: Width) -> Result {
    let new_cpl = code.dpl();
    let old = Stack::current(cx.state);
    let old_ss = u64::from(cx.state.segments[2].selector);
    let old_cs = u64::from(cx.state.segments[1].selector);
    let long = cx.state.mode.is_long();
    let (ss, mut stack) = if long {
        let pointer = long_inner_stack(cx, u64::from(new_cpl), 0)?;
        (null_stack_segment(new_cpl), Stack::long(pointer, new_cpl, 0))
    } else {
        let (ss, pointer) = legacy_inner_stack(cx, new_cpl, 0)?;
        (ss, Stack::legacy(ss, pointer, new_cpl, 0))
    };
    check_entry(cx, &code.segment(), gate.offset)?;
    stack.push(cx, width, old_ss)?;
    stack.push(cx, width, cx.state.gpr[RSP])?;
    if !long {
        for n in (0..u64::from(gate.count)).rev() {
            let parameter = old.peek(cx, n * width.bytes(), width)?;
            stack.push(cx, width, parameter)?;
        }
    }
    stack.push(cx, width, old_cs)?;
    stack.push(cx, width, insn.next_rip())?;
    code.mark_accessed(cx)?;

    let mut cs = code.segment();
    cs.selector = gate.selector & !3 | u16::from(new_cpl);
    cx.state.segments[1] = cs;
    cx.state.segments[2] = ss;
    cx.state.cpl = new_cpl;
    stack.commit(cx.state);
    cx.state.rip = gate.offset;
    cx.mode_changed();
    Ok(())
}
