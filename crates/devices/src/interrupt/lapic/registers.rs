//! The local APIC's registers, by number: page offset / 16, or MSR - 0x800 (SDM Vol. 3A tables 11-1 and 11-6).
//!
//! Both access methods end in `read` and `write`. Where they differ: reserved bits, unknown registers and registers
//! of the wrong direction are #GP for MSRs, and an "illegal register" error (or nothing) for the page; the ICR is one
//! 64-bit register for MSRs and two for the page.

use super::{
    DeliveryMode, Illegal, LVT_LEVEL, LVT_MASKED, LocalApic, Lvt, Message, Outgoing, SOFTWARE_ENABLE,
    Shorthand, TimerMode, error,
};
use crate::layout::X2APIC_FIRST;

const ID: u32 = 0x02;
const VERSION: u32 = 0x03;
const TASK_PRIORITY: u32 = 0x08;
const ARBITRATION_PRIORITY: u32 = 0x09;
const PROCESSOR_PRIORITY: u32 = 0x0a;
const END_OF_INTERRUPT: u32 = 0x0b;
const REMOTE_READ: u32 = 0x0c;
const LOGICAL_DESTINATION: u32 = 0x0d;
const DESTINATION_FORMAT: u32 = 0x0e;
const SPURIOUS: u32 = 0x0f;
const IN_SERVICE: u32 = 0x10;
const TRIGGER_MODE: u32 = 0x18;
const REQUEST: u32 = 0x20;
const ERROR_STATUS: u32 = 0x28;
const COMMAND_LOW: u32 = 0x30;
const COMMAND_HIGH: u32 = 0x31;
const LVT_TIMER: u32 = 0x32;
const LVT_ERROR: u32 = 0x37;
const INITIAL_COUNT: u32 = 0x38;
const CURRENT_COUNT: u32 = 0x39;
const DIVIDE: u32 = 0x3e;
const SELF_IPI: u32 = 0x3f;

/// Integrated APIC, six LVT entries, no suppression of EOI broadcasts.
const VERSION_VALUE: u32 = 0x0005_0014;
/// ICR bits that are reserved in x2APIC mode; delivery status is ignored.
const COMMAND_RESERVED: u64 = 0xfff3_2000;
const DELIVERY_STATUS: u64 = 1 << 12;

/// Bits that software can write, per LVT entry.
fn lvt_writable(entry: usize) -> u32 {
    match entry {
        e if e == Lvt::Timer as usize => 0x0007_00ff,
        e if e == Lvt::Error as usize => 0x0001_00ff,
        e if e == Lvt::Lint0 as usize || e == Lvt::Lint1 as usize => 0x0001_a7ff,
        _ => 0x0001_07ff,
    }
}

/// Read-only bits of LVT entries, on which writes of ones are ignored: delivery status, remote IRR.
const LVT_READ_ONLY: u32 = 0x5000;

impl LocalApic {
    /// Reads the xAPIC page. Registers are 32 bits at multiples of 16; the rest reads as zero.
    pub fn read_mmio(&mut self, offset: u64, now: u64) -> u32 {
        if offset & 0xc != 0 {
            return 0;
        }
        match self.read((offset >> 4) as u32 & 0xff, now) {
            Ok(value) => value,
            Err(Illegal) => {
                self.raise_error(error::ILLEGAL_REGISTER);
                0
            }
        }
    }

    /// Writes the xAPIC page.
    pub fn write_mmio(&mut self, offset: u64, value: u32, now: u64) -> Option<Outgoing> {
        if offset & 0xf != 0 {
            return None;
        }
        match (offset >> 4) as u32 & 0xff {
            // Fixed in hardware, or without meaning on this bus.
            ID | VERSION | ARBITRATION_PRIORITY | PROCESSOR_PRIORITY | REMOTE_READ | CURRENT_COUNT => None,
            IN_SERVICE..ERROR_STATUS => None,
            LOGICAL_DESTINATION => {
                self.logical_destination = value & 0xff00_0000;
                None
            }
            DESTINATION_FORMAT => {
                self.destination_format = value | 0x0fff_ffff;
                None
            }
            COMMAND_HIGH => {
                self.command = self.command & 0xffff_ffff | u64::from(value & 0xff00_0000) << 32;
                None
            }
            COMMAND_LOW => {
                self.command =
                    self.command & !0xffff_ffff | u64::from(value) & !COMMAND_RESERVED & !DELIVERY_STATUS;
                self.send_command()
            }
            register => match self.write(register, value, now) {
                Ok(outgoing) => outgoing,
                Err(Illegal) => {
                    self.raise_error(error::ILLEGAL_REGISTER);
                    None
                }
            },
        }
    }

