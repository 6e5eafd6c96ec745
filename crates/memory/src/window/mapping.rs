//! What is mapped in the window: the host's side of it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use x86::{GuestPhys, PAGE_SIZE};

use super::{BASE, CHUNK_SHIFT, HIGH, LOW, Piece, UNUSED, host_of};

/// The first host address that is reserved: below it the kernel may refuse mappings (`vm.mmap_min_addr`).
const FIRST: u64 = LOW.start;
/// Where the reservation ends.
const END: u64 = HIGH.end.wrapping_add(BASE) + UNUSED;

/// A piece has a place if one of its pages has.
const _: () = {
    let ends = LOW.start | LOW.end | HIGH.start | HIGH.end;
    assert!(ends.is_multiple_of(1 << CHUNK_SHIFT));
};

/// The most pages. Each may be a mapping of its own, with a gap behind it, and the process may have some 65,530 (`vm.max_map_count`).
const MAX_PAGES: usize = 16_384;

/// Somebody has the window.
static CLAIMED: AtomicBool = AtomicBool::new(false);
/// The addresses are reserved, and stay so: changed only by who has the claim.
static RESERVED: AtomicBool = AtomicBool::new(false);

/// A page that is mapped.
struct Shown {
    physical: u64,
    writable: bool,
}

/// The pages that are mapped. Whoever has this has the window.
pub struct Mapping {
    /// By linear page.
    pages: BTreeMap<u64, Shown>,
    /// Guest-physical and linear page of each.
    linear: BTreeSet<(u64, u64)>,
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.forget_all();
        CLAIMED.store(false, Ordering::Release);
    }
}

impl Mapping {
    /// The window, empty, if nobody has it and the host has the addresses.
    pub fn claim() -> Option<Self> {
        if CLAIMED.swap(true, Ordering::Acquire) {
            return None;
        }
        let claim = Self { pages: BTreeMap::new(), linear: BTreeSet::new() };
        if !RESERVED.load(Ordering::Relaxed) {
            if !is_safe() || !reserve() {
                return None;
            }
            RESERVED.store(true, Ordering::Relaxed);
        }
        Some(claim)
    }

    /// Whether a linear page has a place.
    pub fn reaches(page: u64) -> bool {
        LOW.contains(&page) || HIGH.contains(&page)
    }

    /// Whether a page is mapped to this guest-physical one, for stores too if `write`.
    pub fn shows(&self, page: u64, physical: GuestPhys, write: bool) -> bool {
        let shown = self.pages.get(&page);
        shown.is_some_and(|shown| shown.physical == physical.0 && (shown.writable || !write))
    }

    /// Whether so many may be mapped without forgetting others.
    pub fn has_room(&self, pages: u64) -> bool {
        self.pages.len() + pages as usize <= MAX_PAGES
    }

    /// Maps pages, which must have places, from a file. If the host refuses (false), nothing is mapped there.
    pub fn map(&mut self, piece: Piece, file: BorrowedFd<'_>, offset: u64) -> bool {
        let (first, bytes) = (piece.linear.0, piece.pages * PAGE_SIZE);
        debug_assert!(Self::reaches(first) && Self::reaches(first + bytes - PAGE_SIZE));
        self.take(first, first + bytes);
        let protection = libc::PROT_READ | if piece.writable { libc::PROT_WRITE } else { 0 };
        let flags = libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE;
        // SAFETY: within the reservation, which is used by nobody but compiled code, as guest memory.
        let address = unsafe {
            libc::mmap(host(first), bytes as usize, protection, flags, file.as_raw_fd(), offset as i64)
        };
        if address == libc::MAP_FAILED {
            self.hide(first, first + bytes);
            return false;
        }
        for (linear, physical) in piece.each() {
            self.pages.insert(linear.0, Shown { physical: physical.0, writable: piece.writable });
            self.linear.insert((physical.0, linear.0));
        }
        true
    }

    /// Unmaps everything; returns how many pages that were, as those below do.
    pub fn forget_all(&mut self) -> u64 {
        self.forget_between(LOW.start, LOW.end) + self.forget_between(HIGH.start, HIGH.end)
    }

    /// Unmaps a page, if it is mapped.
    pub fn forget_page(&mut self, page: u64) -> bool {
        let Some(shown) = self.pages.remove(&page) else { return false };
        self.linear.remove(&(shown.physical, page));
        self.hide(page, page + PAGE_SIZE);
        true
    }

    /// Unmaps what lies in the naturally aligned `1 << shift` bytes that hold `address`.
    pub fn forget_range(&mut self, address: u64, shift: u32) -> u64 {
        let start = address >> shift << shift;
        self.forget_between(start, start.saturating_add(1 << shift))
    }

    /// Unmaps what lies from an address to another, both in one part.
    fn forget_between(&mut self, start: u64, end: u64) -> u64 {
        let mut within = self.pages.range(start..end).map(|(page, _)| *page);
        let Some(first) = within.next() else { return 0 };
        let end = within.next_back().unwrap_or(first) + PAGE_SIZE;
        let dropped = self.take(first, end);
        self.hide(first, end);
        dropped
    }

