//! The board's devices, at their standard addresses: what a vCPU's exits are answered from.
//!
//! [`Chipset`] owns everything, so the board needs one lock at most (it is `Send`). An access first brings the devices
//! up to the present, then goes through the bus to its device, and last carries interrupt lines into the controllers;
//! what that means for the vCPU is asked afterwards with [`Chipset::pending_interrupt`] and its like.
//!
//! The board's loop: `advance(clock.now())`; if `pending_interrupt()` and the vCPU is ready, `acknowledge_interrupt()`
//! and enter with it, after `offer_eoi()`; on a halt sleep until `next_deadline()` or a kick; after each exit first
//! `collect_eoi()`, and look at `power_event()`.
//! Threads that drive an [`IrqLine`] kick the vCPU, whose `advance` then sees the line.
//!
//! CR8 and the local APIC's task priority are one register in two places: the board calls `set_tpr` with CR8 before it
//! asks for interrupts and takes `tpr` back into CR8 after MMIO and MSR writes.

mod ports;
#[cfg(test)]
mod tests;

use std::time::Duration;

use memory::{DeviceMemory, GuestPhys};
use vcpu::Clock;

use self::ports::PortTarget;
pub use crate::power::PowerEvent;
use crate::{
    acpi_pm::AcpiPm,
    bus::{Bus, BusError, Device, truncate},
    debug_ports::DebugPorts,
    i8042::I8042,
    interrupt::{InterruptFabric, IrqLine, Message, lapic::Startup},
    layout::{self, IRQ_KEYBOARD, IRQ_PIT, IRQ_RTC, IRQ_SCI, IRQ_UART},
    pci::PciRoot,
    pit::Pit,
    power::PowerControl,
    rtc::Rtc,
    time::earliest,
    uart::{Sink, Uart},
};

/// The vCPU whose local APIC the methods without an index mean; there is one vCPU today.
const BOOT_PROCESSOR: usize = 0;

/// What differs between boards.
pub struct ChipsetConfig {
    /// Local APICs, at least one.
    pub vcpus: usize,
    /// UTC at time zero of the machine's clock, since 1970.
    pub utc: Duration,
    /// Output of the serial port.
    pub console: Sink,
    /// Output of the debug console (port 0xe9); `None`: there is none.
    pub debug_console: Option<Sink>,
    /// Whether a write to port 0xf4 ends the machine.
    pub debug_exit: bool,
    /// Guest memory, for the paravirtual EOI; `None`: there is none.
    pub memory: Option<DeviceMemory>,
}

impl ChipsetConfig {
    /// One vCPU, the host's time of day, debug exit but no debug console, no paravirtual EOI.
    pub fn new(console: Sink) -> Self {
        let utc = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { vcpus: 1, utc, console, debug_console: None, debug_exit: true, memory: None }
    }
}

/// The MSR access is refused: #GP(0).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such MSR, or no such value for it")]
pub struct Refused;

/// Who answers a range of physical addresses. The local APIC's page is not among them: it can be moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum MmioTarget {
    IoApic,
    Attached(usize),
}

/// All devices of a board.
pub struct Chipset {
    clock: Clock,
    /// The latest time that devices have seen; never goes back.
    now: u64,
    /// When the next device other than a local APIC is due.
    due: Option<u64>,
    ports: Bus<PortTarget>,
    mmio: Bus<MmioTarget>,
    interrupts: InterruptFabric,
    pit: Pit,
    rtc: Rtc,
    uart: Uart,
    i8042: I8042,
    acpi_pm: AcpiPm,
    pci: PciRoot,
    debug: DebugPorts,
    power: PowerControl,
    attached: Vec<Box<dyn Device>>,
}

