//! A fast hash for tables whose keys are addresses and small numbers. It resists no adversary: a guest that seeks
//! collisions slows down itself.

use std::hash::{BuildHasherDefault, Hasher};

/// A hash map with that hash.
pub type Map<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<Mix>>;

/// A hash set with that hash.
pub type Set<K> = hashbrown::HashSet<K, BuildHasherDefault<Mix>>;

/// Multiplies and folds each word.
#[derive(Default)]
pub struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        // hashbrown takes the bucket from the low bits and a tag from the high ones.
        self.0 ^ (self.0 >> 32)
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.write_u64(u64::from(byte));
        }
    }

    fn write_u8(&mut self, value: u8) {
        self.write_u64(u64::from(value));
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(u64::from(value));
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
    }

    fn write_usize(&mut self, value: usize) {
        self.write_u64(value as u64);
    }

    fn write_isize(&mut self, value: isize) {
        self.write_u64(value as u64);
    }
}
