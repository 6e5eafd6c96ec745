//! The softmmu TLB: its layout is shared with compiled code.
//!
//! A lookup for an access of `size` bytes at linear address `a`:
//! `entry = tlb + ((a >> 12 << ENTRY_SHIFT) & mask)`; hit if `(a + size - 1) & PAGE_MASK == entry.tag` for the kind
//! of access *and* `a` lies in the same page (compare `a & PAGE_MASK` or align-check); host address =
//! `a + entry.addend` (wrapping).

/// log2 of the size of [`Entry`].
pub const ENTRY_SHIFT: u32 = 5;

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
    /// For instruction fetches.
    pub execute: u64,
    /// Host address minus linear address of the page, wrapping.
    pub addend: u64,
}

impl Entry {
    /// An empty entry.
    pub const EMPTY: Self = Self { read: INVALID, write: INVALID, execute: INVALID, addend: 0 };
}

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
