//! Tells a reboot after a kernel panic from one that was asked for.
//!
//! Linux announces a panic on its console and nowhere else that a stock kernel without modules would reach. The text
//! alone ends nothing (a user may print an old log); a reset after it is reported as a panic.

use std::{
    io::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// What Linux prints first (kernel/panic.c).
const TEXT: &[u8] = b"Kernel panic - not syncing";

/// A sink that passes everything on and notes whether [`TEXT`] went by.
pub struct PanicWatch<W> {
    sink: W,
    matched: usize,
    seen: Arc<AtomicBool>,
}

impl<W: Write> PanicWatch<W> {
    /// Watches what goes to `sink`; the flag is set once the text has been seen.
    pub fn new(sink: W) -> (Self, Arc<AtomicBool>) {
        let seen = Arc::<AtomicBool>::default();
        (Self { sink, matched: 0, seen: Arc::clone(&seen) }, seen)
    }
}

impl<W: Write> Write for PanicWatch<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.sink.write(bytes)?;
        for &byte in &bytes[..count] {
            if byte == TEXT[self.matched] {
                self.matched += 1;
                if self.matched == TEXT.len() {
                    self.seen.store(true, Ordering::Relaxed);
                    self.matched = 0;
                }
            } else {
                // No proper prefix of the text ends in its first letter but that letter itself.
                self.matched = usize::from(byte == TEXT[0]);
            }
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.sink.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(chunks: &[&str]) -> bool {
        let (mut watch, seen) = PanicWatch::new(Vec::new());
        for chunk in chunks {
            watch.write_all(chunk.as_bytes()).unwrap();
        }
        assert_eq!(watch.sink, chunks.concat().as_bytes());
        seen.load(Ordering::Relaxed)
    }

    #[test]
    fn found_across_writes() {
        assert!(seen(&["[    1.0] Kernel pa", "nic - not sync", "ing: VFS"]));
        assert!(seen(&["KKernel panic - not syncing"]));
        assert!(!seen(&["Kernel panic - not synced", " Kernel panic"]));
    }
}
