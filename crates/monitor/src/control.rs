//! Control registers: MOV to and from CR0 CR2 CR3 CR4 CR8, LMSW SMSW CLTS, XGETBV XSETBV
//! (SDM Vol. 3A 2.5, 2.6, 4.1.2, 4.4.1, 9.8.5; Vol. 2 MOV control registers).

use std::sync::atomic::Ordering;

use memory::GuestPhys;
use semantics::{Insn, Operand};
use x86::{
    Exception, Width,
    control::{cr0, cr4, efer, xcr0},
    paging,
    segment::{attribute, system},
    state::exit_request,
};

use crate::{Context, Result};

/// CR4 bits that the announced processor has.
const CR4_SUPPORTED: u64 = cr4::TSD
    | cr4::DE
    | cr4::PSE
    | cr4::PAE
    | cr4::MCE
    | cr4::PGE
    | cr4::PCE
    | cr4::OSFXSR
    | cr4::OSXMMEXCPT
    | cr4::UMIP
    | cr4::FSGSBASE
    | cr4::PCIDE
    | cr4::OSXSAVE
    | cr4::SMEP
    | cr4::SMAP;

/// CR4 bits on which translations depend.
const CR4_PAGING: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::PCIDE | cr4::SMEP | cr4::SMAP;

/// CR4 bits whose change loads the PDPTEs in PAE paging (SDM Vol. 3A 4.4.1).
const CR4_LOADS_PDPTES: u64 = cr4::PSE | cr4::PAE | cr4::PGE | cr4::SMEP;

/// CR3 bit 63 as a source operand with PCIDs on: keep translations.
const CR3_KEEP: u64 = 1 << 63;

/// XCR0 bits that the announced processor has.
const XCR0_SUPPORTED: u64 = xcr0::X87 | xcr0::SSE;

/// MOV to or from a control register.
pub(crate) fn mov(cx: &mut Context<'_>, insn: &Insn) -> Result {
    match (insn.operand(0), insn.operand(1)) {
        (Operand::Gpr(destination), Operand::Control(number)) => {
            let value = match number {
                0 => cx.state.cr0,
                2 => cx.state.cr2,
                3 => cx.state.cr3,
                4 => cx.state.cr4,
                8 => cx.state.cr8,
                _ => return Err(Exception::UD.into()),
            };
            cx.require_cpl0()?;
            cx.set_gpr(destination, value);
        }
        (Operand::Control(number), Operand::Gpr(source)) => {
            if !matches!(number, 0 | 2 | 3 | 4 | 8) {
                return Err(Exception::UD.into());
            }
            cx.require_cpl0()?;
            let value = cx.gpr(source);
            match number {
                0 => write_cr0(cx, value)?,
                2 => cx.state.cr2 = value,
                3 => write_cr3(cx, value)?,
                4 => write_cr4(cx, value)?,
                _ => write_cr8(cx, value)?,
            }
        }
        _ => return Err(Exception::UD.into()),
    }
    cx.advance(insn);
    Ok(())
}

/// Whether 32-bit PAE paging would be in use with these registers.
fn uses_pdptes(cr0: u64, cr4: u64, efer: u64) -> bool {
    cr0 & cr0::PG != 0 && cr4 & cr4::PAE != 0 && efer & efer::LMA == 0
}

/// Reads the four PDPTEs that CR3 points to; #GP(0) if a present one has reserved bits set.
pub(crate) fn read_pdptes(cx: &Context<'_>, cr3: u64) -> Result<[u64; 4]> {
    let mut bytes = [0; 32];
    // Outside RAM the table reads as zero: no entry is present.
    let _ = cx.mmu.ram().read(GuestPhys(cr3 & 0xffff_ffe0), &mut bytes);
    let mut entries = [0; 4];
    for (entry, chunk) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
        let mut word = [0; 8];
        word.copy_from_slice(chunk);
        *entry = u64::from_le_bytes(word);
        // Bits 2:1, 8:5 and everything from the physical-address width up (SDM Vol. 3A table 4-8).
        let reserved = 0x1e6 | !((1 << paging::PHYSICAL_BITS) - 1);
        if *entry & paging::PRESENT != 0 && *entry & reserved != 0 {
            return Err(Exception::GP0.into());
        }
    }
    Ok(entries)
}

/// MOV to CR0, and LMSW.
fn write_cr0(cx: &mut Context<'_>, value: u64) -> Result {
    let old = cx.state.cr0;
    let new = value & cr0::WRITABLE | cr0::ET;
    let changed = old ^ new;
    let illegal = value >> 32 != 0
        || (new & cr0::PG != 0 && new & cr0::PE == 0)
        || (new & cr0::NW != 0 && new & cr0::CD == 0);
    if illegal {
        return Err(Exception::GP0.into());
    }
    let mut efer = cx.state.efer;
    if changed & cr0::PG != 0 {
        if new & cr0::PG != 0 {
            if efer & efer::LME != 0 {
                check_long_mode_entry(cx)?;
                efer |= efer::LMA;
            }
        } else {
            if cx.state.mode.is_64bit() || cx.state.cr4 & cr4::PCIDE != 0 {
                return Err(Exception::GP0.into());
            }
            efer &= !efer::LMA;
        }
    }
    if uses_pdptes(new, cx.state.cr4, efer) && changed & (cr0::PG | cr0::CD | cr0::NW) != 0 {
        cx.state.pdptes = read_pdptes(cx, cx.state.cr3)?;
    }
    cx.state.cr0 = new;
    cx.state.efer = efer;
    cx.state.update_mode();
    if changed & (cr0::PG | cr0::PE | cr0::WP) != 0 {
        cx.mmu.flush_all(cx.state);
    }
    cx.mmu.select_view(cx.state);
    Ok(())
}

