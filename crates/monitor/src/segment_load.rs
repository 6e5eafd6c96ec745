//! Segment registers: MOV Sreg, POP Sreg, LDS LES LFS LGS LSS, and the checks that every load of a data or
//! stack segment makes (SDM Vol. 3A 3.4.2, 5.4.1, 5.6, 5.7; Vol. 2 MOV, POP, LDS).

use semantics::{Insn, Operand};
use x86::{Exception, Segment, SegmentRegister, Width, flags, segment::attribute, state::shadow};

use crate::{
    Context, Result,
    descriptor::{Descriptor, is_null},
    stack::Stack,
};

/// What a segment register becomes in real mode (limit and rights stay, so that "unreal" mode works) or in
/// virtual-8086 mode (all are set, SDM Vol. 3B 21.2.1).
pub(crate) fn real_segment(cx: &Context<'_>, register: usize, selector: u16) -> Segment {
    if cx.is_protected() {
        return virtual_8086_segment(selector);
    }
    let mut segment = cx.state.segments[register];
    segment.selector = selector;
    segment.base = u64::from(selector) << 4;
    if !segment.has(attribute::PRESENT) {
        // A null selector that was loaded in protected mode: real mode has no unusable segments.
        segment.attributes = 0x93;
        segment.limit = 0xffff;
    }
    segment
}

/// A segment of virtual-8086 mode: 64 KiB, DPL 3, readable and writable.
pub(crate) fn virtual_8086_segment(selector: u16) -> Segment {
    Segment { attributes: 0xf3, ..Segment::real(selector) }
}

/// Checks a selector for ES, SS, DS, FS or GS and gives the segment to load. Sets the accessed bit.
pub(crate) fn data_segment(
    cx: &mut Context<'_>,
    register: SegmentRegister,
    selector: u16,
) -> Result<Segment> {
    if cx.is_real_style() {
        return Ok(real_segment(cx, register as usize, selector));
    }
    if register == SegmentRegister::Ss {
        let allows_null = cx.state.mode.is_64bit() && cx.state.cpl != 3;
        return stack_segment(cx, selector, cx.state.cpl, allows_null, Exception::gp);
    }
    if is_null(selector) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let mut descriptor = Descriptor::read(cx, selector, Exception::gp(selector))?;
    if !descriptor.is_readable() {
        return Err(Exception::gp(selector).into());
    }
    let rpl = selector as u8 & 3;
    if !descriptor.is_conforming() && (rpl > descriptor.dpl() || cx.state.cpl > descriptor.dpl()) {
        return Err(Exception::gp(selector).into());
    }
    if !descriptor.is_present() {
        return Err(Exception::np(selector).into());
    }
    descriptor.mark_accessed(cx)?;
    Ok(descriptor.segment())
}

/// Checks a selector for SS at privilege level `cpl`. `fault` makes the error for a selector: #GP here, #TS in a task switch.
pub(crate) fn stack_segment(
    cx: &mut Context<'_>,
    selector: u16,
    cpl: u8,
    allows_null: bool,
    fault: fn(u16) -> Exception,
) -> Result<Segment> {
    let rpl = selector as u8 & 3;
    if is_null(selector) {
        if allows_null && rpl == cpl {
            return Ok(Segment { selector, ..Segment::default() });
        }
        return Err(fault(0).into());
    }
    let mut descriptor = Descriptor::read(cx, selector, fault(selector))?;
    if rpl != cpl || !descriptor.is_writable() || descriptor.dpl() != cpl {
        return Err(fault(selector).into());
    }
    if !descriptor.is_present() {
        return Err(Exception::ss(selector).into());
    }
    descriptor.mark_accessed(cx)?;
    Ok(descriptor.segment())
}

/// Loads a segment register other than CS, with its effect on the mode.
fn set_segment(cx: &mut Context<'_>, register: SegmentRegister, segment: Segment) {
    cx.state.segments[register as usize] = segment;
    cx.state.update_mode();
}

/// Interrupts, NMIs and debug traps wait for one instruction after SS was loaded, unless LSS did it.
fn shadow_stack_load(cx: &mut Context<'_>, register: SegmentRegister) {
    if register == SegmentRegister::Ss {
        cx.state.interrupt_shadow |= shadow::MOV_SS;
    }
}

/// MOV to or from a segment register.
pub(crate) fn mov(cx: &mut Context<'_>, insn: &Insn) -> Result {
    match (insn.operand(0), insn.operand(1)) {
        (Operand::Segment(SegmentRegister::Cs), _) => return Err(Exception::UD.into()),
        (Operand::Segment(register), _) => {
            let selector = cx.read_operand(insn, 1, Width::Word)? as u16;
            let segment = data_segment(cx, register, selector)?;
            set_segment(cx, register, segment);
            shadow_stack_load(cx, register);
        }
        (_, Operand::Segment(register)) => {
            let selector = u64::from(cx.state.segment(register).selector);
            cx.write_operand(insn, 0, Width::Word, selector)?;
        }
        _ => return Err(Exception::UD.into()),
    }
    cx.advance(insn);
    Ok(())
}

/// POP Sreg.
pub(crate) fn pop(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let Operand::Segment(register) = insn.operand(0) else { return Err(Exception::UD.into()) };
    let mut stack = Stack::current(cx.state);
    let selector = stack.peek(cx, 0, Width::Word)? as u16;
    stack.skip(insn.width.bytes());
    let segment = data_segment(cx, register, selector)?;
    // The pointer is committed at the width of the old stack segment.
    stack.commit(cx.state);
    set_segment(cx, register, segment);
    shadow_stack_load(cx, register);
    cx.advance(insn);
    Ok(())
}

/// LDS, LES, LFS, LGS, LSS: offset, then selector.
pub(crate) fn load_far_pointer(cx: &mut Context<'_>, insn: &Insn, register: SegmentRegister) -> Result {
    let Operand::Gpr(destination) = insn.operand(0) else { return Err(Exception::UD.into()) };
    if insn.operand(1) != Operand::Memory {
        return Err(Exception::UD.into());
    }
    let width = destination.width;
    let offset = cx.load_operand(insn, 0, width)?;
    let selector = cx.load_operand(insn, width.bytes(), Width::Word)? as u16;
    let segment = data_segment(cx, register, selector)?;
    set_segment(cx, register, segment);
    cx.set_gpr(destination, offset);
    cx.advance(insn);
    Ok(())
}

/// After a return to an outer level: segments that the new CPL may not use become null (SDM Vol. 2 RET, IRET).
pub(crate) fn drop_inner_segments(cx: &mut Context<'_>) {
    debug_assert_eq!(cx.state.rflags & flags::VM, 0);
    let cpl = cx.state.cpl;
    for n in [0, 3, 4, 5] {
        let segment = &mut cx.state.segments[n];
        let conforming = segment.has(attribute::CODE | attribute::CONFORMING);
        if segment.has(attribute::PRESENT) && !conforming && segment.dpl() < cpl {
            *segment = Segment::default();
        }
    }
}
