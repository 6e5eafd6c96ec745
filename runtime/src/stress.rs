//! Random disturbances for tests: everything that the engine may drop at any time is dropped at random times.

/// What to drop.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Disturbance {
    /// All compiled code.
    Evict,
    /// All blocks.
    Clear,
    /// The links of the exits of one block, chosen by the number.
    Unlink(u64),
    /// This vCPU's caches.
    Forget,
}

/// A sequence of disturbances that depends on its seed alone (xorshift64).
pub(crate) struct Stress(u64);

impl Stress {
    pub(crate) fn new(seed: u64) -> Self {
        // The generator's one fixed point is 0.
        Self(seed | 1 << 63)
    }

    /// What to do now: most of the time nothing.
    pub(crate) fn next(&mut self) -> Option<Disturbance> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        match self.0 >> 54 {
            0..4 => Some(Disturbance::Evict),
            4..6 => Some(Disturbance::Clear),
            6..40 => Some(Disturbance::Unlink(self.0 & 0xffff)),
            40..56 => Some(Disturbance::Forget),
            _ => None,
        }
    }
}
