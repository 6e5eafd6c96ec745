//! The hardware task switch (SDM Vol. 3A 7.2, 7.3): JMP and CALL to a TSS or task gate, task gates in the IDT, and IRET with
//! RFLAGS.NT. Not in IA-32e mode. 16- and 32-bit TSSs.
//!
//! Up to the commit point ([`Image::install`]) errors leave everything as it was; afterwards they belong to the new task, as
//! the architecture has it.

use memory::GuestVirt;
use x86::{
    Exception, Segment, SegmentRegister, Vector, Width,
    control::{cr0, cr4, debug},
    flags,
    segment::system,
};

use crate::{
    Context, Result,
    control::{load_cr3, read_pdptes},
    debug::note,
    delivery::Delivery,
    descriptor::{Descriptor, is_null},
    far::check_entry,
    gate::{Gate, selector_fault},
    segment_load::{stack_segment, virtual_8086_segment},
    stack::Stack,
    table_registers::{TSS_BUSY_BIT, ldt_segment},
};

/// What leads to another task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Reason {
    Jump,
    Call,
    /// An exception or interrupt; nests like a call.
    Event,
    /// IRET with NT set.
    Return,
}

impl Reason {
    fn nests(self) -> bool {
        matches!(self, Self::Call | Self::Event)
    }
}

/// Where a TSS keeps what (SDM Vol. 3A figures 7-2 and 7-10).
struct Layout {
    width: Width,
    /// Smallest limit.
    limit: u32,
    cr3: Option<u64>,
    /// EIP, EFLAGS, eight registers; one `width` each.
    registers: u64,
    /// ES CS SS DS (FS GS); one `width` each.
    segments: u64,
    segment_count: usize,
    ldt: u64,
}

const LAYOUT32: Layout = Layout {
    width: Width::Dword,
    limit: 0x67,
    cr3: Some(0x1c),
    registers: 0x20,
    segments: 0x48,
    segment_count: 6,
    ldt: 0x60,
};

const LAYOUT16: Layout = Layout {
    width: Width::Word,
    limit: 0x2b,
    cr3: None,
    registers: 0x0e,
    segments: 0x22,
    segment_count: 4,
    ldt: 0x2a,
};

/// Offset of the word whose bit 0 is the debug trap flag, in a 32-bit TSS.
const TRAP_FLAG: u64 = 0x64;

fn layout(kind: u8) -> &'static Layout {
    match kind {
        system::TSS16_AVAILABLE | system::TSS16_BUSY => &LAYOUT16,
        _ => &LAYOUT32,
    }
}

/// JMP or CALL to a TSS or task gate, whose privilege and presence the caller has checked.
pub(crate) fn enter_by_transfer(
    cx: &mut Context<'_>,
    target: &Descriptor,
    reason: Reason,
    next_rip: u64,
) -> Result {
    let tss = match target.system_type() {
        Some(system::TASK_GATE) => {
            let gate = Gate::parse(target.bits, 0);
            available_tss(cx, gate.selector, 0)?
        }
        _ => available_tss(cx, target.selector, 0)?,
    };
    let rflags = cx.state.rflags();
    switch(cx, tss, reason, next_rip, rflags, 0)?;
    check_entry(cx, &cx.state.segments[1], cx.state.rip)?;
    debug_trap_flag(cx)
}

/// A task gate in the IDT.
pub(crate) fn enter_through_idt(cx: &mut Context<'_>, gate: &Gate, delivery: &Delivery) -> Result {
    let external = delivery.source.external();
    let tss = available_tss(cx, gate.selector, external)?;
    switch(cx, tss, Reason::Event, delivery.return_rip, delivery.return_rflags, external)?;
    if let Some(code) = delivery.error_code {
        let width = layout(cx.state.tr.kind()).width;
        let mut stack = Stack::current_external(cx.state, external);
        stack.push(cx, width, u64::from(code))?;
        stack.commit(cx.state);
    }
    if check_entry(cx, &cx.state.segments[1], cx.state.rip).is_err() {
        return Err(Exception::with_code(Vector::GeneralProtection, external).into());
    }
    debug_trap_flag(cx)
}

/// IRET with NT: back to the task in the current TSS's link.
pub(crate) fn return_to_previous(cx: &mut Context<'_>, next_rip: u64) -> Result {
    let selector = load_tss(cx, cx.state.tr.base, 0, Width::Word)? as u16;
    let fault = Exception::ts(selector);
    let tss = global(cx, selector, fault)?;
    if !matches!(tss.system_type(), Some(system::TSS_BUSY | system::TSS16_BUSY)) {
        return Err(fault.into());
    }
    if !tss.is_present() {
        return Err(Exception::np(selector).into());
    }
    let rflags = cx.state.rflags() & !flags::NT;
    switch(cx, tss, Reason::Return, next_rip, rflags, 0)?;
    check_entry(cx, &cx.state.segments[1], cx.state.rip)?;
    debug_trap_flag(cx)
}

