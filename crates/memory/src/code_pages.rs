//! Which guest-physical pages hold translated code.
//!
//! Invariant: a page that is marked here has no write entry in any TLB. So every write to it takes the slow path,
//! which tells the [`CodeWatch`] *before* the bytes change hands, and on every vCPU.

use std::sync::Arc;

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
    marks: Vec<std::sync::atomic::AtomicU8>,
}

impl CodePages {
    /// No page marked.
    pub fn new(ram: &Ram) -> Arc<Self> {
        let _ = ram;
        unimplemented!()
    }

    /// Whether the page of `address` holds translated code.
    #[inline]
    pub fn is_marked(&self, address: GuestPhys) -> bool {
        let _ = (address, &self.marks);
        unimplemented!()
    }

    /// Marks the page of `address`. Returns true if it was not marked before: then every vCPU must drop its write
    /// entries for the page ([`crate::Mmu::protect_page`]) before code from it is run.
    pub fn mark(&self, address: GuestPhys) -> bool {
        let _ = address;
        unimplemented!()
    }

    /// Takes the mark away.
    pub fn unmark(&self, address: GuestPhys) {
        let _ = address;
        unimplemented!()
    }
}
