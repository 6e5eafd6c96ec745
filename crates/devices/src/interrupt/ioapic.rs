//! The I/O APIC: 24 redirection entries that turn line changes into [`Message`]s.
//!
//! Source: Intel 82093AA datasheet, and the ICH's EOI register (version 0x20). Inputs are "asserted" or not: the
//! polarity bit is kept but not applied, as the board's lines have no voltage.

use super::message::{DeliveryMode, Message};
use crate::layout::IOAPIC_PINS;

const MASKED: u64 = 1 << 16;
const LEVEL: u64 = 1 << 15;
const REMOTE_IRR: u64 = 1 << 14;
const DELIVERY_STATUS: u64 = 1 << 12;
/// Fields of a redirection entry that can be written.
const WRITABLE: u64 = 0xff00_0000_0001_ffff & !(REMOTE_IRR | DELIVERY_STATUS);
const VERSION: u32 = ((IOAPIC_PINS as u32 - 1) << 16) | 0x20;

/// The I/O APIC's registers and inputs.
#[derive(Clone, Debug)]
pub struct IoApic {
    select: u8,
    id: u8,
    entries: [u64; IOAPIC_PINS],
    /// Asserted inputs, one bit a pin.
    lines: u32,
}

impl IoApic {
    /// All pins masked.
    pub fn new(id: u8) -> Self {
        Self { select: 0, id, entries: [MASKED; IOAPIC_PINS], lines: 0 }
    }

    /// Whether pin `pin` is masked.
    pub fn is_masked(&self, pin: u8) -> bool {
        self.entries.get(usize::from(pin)).is_none_or(|entry| entry & MASKED != 0)
    }

    /// Asserts or releases an input. Edges on masked pins are lost, as in the chip.
    pub fn set_line(&mut self, pin: u8, high: bool) -> Option<Message> {
        let pin = usize::from(pin);
        let entry = *self.entries.get(pin)?;
        let was_high = self.lines & (1 << pin) != 0;
        self.lines = self.lines & !(1 << pin) | u32::from(high) << pin;
        let rose = high && !was_high;
        if entry & LEVEL != 0 {
            self.service_level(pin)
        } else if rose && entry & MASKED == 0 {
            Some(message(entry))
        } else {
            None
        }
    }

    /// Sends a level interrupt if its input asks for it and no earlier one is unfinished.
    fn service_level(&mut self, pin: usize) -> Option<Message> {
        let entry = &mut self.entries[pin];
        let asks = *entry & (LEVEL | MASKED | REMOTE_IRR) == LEVEL && self.lines & (1 << pin) != 0;
        if !asks {
            return None;
        }
        // Remote IRR is for vectors that an EOI will come for.
        if matches!(mode(*entry), DeliveryMode::Fixed | DeliveryMode::LowestPriority) {
            *entry |= REMOTE_IRR;
        }
        Some(message(*entry))
    }

    /// The EOI of `vector` has come (broadcast by a local APIC, or through the EOI register). `send` takes the
    /// messages of inputs that are still asserted.
    pub fn end_of_interrupt(&mut self, vector: u8, send: &mut dyn FnMut(Message)) {
        for pin in 0..IOAPIC_PINS {
            let entry = &mut self.entries[pin];
            if *entry & REMOTE_IRR != 0 && *entry as u8 == vector {
                *entry &= !REMOTE_IRR;
                if let Some(message) = self.service_level(pin) {
                    send(message);
                }
            }
        }
    }

    /// Reads the 32-bit register at `offset` of the page.
    pub fn read(&self, offset: u64) -> u32 {
        match offset & !3 {
            0x00 => u32::from(self.select),
            0x10 => self.read_indirect(),
            _ => 0,
        }
    }

    fn read_indirect(&self) -> u32 {
        match self.select {
            0 | 2 => u32::from(self.id) << 24,
            1 => VERSION,
            select => match self.entry_of(select) {
                Some((pin, shift)) => (self.entries[pin] >> shift) as u32,
                None => 0,
            },
        }
    }

    /// Which entry, and which half of it, an index selects.
    fn entry_of(&self, select: u8) -> Option<(usize, u32)> {
        let index = usize::from(select.checked_sub(0x10)?);
        (index / 2 < IOAPIC_PINS).then_some((index / 2, 32 * (index as u32 & 1)))
    }

    /// Writes the 32-bit register at `offset` of the page.
    pub fn write(&mut self, offset: u64, value: u32, send: &mut dyn FnMut(Message)) {
        match offset & !3 {
            0x00 => self.select = value as u8,
            0x10 => self.write_indirect(value, send),
            0x40 => self.end_of_interrupt(value as u8, send),
            _ => {}
        }
    }

