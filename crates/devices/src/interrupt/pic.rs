//! The two 8259A interrupt controllers of an AT, cascaded through IR2, with the ELCR of later chipsets.
//!
//! Source: Intel 8259A datasheet (231468) and the interrupt chapter of the ICH datasheets. Two choices where hardware
//! differs: LTIM (ICW1) is ignored, as by every chipset with an ELCR; and an edge request stays latched when its line
//! falls before the acknowledge (the 8259A would report IRQ 7 then), so that a vCPU that the host scheduled late does
//! not lose timer ticks. IRQ 7 is still what an acknowledge finds if a level request or an unmasked input is gone.

/// The initialisation words that are still expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    /// None: data writes are OCW1.
    Nothing,
    Icw2,
    Icw3,
    Icw4,
}

/// One 8259A.
#[derive(Clone, Debug)]
pub struct Pic {
    /// Levels of IR0..7.
    lines: u8,
    /// Edges seen and not acknowledged.
    latched: u8,
    /// Inputs that are level-triggered.
    level_triggered: u8,
    /// In-service register.
    isr: u8,
    /// Interrupt mask register.
    imr: u8,
    /// ICW2: vector of IR0.
    base: u8,
    /// The input with the lowest priority.
    lowest: u8,
    expect: Expect,
    /// ICW1: this one is alone, so there is no ICW3.
    single: bool,
    /// ICW1: an ICW4 follows.
    needs_icw4: bool,
    auto_eoi: bool,
    rotate_on_auto_eoi: bool,
    special_mask: bool,
    special_fully_nested: bool,
    /// OCW3: command reads give ISR and not IRR.
    read_isr: bool,
    /// OCW3: the next read is a poll.
    poll: bool,
}

impl Pic {
    fn new() -> Self {
        Self {
            lines: 0,
            latched: 0,
            level_triggered: 0,
            isr: 0,
            imr: 0xff,
            base: 0,
            lowest: 7,
            expect: Expect::Nothing,
            single: false,
            needs_icw4: false,
            auto_eoi: false,
            rotate_on_auto_eoi: false,
            special_mask: false,
            special_fully_nested: false,
            read_isr: false,
            poll: false,
        }
    }

    fn set_line(&mut self, input: u8, high: bool) {
        let bit = 1 << (input & 7);
        if high {
            self.latched |= bit & !self.lines;
            self.lines |= bit;
        } else {
            self.lines &= !bit;
        }
    }

    /// IRR: what asks for service.
    fn requests(&self) -> u8 {
        (self.latched & !self.level_triggered) | (self.lines & self.level_triggered)
    }

    /// Position of the highest-priority bit in the current rotation, 8 for none.
    fn rank(&self, bits: u8) -> u8 {
        bits.rotate_right(u32::from(self.lowest + 1) & 7).trailing_zeros() as u8
    }

    /// The input to be served next, if the INT output is high.
    fn pending(&self) -> Option<u8> {
        if self.expect != Expect::Nothing {
            return None;
        }
        let mut in_service = self.isr;
        if self.special_mask {
            in_service &= !self.imr;
        }
        if self.special_fully_nested {
            in_service &= !(1 << crate::layout::IRQ_CASCADE);
        }
        let rank = self.rank(self.requests() & !self.imr);
        (rank < self.rank(in_service)).then_some((rank + self.lowest + 1) & 7)
    }

    /// INTA: what is served now; `None` for a spurious IRQ 7.
    fn acknowledge(&mut self) -> Option<u8> {
        let input = self.pending()?;
        let bit = 1 << input;
        self.latched &= !bit;
        if !self.auto_eoi {
            self.isr |= bit;
        } else if self.rotate_on_auto_eoi {
            self.lowest = input;
        }
        Some(input)
    }

    fn end_of_interrupt(&mut self, input: u8, rotate: bool) {
        self.isr &= !(1 << input);
        if rotate {
            self.lowest = input;
        }
    }

