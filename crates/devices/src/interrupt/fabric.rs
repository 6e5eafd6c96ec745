//! The interrupt controllers of a board and what connects them.
//!
//! Wires 0..15 reach the 8259 pair, and the IOAPIC pin of the same number except for wire 0, which is pin 2 (pin 2's
//! own wire is the cascade). The 8259 pair's INTR output goes to LINT0 of every local APIC, to IOAPIC pin 0, and,
//! where the local APIC is disabled, straight to the vCPU. Local APICs are a list indexed by vCPU: today's board has
//! one, but nothing here counts on it.

use memory::DeviceMemory;

use super::{
    ioapic::IoApic,
    lapic::{Illegal, LocalApic, Outgoing, Shorthand, Startup},
    message::{DeliveryMode, Message},
    pic::{PicPair, PicSelect},
    wires::{IrqLine, Wires},
};
use crate::layout::{
    GSI_PIT, IA32_APIC_BASE, IA32_TSC_DEADLINE, IOAPIC_ID, IRQ_CASCADE, IRQ_PIT, KVM_PV_EOI_EN,
};

/// Controllers and wires.
#[derive(Debug)]
pub struct InterruptFabric {
    wires: Wires,
    pics: PicPair,
    ioapic: IoApic,
    apics: Vec<LocalApic>,
}

impl InterruptFabric {
    /// Controllers for `vcpus` (at least one) vCPUs whose APIC IDs are their indices. The boot processor's local APIC
    /// is in virtual wire mode, as firmware hands it over.
    pub fn new(vcpus: usize) -> Self {
        let mut apics: Vec<_> = (0..vcpus.max(1) as u32).map(LocalApic::new).collect();
        apics[0].enter_virtual_wire_mode();
        Self { wires: Wires::default(), pics: PicPair::new(), ioapic: IoApic::new(IOAPIC_ID), apics }
    }

    /// A new driver for an ISA IRQ or, from 16 on, a global system interrupt.
    pub fn line(&self, number: u8) -> IrqLine {
        self.wires.line(number)
    }

    /// Where EOIs by a store go, for guests that ask for it; without, KVM_PV_EOI_EN does not exist.
    pub fn connect_memory(&mut self, memory: &DeviceMemory) {
        for apic in &mut self.apics {
            apic.connect_memory(memory.clone());
        }
    }

    /// The local APIC of a vCPU.
    pub fn apic(&self, vcpu: usize) -> &LocalApic {
        &self.apics[vcpu]
    }

    /// The local APIC of a vCPU.
    pub fn apic_mut(&mut self, vcpu: usize) -> &mut LocalApic {
        &mut self.apics[vcpu]
    }

    /// Whether an interrupt on `wire` would get anywhere. Of no use to devices: it is for the board, which need not
    /// wake a halted vCPU for a timer that nobody listens to.
    pub fn is_heard(&self, wire: u8) -> bool {
        let pin = if wire == IRQ_PIT { GSI_PIT } else { wire };
        !self.pics.is_masked(wire) || !self.ioapic.is_masked(pin)
    }

    /// Carries what devices did to their lines into the controllers.
    #[inline]
    pub fn settle(&mut self) {
        while let Some(changes) = self.wires.drain() {
            let mut left = changes.changed;
            while left != 0 {
                let wire = left.trailing_zeros() as u8;
                left &= left - 1;
                let bit = 1 << wire;
                if changes.risen & bit != 0 {
                    // The line may have been high before: it fell in between, or it would not have risen.
                    self.set_input(wire, false);
                    self.set_input(wire, true);
                }
                self.set_input(wire, changes.high & bit != 0);
            }
            self.pics_changed();
        }
    }

    fn set_input(&mut self, wire: u8, high: bool) {
        if wire == IRQ_CASCADE {
            return;
        }
        self.pics.set_line(wire, high);
        let pin = if wire == IRQ_PIT { GSI_PIT } else { wire };
        if let Some(message) = self.ioapic.set_line(pin, high) {
            self.send(&message);
        }
    }

