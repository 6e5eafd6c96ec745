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

/// A sequence of disturbances that depends on its seed alone (xorshift64). They come often at first and ever more
/// seldom later, so that small guests meet many and a booting kernel still gets somewhere.
pub(crate) struct Stress {
    random: u64,
    turns: u64,
    /// The turn of the next disturbance.
    next: u64,
}

impl Stress {
    pub(crate) fn new(seed: u64) -> Self {
        // The generator's one fixed point is 0.
        Self { random: seed | 1 << 63, turns: 0, next: 0 }
    }

    /// What to do now: most of the time nothing.
    pub(crate) fn next(&mut self) -> Option<Disturbance> {
        self.turns += 1;
        if self.turns < self.next {
            return None;
        }
        let random = self.random();
        self.next = self.turns + 1 + random % (8 + self.turns / 256);
        Some(match random >> 60 {
            0..3 => Disturbance::Evict,
            3 => Disturbance::Clear,
            4..12 => Disturbance::Unlink(random >> 32),
            _ => Disturbance::Forget,
        })
    }

    fn random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }
}
