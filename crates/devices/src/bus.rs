//! Which range of ports or addresses belongs to whom.
//!
//! A [`Bus`] holds no devices. It maps ranges to keys of its owner's choice, and the owner ([`crate::Chipset`]) turns
//! a key into a device. So devices need neither locks nor reference counts, and one access can touch several of them
//! (a register, the interrupt controllers, the power control) with plain `&mut`.
//!
//! An access that its range can't take in one piece, because it is wider than the device's data path or sticks out of
//! the range, is split into halves until the pieces fit, as a bridge does for narrow ISA devices. Bytes that nobody
//! claims read as ones and swallow writes.

/// A device that the board brings along, on top of those that [`crate::Chipset`] has itself.
pub trait Device: Send {
    /// Reads `size` (1, 2, 4 or 8) bytes at `offset` of the device's range; bits beyond the size are ignored.
    fn read(&mut self, offset: u64, size: u8, now: u64) -> u64;

    /// Writes the low `size` bytes of `value` at `offset`.
    fn write(&mut self, offset: u64, size: u8, value: u64, now: u64);

    /// When the device does something by itself, in nanoseconds of the machine's clock.
    fn next_deadline(&self) -> Option<u64> {
        None
    }

    /// Does what is due at `now`.
    fn advance(&mut self, now: u64) {
        let _ = now;
    }
}

/// Why a range could not be registered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BusError {
    /// The range is empty or wraps.
    #[error("a range of {length:#x} bytes at {first:#x} is empty or goes beyond the end of the bus")]
    Range {
        /// First address.
        first: u64,
        /// Bytes.
        length: u64,
    },
    /// Somebody else is there.
    #[error("{length:#x} bytes at {first:#x} overlap {taken_length:#x} bytes at {taken:#x}")]
    Overlap {
        /// First address asked for.
        first: u64,
        /// Bytes asked for.
        length: u64,
        /// First address of the range that is there.
        taken: u64,
        /// Its bytes.
        taken_length: u64,
    },
}

/// One claimed range.
#[derive(Clone, Copy, Debug)]
struct Claim<K> {
    first: u64,
    length: u64,
    widest: u8,
    key: K,
}

/// A piece of an access: what one device sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Piece<K> {
    /// Who is asked; `None`: nobody.
    pub target: Option<(K, u64)>,
    /// First byte of the piece within the access.
    pub at: u8,
    /// Bytes: 1, 2, 4 or 8.
    pub size: u8,
}

/// The pieces of one access, at most eight.
#[derive(Clone, Copy, Debug)]
pub struct Pieces<K> {
    pieces: [Piece<K>; 8],
    count: usize,
}

impl<K> std::ops::Deref for Pieces<K> {
    type Target = [Piece<K>];

    fn deref(&self) -> &[Piece<K>] {
        &self.pieces[..self.count]
    }
}

/// Ranges of addresses, each with a key.
#[derive(Clone, Debug)]
pub struct Bus<K> {
    /// Sorted by `first`; no two overlap.
    claims: Vec<Claim<K>>,
    last: u64,
}

impl<K: Copy> Bus<K> {
    /// An empty bus with addresses 0..=`last`.
    pub fn new(last: u64) -> Self {
        Self { claims: Vec::new(), last }
    }

    /// Gives `length` addresses from `first` to `key`. Accesses reach it in pieces of at most `widest` bytes.
    pub fn claim(&mut self, first: u64, length: u64, widest: u8, key: K) -> Result<(), BusError> {
        let end = length.checked_sub(1).and_then(|length| first.checked_add(length));
        if end.is_none_or(|end| end > self.last) {
            return Err(BusError::Range { first, length });
        }
        let index = self.claims.partition_point(|claim| claim.first <= first);
        let overlaps = |claim: &&Claim<K>| {
            if claim.first < first {
                first - claim.first < claim.length
            } else {
                claim.first - first < length
            }
        };
        let before = index.checked_sub(1).and_then(|index| self.claims.get(index));
        if let Some(taken) = before.into_iter().chain(self.claims.get(index)).find(overlaps) {
            let (taken, taken_length) = (taken.first, taken.length);
            return Err(BusError::Overlap { first, length, taken, taken_length });
        }
        self.claims.insert(index, Claim { first, length, widest, key });
        Ok(())
    }