    /// Passes the 8259 pair's INTR output on.
    fn pics_changed(&mut self) {
        let high = self.pics.interrupt();
        for apic in &mut self.apics {
            apic.set_lint0(high);
        }
        if let Some(message) = self.ioapic.set_line(0, high) {
            self.send(&message);
        }
    }

    /// Delivers a message: from the IOAPIC, or an MSI.
    pub fn send(&mut self, message: &Message) {
        if message.mode == DeliveryMode::LowestPriority {
            let candidates = self
                .apics
                .iter_mut()
                .filter(|apic| apic.is_destination(message) && apic.is_software_enabled());
            if let Some(apic) = candidates.min_by_key(|apic| apic.cr8()) {
                apic.receive(message);
            }
            return;
        }
        for apic in self.apics.iter_mut().filter(|apic| apic.is_destination(message)) {
            apic.receive(message);
        }
    }

    fn carry(&mut self, vcpu: usize, outgoing: Outgoing) {
        match outgoing {
            Outgoing::EndOfInterrupt(vector) => {
                self.with_ioapic(|ioapic, send| ioapic.end_of_interrupt(vector, send))
            }
            Outgoing::Ipi { to: Shorthand::None, message } => self.send(&message),
            Outgoing::Ipi { to, message } => {
                for (index, apic) in self.apics.iter_mut().enumerate().filter(|(_, apic)| apic.is_enabled()) {
                    let addressed = match to {
                        Shorthand::Itself => index == vcpu,
                        Shorthand::Others => index != vcpu,
                        Shorthand::All | Shorthand::None => true,
                    };
                    if addressed {
                        apic.receive(&message);
                    }
                }
            }
        }
    }

    /// KVM_HC_SEND_IPI (Documentation/virt/kvm/x86/hypercalls.rst): sends what `command` has, as an ICR without destination, to the APIC
    /// IDs `first` + n for every bit n of `set`. How many took it.
    pub fn send_ipi(&mut self, set: u128, first: u32, command: u64) -> Result<u64, Illegal> {
        const DESTINATION: u64 = 1 << 11 | 3 << 18;
        if command & DESTINATION != 0 {
            return Err(Illegal);
        }
        let message = Message {
            destination: 0,
            logical: false,
            mode: DeliveryMode::from_bits(command as u32 >> 8),
            vector: command as u8,
            level_triggered: command & 1 << 15 != 0,
        };
        let mut sent = 0;
        for apic in self.apics.iter_mut().filter(|apic| apic.is_enabled()) {
            let bit = apic.id().checked_sub(first);
            if bit.is_some_and(|bit| bit < u128::BITS && set >> bit & 1 != 0) {
                apic.receive(&message);
                sent += 1;
            }
        }
        Ok(sent)
    }

    /// Takes notice of an EOI that a vCPU's guest has made by a store. To be called after each exit, before anything else.
    #[inline]
    pub fn collect_eoi(&mut self, vcpu: usize) {
        if let Some(outgoing) = self.apics[vcpu].collect_eoi() {
            self.carry(vcpu, outgoing);
        }
    }

    /// Lets a vCPU's guest make its next EOI by a store, if nothing depends on it. To be called before each entry, last.
    #[inline]
    pub fn offer_eoi(&mut self, vcpu: usize) {
        self.apics[vcpu].offer_eoi();
    }

    /// Runs something on the IOAPIC and delivers what it sends: at most one message a pin.
    fn with_ioapic(&mut self, run: impl FnOnce(&mut IoApic, &mut dyn FnMut(Message))) {
        let mut sent = [None; crate::layout::IOAPIC_PINS];
        let mut count = 0;
        run(&mut self.ioapic, &mut |message| {
            if let Some(slot) = sent.get_mut(count) {
                *slot = Some(message);
                count += 1;
            }
        });
        for message in sent.iter().flatten() {
            self.send(message);
        }
    }

    /// Reads a port of the 8259 pair.
    pub fn read_pic(&mut self, which: PicSelect, offset: u64) -> u8 {
        let value = self.pics.read(which, offset);
        self.pics_changed();
        value
    }

