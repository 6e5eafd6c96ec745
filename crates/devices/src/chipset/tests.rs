//! Devices, wires and controllers together, through ports, MMIO and MSRs only.

use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
};

use super::*;
use crate::layout::{
    IA32_APIC_BASE, IA32_TSC_DEADLINE, IOAPIC, LOCAL_APIC, PCI_CONFIG_ADDRESS, PCI_CONFIG_DATA, PIC_MASTER,
    PIC_SLAVE, PIT, PM_TIMER, PM1A_CONTROL, PM1A_EVENT, RESET, RESET_VALUE, RTC, UART,
};

#[derive(Clone, Default)]
struct Capture(Arc<Mutex<Vec<u8>>>);

impl Write for Capture {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

struct Board {
    clock: Clock,
    chipset: Chipset,
    console: Capture,
}

impl Board {
    fn new() -> Self {
        let (clock, console) = (Clock::manual(), Capture::default());
        let config =
            ChipsetConfig { utc: Duration::from_secs(1), ..ChipsetConfig::new(Box::new(console.clone())) };
        Self { chipset: Chipset::new(clock.clone(), config), clock, console }
    }

    fn out(&mut self, port: u16, values: &[u8]) -> &mut Self {
        values.iter().for_each(|value| self.chipset.port_write(port, 1, u32::from(*value)));
        self
    }

    /// As Linux programs the pair, all inputs open.
    fn with_pics(mut self) -> Self {
        for (port, base, wiring) in [(PIC_MASTER, 0x30, 4), (PIC_SLAVE, 0x38, 2)] {
            self.out(port, &[0x11]).out(port + 1, &[base, wiring, 1, 0]);
        }
        self
    }

    /// Software-enables the local APIC and masks LINT0, as Linux does for I/O APIC mode.
    fn with_apic(mut self) -> Self {
        self.apic_write(0xf0, 0x1ff);
        self.apic_write(0x350, 0x10700);
        self
    }

    fn apic_write(&mut self, register: u64, value: u32) {
        self.chipset.mmio_write(GuestPhys(LOCAL_APIC + register), 4, u64::from(value));
    }

    fn apic_read(&mut self, register: u64) -> u32 {
        self.chipset.mmio_read(GuestPhys(LOCAL_APIC + register), 4) as u32
    }

    fn ioapic_write(&mut self, index: u8, value: u32) {
        self.chipset.mmio_write(GuestPhys(IOAPIC), 4, u64::from(index));
        self.chipset.mmio_write(GuestPhys(IOAPIC + 0x10), 4, u64::from(value));
    }

    fn sleep(&mut self, nanoseconds: u64) -> &mut Self {
        self.clock.advance(nanoseconds);
        self.chipset.advance(self.clock.now());
        self
    }

    /// Sleeps until the next deadline and returns the vector that it brings.
    fn wake(&mut self) -> Option<u8> {
        let deadline = self.chipset.next_deadline()?;
        self.sleep(deadline.saturating_sub(self.clock.now()));
        self.chipset.acknowledge_interrupt()
    }
}

#[test]
fn the_timer_reaches_the_vcpu_through_the_virtual_wire() {
    let mut board = Board::new().with_pics();
    board.out(PIT + 3, &[0x34]).out(PIT, &[0x9c, 0x2e]); // 100 Hz
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x30), "OUT rose with the control word");
    board.out(PIC_MASTER, &[0x20]);
    for _ in 0..3 {
        let before = board.clock.now();
        assert_eq!(board.wake(), Some(0x30));
        assert!((9_990_000..10_010_000).contains(&(board.clock.now() - before)));
        assert!(!board.chipset.pending_interrupt());
        board.out(PIC_MASTER, &[0x20]);
    }
    board.out(PIC_MASTER + 1, &[0x01]);
    assert_eq!(board.chipset.next_deadline(), None, "nobody listens: a halted guest sleeps");
}