impl Chipset {
    /// A board after firmware: interrupts masked, virtual wire mode, clocks running.
    pub fn new(clock: Clock, config: ChipsetConfig) -> Self {
        let mut interrupts = InterruptFabric::new(config.vcpus);
        if let Some(memory) = &config.memory {
            interrupts.connect_memory(memory);
        }
        let mut mmio = Bus::new(u64::MAX);
        let claimed = mmio.claim(layout::IOAPIC, layout::IOAPIC_LENGTH, 4, MmioTarget::IoApic);
        debug_assert_eq!(claimed, Ok(()));
        Self {
            now: clock.now(),
            due: None,
            ports: ports::standard(config.debug_console.is_some(), config.debug_exit),
            mmio,
            pit: Pit::new(interrupts.line(IRQ_PIT)),
            rtc: Rtc::new(interrupts.line(IRQ_RTC), config.utc),
            uart: Uart::new(interrupts.line(IRQ_UART), config.console),
            i8042: I8042::new(interrupts.line(IRQ_KEYBOARD)),
            acpi_pm: AcpiPm::new(interrupts.line(IRQ_SCI)),
            pci: PciRoot::default(),
            debug: DebugPorts::new(config.debug_console, config.debug_exit),
            power: PowerControl::default(),
            attached: Vec::new(),
            interrupts,
            clock,
        }
    }

    /// Hangs another device on the port bus; it sees accesses of at most `widest` bytes.
    pub fn attach_ports(
        &mut self,
        first: u16,
        length: u16,
        widest: u8,
        device: Box<dyn Device>,
    ) -> Result<(), BusError> {
        let target = PortTarget::Attached(self.attached.len());
        self.ports.claim(u64::from(first), u64::from(length), widest, target)?;
        self.attached.push(device);
        self.settle();
        Ok(())
    }

    /// Hangs another device on the memory bus; it sees accesses of at most `widest` bytes.
    pub fn attach_mmio(
        &mut self,
        first: GuestPhys,
        length: u64,
        widest: u8,
        device: Box<dyn Device>,
    ) -> Result<(), BusError> {
        let taken = layout::LOCAL_APIC;
        if first.0 < taken + layout::LOCAL_APIC_LENGTH && taken < first.0.saturating_add(length) {
            let taken_length = layout::LOCAL_APIC_LENGTH;
            return Err(BusError::Overlap { first: first.0, length, taken, taken_length });
        }
        self.mmio.claim(first.0, length, widest, MmioTarget::Attached(self.attached.len()))?;
        self.attached.push(device);
        self.settle();
        Ok(())
    }

    /// A new driver for an interrupt line: ISA IRQs 0..15, IOAPIC-only inputs 16..23. Of use from any thread.
    pub fn line(&self, number: u8) -> IrqLine {
        self.interrupts.line(number)
    }

    /// Sends a message-signalled interrupt; addresses that are no local APIC's are ignored.
    pub fn send_msi(&mut self, address: u64, data: u32) {
        if let Some(message) = Message::from_msi(address, data) {
            self.interrupts.send(&message);
        }
    }

    /// IN of 1, 2 or 4 bytes.
    pub fn port_read(&mut self, port: u16, size: u8) -> u32 {
        let now = self.catch_up();
        let mut value = 0;
        for piece in self.ports.route(u64::from(port), size).iter() {
            let answer = match piece.target {
                Some((target, offset)) => self.read_port_target(target, offset, piece.size, now),
                None => u64::MAX,
            };
            value |= truncate(answer, piece.size) << (8 * piece.at);
        }
        self.settle();
        value as u32
    }

    /// OUT of 1, 2 or 4 bytes.
    pub fn port_write(&mut self, port: u16, size: u8, value: u32) {
        let now = self.catch_up();
        for piece in self.ports.route(u64::from(port), size).iter() {
            if let Some((target, offset)) = piece.target {
                let value = truncate(u64::from(value) >> (8 * piece.at.min(3)), piece.size);
                self.write_port_target(target, offset, piece.size, value, now);
            }
        }
        self.settle();
    }

    /// The offset into the local APIC's page, if `address` is in it.
    fn apic_offset(&self, address: GuestPhys) -> Option<u64> {
        let base = self.interrupts.apic(BOOT_PROCESSOR).mmio_base()?;
        (address.page().0 == base).then(|| address.page_offset())
    }

