//! Exceptions and interrupts on their way to a handler: the IDT, IA-32e mode's gates, and what happens when the
//! delivery itself faults (SDM Vol. 3A 6.12 to 6.15).
//!
//! [`deliver`] loops over [`deliver_once`], which goes by mode: this file for IA-32e, [`crate::protected_delivery`] and
//! [`crate::real_delivery`] for the others.

use memory::GuestVirt;
use x86::{Exception, Segment, Vector, Width, control::debug, flags, segment::system};

use crate::{
    Context, Result, Stop,
    gate::{Gate, IST1_SLOT, gate_code_segment, long_inner_stack, selector_fault},
    protected_delivery, real_delivery,
    stack::Stack,
};

/// What is to be delivered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// A fault or abort at `state.rip`, or a trap after which `state.rip` is the next instruction.
    Exception(Exception),
    /// An external interrupt with its vector.
    Interrupt(u8),
    /// A non-maskable interrupt; further ones are blocked until IRET.
    Nmi,
}

/// A fault during the delivery of #DF: the processor shuts down (SDM Vol. 3A 6.15, interrupt 8).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("triple fault")]
pub struct TripleFault;

/// Who asked for a delivery: it decides the DPL check and the EXT bit of errors on the way (SDM Vol. 3A 6.13).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Source {
    /// The processor or a device.
    Hardware,
    /// INT n, INT3, INTO: the gate's DPL is checked.
    Software,
    /// INT1.
    PrivilegedSoftware,
}

impl Source {
    /// The EXT bit.
    pub fn external(self) -> u32 {
        u32::from(self != Self::Software)
    }
}

/// One pass through the IDT.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Delivery {
    /// IDT index.
    pub vector: u8,
    /// Who asked.
    pub source: Source,
    /// What is pushed last, where the vector has an error code and the mode pushes it.
    pub error_code: Option<u32>,
    /// The instruction pointer that is saved.
    pub return_rip: u64,
    /// The RFLAGS that is saved.
    pub return_rflags: u64,
}

impl Delivery {
    /// An error about this vector's IDT entry: index * 8 + IDT bit + EXT.
    pub fn gate_fault(&self, vector: Vector) -> Exception {
        Exception::with_code(vector, u32::from(self.vector) << 3 | 2 | self.source.external())
    }
}

/// Delivers an event through the IDT. A fault on the way is delivered instead, or becomes #DF (SDM Vol. 3A table 6-5).
pub fn deliver(cx: &mut Context<'_>, event: Event) -> Result<(), TripleFault> {
    let mut pending = match event {
        Event::Exception(exception) => exception,
        Event::Interrupt(vector) => {
            let interrupt = hardware(cx, vector, None, cx.state.rflags());
            match attempt(cx, &interrupt)? {
                None => return Ok(()),
                // Interrupts are benign: the fault is handled as if it came alone.
                Some(second) => second,
            }
        }
        Event::Nmi => {
            let nmi = hardware(cx, Vector::NonMaskableInterrupt as u8, None, cx.state.rflags());
            match attempt(cx, &nmi)? {
                None => {
                    cx.state.nmi_blocked = true;
                    return Ok(());
                }
                Some(second) => second,
            }
        }
    };
    loop {
        if pending.vector == Vector::PageFault {
            cx.state.cr2 = pending.address;
        }
        let delivery =
            hardware(cx, pending.vector as u8, pending.error_code, saved_rflags(cx, pending.vector));
        let Some(second) = attempt(cx, &delivery)? else {
            if pending.vector == Vector::Debug {
                cx.state.dr[7] &= !debug::DR7_GD;
            }
            return Ok(());
        };
        pending = combine(pending, second)?;
    }
}

fn hardware(cx: &Context<'_>, vector: u8, error_code: Option<u32>, return_rflags: u64) -> Delivery {
    Delivery { vector, source: Source::Hardware, error_code, return_rip: cx.state.rip, return_rflags }
}

