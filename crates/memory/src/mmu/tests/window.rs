//! The window, mapped in this process: what it shows, and what it must no longer show.

mod budget;
mod large;
mod neighbours;

use std::sync::{Mutex, MutexGuard, PoisonError};

use x86::control::cr4;
use x86::paging::{ACCESSED, DIRTY, LARGE, PRESENT, USER, WRITABLE};
use x86::{GuestPhys, GuestVirt, Width};

use super::guest::{Diary, Guest, OPEN, ROOT};
use crate::window::{HIGH, LOW, host_of};

const AT: u64 = 0x5555_5555_5000;
const PAGE: u64 = 0x80_0000;
/// A large page of user memory, and where it lies.
const LARGE_AT: u64 = 0x7fff_0020_0000;
const LARGE_PAGE: u64 = 0xa0_0000;

/// There is one window in a process.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A guest at CPL 3 whose address space has the window, with one page at [`AT`].
fn guest() -> Guest {
    with_features(0)
}

fn with_features(control: u64) -> Guest {
    let mut guest = Guest::long();
    guest.state.cr4 |= control;
    open(guest)
}

fn open(mut guest: Guest) -> Guest {
    guest.state.cpl = 3;
    guest.changed();
    guest.map_page(AT, PAGE);
    guest.map(LARGE_AT, LARGE_PAGE | OPEN | LARGE, 21);
    assert_eq!(guest.state.window, 0);
    assert!(guest.mmu.open_window(0));
    guest.mmu.select_view(&mut guest.state);
    assert_eq!(guest.state.window, 1);
    guest
}

fn host(linear: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(host_of(linear) as usize)
}

/// Copies within this process, by the kernel, so that what can't be accessed is an error.
fn copy(linear: u64, bytes: &mut [u8; 8], write: bool) -> bool {
    let near = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: 8 };
    let far = libc::iovec { iov_base: host(linear).cast(), iov_len: 8 };
    // SAFETY: the kernel checks all addresses; those in the window are guest memory.
    let copied = unsafe {
        let own = libc::getpid();
        if write {
            libc::process_vm_writev(own, &raw const near, 1, &raw const far, 1, 0)
        } else {
            libc::process_vm_readv(own, &raw const near, 1, &raw const far, 1, 0)
        }
    };
    copied == 8
}

/// What the window allows at an address: loads, and stores (of what is there already).
fn rights(linear: u64) -> (bool, bool) {
    let mut bytes = [0; 8];
    let read = copy(linear, &mut bytes, false);
    (read, copy(linear, &mut bytes, true))
}

const GONE: (bool, bool) = (false, false);
const READ: (bool, bool) = (true, false);
const ALL: (bool, bool) = (true, true);

/// What compiled code does: an access by the window, then by the TLB, then by the window again.
fn touch(guest: &mut Guest, linear: u64, write: bool) -> bool {
    let Guest { mmu, state, .. } = guest;
    let at = GuestVirt(linear);
    if mmu.window_fault(state, at, write) {
        return true;
    }
    if write {
        let value = mmu.load_for_update(state, at, Width::Qword).unwrap();
        mmu.store(state, at, Width::Qword, value).unwrap();
    } else {
        mmu.load(state, at, Width::Qword).unwrap();
    }
    mmu.window_fault(state, at, write)
}

/// [`guest`] with its page mapped for stores.
fn shown(control: u64) -> Guest {
    let mut guest = with_features(control);
    assert!(touch(&mut guest, AT, true));
    assert_eq!(rights(AT), ALL);
    guest
}

#[test]
fn the_window_is_ram() {
    let _alone = alone();
    let mut guest = guest();
    guest.write64(PAGE + 8, 0x1122_3344_5566_7788);
    assert_eq!(rights(AT), GONE);
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), false), "not accessed yet");
    assert!(touch(&mut guest, AT, true));
    // SAFETY: just mapped, for loads and stores.
    let value = unsafe {
        let value = host(AT + 8).cast::<u64>().read_volatile();
        host(AT + 16).cast::<u64>().write_volatile(0x99);
        value
    };
    assert_eq!(value, 0x1122_3344_5566_7788);
    assert_eq!(guest.read64(PAGE + 16), 0x99);
    assert_eq!(guest.load64(AT + 16), Ok(0x99));
    guest.store64(AT + 24, 0xaa).unwrap();
    // SAFETY: as above.
    assert_eq!(unsafe { host(AT + 24).cast::<u64>().read_volatile() }, 0xaa);
    assert_eq!((rights(AT - 0x1000), rights(AT + 0x1000)), (GONE, GONE));
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), true), "it is there already");
    let stats = guest.mmu.window_stats();
    assert_eq!((stats.faults, stats.mapped, stats.dropped, stats.emptied), (4, 1, 0, 0));
}