    /// Reads an x2APIC MSR.
    pub fn read_msr(&mut self, index: u32, now: u64) -> Result<u64, Illegal> {
        if !self.is_x2apic() {
            return Err(Illegal);
        }
        match index.wrapping_sub(X2APIC_FIRST) {
            ID => Ok(u64::from(self.id)),
            LOGICAL_DESTINATION => Ok(u64::from(self.x2apic_logical_destination())),
            COMMAND_LOW => Ok(self.command),
            ARBITRATION_PRIORITY | REMOTE_READ | DESTINATION_FORMAT | COMMAND_HIGH | END_OF_INTERRUPT => {
                Err(Illegal)
            }
            register => self.read(register, now).map(u64::from),
        }
    }

    /// Writes an x2APIC MSR.
    pub fn write_msr(&mut self, index: u32, value: u64, now: u64) -> Result<Option<Outgoing>, Illegal> {
        if !self.is_x2apic() {
            return Err(Illegal);
        }
        let register = index.wrapping_sub(X2APIC_FIRST);
        if register == COMMAND_LOW {
            if value & COMMAND_RESERVED != 0 {
                return Err(Illegal);
            }
            self.command = value & !DELIVERY_STATUS;
            return Ok(self.send_command());
        }
        let value = u32::try_from(value).map_err(|_| Illegal)?;
        let reserved = match register {
            END_OF_INTERRUPT | ERROR_STATUS => u32::MAX,
            TASK_PRIORITY | SELF_IPI => !0xff,
            SPURIOUS => !0x3ff,
            LVT_TIMER..=LVT_ERROR => !(lvt_writable((register - LVT_TIMER) as usize) | LVT_READ_ONLY),
            INITIAL_COUNT => 0,
            DIVIDE => !0xb,
            _ => return Err(Illegal),
        };
        if value & reserved != 0 {
            return Err(Illegal);
        }
        if register == SELF_IPI {
            return Ok(Some(self.ipi(Shorthand::Itself, DeliveryMode::Fixed, value as u8, 0, false, false)));
        }
        self.write(register, value, now)
    }

    /// Logical x2APIC ID (SDM Vol. 3A 11.12.10.2): cluster and bit follow from the ID.
    fn x2apic_logical_destination(&self) -> u32 {
        (self.id >> 4) << 16 | 1 << (self.id & 0xf)
    }

    /// Registers that read the same by both ways, and the xAPIC forms of the others.
    fn read(&mut self, register: u32, now: u64) -> Result<u32, Illegal> {
        self.advance(now);
        Ok(match register {
            ID => self.id << 24,
            VERSION => VERSION_VALUE,
            TASK_PRIORITY => u32::from(self.task_priority),
            ARBITRATION_PRIORITY | REMOTE_READ | END_OF_INTERRUPT => 0,
            PROCESSOR_PRIORITY => u32::from(self.processor_priority()),
            LOGICAL_DESTINATION => self.logical_destination,
            DESTINATION_FORMAT => self.destination_format,
            SPURIOUS => self.spurious,
            IN_SERVICE..TRIGGER_MODE => self.isr.register(register - IN_SERVICE),
            TRIGGER_MODE..REQUEST => self.tmr.register(register - TRIGGER_MODE),
            REQUEST..ERROR_STATUS => self.irr.register(register - REQUEST),
            ERROR_STATUS => self.error_status,
            COMMAND_LOW => self.command as u32,
            COMMAND_HIGH => (self.command >> 32) as u32,
            LVT_TIMER..=LVT_ERROR => self.lvt[(register - LVT_TIMER) as usize],
            INITIAL_COUNT => self.timer.initial(),
            CURRENT_COUNT => self.timer.current(now),
            DIVIDE => self.timer.divide(),
            _ => return Err(Illegal),
        })
    }

