//! What happens beside the vCPU thread, and how it gets there.
//!
//! The vCPU thread owns the board: engine, devices, everything. Other threads own file descriptors only, and leave
//! what they have in the [`Mailbox`]: bytes typed, a wish to quit, a signal. Whoever leaves something kicks the vCPU, and wakes it if it sleeps in HLT.

use std::{
    collections::VecDeque,
    io,
    os::fd::OwnedFd,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, PollFd, PollFlags, eventfd, poll},
    time::Timespec,
};
use vcpu::Kick;

use crate::console::{Action, EscapeFilter, HELP};

/// Typed bytes that are kept for a guest that does not read; more stay in the terminal.
const MOST_INPUT: usize = 64 << 10;

/// What the mailbox holds.
#[derive(Default, Debug)]
pub struct Mail {
    /// Bytes for the serial console.
    pub input: VecDeque<u8>,
    /// The user wants to quit.
    pub quit: bool,
    /// A signal asks this process to end.
    pub signal: Option<i32>,
}

/// Shared between the vCPU thread and the others.
#[derive(Default)]
pub struct Mailbox {
    mail: Mutex<Mail>,
    arrived: Condvar,
    /// Set with every change, so that the vCPU thread looks without taking the lock.
    news: AtomicBool,
    kick: Mutex<Option<Kick>>,
}

impl Mailbox {
    /// An empty mailbox.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Whom to kick when something arrives.
    pub fn connect(&self, kick: Kick) {
        *self.kick.lock().unwrap_or_else(PoisonError::into_inner) = Some(kick);
    }

    fn lock(&self) -> MutexGuard<'_, Mail> {
        self.mail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Leaves something and rouses the vCPU thread.
    pub fn leave(&self, change: impl FnOnce(&mut Mail)) {
        change(&mut self.lock());
        self.news.store(true, Ordering::Release);
        self.arrived.notify_all();
        if let Some(kick) = &*self.kick.lock().unwrap_or_else(PoisonError::into_inner) {
            kick.kick();
        }
    }

    /// The mail, if there was news since the last look.
    pub fn look(&self) -> Option<MutexGuard<'_, Mail>> {
        self.news.swap(false, Ordering::Acquire).then(|| self.lock())
    }

    /// Says that some mail was left in the box on purpose, to be looked at again.
    pub fn keep(&self) {
        self.news.store(true, Ordering::Release);
    }

    /// Sleeps until there is news or the time is over.
    pub fn sleep(&self, longest: Option<Duration>) {
        let mail = self.lock();
        let idle = |_: &mut Mail| !self.news.load(Ordering::Acquire);
        // A poisoned lock means that another thread panicked: waking early is right.
        match longest {
            Some(time) => drop(self.arrived.wait_timeout_while(mail, time, idle)),
            None => drop(self.arrived.wait_while(mail, idle)),
        }
    }

    fn has_room(&self) -> bool {
        self.lock().input.len() < MOST_INPUT
    }
}

/// Where typed input comes from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Input {
    /// Standard input of this process, with the escape key.
    Stdin,
    /// Nowhere (or from a test, through the mailbox).
    None,
}

/// The thread that waits for file descriptors. Dropping it stops and joins it.
pub struct Watcher {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Watcher {
    /// Starts the thread.
    pub fn start(mailbox: Arc<Mailbox>, input: Input) -> io::Result<Self> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC)?);
        let stopped = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("watcher".into())
            .spawn(move || watch(&mailbox, input, &stopped))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Writing 1 to an eventfd at 0 can't fail.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn watch(mailbox: &Mailbox, input: Input, stop: &OwnedFd) {
    let stdin = std::io::stdin();
    let mut reading = input == Input::Stdin;
    let mut escape = EscapeFilter::default();
    let mut buffer = [0; 4096];
    loop {
        let has_room = mailbox.has_room();
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        if reading && has_room {
            fds.push(PollFd::new(&stdin, PollFlags::IN));
        }
        let patience = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
        match poll(&mut fds, (reading && !has_room).then_some(&patience)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        let ready: Vec<bool> = fds.iter().map(|fd| !fd.revents().is_empty()).collect();
        if ready[0] {
            return;
        }
        if ready.get(1) == Some(&true) {
            match rustix::io::read(&stdin, &mut buffer) {
                // End of input: the guest goes on without.
                Ok(0) => reading = false,
                Ok(count) => typed(mailbox, &mut escape, &buffer[..count]),
                Err(rustix::io::Errno::INTR | rustix::io::Errno::AGAIN) => {}
                Err(_) => reading = false,
            }
        }
    }
}

fn typed(mailbox: &Mailbox, escape: &mut EscapeFilter, bytes: &[u8]) {
    let mut guest = Vec::with_capacity(bytes.len());
    let action = escape.filter(bytes, &mut guest);
    if action == Some(Action::Help) {
        eprint!("{HELP}");
    }
    mailbox.leave(|mail| {
        mail.input.extend(guest);
        mail.quit |= action == Some(Action::Quit);
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sleep_ends_with_news() {
        let mailbox = Mailbox::new();
        let other = Arc::clone(&mailbox);
        let thread = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            other.leave(|mail| mail.quit = true);
        });
        mailbox.sleep(None);
        assert!(mailbox.look().unwrap().quit);
        assert!(mailbox.look().is_none());
        thread.join().unwrap();
    }
}
