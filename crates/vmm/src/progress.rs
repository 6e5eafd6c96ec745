//! Progress of long work, on standard error.

use std::io::{IsTerminal, Write};

use guest_images::{Progress, Step};

use crate::size::Size;

/// One line a step; on a terminal, a step that takes long shows how far it is.
pub struct TerminalProgress {
    quiet: bool,
    rewrites: bool,
    /// Characters of a line that is not finished.
    open: usize,
}

impl TerminalProgress {
    /// Shows nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self { quiet, rewrites: std::io::stderr().is_terminal(), open: 0 }
    }

    fn close_line(&mut self) {
        if self.open > 0 {
            eprint!("\r{:width$}\r", "", width = self.open);
            self.open = 0;
        }
    }
}

impl Progress for TerminalProgress {
    fn step(&mut self, step: &Step) {
        if !self.quiet {
            self.close_line();
            eprintln!("transvisor: {step}");
        }
    }

    fn bytes(&mut self, done: u64, total: u64) {
        if self.quiet || !self.rewrites {
            return;
        }
        let line = format!("  {} of {}", Size(done), Size(total));
        eprint!("\r{line:<width$}", width = self.open);
        self.open = line.len().max(self.open);
        // Progress that can't be shown is no reason to stop.
        let _ = std::io::stderr().flush();
    }
}

impl Drop for TerminalProgress {
    fn drop(&mut self) {
        self.close_line();
    }
}