    fn write_command(&mut self, value: u8) {
        if value & 0x10 != 0 {
            // ICW1. Inputs that are high now must fall and rise again to be seen.
            self.latched = 0;
            self.isr = 0;
            self.imr = 0;
            self.lowest = 7;
            self.special_mask = false;
            self.read_isr = false;
            self.poll = false;
            self.auto_eoi = false;
            self.rotate_on_auto_eoi = false;
            self.special_fully_nested = false;
            self.needs_icw4 = value & 0x01 != 0;
            self.single = value & 0x02 != 0;
            self.expect = Expect::Icw2;
        } else if value & 0x08 != 0 {
            // OCW3.
            self.poll = value & 0x04 != 0;
            if value & 0x02 != 0 {
                self.read_isr = value & 0x01 != 0;
            }
            if value & 0x40 != 0 {
                self.special_mask = value & 0x20 != 0;
            }
        } else {
            self.write_ocw2(value);
        }
    }

    fn write_ocw2(&mut self, value: u8) {
        let level = value & 7;
        let rotate = value & 0x80 != 0;
        match value >> 5 {
            0b000 => self.rotate_on_auto_eoi = false,
            0b100 => self.rotate_on_auto_eoi = true,
            0b001 | 0b101 => {
                // Non-specific EOI ends the highest priority in service; with the special mask, of those not masked.
                let candidates = if self.special_mask { self.isr & !self.imr } else { self.isr };
                let rank = self.rank(candidates);
                if rank < 8 {
                    self.end_of_interrupt((rank + self.lowest + 1) & 7, rotate);
                }
            }
            0b011 | 0b111 => self.end_of_interrupt(level, rotate),
            0b110 => self.lowest = level,
            _ => {}
        }
    }

    fn write_data(&mut self, value: u8) {
        match self.expect {
            Expect::Nothing => self.imr = value,
            Expect::Icw2 => {
                self.base = value & 0xf8;
                self.expect = match (self.single, self.needs_icw4) {
                    (false, _) => Expect::Icw3,
                    (true, true) => Expect::Icw4,
                    (true, false) => Expect::Nothing,
                };
            }
            // ICW3 is wiring, which is fixed here.
            Expect::Icw3 => self.expect = if self.needs_icw4 { Expect::Icw4 } else { Expect::Nothing },
            Expect::Icw4 => {
                self.auto_eoi = value & 0x02 != 0;
                self.special_fully_nested = value & 0x10 != 0;
                self.expect = Expect::Nothing;
            }
        }
    }

    /// The answer to a poll: bit 7 and the input, which is thereby acknowledged.
    fn take_poll(&mut self) -> Option<u8> {
        if !std::mem::take(&mut self.poll) {
            return None;
        }
        Some(self.acknowledge().map_or(0, |input| 0x80 | input))
    }

    fn read(&mut self, data: bool) -> u8 {
        match self.take_poll() {
            Some(answer) => answer,
            None if data => self.imr,
            None if self.read_isr => self.isr,
            None => self.requests(),
        }
    }
}

/// Which of the pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PicSelect {
    /// IRQ 0..7.
    Master,
    /// IRQ 8..15.
    Slave,
}

/// The pair, as ports and as 16 interrupt inputs.
#[derive(Clone, Debug)]
pub struct PicPair {
    master: Pic,
    slave: Pic,
}

/// ELCR bits that exist: IRQ 0, 1, 2, 8 and 13 are always edge-triggered.
const ELCR_MASTER: u8 = 0xf8;
const ELCR_SLAVE: u8 = 0xde;
const CASCADE: u8 = 1 << crate::layout::IRQ_CASCADE;

impl Default for PicPair {
    fn default() -> Self {
        Self::new()
    }
}

impl PicPair {
    /// Everything masked and edge-triggered, as firmware leaves it.
    pub fn new() -> Self {
        let mut pair = Self { master: Pic::new(), slave: Pic::new() };
        // The slave's INT output is a level; it may fall before the master is acknowledged.
        pair.master.level_triggered = CASCADE;
        pair
    }

    /// ISA IRQ `irq` (0..15); 2 is the cascade and ignored.
    pub fn set_line(&mut self, irq: u8, high: bool) {
        match irq {
            crate::layout::IRQ_CASCADE => return,
            0..8 => self.master.set_line(irq, high),
            8..16 => self.slave.set_line(irq - 8, high),
            _ => return,
        }
        self.cascade();
    }

    fn cascade(&mut self) {
        self.master.set_line(crate::layout::IRQ_CASCADE, self.slave.pending().is_some());
    }

    /// Whether `irq` would reach the INTR pin if it were raised.
    pub fn is_masked(&self, irq: u8) -> bool {
        match irq {
            0..8 => self.master.imr & (1 << irq) != 0,
            8..16 => self.master.imr & CASCADE != 0 || self.slave.imr & (1 << (irq - 8)) != 0,
            _ => true,
        }
    }