fn available_tss(cx: &mut Context<'_>, selector: u16, external: u32) -> Result<Descriptor> {
    let fault = selector_fault(Vector::GeneralProtection, selector, external);
    let tss = global(cx, selector, fault)?;
    if !matches!(tss.system_type(), Some(system::TSS_AVAILABLE | system::TSS16_AVAILABLE)) {
        return Err(fault.into());
    }
    if !tss.is_present() {
        return Err(selector_fault(Vector::SegmentNotPresent, selector, external).into());
    }
    Ok(tss)
}

fn global(cx: &mut Context<'_>, selector: u16, fault: Exception) -> Result<Descriptor> {
    if is_null(selector) || selector & 4 != 0 {
        return Err(fault.into());
    }
    Descriptor::read(cx, selector, fault)
}

fn load_tss(cx: &mut Context<'_>, base: u64, offset: u64, width: Width) -> Result<u64> {
    let address = GuestVirt(base.wrapping_add(offset) & 0xffff_ffff);
    Ok(cx.mmu.load_supervisor(cx.state, address, width)?)
}

fn store_tss(cx: &mut Context<'_>, base: u64, offset: u64, width: Width, value: u64) -> Result {
    let address = GuestVirt(base.wrapping_add(offset) & 0xffff_ffff);
    Ok(cx.mmu.store_supervisor(cx.state, address, width, value)?)
}

/// What a TSS holds of the processor.
struct Image {
    cr3: Option<u64>,
    rip: u64,
    rflags: u64,
    gpr: [u64; 8],
    selectors: [u16; 6],
    ldt: u16,
}

impl Image {
    fn load(cx: &mut Context<'_>, base: u64, layout: &Layout) -> Result<Self> {
        let step = layout.width.bytes();
        let mut registers = [0; 10];
        for (n, register) in (0..).zip(&mut registers) {
            *register = load_tss(cx, base, layout.registers + n * step, layout.width)?;
        }
        let mut selectors = [0; 6];
        for (n, selector) in (0..).zip(&mut selectors[..layout.segment_count]) {
            *selector = load_tss(cx, base, layout.segments + n * step, Width::Word)? as u16;
        }
        let cr3 = match layout.cr3 {
            Some(offset) => Some(load_tss(cx, base, offset, Width::Dword)?),
            None => None,
        };
        let [rip, rflags, gpr @ ..] = registers;
        let ldt = load_tss(cx, base, layout.ldt, Width::Word)? as u16;
        Ok(Self { cr3, rip, rflags, gpr, selectors, ldt })
    }

    /// Saves what a switch saves: not CR3, not the LDT.
    fn save(cx: &mut Context<'_>, layout: &Layout, rip: u64, rflags: u64) -> Result {
        let base = cx.state.tr.base;
        let step = layout.width.bytes();
        let gpr = cx.state.gpr;
        let registers = [rip, rflags].into_iter().chain(gpr[..8].iter().copied());
        for (n, value) in (0..).zip(registers) {
            store_tss(cx, base, layout.registers + n * step, layout.width, value)?;
        }
        for n in 0..layout.segment_count {
            let selector = u64::from(cx.state.segments[n].selector);
            store_tss(cx, base, layout.segments + n as u64 * step, Width::Word, selector)?;
        }
        Ok(())
    }

    /// The commit point: registers and visible selectors. The hidden parts follow.
    fn install(&self, cx: &mut Context<'_>, rflags: u64, wide: bool) {
        cx.state.rip = self.rip;
        cx.state.set_rflags(rflags);
        for (register, &value) in cx.state.gpr.iter_mut().zip(&self.gpr) {
            // A 16-bit TSS leaves the upper halves as they are.
            *register = if wide { value } else { *register & 0xffff_0000 | value };
        }
        for (segment, &selector) in cx.state.segments.iter_mut().zip(&self.selectors) {
            *segment = Segment { selector, ..Segment::default() };
        }
        cx.state.ldtr = Segment { selector: self.ldt, ..Segment::default() };
        let v86 = rflags & flags::VM != 0;
        cx.state.cpl = if v86 { 3 } else { self.selectors[1] as u8 & 3 };
    }
}