#[test]
fn without_an_apic_the_pics_are_wired_to_the_vcpu() {
    let mut board = Board::new().with_pics();
    board.chipset.msr_write(IA32_APIC_BASE, LOCAL_APIC | 0x100).unwrap();
    assert_eq!(board.apic_read(0x30), u32::MAX, "the page is gone");
    let mut line = board.chipset.line(5);
    line.set(true);
    board.sleep(0);
    assert!(board.chipset.pending_interrupt());
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x35));
}

#[test]
fn irq_0_is_ioapic_pin_2() {
    let mut board = Board::new().with_apic();
    board.ioapic_write(0x14, 0x31);
    board.out(PIT + 3, &[0x34]).out(PIT, &[0x9c, 0x2e]);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x31));
    board.apic_write(0xb0, 0);
    assert_eq!(board.wake(), Some(0x31));
}

#[test]
fn a_level_interrupt_is_sent_again_after_its_eoi() {
    let mut board = Board::new().with_apic();
    board.ioapic_write(0x10 + 2 * 9, 0x8041);
    board.chipset.port_write(PM1A_EVENT + 2, 2, 0x100);
    board.chipset.press_power_button();
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x41));
    assert_eq!(board.chipset.acknowledge_interrupt(), None);
    board.apic_write(0xb0, 0);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x41), "the button's status is still set");
    board.chipset.port_write(PM1A_EVENT, 2, 0x100);
    board.apic_write(0xb0, 0);
    assert_eq!(board.chipset.acknowledge_interrupt(), None);
}

#[test]
fn ext_int_through_the_ioapic() {
    let mut board = Board::new().with_pics().with_apic();
    board.ioapic_write(0x10, 0x700);
    let mut line = board.chipset.line(3);
    line.set(true);
    board.sleep(0);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x33));
    assert!(!board.chipset.pending_interrupt());
}

#[test]
fn nmi_through_the_ioapic_and_from_outside() {
    let mut board = Board::new().with_apic();
    board.ioapic_write(0x10 + 2 * 7, 0x400);
    board.chipset.line(7).set(true);
    board.sleep(0);
    assert!(board.chipset.pending_nmi() && board.chipset.acknowledge_nmi() && !board.chipset.pending_nmi());
    board.out(RTC, &[0x80]);
    board.chipset.inject_nmi();
    assert!(!board.chipset.pending_nmi(), "masked at port 0x70");
    board.out(RTC, &[0x00]);
    board.chipset.inject_nmi();
    assert!(board.chipset.pending_nmi());
}

#[test]
fn linux_takes_over_in_x2apic_mode() {
    let mut board = Board::new();
    board.chipset.msr_write(IA32_APIC_BASE, LOCAL_APIC | 0xd00).unwrap();
    assert_eq!(board.apic_read(0x30), u32::MAX);
    assert_eq!(board.chipset.msr_read(0x803), Ok(0x50014));
    board.chipset.msr_write(0x80f, 0x1ff).unwrap();
    board.chipset.msr_write(0x832, 0x400ec).unwrap();
    board.chipset.set_tsc_offset(500);
    board.chipset.msr_write(IA32_TSC_DEADLINE, 10_500).unwrap();
    assert_eq!(board.chipset.next_deadline(), Some(10_000));
    board.chipset.set_tpr(0xf);
    assert_eq!(board.wake(), None, "held back by CR8");
    assert!(!board.chipset.pending_interrupt());
    board.chipset.set_tpr(0);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0xec));
    board.chipset.msr_write(0x80b, 0).unwrap();
    board.chipset.msr_write(0x83f, 0xf6).unwrap();
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0xf6), "SELF IPI");
    board.chipset.msr_write(0x830, 0xfd).unwrap();
    assert!(!board.chipset.pending_interrupt(), "0xfd does not nest in 0xf6");
    board.chipset.msr_write(0x80b, 0).unwrap();
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0xfd), "an IPI to its own ID");
    assert_eq!(board.chipset.msr_write(0x830, 0xc4500), Ok(()), "INIT to all others: there are none");
    assert_eq!(board.chipset.take_startup(), Startup::default());
    for index in [0x10, 0x277, 0x900, 0xc000_0080] {
        assert_eq!(board.chipset.msr_read(index), Err(Refused));
        assert_eq!(board.chipset.msr_write(index, 0), Err(Refused));
    }
}

