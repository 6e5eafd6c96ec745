//! Stopping a vCPU from elsewhere: `kvm_run.immediate_exit` for one that is about to enter the guest, a signal for
//! one that is in it.

use std::sync::{
    Once,
    atomic::{AtomicI32, AtomicU8, Ordering},
};

use vcpu::{Kicker, Lent};

/// Sent to the thread that runs the guest; its handler does nothing, the interrupted system call is what counts.
fn kick_signal() -> libc::c_int {
    libc::SIGRTMIN() + 1
}

extern "C" fn ignore(_: libc::c_int) {}

/// Without a handler the signal would end the process; with SA_RESTART it would not end KVM_RUN.
fn install_handler() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        // SAFETY: an all-zero sigaction is a valid one (no flags, empty mask).
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as libc::sighandler_t;
        // SAFETY: the handler touches nothing; the structure is initialized.
        unsafe { libc::sigaction(kick_signal(), &raw const action, std::ptr::null_mut()) };
    });
}

/// The vCPU that kicks go to, for as long as it exists: the engine disconnects it before its `kvm_run` is unmapped.
pub(crate) struct KickTarget {
    immediate_exit: Lent<AtomicU8>,
    /// The thread that is in KVM_RUN, or 0.
    thread: AtomicI32,
}

impl KickTarget {
    /// For `kvm_run.immediate_exit` of a vCPU.
    ///
    /// # Safety
    /// `word` stays valid until [`KickTarget::disconnect`].
    pub(crate) unsafe fn new(word: *const AtomicU8) -> Self {
        install_handler();
        // SAFETY: the caller's promise.
        Self { immediate_exit: unsafe { Lent::new(word) }, thread: AtomicI32::new(0) }
    }

    /// This thread is about to run the guest.
    pub(crate) fn enter(&self) {
        // SAFETY: no arguments, no effects.
        let thread = unsafe { libc::gettid() };
        // A kick that does not see this has stored immediate_exit before, and the kernel will see that.
        self.thread.store(thread, Ordering::SeqCst);
    }

    /// It does not run any more.
    pub(crate) fn leave(&self) {
        self.thread.store(0, Ordering::SeqCst);
    }

    /// Kicks so far were heard.
    pub(crate) fn clear(&self) {
        self.set(0);
    }

    /// From now on kicks do nothing.
    pub(crate) fn disconnect(&self) {
        self.immediate_exit.take_back();
    }

    /// Returns whether there still is a vCPU.
    fn set(&self, value: u8) -> bool {
        // The kernel reads it as a byte.
        self.immediate_exit.with(|word| word.store(value, Ordering::SeqCst)).is_some()
    }
}

impl Kicker for KickTarget {
    fn kick(&self) {
        let connected = self.set(1);
        let thread = self.thread.load(Ordering::SeqCst);
        if connected && thread != 0 {
            // SAFETY: a signal with a handler that does nothing, to a thread of this process; if the thread has ended
            // meanwhile the call fails, which is as good.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, kick_signal()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn kicks_reach_the_word_until_it_is_gone() {
        let word = AtomicU8::new(0);
        // SAFETY: disconnected below, while `word` lives.
        let target = unsafe { KickTarget::new(&raw const word) };
        target.kick();
        assert_eq!(word.load(Ordering::SeqCst), 1);
        target.clear();
        target.disconnect();
        target.kick();
        assert_eq!(word.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn a_kick_interrupts_a_system_call() {
        let word: &'static AtomicU8 = Box::leak(Box::new(AtomicU8::new(0)));
        // SAFETY: the word lives for ever.
        let target = std::sync::Arc::new(unsafe { KickTarget::new(word) });
        let theirs = std::sync::Arc::clone(&target);
        let sleeper = std::thread::spawn(move || {
            theirs.enter();
            let long = libc::timespec { tv_sec: 30, tv_nsec: 0 };
            // SAFETY: a valid timespec, and no interest in the rest.
            let result = unsafe { libc::nanosleep(&raw const long, std::ptr::null_mut()) };
            (result, std::io::Error::last_os_error().raw_os_error())
        });
        while !sleeper.is_finished() {
            target.kick();
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(sleeper.join().unwrap(), (-1, Some(libc::EINTR)));
    }
}