fn switch(
    cx: &mut Context<'_>,
    mut new: Descriptor,
    reason: Reason,
    saved_rip: u64,
    saved_rflags: u64,
    external: u32,
) -> Result {
    let new_layout = layout(new.system_type().unwrap_or(system::TSS_BUSY));
    let old_layout = layout(cx.state.tr.kind());
    let mut tr = new.segment();
    if tr.limit < new_layout.limit {
        return Err(selector_fault(Vector::InvalidTss, new.selector, external).into());
    }
    let old_selector = cx.state.tr.selector;
    if cx.state.tr.limit < old_layout.limit {
        return Err(selector_fault(Vector::InvalidTss, old_selector, external).into());
    }
    let image = Image::load(cx, tr.base, new_layout)?;
    Image::save(cx, old_layout, saved_rip, saved_rflags)?;
    if matches!(reason, Reason::Jump | Reason::Return) {
        let fault = selector_fault(Vector::InvalidTss, old_selector, external);
        global(cx, old_selector, fault)?.clear_bits(cx, TSS_BUSY_BIT)?;
    }
    let mut rflags = image.rflags & flags::WRITABLE;
    if reason.nests() {
        store_tss(cx, tr.base, 0, Width::Word, u64::from(old_selector))?;
        rflags |= flags::NT;
    }
    if reason != Reason::Return {
        new.set_bits(cx, TSS_BUSY_BIT)?;
    }
    tr.attributes = new.attributes();

    cx.state.tr = tr;
    cx.state.cr0 |= cr0::TS;
    // Local breakpoints and LE are the old task's.
    cx.state.dr[7] &= !0x155;
    image.install(cx, rflags, new_layout.width == Width::Dword);
    cx.state.update_mode();
    if let Some(cr3) = image.cr3
        && cx.state.cr0 & cr0::PG != 0
    {
        if cx.state.cr4 & cr4::PAE != 0 {
            cx.state.pdptes = read_pdptes(cx, cr3)?;
        }
        load_cr3(cx, cr3, false);
    }
    load_segments(cx, &image)?;
    cx.mode_changed();
    Ok(())
}

/// Fills the hidden parts of the new task's segment registers; errors are #TS, #NP and #SS in the new task.
fn load_segments(cx: &mut Context<'_>, image: &Image) -> Result {
    cx.state.ldtr = ldt_segment(cx, image.ldt, Exception::ts)?;
    if cx.state.rflags & flags::VM != 0 {
        cx.state.segments = image.selectors.map(virtual_8086_segment);
        return Ok(());
    }
    let cpl = cx.state.cpl;
    let [_, cs, ss, ..] = image.selectors;
    cx.state.segments[1] = code_segment(cx, cs)?;
    cx.state.segments[2] = stack_segment(cx, ss, cpl, false, Exception::ts)?;
    cx.state.update_mode();
    for register in [SegmentRegister::Ds, SegmentRegister::Es, SegmentRegister::Fs, SegmentRegister::Gs] {
        let n = register as usize;
        cx.state.segments[n] = data_segment(cx, image.selectors[n])?;
    }
    Ok(())
}

fn code_segment(cx: &mut Context<'_>, selector: u16) -> Result<Segment> {
    let fault = Exception::ts(selector);
    if is_null(selector) {
        return Err(fault.into());
    }
    let mut code = Descriptor::read(cx, selector, fault)?;
    let rpl = selector as u8 & 3;
    let allowed = if code.is_conforming() { code.dpl() <= rpl } else { code.dpl() == rpl };
    if !code.is_code() || !allowed {
        return Err(fault.into());
    }
    if !code.is_present() {
        return Err(Exception::np(selector).into());
    }
    code.mark_accessed(cx)?;
    Ok(code.segment())
}

fn data_segment(cx: &mut Context<'_>, selector: u16) -> Result<Segment> {
    if is_null(selector) {
        return Ok(Segment { selector, ..Segment::default() });
    }
    let fault = Exception::ts(selector);
    let mut data = Descriptor::read(cx, selector, fault)?;
    let level = cx.state.cpl.max(selector as u8 & 3);
    if !data.is_readable() || (!data.is_conforming() && level > data.dpl()) {
        return Err(fault.into());
    }
    if !data.is_present() {
        return Err(Exception::np(selector).into());
    }
    data.mark_accessed(cx)?;
    Ok(data.segment())
}

/// The T flag of the new TSS: #DB before its first instruction.
fn debug_trap_flag(cx: &mut Context<'_>) -> Result {
    let tr = cx.state.tr;
    if layout(tr.kind()).width == Width::Dword && load_tss(cx, tr.base, TRAP_FLAG, Width::Word)? & 1 != 0 {
        note(cx.state, debug::DR6_BT);
        return Err(Exception::new(Vector::Debug).into());
    }
    Ok(())
}