#[test]
fn there_is_one_window() {
    let _alone = alone();
    let mut first = shown(0);
    let mut second = Guest::long();
    assert!(!second.mmu.open_window(0));
    second.set_cpl(3);
    assert_eq!(second.state.window, 0);
    assert!(!second.mmu.window_fault(&mut second.state, GuestVirt(AT), false));
    assert!(first.mmu.open_window(0), "it has it");
    assert_eq!(rights(AT), ALL);
    drop(first);
    assert_eq!(rights(AT), GONE);
    assert!(second.mmu.open_window(0));
}

#[test]
fn stores_are_allowed_where_they_need_no_walk() {
    let _alone = alone();
    let mut guest = guest();
    // Clean: a store has to set the dirty flag first.
    assert!(touch(&mut guest, AT, false));
    assert_eq!(rights(AT), READ);
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), true));
    assert!(touch(&mut guest, AT, true));
    assert_eq!(rights(AT), ALL);
    // Where a store was made, a load is enough.
    guest.map_page(AT + 0x3000, PAGE + 0x3000);
    guest.store64(AT + 0x3000, 1).unwrap();
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x3000), false));
    assert_eq!(rights(AT + 0x3000), ALL);
    // Read-only for the guest.
    guest.map(AT + 0x1000, (PAGE + 0x1000) | PRESENT | USER, 12);
    assert!(touch(&mut guest, AT + 0x1000, false));
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x1000), true));
    assert_eq!(rights(AT + 0x1000), READ);
    // The kernel's page, loaded by the kernel.
    guest.map(AT + 0x2000, (PAGE + 0x2000) | PRESENT, 12);
    guest.mmu.load_supervisor(&guest.state, GuestVirt(AT + 0x2000), Width::Byte).unwrap();
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x2000), false));
    guest.set_cpl(0);
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x2000), false));
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), false), "another view");
    assert_eq!(rights(AT + 0x2000), GONE);
}

#[test]
fn only_what_has_a_place_is_mapped() {
    let _alone = alone();
    let mut guest = guest();
    let pages = [
        (0xf000, false),
        (LOW.start, true),
        (LOW.end - 0x1000, true),
        (LOW.end, false),
        (HIGH.start - 0x1000, false),
        (HIGH.start, true),
        (HIGH.end - 0x1000, true),
    ];
    for (number, (page, has)) in pages.into_iter().enumerate() {
        guest.map_page(page, PAGE + 0x1000 * number as u64);
        assert_eq!(touch(&mut guest, page, true), has, "{page:#x}");
        if has {
            assert_eq!(rights(page), ALL);
        }
    }
    guest.mmu.flush_all(&mut guest.state);
    for (page, _) in pages {
        assert_eq!(rights(page), GONE, "{page:#x}");
    }
    // No RAM.
    guest.map_page(AT, 0xfee0_0000);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(AT));
    let _ = guest.load64(AT);
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), false));
}

#[test]
fn what_the_guest_drops_is_gone() {
    type Drop = fn(&mut Guest);
    let cases: [(&str, u64, Drop, bool); 9] = [
        ("everything", 0, |guest| guest.mmu.flush_all(&mut guest.state), true),
        ("CR3", 0, |guest| load_cr3(guest, ROOT, false), true),
        ("CR3 with bit 63", cr4::PCIDE, |guest| load_cr3(guest, ROOT, true), false),
        ("INVLPG", 0, |guest| guest.mmu.flush_page(&mut guest.state, GuestVirt(AT + 0x123)), true),
        (
            "INVLPG next to it",
            0,
            |guest| guest.mmu.flush_page(&mut guest.state, GuestVirt(AT + 0x1000)),
            false,
        ),
        ("one PCID", cr4::PCIDE, |guest| guest.mmu.flush_non_global(&mut guest.state, Some(0)), true),
        ("another PCID", cr4::PCIDE, |guest| guest.mmu.flush_non_global(&mut guest.state, Some(5)), false),
        ("all PCIDs", cr4::PCIDE, |guest| guest.mmu.flush_non_global(&mut guest.state, None), true),
        (
            "from another space",
            cr4::PCIDE,
            |guest| {
                load_cr3(guest, ROOT | 5, false);
                guest.mmu.flush_page(&mut guest.state, GuestVirt(AT));
            },
            true,
        ),
    ];
    let _alone = alone();
    for (what, control, flush, goes) in cases {
        let mut guest = shown(control);
        flush(&mut guest);
        assert_eq!(rights(AT), if goes { GONE } else { ALL }, "{what}");
        assert_eq!(guest.mmu.window_stats().dropped, u64::from(goes), "{what}");
    }
}

