//! Which guest-physical pages hold translated code.
//!
//! Invariant: a page that is marked here has no write entry in any TLB. So every write to it takes the slow path,
//! which tells the [`CodeWatch`] *before* the bytes change hands, and on every vCPU.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use x86::{GuestPhys, PAGE_SIZE};

use crate::Ram;

/// Whoever keeps translated code. Called on the vCPU thread that writes, before the write becomes visible to the
/// next instruction; for device writes, on the thread of the device.
pub trait CodeWatch: Send + Sync {
    /// `length` bytes from `first` (within one page) are about to change: drop what was made from them. If nothing
    /// made from that page is left, return true: the page is unmarked and writes are fast again.
    ///
    /// Unmarking after a `true` and another vCPU's [`CodePages::mark`] may overtake each other. An engine with several
    /// vCPUs calls [`CodePages::unmark`] itself, under the lock under which it marks, and returns false.
    fn code_written(&self, first: GuestPhys, length: u64) -> bool;
}

/// One mark a page of RAM; shared by all vCPUs.
pub struct CodePages {
    ram: Ram,
    /// One bit a page.
    marks: Vec<AtomicU64>,
    /// For writes that no [`crate::Mmu`] makes.
    watch: OnceLock<Arc<dyn CodeWatch>>,
}

impl CodePages {
    /// No page marked.
    pub fn new(ram: &Ram) -> Arc<Self> {
        let marks = (0..ram.pages().div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Self { ram: ram.clone(), marks, watch: OnceLock::new() })
    }

    /// Whether the page of `address` holds translated code.
    #[inline]
    pub fn is_marked(&self, address: GuestPhys) -> bool {
        self.mark_of(address).is_some_and(|(word, bit)| word.load(Ordering::Acquire) & bit != 0)
    }

    /// Marks the page of `address`. Returns true if it was not marked before: then every vCPU must drop its write
    /// entries for the page ([`crate::Mmu::protect_page`]) before code from it is run. Outside RAM: false.
    pub fn mark(&self, address: GuestPhys) -> bool {
        self.mark_of(address).is_some_and(|(word, bit)| word.fetch_or(bit, Ordering::AcqRel) & bit == 0)
    }

    /// Takes the mark away.
    pub fn unmark(&self, address: GuestPhys) {
        if let Some((word, bit)) = self.mark_of(address) {
            word.fetch_and(!bit, Ordering::AcqRel);
        }
    }

    /// Tells the watch that a device has written `length` bytes from `first`: to be called after the bytes are in RAM
    /// and before the guest learns of it. Does nothing quickly where no code is.
    pub fn device_wrote(&self, first: GuestPhys, length: u64) {
        let mut done = 0;
        while done < length {
            let at = first.offset(done);
            let piece = (length - done).min(PAGE_SIZE - at.page_offset());
            if self.is_marked(at)
                && let Some(watch) = self.watch.get()
                && watch.code_written(at, piece)
            {
                self.unmark(at);
            }
            done += piece;
        }
    }

    /// Who is told by [`CodePages::device_wrote`]; the first one stays.
    pub(crate) fn set_watch(&self, watch: &Arc<dyn CodeWatch>) {
        self.watch.get_or_init(|| watch.clone());
    }

    #[inline]
    fn mark_of(&self, address: GuestPhys) -> Option<(&AtomicU64, u64)> {
        let index = self.ram.page_index(address)?;
        Some((self.marks.get(index / 64)?, 1 << (index % 64)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_per_page_and_only_in_ram() {
        let ram = Ram::new(1 << 20).unwrap();
        let pages = CodePages::new(&ram);
        assert!(pages.mark(GuestPhys(0x5123)));
        assert!(!pages.mark(GuestPhys(0x5fff)), "marked already");
        assert!(pages.is_marked(GuestPhys(0x5000)));
        assert!(!pages.is_marked(GuestPhys(0x6000)));
        assert!(!pages.mark(GuestPhys(1 << 20)));
        assert!(!pages.is_marked(GuestPhys(1 << 20)));
        pages.unmark(GuestPhys(0x5800));
        assert!(!pages.is_marked(GuestPhys(0x5123)));
    }
}
