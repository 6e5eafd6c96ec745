//! Stopping a running vCPU from another thread.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU32, Ordering},
};

use vcpu::Kicker;
use x86::state::exit_request;

/// The word of a vCPU's state that running code polls, for as long as that state exists.
///
/// Invariant: the pointer is valid while the mutex holds it; the engine takes it away ([`KickTarget::disconnect`])
/// before its state is freed. Kicks of an engine that is gone do nothing.
pub struct KickTarget {
    word: Mutex<Option<Word>>,
}

struct Word(*const AtomicU32);

// SAFETY: the pointer is only dereferenced under the mutex while the state lives, and only as an atomic.
unsafe impl Send for Word {}

impl KickTarget {
    /// For a state's `exit_request`.
    ///
    /// # Safety
    /// `word` stays valid until [`KickTarget::disconnect`].
    pub unsafe fn new(word: *const AtomicU32) -> Self {
        Self { word: Mutex::new(Some(Word(word))) }
    }

    /// Has the engine itself look at what waits for it.
    pub(crate) fn request_attention(&self) {
        self.set(exit_request::ENGINE);
    }

    fn set(&self, bits: u32) {
        let word = self.word.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(word) = &*word {
            // SAFETY: valid as long as it is here, see the invariant.
            unsafe { &*word.0 }.fetch_or(bits, Ordering::Release);
        }
    }

    /// From now on kicks do nothing.
    pub fn disconnect(&self) {
        *self.word.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl Kicker for KickTarget {
    fn kick(&self) {
        self.set(exit_request::KICK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kicks_reach_the_word_until_it_is_gone() {
        let word = AtomicU32::new(0);
        // SAFETY: disconnected below, while `word` lives.
        let target = unsafe { KickTarget::new(&raw const word) };
        target.kick();
        assert_eq!(word.swap(0, Ordering::Relaxed), exit_request::KICK);
        target.disconnect();
        target.kick();
        assert_eq!(word.load(Ordering::Relaxed), 0);
    }
}