    /// Writes a port of the 8259 pair.
    pub fn write_pic(&mut self, which: PicSelect, offset: u64, value: u8) {
        self.pics.write(which, offset, value);
        self.pics_changed();
    }

    /// Reads an edge/level control register.
    pub fn read_elcr(&self, offset: u64) -> u8 {
        self.pics.read_elcr(offset)
    }

    /// Writes an edge/level control register.
    pub fn write_elcr(&mut self, offset: u64, value: u8) {
        self.pics.write_elcr(offset, value);
        self.pics_changed();
    }

    /// Reads the IOAPIC's page.
    pub fn read_ioapic(&self, offset: u64) -> u32 {
        self.ioapic.read(offset)
    }

    /// Writes the IOAPIC's page.
    pub fn write_ioapic(&mut self, offset: u64, value: u32) {
        self.with_ioapic(|ioapic, send| ioapic.write(offset, value, send));
    }

    /// Reads a vCPU's own xAPIC page.
    pub fn read_apic(&mut self, vcpu: usize, offset: u64, now: u64) -> u32 {
        self.apics[vcpu].read_mmio(offset, now)
    }

    /// Writes a vCPU's own xAPIC page.
    pub fn write_apic(&mut self, vcpu: usize, offset: u64, value: u32, now: u64) {
        if let Some(outgoing) = self.apics[vcpu].write_mmio(offset, value, now) {
            self.carry(vcpu, outgoing);
        }
    }

    /// Reads an MSR of the local APIC; all others are refused.
    pub fn read_msr(&mut self, vcpu: usize, index: u32, now: u64) -> Result<u64, Illegal> {
        let apic = &mut self.apics[vcpu];
        match index {
            IA32_APIC_BASE => Ok(apic.base()),
            IA32_TSC_DEADLINE => Ok(apic.tsc_deadline(now)),
            KVM_PV_EOI_EN => apic.pv_eoi_register(),
            _ => apic.read_msr(index, now),
        }
    }

    /// Writes an MSR of the local APIC; all others are refused.
    pub fn write_msr(&mut self, vcpu: usize, index: u32, value: u64, now: u64) -> Result<(), Illegal> {
        let apic = &mut self.apics[vcpu];
        match index {
            IA32_APIC_BASE => apic.set_base(value)?,
            IA32_TSC_DEADLINE => apic.set_tsc_deadline(value, now),
            KVM_PV_EOI_EN => apic.set_pv_eoi_register(value)?,
            _ => {
                if let Some(outgoing) = apic.write_msr(index, value, now)? {
                    self.carry(vcpu, outgoing);
                }
            }
        }
        Ok(())
    }

    /// Whether a vCPU has an external interrupt to take.
    #[inline]
    pub fn pending(&self, vcpu: usize) -> bool {
        let apic = &self.apics[vcpu];
        apic.pending().is_some() || apic.has_ext_int() || (self.pics.interrupt() && apic.accepts_ext_int())
    }

    /// A vCPU takes its interrupt: the local APIC's, else that of the 8259 pair.
    pub fn acknowledge(&mut self, vcpu: usize) -> Option<u8> {
        let apic = &mut self.apics[vcpu];
        if let Some(vector) = apic.acknowledge() {
            return Some(vector);
        }
        if !(apic.has_ext_int() || self.pics.interrupt() && apic.accepts_ext_int()) {
            return None;
        }
        apic.clear_ext_int();
        let vector = self.pics.acknowledge();
        self.pics_changed();
        Some(vector)
    }

    /// A pulse on the board's NMI line, LINT1 of every local APIC.
    pub fn pulse_nmi(&mut self) {
        for apic in &mut self.apics {
            apic.set_lint1(true);
            apic.set_lint1(false);
        }
    }

    /// What INIT and start-up IPIs ask of a vCPU.
    pub fn take_startup(&mut self, vcpu: usize) -> Startup {
        self.apics[vcpu].take_startup()
    }

