//! Console output in batches.
//!
//! A guest writes one byte at a time; a host wants few, larger writes. Bytes wait until there are many or until the
//! oldest has waited a little, whichever comes first.

use std::io::{self, Write};

/// Where a console's output goes.
pub type Sink = Box<dyn Write + Send>;

/// Bytes that are handed out at once.
const BATCH: usize = 4096;
/// Longest time that a byte waits, in nanoseconds: below what a person at a terminal notices.
const PATIENCE: u64 = 4_000_000;

/// Output on its way to a sink.
pub(crate) struct Output {
    sink: Sink,
    waiting: Vec<u8>,
    flush_at: Option<u64>,
    error: Option<io::Error>,
}

impl Output {
    pub(crate) fn new(sink: Sink) -> Self {
        Self { sink, waiting: Vec::with_capacity(BATCH), flush_at: None, error: None }
    }

    #[inline]
    pub(crate) fn push(&mut self, byte: u8, now: u64) {
        self.waiting.push(byte);
        if self.waiting.len() >= BATCH {
            self.flush();
        } else {
            self.flush_at.get_or_insert(now.saturating_add(PATIENCE));
        }
    }

    /// Hands everything to the sink. What a failing sink does not take is dropped: a guest does not wait for it.
    pub(crate) fn flush(&mut self) {
        self.flush_at = None;
        if self.waiting.is_empty() {
            return;
        }
        let written = self.sink.write_all(&self.waiting).and_then(|()| self.sink.flush());
        if let Err(error) = written {
            self.error.get_or_insert(error);
        }
        self.waiting.clear();
    }

    pub(crate) fn next_deadline(&self) -> Option<u64> {
        self.flush_at
    }

    pub(crate) fn advance(&mut self, now: u64) {
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush();
        }
    }

    /// The first failure of the sink since the last call.
    pub(crate) fn take_error(&mut self) -> Option<io::Error> {
        self.error.take()
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.flush();
    }
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output").field("waiting", &self.waiting.len()).field("error", &self.error).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::{Arc, Mutex};

    #[derive(Clone, Default)]
    struct Writes(Arc<Mutex<Vec<Vec<u8>>>>);

    impl Write for Writes {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().push(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn few_large_writes() {
        let writes = Writes::default();
        let mut output = Output::new(Box::new(writes.clone()));
        "Linux version".bytes().for_each(|byte| output.push(byte, 100));
        output.advance(100 + PATIENCE - 1);
        assert_eq!(writes.0.lock().unwrap().len(), 0);
        assert_eq!(output.next_deadline(), Some(100 + PATIENCE));
        output.advance(100 + PATIENCE);
        assert_eq!(*writes.0.lock().unwrap(), [b"Linux version".to_vec()]);
        assert_eq!(output.next_deadline(), None);
        (0..BATCH + 1).for_each(|_| output.push(b'x', 0));
        assert_eq!(writes.0.lock().unwrap()[1].len(), BATCH);
        drop(output);
        assert_eq!(writes.0.lock().unwrap()[2], b"x");
    }
}
