//! One vCPU's set-associative cache before the shared map: the dispatcher's hot path takes no lock.
//!
//! A set is one line of the host's cache and holds all that decides a hit, so the block itself is touched only when it is
//! going to run. An entry keeps its block alive, so the dispatcher runs blocks by reference. It is right if its words are
//! equal to what is asked for and the block is not dead: rip, linear address and mode are the key's, and the addend of the
//! page's TLB entry (host address minus linear address) stands for the guest-physical page.

use std::sync::Arc;

use x86::{CpuState, GuestVirt};

use crate::block::{Block, Extent};

/// With 32,768 of them gcc, sqlite3 and the interpreter were no faster.
const SETS: usize = 1 << 11;

/// What a block is looked up by.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    rip: u64,
    /// Mode, extent and linear address: of the latter the low half, since it has no other, or is equal to rip.
    rest: u64,
    addend: u64,
}

impl Tag {
    /// For the block at the state's rip, which has this linear address, in a page with that addend.
    #[inline]
    pub fn new(state: &CpuState, linear: GuestVirt, addend: u64, extent: Extent) -> Self {
        let mode = u64::from(state.mode.0) | (extent as u64) << 31;
        Self { rip: state.rip, rest: linear.0 << 32 | mode, addend }
    }

    /// Multiplicative hashing: blocks lie close together. Single-instruction blocks live beside the full block that
    /// begins with the same instruction.
    #[inline]
    fn set(&self) -> usize {
        let key = self.rip.rotate_left(1) ^ self.rest >> 31 & 1;
        (key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - SETS.trailing_zeros())) as usize
    }
}

struct Entry {
    tag: Tag,
    block: Option<Arc<Block>>,
}

impl Entry {
    const EMPTY: Self = Self { tag: Tag { rip: 0, rest: 0, addend: 0 }, block: None };

    #[inline]
    fn holds(&self, tag: &Tag) -> bool {
        self.tag == *tag && self.block.as_ref().is_some_and(|block| !block.is_dead())
    }
}

#[repr(align(64))]
struct Set([Entry; 2]);

/// See the module's description.
pub struct Lookup {
    sets: Box<[Set]>,
}

/// Where a block is.
#[derive(Clone, Copy)]
pub struct Place {
    set: usize,
    way: usize,
}

impl Lookup {
    /// An empty one.
    pub fn new() -> Self {
        Self { sets: (0..SETS).map(|_| Set([Entry::EMPTY, Entry::EMPTY])).collect() }
    }

    /// Where the living block of that tag is.
    #[inline]
    pub fn find(&self, tag: &Tag) -> Option<Place> {
        let set = tag.set();
        let entries = &self.sets[set].0;
        if entries[0].holds(tag) {
            Some(Place { set, way: 0 })
        } else if entries[1].holds(tag) {
            Some(Place { set, way: 1 })
        } else {
            None
        }
    }

    /// The block at a place that was given since the last [`Lookup::clear`].
    #[inline]
    pub fn block(&self, place: Place) -> &Arc<Block> {
        let block = self.sets[place.set].0[place.way].block.as_ref();
        block.unwrap_or_else(|| unreachable!("places are given for blocks"))
    }

    /// Remembers a block in place of the one that came to its set before the last one.
    pub fn insert(&mut self, tag: Tag, block: Arc<Block>) -> Place {
        let set = tag.set();
        let [first, second] = &mut self.sets[set].0;
        std::mem::swap(first, second);
        *first = Entry { tag, block: Some(block) };
        Place { set, way: 0 }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        for set in &mut self.sets {
            *set = Set([Entry::EMPTY, Entry::EMPTY]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockId, BlockKey};
    use semantics::decode::BlockEnd;
    use x86::{GuestPhys, Mode};

    fn tag(rip: u64, addend: u64, extent: Extent) -> Tag {
        let state = CpuState { rip, ..CpuState::new() };
        Tag::new(&state, GuestVirt(rip), addend, extent)
    }

    fn block(id: u64, extent: Extent) -> Arc<Block> {
        let key = BlockKey { first: GuestPhys(id), rip: id, mode: Mode::default(), extent };
        Arc::new(Block::new(BlockId(id), key, 4, None, BlockEnd::Length, 0))
    }

    fn found(lookup: &Lookup, tag: &Tag) -> Option<u64> {
        lookup.find(tag).map(|place| lookup.block(place).id.0)
    }

    #[test]
    fn every_word_of_a_tag_counts() {
        let mut lookup = Lookup::new();
        lookup.insert(tag(0x1000, 7, Extent::Full), block(1, Extent::Full));
        assert_eq!(found(&lookup, &tag(0x1000, 7, Extent::Full)), Some(1));
        assert_eq!(found(&lookup, &tag(0x1000, 8, Extent::Full)), None, "another physical page");
        assert_eq!(found(&lookup, &tag(0x1000, 7, Extent::Single)), None);
        let state = CpuState { rip: 0x1000, ..CpuState::new() };
        let elsewhere = Tag::new(&state, GuestVirt(0x5000), 7, Extent::Full);
        assert_eq!(found(&lookup, &elsewhere), None, "another base of CS");
    }

    #[test]
    fn two_of_a_set_stay_and_the_third_displaces_the_first() {
        let mut lookup = Lookup::new();
        let first = tag(0, 0, Extent::Full);
        let others: Vec<Tag> = (1..)
            .map(|rip| tag(rip, 0, Extent::Full))
            .filter(|tag| tag.set() == first.set())
            .take(2)
            .collect();
        lookup.insert(first, block(0, Extent::Full));
        lookup.insert(others[0], block(1, Extent::Full));
        assert_eq!((found(&lookup, &first), found(&lookup, &others[0])), (Some(0), Some(1)));
        lookup.insert(others[1], block(2, Extent::Full));
        let all = [first, others[0], others[1]].map(|tag| found(&lookup, &tag));
        assert_eq!(all, [None, Some(1), Some(2)]);
    }

    #[test]
    fn the_dead_are_not_found() {
        let mut lookup = Lookup::new();
        let tag = tag(0x1000, 7, Extent::Full);
        let place = lookup.insert(tag, block(1, Extent::Full));
        lookup.block(place).die();
        assert_eq!(found(&lookup, &tag), None);
    }
}
