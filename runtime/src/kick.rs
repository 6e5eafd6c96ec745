//! Stopping a running vCPU from elsewhere.

use std::sync::atomic::{AtomicU32, Ordering};

use vcpu::{Kicker, Lent};
use x86::state::exit_request;

/// The word of a vCPU's state that running code polls, for as long as that state exists: kicks of an engine that is gone do nothing.
pub struct KickTarget {
    word: Lent<AtomicU32>,
}

impl KickTarget {
    /// For a state's `exit_request`.
    ///
    /// # Safety
    /// `word` stays valid until [`KickTarget::disconnect`].
    pub unsafe fn new(word: *const AtomicU32) -> Self {
        // SAFETY: the caller's promise.
        Self { word: unsafe { Lent::new(word) } }
    }

    /// Has the engine itself look at what waits for it.
    pub(crate) fn request_attention(&self) {
        self.set(exit_request::ENGINE);
    }

    fn set(&self, bits: u32) {
        self.word.with(|word| word.fetch_or(bits, Ordering::Release));
    }

    /// From now on kicks do nothing.
    pub fn disconnect(&self) {
        self.word.take_back();
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