    /// When the next local APIC timer fires.
    pub fn next_deadline(&self, now: u64) -> Option<u64> {
        self.apics.iter().filter_map(|apic| apic.next_deadline(now)).min()
    }

    /// Fires the local APIC timers that are due.
    #[inline]
    pub fn advance(&mut self, now: u64) {
        for apic in &mut self.apics {
            apic.advance(now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::LOCAL_APIC;

    /// Two vCPUs with software-enabled local APICs, flat logical IDs 1 and 2.
    fn two() -> InterruptFabric {
        let mut fabric = InterruptFabric::new(2);
        for vcpu in 0..2 {
            fabric.write_apic(vcpu, 0xf0, 0x1ff, 0);
            fabric.write_apic(vcpu, 0xd0, 0x0100_0000 << vcpu, 0);
        }
        fabric
    }

    fn message(mode: DeliveryMode, destination: u32) -> Message {
        Message { destination, logical: true, mode, vector: 0x41, level_triggered: false }
    }

    fn pending(fabric: &InterruptFabric) -> [bool; 2] {
        [fabric.pending(0), fabric.pending(1)]
    }

    #[test]
    fn the_lowest_priority_gets_it() {
        for (busy, expected) in [(0, [false, true]), (1, [true, false])] {
            let mut fabric = two();
            fabric.apic_mut(busy).set_cr8(3);
            fabric.send(&message(DeliveryMode::LowestPriority, 3));
            assert_eq!(pending(&fabric), expected);
        }
        let mut fabric = two();
        fabric.write_apic(0, 0xf0, 0xff, 0);
        fabric.send(&message(DeliveryMode::LowestPriority, 3));
        assert_eq!(pending(&fabric), [false, true], "not to one that is software-disabled");
        let mut fabric = two();
        fabric.send(&message(DeliveryMode::Fixed, 3));
        assert_eq!(pending(&fabric), [true, true]);
    }

    #[test]
    fn shorthands() {
        for (command, expected) in
            [(0x40041, [true, false]), (0x80041, [true, true]), (0xc0041, [false, true])]
        {
            let mut fabric = two();
            fabric.write_apic(0, 0x300, command, 0);
            assert_eq!(pending(&fabric), expected, "{command:#x}");
        }
    }

    #[test]
    fn ipis_to_a_set() {
        for (set, first, expected) in [
            (0b01, 0, [true, false]),
            (0b10, 0, [false, true]),
            (0b11, 0, [true, true]),
            (0b11, 1, [false, true]),
            (u128::MAX, 2, [false, false]),
            (1 << 127 | 1 << 64, 0, [false, false]),
            (u128::MAX, u32::MAX, [false, false]),
        ] {
            let mut fabric = two();
            let count = expected.iter().filter(|&&taken| taken).count() as u64;
            assert_eq!(fabric.send_ipi(set, first, 0x41), Ok(count), "{set:#x} {first}");
            assert_eq!(pending(&fabric), expected, "{set:#x} {first}");
        }
        let mut fabric = two();
        for command in [0x40041, 0x80041, 0xc0041, 0x841] {
            assert_eq!(fabric.send_ipi(3, 0, command), Err(Illegal), "{command:#x}");
        }
        assert_eq!(fabric.send_ipi(2, 0, 0x400), Ok(1));
        assert!(fabric.apic(1).has_nmi() && !fabric.apic(0).has_nmi());
    }

    #[test]
    fn another_processor_is_started() {
        let mut fabric = two();
        fabric.write_apic(0, 0x310, 0x0100_0000, 0);
        fabric.write_apic(0, 0x300, 0x4500, 0);
        fabric.write_apic(0, 0x300, 0x469a, 0);
        assert_eq!(fabric.take_startup(1), Startup { init: true, sipi: Some(0x9a) });
        assert_eq!(fabric.take_startup(0), Startup::default());
        assert_eq!(fabric.apic(1).base(), LOCAL_APIC | 0x800, "INIT leaves IA32_APIC_BASE alone");
    }
}
