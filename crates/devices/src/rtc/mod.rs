//! The MC146818 real-time clock and CMOS RAM behind ports 0x70 and 0x71.
//!
//! Source: Motorola MC146818A datasheet. The time registers are bytes, as the guest wrote them; when seconds of the
//! machine's clock have passed since they were last brought up to date, they are decoded, moved on and encoded again
//! (so a date that is half written is left alone, as in the chip). Firmware's part: 24-hour BCD, century at 0x32.
//!
//! Why not `vm_superio::Rtc`: that is the ARM PL031, another chip.

mod calendar;
#[cfg(test)]
mod tests;

use std::time::Duration;

use self::calendar::Date;
use crate::{
    interrupt::IrqLine,
    layout::RTC_CENTURY,
    time::{SECOND, earliest, nanoseconds, ticks},
};

const SECONDS: usize = 0;
const SECONDS_ALARM: usize = 1;
const MINUTES: usize = 2;
const MINUTES_ALARM: usize = 3;
const HOURS: usize = 4;
const HOURS_ALARM: usize = 5;
const WEEKDAY: usize = 6;
const DAY: usize = 7;
const MONTH: usize = 8;
const YEAR: usize = 9;
const STATUS_A: usize = 10;
const STATUS_B: usize = 11;
const STATUS_C: usize = 12;
const STATUS_D: usize = 13;
const CENTURY: usize = RTC_CENTURY as usize;

const A_UPDATE_IN_PROGRESS: u8 = 0x80;
const B_SET: u8 = 0x80;
const B_UPDATE_INTERRUPT: u8 = 0x10;
const B_BINARY: u8 = 0x04;
const B_24_HOURS: u8 = 0x02;
const C_INTERRUPT: u8 = 0x80;
const C_PERIODIC: u8 = 0x40;
const C_ALARM: u8 = 0x20;
const C_UPDATE: u8 = 0x10;
/// Bits 6:4 of STATUS_B enable the flags at the same place in STATUS_C.
const FLAGS: u8 = C_PERIODIC | C_ALARM | C_UPDATE;
const HOURS_PM: u8 = 0x80;

/// Crystal.
const HZ: u64 = 32_768;
/// How long before a second UIP is set: 244 us of warning and the update itself (datasheet, table 6).
const UPDATE: u64 = 244_000 + 1_984_000;
const DAY_SECONDS: u64 = 86_400;

/// The clock, its RAM and its line.
#[derive(Debug)]
pub struct Rtc {
    index: u8,
    nmi_masked: bool,
    ram: [u8; 128],
    line: IrqLine,
    /// Nanoseconds to add to the machine's clock so that a second of the RTC begins at whole ones.
    phase: u64,
    /// Seconds of `phase + now` to which the time registers were brought.
    synced: u64,
    /// Crystal ticks up to which periodic interrupts were noted.
    periodic_seen: u64,
}

impl Rtc {
    /// A clock that shows `utc` (since 1970) at time zero of the machine's clock.
    pub fn new(line: IrqLine, utc: Duration) -> Self {
        let mut ram = [0; 128];
        ram[STATUS_A] = 0x26; // 32.768 kHz, periodic rate 1024 Hz
        ram[STATUS_B] = B_24_HOURS;
        ram[STATUS_D] = 0x80; // The battery is fine.
        let phase = u64::from(utc.subsec_nanos());
        let mut rtc = Self { index: 0, nmi_masked: false, ram, line, phase, synced: 0, periodic_seen: 0 };
        rtc.encode(i64::try_from(utc.as_secs()).unwrap_or(0).min(253_402_300_799)); // 9999-12-31
        rtc
    }

