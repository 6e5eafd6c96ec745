//! Pages that hold translated code, and other vCPUs.

use std::sync::atomic::{AtomicBool, Ordering};

use x86::paging::{ACCESSED, DIRTY};
use x86::{GuestPhys, GuestVirt, Width};

use super::guest::{Diary, Guest, OPEN};
use crate::{AtomicOp, CodePages, Mmu};

const AT: u64 = 0x5000;
/// Another linear address of the same page, in another slot.
const ALIAS: u64 = 0xffff_8000_0000_9000;
const CODE: u64 = 0x40_0000;

fn guest() -> Guest {
    let mut guest = Guest::long();
    guest.map_page(AT, CODE);
    guest.map_page(ALIAS, CODE);
    guest.map_page(AT + 0x1000, CODE + 0x8000);
    guest
}

fn mark(guest: &mut Guest) {
    if guest.mmu.code_pages().mark(GuestPhys(CODE + 0x10)) {
        guest.mmu.protect_page(GuestPhys(CODE));
    }
}

#[test]
fn writes_to_marked_pages_are_told_before_they_happen() {
    let mut guest = guest();
    let diary = Diary::new(false);
    guest.mmu.set_watch(diary.clone());
    guest.store64(AT, 0).unwrap();
    guest.store64(ALIAS, 0).unwrap();
    assert!(diary.take().is_empty());
    mark(&mut guest);
    let Guest { mmu, state, .. } = &mut guest;
    let at = GuestVirt(AT + 0x20);
    let told = |length| vec![(GuestPhys(CODE + 0x20), length)];
    mmu.store(state, at, Width::Word, 1).unwrap();
    assert_eq!(diary.take(), told(2));
    assert!(std::mem::take(&mut mmu.code_written));
    mmu.store(state, GuestVirt(ALIAS + 0x20), Width::Byte, 1).unwrap();
    assert_eq!(diary.take(), told(1));
    mmu.store128(state, at, 1).unwrap();
    assert_eq!(diary.take(), told(16));
    mmu.store_bytes(state, at, &[0; 200]).unwrap();
    assert_eq!(diary.take(), told(200));
    mmu.atomic(state, at, Width::Dword, AtomicOp::Add, 1).unwrap();
    assert_eq!(diary.take(), told(4));
    mmu.compare_exchange(state, at, Width::Qword, 1, 2).unwrap();
    assert_eq!(diary.take(), told(8));
    mmu.compare_exchange128(state, at, 1, 2).unwrap();
    assert_eq!(diary.take(), told(16));
    mmu.store_supervisor(state, at, Width::Word, 1).unwrap();
    assert_eq!(diary.take(), told(2));
    assert!(mmu.direct_over_code(state, at, 512).unwrap().is_some());
    assert_eq!(diary.take(), told(512));
    // Across pages, only the part that is in the marked one.
    mmu.store(state, GuestVirt(AT + 0xffd), Width::Qword, 0).unwrap();
    assert_eq!(diary.take(), [(GuestPhys(CODE + 0xffd), 3)]);
    assert!(std::mem::take(&mut mmu.code_written));
    // Loads, probes and what gives up tell nobody.
    mmu.load(state, at, Width::Qword).unwrap();
    mmu.load_for_update(state, at, Width::Qword).unwrap();
    mmu.probe_write(state, at, 8).unwrap();
    assert_eq!(mmu.direct(state, at, 8, true), Ok(None));
    assert_eq!(mmu.direct_over_code(state, GuestVirt(AT + 0xffd), 8), Ok(None));
    assert!(mmu.direct(state, at, 8, false).unwrap().is_some());
    assert!(!mmu.try_store(state, at, Width::Qword, 0));
    assert!(!mmu.try_store128(state, at, 0));
    assert!(diary.take().is_empty());
    assert!(!mmu.code_written);
    assert!(mmu.code_pages().is_marked(GuestPhys(CODE)), "the watch wants to hear more");
}

#[test]
fn device_writes_are_told_page_by_page() {
    let mut guest = guest();
    let diary = Diary::new(true);
    guest.mmu.set_watch(diary.clone());
    let pages = guest.mmu.code_pages().clone();
    pages.device_wrote(GuestPhys(CODE), 0x3000);
    assert!(diary.take().is_empty());
    mark(&mut guest);
    pages.mark(GuestPhys(CODE + 0x2000));
    pages.device_wrote(GuestPhys(CODE + 0xff0), 0x1800);
    let told = [(GuestPhys(CODE + 0xff0), 0x10), (GuestPhys(CODE + 0x2000), 0x7f0)];
    assert_eq!(diary.take(), told);
    assert!(!pages.is_marked(GuestPhys(CODE)));
    pages.device_wrote(GuestPhys(u64::MAX - 0x10), 0x11);
}

