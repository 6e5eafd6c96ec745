//! Counters that compiled code counts its executions down with: close together, because a warm guest runs through tens of
//! thousands of them, and outside of code memory, whose executable view is not written.

use std::sync::atomic::{AtomicI32, Ordering};

/// Counters of one allocation, which never moves: compiled code has their addresses.
const CHUNK: usize = 4096;

/// Number of a counter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter(u32);

/// All counters.
#[derive(Default)]
pub struct Counters {
    chunks: Vec<Box<[AtomicI32]>>,
    /// How many were ever taken.
    taken: u32,
    free: Vec<Counter>,
}

impl Counters {
    /// A counter that counts down from a number.
    pub fn take(&mut self, from: u32) -> Counter {
        let counter = self.free.pop().unwrap_or_else(|| {
            let counter = Counter(self.taken);
            self.taken += 1;
            counter
        });
        if self.chunks.len() <= counter.0 as usize / CHUNK {
            self.chunks.push((0..CHUNK).map(|_| AtomicI32::new(0)).collect());
        }
        self.set(counter, from);
        counter
    }

    /// For another to take. Nothing may count with it any more.
    pub fn give_back(&mut self, counter: Counter) {
        self.free.push(counter);
    }

    /// Has it count down from another number.
    pub fn set(&mut self, counter: Counter, from: u32) {
        self.at(counter).store(from as i32, Ordering::Relaxed);
    }

    /// What it has come to, below zero at the end.
    pub fn left(&self, counter: Counter) -> i32 {
        self.at(counter).load(Ordering::Relaxed)
    }

    /// Where it is, as long as `self` lives.
    pub fn address(&self, counter: Counter) -> u64 {
        self.at(counter).as_ptr() as u64
    }

    fn at(&self, counter: Counter) -> &AtomicI32 {
        &self.chunks[counter.0 as usize / CHUNK][counter.0 as usize % CHUNK]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_stay_where_they_are_and_are_taken_again() {
        let mut counters = Counters::default();
        let first = counters.take(7);
        let address = counters.address(first);
        let others: Vec<Counter> = (0..2 * CHUNK).map(|n| counters.take(n as u32)).collect();
        assert_eq!((counters.address(first), counters.left(first)), (address, 7));
        assert_eq!(counters.left(others[CHUNK]), CHUNK as i32);
        counters.give_back(others[3]);
        assert_eq!(counters.take(1), others[3]);
        assert_eq!(counters.left(others[3]), 1);
    }
}