    /// Sets a byte of CMOS RAM, as firmware does; clock registers are left alone.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        if let Some(byte) = self.ram.get_mut(usize::from(index)).filter(|_| usize::from(index) > STATUS_D) {
            *byte = value;
        }
    }

    /// Whether bit 7 of the index port holds NMIs back.
    pub fn is_nmi_masked(&self) -> bool {
        self.nmi_masked
    }

    /// Reads the index (offset 0) or data (offset 1) port.
    pub fn read(&mut self, offset: u64, now: u64) -> u8 {
        if offset & 1 == 0 {
            return 0xff; // The index is write-only.
        }
        self.advance(now);
        match usize::from(self.index) {
            STATUS_A => self.ram[STATUS_A] | if self.is_updating(now) { A_UPDATE_IN_PROGRESS } else { 0 },
            STATUS_C => {
                let flags = std::mem::take(&mut self.ram[STATUS_C]);
                self.line.set(false);
                flags
            }
            index => self.ram[index],
        }
    }

    /// Writes the index (offset 0) or data (offset 1) port.
    pub fn write(&mut self, offset: u64, value: u8, now: u64) {
        if offset & 1 == 0 {
            self.index = value & 0x7f;
            self.nmi_masked = value & 0x80 != 0;
            return;
        }
        self.advance(now);
        match usize::from(self.index) {
            STATUS_A => self.write_status_a(value & 0x7f, now),
            STATUS_B => {
                // SET stops updates and takes their interrupt away.
                let value = if value & B_SET != 0 { value & !B_UPDATE_INTERRUPT } else { value };
                self.ram[STATUS_B] = value;
            }
            STATUS_C | STATUS_D => {}
            index => self.ram[index] = value,
        }
        self.update_line();
    }

    fn write_status_a(&mut self, value: u8, now: u64) {
        let was_reset = self.is_divider_reset();
        self.ram[STATUS_A] = value;
        if was_reset && !self.is_divider_reset() {
            // The first update comes half a second after the divider is let go.
            self.phase = SECOND / 2 + SECOND - now % SECOND;
            self.synced = self.seconds(now);
        }
    }

    fn is_divider_reset(&self) -> bool {
        self.ram[STATUS_A] & 0x60 == 0x60
    }

    fn is_stopped(&self) -> bool {
        self.is_divider_reset() || self.ram[STATUS_B] & B_SET != 0
    }

    fn is_updating(&self, now: u64) -> bool {
        !self.is_stopped() && (self.phase + now % SECOND) % SECOND >= SECOND - UPDATE
    }

    fn seconds(&self, now: u64) -> u64 {
        now.saturating_add(self.phase) / SECOND
    }

    /// Crystal ticks between periodic interrupts, as a power of two.
    fn periodic_shift(&self) -> Option<u32> {
        match self.ram[STATUS_A] & 0x0f {
            0 => None,
            rate @ 1..=2 => Some(u32::from(rate) + 6),
            rate => Some(u32::from(rate) - 1),
        }
    }

    /// Brings registers, flags and the line up to date.
    pub fn advance(&mut self, now: u64) {
        let tick = ticks(now, HZ);
        if let Some(shift) = self.periodic_shift().filter(|_| !self.is_divider_reset())
            && tick >> shift != self.periodic_seen >> shift
        {
            self.ram[STATUS_C] |= C_PERIODIC;
        }
        self.periodic_seen = tick;
        let seconds = self.seconds(now);
        let passed = seconds.saturating_sub(self.synced);
        self.synced = seconds;
        if passed != 0 && !self.is_stopped() {
            self.ram[STATUS_C] |= C_UPDATE;
            if self.seconds_to_alarm().is_some_and(|alarm| alarm <= passed) {
                self.ram[STATUS_C] |= C_ALARM;
            }
            let time = self.decode().saturating_add(i64::try_from(passed).unwrap_or(0));
            self.encode(time);
        }
        self.update_line();
    }

    fn update_line(&mut self) {
        let active = self.ram[STATUS_B] & self.ram[STATUS_C] & FLAGS != 0;
        if active {
            self.ram[STATUS_C] |= C_INTERRUPT;
        } else {
            self.ram[STATUS_C] &= !C_INTERRUPT;
        }
        self.line.set(active);
    }

    /// When an interrupt that is enabled comes next, unless one waits already.
    pub fn next_deadline(&self) -> Option<u64> {
        if self.line.is_high() {
            return None;
        }
        let enabled = |flag| self.ram[STATUS_B] & flag != 0;
        let periodic = self
            .periodic_shift()
            .filter(|_| enabled(C_PERIODIC) && !self.is_divider_reset())
            .map(|shift| nanoseconds(((self.periodic_seen >> shift) + 1) << shift, HZ));
        let at = |seconds: u64| {
            self.synced.saturating_add(seconds).saturating_mul(SECOND).saturating_sub(self.phase)
        };
        let running = !self.is_stopped();
        let update = (running && enabled(C_UPDATE)).then(|| at(1));
        let alarm = if running && enabled(C_ALARM) { self.seconds_to_alarm().map(at) } else { None };
        earliest(periodic, earliest(update, alarm))
    }

    /// Seconds from the time in the registers to the next one that matches the alarm, at least 1.
    fn seconds_to_alarm(&self) -> Option<u64> {
        let field = |index| {
            let value = self.ram[index];
            let any = value & 0xc0 == 0xc0;
            (!any).then(|| if index == HOURS_ALARM { self.hours(value) } else { self.number(value) } as u64)
        };
        let (hour, minute, second) = (field(HOURS_ALARM), field(MINUTES_ALARM), field(SECONDS_ALARM));
        let is = |wanted: Option<u64>, value| wanted.is_none_or(|wanted| wanted == value);
        let now = self.decode().rem_euclid(DAY_SECONDS as i64) as u64;
        let mut time = now + 1;
        // Whole hours and minutes that do not match are skipped: at most 24 + 60 + 60 steps.
        while time <= now + DAY_SECONDS {
            if !is(hour, time / 3600 % 24) {
                time = (time / 3600 + 1) * 3600;
            } else if !is(minute, time / 60 % 60) {
                time = (time / 60 + 1) * 60;
            } else if !is(second, time % 60) {
                time += 1;
            } else {
                return Some(time - now);
            }
        }
        None
    }

    /// A register's number: binary, or BCD.
    fn number(&self, byte: u8) -> i64 {
        if self.ram[STATUS_B] & B_BINARY != 0 {
            i64::from(byte)
        } else {
            i64::from(byte >> 4) * 10 + i64::from(byte & 0xf)
        }
    }

    fn byte(&self, number: i64) -> u8 {
        if self.ram[STATUS_B] & B_BINARY != 0 {
            number as u8
        } else {
            (((number / 10 % 10) << 4) | (number % 10)) as u8
        }
    }

    /// Hours of a register, of 24.
    fn hours(&self, byte: u8) -> i64 {
        if self.ram[STATUS_B] & B_24_HOURS != 0 {
            return self.number(byte);
        }
        self.number(byte & !HOURS_PM) % 12 + if byte & HOURS_PM != 0 { 12 } else { 0 }
    }

    /// Seconds since 1970 that the registers show. Nonsense in them gives some time.
    fn decode(&self) -> i64 {
        let number = |index: usize| self.number(self.ram[index]);
        let date = Date {
            year: number(CENTURY) * 100 + number(YEAR),
            month: number(MONTH).clamp(1, 12),
            day: number(DAY),
        };
        let time = (self.hours(self.ram[HOURS]) * 60 + number(MINUTES)) * 60 + number(SECONDS);
        calendar::days(date) * DAY_SECONDS as i64 + time
    }

    fn encode(&mut self, time: i64) {
        let days = time.div_euclid(DAY_SECONDS as i64);
        let seconds = time.rem_euclid(DAY_SECONDS as i64);
        let date = calendar::date(days);
        let hour = seconds / 3600;
        self.ram[HOURS] = if self.ram[STATUS_B] & B_24_HOURS != 0 {
            self.byte(hour)
        } else {
            self.byte((hour + 11) % 12 + 1) | if hour >= 12 { HOURS_PM } else { 0 }
        };
        for (index, number) in [
            (SECONDS, seconds % 60),
            (MINUTES, seconds / 60 % 60),
            (WEEKDAY, calendar::weekday(days)),
            (DAY, date.day),
            (MONTH, date.month),
            (YEAR, date.year.rem_euclid(100)),
            (CENTURY, date.year.div_euclid(100)),
        ] {
            self.ram[index] = self.byte(number);
        }
    }
}
