//! A machine for tests, which read as prose: launch, wait for the shell, type a command, compare.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{
    board::MachineError,
    config::Config,
    machine,
    outcome::Outcome,
    report::Report,
    wake::{Input, Mailbox},
};

/// What the guest has written to its serial console.
#[derive(Default)]
struct Output {
    bytes: Mutex<Vec<u8>>,
    grew: Condvar,
}

struct Sink(Arc<Output>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.bytes.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(bytes);
        self.0.grew.notify_all();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A machine that runs on a thread of its own, its serial console in the hands of the test.
pub struct Machine {
    mailbox: Arc<Mailbox>,
    output: Arc<Output>,
    /// Up to where [`Machine::wait_for`] has read.
    read: usize,
    thread: Option<JoinHandle<Result<(Outcome, Report), MachineError>>>,
}

impl Machine {
    /// Builds and starts it.
    pub fn launch(config: Config) -> Self {
        let mailbox = Mailbox::new();
        let output = Arc::<Output>::default();
        let (mail, sink) = (Arc::clone(&mailbox), Arc::clone(&output));
        let thread = std::thread::spawn(move || {
            let mut console = || Ok(Box::new(Sink(Arc::clone(&sink))) as Box<dyn Write + Send>);
            machine::run(&config, &mut console, &mail, Input::None, &mut |_| {})
        });
        Self { mailbox, output, read: 0, thread: Some(thread) }
    }

    /// Waits until the guest has written `text` after what was waited for before; returns what lay between.
    ///
    /// # Panics
    /// If the time is over or the machine has ended; the message shows the end of the console's output.
    pub fn wait_for(&mut self, text: &str, longest: Duration) -> String {
        let deadline = Instant::now() + longest;
        let mut bytes = self.output.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let unread = &bytes[self.read..];
            if let Some(at) = find(unread, text.as_bytes()) {
                let between = String::from_utf8_lossy(&unread[..at]).into_owned();
                self.read += at + text.len();
                return between;
            }
            let ended = self.thread.as_ref().is_none_or(JoinHandle::is_finished);
            let left = deadline.saturating_duration_since(Instant::now());
            if ended || left.is_zero() {
                let tail = String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(3000)..]).into_owned();
                let why = if ended { "the machine ended" } else { "nothing for too long" };
                drop(bytes);
                panic!("waiting for {text:?}: {why}; the console ends with:\n{tail}");
            }
            // Wakes now and then to notice that the machine has ended.
            let nap = left.min(Duration::from_millis(200));
            bytes = self.output.grew.wait_timeout(bytes, nap).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Types on the console.
    pub fn type_text(&self, text: &str) {
        self.mailbox.leave(|mail| mail.input.extend(text.bytes()));
    }

    /// Types a command, waits for the next `prompt`, and returns what the command printed, without the echo and with
    /// plain newlines.
    pub fn command(&mut self, command: &str, prompt: &str, longest: Duration) -> String {
        self.type_text(&format!("{command}\n"));
        self.wait_for("\n", longest);
        self.wait_for(prompt, longest).replace("\r\n", "\n")
    }

    /// Everything that the guest has written so far.
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&self.output.bytes.lock().unwrap_or_else(PoisonError::into_inner))
            .into_owned()
    }

    /// Waits for the machine's end; returns how it ended, and all that it wrote.
    ///
    /// # Panics
    /// If the time is over, or the machine's thread panicked.
    pub fn wait_end(mut self, longest: Duration) -> (Result<(Outcome, Report), MachineError>, String) {
        let thread = self.thread.take().expect("only this takes it");
        let deadline = Instant::now() + longest;
        while !thread.is_finished() {
            if Instant::now() >= deadline {
                self.thread = Some(thread);
                panic!("the machine does not end; its console:\n{}", self.console());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        (thread.join().expect("the machine's thread does not panic"), self.console())
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.mailbox.leave(|mail| mail.quit = true);
            let _ = thread.join();
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}
