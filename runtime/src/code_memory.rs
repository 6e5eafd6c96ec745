//! Memory for compiled code: mapped twice, once writable and once executable (W^X), reserved once and never remapped,
//! because profilers identify code by address. It is anonymous, and not a memfd, because Linux `perf` asks for names
//! (`/tmp/perf-PID.map`) only where no file is mapped. Hosts that can't map anonymous memory twice get a memfd all the same.
//!
//! It owns the two views and a bump pointer. Addresses given out are those of the executable view; the runtime
//! writes through the other one. There is no `free`: a block that dies leaves its bytes behind, and when the memory
//! is full the block cache drops every block's code at once and [`CodeMemory::reset`] starts over. That is safe only
//! while no compiled code is on any host stack and nothing points into it; the block cache sees to both
//! ([`crate::block_cache`]).
//!
//! Behind the executable view, in reach of it, lie words that compiled code may write ([`CodeMemory::cells`]).
//!
//! Chain slots live at the other end, away from code: a store into a cache line that the host also executes from
//! costs it a pipeline flush.

use std::{
    ffi::c_void,
    ops::Range,
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicI32, AtomicU64, Ordering},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    mm::{
        Advice, MapFlags, MprotectFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mprotect,
        mremap_fixed, munmap,
    },
};
use translator::CodeBlock;

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
    writable: View,
    executable: View,
    /// Words behind the executable view that compiled code may write.
    cells: View,
    /// Bytes used from the bottom, by code.
    code: usize,
    /// Offset of the lowest byte used at the top, by slots.
    slots: usize,
    /// Bytes at the bottom, and at the top, that the host was asked for.
    populated: [usize; 2],
}

/// So much is asked of the host at a time: a page at a time, by faults at either view, cost the more.
const POPULATED: usize = 256 << 10;

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
        // Not every host doubles an anonymous mapping: valgrind does not.
        let views = View::anonymous_pair(size).or_else(|_| View::pair_of_a_file(size));
        let (writable, [executable, cells]) = views.map_err(|error| host(error.into()))?;
        Ok(Self { writable, executable, cells, code: 0, slots: size, populated: [0; 2] })
    }

    /// Takes `code` bytes for code and `slots` bytes for chain slots; their addresses in the executable view, or
    /// `None` when the memory is full.
    pub fn allocate(&mut self, code: usize, slots: usize) -> Option<(u64, u64)> {
        let start = CodeBlock::next_place(self.code)?;
        let end = start.checked_add(code)?;
        let slot = self.slots.checked_sub(slots)? & !7;
        if end > slot {
            return None;
        }
        self.code = end;
        self.slots = slot;
        self.populate();
        let base = self.executable.address();
        Some((base + start as u64, base + slot as u64))
    }

    /// Has the host provide what is used, and some more, in both views.
    fn populate(&mut self) {
        let size = self.executable.length;
        if self.code > self.populated[0] {
            let start = self.populated[0];
            let end = self.code.next_multiple_of(POPULATED).min(size);
            self.writable.populate(start..end, Advice::LinuxPopulateWrite);
            self.executable.populate(start..end, Advice::LinuxPopulateRead);
            self.populated[0] = end;
        }
        let used = size - self.slots;
        if used > self.populated[1] {
            let end = used.next_multiple_of(POPULATED).min(size);
            let range = size - end..size - self.populated[1];
            self.writable.populate(range.clone(), Advice::LinuxPopulateWrite);
            self.executable.populate(range, Advice::LinuxPopulateRead);
            self.populated[1] = end;
        }
    }

    /// Words that compiled code may write, one for each piece of code that there can be.
    pub fn cells(&self) -> &[AtomicI32] {
        // SAFETY: mapped and writable as long as the view, aligned to a page, zero at first; everyone uses them as atomics.
        unsafe { std::slice::from_raw_parts(self.cells.start.as_ptr().cast(), self.cells.length / 4) }
    }

    /// The bytes at an address from [`CodeMemory::allocate`], for code that is not running.
    ///
    /// # Panics
    /// If they reach outside the memory.
    pub fn bytes(&mut self, address: u64, length: usize) -> &mut [u8] {
        let offset = self.offset(address, length);
        &mut self.writable.bytes_mut()[offset..offset + length]
    }

    /// Writes a value of plain data, which compiled code passes on by its address.
    ///
    /// # Panics
    /// If the address is not within the memory or not aligned.
    pub fn write<T: Copy>(&mut self, address: u64, value: T) {
        let place = self.bytes(address, size_of::<T>()).as_mut_ptr().cast::<T>();
        assert!(place.is_aligned(), "data at {address:#x} is not aligned");
        // SAFETY: as many bytes, in bounds, aligned by the assertion, and borrowed from `self`.
        unsafe { place.write(value) };
    }

    /// Stores an aligned word that compiled code may be reading at the same time.
    ///
    /// # Panics
    /// If the address is not within the memory or not aligned.
    pub fn store(&mut self, address: u64, value: u64) {
        let offset = self.offset(address, 8);
        let word = self.writable.bytes_mut()[offset..].as_mut_ptr().cast::<u64>();
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
        let bytes = &self.executable.bytes()[offset..offset + 8];
        u64::from_ne_bytes(bytes.try_into().unwrap_or_default())
    }

    /// Addresses of the executable view; they never change.
    pub fn range(&self) -> Range<u64> {
        let start = self.executable.address();
        start..start + self.executable.length as u64
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.code + (self.executable.length - self.slots)
    }

    /// Forgets everything. Nothing may run or point to the old contents.
    pub fn reset(&mut self) {
        self.code = 0;
        self.slots = self.executable.length;
    }

    /// Offset of an address of the executable view, `length` bytes from which lie within it.
    fn offset(&self, address: u64, length: usize) -> usize {
        let offset = address.wrapping_sub(self.executable.address()) as usize;
        let whole = self.executable.length;
        assert!(offset <= whole && length <= whole - offset, "{address:#x} is outside code memory");
        offset
    }
}

