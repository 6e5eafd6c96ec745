//! Gates, the code segments they lead to, and the stacks that the TSS holds for inner privilege levels
//! (SDM Vol. 3A 5.8.3 to 5.8.5, 6.11, 6.14, 7.2, 7.7). Used by event delivery and by far transfers.

use memory::GuestVirt;
use x86::{Exception, Segment, Vector, Width, segment::system};

use crate::{
    Context, Result,
    descriptor::{Descriptor, is_null},
};

/// A call, interrupt, trap or task gate.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gate {
    /// Bits 44..40: the type with the S bit above it, so that code and data segments equal no [`system`] type.
    pub kind: u8,
    /// Who may use it.
    pub dpl: u8,
    /// P.
    pub present: bool,
    /// Code segment or TSS.
    pub selector: u16,
    /// Entry point.
    pub offset: u64,
    /// Byte 4: parameter count of call gates, IST index of 64-bit interrupt gates.
    pub count: u8,
}

impl Gate {
    /// From the descriptor's first half and, in IA-32e mode, its second.
    pub fn parse(low: u64, upper: u64) -> Self {
        let kind = (low >> 40) as u8 & 0x1f;
        let mut offset = low & 0xffff | upper << 32;
        if kind & 8 != 0 {
            offset |= low >> 32 & 0xffff_0000;
        }
        Self {
            kind,
            dpl: (low >> 45) as u8 & 3,
            present: low >> 47 & 1 != 0,
            selector: (low >> 16) as u16,
            offset,
            count: (low >> 32) as u8 & 0x1f,
        }
    }
}

/// An exception whose error code is a selector, with the EXT bit of the delivery that it interrupts.
pub(crate) fn selector_fault(vector: Vector, selector: u16, external: u32) -> Exception {
    Exception::with_code(vector, u32::from(selector & !3) | external)
}

/// Reads and checks the code segment of a call, interrupt or trap gate (SDM Vol. 3A 5.8.4; Vol. 2 CALL, INT n).
pub(crate) fn gate_code_segment(cx: &mut Context<'_>, selector: u16, external: u32) -> Result<Descriptor> {
    if is_null(selector) {
        return Err(Exception::with_code(Vector::GeneralProtection, external).into());
    }
    let fault = selector_fault(Vector::GeneralProtection, selector, external);
    let code = Descriptor::read(cx, selector, fault)?;
    if !code.is_code() || code.dpl() > cx.state.cpl {
        return Err(fault.into());
    }
    if cx.state.mode.is_long() && (!code.is_long() || code.is_default_32()) {
        return Err(fault.into());
    }
    if !code.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, external).into());
    }
    Ok(code)
}

/// The stack that a 16- or 32-bit TSS holds for privilege level `cpl`, fully checked: SS and its pointer.
pub(crate) fn legacy_inner_stack(cx: &mut Context<'_>, cpl: u8, external: u32) -> Result<(Segment, u64)> {
    let tr = cx.state.tr;
    let is_32bit = tr.kind() == system::TSS_BUSY || tr.kind() == system::TSS_AVAILABLE;
    let (offset, pointer_width) =
        if is_32bit { (u64::from(cpl) * 8 + 4, Width::Dword) } else { (u64::from(cpl) * 4 + 2, Width::Word) };
    if offset + pointer_width.bytes() + 1 > u64::from(tr.limit) {
        return Err(selector_fault(Vector::InvalidTss, tr.selector, external).into());
    }
    let address = GuestVirt(tr.base.wrapping_add(offset) & 0xffff_ffff);
    let pointer = cx.mmu.load_supervisor(cx.state, address, pointer_width)?;
    let selector =
        cx.mmu.load_supervisor(cx.state, address.offset(pointer_width.bytes()), Width::Word)? as u16;
    let ss = inner_stack_segment(cx, selector, cpl, external)?;
    Ok((ss, pointer))
}

/// Checks an SS selector that came from a TSS: errors are #TS, or #SS where it is not present.
pub(crate) fn inner_stack_segment(
    cx: &mut Context<'_>,
    selector: u16,
    cpl: u8,
    external: u32,
) -> Result<Segment> {
    let fault = selector_fault(Vector::InvalidTss, selector, external);
    if is_null(selector) {
        return Err(fault.into());
    }
    let mut ss = Descriptor::read(cx, selector, fault)?;
    if selector as u8 & 3 != cpl || ss.dpl() != cpl || !ss.is_writable() {
        return Err(fault.into());
    }
    if !ss.is_present() {
        return Err(selector_fault(Vector::StackFault, selector, external).into());
    }
    ss.mark_accessed(cx)?;
    Ok(ss.segment())
}

/// A stack pointer of the 64-bit TSS: RSP0..RSP2 as slots 0..=2, IST1..IST7 as slots 4..=10 (SDM Vol. 3A 7.7).
pub(crate) fn long_inner_stack(cx: &mut Context<'_>, slot: u64, external: u32) -> Result<u64> {
    let tr = cx.state.tr;
    let offset = 4 + slot * 8;
    if offset + 7 > u64::from(tr.limit) {
        return Err(selector_fault(Vector::InvalidTss, tr.selector, external).into());
    }
    let address = GuestVirt(tr.base.wrapping_add(offset));
    Ok(cx.mmu.load_supervisor(cx.state, address, Width::Qword)?)
}

/// Slot of IST1 for [`long_inner_stack`]; the six bytes between RSP2 and IST1 make one slot.
pub(crate) const IST1_SLOT: u64 = 4;
