//! The 8254 programmable interval timer, with system control port B (0x61) that its counter 2 hangs on.
//!
//! [`counter`] is one counter: what it shows at a time. This file is the register interface: control word, byte
//! order, latches, read-back. Source: Intel 8254 datasheet (231164). Counter 0's OUT is ISA IRQ 0.

mod counter;
#[cfg(test)]
mod tests;

use self::counter::Counter;
use crate::{
    interrupt::IrqLine,
    layout::PIT_HZ,
    time::{SHORTEST_PERIOD, nanoseconds, ticks},
};

/// Which bytes of a count are accessed (control word bits 5:4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bytes {
    Low = 1,
    High = 2,
    Both = 3,
}

/// One counter and its port.
#[derive(Clone, Debug)]
struct Channel {
    counter: Counter,
    bytes: Bytes,
    /// The low byte of a two-byte count that is half written.
    low_written: Option<u8>,
    /// The next read of a two-byte count gives the high byte.
    high_next: bool,
    latched_count: Option<u16>,
    latched_status: Option<u8>,
}

impl Channel {
    fn new() -> Self {
        Self {
            counter: Counter::new(),
            bytes: Bytes::Both,
            low_written: None,
            high_next: false,
            latched_count: None,
            latched_status: None,
        }
    }

    fn control(&mut self, value: u8, now: u64) {
        self.bytes = match value >> 4 & 3 {
            1 => Bytes::Low,
            2 => Bytes::High,
            3 => Bytes::Both,
            _ => return self.latch_count(now),
        };
        self.low_written = None;
        self.high_next = false;
        self.latched_count = None;
        self.latched_status = None;
        self.counter.set_mode(value >> 1 & 7, value & 1 != 0);
    }

    fn latch_count(&mut self, now: u64) {
        if self.latched_count.is_none() {
            self.latched_count = Some(self.counter.count(now));
        }
    }

    fn latch_status(&mut self, now: u64) {
        if self.latched_status.is_none() {
            let null = self.low_written.is_some() || self.counter.is_null(now);
            let status = u8::from(self.counter.out(now)) << 7 | u8::from(null) << 6 | (self.bytes as u8) << 4;
            self.latched_status = Some(status | self.counter.mode_bits());
        }
    }

    fn read(&mut self, now: u64) -> u8 {
        if let Some(status) = self.latched_status.take() {
            return status;
        }
        let [low, high] = self.latched_count.unwrap_or_else(|| self.counter.count(now)).to_le_bytes();
        let is_high = match self.bytes {
            Bytes::Low => false,
            Bytes::High => true,
            Bytes::Both => {
                self.high_next = !self.high_next;
                !self.high_next
            }
        };
        if !(self.bytes == Bytes::Both && self.high_next) {
            self.latched_count = None;
        }
        if is_high { high } else { low }
    }

    fn write(&mut self, value: u8, now: u64) {
        match self.bytes {
            Bytes::Low => self.counter.load(u16::from(value), now),
            Bytes::High => self.counter.load(u16::from(value) << 8, now),
            Bytes::Both => match self.low_written.take() {
                None => {
                    self.low_written = Some(value);
                    self.counter.half_written();
                }
                Some(low) => self.counter.load(u16::from_le_bytes([low, value]), now),
            },
        }
    }
}

/// The timer, port B, and the line to IRQ 0. Times are nanoseconds of the machine's clock.
#[derive(Debug)]
pub struct Pit {
    channels: [Channel; 3],
    line: IrqLine,
    /// Ticks up to which counter 0's edges were put on the line.
    seen: u64,
    /// Wake-ups before this are not asked for.
    rest_until: u64,
    /// Bits 3:0 of port B as written.
    control_b: u8,
}

impl Pit {
    /// Three idle counters. `line` is ISA IRQ 0.
    pub fn new(line: IrqLine) -> Self {
        let mut channels = [Channel::new(), Channel::new(), Channel::new()];
        channels[2].counter.set_gate(false, 0);
        Self { channels, line, seen: 0, rest_until: 0, control_b: 0 }
    }

    /// Reads port 0x40 + `offset`.
    pub fn read(&mut self, offset: u64, now: u64) -> u8 {
        match self.channels.get_mut(offset as usize & 3) {
            Some(channel) => channel.read(ticks(now, PIT_HZ)),
            None => 0xff, // The control word cannot be read.
        }
    }

    /// Writes port 0x40 + `offset`.
    pub fn write(&mut self, offset: u64, value: u8, now: u64) {
        self.advance(now);
        let tick = ticks(now, PIT_HZ);
        match self.channels.get_mut(offset as usize & 3) {
            Some(channel) => channel.write(value, tick),
            None => self.write_control(value, tick),
        }
        self.seen = tick;
        self.line.set(self.channels[0].counter.out(tick));
    }

    fn write_control(&mut self, value: u8, tick: u64) {
        if let Some(channel) = self.channels.get_mut(usize::from(value >> 6)) {
            channel.control(value, tick);
            return;
        }
        // Read-back command: bits 5 and 4 are active low.
        for (index, channel) in self.channels.iter_mut().enumerate() {
            if value & (2 << index) != 0 {
                if value & 0x20 == 0 {
                    channel.latch_count(tick);
                }
                if value & 0x10 == 0 {
                    channel.latch_status(tick);
                }
            }
        }
    }

    /// Reads system control port B: gate, speaker, refresh toggle (bit 4) and counter 2's OUT (bit 5).
    pub fn read_control_b(&self, now: u64) -> u8 {
        // The refresh request toggles about every 15 us; old delay loops count its edges.
        let refresh = u8::from(!(now / 15_085).is_multiple_of(2)) << 4;
        let out2 = u8::from(self.channels[2].counter.out(ticks(now, PIT_HZ))) << 5;
        self.control_b | refresh | out2
    }

    /// Writes system control port B: bit 0 is the gate of counter 2, bit 1 the speaker.
    pub fn write_control_b(&mut self, value: u8, now: u64) {
        self.control_b = value & 0x0f;
        self.channels[2].counter.set_gate(value & 1 != 0, ticks(now, PIT_HZ));
    }

    /// Puts counter 0's OUT on the line; several rising edges since the last time are one.
    pub fn advance(&mut self, now: u64) {
        let tick = ticks(now, PIT_HZ);
        let counter = &self.channels[0].counter;
        if counter.next_rise(self.seen).is_some_and(|rise| rise <= tick) {
            self.line.edge();
            self.rest_until = now.saturating_add(SHORTEST_PERIOD);
        }
        self.line.set(counter.out(tick));
        self.seen = tick;
    }

    /// When counter 0's OUT rises next.
    pub fn next_deadline(&self) -> Option<u64> {
        let rise = self.channels[0].counter.next_rise(self.seen)?;
        Some(nanoseconds(rise, PIT_HZ).max(self.rest_until))
    }
}
