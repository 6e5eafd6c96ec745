//! An 8042 keyboard controller with nothing plugged in.
//!
//! Enough for what is asked of it on a machine without a keyboard: self-test, command byte, A20, and the reset that
//! operating systems still use. Source: IBM PS/2 Hardware Interface Technical Reference, Keyboard and Auxiliary
//! Device Controller. A byte for a keyboard is answered as the controller does when no device takes it: 0xfe with the
//! time-out bit. So drivers that probe give up at once and not after seconds.
//!
//! Why not `vm_superio::I8042Device`: it has neither self-test nor time-outs, so Linux's probe would wait for them.

use crate::{interrupt::IrqLine, power::PowerEvent};

mod status {
    pub(super) const OUTPUT_FULL: u8 = 0x01;
    pub(super) const SYSTEM: u8 = 0x04;
    pub(super) const COMMAND: u8 = 0x08;
    pub(super) const NOT_LOCKED: u8 = 0x10;
    pub(super) const TIMEOUT: u8 = 0x40;
}
/// Command byte: interrupt on keyboard data.
const KEYBOARD_INTERRUPT: u8 = 0x01;
/// Command byte: what self-test sets, as it is readable in the status too.
const SYSTEM_FLAG: u8 = 0x04;
/// Output port: not reset.
const NOT_RESET: u8 = 0x01;
/// Output port: address line 20.
const A20: u8 = 0x02;

/// The controller and system control port A, which does two of its jobs.
#[derive(Debug)]
pub struct I8042 {
    line: IrqLine,
    command_byte: u8,
    output_port: u8,
    output: Option<u8>,
    timeout: bool,
    last_was_command: bool,
    /// The command whose data byte comes next.
    expects_data_for: Option<u8>,
}

impl I8042 {
    /// A controller as firmware leaves it. `line` is ISA IRQ 1.
    pub fn new(line: IrqLine) -> Self {
        Self {
            line,
            command_byte: SYSTEM_FLAG | 0x30, // both interfaces disabled
            output_port: NOT_RESET | A20,
            output: None,
            timeout: false,
            last_was_command: false,
            expects_data_for: None,
        }
    }

    /// Reads the data port.
    pub fn read_data(&mut self) -> u8 {
        let value = self.output.take().unwrap_or(0);
        self.update_line();
        value
    }

    /// Reads the status port.
    pub fn read_status(&self) -> u8 {
        let full = if self.output.is_some() { status::OUTPUT_FULL } else { 0 };
        let system = if self.command_byte & SYSTEM_FLAG != 0 { status::SYSTEM } else { 0 };
        let command = if self.last_was_command { status::COMMAND } else { 0 };
        let timeout = if self.timeout { status::TIMEOUT } else { 0 };
        status::NOT_LOCKED | full | system | command | timeout
    }

    fn answer(&mut self, value: u8) {
        self.output = Some(value);
        self.timeout = false;
        self.update_line();
    }

    /// A byte went to a device that is not there.
    fn time_out(&mut self) {
        self.answer(0xfe);
        self.timeout = true;
    }

    fn update_line(&mut self) {
        self.line.set(self.output.is_some() && self.command_byte & KEYBOARD_INTERRUPT != 0);
    }

    /// Writes the command port.
    pub fn write_command(&mut self, command: u8) -> Option<PowerEvent> {
        self.last_was_command = true;
        self.expects_data_for = None;
        match command {
            0x20 => self.answer(self.command_byte),
            0x21..=0x3f => self.answer(0),
            // Controller RAM, output port, output buffers, the auxiliary device.
            0x60..=0x7f | 0xd1..=0xd4 => self.expects_data_for = Some(command),
            0xa7 => self.command_byte |= 0x20,
            0xa8 => self.command_byte &= !0x20,
            // Interface tests: the auxiliary device's clock line is stuck (it has no connector), the keyboard's is fine.
            0xa9 => self.answer(0x01),
            0xaa => {
                self.command_byte |= SYSTEM_FLAG;
                self.answer(0x55);
            }
            0xab => self.answer(0x00),
            0xad => self.command_byte |= 0x10,
            0xae => self.command_byte &= !0x10,
            0xc0 => self.answer(0x80), // input port: keyboard not inhibited
            0xd0 => self.answer(self.output_port),
            0xe0 => self.answer(0x00),
            // Pulses output port bits that are zero; bit 0 is the processor's reset.
            0xf0..=0xff if command & NOT_RESET == 0 => return Some(PowerEvent::Reset),
            _ => {}
        }
        None
    }

