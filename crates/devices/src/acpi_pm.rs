//! ACPI's fixed hardware: PM1 event and control blocks, PM timer, and a general-purpose event block.
//!
//! Source: ACPI Specification 6.5, 4.8. There is no legacy mode: SCI_EN always reads one and the FADT's SMI_CMD is 0.
//! The blocks lie next to each other (see [`crate::layout`]) and are one device here; each register may be accessed in
//! any width.

use crate::{
    interrupt::IrqLine,
    layout::{GPE0, PM_TIMER, PM_TIMER_HZ, PM1A_CONTROL, PM1A_EVENT, SLEEP_TYPE_S5},
    power::PowerEvent,
    time::{nanoseconds, ticks},
};

/// PM1 status and enable: the timer's bit 31 has changed.
const TIMER: u16 = 1 << 0;
/// PM1 status and enable: power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 status bits that exist: timer, bus master, global lock, power button, sleep button, RTC, wake.
const STATUS: u16 = 0x8731;
/// PM1 enable bits that exist.
const ENABLE: u16 = 0x0721;
const SCI_ENABLE: u16 = 1 << 0;
const SLEEP_ENABLE: u16 = 1 << 13;
/// PM1 control bits that are kept: BM_RLD and SLP_TYP.
const CONTROL: u16 = 0x1c02;

const PM1_STATUS: u64 = 0;
const PM1_ENABLE: u64 = 2;
const PM1_CONTROL: u64 = (PM1A_CONTROL - PM1A_EVENT) as u64;
const TIMER_VALUE: u64 = (PM_TIMER - PM1A_EVENT) as u64;
const GPE_STATUS: u64 = (GPE0 - PM1A_EVENT) as u64;
const GPE_ENABLE: u64 = GPE_STATUS + 2;

/// Length of all blocks together.
pub const LENGTH: u64 = GPE_ENABLE + 2;

/// The fixed hardware.
#[derive(Debug)]
pub struct AcpiPm {
    line: IrqLine,
    status: u16,
    enable: u16,
    control: u16,
    gpe_status: u16,
    gpe_enable: u16,
    /// Timer ticks up to which changes of bit 31 were noted.
    seen: u64,
}

impl AcpiPm {
    /// Everything clear. `line` is the SCI.
    pub fn new(line: IrqLine) -> Self {
        Self { line, status: 0, enable: 0, control: 0, gpe_status: 0, gpe_enable: 0, seen: 0 }
    }

    /// Reads `size` bytes at `offset` from the event block's first port.
    pub fn read(&mut self, offset: u64, size: u8, now: u64) -> u64 {
        self.advance(now);
        let mut bytes = [0; 8];
        for (index, byte) in bytes.iter_mut().enumerate().take(usize::from(size)) {
            *byte = self.read_byte(offset + index as u64, now);
        }
        u64::from_le_bytes(bytes)
    }

    fn read_byte(&self, offset: u64, now: u64) -> u8 {
        let value = match offset & !1 {
            PM1_STATUS => self.status,
            PM1_ENABLE => self.enable,
            PM1_CONTROL => self.control | SCI_ENABLE,
            GPE_STATUS => self.gpe_status,
            GPE_ENABLE => self.gpe_enable,
            TIMER_VALUE => ticks(now, PM_TIMER_HZ) as u16,
            offset if offset == TIMER_VALUE + 2 => (ticks(now, PM_TIMER_HZ) >> 16) as u16,
            _ => 0,
        };
        value.to_le_bytes()[offset as usize & 1]
    }

    /// Writes `size` bytes at `offset` from the event block's first port.
    pub fn write(&mut self, offset: u64, size: u8, value: u64, now: u64) -> Option<PowerEvent> {
        self.advance(now);
        let mut event = None;
        for (index, byte) in value.to_le_bytes().into_iter().enumerate().take(usize::from(size)) {
            event = event.or(self.write_byte(offset + index as u64, byte));
        }
        self.update_line();
        event
    }

    fn write_byte(&mut self, offset: u64, byte: u8) -> Option<PowerEvent> {
        let shift = 8 * (offset & 1);
        let bits = u16::from(byte) << shift;
        let lane = 0xff << shift;
        let replace = |old: u16, allowed: u16| old & !lane | bits & allowed;
        match offset & !1 {
            PM1_STATUS => self.status &= !bits,
            PM1_ENABLE => self.enable = replace(self.enable, ENABLE),
            PM1_CONTROL => {
                self.control = replace(self.control, CONTROL);
                let sleep_type = (self.control >> 10 & 7) as u8;
                if bits & SLEEP_ENABLE != 0 && sleep_type == SLEEP_TYPE_S5 {
                    return Some(PowerEvent::PowerOff);
                }
            }
            GPE_STATUS => self.gpe_status &= !bits,
            GPE_ENABLE => self.gpe_enable = replace(self.gpe_enable, u16::MAX),
            _ => {}
        }
        None
    }

