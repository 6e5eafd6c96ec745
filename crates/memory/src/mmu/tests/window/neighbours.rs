//! Pages that come with the one that was accessed.

use x86::paging::{ACCESSED, DIRTY, PRESENT, USER, WRITABLE};
use x86::{GuestPhys, GuestVirt};

use super::super::guest::{Guest, RAM_SIZE};
use super::{ALL, GONE, PAGE, READ, alone, guest, mark, open, rights, touch};
use crate::ram::{HIGH_START, HOLE_START};

/// 64 KiB of pages.
const CHUNK: u64 = 0x5555_5556_0000;
/// The page that is accessed, among them.
const MIDDLE: u64 = 7;
/// Leaves of pages that were stored to.
const USED: u64 = PRESENT | USER | WRITABLE | ACCESSED | DIRTY;

fn at(number: u64) -> u64 {
    CHUNK + (number << 12)
}

/// What of the 64 KiB and the pages next to them is mapped: first and last number, if they allow the same, and that.
fn run() -> (u64, u64, (bool, bool)) {
    let all: Vec<_> = (0..18).map(|number| rights(at(number) - 0x1000)).collect();
    let first = all.iter().position(|page| *page != GONE).unwrap();
    let last = all.iter().rposition(|page| *page != GONE).unwrap();
    assert!(all[first..=last].iter().all(|page| *page == all[first]), "{all:?}");
    (first as u64 - 1, last as u64 - 1, all[first])
}

/// Maps them, and the pages next to them, to consecutive pages with these flags; returns where the leaves are.
fn fill(guest: &mut Guest, physical: u64, flags: u64) -> Vec<u64> {
    let leaf = |number| guest.map(at(number) - 0x1000, (physical + (number << 12)) | flags, 12);
    (0..18).map(leaf).collect()
}

#[test]
fn neighbours_come_together() {
    type Change = fn(&mut Guest, &[u64]);
    /// Gives the leaf of a page other flags, or another page.
    fn change(guest: &Guest, leaf: u64, clear: u64, add: u64) {
        guest.write64(leaf, (guest.read64(leaf) & !clear) + add);
    }
    let cases: [(&str, Change, u64, u64); 9] = [
        ("to the edges of 64 KiB", |_, _| (), 0, 15),
        ("a hole", |guest, leaves| guest.write64(leaves[10], 0), 0, 9),
        ("read-only", |guest, leaves| change(guest, leaves[5], WRITABLE, 0), 6, 15),
        ("clean", |guest, leaves| change(guest, leaves[8], DIRTY, 0), 0, 7),
        ("not accessed", |guest, leaves| change(guest, leaves[6], ACCESSED, 0), 7, 15),
        ("the kernel's", |guest, leaves| change(guest, leaves[11], USER, 0), 0, 10),
        ("another page", |guest, leaves| change(guest, leaves[4], 0, 0x1000), 5, 15),
        ("no RAM", |guest, leaves| change(guest, leaves[9], 0, RAM_SIZE), 0, 8),
        ("code", |guest, _| mark(guest, PAGE + (13 << 12)), 0, 12),
    ];
    let _alone = alone();
    for (what, modify, first, last) in cases {
        let mut guest = guest();
        let leaves = fill(&mut guest, PAGE - 0x1000, USED);
        modify(&mut guest, &leaves[1..]);
        assert!(touch(&mut guest, at(MIDDLE), true));
        assert_eq!(run(), (first, last, ALL), "{what}");
        let stats = guest.mmu.window_stats();
        assert_eq!((stats.mapped, stats.dropped), (last + 1 - first, 0), "{what}");
        guest.mmu.flush_page(&mut guest.state, GuestVirt(at(MIDDLE)));
        assert_eq!(rights(at(MIDDLE)), GONE, "{what}");
        // The bytes are those of the page behind each.
        for number in first..=last {
            guest.write64(PAGE + (number << 12), number + 100);
            let mut bytes = [0; 8];
            let there = super::copy(at(number), &mut bytes, false);
            assert_eq!(there, number != MIDDLE);
            assert!(!there || u64::from_le_bytes(bytes) == number + 100, "{what}");
        }
    }
}

#[test]
fn pages_for_loads_come_with_their_like() {
    let _alone = alone();
    let mut guest = guest();
    let leaves = fill(&mut guest, PAGE - 0x1000, PRESENT | USER | WRITABLE | ACCESSED);
    // Both of them are read-only to the window, whatever the reason.
    guest.write64(leaves[1 + 9], (PAGE + 0x9000) | PRESENT | USER | ACCESSED);
    guest.write64(leaves[1 + 4], (PAGE + 0x4000) | USED);
    assert!(touch(&mut guest, at(MIDDLE), false));
    assert_eq!(run(), (5, 15, READ));
    // A store makes one page dirty, and the one that was dirty is no neighbour of it.
    assert!(touch(&mut guest, at(MIDDLE), true));
    assert_eq!([6, 7, 8].map(|number| rights(at(number))), [READ, ALL, READ]);
    assert_eq!(guest.mmu.window_stats().mapped, 12);
}

#[test]
fn code_in_a_neighbour_is_protected() {
    let _alone = alone();
    let mut guest = guest();
    fill(&mut guest, PAGE - 0x1000, USED);
    assert!(touch(&mut guest, at(MIDDLE), true));
    // The TLB never had it.
    mark(&mut guest, PAGE + 0xc000);
    assert_eq!([11, 12, 13].map(|number| rights(at(number))), [ALL, READ, ALL]);
    // Its mark ends the next piece, also for loads, and so does a mark of the page itself.
    guest.mmu.flush_all(&mut guest.state);
    assert!(touch(&mut guest, at(12), false));
    assert_eq!(run(), (12, 12, READ));
    assert!(touch(&mut guest, at(13), false));
    assert_eq!([12, 13, 15].map(|number| rights(at(number))), [READ, ALL, ALL]);
}

