//! The softmmu TLB: its layout is shared with compiled code.
//!
//! A lookup for an access of `size` bytes at linear address `a`:
//! `entry = tlb + ((a >> (12 - ENTRY_SHIFT)) & mask)`; hit if `(a + size - 1) & PAGE_MASK == entry.tag` for the kind
//! of access; host address = `a + entry.addend` (wrapping).
//!
//! That one comparison also refuses accesses that cross a page (`size` <= 4096): the next page's tag can only be
//! in the next page's entry, which is another one, since an array has at least [`MIN_ENTRIES`]. It does not refuse
//! misaligned accesses under alignment checks; compiled code of such a mode has to look itself.
//!
//! Instruction fetches have arrays of their own ([`x86::CpuState::fetch_tlb`]), one for supervisor and one for user code in each
//! address space, so that data does not displace the pages of running code. Only their entries have [`Entry::execute`] set,
//! and nothing else.
//!
//! In front of each array for data lie [`RECENT`] *recent pages* ([`Recent`]), which compiled code makes from the array's entries and looks at
//! first, one for each way of addressing (say, by RSP): their places are constant, so a translation is at hand before the address is.
//! What drops an entry of the array, or takes a right from it, does the same to the recent pages. What displaces an entry does
//! not: a translation may be kept for as long as the guest has not had it dropped.
//!
//! The arrays and the masks may change whenever a method of [`crate::Mmu`] gets the state by `&mut`, and at no other time.

pub(crate) mod array;
pub(crate) mod spaces;

use x86::control::cr4;
use x86::{CpuState, GuestVirt, PAGE_SHIFT, flags};

/// log2 of the size of [`Entry`].
pub const ENTRY_SHIFT: u32 = 5;

/// Entries of the smallest array; sizes are powers of two.
pub const MIN_ENTRIES: usize = 256;

/// Entries of the largest array.
pub const MAX_ENTRIES: usize = 1 << 14;

/// Recent pages in front of an array.
pub const RECENT: usize = 16;

/// Where recent page `n` lies, in bytes from the array's start.
pub const fn recent_offset(n: usize) -> i32 {
    assert!(n < RECENT);
    -(((n + 1) << ENTRY_SHIFT) as i32)
}

/// Where the word lies, in bytes from the array's start, that is not 0 if there may be recent pages: who makes one sets it.
pub const RECENT_MADE: i32 = recent_offset(RECENT - 1) - (1 << ENTRY_SHIFT);

/// A tag that no page address equals.
pub const INVALID: u64 = u64::MAX;

/// One entry. A tag is the linear address of the page if the access is allowed in this view without a walk and
/// without side effects (A and, for writes, D already set; not a code page for writes; RAM), else [`INVALID`].
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Entry {
    /// For loads.
    pub read: u64,
    /// For stores.
    pub write: u64,
    /// For instruction fetches; only in their arrays.
    pub execute: u64,
    /// Host address minus linear address of the page, wrapping.
    pub addend: u64,
}

impl Entry {
    /// An empty entry.
    pub const EMPTY: Self = Self { read: INVALID, write: INVALID, execute: INVALID, addend: 0 };
}

/// A page that was used lately. An access of up to [`Recent::BYTES`] hits if the distance of its address from the page is less
/// than the limit for its kind: then it does not cross the page's end either. An access in the last bytes of a page misses.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Recent {
    /// Linear address of the page.
    pub page: u64,
    /// For loads: [`Recent::LIMIT`], or 0.
    pub read: u64,
    /// For stores: the same.
    pub write: u64,
    /// Host address minus linear address, wrapping.
    pub addend: u64,
}

/// They are kept in the same table.
const _: () = assert!(size_of::<Recent>() == size_of::<Entry>());

impl Recent {
    /// No page.
    pub const EMPTY: Self = Self { page: 0, read: 0, write: 0, addend: 0 };
    /// The largest access that it serves.
    pub const BYTES: u64 = 8;
    /// The distance that is too far.
    pub const LIMIT: u64 = x86::PAGE_SIZE - Self::BYTES + 1;
}

/// Where arrays may have store entries for a page of RAM: nowhere, at the slot of one linear page, or anywhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Stored(u16);

impl Stored {
    pub const NOWHERE: Self = Self(0);
    const ANYWHERE: Self = Self(u16::MAX);

    /// One more linear address.
    pub fn add(&mut self, address: GuestVirt) {
        let slot = (address.0 >> PAGE_SHIFT) as usize & (MAX_ENTRIES - 1);
        let one = Self(slot as u16 + 1);
        *self = if *self == Self::NOWHERE || *self == one { one } else { Self::ANYWHERE };
    }

    /// The slot in an array of [`MAX_ENTRIES`], if there is only one.
    pub fn slot(self) -> Option<usize> {
        (self != Self::ANYWHERE && self != Self::NOWHERE).then(|| usize::from(self.0) - 1)
    }
}

const _: () = assert!(MAX_ENTRIES < u16::MAX as usize);

/// Which accesses a TLB array answers. The page walk's verdict depends on nothing else but CR0.WP, CR4 and EFER,
/// whose changes flush.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum View {
    /// CPL 0..2, and user pages may not be touched (SMAP with RFLAGS.AC clear).
    Supervisor = 0,
    /// CPL 0..2 without that restriction.
    SupervisorUserAccess = 1,
    /// CPL 3.
    User = 2,
}

impl View {
    /// All of them, in order of their numbers.
    pub const ALL: [Self; 3] = [Self::Supervisor, Self::SupervisorUserAccess, Self::User];

    /// The view of the program's own accesses (SDM Vol. 3A 4.6.1).
    #[inline]
    pub fn of(state: &CpuState) -> Self {
        Self::at(state, state.cpl)
    }

    /// The view of explicit accesses made at `cpl`.
    #[inline]
    pub fn at(state: &CpuState, cpl: u8) -> Self {
        if cpl == 3 {
            Self::User
        } else if state.cr4 & cr4::SMAP != 0 && state.rflags & flags::AC == 0 {
            Self::Supervisor
        } else {
            Self::SupervisorUserAccess
        }
    }

    /// The view of the processor's implicit accesses to system structures, for which RFLAGS.AC does not count.
    #[inline]
    pub fn implicit(state: &CpuState) -> Self {
        if state.cr4 & cr4::SMAP != 0 { Self::Supervisor } else { Self::SupervisorUserAccess }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_stores_go_is_known_while_it_is_one_place() {
        let mut stored = Stored::NOWHERE;
        assert_eq!(stored.slot(), None);
        stored.add(GuestVirt(0xffff_8880_0000_5123));
        stored.add(GuestVirt(0xffff_8880_0000_5fff));
        assert_eq!(stored.slot(), Some(5));
        stored.add(GuestVirt(0x5000 + ((MAX_ENTRIES as u64) << PAGE_SHIFT)));
        assert_eq!(stored.slot(), Some(5), "the same slot of every array");
        stored.add(GuestVirt(0x6000));
        assert!(stored.slot().is_none() && stored != Stored::NOWHERE);
        let mut last = Stored::NOWHERE;
        last.add(GuestVirt(u64::MAX));
        assert_eq!(last.slot(), Some(MAX_ENTRIES - 1));
    }
}
