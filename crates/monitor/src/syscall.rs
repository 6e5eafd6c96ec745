//! Fast system calls: SYSCALL SYSRET SYSENTER SYSEXIT SWAPGS (SDM Vol. 3A 5.8.7, 5.8.8; Vol. 2). They load fixed segments
//! without reading descriptors.

use memory::GuestVirt;
use semantics::Insn;
use x86::{Exception, Segment, Width, control::efer, flags, state::RSP};

use crate::{Context, Result};

/// A flat 64-bit code segment, present and accessed; the DPL is or-ed in.
const CODE64: u16 = 0xa09b;
/// A flat 32-bit code segment.
const CODE32: u16 = 0xc09b;
/// A flat writable data segment.
const DATA: u16 = 0xc093;
/// RFLAGS bits that SYSRET takes from R11.
const SYSRET_FLAGS: u64 = 0x3c_7fd7;

fn flat(selector: u16, attributes: u16, dpl: u8) -> Segment {
    Segment { base: 0, limit: u32::MAX, selector, attributes: attributes | u16::from(dpl) << 5 }
}

fn require_syscall(cx: &Context<'_>) -> Result<(), Exception> {
    if cx.state.mode.is_64bit() && cx.state.efer & efer::SCE != 0 { Ok(()) } else { Err(Exception::UD) }
}

/// SYSCALL; 64-bit mode only, as on Intel's processors.
pub(crate) fn syscall(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_syscall(cx)?;
    let state = &mut *cx.state;
    let rflags = state.rflags();
    state.gpr[1] = insn.next_rip();
    state.gpr[11] = rflags & !flags::RF;
    state.rip = state.msrs.lstar;
    state.set_rflags(rflags & !state.msrs.fmask & !flags::RF);
    let selector = (state.msrs.star >> 32) as u16 & !3;
    state.segments[1] = flat(selector, CODE64, 0);
    state.segments[2] = flat(selector.wrapping_add(8), DATA, 0);
    state.cpl = 0;
    cx.mode_changed();
    Ok(())
}

/// SYSRET to compatibility mode, SYSRETQ to 64-bit mode.
pub(crate) fn sysret(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_syscall(cx)?;
    cx.require_cpl0()?;
    let to_64bit = insn.width == Width::Qword;
    let target = cx.state.gpr[1];
    if to_64bit && !GuestVirt(target).is_canonical() {
        return Err(Exception::GP0.into());
    }
    let state = &mut *cx.state;
    let base = (state.msrs.star >> 48) as u16;
    state.rip = if to_64bit { target } else { target & 0xffff_ffff };
    state.set_rflags(state.gpr[11] & SYSRET_FLAGS);
    state.segments[1] =
        if to_64bit { flat(base.wrapping_add(16) | 3, CODE64, 3) } else { flat(base | 3, CODE32, 3) };
    state.segments[2] = flat(base.wrapping_add(8) | 3, DATA, 3);
    state.cpl = 3;
    cx.mode_changed();
    Ok(())
}

/// SYSENTER.
pub(crate) fn sysenter(cx: &mut Context<'_>, _: &Insn) -> Result {
    let selector = cx.state.msrs.sysenter_cs as u16 & !3;
    if !cx.is_protected() || selector == 0 {
        return Err(Exception::GP0.into());
    }
    let long = cx.state.mode.is_long();
    let width = if long { Width::Qword } else { Width::Dword };
    let state = &mut *cx.state;
    state.rflags &= !(flags::VM | flags::IF | flags::RF);
    state.gpr[RSP] = width.truncate(state.msrs.sysenter_esp);
    state.rip = width.truncate(state.msrs.sysenter_eip);
    state.segments[1] = flat(selector, if long { CODE64 } else { CODE32 }, 0);
    state.segments[2] = flat(selector.wrapping_add(8), DATA, 0);
    state.cpl = 0;
    cx.mode_changed();
    Ok(())
}

/// SYSEXIT to 32-bit code, SYSEXITQ to 64-bit code.
pub(crate) fn sysexit(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let selector = cx.state.msrs.sysenter_cs as u16 & !3;
    if !cx.is_protected() || selector == 0 {
        return Err(Exception::GP0.into());
    }
    cx.require_cpl0()?;
    let to_64bit = insn.width == Width::Qword;
    let (rsp, rip) = (cx.state.gpr[1], cx.state.gpr[2]);
    if to_64bit && !(GuestVirt(rsp).is_canonical() && GuestVirt(rip).is_canonical()) {
        return Err(Exception::GP0.into());
    }
    let width = if to_64bit { Width::Qword } else { Width::Dword };
    let offset = if to_64bit { 32 } else { 16 };
    let state = &mut *cx.state;
    state.gpr[RSP] = width.truncate(rsp);
    state.rip = width.truncate(rip);
    state.rflags &= !flags::RF;
    let cs = selector.wrapping_add(offset);
    state.segments[1] = flat(cs | 3, if to_64bit { CODE64 } else { CODE32 }, 3);
    state.segments[2] = flat(cs.wrapping_add(8) | 3, DATA, 3);
    state.cpl = 3;
    cx.mode_changed();
    Ok(())
}

/// SWAPGS.
pub(crate) fn swapgs(cx: &mut Context<'_>, insn: &Insn) -> Result {
    if !cx.state.mode.is_64bit() {
        return Err(Exception::UD.into());
    }
    cx.require_cpl0()?;
    let gs = &mut cx.state.segments[5].base;
    core::mem::swap(gs, &mut cx.state.msrs.kernel_gs_base);
    cx.advance(insn);
    Ok(())
}
