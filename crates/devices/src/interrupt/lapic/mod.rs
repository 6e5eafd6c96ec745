//! The local APIC of one vCPU: what it has accepted, what it delivers next (SDM Vol. 3A chapter 11).
//!
//! One register model serves both the xAPIC page and the x2APIC MSRs ([`registers`]); [`base`] is IA32_APIC_BASE and
//! the changes of mode; [`timer`] is the timer; [`pv_eoi`] lets a guest end interrupts by a store. This file is the interrupt core: accepting messages and LVT events
//! into IRR, priorities, acknowledge and EOI. What must go out to other APICs or the IOAPIC is returned as
//! [`Outgoing`]; the fabric carries it.

mod base;
mod pv_eoi;
mod registers;
#[cfg(test)]
mod tests;
mod timer;
mod vectors;

use self::{
    pv_eoi::PvEoi,
    timer::{Timer, TimerMode},
    vectors::VectorSet,
};
use super::message::{BROADCAST, DeliveryMode, Message};

/// A register access that is refused: #GP(0) for MSRs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Illegal;

/// What a register write sends out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outgoing {
    /// An interprocessor interrupt.
    Ipi {
        /// Where to.
        to: Shorthand,
        /// What.
        message: Message,
    },
    /// The EOI of a level-triggered vector, for the IOAPIC.
    EndOfInterrupt(u8),
}

/// Destination shorthand of the ICR (SDM Vol. 3A 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shorthand {
    /// The message's destination.
    None,
    /// The sender.
    Itself,
    /// Everyone.
    All,
    /// Everyone but the sender.
    Others,
}

/// Start-up messages that the vCPU's owner must act on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Startup {
    /// INIT was received.
    pub init: bool,
    /// A start-up IPI was received: its vector.
    pub sipi: Option<u8>,
}

/// LVT entries, as [`LocalApic::lvt`] orders them: by register address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
enum Lvt {
    Timer,
    // Thermal and performance-counter events never happen here.
    Lint0 = 3,
    Lint1,
    Error,
}

const LVT_ENTRIES: usize = 6;
const LVT_MASKED: u32 = 1 << 16;
const LVT_LEVEL: u32 = 1 << 15;
/// Spurious-interrupt vector register: software enable.
const SOFTWARE_ENABLE: u32 = 1 << 8;

/// Bits of the error status register (SDM Vol. 3A 11.5.3).
mod error {
    pub(super) const SEND_ILLEGAL_VECTOR: u32 = 1 << 5;
    pub(super) const RECEIVED_ILLEGAL_VECTOR: u32 = 1 << 6;
    pub(super) const ILLEGAL_REGISTER: u32 = 1 << 7;
}

/// One local APIC.
#[derive(Clone, Debug)]
pub struct LocalApic {
    id: u32,
    /// IA32_APIC_BASE.
    base: u64,
    irr: VectorSet,
    isr: VectorSet,
    tmr: VectorSet,
    task_priority: u8,
    /// LDR as written in xAPIC mode; in x2APIC mode it follows from the ID.
    logical_destination: u32,
    destination_format: u32,
    spurious: u32,
    /// ESR as software reads it.
    error_status: u32,
    /// Errors since ESR was last written.
    errors: u32,
    command: u64,
    lvt: [u32; LVT_ENTRIES],
    timer: Timer,
    /// Levels of the LINT0 and LINT1 pins.
    lint: [bool; 2],
    nmi: bool,
    /// An ExtINT message was received: the 8259 pair has a vector.
    ext_int: bool,
    startup: Startup,
    pv_eoi: PvEoi,
}

impl LocalApic {
    /// A local APIC after power-up: enabled in xAPIC mode, all LVT entries masked. `id` 0 is the boot processor.
    pub fn new(id: u32) -> Self {
        Self {
            id,
            base: base::after_reset(id),
            irr: VectorSet::default(),
            isr: VectorSet::default(),
            tmr: VectorSet::default(),
            task_priority: 0,
            logical_destination: 0,
            destination_format: u32::MAX,
            spurious: 0xff,
            error_status: 0,
            errors: 0,
            command: 0,
            lvt: [LVT_MASKED; LVT_ENTRIES],
            timer: Timer::new(),
            lint: [false; 2],
            nmi: false,
            ext_int: false,
            startup: Startup::default(),
            pv_eoi: PvEoi::default(),
        }
    }

