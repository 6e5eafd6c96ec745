//! Counters that compiled code counts its executions down with: close together, because a warm guest runs through tens of
//! thousands of them, behind code memory, where a 32-bit displacement reaches them ([`crate::code_memory::CodeMemory::cells`]).

use std::sync::atomic::{AtomicI32, Ordering};

/// Number of a counter, which is that of its cell.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Counter(u32);

/// Which of some cells are counters.
#[derive(Default)]
pub struct Counters {
    /// How many were ever taken.
    taken: u32,
    free: Vec<Counter>,
}

impl Counters {
    /// A counter that counts down from a number; `None` if all cells are taken.
    pub fn take(&mut self, cells: &[AtomicI32], from: u32) -> Option<Counter> {
        let counter = match self.free.pop() {
            Some(counter) => counter,
            None => {
                let counter = Counter(self.taken);
                cells.get(self.taken as usize)?;
                self.taken += 1;
                counter
            }
        };
        counter.set(cells, from);
        Some(counter)
    }

    /// For another to take. Nothing may count with it any more.
    pub fn give_back(&mut self, counter: Counter) {
        self.free.push(counter);
    }
}

impl Counter {
    /// Has it count down from another number.
    pub fn set(self, cells: &[AtomicI32], from: u32) {
        cells[self.0 as usize].store(from as i32, Ordering::Relaxed);
    }

    /// What it has come to, below zero at the end.
    pub fn left(self, cells: &[AtomicI32]) -> i32 {
        cells[self.0 as usize].load(Ordering::Relaxed)
    }

    /// Where it is.
    pub fn address(self, cells: &[AtomicI32]) -> u64 {
        cells[self.0 as usize].as_ptr() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_taken_again_and_end() {
        let cells = [const { AtomicI32::new(0) }; 9];
        let mut counters = Counters::default();
        let first = counters.take(&cells, 7).unwrap();
        let others: Vec<Counter> = (0..8).map(|n| counters.take(&cells, n).unwrap()).collect();
        assert_eq!((first.left(&cells), others[5].left(&cells)), (7, 5));
        assert_eq!(others[0].address(&cells), first.address(&cells) + 4);
        assert!(counters.take(&cells, 1).is_none());
        counters.give_back(others[3]);
        assert_eq!(counters.take(&cells, 1), Some(others[3]));
        assert_eq!(others[3].left(&cells), 1);
    }
}
