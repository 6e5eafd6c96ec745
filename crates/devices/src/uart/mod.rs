//! A 16550A serial port without a baud rate.
//!
//! Source: National Semiconductor PC16550D datasheet. Transmission takes no time: the holding register is always
//! empty, and its interrupt comes back as soon as a byte is written. Received bytes wait in a queue of the host until
//! the receiver has room, so nothing is ever overrun but in loopback mode.
//!
//! Why not `vm_superio::Serial`: it has no FIFO control (FCR is ignored, IIR always says FIFO), no trigger levels, no
//! modem-status interrupts, one host write a byte, and its input queue is the guest-visible FIFO.
//!
//! Two choices. The interrupt line is not gated by OUT2, so that guests that forget it work here as they do elsewhere.
//! And the host begins to send when the guest listens: it has raised DTR or RTS or enabled the receive interrupt.
//! Otherwise what is typed ahead would go into the FIFO resets of the guest's probing.

pub(crate) mod output;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use self::output::Output;
pub use self::output::Sink;
use crate::interrupt::IrqLine;

/// Depth of the receive FIFO.
const FIFO: usize = 16;
/// Bytes that the host can have waiting before it must hold back.
const INPUT_LIMIT: usize = 64 * 1024;

mod ier {
    pub(super) const RECEIVED: u8 = 0x01;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x02;
    pub(super) const LINE_STATUS: u8 = 0x04;
    pub(super) const MODEM_STATUS: u8 = 0x08;
}
mod iir {
    pub(super) const NONE: u8 = 0x01;
    pub(super) const MODEM_STATUS: u8 = 0x00;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x02;
    pub(super) const RECEIVED: u8 = 0x04;
    pub(super) const LINE_STATUS: u8 = 0x06;
    pub(super) const TIMEOUT: u8 = 0x0c;
    pub(super) const FIFOS: u8 = 0xc0;
}
mod lsr {
    pub(super) const DATA_READY: u8 = 0x01;
    pub(super) const OVERRUN: u8 = 0x02;
    pub(super) const TRANSMITTER_EMPTY: u8 = 0x60;
}
mod mcr {
    pub(super) const DTR: u8 = 0x01;
    pub(super) const RTS: u8 = 0x02;
    pub(super) const OUT1: u8 = 0x04;
    pub(super) const OUT2: u8 = 0x08;
    pub(super) const LOOPBACK: u8 = 0x10;
}
mod msr {
    pub(super) const CTS: u8 = 0x10;
    pub(super) const DSR: u8 = 0x20;
    pub(super) const RI: u8 = 0x40;
    pub(super) const DCD: u8 = 0x80;
    pub(super) const DELTA_RI: u8 = 0x04;
}
const LCR_DLAB: u8 = 0x80;

/// The serial port.
#[derive(Debug)]
pub struct Uart {
    line: IrqLine,
    output: Output,
    /// From the host, not yet received.
    input: VecDeque<u8>,
    /// Received: the FIFO, or at most one byte without it.
    received: VecDeque<u8>,
    interrupt_enable: u8,
    line_control: u8,
    modem_control: u8,
    /// Changes of modem lines since MSR was read.
    modem_delta: u8,
    scratch: u8,
    divisor: u16,
    fifos: bool,
    /// Received bytes that make the receive interrupt.
    trigger: usize,
    overrun: bool,
    /// The transmitter's interrupt is pending, if it is enabled.
    transmitter_interrupt: bool,
}

impl Uart {
    /// A port whose output goes to `sink`. `line` is its interrupt.
    pub fn new(line: IrqLine, sink: Sink) -> Self {
        Self {
            line,
            output: Output::new(sink),
            input: VecDeque::new(),
            received: VecDeque::with_capacity(FIFO),
            interrupt_enable: 0,
            line_control: 0,
            modem_control: 0,
            modem_delta: 0,
            scratch: 0,
            divisor: 12, // 9600 baud, as firmware leaves it.
            fifos: false,
            trigger: 1,
            overrun: false,
            transmitter_interrupt: false,
        }
    }

    /// Reads register `offset`, 0..7.
    pub fn read(&mut self, offset: u64) -> u8 {
        let divisor = self.line_control & LCR_DLAB != 0;
        let value = match offset & 7 {
            0 if divisor => self.divisor as u8,
            1 if divisor => (self.divisor >> 8) as u8,
            0 => self.received.pop_front().unwrap_or(0),
            1 => self.interrupt_enable,
            2 => {
                let source = self.interrupt_source();
                if source == iir::TRANSMITTER_EMPTY {
                    self.transmitter_interrupt = false;
                }
                source | if self.fifos { iir::FIFOS } else { 0 }
            }
            3 => self.line_control,
            4 => self.modem_control,
            5 => {
                let ready = if self.received.is_empty() { 0 } else { lsr::DATA_READY };
                let overrun = if std::mem::take(&mut self.overrun) { lsr::OVERRUN } else { 0 };
                lsr::TRANSMITTER_EMPTY | ready | overrun
            }
            6 => self.modem_lines() | std::mem::take(&mut self.modem_delta),
            _ => self.scratch,
        };
        self.update();
        value
    }

