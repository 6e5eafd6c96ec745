//! A set of interrupt vectors: IRR, ISR and TMR.

/// 256 bits, one a vector.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct VectorSet([u64; 4]);

impl VectorSet {
    pub(super) fn insert(&mut self, vector: u8) {
        self.0[usize::from(vector) / 64] |= 1 << (vector % 64);
    }

    pub(super) fn remove(&mut self, vector: u8) {
        self.0[usize::from(vector) / 64] &= !(1 << (vector % 64));
    }

    pub(super) fn contains(&self, vector: u8) -> bool {
        self.0[usize::from(vector) / 64] & (1 << (vector % 64)) != 0
    }

    /// The vector with the highest priority.
    #[inline]
    pub(super) fn highest(&self) -> Option<u8> {
        (0..4).rev().find(|&i| self.0[i] != 0).map(|i| i as u8 * 64 + 63 - self.0[i].leading_zeros() as u8)
    }

    /// One of the eight 32-bit registers that show the set.
    pub(super) fn register(&self, index: u32) -> u32 {
        let word = self.0[(index as usize / 2) % 4];
        (word >> (32 * (index & 1))) as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn highest_and_registers() {
        let mut set = VectorSet::default();
        assert_eq!(set.highest(), None);
        for vector in [0, 31, 32, 63, 64, 255] {
            set.insert(vector);
            assert_eq!(set.highest(), Some(vector));
            assert_ne!(set.register(u32::from(vector) / 32) & 1 << (vector % 32), 0);
        }
        set.remove(255);
        assert_eq!(set.highest(), Some(64));
        assert!(set.contains(63) && !set.contains(255));
    }
}