#[test]
fn linux_calibrates_one_clock_against_another() {
    // calibrate_APIC_clock and the PM timer: all run off the same time, whatever the host does in between.
    let mut board = Board::new().with_apic();
    board.apic_write(0x3e0, 0xb);
    board.apic_write(0x380, u32::MAX);
    let pm = board.chipset.port_read(PM_TIMER, 4);
    board.sleep(100_000_000);
    assert_eq!(u32::MAX - board.apic_read(0x390), 100_000_000);
    assert_eq!(board.chipset.port_read(PM_TIMER, 4) - pm, 357_954);
}

#[test]
fn the_console_both_ways() {
    let mut board = Board::new().with_apic();
    board.ioapic_write(0x10 + 2 * 4, 0x24);
    board.out(UART + 2, &[0x01]).out(UART + 4, &[0x0b]).out(UART + 1, &[0x01]);
    board.out(UART, b"login: ");
    let deadline = board.chipset.next_deadline().unwrap();
    board.sleep(deadline);
    assert_eq!(*board.console.0.lock().unwrap(), b"login: ");
    assert_eq!(board.chipset.push_console_input(b"root\n"), 5);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x24));
    let mut typed = Vec::new();
    while board.chipset.port_read(UART + 5, 1) & 1 != 0 {
        typed.push(board.chipset.port_read(UART, 1) as u8);
    }
    assert_eq!(typed, b"root\n");
}

#[test]
fn local_apic_registers_are_32_bits() {
    let mut board = Board::new().with_apic();
    board.apic_write(0x80, 0x35);
    board.chipset.mmio_write(GuestPhys(LOCAL_APIC + 0x80), 1, 0x10);
    assert_eq!(board.apic_read(0x80), 0x35);
    board.chipset.mmio_write(GuestPhys(LOCAL_APIC + 0x80), 8, 0x20);
    assert_eq!(board.apic_read(0x80), 0x20);
    assert_eq!(board.chipset.mmio_read(GuestPhys(LOCAL_APIC + 0x32), 2), 0x0005);
}

#[test]
fn time_does_not_go_back() {
    let mut board = Board::new().with_apic();
    board.apic_write(0x3e0, 0xb);
    board.apic_write(0x380, 1_000);
    board.clock.advance(600);
    board.chipset.advance(600);
    board.chipset.advance(0);
    assert_eq!(board.chipset.next_deadline(), None, "masked");
    board.apic_write(0x320, 0xec);
    assert_eq!(board.chipset.next_deadline(), Some(1_000));
    board.chipset.advance(2_000);
    board.chipset.advance(1_000);
    assert_eq!(board.apic_read(0x390), 0);
    board.apic_write(0x380, 1_000);
    assert_eq!(
        board.chipset.next_deadline(),
        Some(3_000),
        "later than the clock says: what devices saw stays"
    );
}

#[test]
fn power_events() {
    let event = |port, size, value| {
        let mut board = Board::new();
        board.chipset.port_write(port, size, value);
        let event = board.chipset.power_event();
        assert_eq!(board.chipset.power_event(), None, "taken");
        event
    };
    assert_eq!(event(RESET, 1, RESET_VALUE.into()), Some(PowerEvent::Reset));
    assert_eq!(event(RESET, 1, 0x02), None, "Linux writes this first");
    assert_eq!(event(0x64, 1, 0xfe), Some(PowerEvent::Reset));
    assert_eq!(event(0x92, 1, 0x01), Some(PowerEvent::Reset));
    assert_eq!(event(PM1A_CONTROL, 2, 5 << 10 | 1 << 13), Some(PowerEvent::PowerOff));
    assert_eq!(event(0xf4, 1, 0x10), Some(PowerEvent::DebugExit(0x21)));
    assert_eq!(event(0xf4, 4, 0), Some(PowerEvent::DebugExit(1)));
    assert_eq!(event(0x80, 1, 0xfe), None);
}