    /// The INTR output.
    pub fn interrupt(&self) -> bool {
        self.master.pending().is_some()
    }

    /// The INTA cycles: the vector of what is served now, or of the spurious IRQ 7 or 15.
    pub fn acknowledge(&mut self) -> u8 {
        let vector = match self.master.acknowledge() {
            Some(crate::layout::IRQ_CASCADE) => self.slave.base | self.slave.acknowledge().unwrap_or(7),
            Some(input) => self.master.base | input,
            None => self.master.base | 7,
        };
        self.cascade();
        vector
    }

    fn select(&mut self, which: PicSelect) -> &mut Pic {
        match which {
            PicSelect::Master => &mut self.master,
            PicSelect::Slave => &mut self.slave,
        }
    }

    /// Reads the command (offset 0) or data (offset 1) port.
    pub fn read(&mut self, which: PicSelect, offset: u64) -> u8 {
        let value = self.select(which).read(offset & 1 != 0);
        self.cascade();
        value
    }

    /// Writes the command (offset 0) or data (offset 1) port.
    pub fn write(&mut self, which: PicSelect, offset: u64, value: u8) {
        let pic = self.select(which);
        if offset & 1 == 0 {
            pic.write_command(value);
        } else {
            pic.write_data(value);
        }
        self.cascade();
    }

    /// Reads the ELCR of the master (offset 0) or slave (offset 1).
    pub fn read_elcr(&self, offset: u64) -> u8 {
        if offset & 1 == 0 { self.master.level_triggered & ELCR_MASTER } else { self.slave.level_triggered }
    }

    /// Writes the ELCR of the master (offset 0) or slave (offset 1).
    pub fn write_elcr(&mut self, offset: u64, value: u8) {
        if offset & 1 == 0 {
            self.master.level_triggered = value & ELCR_MASTER | CASCADE;
        } else {
            self.slave.level_triggered = value & ELCR_SLAVE;
        }
        self.cascade();
    }
}

#[cfg(test)]
mod tests {
    use super::{
        PicSelect::{Master, Slave},
        *,
    };

    /// As Linux's init_8259A(0) does, with everything unmasked afterwards.
    fn linux() -> PicPair {
        let mut pic = PicPair::new();
        pic.write(Master, 1, 0xff);
        for (which, base, wiring) in [(Master, 0x30, 0x04), (Slave, 0x38, 0x02)] {
            pic.write(which, 0, 0x11);
            pic.write(which, 1, base);
            pic.write(which, 1, wiring);
            pic.write(which, 1, 0x01);
        }
        pic.write(Master, 1, 0);
        pic.write(Slave, 1, 0);
        pic
    }

    #[test]
    fn the_probe_sees_a_mask_register() {
        // probe_8259A: write ~4 to the master's IMR and read it back.
        let mut pic = PicPair::new();
        pic.write(Slave, 1, 0xff);
        pic.write(Master, 1, 0xfb);
        assert_eq!(pic.read(Master, 1), 0xfb);
    }

    #[test]
    fn nothing_is_delivered_during_initialisation() {
        let mut pic = linux();
        pic.write(Master, 0, 0x11);
        pic.set_line(0, true);
        assert!(!pic.interrupt());
        for value in [0x30, 0x04, 0x01] {
            pic.write(Master, 1, value);
        }
        assert!(pic.interrupt(), "ICW1 clears the mask, and the edge came after it");
    }

