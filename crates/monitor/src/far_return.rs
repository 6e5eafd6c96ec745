//! RETF, and the checks that it shares with IRET (SDM Vol. 3A 5.8.6; Vol. 2 RET).

use semantics::Insn;
use x86::{Exception, Segment, Width, segment::attribute};

use crate::{
    Context, Result,
    descriptor::{Descriptor, is_null},
    far::check_entry,
    segment_load::{drop_inner_segments, real_segment, stack_segment},
    stack::{Stack, set_stack_pointer},
};

/// RETF, RETF imm16.
pub(crate) fn retf(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let width = insn.width;
    let released = if insn.operand_count > 0 { insn.immediate & 0xffff } else { 0 };
    let mut stack = Stack::current(cx.state);
    let offset = stack.pop(cx, width)?;
    let selector = stack.pop(cx, width)? as u16;
    if cx.is_real_style() {
        let cs = real_segment(cx, 1, selector);
        check_entry(cx, &cs, offset)?;
        stack.skip(released);
        stack.commit(cx.state);
        cx.state.segments[1] = cs;
        cx.state.rip = offset;
        cx.state.update_mode();
        return Ok(());
    }
    let cs = return_code_segment(cx, selector)?;
    stack.skip(released);
    if selector as u8 & 3 == cx.state.cpl {
        check_entry(cx, &cs, offset)?;
        stack.commit(cx.state);
        cx.state.segments[1] = cs;
        cx.state.rip = offset;
        cx.state.update_mode();
        return Ok(());
    }
    let pointer = stack.pop(cx, width)?;
    let ss_selector = stack.pop(cx, width)? as u16;
    let ss = return_stack_segment(cx, ss_selector, &cs)?;
    check_entry(cx, &cs, offset)?;
    commit_with_stack(cx, cs, offset, ss, pointer.wrapping_add(released));
    cx.mode_changed();
    Ok(())
}

/// Checks the code segment that a RETF or IRET goes back to, sets its accessed bit, and gives it with its selector as
/// CS has it.
pub(crate) fn return_code_segment(cx: &mut Context<'_>, selector: u16) -> Result<Segment> {
    if is_null(selector) {
        return Err(Exception::GP0.into());
    }
    let fault = Exception::gp(selector);
    let mut code = Descriptor::read(cx, selector, fault)?;
    let rpl = selector as u8 & 3;
    let level_allowed = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
    if !code.is_code() || rpl < cx.state.cpl || !level_allowed {
        return Err(fault.into());
    }
    if cx.state.mode.is_long() && code.is_long() && code.is_default_32() {
        return Err(fault.into());
    }
    if !code.is_present() {
        return Err(Exception::np(selector).into());
    }
    code.mark_accessed(cx)?;
    Ok(code.segment())
}

/// Checks the stack segment that goes with a return to `cs`. It may be null for 64-bit code at CPL 0 to 2.
pub(crate) fn return_stack_segment(cx: &mut Context<'_>, selector: u16, cs: &Segment) -> Result<Segment> {
    let cpl = cs.selector as u8 & 3;
    let allows_null = cx.state.mode.is_long() && cs.has(attribute::LONG) && cpl != 3;
    stack_segment(cx, selector, cpl, allows_null, Exception::gp)
}

/// Commits CS:RIP and SS:RSP of a return. The caller changes RFLAGS and then calls [`Context::mode_changed`].
pub(crate) fn commit_with_stack(cx: &mut Context<'_>, cs: Segment, offset: u64, ss: Segment, pointer: u64) {
    let old_cpl = cx.state.cpl;
    let width = if cx.state.mode.is_long() && cs.has(attribute::LONG) {
        Width::Qword
    } else if ss.has(attribute::DEFAULT_32) {
        Width::Dword
    } else {
        // Only SP is loaded: what Linux calls the espfix problem.
        Width::Word
    };
    cx.state.segments[1] = cs;
    cx.state.segments[2] = ss;
    cx.state.rip = offset;
    cx.state.cpl = cs.selector as u8 & 3;
    set_stack_pointer(cx.state, width, pointer);
    if cx.state.cpl != old_cpl {
        drop_inner_segments(cx);
    }
}
