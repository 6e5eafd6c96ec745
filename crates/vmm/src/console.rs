//! The terminal as the guest's serial console: raw mode that is undone on every way out, and the escape key.

use std::io::IsTerminal;

use rustix::termios::{self, OptionalActions, Termios};

/// Puts the terminal on standard input into raw mode; dropping it restores what was.
pub struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// `None` if standard input is no terminal.
    pub fn enter() -> Option<Self> {
        let stdin = std::io::stdin();
        if !stdin.is_terminal() {
            return None;
        }
        let before = termios::tcgetattr(&stdin).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        // The guest's own tty turns \n into \r\n; our messages in between need it too.
        raw.output_modes.insert(termios::OutputModes::OPOST | termios::OutputModes::ONLCR);
        termios::tcsetattr(&stdin, OptionalActions::Now, &raw).ok()?;
        Some(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // Nothing can be done if the terminal is gone.
        let _ = termios::tcsetattr(std::io::stdin(), OptionalActions::Now, &self.before);
    }
}

/// What the escape key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// End the machine.
    Quit,
    /// Show the keys.
    Help,
}

/// Ctrl-A, as a terminal sends it.
const ESCAPE: u8 = 0x01;

/// What Ctrl-A H shows.
pub const HELP: &str = "\r\nCtrl-A X  quit\r\nCtrl-A A  send Ctrl-A to the guest\r\nCtrl-A H  this help\r\n";

/// Finds the escape key in what the user types; lives across reads.
#[derive(Default, Debug)]
pub struct EscapeFilter {
    escaped: bool,
}

impl EscapeFilter {
    /// Appends to `guest` what is meant for the guest; returns the first action asked for. What follows a quit in
    /// the same input is dropped.
    pub fn filter(&mut self, typed: &[u8], guest: &mut Vec<u8>) -> Option<Action> {
        let mut action = None;
        for &byte in typed {
            if !self.escaped {
                if byte == ESCAPE {
                    self.escaped = true;
                } else {
                    guest.push(byte);
                }
                continue;
            }
            self.escaped = false;
            match byte {
                b'x' | b'X' => return Some(Action::Quit),
                b'h' | b'H' | b'?' => action = Some(Action::Help),
                b'a' | b'A' | ESCAPE => guest.push(ESCAPE),
                // Not a command: the guest gets both, so that nothing typed is lost.
                other => guest.extend([ESCAPE, other]),
            }
        }
        action
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filtered(chunks: &[&[u8]]) -> (Vec<u8>, Option<Action>) {
        let mut filter = EscapeFilter::default();
        let mut guest = Vec::new();
        let mut action = None;
        for chunk in chunks {
            action = action.or(filter.filter(chunk, &mut guest));
        }
        (guest, action)
    }

    #[test]
    fn plain_bytes_pass() {
        assert_eq!(filtered(&[b"ls\r\x03"]), (b"ls\r\x03".to_vec(), None));
    }

    #[test]
    fn quit_is_found_across_reads() {
        assert_eq!(filtered(&[b"l\x01", b"xs"]), (b"l".to_vec(), Some(Action::Quit)));
    }

    #[test]
    fn the_escape_key_can_be_sent() {
        assert_eq!(filtered(&[b"\x01a\x01\x01\x01q"]), (b"\x01\x01\x01q".to_vec(), None));
    }

    #[test]
    fn help() {
        assert_eq!(filtered(&[b"\x01h!"]), (b"!".to_vec(), Some(Action::Help)));
    }
}
