//! Instructions on the system flags: PUSHF POPF CLI STI CLAC STAC, and how RFLAGS images are loaded
//! (SDM Vol. 3A 2.3; Vol. 3B 21.2.7; Vol. 2).

use semantics::Insn;
use x86::{Exception, Width, control::debug, flags, state::shadow};

use crate::{Context, Result, stack::Stack};

/// Loads the `modifiable` bits of RFLAGS from an image. The caller updates the mode (AC and VM are part of it).
pub(crate) fn load_rflags(cx: &mut Context<'_>, image: u64, modifiable: u64) {
    let mut rflags = cx.state.rflags() & !modifiable | image & modifiable;
    // RF lasts until the next instruction completes and matters to instruction breakpoints only. Without any it is
    // dropped at once, so that engines need not clear it after every instruction.
    if cx.state.dr[7] & debug::DR7_ENABLES == 0 {
        rflags &= !flags::RF;
    }
    cx.state.set_rflags(rflags);
}

/// The flags that an image of `width` bytes holds.
pub(crate) fn popped_by_width(modifiable: u64, width: Width) -> u64 {
    if width == Width::Word { modifiable & 0xffff } else { modifiable }
}

/// PUSHF, PUSHFD, PUSHFQ: VM and RF read as zero.
pub(crate) fn pushf(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_v86_iopl3(cx)?;
    let image = cx.state.rflags() & !(flags::VM | flags::RF);
    let mut stack = Stack::current(cx.state);
    stack.push(cx, insn.width, image)?;
    stack.commit(cx.state);
    cx.advance(insn);
    Ok(())
}

/// POPF, POPFD, POPFQ.
pub(crate) fn popf(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_v86_iopl3(cx)?;
    let mut stack = Stack::current(cx.state);
    let image = stack.pop(cx, insn.width)?;
    stack.commit(cx.state);
    let mut modifiable = flags::STATUS | flags::TF | flags::DF | flags::NT | flags::AC | flags::ID;
    if cx.state.cpl <= cx.iopl() {
        modifiable |= flags::IF;
    }
    if cx.state.cpl == 0 {
        modifiable |= flags::IOPL;
    }
    let old = cx.state.rflags;
    let modifiable = popped_by_width(modifiable, insn.width);
    cx.state.set_rflags((cx.state.rflags() & !modifiable | image & modifiable) & !flags::RF);
    if (old ^ cx.state.rflags) & flags::AC != 0 {
        cx.mode_changed();
    }
    cx.advance(insn);
    Ok(())
}

fn require_v86_iopl3(cx: &Context<'_>) -> Result<(), Exception> {
    if cx.is_virtual_8086() && cx.iopl() < 3 { Err(Exception::GP0) } else { Ok(()) }
}

/// CLI (CR4.PVI and CR4.VME are not announced).
pub(crate) fn cli(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_interrupt_control(cx)?;
    cx.state.rflags &= !flags::IF;
    cx.advance(insn);
    Ok(())
}

/// STI: interrupts wait for one more instruction if they were off.
pub(crate) fn sti(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_interrupt_control(cx)?;
    if cx.state.rflags & flags::IF == 0 {
        cx.state.rflags |= flags::IF;
        cx.state.interrupt_shadow |= shadow::STI;
    }
    cx.advance(insn);
    Ok(())
}

/// CPL must not exceed IOPL. Real mode has CPL 0, virtual-8086 mode CPL 3.
fn require_interrupt_control(cx: &Context<'_>) -> Result<(), Exception> {
    if cx.state.cpl > cx.iopl() { Err(Exception::GP0) } else { Ok(()) }
}

/// CLAC.
pub(crate) fn clac(cx: &mut Context<'_>, insn: &Insn) -> Result {
    set_access_flag(cx, insn, false)
}

/// STAC.
pub(crate) fn stac(cx: &mut Context<'_>, insn: &Insn) -> Result {
    set_access_flag(cx, insn, true)
}

fn set_access_flag(cx: &mut Context<'_>, insn: &Insn, set: bool) -> Result {
    // #UD, not #GP, at other privilege levels.
    if cx.state.cpl != 0 {
        return Err(Exception::UD.into());
    }
    let old = cx.state.rflags;
    cx.state.rflags = if set { old | flags::AC } else { old & !flags::AC };
    if cx.state.rflags != old {
        cx.mode_changed();
    }
    cx.advance(insn);
    Ok(())
}