    fn write_indirect(&mut self, value: u32, send: &mut dyn FnMut(Message)) {
        if self.select == 0 {
            self.id = (value >> 24) as u8 & 0xf;
            return;
        }
        let Some((pin, shift)) = self.entry_of(self.select) else { return };
        let writable = WRITABLE & (0xffff_ffff << shift);
        let entry = &mut self.entries[pin];
        *entry = *entry & !writable | (u64::from(value) << shift) & writable;
        if *entry & LEVEL == 0 {
            // Making a pin edge-triggered clears remote IRR: Linux relies on it where there is no EOI register.
            *entry &= !REMOTE_IRR;
        }
        if let Some(message) = self.service_level(pin) {
            send(message);
        }
    }
}

fn mode(entry: u64) -> DeliveryMode {
    DeliveryMode::from_bits((entry >> 8) as u32)
}

fn message(entry: u64) -> Message {
    Message::with_short_destination(
        (entry >> 56) as u8,
        entry & 1 << 11 != 0,
        mode(entry),
        entry as u8,
        entry & LEVEL != 0,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(ioapic: &mut IoApic, pin: u32, entry: u64) -> Vec<Message> {
        let mut sent = Vec::new();
        // Linux writes the high half first, because the low one unmasks.
        for (index, half) in [(0x11 + 2 * pin, entry >> 32), (0x10 + 2 * pin, entry)] {
            ioapic.write(0, index, &mut |m| sent.push(m));
            ioapic.write(0x10, half as u32, &mut |m| sent.push(m));
        }
        sent
    }

    fn read(ioapic: &mut IoApic, index: u32) -> u32 {
        ioapic.write(0, index, &mut |_| ());
        ioapic.read(0x10)
    }

    #[test]
    fn identity() {
        let mut ioapic = IoApic::new(5);
        assert_eq!(read(&mut ioapic, 0), 5 << 24);
        assert_eq!(read(&mut ioapic, 1), 0x0017_0020);
        assert_eq!(read(&mut ioapic, 0x10), 0x10000, "masked after reset");
        assert_eq!(read(&mut ioapic, 0x10 + 48), 0, "no pin 24");
        assert_eq!(read(&mut ioapic, 0xff), 0);
    }

    #[test]
    fn edges() {
        let mut ioapic = IoApic::new(0);
        assert_eq!(ioapic.set_line(2, true), None, "masked");
        assert_eq!(program(&mut ioapic, 2, 0x0100_0000_0000_0030), [], "the edge was before the unmask");
        assert_eq!(ioapic.set_line(2, true), None, "no edge");
        assert_eq!(ioapic.set_line(2, false), None);
        let message = ioapic.set_line(2, true).unwrap();
        assert_eq!((message.destination, message.vector, message.level_triggered), (1, 0x30, false));
        ioapic.set_line(2, false);
        assert!(ioapic.set_line(2, true).is_some(), "no EOI is needed between edges");
        assert_eq!(read(&mut ioapic, 0x14), 0x30, "no remote IRR for edges");
    }

    #[test]
    fn level_needs_eoi() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, 0x8041);
        assert_eq!(ioapic.set_line(9, true).map(|m| (m.vector, m.level_triggered)), Some((0x41, true)));
        assert_eq!(read(&mut ioapic, 0x22), 0xc041);
        ioapic.set_line(9, false);
        assert_eq!(ioapic.set_line(9, true), None, "not before the EOI");
        let mut sent = Vec::new();
        ioapic.end_of_interrupt(0x40, &mut |m| sent.push(m));
        assert_eq!(sent, []);
        ioapic.end_of_interrupt(0x41, &mut |m| sent.push(m));
        assert_eq!(sent.len(), 1, "still asserted");
        ioapic.set_line(9, false);
        ioapic.write(0x40, 0x41, &mut |m| sent.push(m));
        assert_eq!((sent.len(), read(&mut ioapic, 0x22)), (1, 0x8041));
    }

    #[test]
    fn a_level_that_waits_is_sent_on_unmask() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 9, 0x18041);
        assert_eq!(ioapic.set_line(9, true), None);
        assert_eq!(program(&mut ioapic, 9, 0x8041).len(), 1);
        program(&mut ioapic, 9, 0x10041);
        assert_eq!(read(&mut ioapic, 0x22), 0x10041, "edge mode clears remote IRR");
    }

    #[test]
    fn read_only_bits_stay() {
        let mut ioapic = IoApic::new(0);
        program(&mut ioapic, 3, 0xffff_ffff_ffff_ffff);
        assert_eq!(read(&mut ioapic, 0x16), 0x1_afff);
        assert_eq!(read(&mut ioapic, 0x17), 0xff00_0000);
    }
}