/// A mapping of the memory.
struct View {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: it is nothing but memory of this process.
unsafe impl Send for View {}
// SAFETY: as above; who shares it decides who writes.
unsafe impl Sync for View {}

impl View {
    /// Fresh memory, writable, and once more, executable, with cells behind it.
    fn anonymous_pair(length: usize) -> rustix::io::Result<(Self, [Self; 2])> {
        let writable = Self::new(length)?;
        let [executable, cells] = Self::reserve(length)?;
        let from = writable.start.as_ptr();
        // SAFETY: an old size of 0 leaves the old mapping alone and maps the same shared pages elsewhere (mremap(2)), in the place of
        // a view that nobody knows of.
        unsafe {
            mremap_fixed(from, 0, length, MremapFlags::MAYMOVE, executable.start.as_ptr())?;
            mprotect(executable.start.as_ptr(), length, MprotectFlags::READ | MprotectFlags::EXEC)?;
        }
        Ok((writable, [executable, cells]))
    }

    /// The same by a file without a name, which `perf` finds no names for.
    fn pair_of_a_file(length: usize) -> rustix::io::Result<(Self, [Self; 2])> {
        let file = memfd_create("transvisor-code", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, length as u64)?;
        let [executable, cells] = Self::reserve(length)?;
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: at no address that is in use.
        let writable = Self::at(unsafe { mmap(null_mut(), length, rights, flags, &file, 0)? }, length)?;
        let (rights, place) = (ProtFlags::READ | ProtFlags::EXEC, executable.start.as_ptr());
        // SAFETY: in the place of a view that nobody knows of.
        unsafe { mmap(place, length, rights, flags | MapFlags::FIXED, &file, 0)? };
        Ok((writable, [executable, cells]))
    }

    /// Room for a view of so many bytes, and cells for it behind that.
    fn reserve(length: usize) -> rustix::io::Result<[Self; 2]> {
        let room = (length / CodeBlock::ALIGNMENT * size_of::<AtomicI32>()).next_multiple_of(4096);
        let (rights, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE | MapFlags::NORESERVE);
        // SAFETY: at no address that is in use.
        let start = unsafe { mmap_anonymous(null_mut(), length + room, rights, flags)? };
        Ok([Self::at(start, length)?, Self::at(start.wrapping_byte_add(length), room)?])
    }

    /// Fresh memory, writable.
    fn new(length: usize) -> rustix::io::Result<Self> {
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: at no address that is in use.
        let start = unsafe { mmap_anonymous(null_mut(), length, rights, flags)? };
        Self::at(start, length)
    }

    fn at(start: *mut c_void, length: usize) -> rustix::io::Result<Self> {
        let start = NonNull::new(start).ok_or(rustix::io::Errno::NOMEM)?;
        Ok(Self { start, length })
    }

    /// Makes pages present. A host that does not know how (Linux before 5.14) provides them when they are touched.
    fn populate(&self, range: Range<usize>, advice: Advice) {
        debug_assert!(range.end <= self.length);
        let start = self.start.as_ptr().wrapping_byte_add(range.start);
        // SAFETY: within the mapping, of which it changes nothing.
        let _ = unsafe { madvise(start, range.len(), advice) };
    }

    fn address(&self) -> u64 {
        self.start.as_ptr() as u64
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped, readable and zero or written since, as long as the view.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above; only the writable view is asked for it, by its only owner.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr().cast(), self.length) }
    }
}

impl Drop for View {
    fn drop(&mut self) {
        // SAFETY: the mapping is this view's, and nobody has references into it any more. It can't fail.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use translator::carried;

    /// `perf` takes a mapping for generated code if it is named so (tools/perf/util/map.c).
    #[test]
    fn no_file_lies_behind_it() {
        let memory = CodeMemory::new(64 << 10).unwrap();
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let start = format!("{:x}-", memory.range().start);
        let line = maps.lines().find(|line| line.starts_with(&start)).expect("it is mapped");
        assert!(line.contains(" r-xs ") && line.contains(" /dev/zero"), "{line}");
    }

    #[test]
    fn a_file_does_as_well() {
        let (writable, [executable, cells]) = View::pair_of_a_file(64 << 10).unwrap();
        let mut memory =
            CodeMemory { writable, executable, cells, code: 0, slots: 64 << 10, populated: [0; 2] };
        run_what_is_written(&mut memory);
    }

    #[test]
    fn what_is_written_can_be_executed_at_the_other_view() {
        run_what_is_written(&mut CodeMemory::new(64 << 10).unwrap());
    }

    fn run_what_is_written(memory: &mut CodeMemory) {
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
            assert_eq!(((code + carried::ENTRY) % 64, slot % 8), (0, 0));
            (last_code, last_slot, count) = (code, slot, count + 1);
        }
        assert_eq!(count, (64 << 10) / (1024 + 64));
        assert_eq!(memory.cells().len(), 1024, "one for each line of the cache");
        memory.cells()[1023].store(-1, Ordering::Relaxed);
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