    /// Registers that are written the same by both ways.
    fn write(&mut self, register: u32, value: u32, now: u64) -> Result<Option<Outgoing>, Illegal> {
        self.advance(now);
        match register {
            TASK_PRIORITY => self.task_priority = value as u8,
            END_OF_INTERRUPT => return Ok(self.end_of_interrupt()),
            SPURIOUS => {
                self.spurious = value & 0x3ff;
                if self.spurious & SOFTWARE_ENABLE == 0 {
                    self.lvt.iter_mut().for_each(|lvt| *lvt |= LVT_MASKED);
                }
            }
            ERROR_STATUS => self.error_status = std::mem::take(&mut self.errors),
            LVT_TIMER..=LVT_ERROR => self.write_lvt((register - LVT_TIMER) as usize, value),
            INITIAL_COUNT => self.timer.set_initial(value, now),
            DIVIDE => self.timer.set_divide(value, now),
            _ => return Err(Illegal),
        }
        Ok(None)
    }

    fn write_lvt(&mut self, entry: usize, value: u32) {
        let mut value = value & lvt_writable(entry);
        if !self.is_software_enabled() {
            value |= LVT_MASKED;
        }
        // Only LINT0 can be level-triggered with Fixed delivery; LINT1 is edge-triggered whatever is written.
        if entry == Lvt::Lint1 as usize {
            value &= !LVT_LEVEL;
        }
        self.lvt[entry] = value;
        if entry == Lvt::Timer as usize {
            self.timer.set_mode(TimerMode::from_lvt(value));
        }
    }

    /// Reads IA32_TSC_DEADLINE.
    pub fn tsc_deadline(&mut self, now: u64) -> u64 {
        self.advance(now);
        self.timer.tsc_deadline()
    }

    /// Writes IA32_TSC_DEADLINE: the guest TSC at which to interrupt, 0 to disarm.
    pub fn set_tsc_deadline(&mut self, deadline: u64, now: u64) {
        self.advance(now);
        self.timer.set_tsc_deadline(deadline);
        self.advance(now);
    }

    /// The ICR was written.
    fn send_command(&mut self) -> Option<Outgoing> {
        let command = self.command;
        let mode = DeliveryMode::from_bits(command as u32 >> 8);
        let level_triggered = command & 1 << 15 != 0;
        let vector = command as u8;
        let shorthand = match command >> 18 & 3 {
            0 => Shorthand::None,
            1 => Shorthand::Itself,
            2 => Shorthand::All,
            _ => Shorthand::Others,
        };
        match mode {
            DeliveryMode::Fixed | DeliveryMode::LowestPriority if vector < 16 => {
                self.raise_error(error::SEND_ILLEGAL_VECTOR);
                return None;
            }
            // INIT level de-assert only synchronised arbitration IDs; what is reserved is not sent.
            DeliveryMode::Init if level_triggered && command & 1 << 14 == 0 => return None,
            DeliveryMode::ExtInt | DeliveryMode::Reserved => return None,
            // Everyone or itself: only interrupts of vectors (SDM Vol. 3A table 11-3).
            DeliveryMode::Fixed => {}
            _ if matches!(shorthand, Shorthand::Itself | Shorthand::All) && mode != DeliveryMode::Nmi => {
                return None;
            }
            _ => {}
        }
        let logical = command & 1 << 11 != 0;
        // Table 11-3: IPIs of vectors are sent as edges.
        Some(self.ipi(shorthand, mode, vector, (command >> 32) as u32, logical, false))
    }

    fn ipi(
        &self,
        to: Shorthand,
        mode: DeliveryMode,
        vector: u8,
        destination: u32,
        logical: bool,
        level_triggered: bool,
    ) -> Outgoing {
        let message = if self.is_x2apic() {
            Message { destination, logical, mode, vector, level_triggered }
        } else {
            Message::with_short_destination((destination >> 24) as u8, logical, mode, vector, level_triggered)
        };
        Outgoing::Ipi { to, message }
    }
}
