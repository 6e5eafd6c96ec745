//! Self-modifying and cross-modifying code: what happens when a page that blocks were made from is written.
//!
//! The memory crate calls [`CodeWatch::code_written`] on the writing vCPU's thread before the bytes change. Blocks are
//! killed one by one, by the bytes that they cover, because kernels patch their text thousands of times while they boot and
//! keep data beside code; the page stays marked as long as one block of it lives.

use std::sync::Arc;

use memory::CodeWatch;
use x86::{GuestPhys, PAGE_SIZE};

use crate::{
    block::Block,
    block_cache::{CodeCache, Inner},
    page_record::PageRecord,
};

impl CodeWatch for CodeCache {
    fn code_written(&self, first: GuestPhys, length: u64) -> bool {
        let inner = &mut *self.lock();
        let Some(record) = inner.pages.get_mut(&first.page()) else { return true };
        if !record.meets(chunks(first.page_offset(), length)) {
            return record.is_empty();
        }
        let dead: Vec<Arc<Block>> =
            record.all().filter(|block| block.overlaps(first, length)).cloned().collect();
        // Interpreted code costs nothing to lose: a kernel patches its text thousands of times before it is warm.
        if dead.iter().any(|block| inner.links.is_translated(block)) {
            record.invalidations = record.invalidations.saturating_add(1);
        }
        for block in &dead {
            inner.counters.invalidated += 1;
            inner.kill(block);
        }
        inner.pages.get(&first.page()).is_none_or(PageRecord::is_empty)
    }
}

impl Inner {
    /// Takes a block out of everything that could lead to it.
    pub(crate) fn kill(&mut self, block: &Arc<Block>) {
        block.die();
        for page in [Some(block.key.first.page()), block.second].into_iter().flatten() {
            if let Some(record) = self.pages.get_mut(&page)
                && record.remove(block, page)
            {
                self.blocks -= 1;
            }
        }
        // What it is a part of dies with it; the other parts live and count anew.
        for head in self.links.regions_of(block) {
            let Some(code) = head.code() else { continue };
            self.links.remove(&head);
            for cache in &self.jump_caches {
                cache.forget(head.key.rip, code);
            }
            head.set_code(0);
            head.cool_down();
        }
    }
}

impl Block {
    /// Bit n: it has bytes in the n-th 64 bytes of the page.
    pub(crate) fn occupies(&self, page: GuestPhys) -> u64 {
        let offset = self.key.first.page_offset();
        let bytes = u64::from(self.bytes);
        let in_first = bytes.min(PAGE_SIZE - offset);
        if self.key.first.page() == page {
            chunks(offset, in_first)
        } else if self.second == Some(page) {
            chunks(0, bytes - in_first)
        } else {
            0
        }
    }
}

/// Bit n: `offset .. offset + length`, in a page, meets its n-th 64 bytes.
fn chunks(offset: u64, length: u64) -> u64 {
    if length == 0 {
        return 0;
    }
    let first = offset >> 6;
    let last = ((offset + length - 1) >> 6).min(63);
    (u64::MAX << first) & (u64::MAX >> (63 - last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_of_a_page() {
        assert_eq!(chunks(0, 1), 1);
        assert_eq!(chunks(63, 2), 3);
        assert_eq!(chunks(0, 4096), u64::MAX);
        assert_eq!(chunks(4095, 1), 1 << 63);
        assert_eq!(chunks(64, 64), 2);
        assert_eq!(chunks(100, 0), 0);
    }
}
