//! One vCPU's table of recent indirect-jump targets. Compiled code reads it inline ([`translator::abi::JumpEntry`]
//! fixes the layout); the dispatcher fills it; invalidation, which may run on another vCPU's thread, empties entries.
//!
//! Fields are atomics because of that last case. An entry is emptied by making its mode impossible, one store: a
//! reader that was faster jumps to code that was alive when it looked, as if it had come a moment earlier.

use std::mem::offset_of;
use std::sync::atomic::{AtomicU64, Ordering};

use translator::{
    abi::{JUMP_CACHE_ENTRIES, JumpEntry, jump_index},
    carried,
};
use x86::Mode;

/// No mode of a processor.
const EMPTY: u64 = u64::MAX;

#[repr(C)]
struct Entry {
    rip: AtomicU64,
    code: AtomicU64,
    addend: AtomicU64,
    mode: AtomicU64,
}

const _: () = assert!(
    size_of::<Entry>() == size_of::<JumpEntry>()
        && offset_of!(Entry, rip) == offset_of!(JumpEntry, rip)
        && offset_of!(Entry, code) == offset_of!(JumpEntry, code)
        && offset_of!(Entry, addend) == offset_of!(JumpEntry, addend)
        && offset_of!(Entry, mode) == offset_of!(JumpEntry, mode)
);

/// See the module's description.
pub struct JumpCache {
    entries: Box<[Entry]>,
}

impl JumpCache {
    /// An empty one.
    pub fn new() -> Self {
        let empty = |_| Entry {
            rip: AtomicU64::new(0),
            code: AtomicU64::new(0),
            addend: AtomicU64::new(0),
            mode: AtomicU64::new(EMPTY),
        };
        Self { entries: (0..JUMP_CACHE_ENTRIES).map(empty).collect() }
    }

    /// For `CpuState::jump_cache`; valid as long as the cache lives.
    pub fn as_ptr(&self) -> *mut u8 {
        self.entries.as_ptr().cast_mut().cast()
    }

    /// Remembers that `rip`, in `mode` and in a page with that TLB addend, is at `code`.
    pub fn fill(&self, rip: u64, mode: Mode, addend: u64, code: u64) {
        let entry = &self.entries[jump_index(rip)];
        entry.mode.store(EMPTY, Ordering::Release);
        entry.rip.store(rip, Ordering::Release);
        entry.addend.store(addend, Ordering::Release);
        entry.code.store(code + carried::ENTRY, Ordering::Release);
        entry.mode.store(u64::from(mode.0), Ordering::Release);
    }

    /// Forgets the entry for `rip` if it leads to `code`.
    pub fn forget(&self, rip: u64, code: u64) {
        let entry = &self.entries[jump_index(rip)];
        if entry.code.load(Ordering::Acquire) == code + carried::ENTRY {
            entry.mode.store(EMPTY, Ordering::Release);
        }
    }

    /// Forgets everything.
    pub fn clear(&self) {
        for entry in &self.entries {
            entry.mode.store(EMPTY, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(cache: &JumpCache, rip: u64) -> JumpEntry {
        // SAFETY: in bounds by `jump_index`, layout as asserted above.
        unsafe { cache.as_ptr().cast::<JumpEntry>().add(jump_index(rip)).read() }
    }

    #[test]
    fn compiled_code_sees_what_was_filled() {
        let cache = JumpCache::new();
        assert_eq!(read(&cache, 0).mode, EMPTY, "rip 0 is not found in an empty cache");
        cache.fill(0x40_1234, Mode(7), 0x1000, 0xc0de);
        let entry = read(&cache, 0x40_1234);
        let code = 0xc0de + carried::ENTRY;
        assert_eq!((entry.rip, entry.mode, entry.addend, entry.code), (0x40_1234, 7, 0x1000, code));
    }

    #[test]
    fn only_the_dead_block_is_forgotten() {
        let cache = JumpCache::new();
        cache.fill(0x40_1234, Mode(7), 0x1000, 0xc0de);
        cache.forget(0x40_1234, 0xbad);
        assert_eq!(read(&cache, 0x40_1234).mode, 7);
        cache.forget(0x40_1234, 0xc0de);
        assert_eq!(read(&cache, 0x40_1234).mode, EMPTY);
    }
}