#[test]
fn a_page_without_code_left_is_fast_again() {
    let mut guest = guest();
    let diary = Diary::new(true);
    guest.mmu.set_watch(diary.clone());
    mark(&mut guest);
    guest.store64(AT, 7).unwrap();
    assert_eq!(diary.take().len(), 1);
    assert!(!guest.mmu.code_pages().is_marked(GuestPhys(CODE)));
    let fills = guest.mmu.fills;
    guest.store64(AT, 8).unwrap();
    assert!(diary.take().is_empty());
    assert_eq!(guest.mmu.fills, fills, "the entry learns it without a walk");
    // And slow once more when marked again.
    mark(&mut guest);
    guest.store64(AT, 9).unwrap();
    assert_eq!(diary.take().len(), 1);
}

#[test]
fn repeated_writes_to_code_pages_need_no_walk() {
    let mut guest = guest();
    guest.mmu.set_watch(Diary::new(false));
    mark(&mut guest);
    guest.store64(AT, 7).unwrap();
    let fills = guest.mmu.fills;
    guest.store64(AT + 8, 7).unwrap();
    assert_eq!(guest.mmu.fills, fills);
}

#[test]
fn a_mark_outside_ram_is_none() {
    let mut guest = guest();
    assert!(!guest.mmu.code_pages().mark(GuestPhys(0xd000_0000)));
    guest.mmu.protect_page(GuestPhys(0xd000_0000));
}

#[test]
fn vcpus_count_together() {
    const ROUNDS: u64 = 20_000;
    let mut first = guest();
    for offset in [0x100, 0x13d] {
        let ram = first.ram.clone();
        let leaf_is_shared = first.state.cr3;
        let other = std::thread::spawn(move || {
            let mut mmu = Mmu::new(ram.clone(), CodePages::new(&ram));
            let mut state = Guest::long().state;
            state.cr3 = leaf_is_shared;
            mmu.flush_all(&mut state);
            let at = GuestVirt(ALIAS + offset);
            for _ in 0..ROUNDS {
                mmu.atomic(&state, at, Width::Qword, AtomicOp::Add, 1).unwrap();
            }
        });
        let at = GuestVirt(AT + offset);
        for _ in 0..ROUNDS {
            let mut old = first.mmu.load(&first.state, at, Width::Qword).unwrap();
            loop {
                let seen = first.mmu.compare_exchange(&first.state, at, Width::Qword, old, old + 1).unwrap();
                if seen == old {
                    break;
                }
                old = seen;
            }
        }
        other.join().unwrap();
        assert_eq!(first.load64(AT + offset), Ok(2 * ROUNDS));
    }
}

#[test]
fn flags_are_not_lost_to_another_vcpu() {
    let mut guest = guest();
    let leaf = guest.map_page(AT, CODE);
    let host = guest.ram.host(GuestPhys(leaf)).unwrap() as usize;
    let stop = AtomicBool::new(false);
    // Another vCPU counts in the ignored bits of the entry, with atomics; the walk's flags must not undo any step.
    std::thread::scope(|scope| {
        let counter = scope.spawn(|| {
            let entry = std::ptr::with_exposed_provenance_mut::<u8>(host);
            let mut steps = 0_u64;
            while !stop.load(Ordering::Relaxed) {
                // SAFETY: an aligned entry in guest RAM.
                unsafe { crate::host::fetch_add(entry, Width::Qword, 1 << 52) };
                steps += 1;
            }
            steps
        });
        for _ in 0..20_000 {
            // SAFETY: as above.
            unsafe {
                let entry = std::ptr::with_exposed_provenance_mut::<u8>(host);
                let mut old = crate::host::load(entry, Width::Qword);
                loop {
                    let new = old & !(ACCESSED | DIRTY);
                    let seen = crate::host::compare_exchange(entry, Width::Qword, old, new);
                    if seen == old {
                        break;
                    }
                    old = seen;
                }
            }
            guest.mmu.flush_page(&mut guest.state, GuestVirt(AT));
            guest.store64(AT, 1).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
        let steps = counter.join().unwrap();
        assert_eq!(
            guest.read64(leaf),
            CODE | OPEN | ACCESSED | DIRTY | (steps & 0x7ff) << 52 | (steps >> 11 & 1) << 63
        );
    });
}
