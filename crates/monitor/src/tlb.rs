//! Translations and caches: INVLPG INVPCID INVD WBINVD (SDM Vol. 3A 4.10.4; Vol. 2).

use memory::GuestVirt;
use semantics::{Insn, Operand};
use x86::{Exception, SegmentRegister, Width, control::cr4};

use crate::{Context, Result};

/// INVLPG. In 64-bit mode a non-canonical address is no error and does nothing.
pub(crate) fn invlpg(cx: &mut Context<'_>, insn: &Insn) -> Result {
    if insn.operand(0) != Operand::Memory {
        return Err(Exception::UD.into());
    }
    cx.require_cpl0()?;
    let segment = insn.memory.segment;
    let offset = cx.effective_address(insn);
    let address = if !cx.state.mode.is_64bit() {
        GuestVirt(cx.state.segment(segment).base.wrapping_add(offset) & 0xffff_ffff)
    } else if matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) {
        GuestVirt(cx.state.segment(segment).base.wrapping_add(offset))
    } else {
        GuestVirt(offset)
    };
    if address.is_canonical() {
        cx.mmu.flush_page(cx.state, address);
    }
    cx.advance(insn);
    Ok(())
}

/// INVPCID: the type in a register, the descriptor (PCID, address) in memory.
pub(crate) fn invpcid(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let (Operand::Gpr(source), Operand::Memory) = (insn.operand(0), insn.operand(1)) else {
        return Err(Exception::UD.into());
    };
    cx.require_cpl0()?;
    let kind = cx.gpr(source);
    let context = cx.load_operand(insn, 0, Width::Qword)?;
    let address = GuestVirt(cx.load_operand(insn, 8, Width::Qword)?);
    let needs_pcids = kind < 2 && context != 0 && cx.state.cr4 & cr4::PCIDE == 0;
    if kind > 3 || context >> 12 != 0 || needs_pcids {
        return Err(Exception::GP0.into());
    }
    let pcid = context as u16;
    match kind {
        0 if !address.is_canonical() => return Err(Exception::GP0.into()),
        // Drops the page of every PCID, which is more than asked for and allowed.
        0 => cx.mmu.flush_page(cx.state, address),
        1 => cx.mmu.flush_non_global(cx.state, Some(pcid)),
        2 => cx.mmu.flush_all(cx.state),
        _ => cx.mmu.flush_non_global(cx.state, None),
    }
    cx.advance(insn);
    Ok(())
}

/// INVD, WBINVD: there are no caches to write back.
pub(crate) fn cache_control(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    cx.advance(insn);
    Ok(())
}