    /// Who has `address`: the claim and the offset in it.
    fn find(&self, address: u64) -> Option<(&Claim<K>, u64)> {
        let index = self.claims.partition_point(|claim| claim.first <= address).checked_sub(1)?;
        let claim = &self.claims[index];
        let offset = address - claim.first;
        (offset < claim.length).then_some((claim, offset))
    }

    /// Splits an access of `size` (1, 2, 4 or 8; others are taken as the next smaller) bytes among its targets.
    pub fn route(&self, address: u64, size: u8) -> Pieces<K> {
        let size = if size >= 8 { 8 } else { 1 << size.max(1).ilog2() };
        let mut pieces = Pieces { pieces: [Piece { target: None, at: 0, size: 1 }; 8], count: 0 };
        self.split(address, 0, size, &mut pieces);
        pieces
    }

    fn split(&self, address: u64, at: u8, size: u8, pieces: &mut Pieces<K>) {
        let first = address.wrapping_add(u64::from(at)) & self.last;
        let target = self.find(first);
        let fits = target
            .is_some_and(|(claim, offset)| size <= claim.widest && claim.length - offset >= u64::from(size));
        if size == 1 || fits {
            let target = target.map(|(claim, offset)| (claim.key, offset));
            pieces.pieces[pieces.count] = Piece { target, at, size };
            pieces.count += 1;
        } else {
            self.split(address, at, size / 2, pieces);
            self.split(address, at + size / 2, size / 2, pieces);
        }
    }
}

/// The low `size` bytes of `value`.
pub(crate) const fn truncate(value: u64, size: u8) -> u64 {
    if size >= 8 { value } else { value & ((1 << (8 * size)) - 1) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bus() -> Bus<char> {
        let mut bus = Bus::new(0xffff);
        bus.claim(0x10, 4, 4, 'w').unwrap();
        bus.claim(0x14, 4, 1, 'b').unwrap();
        bus
    }

    #[test]
    fn overlaps_and_nonsense_are_refused() {
        let mut bus = bus();
        assert!(matches!(bus.claim(0x13, 1, 1, 'x'), Err(BusError::Overlap { taken: 0x10, .. })));
        assert!(matches!(bus.claim(0x0, 0x11, 1, 'x'), Err(BusError::Overlap { taken: 0x10, .. })));
        assert!(matches!(bus.claim(0x17, 9, 1, 'x'), Err(BusError::Overlap { taken: 0x14, .. })));
        assert!(matches!(bus.claim(0x100, 0, 1, 'x'), Err(BusError::Range { .. })));
        assert!(matches!(bus.claim(0xffff, 2, 1, 'x'), Err(BusError::Range { .. })));
        assert!(matches!(bus.claim(u64::MAX, 2, 1, 'x'), Err(BusError::Range { .. })));
        bus.claim(0x18, 1, 1, 'x').unwrap();
        bus.claim(0xffff, 1, 1, 'x').unwrap();
    }

    #[test]
    fn accesses_are_split_only_where_they_must() {
        let bus = bus();
        let route = |address, size| {
            bus.route(address, size).iter().map(|p| (p.target, p.at, p.size)).collect::<Vec<_>>()
        };
        assert_eq!(route(0x10, 4), [(Some(('w', 0)), 0, 4)]);
        assert_eq!(route(0x12, 2), [(Some(('w', 2)), 0, 2)]);
        assert_eq!(route(0x12, 4), [(Some(('w', 2)), 0, 2), (Some(('b', 0)), 2, 1), (Some(('b', 1)), 3, 1)]);
        assert_eq!(route(0x0f, 2), [(None, 0, 1), (Some(('w', 0)), 1, 1)]);
        assert_eq!(route(0x20, 8).len(), 8);
    }

    #[test]
    fn odd_sizes_and_wrapping_addresses_are_survived() {
        let bus = bus();
        for size in 0..=255 {
            assert!(bus.route(u64::MAX, size).len() <= 8);
            assert!(!bus.route(0xffff, size).is_empty());
        }
    }
}
