//! Memory for compiled code: one memfd mapped twice, once writable and once executable (W^X), reserved once and
//! never remapped, because profilers identify code by address.
//!
//! It owns the two views and a bump pointer. Addresses given out are those of the executable view; the runtime
//! writes through the other one. There is no `free`: a block that dies leaves its bytes behind, and when the memory
//! is full the block cache drops every block's code at once and [`CodeMemory::reset`] starts over. That is safe only
//! while no compiled code is on any host stack and nothing points into it; the block cache sees to both
//! ([`crate::block_cache`]).
//!
//! Chain slots live at the other end, away from code: a store into a cache line that the host also executes from
//! costs it a pipeline flush.

use std::{
    fs::File,
    ops::Range,
    sync::atomic::{AtomicU64, Ordering},
};

use memmap2::{Mmap, MmapMut, MmapOptions};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Alignment of every piece of code: a host cache line.
const CODE_ALIGNMENT: usize = 64;

/// Why code memory could not be had.
#[derive(Debug, thiserror::Error)]
pub enum CodeMemoryError {
    /// Outside [`CodeMemory::SMALLEST`] to [`CodeMemory::LARGEST`].
    #[error("code memory of {0} bytes: give between 64K and 1G")]
    Size(usize),
    /// The host refused.
    #[error("the host refused {size} bytes of executable memory: {reason}")]
    Host {
        /// Bytes asked for.
        size: usize,
        /// What it said.
        reason: std::io::Error,
    },
}

/// See the module's description.
pub struct CodeMemory {
    writable: MmapMut,
    executable: Mmap,
    /// Bytes used from the bottom, by code.
    code: usize,
    /// Offset of the lowest byte used at the top, by slots.
    slots: usize,
}

impl CodeMemory {
    /// The smallest size, in bytes: large blocks have room.
    pub const SMALLEST: usize = 64 << 10;
    /// The largest: code must reach its slots by a 32-bit displacement.
    pub const LARGEST: usize = 1 << 30;

    /// Reserves `size` bytes (rounded up to host pages); the host commits them when they are first written.
    pub fn new(size: usize) -> Result<Self, CodeMemoryError> {
        if !(Self::SMALLEST..=Self::LARGEST).contains(&size) {
            return Err(CodeMemoryError::Size(size));
        }
        let size = size.next_multiple_of(4096);
        let host = |reason: std::io::Error| CodeMemoryError::Host { size, reason };
        let file: File =
            memfd_create("transvisor-code", MemfdFlags::CLOEXEC).map_err(|error| host(error.into()))?.into();
        ftruncate(&file, size as u64).map_err(|error| host(error.into()))?;
        // SAFETY: the file is anonymous and its descriptor is closed below, so nobody else can truncate or write it;
        // the views are shared memory of this process alone.
        let (writable, executable) = unsafe {
            (
                MmapOptions::new().len(size).map_mut(&file).map_err(host)?,
                MmapOptions::new().len(size).map_exec(&file).map_err(host)?,
            )
        };
        Ok(Self { writable, executable, code: 0, slots: size })
    }

    /// Takes `code` bytes for code and `slots` bytes for chain slots; their addresses in the executable view, or
    /// `None` when the memory is full.
    pub fn allocate(&mut self, code: usize, slots: usize) -> Option<(u64, u64)> {
        let start = self.code.checked_next_multiple_of(CODE_ALIGNMENT)?;
        let end = start.checked_add(code)?;
        let slot = self.slots.checked_sub(slots)? & !7;
        if end > slot {
            return None;
        }
        self.code = end;
        self.slots = slot;
        let base = self.executable.as_ptr() as u64;
        Some((base + start as u64, base + slot as u64))
    }

    /// The bytes at an address from [`CodeMemory::allocate`], for code that is not running.
    ///
    /// # Panics
    /// If they reach outside the memory.
    pub fn bytes(&mut self, address: u64, length: usize) -> &mut [u8] {
        let offset = self.offset(address, length);
        &mut self.writable[offset..offset + length]
    }

    /// Stores an aligned word that compiled code may be reading at the same time.
    ///
    /// # Panics
    /// If the address is not within the memory or not aligned.
    pub fn store(&mut self, address: u64, value: u64) {
        let offset = self.offset(address, 8);
        let word = self.writable[offset..].as_mut_ptr().cast::<u64>();
        assert!(word.is_aligned(), "slot at {address:#x} is not aligned");
        // SAFETY: in bounds by `offset`, aligned by the assertion, and no reference to these bytes exists; the other
        // view's readers are compiled code, whose 64-bit loads are atomic.
        unsafe { AtomicU64::from_ptr(word) }.store(value, Ordering::Release);
    }

    /// Loads an aligned word.
    ///
    /// # Panics
    /// If the address is not within the memory.
    pub fn load(&self, address: u64) -> u64 {
        let offset = self.offset(address, 8);
        let bytes = &self.executable[offset..offset + 8];
        u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
    }

    /// Addresses of the executable view; they never change.
    pub fn range(&self) -> Range<u64> {
        let start = self.executable.as_ptr() as u64;
        start..start + self.executable.len() as u64
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.code + (self.executable.len() - self.slots)
    }

    /// Forgets everything. Nothing may run or point to the old contents.
    pub fn reset(&mut self) {
        self.code = 0;
        self.slots = self.executable.len();
    }

    /// Offset of an address of the executable view, `length` bytes from which lie within it.
    fn offset(&self, address: u64, length: usize) -> usize {
        let offset = address.wrapping_sub(self.executable.as_ptr() as u64) as usize;
        assert!(
            offset <= self.executable.len() && length <= self.executable.len() - offset,
            "{address:#x} is outside code memory"
        );
        offset
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_executed_at_the_other_view() {
        let mut memory = CodeMemory::new(64 << 10).unwrap();
        let (code, _) = memory.allocate(16, 0).unwrap();
        memory.bytes(code, 4).copy_from_slice(&[0x8d, 0x47, 0x05, 0xc3]); // lea eax, [rdi+5]; ret
        // SAFETY: the bytes are a complete System V function.
        let function: extern "C" fn(u32) -> u32 = unsafe { std::mem::transmute(code as *const u8) };
        assert_eq!(function(37), 42);
    }

    #[test]
    fn allocations_do_not_overlap_and_end() {
        let mut memory = CodeMemory::new(64 << 10).unwrap();
        let mut last_code = 0;
        let mut last_slot = u64::MAX;
        let mut count = 0;
        while let Some((code, slot)) = memory.allocate(1000, 64) {
            assert!(code >= last_code + 1000 || count == 0);
            assert!(slot + 64 <= last_slot && code + 1000 <= slot);
            assert_eq!((code % 64, slot % 8), (0, 0));
            (last_code, last_slot, count) = (code, slot, count + 1);
        }
        assert_eq!(count, (64 << 10) / (1024 + 64));
        memory.reset();
        assert!(memory.allocate(60 << 10, 0).is_some());
    }

    #[test]
    fn words_are_seen_through_both_views() {
        let mut memory = CodeMemory::new(64 << 10).unwrap();
        let (_, slot) = memory.allocate(0, 32).unwrap();
        memory.store(slot + 8, 0x1234_5678_9abc_def0);
        assert_eq!(memory.load(slot + 8), 0x1234_5678_9abc_def0);
    }

    #[test]
    fn sizes_are_checked() {
        assert!(matches!(CodeMemory::new(0), Err(CodeMemoryError::Size(0))));
        assert!(CodeMemory::new(2 << 30).is_err());
    }
}
