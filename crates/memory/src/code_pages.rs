//! Which guest-physical pages hold translated code.
//!
//! Invariant: a page that is marked here has no write entry in any TLB. So every write to it takes the slow path,
//! which tells the [`CodeWatch`] *before* the bytes change hands, and on every vCPU.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use x86::GuestPhys;

use crate::Ram;

/// Whoever keeps translated code. Called on the vCPU thread that writes, before the write becomes visible to the
/// next instruction.
pub trait CodeWatch: Send + Sync {
    /// `length` bytes from `first` (within one page) are about to change: drop what was made from them. If nothing
    /// made from that page is left, return true: the page is unmarked and writes are fast again.
    fn code_written(&self, first: GuestPhys, length: u64) -> bool;
}

/// One mark a page of RAM; shared by all vCPUs.
pub struct CodePages {
    ram: Ram,
    marks: Vec<AtomicU8>,
}

impl CodePages {
    /// No page marked.
    pub fn new(ram: &Ram) -> Arc<Self> {
        let marks = (0..ram.pages()).map(|_| AtomicU8::new(0)).collect();
        Arc::new(Self { ram: ram.clone(), marks })
    }

    /// Whether the page of `address` holds translated code.
    #[inline]
    pub fn is_marked(&self, address: GuestPhys) -> bool {
        self.mark_of(address).is_some_and(|mark| mark.load(Ordering::Acquire) != 0)
    }

    /// Marks the page of `address`. Returns true if it was not marked before: then every vCPU must drop its write
    /// entries for the page ([`crate::Mmu::protect_page`]) before code from it is run. Outside RAM: false.
    pub fn mark(&self, address: GuestPhys) -> bool {
        self.mark_of(address).is_some_and(|mark| mark.swap(1, Ordering::AcqRel) == 0)
    }

    /// Takes the mark away.
    pub fn unmark(&self, address: GuestPhys) {
        if let Some(mark) = self.mark_of(address) {
            mark.store(0, Ordering::Release);
        }
    }

    fn mark_of(&self, address: GuestPhys) -> Option<&AtomicU8> {
        self.marks.get(self.ram.page_index(address)?)
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