    /// Writes register `offset`, 0..7.
    pub fn write(&mut self, offset: u64, value: u8, now: u64) {
        let divisor = self.line_control & LCR_DLAB != 0;
        match offset & 7 {
            0 if divisor => self.divisor = self.divisor & 0xff00 | u16::from(value),
            1 if divisor => self.divisor = self.divisor & 0x00ff | u16::from(value) << 8,
            0 => self.transmit(value, now),
            1 => {
                // Enabling the transmitter's interrupt raises it: the register is empty.
                if value & !self.interrupt_enable & ier::TRANSMITTER_EMPTY != 0 {
                    self.transmitter_interrupt = true;
                }
                self.interrupt_enable = value & 0x0f;
            }
            2 => self.write_fifo_control(value),
            3 => self.line_control = value,
            4 => self.write_modem_control(value),
            5 | 6 => {} // Factory test.
            _ => self.scratch = value,
        }
        self.update();
    }

    fn transmit(&mut self, value: u8, now: u64) {
        if self.modem_control & mcr::LOOPBACK == 0 {
            self.output.push(value, now);
        } else if self.received.len() < self.depth() {
            self.received.push_back(value);
        } else {
            self.overrun = true;
        }
        self.transmitter_interrupt = true;
    }

    fn write_fifo_control(&mut self, value: u8) {
        let enable = value & 0x01 != 0;
        if enable != self.fifos || (enable && value & 0x02 != 0) {
            self.received.clear();
        }
        self.fifos = enable;
        self.trigger = if enable { [1, 4, 8, 14][usize::from(value >> 6)] } else { 1 };
    }

    fn write_modem_control(&mut self, value: u8) {
        let before = self.modem_lines();
        self.modem_control = value & 0x1f;
        let after = self.modem_lines();
        let changed = before ^ after;
        // For RI only the trailing edge counts.
        let ring = if before & !after & msr::RI != 0 { msr::DELTA_RI } else { 0 };
        self.modem_delta |= (changed >> 4) & !msr::DELTA_RI | ring;
    }

    /// The modem's lines: connected and ready, or our own outputs in loopback mode.
    fn modem_lines(&self) -> u8 {
        let control = self.modem_control;
        if control & mcr::LOOPBACK == 0 {
            return msr::CTS | msr::DSR | msr::DCD;
        }
        [(mcr::RTS, msr::CTS), (mcr::DTR, msr::DSR), (mcr::OUT1, msr::RI), (mcr::OUT2, msr::DCD)]
            .into_iter()
            .filter(|(output, _)| control & output != 0)
            .fold(0, |lines, (_, input)| lines | input)
    }

    fn depth(&self) -> usize {
        if self.fifos { FIFO } else { 1 }
    }

    fn listens(&self) -> bool {
        self.modem_control & mcr::LOOPBACK == 0
            && (self.modem_control & (mcr::DTR | mcr::RTS) != 0 || self.interrupt_enable & ier::RECEIVED != 0)
    }

    /// The pending interrupt with the highest priority, as IIR shows it.
    fn interrupt_source(&self) -> u8 {
        let enabled = |bit| self.interrupt_enable & bit != 0;
        if self.overrun && enabled(ier::LINE_STATUS) {
            iir::LINE_STATUS
        } else if !self.received.is_empty() && enabled(ier::RECEIVED) {
            // Bytes below the trigger level: no more of them are under way, so the time-out has come.
            if self.received.len() >= self.trigger { iir::RECEIVED } else { iir::TIMEOUT }
        } else if self.transmitter_interrupt && enabled(ier::TRANSMITTER_EMPTY) {
            iir::TRANSMITTER_EMPTY
        } else if self.modem_delta != 0 && enabled(ier::MODEM_STATUS) {
            iir::MODEM_STATUS
        } else {
            iir::NONE
        }
    }

    /// Receives what there is room for, and drives the line.
    fn update(&mut self) {
        if !self.input.is_empty() && self.listens() {
            let room = self.depth().saturating_sub(self.received.len()).min(self.input.len());
            self.received.extend(self.input.drain(..room));
        }
        self.line.set(self.interrupt_source() != iir::NONE);
    }

    /// Queues bytes for the guest; returns how many were taken. The rest is to be offered again later.
    pub fn push_input(&mut self, bytes: &[u8]) -> usize {
        let taken = bytes.len().min(INPUT_LIMIT - self.input.len());
        self.input.extend(&bytes[..taken]);
        self.update();
        taken
    }

    /// How many bytes [`Uart::push_input`] would take.
    pub fn input_room(&self) -> usize {
        INPUT_LIMIT - self.input.len()
    }

    /// Hands waiting output to the sink.
    pub fn flush(&mut self) {
        self.output.flush();
    }

    /// The sink's first failure since the last call. Output that it did not take is lost.
    pub fn take_output_error(&mut self) -> Option<std::io::Error> {
        self.output.take_error()
    }

    /// When waiting output is due.
    pub fn next_deadline(&self) -> Option<u64> {
        self.output.next_deadline()
    }

    /// Hands out what is due.
    pub fn advance(&mut self, now: u64) {
        self.output.advance(now);
    }
}
