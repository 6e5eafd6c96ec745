//! One vCPU's direct-mapped cache before the shared map: the dispatcher's hot path takes no lock.
//!
//! An entry keeps its block alive, so the dispatcher runs blocks by reference. It is right if the key is equal
//! and the block is not dead.

use std::sync::Arc;

use crate::block::{Block, BlockKey};

const ENTRIES: usize = 1 << 16;

/// See the module's description.
pub struct Lookup {
    entries: Box<[Option<Arc<Block>>]>,
}

impl Lookup {
    /// An empty one.
    pub fn new() -> Self {
        Self { entries: (0..ENTRIES).map(|_| None).collect() }
    }

    /// The living block of that key if `stands` agrees; otherwise what `find` gives, in place of whatever was there.
    #[inline]
    pub fn get_or<C, E>(
        &mut self,
        key: &BlockKey,
        context: &mut C,
        stands: impl FnOnce(&mut C, &Block) -> bool,
        find: impl FnOnce(&mut C) -> Result<Arc<Block>, E>,
    ) -> Result<&Arc<Block>, E> {
        let entry = &mut self.entries[index(key)];
        let hit = entry
            .as_ref()
            .is_some_and(|block| block.key == *key && !block.is_dead() && stands(context, block));
        if !hit {
            *entry = Some(find(context)?);
        }
        // Filled above; the closure is there because the borrow checker can't take an early return.
        Ok(entry.get_or_insert_with(|| unreachable!("the entry has just been filled")))
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