    /// The power button was pressed: an operating system shuts down.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON & STATUS;
        self.update_line();
    }

    /// A general-purpose event, 0..15.
    pub fn raise_gpe(&mut self, number: u8) {
        self.gpe_status |= 1 << (number & 15);
        self.update_line();
    }

    fn update_line(&mut self) {
        self.line.set(self.status & self.enable & ENABLE != 0 || self.gpe_status & self.gpe_enable != 0);
    }

    /// Notes changes of the timer's bit 31.
    pub fn advance(&mut self, now: u64) {
        let tick = ticks(now, PM_TIMER_HZ);
        if tick >> 31 != self.seen >> 31 {
            self.status |= TIMER;
            self.update_line();
        }
        self.seen = tick;
    }

    /// When bit 31 changes next, if that interrupts.
    pub fn next_deadline(&self) -> Option<u64> {
        let wanted = self.enable & TIMER != 0 && self.status & TIMER == 0;
        wanted.then(|| nanoseconds(((self.seen >> 31) + 1) << 31, PM_TIMER_HZ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{interrupt::Wires, time::SECOND};

    fn pm() -> AcpiPm {
        AcpiPm::new(Wires::default().line(9))
    }

    #[test]
    fn the_timer_counts_at_its_rate_in_any_width() {
        let mut pm = pm();
        assert_eq!(pm.read(TIMER_VALUE, 4, SECOND), PM_TIMER_HZ);
        assert_eq!(pm.read(TIMER_VALUE + 1, 1, SECOND), PM_TIMER_HZ >> 8 & 0xff);
        let wrap = nanoseconds(1 << 32, PM_TIMER_HZ);
        assert_eq!(pm.read(TIMER_VALUE, 4, wrap - 1), 0xffff_ffff);
        assert_eq!(pm.read(TIMER_VALUE, 4, wrap), 0);
    }

    #[test]
    fn the_carry_interrupts() {
        let mut pm = pm();
        assert_eq!(pm.next_deadline(), None);
        pm.write(PM1_ENABLE, 2, 1, 0);
        let carry = pm.next_deadline().unwrap();
        pm.advance(carry - 1);
        assert!(!pm.line.is_high());
        pm.advance(carry);
        assert!(pm.line.is_high());
        assert_eq!(pm.next_deadline(), None);
        pm.write(PM1_STATUS, 2, 1, carry);
        assert!(!pm.line.is_high());
        assert!(pm.next_deadline().unwrap() > carry);
    }

    #[test]
    fn power_off_as_acpica_does_it() {
        let mut pm = pm();
        let control = pm.read(PM1_CONTROL, 2, 0);
        assert_eq!(control, 1, "SCI_EN");
        let sleep_type = u64::from(SLEEP_TYPE_S5) << 10;
        assert_eq!(pm.write(PM1_CONTROL, 2, control | sleep_type, 0), None, "SLP_TYP first, without SLP_EN");
        assert_eq!(pm.write(PM1_CONTROL, 2, control | sleep_type | 1 << 13, 0), Some(PowerEvent::PowerOff));
        assert_eq!(pm.read(PM1_CONTROL, 2, 0), 1 | sleep_type, "SLP_EN is write-only");
        let mut pm = self::pm();
        assert_eq!(pm.write(PM1_CONTROL, 2, 1 << 13 | 1 << 10, 0), None, "no such sleep state");
        assert_eq!(pm.write(PM1_CONTROL + 1, 1, 0x34, 0), Some(PowerEvent::PowerOff), "by bytes");
    }

    #[test]
    fn button_and_events_raise_the_sci() {
        let mut pm = pm();
        pm.press_power_button();
        assert!(!pm.line.is_high());
        assert_eq!(pm.read(PM1_STATUS, 4, 0), 0x100);
        pm.write(PM1_STATUS, 4, 0x0100_0000, 0);
        assert!(pm.line.is_high());
        pm.write(PM1_STATUS + 1, 1, 0x01, 0);
        assert!(!pm.line.is_high());
        pm.write(GPE_ENABLE, 2, 0x0004, 0);
        pm.raise_gpe(2);
        assert!(pm.line.is_high());
        pm.write(GPE_STATUS, 1, 0xff, 0);
        assert!(!pm.line.is_high());
    }
}