    #[test]
    fn vectors_and_nesting() {
        let mut pic = linux();
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.set_line(5, true);
        assert!(!pic.interrupt(), "lower priority waits");
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x31);
        pic.write(Master, 0, 0x20);
        assert!(!pic.interrupt(), "the non-specific EOI ended IRQ 1, 4 is in service");
        pic.write(Master, 0, 0x64);
        assert_eq!(pic.acknowledge(), 0x35);
    }

    #[test]
    fn slave_through_cascade() {
        let mut pic = linux();
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x38);
        pic.write(Master, 0, 0x0b);
        pic.write(Slave, 0, 0x0b);
        assert_eq!((pic.read(Master, 0), pic.read(Slave, 0)), (0x04, 0x01));
        pic.set_line(12, true);
        pic.set_line(3, true);
        assert!(!pic.interrupt(), "IR2 in service blocks both");
        // Linux acknowledges the slave with a specific EOI, then IR2 at the master.
        pic.write(Slave, 0, 0x60);
        pic.write(Master, 0, 0x62);
        assert_eq!(pic.acknowledge(), 0x3c, "IR2 comes before IR3");
    }

    #[test]
    fn special_fully_nested_mode_lets_the_slave_nest() {
        let mut pic = linux();
        pic.write(Master, 0, 0x11);
        for value in [0x30, 0x04, 0x11] {
            pic.write(Master, 1, value);
        }
        pic.set_line(12, true);
        assert_eq!(pic.acknowledge(), 0x3c);
        pic.set_line(8, true);
        assert_eq!(pic.acknowledge(), 0x38);
    }

    #[test]
    fn spurious_interrupts() {
        let mut pic = linux();
        pic.write_elcr(0, 0xff);
        assert_eq!(pic.read_elcr(0), 0xf8);
        pic.set_line(5, true);
        assert!(pic.interrupt());
        pic.set_line(5, false);
        assert_eq!(pic.acknowledge(), 0x37);
        pic.write(Master, 0, 0x0b);
        assert_eq!(pic.read(Master, 0), 0, "a spurious interrupt is not in service: how Linux tells it");
    }

    #[test]
    fn level_requests_come_again_edges_do_not() {
        let mut pic = linux();
        pic.write_elcr(1, 0xff);
        assert_eq!(pic.read_elcr(1), 0xde);
        for (irq, again) in [(9, true), (8, false)] {
            pic.set_line(irq, true);
            assert_eq!(pic.acknowledge(), 0x30 + irq);
            pic.write(Slave, 0, 0x20);
            pic.write(Master, 0, 0x20);
            assert_eq!(pic.interrupt(), again, "IRQ {irq}");
            pic.set_line(irq, false);
        }
    }

    #[test]
    fn a_line_that_stays_high_is_one_edge() {
        let mut pic = linux();
        pic.set_line(3, true);
        pic.acknowledge();
        pic.set_line(3, true);
        pic.write(Master, 0, 0x20);
        assert!(!pic.interrupt());
    }

    #[test]
    fn a_slave_that_changes_its_mind_takes_the_cascade_down() {
        let mut pic = linux();
        pic.write_elcr(1, 0x02);
        pic.set_line(9, true);
        assert!(pic.interrupt());
        pic.set_line(9, false);
        assert!(!pic.interrupt());
    }

    #[test]
    fn auto_eoi_with_rotation() {
        let mut pic = linux();
        pic.write(Master, 0, 0x11);
        for value in [0x30, 0x04, 0x03] {
            pic.write(Master, 1, value);
        }
        pic.write(Master, 0, 0x80);
        pic.set_line(0, true);
        pic.set_line(1, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.set_line(0, false);
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x31, "IRQ 0 is the lowest now");
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn set_priority_and_rotating_eoi() {
        let mut pic = linux();
        pic.write(Master, 0, 0xc3); // IR3 lowest, so IR4 is highest
        pic.set_line(0, true);
        pic.set_line(4, true);
        assert_eq!(pic.acknowledge(), 0x34);
        pic.write(Master, 0, 0xa0); // rotate on non-specific EOI: IR4 becomes lowest
        pic.set_line(5, true);
        assert_eq!(pic.acknowledge(), 0x35);
        pic.write(Master, 0, 0xe5);
        assert_eq!(pic.acknowledge(), 0x30);
    }

    #[test]
    fn special_mask_mode_opens_lower_priorities() {
        let mut pic = linux();
        pic.set_line(0, true);
        assert_eq!(pic.acknowledge(), 0x30);
        pic.set_line(6, true);
        assert!(!pic.interrupt());
        pic.write(Master, 1, 0x01);
        assert!(!pic.interrupt());
        pic.write(Master, 0, 0x68);
        assert!(pic.interrupt());
        pic.write(Master, 0, 0x48);
        assert!(!pic.interrupt());
    }

    #[test]
    fn poll_acknowledges() {
        let mut pic = linux();
        pic.write(Master, 0, 0x0c);
        assert_eq!(pic.read(Master, 0), 0);
        pic.set_line(6, true);
        pic.write(Master, 0, 0x0c);
        assert_eq!(pic.read(Master, 0), 0x86);
        assert!(!pic.interrupt());
        assert_eq!(pic.read(Master, 0), 0, "a poll is for one read; this is IRR again");
    }
}
