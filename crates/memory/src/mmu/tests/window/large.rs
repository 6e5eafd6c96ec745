//! Pieces of large pages, of which 64 KiB are mapped at once.

use x86::GuestVirt;
use x86::paging::{ACCESSED, DIRTY, LARGE, PRESENT, USER, WRITABLE};

use super::super::guest::{Guest, OPEN, RAM_SIZE};
use super::{ALL, AT, GONE, LARGE_AT, LARGE_PAGE, READ, alone, guest, host, mark, open, rights, touch};

#[test]
fn pieces_of_large_pages_come_together() {
    let _alone = alone();
    let mut guest = guest();
    let (first, last) = (LARGE_AT + 0x3_0000, LARGE_AT + 0x3_f000);
    // For loads first.
    assert!(touch(&mut guest, first + 0x5008, false));
    assert_eq!((rights(first), rights(last), rights(last + 0x1000)), (READ, READ, GONE));
    assert_eq!(rights(first - 0x1000), GONE);
    assert!(touch(&mut guest, first + 0x6000, true));
    assert_eq!((rights(first), rights(last)), (ALL, ALL));
    assert_eq!(guest.mmu.window_stats().mapped, 32);
    guest.write64(LARGE_PAGE + 0x3_f008, 0x1234);
    // SAFETY: just mapped.
    assert_eq!(unsafe { host(last + 8).cast::<u64>().read_volatile() }, 0x1234);
    // Code in a page that the TLB never had.
    mark(&mut guest, LARGE_PAGE + 0x3_f000);
    assert_eq!((rights(first), rights(last - 0x1000), rights(last)), (ALL, ALL, READ));
    // With code in it, what is on this side.
    let next = LARGE_AT + 0x5_0000;
    mark(&mut guest, LARGE_PAGE + 0x5_2000);
    assert!(touch(&mut guest, next, true));
    assert_eq!((rights(next), rights(next + 0x1000), rights(next + 0x2000)), (ALL, ALL, GONE));
    // INVLPG of any of its addresses.
    assert!(touch(&mut guest, AT, true));
    guest.mmu.flush_page(&mut guest.state, GuestVirt(LARGE_AT + 0x1f_f123));
    for page in [first, first + 0x5000, last, next] {
        assert_eq!(rights(page), GONE, "{page:#x}");
    }
    assert_eq!(rights(AT), ALL);
    assert_eq!(guest.mmu.window_stats().dropped, 18);
}

#[test]
fn chunks_are_what_the_structures_say_now() {
    let _alone = alone();
    let base = LARGE_AT + 0x20_0000;
    let set = PRESENT | USER | WRITABLE | LARGE | ACCESSED | DIRTY;
    for (what, now, together) in [
        ("unchanged", LARGE_PAGE | set, true),
        ("another page", (LARGE_PAGE + 0x20_0000) | set, false),
        ("not accessed", LARGE_PAGE | (set & !ACCESSED), false),
        ("not dirty", LARGE_PAGE | (set & !DIRTY), false),
        ("not writable", LARGE_PAGE | (set & !WRITABLE), false),
        ("the kernel's", LARGE_PAGE | (set & !USER), false),
        ("nothing", 0, false),
    ] {
        let mut guest = guest();
        let leaf = guest.map(base, LARGE_PAGE | OPEN | LARGE, 21);
        guest.store64(base, 0).unwrap();
        // Without INVLPG the TLB may have what it had, but the window must not mix both.
        guest.write64(leaf, now);
        assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(base), true));
        assert_eq!((rights(base), rights(base + 0x1000)), (ALL, if together { ALL } else { GONE }), "{what}");
    }
    // The kernel's, for a load.
    let mut guest = guest();
    let leaf = guest.map(base, LARGE_PAGE | PRESENT | USER | LARGE, 21);
    guest.load64(base).unwrap();
    guest.write64(leaf, LARGE_PAGE | (set & !USER));
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(base), false));
    assert_eq!((rights(base), rights(base + 0x1000)), (READ, GONE));
    guest.mmu.flush_page(&mut guest.state, GuestVirt(base));
    // Small pages where a large one was.
    let leaf = guest.map(base, LARGE_PAGE | OPEN | LARGE, 21);
    guest.load64(base).unwrap();
    guest.write64(leaf, 0);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(base));
    guest.map_page(base + 0x1000, LARGE_PAGE + 0x1000);
    assert!(touch(&mut guest, base + 0x1000, true));
    assert_eq!((rights(base), rights(base + 0x1000)), (GONE, ALL));
    drop(guest);
    // A large page whose end is not RAM.
    let mut guest = open(Guest::with_ram(RAM_SIZE + 0x1_3000).into_long());
    guest.map(base, RAM_SIZE | OPEN | LARGE, 21);
    assert!(touch(&mut guest, base + 0x1_2000, false));
    assert_eq!([0, 1, 2, 3].map(|page| rights(base + 0x1_0000 + page * 0x1000)), [READ, READ, READ, GONE]);
    assert!(touch(&mut guest, base + 0x5000, false));
    assert_eq!((rights(base), rights(base + 0xf000)), (READ, READ));
}

#[test]
fn invlpg_drops_what_became_part_of_a_larger_page() {
    const GIGABYTE: u64 = 0x6000_4000_0000;
    let _alone = alone();
    let mut guest = guest();
    let at = GIGABYTE + LARGE_PAGE;
    guest.map(at, LARGE_PAGE | OPEN | LARGE, 21);
    guest.load64(at).unwrap();
    guest.map(GIGABYTE, OPEN | LARGE | ACCESSED, 30);
    assert!(guest.mmu.window_fault(&mut guest.state, GuestVirt(at), false));
    assert_eq!(rights(at + 0x1000), READ);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(GIGABYTE));
    assert_eq!((rights(at), rights(at + 0x1000)), (GONE, GONE));
}
