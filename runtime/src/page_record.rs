//! What is made from one guest-physical page. A guest that runs new code runs much of a page before it goes to another one, so blocks
//! are looked for in small tables, one for each page, which the host's caches have, and not in a large one, which they don't.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use hashbrown::hash_table::{Entry, HashTable};
use x86::GuestPhys;

use crate::{
    block::{Block, BlockKey},
    hash::Mix,
};

/// See the module's description.
#[derive(Default)]
pub(crate) struct PageRecord {
    /// Living blocks that begin in the page, by their keys.
    blocks: HashTable<Arc<Block>>,
    /// Living blocks that reach into it from another page.
    reaching: Vec<Arc<Block>>,
    /// Bit n: some living block has bytes in the n-th 64 bytes of the page. Answers most writes to data beside code.
    occupied: u64,
    /// Writes that killed translated blocks of this page.
    pub(crate) invalidations: u32,
}

impl PageRecord {
    /// The living block of that key, which is of this page.
    pub(crate) fn find(&self, key: &BlockKey) -> Option<&Arc<Block>> {
        self.blocks.find(hash(key), |block| block.key == *key)
    }

    /// Enters a block that begins in the page; gives the one whose place it takes.
    pub(crate) fn insert(&mut self, block: Arc<Block>) -> Option<Arc<Block>> {
        let key = block.key;
        self.occupied |= block.occupies(key.first.page());
        match self.blocks.entry(hash(&key), |other| other.key == key, |other| hash(&other.key)) {
            Entry::Occupied(mut entry) => Some(core::mem::replace(entry.get_mut(), block)),
            Entry::Vacant(entry) => {
                entry.insert(block);
                None
            }
        }
    }

    /// Enters a block that reaches into the page, which is `page`.
    pub(crate) fn reach(&mut self, block: Arc<Block>, page: GuestPhys) {
        self.occupied |= block.occupies(page);
        self.reaching.push(block);
    }

    /// Takes out a block, if it is here; the page is `page`. Whether it was one that begins here.
    pub(crate) fn remove(&mut self, block: &Block, page: GuestPhys) -> bool {
        let entry = self.blocks.find_entry(hash(&block.key), |other| other.id == block.id);
        let removed = entry.map(|entry| drop(entry.remove())).is_ok();
        self.reaching.retain(|other| other.id != block.id);
        self.occupied = self.all().fold(0, |all, other| all | other.occupies(page));
        removed
    }

    /// All blocks with bytes in the page.
    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.blocks.iter().chain(&self.reaching)
    }

    /// Whether there is none.
    pub(crate) fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.reaching.is_empty()
    }

    /// Whether one may have bytes in these 64ths of the page.
    pub(crate) fn meets(&self, chunks: u64) -> bool {
        self.occupied & chunks != 0
    }

    /// Forgets all blocks, each of which dies.
    pub(crate) fn clear(&mut self) {
        self.all().for_each(|block| block.die());
        self.blocks.clear();
        self.reaching.clear();
        self.occupied = 0;
    }
}

/// Of what tells blocks of a page apart.
fn hash(key: &BlockKey) -> u64 {
    let mut hash = Mix::default();
    (key.rip, key.mode, key.extent).hash(&mut hash);
    hash.finish()
}

#[cfg(test)]
mod tests {
    use semantics::decode::BlockEnd;
    use x86::Mode;

    use super::*;
    use crate::block::{BlockId, Extent};

    const PAGE: GuestPhys = GuestPhys(0x5000);

    fn block(id: u64, first: u64, rip: u64, extent: Extent) -> Arc<Block> {
        let key = BlockKey { first: GuestPhys(first), rip, mode: Mode::default(), extent };
        let second = (first & 0xfff == 0xfff).then_some(GuestPhys(first + 1));
        Arc::new(Block::new(BlockId(id), key, 4, second, BlockEnd::Length, 0))
    }

    fn found(record: &PageRecord, block: &Block) -> Option<u64> {
        record.find(&block.key).map(|found| found.id.0)
    }

    #[test]
    fn blocks_are_found_by_all_of_their_keys() {
        let mut record = PageRecord::default();
        let all: Vec<Arc<Block>> = (0..100)
            .map(|n| match n % 4 {
                0 => block(n, 0x5000 + 4 * n, 0x1000 + 4 * n, Extent::Full),
                1 => block(n, 0x5000 + 4 * (n - 1), 0x1000 + 4 * (n - 1), Extent::Single),
                2 => block(n, 0x5000 + 4 * (n - 2), 0x7000 + 4 * (n - 2), Extent::Full),
                _ => block(n, 0x5000 + 4 * n, 0x7000 + 4 * n, Extent::Single),
            })
            .collect();
        for block in &all {
            assert!(record.insert(Arc::clone(block)).is_none());
        }
        assert!(all.iter().all(|block| found(&record, block) == Some(block.id.0)));
        assert_eq!(record.all().count(), 100);
        for block in &all[..50] {
            assert!(record.remove(block, PAGE) && !record.remove(block, PAGE));
        }
        let left: Vec<u64> = all.iter().filter_map(|block| found(&record, block)).collect();
        assert_eq!(left, (50..100).collect::<Vec<u64>>());
    }

    #[test]
    fn a_block_takes_the_place_of_one_of_its_key() {
        let mut record = PageRecord::default();
        let (old, new) = (block(1, 0x5010, 0x10, Extent::Full), block(2, 0x5010, 0x10, Extent::Full));
        assert!(record.insert(Arc::clone(&old)).is_none());
        assert_eq!(record.insert(Arc::clone(&new)).map(|old| old.id.0), Some(1));
        assert!(!record.remove(&old, PAGE), "it is not here any more");
        assert_eq!(found(&record, &old), Some(2));
    }

    #[test]
    fn what_reaches_into_a_page_occupies_it_and_is_not_found_there() {
        let mut record = PageRecord::default();
        let crossing = block(1, 0x4fff, 0xfff, Extent::Full);
        record.reach(Arc::clone(&crossing), PAGE);
        assert!(record.meets(1) && !record.meets(2) && !record.is_empty());
        assert_eq!(found(&record, &crossing), None);
        record.insert(block(2, 0x5040, 0x40, Extent::Full));
        assert!(record.meets(2));
        assert!(!record.remove(&crossing, PAGE));
        assert!(!record.meets(1) && record.meets(2));
        record.clear();
        assert!(record.is_empty() && !record.meets(u64::MAX) && !crossing.is_dead());
    }
}