    /// The state in which firmware hands over the boot processor: virtual wire mode, LINT0 is ExtINT and LINT1 is NMI
    /// (MultiProcessor Specification 1.4, 3.6.2.2).
    pub fn enter_virtual_wire_mode(&mut self) {
        self.spurious |= SOFTWARE_ENABLE;
        self.lvt[Lvt::Lint0 as usize] = 0x700;
        self.lvt[Lvt::Lint1 as usize] = 0x400;
    }

    /// APIC ID.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Guest TSC minus the machine's clock, wrapping; for the TSC-deadline timer.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.timer.set_tsc_offset(offset);
    }

    fn lvt(&self, entry: Lvt) -> u32 {
        self.lvt[entry as usize]
    }

    /// Whether the spurious-interrupt vector register lets the APIC accept vectors.
    pub fn is_software_enabled(&self) -> bool {
        self.spurious & SOFTWARE_ENABLE != 0
    }

    /// Whether a message is for this APIC (SDM Vol. 3A 11.6.2).
    pub fn is_destination(&self, message: &Message) -> bool {
        if !self.is_enabled() {
            return false;
        }
        let destination = message.destination;
        if !message.logical {
            return destination == BROADCAST || destination == self.id;
        }
        if self.is_x2apic() {
            let cluster = destination == BROADCAST || destination >> 16 == self.id >> 4;
            return cluster && destination & (1 << (self.id & 0xf)) != 0;
        }
        let own = self.logical_destination >> 24;
        let destination = destination & 0xff;
        match self.destination_format >> 28 {
            0xf => destination & own != 0,
            0x0 => {
                let cluster = destination >> 4 == 0xf || destination >> 4 == own >> 4;
                cluster && destination & own & 0xf != 0
            }
            _ => false,
        }
    }

    /// Takes a message that is for this APIC. SMI has nobody to go to and is dropped, as on a machine whose firmware
    /// has no SMM handler.
    pub fn receive(&mut self, message: &Message) {
        match message.mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority => {
                self.accept(message.vector, message.level_triggered);
            }
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::ExtInt => self.ext_int |= self.is_enabled(),
            DeliveryMode::Init => {
                self.reset_by_init();
                self.startup = Startup { init: true, sipi: None };
            }
            DeliveryMode::StartUp => self.startup.sipi = Some(message.vector),
            DeliveryMode::Smi | DeliveryMode::Reserved => {}
        }
    }

    /// Puts a vector into IRR.
    fn accept(&mut self, vector: u8, level_triggered: bool) {
        if vector < 16 {
            self.raise_error(error::RECEIVED_ILLEGAL_VECTOR);
            return;
        }
        if !self.is_enabled() || !self.is_software_enabled() {
            return;
        }
        self.irr.insert(vector);
        if level_triggered {
            self.tmr.insert(vector);
        } else {
            self.tmr.remove(vector);
        }
    }

    fn raise_error(&mut self, bits: u32) {
        let is_new = self.errors & bits != bits;
        self.errors |= bits;
        let lvt = self.lvt(Lvt::Error);
        // An illegal vector in the error entry itself is noted by the bit that is set already.
        if is_new && lvt & LVT_MASKED == 0 {
            if lvt as u8 >= 16 {
                self.accept(lvt as u8, false);
            } else {
                self.errors |= error::RECEIVED_ILLEGAL_VECTOR;
            }
        }
    }

    /// An LVT entry's event has happened.
    fn raise_local(&mut self, entry: Lvt) {
        let lvt = self.lvt(entry);
        if lvt & LVT_MASKED != 0 {
            return;
        }
        let mode = match entry {
            Lvt::Timer | Lvt::Error => DeliveryMode::Fixed,
            _ => DeliveryMode::from_bits(lvt >> 8),
        };
        match mode {
            // The trigger mode is edge but for LINT0, whose EOI the fabric need not hear of.
            DeliveryMode::Fixed => self.accept(lvt as u8, false),
            DeliveryMode::Nmi => self.nmi = true,
            DeliveryMode::Init => {
                self.reset_by_init();
                self.startup = Startup { init: true, sipi: None };
            }
            // ExtINT is a level, see `accepts_ext_int`. The rest is reserved for LVT entries.
            _ => {}
        }
    }

    /// The INTR output of the 8259 pair, which is wired to LINT0.
    pub fn set_lint0(&mut self, high: bool) {
        let rose = high && !self.lint[0];
        self.lint[0] = high;
        if rose && self.is_enabled() {
            self.raise_local(Lvt::Lint0);
        }
    }

    /// The board's NMI, which is wired to LINT1; without the APIC it is the processor's NMI pin.
    pub fn set_lint1(&mut self, high: bool) {
        let rose = high && !self.lint[1];
        self.lint[1] = high;
        if rose && self.is_enabled() {
            self.raise_local(Lvt::Lint1);
        } else if rose {
            self.nmi = true;
        }
    }

    /// Whether the INTR output of the 8259 pair interrupts the vCPU: it is LINT0 in ExtINT mode, or there is no APIC.
    pub fn accepts_ext_int(&self) -> bool {
        let lint0 = self.lvt(Lvt::Lint0);
        !self.is_enabled()
            || (lint0 & LVT_MASKED == 0 && DeliveryMode::from_bits(lint0 >> 8) == DeliveryMode::ExtInt)
    }

    /// Whether an ExtINT message waits for the 8259 pair's vector.
    pub fn has_ext_int(&self) -> bool {
        self.ext_int
    }

    /// Forgets the ExtINT message: the vector was fetched.
    pub fn clear_ext_int(&mut self) {
        self.ext_int = false;
    }

    /// Processor priority (SDM Vol. 3A 11.8.3.1).
    fn processor_priority(&self) -> u8 {
        let in_service = self.isr.highest().unwrap_or(0);
        if self.task_priority >> 4 >= in_service >> 4 { self.task_priority } else { in_service & 0xf0 }
    }

    /// The vector that the vCPU would take now.
    #[inline]
    pub fn pending(&self) -> Option<u8> {
        let vector = self.irr.highest()?;
        (self.is_enabled() && vector >> 4 > self.processor_priority() >> 4).then_some(vector)
    }

    /// The vCPU takes [`LocalApic::pending`].
    pub fn acknowledge(&mut self) -> Option<u8> {
        let vector = self.pending()?;
        self.irr.remove(vector);
        self.isr.insert(vector);
        Some(vector)
    }

    fn end_of_interrupt(&mut self) -> Option<Outgoing> {
        let vector = self.isr.highest()?;
        self.isr.remove(vector);
        self.tmr.contains(vector).then_some(Outgoing::EndOfInterrupt(vector))
    }

    /// Whether an NMI waits.
    pub fn has_nmi(&self) -> bool {
        self.nmi
    }

    /// The vCPU takes the NMI.
    pub fn take_nmi(&mut self) -> bool {
        std::mem::take(&mut self.nmi)
    }

    /// Takes what INIT and start-up IPIs ask for.
    pub fn take_startup(&mut self) -> Startup {
        std::mem::take(&mut self.startup)
    }

    /// Task priority class, as MOV from CR8 reads it.
    #[inline]
    pub fn cr8(&self) -> u8 {
        self.task_priority >> 4
    }

    /// MOV to CR8. The sub-class that MMIO can set besides is kept while the class is the same.
    #[inline]
    pub fn set_cr8(&mut self, class: u8) {
        if self.cr8() != class & 0xf {
            self.task_priority = class << 4;
        }
    }

    /// When the timer will interrupt.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        let counts = self.is_enabled() && self.lvt(Lvt::Timer) & LVT_MASKED == 0;
        if counts { self.timer.next_deadline(now) } else { None }
    }

    /// Fires the timer if it is due.
    #[inline]
    pub fn advance(&mut self, now: u64) {
        if self.timer.take_expired(now) {
            self.raise_local(Lvt::Timer);
        }
    }
}