    /// A load of 1, 2, 4 or 8 bytes from an address without RAM.
    pub fn mmio_read(&mut self, address: GuestPhys, size: u8) -> u64 {
        let now = self.catch_up();
        if let Some(offset) = self.apic_offset(address) {
            let register = u64::from(self.interrupts.read_apic(BOOT_PROCESSOR, offset & !3, now));
            return truncate(register >> (8 * (offset & 3)), size);
        }
        let mut value = 0;
        for piece in self.mmio.route(address.0, size).iter() {
            let answer = match piece.target {
                Some((MmioTarget::IoApic, offset)) => {
                    u64::from(self.interrupts.read_ioapic(offset)) >> (8 * (offset & 3))
                }
                Some((MmioTarget::Attached(index), offset)) => match self.attached.get_mut(index) {
                    Some(device) => device.read(offset, piece.size, now),
                    None => u64::MAX,
                },
                None => u64::MAX,
            };
            value |= truncate(answer, piece.size) << (8 * piece.at);
        }
        self.settle();
        value
    }

    /// A store of 1, 2, 4 or 8 bytes to an address without RAM.
    pub fn mmio_write(&mut self, address: GuestPhys, size: u8, value: u64) {
        let now = self.catch_up();
        if let Some(offset) = self.apic_offset(address) {
            // Registers are 32 bits; narrower stores are undefined (SDM Vol. 3A 11.4.1) and do nothing here.
            if size >= 4 {
                self.interrupts.write_apic(BOOT_PROCESSOR, offset, value as u32, now);
            }
            return;
        }
        for piece in self.mmio.route(address.0, size).iter() {
            let value = truncate(value >> (8 * piece.at), piece.size);
            match piece.target {
                // Narrow stores reach the low bits only; drivers use them for the index register.
                Some((MmioTarget::IoApic, offset)) if offset & 3 == 0 => {
                    self.interrupts.write_ioapic(offset, value as u32);
                }
                Some((MmioTarget::Attached(index), offset)) => {
                    if let Some(device) = self.attached.get_mut(index) {
                        device.write(offset, piece.size, value, now);
                    }
                }
                _ => {}
            }
        }
        self.settle();
    }

    /// RDMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE, KVM_PV_EOI_EN or an x2APIC register; all others are refused.
    pub fn msr_read(&mut self, index: u32) -> Result<u64, Refused> {
        let now = self.catch_up();
        self.interrupts.read_msr(BOOT_PROCESSOR, index, now).map_err(|_| Refused)
    }

    /// WRMSR of IA32_APIC_BASE, IA32_TSC_DEADLINE, KVM_PV_EOI_EN or an x2APIC register; all others are refused.
    pub fn msr_write(&mut self, index: u32, value: u64) -> Result<(), Refused> {
        let now = self.catch_up();
        self.interrupts.write_msr(BOOT_PROCESSOR, index, value, now).map_err(|_| Refused)
    }

    /// KVM_HC_SEND_IPI: a message for the APIC IDs `first` + n, n being the bits of `set`; how many took it.
    pub fn send_ipi(&mut self, set: u128, first: u32, command: u64) -> Result<u64, Refused> {
        self.catch_up();
        self.interrupts.send_ipi(set, first, command).map_err(|_| Refused)
    }

    /// Takes notice of an EOI that the guest has made by a store: to be called after each exit, before anything else.
    #[inline]
    pub fn collect_eoi(&mut self) {
        self.interrupts.collect_eoi(BOOT_PROCESSOR);
    }

    /// Lets the guest make its next EOI by a store, if nothing depends on it: to be called before each entry, last.
    #[inline]
    pub fn offer_eoi(&mut self) {
        self.interrupts.offer_eoi(BOOT_PROCESSOR);
    }

    /// Whether there is an external interrupt for the vCPU, priorities considered and RFLAGS.IF not.
    #[inline]
    pub fn pending_interrupt(&self) -> bool {
        self.interrupts.pending(BOOT_PROCESSOR)
    }

    /// The vCPU takes its interrupt: the vector, or `None` if there is none (any more).
    pub fn acknowledge_interrupt(&mut self) -> Option<u8> {
        self.interrupts.acknowledge(BOOT_PROCESSOR)
    }

    /// Whether there is an NMI for the vCPU.
    #[inline]
    pub fn pending_nmi(&self) -> bool {
        self.interrupts.apic(BOOT_PROCESSOR).has_nmi()
    }

    /// The vCPU takes its NMI.
    pub fn acknowledge_nmi(&mut self) -> bool {
        self.interrupts.apic_mut(BOOT_PROCESSOR).take_nmi()
    }