/// Tries a delivery; `Some` is the exception that it met.
fn attempt(cx: &mut Context<'_>, delivery: &Delivery) -> Result<Option<Exception>, TripleFault> {
    match deliver_once(cx, delivery) {
        Ok(()) => {
            cx.state.halted = false;
            cx.state.interrupt_shadow = 0;
            Ok(None)
        }
        Err(Stop::Exception(second)) => {
            // CR2 is that of the last page fault met, also if it comes to a double fault (SDM Vol. 3A 6.15, #PF).
            if second.vector == Vector::PageFault {
                cx.state.cr2 = second.address;
            }
            Ok(Some(second))
        }
        // Descriptor tables or stacks outside RAM. There is no instruction to run again after the board's answer,
        // and no guest keeps them there.
        Err(Stop::Board | Stop::Exit(_)) => {
            cx.mmu.mmio.clear();
            Err(TripleFault)
        }
    }
}

/// RFLAGS as the exception's frame shows it: RF is set for faults, so that IRET does not meet the same instruction
/// breakpoint again (SDM Vol. 3B 18.3.1.1).
fn saved_rflags(cx: &Context<'_>, vector: Vector) -> u64 {
    let trap_or_abort = matches!(
        vector,
        Vector::Debug
            | Vector::NonMaskableInterrupt
            | Vector::Breakpoint
            | Vector::Overflow
            | Vector::DoubleFault
            | Vector::MachineCheck
    );
    if trap_or_abort { cx.state.rflags() } else { cx.state.rflags() | flags::RF }
}

/// What two exceptions in a row come to (SDM Vol. 3A tables 6-4 and 6-5).
fn combine(first: Exception, second: Exception) -> Result<Exception, TripleFault> {
    #[derive(PartialEq)]
    enum Class {
        Benign,
        Contributory,
        PageFault,
        DoubleFault,
    }
    let class = |exception: Exception| match exception.vector {
        Vector::DivideError
        | Vector::InvalidTss
        | Vector::SegmentNotPresent
        | Vector::StackFault
        | Vector::GeneralProtection => Class::Contributory,
        Vector::PageFault => Class::PageFault,
        Vector::DoubleFault => Class::DoubleFault,
        _ => Class::Benign,
    };
    match (class(first), class(second)) {
        (_, Class::Benign) | (Class::Benign, _) => Ok(second),
        (Class::DoubleFault, _) => Err(TripleFault),
        (Class::Contributory, Class::PageFault) => Ok(second),
        _ => Ok(Exception::with_code(Vector::DoubleFault, 0)),
    }
}

/// One pass through the IDT in the current mode. On error nothing changed.
pub(crate) fn deliver_once(cx: &mut Context<'_>, delivery: &Delivery) -> Result {
    if cx.state.mode.is_long() {
        deliver_long(cx, delivery)
    } else if cx.is_protected() {
        protected_delivery::deliver_protected(cx, delivery)
    } else {
        real_delivery::deliver_real(cx, delivery)
    }
}

