//! Ports for people who debug guests: POST code, debug console, debug exit.

use crate::{
    power::PowerEvent,
    uart::{Sink, output::Output},
};

/// What reading the debug console gives, so that a guest can tell that it is there (Bochs's convention).
const CONSOLE_PRESENT: u8 = 0xe9;

/// The ports' state.
#[derive(Debug)]
pub struct DebugPorts {
    post_code: u8,
    console: Option<Output>,
    exit: bool,
}

impl DebugPorts {
    /// `console` takes what is written to the debug console, if there is to be one; `exit` enables debug exit.
    pub fn new(console: Option<Sink>, exit: bool) -> Self {
        Self { post_code: 0, console: console.map(Output::new), exit }
    }

    /// The last POST code.
    pub fn post_code(&self) -> u8 {
        self.post_code
    }

    /// Writes port 0x80.
    pub fn write_post_code(&mut self, value: u8) {
        self.post_code = value;
    }

    /// Reads port 0xe9.
    pub fn read_console(&self) -> u8 {
        if self.console.is_some() { CONSOLE_PRESENT } else { 0xff }
    }

    /// Writes port 0xe9.
    pub fn write_console(&mut self, value: u8, now: u64) {
        if let Some(console) = &mut self.console {
            console.push(value, now);
        }
    }

    /// Writes port 0xf4. Statuses beyond a byte are cut, as a process's are.
    pub fn write_exit(&self, value: u32) -> Option<PowerEvent> {
        self.exit.then_some(PowerEvent::DebugExit((value << 1 | 1) as u8))
    }

    /// Hands waiting output to its sink.
    pub fn flush(&mut self) {
        if let Some(console) = &mut self.console {
            console.flush();
        }
    }

    /// When waiting output is due.
    pub fn next_deadline(&self) -> Option<u64> {
        self.console.as_ref().and_then(Output::next_deadline)
    }

    /// Hands out what is due.
    pub fn advance(&mut self, now: u64) {
        if let Some(console) = &mut self.console {
            console.advance(now);
        }
    }
}