    /// Takes the right to store to a guest-physical page away; if the host refuses that, unmaps it.
    pub fn protect(&mut self, physical: GuestPhys) -> u64 {
        let physical = physical.0;
        let all: Vec<u64> =
            self.linear.range((physical, 0)..=(physical, u64::MAX)).map(|(_, page)| *page).collect();
        let mut dropped = 0;
        for page in all {
            match self.pages.get_mut(&page) {
                Some(shown) if shown.writable => shown.writable = false,
                _ => continue,
            }
            // SAFETY: a page of the reservation.
            if unsafe { libc::mprotect(host(page), PAGE_SIZE as usize, libc::PROT_READ) } != 0 {
                dropped += u64::from(self.forget_page(page));
            }
        }
        dropped
    }

    /// Strikes pages from the books.
    fn take(&mut self, first: u64, end: u64) -> u64 {
        let pages: Vec<u64> = self.pages.range(first..end).map(|(page, _)| *page).collect();
        for page in &pages {
            if let Some(shown) = self.pages.remove(page) {
                self.linear.remove(&(shown.physical, *page));
            }
        }
        pages.len() as u64
    }

    /// Makes accesses to a range of linear addresses fault, which stands in the books no longer.
    fn hide(&mut self, first: u64, end: u64) {
        if map_nothing(host(first), end - first, libc::MAP_FIXED) == host(first) {
            return;
        }
        // The process has too many mappings. This needs no more.
        self.pages.clear();
        self.linear.clear();
        let start = std::ptr::with_exposed_provenance_mut(FIRST as usize);
        // SAFETY: exactly the reservation.
        if unsafe { libc::mprotect(start, (END - FIRST) as usize, libc::PROT_NONE) } != 0 {
            // Going on would let the guest reach memory that it must not.
            eprintln!(
                "transvisor: the host refused to take pages out of the window; free some of its memory, or raise vm.max_map_count"
            );
            std::process::abort();
        }
    }
}

/// Where the host has a linear address.
fn host(linear: u64) -> *mut c_void {
    std::ptr::with_exposed_provenance_mut(host_of(linear) as usize)
}

/// Addresses that always fault.
fn map_nothing(at: *mut c_void, bytes: u64, how: i32) -> *mut c_void {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | how;
    // SAFETY: callers name parts of the reservation, or addresses that the kernel is told not to replace.
    unsafe { libc::mmap(at, bytes as usize, libc::PROT_NONE, flags, -1, 0) }
}

/// Reserves the addresses.
fn reserve() -> bool {
    let at = std::ptr::with_exposed_provenance_mut(FIRST as usize);
    let got = map_nothing(at, END - FIRST, libc::MAP_FIXED_NOREPLACE);
    if got != libc::MAP_FAILED && got != at {
        // A kernel older than the flag takes it for a wish.
        // SAFETY: the mapping just made.
        unsafe { libc::munmap(got, (END - FIRST) as usize) };
    }
    got == at
}

/// Whether nothing in reach above the reservation, in the kernel's half, can be read.
fn is_safe() -> bool {
    std::fs::read_to_string("/proc/self/maps").is_ok_and(|maps| !vsyscall_is_readable(&maps))
}

/// Whether the page of the old system calls, at linear address 2^46 - 10 MiB, is there to be read.
fn vsyscall_is_readable(maps: &str) -> bool {
    let mut lines = maps.lines().filter(|line| line.ends_with("[vsyscall]"));
    lines.any(|line| line.split(' ').nth(1).is_none_or(|rights| rights.starts_with('r')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_readable_page_of_old_system_calls_is_seen() {
        let line = |rights| {
            format!(
                "7ffd-7ffe r-xp 00000000 00:00 0   [vdso]\nffffffffff600000-ffffffffff601000 {rights} 00000000 00:00 0   [vsyscall]\n"
            )
        };
        assert!(vsyscall_is_readable(&line("r-xp")));
        assert!(!vsyscall_is_readable(&line("--xp")));
        assert!(!vsyscall_is_readable("7ffd-7ffe r-xp 00000000 00:00 0   [vdso]\n"));
    }

    #[test]
    fn each_part_has_places() {
        let first = (1 << 46) + (1 << 40);
        for (page, has) in [
            (0, false),
            (0xf000, false),
            (0x1_0000, true),
            (0xffff_f000, true),
            (1 << 32, false),
            (first - 0x1000, false),
            (first, true),
            (0x7fff_ffff_f000, true),
            (1 << 47, false),
            (0xffff_8000_0000_0000, false),
            (!0xfff, false),
        ] {
            assert_eq!(Mapping::reaches(page), has, "{page:#x}");
        }
        assert_eq!((host(first) as u64, host(0x40_0000) as u64), (1 << 40, 0x40_0000));
        for linear in [0x40_0000, first, 0x7fff_ffff_f000] {
            assert_eq!(super::super::linear_of(host_of(linear)), linear);
        }
        assert_eq!(END, (1 << 46) + (64 << 30));
    }
}