/// IA-32e mode (SDM Vol. 3A 6.14): every handler is 64-bit code, SS:RSP is always pushed.
fn deliver_long(cx: &mut Context<'_>, delivery: &Delivery) -> Result {
    let external = delivery.source.external();
    let gate = long_gate(cx, delivery)?;
    let mut code = gate_code_segment(cx, gate.selector, external)?;
    let cpl = cx.state.cpl;
    let new_cpl = if code.is_conforming() { cpl } else { code.dpl() };
    let ist = u64::from(gate.count & 7);
    let pointer = if ist != 0 {
        long_inner_stack(cx, IST1_SLOT + ist - 1, external)?
    } else if new_cpl != cpl {
        long_inner_stack(cx, u64::from(new_cpl), external)?
    } else {
        cx.state.gpr[x86::state::RSP]
    };
    if !GuestVirt(gate.offset).is_canonical() {
        return Err(Exception::with_code(Vector::GeneralProtection, external).into());
    }
    let old_ss = u64::from(cx.state.segments[2].selector);
    let old_cs = u64::from(cx.state.segments[1].selector);
    let mut stack = Stack::long(pointer & !0xf, new_cpl, external);
    stack.push(cx, Width::Qword, old_ss)?;
    stack.push(cx, Width::Qword, cx.state.gpr[x86::state::RSP])?;
    stack.push(cx, Width::Qword, delivery.return_rflags)?;
    stack.push(cx, Width::Qword, old_cs)?;
    stack.push(cx, Width::Qword, delivery.return_rip)?;
    if let Some(code) = delivery.error_code {
        stack.push(cx, Width::Qword, u64::from(code))?;
    }
    code.mark_accessed(cx)?;

    let mut cs = code.segment();
    cs.selector = gate.selector & !3 | u16::from(new_cpl);
    cx.state.segments[1] = cs;
    if new_cpl != cpl {
        cx.state.segments[2] = null_stack_segment(new_cpl);
        cx.state.cpl = new_cpl;
    }
    cx.state.gpr[x86::state::RSP] = stack.pointer;
    cx.state.rip = gate.offset;
    enter_handler(cx, gate.kind == system::INTERRUPT_GATE);
    Ok(())
}

fn long_gate(cx: &mut Context<'_>, delivery: &Delivery) -> Result<Gate> {
    let offset = u64::from(delivery.vector) * 16;
    if offset + 15 > u64::from(cx.state.idtr.limit) {
        return Err(delivery.gate_fault(Vector::GeneralProtection).into());
    }
    let address = GuestVirt(cx.state.idtr.base.wrapping_add(offset));
    let low = cx.mmu.load_supervisor(cx.state, address, Width::Qword)?;
    let upper = cx.mmu.load_supervisor(cx.state, address.offset(8), Width::Qword)?;
    let gate = Gate::parse(low, upper);
    if !matches!(gate.kind, system::INTERRUPT_GATE | system::TRAP_GATE) {
        return Err(delivery.gate_fault(Vector::GeneralProtection).into());
    }
    check_gate_access(cx, delivery, &gate)?;
    Ok(gate)
}

/// DPL (software interrupts only), then presence.
pub(crate) fn check_gate_access(cx: &Context<'_>, delivery: &Delivery, gate: &Gate) -> Result {
    if delivery.source == Source::Software && gate.dpl < cx.state.cpl {
        return Err(delivery.gate_fault(Vector::GeneralProtection).into());
    }
    if !gate.present {
        return Err(delivery.gate_fault(Vector::SegmentNotPresent).into());
    }
    Ok(())
}

/// The null SS of an inner 64-bit stack: its RPL is the new CPL.
pub(crate) fn null_stack_segment(cpl: u8) -> Segment {
    Segment { selector: u16::from(cpl), ..Segment::default() }
}

/// RFLAGS on entry to a handler in protected mode (SDM Vol. 3A 6.12.1.3), and what depends on it.
pub(crate) fn enter_handler(cx: &mut Context<'_>, masks_interrupts: bool) {
    let mut cleared = flags::TF | flags::VM | flags::RF | flags::NT;
    if masks_interrupts {
        cleared |= flags::IF;
    }
    cx.state.rflags &= !cleared;
    cx.mode_changed();
}

/// The error for a code segment that does not reach the gate's entry point.
pub(crate) fn entry_outside_limit(code: &Segment, offset: u64, external: u32) -> Result<(), Exception> {
    if offset > u64::from(code.limit) {
        return Err(Exception::with_code(Vector::GeneralProtection, external));
    }
    Ok(())
}

/// The error for a gate that leads from virtual-8086 mode anywhere but ring 0 (SDM Vol. 3B 21.3.1.1).
pub(crate) fn require_ring0_from_v86(
    cx: &Context<'_>,
    code: &crate::descriptor::Descriptor,
    external: u32,
) -> Result<(), Exception> {
    if cx.state.rflags & flags::VM != 0 && (code.is_conforming() || code.dpl() != 0) {
        return Err(selector_fault(Vector::GeneralProtection, code.selector, external));
    }
    Ok(())
}