/// What must hold when paging is enabled with EFER.LME set (SDM Vol. 3A 9.8.5).
fn check_long_mode_entry(cx: &Context<'_>) -> Result<(), Exception> {
    let tss16 = matches!(cx.state.tr.kind(), system::TSS16_AVAILABLE | system::TSS16_BUSY);
    let refused = cx.state.cr4 & cr4::PAE == 0 || cx.state.segments[1].has(attribute::LONG) || tss16;
    if refused { Err(Exception::GP0) } else { Ok(()) }
}

/// MOV to CR3.
pub(crate) fn write_cr3(cx: &mut Context<'_>, value: u64) -> Result {
    let pcids = cx.state.cr4 & cr4::PCIDE != 0;
    let keep = pcids && value & CR3_KEEP != 0;
    let new = if pcids { value & !CR3_KEEP } else { value };
    if new >> paging::PHYSICAL_BITS != 0 {
        return Err(Exception::GP0.into());
    }
    if uses_pdptes(cx.state.cr0, cx.state.cr4, cx.state.efer) {
        cx.state.pdptes = read_pdptes(cx, new)?;
    }
    load_cr3(cx, new, keep);
    Ok(())
}

/// Makes a checked value the page-table base.
pub(crate) fn load_cr3(cx: &mut Context<'_>, value: u64, keep: bool) {
    cx.state.cr3 = value;
    cx.mmu.switch_address_space(cx.state, keep);
}

/// MOV to CR4.
fn write_cr4(cx: &mut Context<'_>, value: u64) -> Result {
    let old = cx.state.cr4;
    let changed = old ^ value;
    let long = cx.state.efer & efer::LMA != 0;
    let enables_pcids = changed & value & cr4::PCIDE != 0;
    let illegal = value & !CR4_SUPPORTED != 0
        || (long && value & cr4::PAE == 0)
        || (enables_pcids && (!long || cx.state.cr3 & 0xfff != 0));
    if illegal {
        return Err(Exception::GP0.into());
    }
    if uses_pdptes(cx.state.cr0, value, cx.state.efer) && changed & CR4_LOADS_PDPTES != 0 {
        cx.state.pdptes = read_pdptes(cx, cx.state.cr3)?;
    }
    cx.state.cr4 = value;
    cx.state.update_mode();
    if changed & CR4_PAGING != 0 {
        cx.mmu.flush_all(cx.state);
    }
    cx.mmu.select_view(cx.state);
    Ok(())
}

/// MOV to CR8: the task priority. The board sees it at the next exit, which comes soon if an interrupt may have waited for it.
pub(crate) fn write_cr8(cx: &mut Context<'_>, value: u64) -> Result {
    if value > 0xf {
        return Err(Exception::GP0.into());
    }
    if value < cx.state.cr8 {
        cx.state.exit_request.fetch_or(exit_request::KICK, Ordering::Relaxed);
    }
    cx.state.cr8 = value;
    Ok(())
}

/// LMSW: PE (which it can't clear), MP, EM and TS.
pub(crate) fn lmsw(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    let source = cx.read_operand(insn, 0, Width::Word)?;
    let loaded = cr0::MP | cr0::EM | cr0::TS;
    let value = cx.state.cr0 & !loaded | source & (loaded | cr0::PE);
    write_cr0(cx, value)?;
    cx.advance(insn);
    Ok(())
}

/// SMSW: 16 bits to memory, the register's width of CR0 to a register.
pub(crate) fn smsw(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_no_umip()?;
    cx.write_operand(insn, 0, Width::Word, cx.state.cr0)?;
    cx.advance(insn);
    Ok(())
}

/// CLTS.
pub(crate) fn clts(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    cx.state.cr0 &= !cr0::TS;
    cx.state.update_mode();
    cx.advance(insn);
    Ok(())
}

/// XGETBV: only XCR0 (ECX = 0).
pub(crate) fn xgetbv(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_osxsave(cx)?;
    if cx.state.gpr[1] as u32 != 0 {
        return Err(Exception::GP0.into());
    }
    cx.set_edx_eax(cx.state.xcr0);
    cx.advance(insn);
    Ok(())
}

/// XSETBV.
pub(crate) fn xsetbv(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_osxsave(cx)?;
    cx.require_cpl0()?;
    let value = cx.edx_eax();
    if cx.state.gpr[1] as u32 != 0 || value & xcr0::X87 == 0 || value & !XCR0_SUPPORTED != 0 {
        return Err(Exception::GP0.into());
    }
    cx.state.xcr0 = value;
    cx.state.update_mode();
    cx.advance(insn);
    Ok(())
}

fn require_osxsave(cx: &Context<'_>) -> Result<(), Exception> {
    if cx.state.cr4 & cr4::OSXSAVE != 0 { Ok(()) } else { Err(Exception::UD) }
}

impl Context<'_> {
    /// #GP(0) if user-mode instruction prevention forbids SGDT, SIDT, SLDT, SMSW or STR (SDM Vol. 3A 2.5).
    pub(crate) fn require_no_umip(&self) -> Result<(), Exception> {
        if self.state.cpl > 0 && self.state.cr4 & cr4::UMIP != 0 { Err(Exception::GP0) } else { Ok(()) }
    }
}
