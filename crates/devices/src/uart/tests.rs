//! The serial port as Linux's 8250_port.c probes and uses it.

use super::*;
use crate::interrupt::Wires;
use std::{
    io::{self, Write},
    sync::{Arc, Mutex},
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

const RX: u64 = 0;
const IER: u64 = 1;
const IIR: u64 = 2;
const FCR: u64 = 2;
const LCR: u64 = 3;
const MCR: u64 = 4;
const LSR: u64 = 5;
const MSR: u64 = 6;
const SCR: u64 = 7;

fn uart() -> (Uart, Capture) {
    let capture = Capture::default();
    (Uart::new(Wires::default().line(4), Box::new(capture.clone())), capture)
}

#[test]
fn linux_autoconfig_finds_a_16550a() {
    let (mut uart, _) = uart();
    // autoconfig(): the interrupt-enable register has four bits.
    uart.write(IER, 0, 0);
    assert_eq!(uart.read(IER) & 0x0f, 0);
    uart.write(IER, 0x0f, 0);
    assert_eq!(uart.read(IER), 0x0f);
    uart.write(IER, 0, 0);
    // Loopback: RTS and OUT2 come back as CTS and DCD.
    uart.write(MCR, 0x10 | 0x0a, 0);
    assert_eq!(uart.read(MSR) & 0xf0, 0x90);
    uart.write(MCR, 0, 0);
    // No EFR behind LCR = 0xbf, then FIFO detection.
    uart.write(LCR, 0xbf, 0);
    uart.write(FCR, 0, 0);
    uart.write(LCR, 0, 0);
    uart.write(FCR, 0x01, 0);
    assert_eq!(uart.read(IIR) >> 6, 3);
    // Not a 16750: no 64-byte mode; not an XScale: IER bit 6 does not stick.
    uart.write(LCR, 0x80, 0);
    uart.write(FCR, 0x21, 0);
    assert_eq!(uart.read(IIR) >> 5 & 7, 6);
    uart.write(LCR, 0, 0);
    uart.write(IER, 0x40, 0);
    assert_eq!(uart.read(IER), 0);
    uart.write(FCR, 0, 0);
    assert_eq!(uart.read(IIR), 0x01, "an 8250 without FIFOs");
    uart.write(SCR, 0xa5, 0);
    assert_eq!(uart.read(SCR), 0xa5);
}

#[test]
fn linux_thre_test_sees_the_interrupt_come_back() {
    let (mut uart, _) = uart();
    uart.write(IER, 0x02, 0);
    assert_eq!(uart.read(IIR), 0x02);
    assert_eq!(uart.read(IIR), 0x01, "reading IIR clears it");
    uart.write(IER, 0, 0);
    uart.write(IER, 0x02, 0);
    assert_eq!(uart.read(IIR), 0x02, "re-enabled");
    assert!(!uart.line.is_high());
    uart.write(RX, b'x', 0);
    assert!(uart.line.is_high(), "the byte has left already");
}

#[test]
fn the_transmitter_interrupts_on_enabling_and_not_on_each_write() {
    let (mut uart, _) = uart();
    uart.write(IER, 0x02, 0);
    uart.read(IIR);
    uart.write(IER, 0x03, 0);
    assert_eq!(uart.read(IIR), 0x01);
}

#[test]
fn switching_the_fifos_empties_them() {
    let (mut uart, _) = uart();
    uart.write(MCR, 0x03, 0);
    uart.push_input(b"a");
    uart.write(FCR, 0x01, 0);
    assert_eq!(uart.read(LSR) & 1, 0);
    uart.push_input(b"b");
    uart.write(FCR, 0x01, 0);
    assert_eq!(uart.read(RX), b'b', "already on: nothing happens");
    uart.push_input(b"c");
    uart.write(FCR, 0x03, 0);
    assert_eq!(uart.read(LSR) & 1, 0);
}

#[test]
fn output_goes_to_the_sink() {
    let (mut uart, capture) = uart();
    uart.write(LCR, 0x83, 0);
    uart.write(RX, 1, 0);
    uart.write(IER, 0, 0);
    assert_eq!((uart.read(RX), uart.read(IER)), (1, 0), "divisor latch");
    uart.write(LCR, 0x03, 0);
    for byte in b"ok\n" {
        assert_eq!(uart.read(LSR) & 0x60, 0x60);
        uart.write(RX, *byte, 0);
    }
    assert!(uart.next_deadline().is_some());
    uart.flush();
    assert_eq!(*capture.0.lock().unwrap(), b"ok\n");
}

#[test]
fn input_waits_until_the_guest_listens() {
    let (mut uart, _) = uart();
    assert_eq!(uart.push_input(b"hello, world and more"), 21);
    assert_eq!(uart.read(LSR) & 1, 0);
    uart.write(FCR, 0xc7, 0); // FIFOs on and reset, trigger at 14
    uart.write(MCR, 0x0b, 0);
    assert_eq!(uart.read(LSR) & 1, 1);
    uart.write(IER, 0x01, 0);
    assert!(uart.line.is_high());
    assert_eq!(uart.read(IIR), 0xc4);
    let read: Vec<u8> = std::iter::from_fn(|| (uart.read(LSR) & 1 != 0).then(|| uart.read(RX))).collect();
    assert_eq!(read, b"hello, world and more");
    assert!(!uart.line.is_high());
    uart.push_input(b"x");
    assert_eq!(uart.read(IIR), 0xcc, "below the trigger level: time-out");
}

#[test]
fn input_is_bounded() {
    let (mut uart, _) = uart();
    assert_eq!(uart.push_input(&vec![0; 100_000]), INPUT_LIMIT);
    assert_eq!((uart.push_input(b"x"), uart.input_room()), (0, 0));
}

#[test]
fn loopback_and_overrun() {
    let (mut uart, capture) = uart();
    uart.push_input(b"from outside");
    uart.write(MCR, 0x13, 0);
    uart.write(IER, 0x05, 0);
    uart.write(RX, b'a', 0);
    uart.write(RX, b'b', 0);
    assert_eq!(uart.read(IIR), 0x06);
    assert_eq!(uart.read(LSR), 0x63);
    assert_eq!(uart.read(LSR), 0x61);
    assert_eq!(uart.read(RX), b'a');
    assert_eq!(uart.read(LSR) & 1, 0);
    uart.flush();
    assert!(capture.0.lock().unwrap().is_empty());
}

#[test]
fn modem_status_changes_interrupt() {
    let (mut uart, _) = uart();
    assert_eq!(uart.read(MSR), 0xb0);
    uart.write(IER, 0x08, 0);
    uart.write(MCR, 0x14, 0); // loopback with OUT1: RI on; CTS, DSR and DCD off
    assert!(uart.line.is_high());
    assert_eq!(uart.read(IIR), 0x00);
    assert_eq!(uart.read(MSR), 0x4b);
    assert_eq!(uart.read(IIR), 0x01);
    uart.write(MCR, 0x10, 0);
    assert_eq!(uart.read(MSR), 0x04, "the trailing edge of RI");
}
