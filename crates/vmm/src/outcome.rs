//! How a run ends, and the exit status that says so.

use std::fmt;

/// How the guest ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It powered itself off.
    PowerOff,
    /// It asked for a reboot and that was not wanted, see `--no-reboot`.
    Reboot,
    /// Its kernel panicked and reset the machine.
    Panic,
    /// Triple fault: the processor shut down. Holds a description of its registers.
    TripleFault(String),
    /// HLT with interrupts off: nothing can wake it again.
    Dead(String),
    /// It ended through the debug-exit port, with this status: (value << 1) | 1, as QEMU has it.
    DebugExit(u8),
    /// The user quit (Ctrl-A X).
    Quit,
    /// This process got a signal.
    Signal(i32),
}

impl Outcome {
    /// Exit status of the process: 0 for a power-off and a quit; 1 where the guest came to grief; 3 for a reboot
    /// that was not carried out; 128 + signal; the debug-exit port's own. Errors of the
    /// host or the configuration are 2, and no outcome.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::PowerOff | Self::Quit => 0,
            Self::Panic | Self::TripleFault(_) | Self::Dead(_) => 1,
            Self::Reboot => 3,
            Self::DebugExit(status) => *status,
            Self::Signal(signal) => 128u8.wrapping_add(*signal as u8),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::PowerOff => write!(f, "the guest powered off"),
            Self::Reboot => write!(f, "the guest asked for a reboot"),
            Self::Panic => write!(f, "the guest kernel panicked; its console says why"),
            Self::TripleFault(state) => write!(f, "triple fault: the guest's processor shut down\n{state}"),
            Self::Dead(state) => {
                write!(f, "the guest halted with interrupts off: nothing can wake it\n{state}")
            }
            Self::DebugExit(status) => {
                write!(f, "the guest ended through the debug-exit port with status {status}")
            }
            Self::Quit => write!(f, "quit"),
            Self::Signal(signal) => write!(f, "ended by signal {signal}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_tell_outcomes_apart() {
        assert_eq!(Outcome::PowerOff.exit_status(), 0);
        assert_eq!(Outcome::Panic.exit_status(), 1);
        assert_eq!(Outcome::TripleFault(String::new()).exit_status(), 1);
        assert_eq!(Outcome::Reboot.exit_status(), 3);
        assert_eq!(Outcome::Signal(15).exit_status(), 143);
        assert_eq!(Outcome::DebugExit(0x21).exit_status(), 0x21);
    }
}
