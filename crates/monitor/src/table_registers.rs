//! The registers that say where tables are: LGDT LIDT SGDT SIDT LLDT LTR SLDT STR (SDM Vol. 3A 2.4, 7.2.4, 7.7; Vol. 2).

use memory::GuestVirt;
use semantics::Insn;
use x86::{Exception, Segment, Width, segment::system};

use crate::{
    Context, Result,
    descriptor::{Descriptor, is_null},
};

/// Bit 41 of a TSS descriptor: the busy bit of its type.
pub(crate) const TSS_BUSY_BIT: u64 = 1 << 41;

/// LGDT.
pub(crate) fn lgdt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let table = load_table(cx, insn)?;
    cx.state.gdtr = table;
    cx.advance(insn);
    Ok(())
}

/// LIDT.
pub(crate) fn lidt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let table = load_table(cx, insn)?;
    cx.state.idtr = table;
    cx.advance(insn);
    Ok(())
}

fn load_table(cx: &mut Context<'_>, insn: &Insn) -> Result<Segment> {
    cx.require_cpl0()?;
    let limit = cx.load_operand(insn, 0, Width::Word)? as u32;
    let base = if cx.state.mode.is_64bit() {
        cx.load_operand(insn, 2, Width::Qword)?
    } else {
        let base = cx.load_operand(insn, 2, Width::Dword)?;
        if insn.width == Width::Word { base & 0xff_ffff } else { base }
    };
    if !GuestVirt(base).is_canonical() {
        return Err(Exception::GP0.into());
    }
    Ok(Segment { base, limit, ..Segment::default() })
}

/// SGDT.
pub(crate) fn sgdt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    store_table(cx, insn, cx.state.gdtr)
}

/// SIDT.
pub(crate) fn sidt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    store_table(cx, insn, cx.state.idtr)
}

fn store_table(cx: &mut Context<'_>, insn: &Insn, table: Segment) -> Result {
    cx.require_no_umip()?;
    let mut image = [0; 10];
    image[..2].copy_from_slice(&(table.limit as u16).to_le_bytes());
    image[2..].copy_from_slice(&table.base.to_le_bytes());
    let image = if cx.state.mode.is_64bit() { &image[..] } else { &image[..6] };
    let address = cx.operand_address(insn, image.len() as u64, true)?;
    cx.mmu.store_bytes(cx.state, address, image)?;
    cx.advance(insn);
    Ok(())
}

/// LLDT. A null selector makes the LDT unusable.
pub(crate) fn lldt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_selectors()?;
    cx.require_cpl0()?;
    let selector = cx.read_operand(insn, 0, Width::Word)? as u16;
    cx.state.ldtr = ldt_segment(cx, selector, Exception::gp)?;
    cx.advance(insn);
    Ok(())
}

/// Checks an LDT selector; `fault` makes the error: #GP for LLDT, #TS in a task switch.
pub(crate) fn ldt_segment(
    cx: &mut Context<'_>,
    selector: u16,
    fault: fn(u16) -> Exception,
) -> Result<Segment> {
    if is_null(selector) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let descriptor = global_descriptor(cx, selector, fault(selector))?;
    if descriptor.system_type() != Some(system::LDT) {
        return Err(fault(selector).into());
    }
    if !descriptor.is_present() {
        return Err(Exception::np(selector).into());
    }
    system_segment(cx, &descriptor, fault(selector))
}

/// LTR. The TSS becomes busy.
pub(crate) fn ltr(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_selectors()?;
    cx.require_cpl0()?;
    let selector = cx.read_operand(insn, 0, Width::Word)? as u16;
    if is_null(selector) {
        return Err(Exception::GP0.into());
    }
    let fault = Exception::gp(selector);
    let mut descriptor = global_descriptor(cx, selector, fault)?;
    match descriptor.system_type() {
        Some(system::TSS_AVAILABLE) => {}
        Some(system::TSS16_AVAILABLE) if !cx.state.mode.is_long() => {}
        _ => return Err(fault.into()),
    }
    if !descriptor.is_present() {
        return Err(Exception::np(selector).into());
    }
    let mut segment = system_segment(cx, &descriptor, fault)?;
    descriptor.set_bits(cx, TSS_BUSY_BIT)?;
    segment.attributes = descriptor.attributes();
    cx.state.tr = segment;
    cx.advance(insn);
    Ok(())
}

/// A descriptor that must be in the GDT.
pub(crate) fn global_descriptor(cx: &mut Context<'_>, selector: u16, fault: Exception) -> Result<Descriptor> {
    if selector & 4 != 0 {
        return Err(fault.into());
    }
    Descriptor::read(cx, selector, fault)
}

/// The segment of an LDT or TSS descriptor, which has 16 bytes in IA-32e mode.
fn system_segment(cx: &mut Context<'_>, descriptor: &Descriptor, fault: Exception) -> Result<Segment> {
    if !cx.state.mode.is_long() {
        return Ok(descriptor.segment());
    }
    let upper = descriptor.upper(cx)?.ok_or(fault)?;
    let segment = descriptor.long_segment(upper);
    // The second half's type field must be zero (SDM Vol. 3A 7.2.3).
    if upper >> 40 & 0x1f != 0 || !GuestVirt(segment.base).is_canonical() {
        return Err(fault.into());
    }
    Ok(segment)
}

/// SLDT.
pub(crate) fn sldt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    store_selector(cx, insn, cx.state.ldtr.selector)
}

/// STR.
pub(crate) fn str(cx: &mut Context<'_>, insn: &Insn) -> Result {
    store_selector(cx, insn, cx.state.tr.selector)
}

fn store_selector(cx: &mut Context<'_>, insn: &Insn, selector: u16) -> Result {
    cx.require_selectors()?;
    cx.require_no_umip()?;
    cx.write_operand(insn, 0, Width::Word, u64::from(selector))?;
    cx.advance(insn);
    Ok(())
}