    /// Writes the data port.
    pub fn write_data(&mut self, value: u8) -> Option<PowerEvent> {
        self.last_was_command = false;
        match self.expects_data_for.take() {
            Some(0x60) => {
                self.command_byte = value;
                self.update_line();
            }
            Some(0xd1) => return self.write_output_port(value),
            // With an auxiliary device 0xd3's byte would be marked as its; unmarked, Linux knows that there is none.
            Some(0xd2 | 0xd3) => self.answer(value),
            Some(0x61..=0x7f) => {}
            _ => self.time_out(),
        }
        None
    }

    fn write_output_port(&mut self, value: u8) -> Option<PowerEvent> {
        self.output_port = value | NOT_RESET;
        (value & NOT_RESET == 0).then_some(PowerEvent::Reset)
    }

    /// Reads system control port A (0x92).
    pub fn read_control_a(&self) -> u8 {
        self.output_port & A20
    }

    /// Writes system control port A: bit 1 is A20, setting bit 0 resets. A20 is kept but not applied, memory never
    /// wraps at 1 MiB.
    pub fn write_control_a(&mut self, value: u8) -> Option<PowerEvent> {
        self.output_port = self.output_port & !A20 | value & A20;
        (value & 1 != 0).then_some(PowerEvent::Reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupt::Wires;

    fn controller() -> I8042 {
        I8042::new(Wires::default().line(1))
    }

    fn command(i8042: &mut I8042, command: u8) -> Option<u8> {
        assert_eq!(i8042.write_command(command), None);
        (i8042.read_status() & status::OUTPUT_FULL != 0).then(|| i8042.read_data())
    }

    #[test]
    fn linux_probe() {
        let mut i8042 = controller();
        assert_eq!(i8042.read_status() & 3, 0, "i8042_flush finds it empty");
        assert_eq!(command(&mut i8042, 0xaa), Some(0x55));
        let byte = command(&mut i8042, 0x20).unwrap();
        i8042.write_command(0x60);
        i8042.write_data(byte | 0x10);
        assert_eq!(command(&mut i8042, 0x20), Some(byte | 0x10));
        // i8042_check_aux: the loop must come back marked as auxiliary, and the interface test must pass.
        i8042.write_command(0xd3);
        i8042.write_data(0x5a);
        assert_eq!((i8042.read_status() & 0x21, i8042.read_data()), (0x01, 0x5a));
        assert_eq!(command(&mut i8042, 0xa9), Some(0x01));
    }

    #[test]
    fn a_keyboard_that_is_not_there_times_out_at_once() {
        let mut i8042 = controller();
        i8042.write_command(0x60);
        i8042.write_data(0x01);
        i8042.write_data(0xf2);
        assert!(i8042.line.is_high());
        assert_eq!(i8042.read_status() & 0x41, 0x41);
        assert_eq!(i8042.read_data(), 0xfe);
        assert!(!i8042.line.is_high());
        i8042.write_command(0x20);
        assert_eq!(i8042.read_status() & 0x41, 0x01, "the time-out was the other byte's");
    }

    #[test]
    fn resets() {
        assert_eq!(controller().write_command(0xfe), Some(PowerEvent::Reset));
        assert_eq!(controller().write_command(0xff), None);
        let mut i8042 = controller();
        i8042.write_command(0xd1);
        assert_eq!(i8042.write_data(0xfe), Some(PowerEvent::Reset));
        assert_eq!(controller().write_control_a(0x03), Some(PowerEvent::Reset));
    }

    #[test]
    fn a20_is_one_bit_in_two_places() {
        let mut i8042 = controller();
        assert_eq!(i8042.read_control_a(), 0x02);
        i8042.write_control_a(0);
        assert_eq!(command(&mut i8042, 0xd0), Some(0x01));
        i8042.write_command(0xd1);
        i8042.write_data(0x03);
        assert_eq!(i8042.read_control_a(), 0x02);
    }
}
