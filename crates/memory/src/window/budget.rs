//! What a window may cost: a bucket that guest instructions fill and the host's system calls empty.
//!
//! A token is about a microsecond of the host. Measured: SIGSEGV and the return from it 2.5 us, mapping one page 5.7 us, 16 of them at once 9 us, unmapping
//! 1.5 us for one, 4.5 us for those 16, 2 MiB copied to shared memory and mapped 950 us, with memory that the host had to find first, 64 KiB
//! 65 to 75 us (the mean of 270 to 430 blocks while programs ran). What is charged includes the bookkeeping.
//!
//! Pages are paid with what it takes to unmap them, so who comes next finds no debts. What is earned while the bucket is full fills a
//! second one, the savings. They fill the first one for each new owner, as far as they go, so all owners together never spend more
//! than instructions have earned and both buckets held at first.

/// A signal.
pub const FAULT: u64 = 3;
/// A block of RAM that becomes shared memory, by its pages.
pub const fn share(pages: u64) -> u64 {
    40 + pages * 9 / 5
}
/// A page that is unmapped by itself.
pub const DROP: u64 = 2;

/// Pages that are mapped at once, and later unmapped at once.
pub fn pages(count: u64) -> u64 {
    8 + count.saturating_sub(1) * 4 / 5
}

/// Guest instructions that earn a token: they run for 3 to 5 us, so windows cost a quarter of the time at most, in the worst case.
const INSTRUCTIONS: u64 = 4_000;
/// The most tokens in each bucket, for a program that begins: some 3,600 pages one by one, each with a signal.
const CAPACITY: u64 = 40_000;

/// The buckets.
pub struct Budget {
    /// At most [`CAPACITY`], below 0 after something dear.
    tokens: i64,
    /// The savings.
    saved: u64,
    /// The count of instructions up to which they are earned.
    counted: u64,
}

impl Budget {
    /// All tokens, at a count of instructions.
    pub fn full(instructions: u64) -> Self {
        Self { tokens: CAPACITY as i64, saved: CAPACITY, counted: instructions }
    }

    /// What could be added.
    fn lacking(&self) -> u64 {
        self.tokens.abs_diff(CAPACITY as i64)
    }

    /// Adds what was earned up to a count of instructions.
    pub fn refill(&mut self, instructions: u64) {
        let earned = instructions.saturating_sub(self.counted) / INSTRUCTIONS;
        self.counted += earned * INSTRUCTIONS;
        let added = earned.min(self.lacking());
        self.tokens = self.tokens.saturating_add_unsigned(added);
        self.saved = self.saved.saturating_add(earned - added).min(CAPACITY);
    }

    /// Adds what is lacking from the savings, for a new owner.
    pub fn restock(&mut self) {
        let added = self.saved.min(self.lacking());
        self.tokens = self.tokens.saturating_add_unsigned(added);
        self.saved -= added;
    }

    pub fn charge(&mut self, cost: u64) {
        self.tokens = self.tokens.saturating_sub_unsigned(cost);
    }

    pub fn is_exhausted(&self) -> bool {
        self.tokens < 0
    }

    pub fn is_full(&self) -> bool {
        self.lacking() == 0
    }

    /// The count of instructions at which it is full if nothing more is charged.
    pub fn full_at(&self) -> u64 {
        self.counted.saturating_add(self.lacking().saturating_mul(INSTRUCTIONS))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_earn_tokens_up_to_the_capacity() {
        let mut budget = Budget::full(5);
        budget.charge(CAPACITY);
        assert!(!budget.is_exhausted());
        budget.charge(1);
        assert!(budget.is_exhausted());
        budget.refill(5 + INSTRUCTIONS - 1);
        assert!(budget.is_exhausted());
        // Parts of a token are not lost.
        budget.refill(5 + INSTRUCTIONS);
        assert!(!budget.is_exhausted());
        let full = budget.full_at();
        assert_eq!(full, 5 + (CAPACITY + 1) * INSTRUCTIONS);
        budget.refill(full - 1);
        assert!(!budget.is_full());
        budget.refill(full);
        assert!(budget.is_full());
        budget.refill(u64::MAX);
        budget.charge(CAPACITY + 1);
        assert!(budget.is_exhausted(), "no more than the capacity");
        budget.refill(0);
        assert!(budget.is_exhausted(), "the count is older");
    }

    #[test]
    fn savings_are_what_the_bucket_can_not_hold() {
        let mut budget = Budget::full(0);
        budget.charge(CAPACITY + 500);
        budget.restock();
        // The debt of 500 is not forgiven.
        assert_eq!((budget.tokens, budget.saved), (CAPACITY as i64 - 500, 0));
        budget.restock();
        assert_eq!(budget.tokens, CAPACITY as i64 - 500);
        budget.refill(500 * INSTRUCTIONS);
        assert_eq!((budget.is_full(), budget.saved), (true, 0));
        budget.refill((500 + 700) * INSTRUCTIONS);
        assert_eq!(budget.saved, 700);
        budget.charge(300);
        budget.restock();
        assert_eq!((budget.is_full(), budget.saved), (true, 400));
        budget.refill(u64::MAX);
        assert_eq!(budget.saved, CAPACITY);
    }

    #[test]
    fn pages_cost_less_together() {
        assert_eq!([1, 2, 16].map(pages), [8, 8, 20]);
    }
}