fn load_cr3(guest: &mut Guest, value: u64, keep: bool) {
    guest.state.cr3 = value;
    guest.mmu.switch_address_space(&mut guest.state, keep);
}

#[test]
fn other_spaces_do_not_see_it() {
    let _alone = alone();
    let mut guest = shown(cr4::PCIDE);
    load_cr3(&mut guest, ROOT | 5, true);
    assert_eq!(guest.state.window, 0);
    assert!(guest.load64(AT).is_ok());
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), false));
    assert_eq!(rights(AT), ALL, "it stays for the owner");
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(guest.state.window, 1);
    assert_eq!(guest.mmu.window_stats().dropped, 0);
}

#[test]
fn a_patient_space_takes_it() {
    let _alone = alone();
    let mut guest = shown(cr4::PCIDE);
    guest.state.instructions = 50_000_000;
    load_cr3(&mut guest, ROOT | 5, true);
    let pass = |guest: &mut Guest, instructions| {
        guest.state.instructions += instructions;
        guest.mmu.select_view(&mut guest.state);
        (guest.state.window != 0, rights(AT))
    };
    assert_eq!(pass(&mut guest, 7_999_999), (false, ALL));
    // It is not yet patient when it comes back.
    load_cr3(&mut guest, ROOT, true);
    load_cr3(&mut guest, ROOT | 5, true);
    assert_eq!(pass(&mut guest, 7_999_999), (false, ALL));
    // The same space again is no switch, and the kernel does not take it.
    load_cr3(&mut guest, ROOT | 5, true);
    guest.set_cpl(0);
    assert_eq!(pass(&mut guest, 1), (false, ALL));
    guest.set_cpl(3);
    assert_eq!(pass(&mut guest, 0), (true, GONE));
    assert!(touch(&mut guest, AT, true));
    load_cr3(&mut guest, ROOT, true);
    assert_eq!((guest.state.window, rights(AT)), (0, ALL));
}

#[test]
fn a_recycled_pcid_takes_nothing_over() {
    let _alone = alone();
    let mut guest = shown(cr4::PCIDE);
    for pcid in 1..8 {
        load_cr3(&mut guest, ROOT | pcid, true);
        assert_eq!((guest.state.window, rights(AT)), (0, ALL));
    }
    load_cr3(&mut guest, ROOT | 9, true);
    assert_eq!(rights(AT), GONE);
    assert_eq!(guest.state.window, 1, "nobody has it");
    // Flushed from another space, the owner is none any more.
    assert!(touch(&mut guest, AT, true));
    load_cr3(&mut guest, ROOT | 5, true);
    assert_eq!(guest.state.window, 0);
    guest.mmu.flush_all(&mut guest.state);
    assert_eq!((guest.state.window, rights(AT)), (1, GONE));
}

fn mark(guest: &mut Guest, page: u64) {
    assert!(guest.mmu.code_pages().mark(GuestPhys(page)));
    guest.mmu.protect_page(GuestPhys(page));
}

