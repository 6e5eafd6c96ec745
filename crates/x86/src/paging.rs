//! Paging-structure entry bits (SDM Vol. 3A 4.3 to 4.5).

/// Present.
pub const PRESENT: u64 = 1 << 0;
/// Writable.
pub const WRITABLE: u64 = 1 << 1;
/// User-mode accesses allowed.
pub const USER: u64 = 1 << 2;
/// Write-through.
pub const PWT: u64 = 1 << 3;
/// Cache disable.
pub const PCD: u64 = 1 << 4;
/// Accessed.
pub const ACCESSED: u64 = 1 << 5;
/// Dirty.
pub const DIRTY: u64 = 1 << 6;
/// Maps a large page (in a PDE or PDPTE).
pub const LARGE: u64 = 1 << 7;
/// Global translation.
pub const GLOBAL: u64 = 1 << 8;
/// PAT bit of a large page.
pub const LARGE_PAT: u64 = 1 << 12;
/// Execute disable.
pub const NO_EXECUTE: u64 = 1 << 63;

/// Physical-address width that CPUID announces (leaf 0x80000008).
pub const PHYSICAL_BITS: u32 = 40;
/// Address bits of a 64-bit entry: 12..PHYSICAL_BITS.
pub const ADDRESS: u64 = ((1 << PHYSICAL_BITS) - 1) & super::PAGE_MASK;
/// Physical-address bits that must be zero in a 64-bit entry: PHYSICAL_BITS..52.
pub const RESERVED_ADDRESS: u64 = ((1 << 52) - 1) & !((1 << PHYSICAL_BITS) - 1);
