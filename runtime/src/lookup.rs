//! One vCPU's direct-mapped cache before the shared map: the dispatcher's hot path takes no lock.
//!
//! An entry keeps its block alive, so the dispatcher runs blocks by reference. It is right if the key is equal
//! and the block is not dead.

use std::sync::Arc;

use crate::block::{Block, BlockKey};

const ENTRIES: usize = 1 << 14;

/// See the module's description.
pub struct Lookup {
    entries: Box<[Option<Arc<Block>>]>,
}

impl Lookup {
    /// An empty one.
    pub fn new() -> Self {
        Self { entries: (0..ENTRIES).map(|_| None).collect() }
    }

    /// The living block of that key, if it is here.
    #[inline]
    pub fn get(&self, key: &BlockKey) -> Option<&Arc<Block>> {
        self.entries[index(key)].as_ref().filter(|block| block.key == *key && !block.is_dead())
    }

    /// Remembers a block in place of whatever was there.
    pub fn put(&mut self, block: Arc<Block>) -> &Arc<Block> {
        let entry = &mut self.entries[index(&block.key)];
        entry.insert(block)
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.entries.fill(None);
    }
}

#[inline]
fn index(key: &BlockKey) -> usize {
    let address = key.rip ^ (key.rip >> 13) ^ (key.first.0 >> 12);
    // Single-instruction blocks live beside the full block that begins with the same instruction.
    (address as usize ^ (key.extent as usize) << 7) & (ENTRIES - 1)
}