#[test]
fn code_pages_are_not_stored_to() {
    const ALIAS: u64 = AT + 0x10_3000;
    let _alone = alone();
    let mut guest = guest();
    let diary = Diary::new(true);
    guest.mmu.set_watch(diary.clone());
    guest.map_page(ALIAS, PAGE);
    guest.map_page(AT + 0x1000, PAGE + 0x1000);
    for page in [AT, ALIAS, AT + 0x1000] {
        assert!(touch(&mut guest, page, true));
    }
    for round in 0..3 {
        mark(&mut guest, PAGE);
        assert_eq!((rights(AT), rights(ALIAS), rights(AT + 0x1000)), (READ, READ, ALL), "{round}");
        let at = GuestVirt(AT);
        assert!(!guest.mmu.window_fault(&mut guest.state, at, true));
        assert!(guest.mmu.window_fault(&mut guest.state, at, false));
        assert_eq!(rights(AT), READ);
        // The TLB's arrays lose their entries, the window keeps its page.
        guest.store64(AT, 1).unwrap();
        assert_eq!(diary.take().len(), 1);
        assert!(touch(&mut guest, AT, true), "no code is left");
        assert!(touch(&mut guest, ALIAS, true));
        assert_eq!((rights(AT), rights(ALIAS)), (ALL, ALL));
    }
    // Filled while marked.
    guest.mmu.flush_all(&mut guest.state);
    assert!(touch(&mut guest, AT + 0x1000, true));
    mark(&mut guest, PAGE);
    assert!(touch(&mut guest, AT, false));
    assert_eq!(rights(AT), READ);
}

#[test]
fn what_the_tlb_lacks_comes_as_the_structures_have_it() {
    let _alone = alone();
    let mut guest = guest();
    // Two pages of one slot: either displaces the other before it faults.
    let other = AT + ((crate::tlb::MIN_ENTRIES as u64) << 12);
    guest.map_page(other, PAGE + 0x5000);
    for page in [AT, other] {
        guest.store64(page, 1).unwrap();
    }
    for page in [AT, other] {
        assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(page), true));
        assert_eq!(rights(page), ALL);
    }
    // The TLB has none of it.
    guest.mmu.flush_all(&mut guest.state);
    mark(&mut guest, PAGE);
    assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), true), "code");
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(AT), false));
    assert_eq!(rights(AT), READ);
    let fills = guest.mmu.fills;
    guest.load64(AT).unwrap();
    assert_eq!(guest.mmu.fills, fills + 1);
    // What is not RAM, clean, or not the user's.
    guest.map_page(AT + 0x1000, 0xfee0_0000);
    guest.map(AT + 0x2000, (PAGE + 0x2000) | PRESENT | USER | WRITABLE | ACCESSED, 12);
    guest.map(AT + 0x3000, (PAGE + 0x3000) | PRESENT | WRITABLE | ACCESSED | DIRTY, 12);
    let _ = guest.load64(AT + 0x1000);
    for (page, write) in [(0x1000, false), (0x2000, true), (0x3000, false)] {
        assert!(!guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + page), write), "{page:#x}");
        assert_eq!(rights(AT + page), GONE, "{page:#x}");
    }
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x2000), false));
    assert_eq!(rights(AT + 0x2000), READ);
}

#[test]
fn a_page_that_only_the_window_still_has_is_protected() {
    let _alone = alone();
    let mut guest = shown(0);
    // Another page displaces the entry.
    let other = AT + ((crate::tlb::MIN_ENTRIES as u64) << 12);
    guest.map_page(other, PAGE + 0x5000);
    guest.load64(other).unwrap();
    let fills = guest.mmu.fills;
    guest.load64(AT).unwrap();
    guest.load64(other).unwrap();
    assert_eq!(guest.mmu.fills, fills + 2, "displaced");
    assert_eq!(rights(AT), ALL);
    mark(&mut guest, PAGE);
    assert_eq!(rights(AT), READ);
}

#[test]
fn a_page_that_was_mapped_anew_is_another_one() {
    let _alone = alone();
    let mut guest = shown(0);
    // Changed without INVLPG; the TLB has lost the old translation.
    guest.map_page(AT, PAGE + 0x1000);
    let other = AT + ((crate::tlb::MIN_ENTRIES as u64) << 12);
    guest.map_page(other, PAGE + 0x5000);
    guest.load64(other).unwrap();
    guest.write64(PAGE + 0x1000, 0x77);
    assert!(touch(&mut guest, AT, true));
    // SAFETY: just mapped.
    assert_eq!(unsafe { host(AT).cast::<u64>().read_volatile() }, 0x77);
    mark(&mut guest, PAGE);
    assert_eq!(rights(AT), ALL);
    mark(&mut guest, PAGE + 0x1000);
    assert_eq!(rights(AT), READ);
}