    /// An NMI from outside, for debugging; port 0x70 can mask it.
    pub fn inject_nmi(&mut self) {
        if !self.rtc.is_nmi_masked() {
            self.interrupts.pulse_nmi();
        }
    }

    /// INIT and start-up IPIs that the vCPU has received.
    pub fn take_startup(&mut self) -> Startup {
        self.interrupts.take_startup(BOOT_PROCESSOR)
    }

    /// CR8 as the guest left it.
    #[inline]
    pub fn set_tpr(&mut self, cr8: u8) {
        self.interrupts.apic_mut(BOOT_PROCESSOR).set_cr8(cr8);
    }

    /// The task priority class, for CR8.
    #[inline]
    pub fn tpr(&self) -> u8 {
        self.interrupts.apic(BOOT_PROCESSOR).cr8()
    }

    /// Guest TSC minus the machine's clock, wrapping (`CpuState::msrs.tsc_offset`), for TSC deadlines.
    pub fn set_tsc_offset(&mut self, offset: u64) {
        self.interrupts.apic_mut(BOOT_PROCESSOR).set_tsc_offset(offset);
    }

    /// Queues console input; returns how many bytes were taken. Offer the rest again later.
    pub fn push_console_input(&mut self, bytes: &[u8]) -> usize {
        let taken = self.uart.push_input(bytes);
        self.settle();
        taken
    }

    /// How many bytes of console input would be taken now.
    pub fn console_input_room(&self) -> usize {
        self.uart.input_room()
    }

    /// Hands waiting console output to its sink: before a long sleep, and at the end.
    pub fn flush_console(&mut self) {
        self.uart.flush();
        self.debug.flush();
    }

    /// The console sink's first failure since the last call.
    pub fn take_console_error(&mut self) -> Option<std::io::Error> {
        self.uart.take_output_error()
    }

    /// Presses the ACPI power button.
    pub fn press_power_button(&mut self) {
        self.acpi_pm.press_power_button();
        self.settle();
    }

    /// Takes what the guest asked of the machine as a whole.
    pub fn power_event(&mut self) -> Option<PowerEvent> {
        self.power.take()
    }

    /// The last POST code.
    pub fn post_code(&self) -> u8 {
        self.debug.post_code()
    }

    /// Sets a byte of CMOS RAM, as firmware does.
    pub fn set_cmos(&mut self, index: u8, value: u8) {
        self.rtc.set_cmos(index, value);
    }

    /// When something happens by itself next that the vCPU or the host would notice, in nanoseconds of the clock.
    pub fn next_deadline(&self) -> Option<u64> {
        let pit = if self.interrupts.is_heard(IRQ_PIT) { self.pit.next_deadline() } else { None };
        earliest(earliest(pit, self.next_apart_from_pit()), self.interrupts.next_deadline(self.now))
    }

    fn next_apart_from_pit(&self) -> Option<u64> {
        let attached = self.attached.iter().filter_map(|device| device.next_deadline()).min();
        [
            self.rtc.next_deadline(),
            self.acpi_pm.next_deadline(),
            self.uart.next_deadline(),
            self.debug.next_deadline(),
        ]
        .into_iter()
        .fold(attached, earliest)
    }

    /// Brings every device up to `now`. Call it before asking for interrupts.
    pub fn advance(&mut self, now: u64) {
        self.now = self.now.max(now);
        let now = self.now;
        self.interrupts.advance(now);
        if self.due.is_some_and(|due| due <= now) {
            self.pit.advance(now);
            self.rtc.advance(now);
            self.acpi_pm.advance(now);
            self.uart.advance(now);
            self.debug.advance(now);
            for device in &mut self.attached {
                device.advance(now);
            }
            self.due = earliest(self.pit.next_deadline(), self.next_apart_from_pit());
        }
        self.interrupts.settle();
    }

    fn catch_up(&mut self) -> u64 {
        self.advance(self.clock.now());
        self.now
    }

    /// After an access: lines into controllers, and when somebody is due again.
    fn settle(&mut self) {
        self.interrupts.settle();
        self.due = earliest(self.pit.next_deadline(), self.next_apart_from_pit());
    }
}

impl std::fmt::Debug for Chipset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Chipset")
            .field("now", &self.now)
            .field("interrupts", &self.interrupts)
            .finish_non_exhaustive()
    }
}