#[test]
fn a_stale_entry_comes_alone() {
    let _alone = alone();
    for (what, now) in [
        ("moved", (PAGE + 0x2_0000) | USED),
        ("clean", (PAGE + (MIDDLE << 12)) | (USED & !DIRTY)),
        ("not accessed", (PAGE + (MIDDLE << 12)) | (USED & !ACCESSED)),
        ("read-only", (PAGE + (MIDDLE << 12)) | (USED & !WRITABLE)),
        ("the kernel's", (PAGE + (MIDDLE << 12)) | (USED & !USER)),
        ("gone", 0),
    ] {
        let mut guest = guest();
        let leaves = fill(&mut guest, PAGE - 0x1000, USED);
        guest.store64(at(MIDDLE), 0).unwrap();
        guest.write64(leaves[1 + MIDDLE as usize], now);
        assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(at(MIDDLE)), true), "{what}");
        assert_eq!(run(), (MIDDLE, MIDDLE, ALL), "{what}");
    }
}

#[test]
fn what_is_mapped_already_ends_a_piece() {
    let _alone = alone();
    let mut guest = guest();
    let leaves = fill(&mut guest, PAGE - 0x1000, USED);
    guest.write64(leaves[1 + 6], 0);
    guest.write64(leaves[1 + 8], 0);
    assert!(touch(&mut guest, at(MIDDLE), true));
    assert_eq!(run(), (MIDDLE, MIDDLE, ALL));
    // Its neighbours are there now. Another fault at it changes nothing.
    guest.write64(leaves[1 + 6], (PAGE + 0x6000) | USED);
    guest.write64(leaves[1 + 8], (PAGE + 0x8000) | USED);
    for write in [false, true] {
        assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(at(MIDDLE)), write));
    }
    assert_eq!((run(), guest.mmu.window_stats().mapped), ((MIDDLE, MIDDLE, ALL), 1));
    // Up to it.
    assert!(touch(&mut guest, at(5), true));
    assert_eq!((run(), guest.mmu.window_stats().mapped), ((0, MIDDLE, ALL), 8));
    assert!(touch(&mut guest, at(15), true));
    assert_eq!((run(), guest.mmu.window_stats().mapped), ((0, 15, ALL), 16));
    // What has less rights, or is another page now, does not end it.
    mark(&mut guest, PAGE + 0x3000);
    guest.mmu.code_pages().unmark(GuestPhys(PAGE + 0x3000));
    guest.write64(leaves[1 + 1], (PAGE + 0x4_0000) | USED);
    guest.write64(leaves[1 + 2], (PAGE + 0x4_1000) | USED);
    guest.write64(leaves[1 + 3], (PAGE + 0x4_2000) | USED);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(at(2)));
    assert!(touch(&mut guest, at(2), true));
    assert_eq!((run(), guest.mmu.window_stats().mapped), ((0, 15, ALL), 19));
    guest.write64(PAGE + 0x4_2000, 0x55);
    let mut bytes = [0; 8];
    assert!(super::copy(at(3), &mut bytes, false));
    assert_eq!(bytes[0], 0x55);
}

#[test]
fn pieces_end_where_blocks_of_ram_do() {
    let _alone = alone();
    // 2 MiB in RAM end behind the sixth page.
    let mut guest = guest();
    fill(&mut guest, 0xa0_0000 - 0x7000, USED);
    assert!(touch(&mut guest, at(2), true));
    assert_eq!(run(), (0, 5, ALL));
    assert!(guest.mmu.ram().is_shared(GuestPhys(0x9f_f000)));
    assert!(!guest.mmu.ram().is_shared(GuestPhys(0xa0_0000)));
    assert!(touch(&mut guest, at(6), true));
    assert_eq!(run(), (0, 15, ALL));
    drop(guest);
    // RAM ends.
    let mut guest = open(Guest::with_ram(RAM_SIZE + 0x4000).into_long());
    fill(&mut guest, RAM_SIZE - 0x1000, USED);
    assert!(touch(&mut guest, at(1), true));
    assert_eq!(run(), (0, 3, ALL));
}

#[test]
fn pieces_lie_on_one_side_of_the_hole() {
    let _alone = alone();
    let Ok(ram) = crate::Ram::new(HOLE_START + (1 << 21)) else { return };
    drop(ram);
    let mut guest = open(Guest::with_ram(HOLE_START + (1 << 21)).into_long());
    // The hole begins behind the sixth page.
    fill(&mut guest, HOLE_START - 0x7000, USED);
    assert!(touch(&mut guest, at(2), true));
    assert_eq!(run(), (0, 5, ALL));
    // Where RAM goes on, its pages follow the last ones in the file, but not as addresses.
    guest.mmu.flush_all(&mut guest.state);
    for number in 6..17 {
        guest.map(at(number), (HIGH_START + ((number - 6) << 12)) | USED, 12);
    }
    assert!(touch(&mut guest, at(9), true));
    assert_eq!(run(), (6, 15, ALL));
    guest.write64(HIGH_START + 0x9000, 0x66);
    let mut bytes = [0; 8];
    assert!(super::copy(at(15), &mut bytes, false));
    assert_eq!(bytes[0], 0x66);
    assert!(touch(&mut guest, at(3), true));
    assert_eq!(run(), (0, 15, ALL));
    // The page below HIGH_START is no RAM.
    guest.mmu.flush_all(&mut guest.state);
    guest.map(at(5), (HIGH_START - 0x1000) | USED, 12);
    assert!(touch(&mut guest, at(9), true));
    assert_eq!(run(), (6, 15, ALL));
}
