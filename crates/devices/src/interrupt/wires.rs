//! The wires from devices to the interrupt controllers.
//!
//! A wire is one of 24 inputs of the board: 0..15 are the ISA IRQs, 16..23 exist on the IOAPIC only. Several
//! [`IrqLine`]s may drive one wire (wired-or). Driving a line takes no lock and calls nobody, so devices may do it
//! from their registers or from a thread of their own; the [`crate::interrupt::InterruptFabric`] looks at the wires
//! after every access and every `advance`. A pulse between two looks is not lost: rising edges are latched.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crate::layout::IOAPIC_PINS;

/// The wires of a board; clones are the same wires.
#[derive(Clone, Debug, Default)]
pub struct Wires(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    /// How many lines drive each wire high.
    drivers: [AtomicU32; IOAPIC_PINS],
    /// Wires that rose since the last drain.
    risen: AtomicU32,
    /// Wires that changed at all since the last drain.
    changed: AtomicU32,
}

/// What changed between two drains, one bit a wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changes {
    /// Wires to look at.
    pub changed: u32,
    /// Of these, those that rose at least once.
    pub risen: u32,
    /// Of these, those that are high now.
    pub high: u32,
}

impl Wires {
    /// A new driver for wire `number` (at most 23; larger numbers are taken as 23).
    pub fn line(&self, number: u8) -> IrqLine {
        IrqLine { shared: Arc::clone(&self.0), wire: usize::from(number).min(IOAPIC_PINS - 1), high: false }
    }

    /// Takes the changes since the last drain.
    #[inline]
    pub fn drain(&self) -> Option<Changes> {
        if self.0.changed.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let changed = self.0.changed.swap(0, Ordering::AcqRel);
        let risen = self.0.risen.swap(0, Ordering::AcqRel);
        let mut high = 0;
        for (wire, drivers) in self.0.drivers.iter().enumerate() {
            high |= u32::from(drivers.load(Ordering::Acquire) != 0) << wire;
        }
        Some(Changes { changed: changed | risen, risen, high })
    }
}

/// One device's end of a wire. Dropping it releases the wire.
#[derive(Debug)]
pub struct IrqLine {
    shared: Arc<Shared>,
    wire: usize,
    high: bool,
}

impl IrqLine {
    /// Asserts or releases the line.
    #[inline]
    pub fn set(&mut self, high: bool) {
        if self.high == high {
            return;
        }
        self.high = high;
        let drivers = &self.shared.drivers[self.wire];
        if high {
            if drivers.fetch_add(1, Ordering::AcqRel) == 0 {
                self.shared.risen.fetch_or(1 << self.wire, Ordering::AcqRel);
            }
        } else {
            drivers.fetch_sub(1, Ordering::AcqRel);
        }
        self.shared.changed.fetch_or(1 << self.wire, Ordering::AcqRel);
    }

    /// A rising edge, whatever the level was; the line is high afterwards.
    pub fn edge(&mut self) {
        self.set(false);
        self.set(true);
    }

    /// Whether this line is asserted.
    pub fn is_high(&self) -> bool {
        self.high
    }
}

impl Drop for IrqLine {
    fn drop(&mut self) {
        self.set(false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulses_between_drains_are_seen() {
        let wires = Wires::default();
        let mut line = wires.line(4);
        assert_eq!(wires.drain(), None);
        line.set(true);
        line.set(false);
        assert_eq!(wires.drain(), Some(Changes { changed: 0x10, risen: 0x10, high: 0 }));
        assert_eq!(wires.drain(), None);
    }

    #[test]
    fn a_shared_wire_falls_with_its_last_driver() {
        let wires = Wires::default();
        let (mut a, mut b) = (wires.line(9), wires.line(9));
        a.set(true);
        b.set(true);
        assert_eq!(wires.drain(), Some(Changes { changed: 0x200, risen: 0x200, high: 0x200 }));
        a.set(false);
        assert_eq!(wires.drain(), Some(Changes { changed: 0x200, risen: 0, high: 0x200 }));
        drop(b);
        assert_eq!(wires.drain(), Some(Changes { changed: 0x200, risen: 0, high: 0 }));
    }
}