#[test]
fn pci_and_reset_share_ports() {
    let mut board = Board::new();
    board.out(PCI_CONFIG_ADDRESS + 3, &[0x01]);
    board.chipset.port_write(PCI_CONFIG_ADDRESS, 4, 0x8000_0000);
    assert_eq!(board.chipset.port_read(PCI_CONFIG_ADDRESS, 4), 0x8000_0000);
    assert_eq!(board.chipset.port_read(PCI_CONFIG_DATA, 4), 0x0d57_8086);
    assert_eq!(board.chipset.port_read(PCI_CONFIG_DATA + 2, 2), 0x0d57);
    assert_eq!(board.chipset.port_read(RESET, 1), 0);
    assert_eq!(board.chipset.port_read(PCI_CONFIG_ADDRESS, 1), 0xff);
    board.chipset.port_write(PCI_CONFIG_ADDRESS, 4, 0x8000_0800);
    assert_eq!(board.chipset.port_read(PCI_CONFIG_DATA, 4), u32::MAX);
}

#[test]
fn nobody_home() {
    let mut board = Board::new();
    assert_eq!(board.chipset.port_read(0x2f8, 1), 0xff);
    assert_eq!(board.chipset.port_read(0x2f8, 4), u32::MAX);
    assert_eq!(board.chipset.port_read(0xe9, 1), 0xff);
    assert_eq!(board.chipset.port_read(0xffff, 4) & 0xff, 0xff);
    assert_eq!(board.chipset.mmio_read(GuestPhys(0xd000_0000), 8), u64::MAX);
    assert_eq!(board.chipset.mmio_read(GuestPhys(u64::MAX - 3), 8), u64::MAX);
    board.chipset.mmio_write(GuestPhys(0xfed0_0000), 8, 1);
}

#[test]
fn an_attached_device_is_one_of_the_family() {
    struct Echo(IrqLine, u64);
    impl Device for Echo {
        fn read(&mut self, offset: u64, size: u8, _now: u64) -> u64 {
            self.1 + offset * 16 + u64::from(size)
        }
        fn write(&mut self, _offset: u64, _size: u8, value: u64, now: u64) {
            self.1 = now + value;
        }
        fn next_deadline(&self) -> Option<u64> {
            (self.1 != 0).then_some(self.1)
        }
        fn advance(&mut self, now: u64) {
            if self.1 != 0 && self.1 <= now {
                self.1 = 0;
                self.0.edge();
            }
        }
    }
    let mut board = Board::new().with_apic();
    board.ioapic_write(0x10 + 2 * 20, 0x55);
    let device = |board: &Board| Box::new(Echo(board.chipset.line(20), 0));
    let echo = device(&board);
    board.chipset.attach_mmio(GuestPhys(0xd000_0000), 0x100, 4, echo).unwrap();
    let second = device(&board);
    assert!(board.chipset.attach_mmio(GuestPhys(0xd000_00ff), 1, 4, second).is_err());
    let third = device(&board);
    assert!(board.chipset.attach_mmio(GuestPhys(LOCAL_APIC + 0xfff), 1, 4, third).is_err());
    let fourth = device(&board);
    assert!(board.chipset.attach_ports(UART, 8, 1, fourth).is_err());
    assert_eq!(board.chipset.mmio_read(GuestPhys(0xd000_0008), 8), 0x0000_00c4_0000_0084);
    board.chipset.mmio_write(GuestPhys(0xd000_0000), 4, 700);
    assert_eq!(board.wake(), Some(0x55));
    board.chipset.send_msi(0xfee0_0000, 0x66);
    assert_eq!(board.chipset.acknowledge_interrupt(), Some(0x66));
}

#[test]
fn a_chipset_can_move_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<Chipset>();
    is_send::<IrqLine>();
}
