//! IRET in every mode (SDM Vol. 2 IRET; Vol. 3A 6.12.1, 6.14.3; Vol. 3B 21.2.4).

use semantics::Insn;
use x86::{Exception, SegmentRegister, Width, flags};

use crate::{
    Context, Result,
    far::check_entry,
    far_return::{commit_with_stack, return_code_segment, return_stack_segment},
    flags::{load_rflags, popped_by_width},
    segment_load::{real_segment, virtual_8086_segment},
    stack::{Stack, set_stack_pointer},
    task,
};

/// IRET, IRETD, IRETQ.
pub(crate) fn iret(cx: &mut Context<'_>, insn: &Insn) -> Result {
    // Even an IRET that faults unblocks NMIs (SDM Vol. 3A 6.7.1).
    cx.state.nmi_blocked = false;
    if cx.is_real_style() {
        return iret_real(cx, insn);
    }
    if cx.state.rflags & flags::NT != 0 {
        if cx.state.mode.is_long() {
            return Err(Exception::GP0.into());
        }
        return task::return_to_previous(cx, insn.next_rip());
    }
    let width = insn.width;
    let mut stack = Stack::current(cx.state);
    let offset = stack.pop(cx, width)?;
    let selector = stack.pop(cx, width)? as u16;
    let rflags = stack.pop(cx, width)?;
    let long = cx.state.mode.is_long();
    if rflags & flags::VM != 0 && width == Width::Dword && cx.state.cpl == 0 && !long {
        return iret_to_v86(cx, stack, offset, selector, rflags);
    }
    let cs = return_code_segment(cx, selector)?;
    let modifiable = modifiable(cx, width);
    if selector as u8 & 3 != cx.state.cpl || cx.state.mode.is_64bit() {
        let pointer = stack.pop(cx, width)?;
        let ss_selector = stack.pop(cx, width)? as u16;
        let ss = return_stack_segment(cx, ss_selector, &cs)?;
        check_entry(cx, &cs, offset)?;
        commit_with_stack(cx, cs, offset, ss, pointer);
    } else {
        check_entry(cx, &cs, offset)?;
        stack.commit(cx.state);
        cx.state.segments[1] = cs;
        cx.state.rip = offset;
    }
    load_rflags(cx, rflags, modifiable);
    cx.mode_changed();
    Ok(())
}

/// Flags that IRET takes from the stack, with the CPL that it runs at.
fn modifiable(cx: &Context<'_>, width: Width) -> u64 {
    let mut modifiable =
        flags::STATUS | flags::TF | flags::DF | flags::NT | flags::RF | flags::AC | flags::ID;
    if cx.state.cpl <= cx.iopl() {
        modifiable |= flags::IF;
    }
    if cx.state.cpl == 0 {
        modifiable |= flags::IOPL | flags::VIF | flags::VIP;
    }
    popped_by_width(modifiable, width)
}

/// Real mode, and virtual-8086 mode with IOPL 3.
fn iret_real(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let v86 = cx.is_virtual_8086();
    if v86 && cx.iopl() < 3 {
        return Err(Exception::GP0.into());
    }
    let width = insn.width;
    let mut stack = Stack::current(cx.state);
    let offset = stack.pop(cx, width)?;
    let selector = stack.pop(cx, width)? as u16;
    let rflags = stack.pop(cx, width)?;
    let cs = real_segment(cx, SegmentRegister::Cs as usize, selector);
    check_entry(cx, &cs, offset)?;
    stack.commit(cx.state);
    cx.state.segments[1] = cs;
    cx.state.rip = offset;
    let mut modifiable =
        flags::STATUS | flags::TF | flags::IF | flags::DF | flags::NT | flags::RF | flags::AC | flags::ID;
    if !v86 {
        modifiable |= flags::IOPL;
    }
    load_rflags(cx, rflags, popped_by_width(modifiable, width));
    cx.mode_changed();
    Ok(())
}

/// From ring 0 to virtual-8086 mode.
fn iret_to_v86(cx: &mut Context<'_>, mut stack: Stack, offset: u64, cs: u16, rflags: u64) -> Result {
    let pointer = stack.pop(cx, Width::Dword)?;
    let mut selectors = [0u16; 5];
    for selector in &mut selectors {
        *selector = stack.pop(cx, Width::Dword)? as u16;
    }
    let cs = virtual_8086_segment(cs);
    check_entry(cx, &cs, offset)?;
    let [ss, es, ds, fs, gs] = selectors.map(virtual_8086_segment);
    cx.state.segments = [es, cs, ss, ds, fs, gs];
    cx.state.rip = offset;
    cx.state.cpl = 3;
    set_stack_pointer(cx.state, Width::Dword, pointer);
    load_rflags(cx, rflags, u64::MAX);
    cx.mode_changed();
    Ok(())
}
