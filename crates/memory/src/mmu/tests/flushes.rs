//! What flushes drop and what they leave, and how arrays grow. A translation is there if the entry behind it can
//! change in memory without being noticed.

use x86::control::cr4;
use x86::paging::{GLOBAL, LARGE, PRESENT};
use x86::{CpuState, GuestPhys, GuestVirt, Width};

use super::guest::{Guest, OPEN, ROOT};
use crate::tlb::{Entry, MAX_ENTRIES, MIN_ENTRIES};

const LOCAL: u64 = 0x40_0000;
const GLOBALLY: u64 = 0x60_1000;

/// A global and another page, loaded and then unmapped in memory.
fn guest_with_stale_pages(pcids: bool) -> Guest {
    let mut guest = Guest::long();
    if pcids {
        guest.state.cr4 |= cr4::PCIDE;
        guest.changed();
    }
    let local = guest.map_page(LOCAL, 0x80_0000);
    let global = guest.map(GLOBALLY, 0x90_0000 | OPEN | GLOBAL, 12);
    touch(&mut guest);
    guest.write64(local, 0);
    guest.write64(global, 0);
    assert_eq!(kept(&mut guest), (true, true));
    guest
}

fn touch(guest: &mut Guest) {
    guest.store64(LOCAL, 1).unwrap();
    guest.store64(GLOBALLY, 1).unwrap();
}

/// Whether the pages still translate.
fn kept(guest: &mut Guest) -> (bool, bool) {
    (guest.load64(LOCAL).is_ok(), guest.load64(GLOBALLY).is_ok())
}

fn load_cr3(guest: &mut Guest, value: u64, keep: bool) {
    guest.state.cr3 = value;
    guest.mmu.switch_address_space(&mut guest.state, keep);
}

#[test]
fn cr3_loads_leave_global_pages() {
    let mut guest = guest_with_stale_pages(false);
    load_cr3(&mut guest, ROOT, false);
    assert_eq!(kept(&mut guest), (false, true));
    guest.mmu.flush_all(&mut guest.state);
    assert_eq!(kept(&mut guest), (false, false));
}

#[test]
fn global_bits_do_not_count_without_pge() {
    let mut guest = guest_with_stale_pages(false);
    guest.state.cr4 &= !cr4::PGE;
    guest.changed();
    guest.map(GLOBALLY, 0x90_0000 | OPEN | GLOBAL, 12);
    guest.load64(GLOBALLY).unwrap();
    guest.map(GLOBALLY, 0, 12);
    load_cr3(&mut guest, ROOT, false);
    assert_eq!(kept(&mut guest), (false, false));
}

#[test]
fn a_slot_that_changes_hands_keeps_its_own_kind() {
    // Two pages for one slot: the flush must go by the one that holds it last.
    let other = GLOBALLY + ((MIN_ENTRIES as u64) << 12);
    let mut guest = Guest::long();
    guest.map(GLOBALLY, 0x90_0000 | OPEN | GLOBAL, 12);
    guest.map_page(other, 0x91_0000);
    for last_is_global in [false, true] {
        guest.mmu.flush_all(&mut guest.state);
        let order = if last_is_global { [other, GLOBALLY] } else { [GLOBALLY, other] };
        for address in order {
            guest.load64(address).unwrap();
        }
        load_cr3(&mut guest, ROOT, false);
        let fills = guest.mmu.fills;
        guest.load64(order[1]).unwrap();
        assert_eq!(guest.mmu.fills == fills, last_is_global);
    }
}

#[test]
fn pcids_keep_their_translations() {
    let mut guest = guest_with_stale_pages(true);
    // Another PCID knows nothing of these.
    load_cr3(&mut guest, ROOT | 5, false);
    assert_eq!(kept(&mut guest), (false, false));
    // Back with bit 63: all as it was; without: only what is global.
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(kept(&mut guest), (true, true));
    load_cr3(&mut guest, ROOT, false);
    assert_eq!(kept(&mut guest), (false, true));
}

#[test]
fn invpcid_of_one_context_and_of_all() {
    let mut guest = guest_with_stale_pages(true);
    guest.mmu.flush_non_global(&mut guest.state, Some(5));
    assert_eq!(kept(&mut guest), (true, true));
    load_cr3(&mut guest, ROOT | 5, true);
    guest.mmu.flush_non_global(&mut guest.state, Some(0));
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(kept(&mut guest), (false, true));

    let mut guest = guest_with_stale_pages(true);
    load_cr3(&mut guest, ROOT | 5, true);
    guest.mmu.flush_non_global(&mut guest.state, None);
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(kept(&mut guest), (false, true));

    let mut guest = guest_with_stale_pages(true);
    load_cr3(&mut guest, ROOT | 5, true);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(GLOBALLY));
    guest.mmu.flush_all(&mut guest.state);
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(kept(&mut guest), (false, false));
}

#[test]
fn invlpg_drops_global_pages_of_other_pcids() {
    let mut guest = guest_with_stale_pages(true);
    load_cr3(&mut guest, ROOT | 5, true);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(GLOBALLY + 0x123));
    load_cr3(&mut guest, ROOT, true);
    assert!(!kept(&mut guest).1);
}

#[test]
fn the_least_recent_pcid_makes_room() {
    let mut guest = guest_with_stale_pages(true);
    for pcid in 1..8 {
        load_cr3(&mut guest, ROOT | pcid, true);
        load_cr3(&mut guest, ROOT, true);
        assert_eq!(kept(&mut guest), (true, true), "{pcid}");
    }
    for pcid in 11..19 {
        load_cr3(&mut guest, ROOT | pcid, true);
    }
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(kept(&mut guest), (false, false));
}

#[test]
fn invlpg_drops_every_piece_of_a_large_page_in_every_view() {
    for (shift, base, flags) in [(21, 0x4000_0000_u64, GLOBAL), (30, 0x8000_0000, 0)] {
        let mut guest = Guest::long();
        let leaf = guest.map(base, OPEN | LARGE | flags, shift);
        let pieces = [0, 0x1000, 0x12_3000, 0x1f_f000];
        guest.map_page(base - 0x2000, 0x80_0000);
        for cpl in [0, 3] {
            guest.set_cpl(cpl);
            guest.load64(base - 0x2000).unwrap();
            for piece in pieces {
                guest.load64(base + piece).unwrap();
            }
        }
        guest.write64(leaf, 0);
        guest.mmu.flush_page(&mut guest.state, GuestVirt(base + 0x6_7000));
        let fills = guest.mmu.fills;
        for cpl in [0, 3] {
            guest.set_cpl(cpl);
            guest.load64(base - 0x2000).unwrap();
            assert_eq!(guest.mmu.fills, fills, "the neighbour stays");
        }
        for cpl in [0, 3] {
            guest.set_cpl(cpl);
            for piece in pieces {
                assert!(guest.load64(base + piece).is_err(), "{piece:#x}");
            }
        }
    }
}

#[test]
fn invlpg_drops_both_halves_of_a_4_mib_page() {
    let mut guest = Guest::legacy();
    guest.write32(ROOT + 4, (0x40_0000 | OPEN | LARGE) as u32);
    guest.load64(0x41_0000).unwrap();
    guest.load64(0x7f_0000).unwrap();
    guest.write32(ROOT + 4, 0);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(0x40_5000));
    assert!(guest.load64(0x41_0000).is_err());
    assert!(guest.load64(0x7f_0000).is_err());
}

#[test]
fn invlpg_leaves_other_pages() {
    let mut guest = guest_with_stale_pages(false);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(LOCAL + 0x1000));
    assert_eq!(kept(&mut guest), (true, true));
    guest.mmu.flush_page(&mut guest.state, GuestVirt(LOCAL + 0xfff));
    assert_eq!(kept(&mut guest), (false, true));
}

fn entries(state: &CpuState) -> usize {
    state.tlb_mask as usize / size_of::<Entry>() + 1
}

/// Loads from `pages` pages of a 1 GiB mapping that repeats RAM.
fn sweep(guest: &mut Guest, pages: u64) {
    for page in 0..pages {
        guest.load64(0x4000_0000 + page * 0x1000).unwrap();
    }
}

/// Maps 512 large pages from 1 GiB onto the first 16 MiB, over and over.
fn map_much(guest: &mut Guest) {
    for number in 0..512_u64 {
        guest.map(0x4000_0000 + (number << 21), (number % 8) << 21 | PRESENT | LARGE | OPEN, 21);
    }
}

#[test]
fn arrays_grow_with_use_and_keep_what_they_hold() {
    let mut guest = Guest::long();
    map_much(&mut guest);
    assert_eq!(entries(&guest.state), MIN_ENTRIES);
    sweep(&mut guest, 3000);
    guest.mmu.select_view(&mut guest.state);
    assert_eq!(entries(&guest.state), 2 * MIN_ENTRIES);
    let fills = guest.mmu.fills;
    for page in 3000 - MIN_ENTRIES as u64..3000 {
        guest.load64(0x4000_0000 + page * 0x1000).unwrap();
    }
    assert_eq!(guest.mmu.fills, fills);
    for _ in 0..20 {
        sweep(&mut guest, 3000);
        guest.mmu.select_view(&mut guest.state);
    }
    assert_eq!(entries(&guest.state), 4096);
    // Now everything fits: no more walks.
    sweep(&mut guest, 3000);
    let fills = guest.mmu.fills;
    guest.mmu.select_view(&mut guest.state);
    sweep(&mut guest, 3000);
    assert_eq!(guest.mmu.fills, fills);
    // INVLPG still finds the pieces.
    guest.map(0x4000_0000, 0, 21);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(0x4000_5000));
    assert!(guest.load64(0x4010_0000).is_err());
    assert!(guest.load64(0x4020_0000).is_ok());
    // And it has an end.
    guest.map(0x4000_0000, OPEN | LARGE, 21);
    for _ in 0..20 {
        sweep(&mut guest, 3 * MAX_ENTRIES as u64);
        guest.mmu.select_view(&mut guest.state);
    }
    assert_eq!(entries(&guest.state), MAX_ENTRIES);
}

#[test]
fn an_array_grows_for_two_pages_that_displace_each_other() {
    let mut guest = Guest::long();
    map_much(&mut guest);
    let distance = MIN_ENTRIES as u64;
    let alternate = |guest: &mut Guest, times: usize| {
        let before = guest.mmu.fills;
        for _ in 0..times {
            for page in [0, distance] {
                guest.load64(0x4000_0000 + page * 0x1000).unwrap();
            }
        }
        guest.mmu.select_view(&mut guest.state);
        guest.mmu.fills - before
    };
    let walks = alternate(&mut guest, MIN_ENTRIES / 4);
    assert_eq!((walks, entries(&guest.state)), (distance / 2, MIN_ENTRIES));
    alternate(&mut guest, 1);
    assert_eq!(entries(&guest.state), 2 * MIN_ENTRIES);
    // One of them was displaced before.
    assert_eq!(alternate(&mut guest, 1000), 1);
}

#[test]
fn idle_arrays_shrink() {
    let mut guest = Guest::long();
    map_much(&mut guest);
    for _ in 0..20 {
        sweep(&mut guest, 3000);
        guest.mmu.select_view(&mut guest.state);
    }
    let large = entries(&guest.state);
    for _ in 0..1000 {
        sweep(&mut guest, 10);
        load_cr3(&mut guest, ROOT, false);
    }
    assert!(entries(&guest.state) < large);
    for _ in 0..10000 {
        sweep(&mut guest, 10);
        load_cr3(&mut guest, ROOT, false);
    }
    assert_eq!(entries(&guest.state), MIN_ENTRIES);
}

#[test]
fn the_state_points_at_the_entries_of_its_view() {
    let mut guest = Guest::long();
    guest.map(LOCAL, 0x80_0000 | PRESENT, 12);
    let entry_of = |state: &CpuState, address: u64| {
        let offset = address >> (12 - crate::tlb::ENTRY_SHIFT) & state.tlb_mask;
        // SAFETY: what compiled code does, by the layout in `tlb`.
        unsafe { state.tlb.add(offset as usize).cast::<Entry>().read() }
    };
    guest.load64(LOCAL + 8).unwrap();
    let entry = entry_of(&guest.state, LOCAL);
    assert_eq!((entry.read, entry.write), (LOCAL, u64::MAX));
    let host = guest.ram.host(GuestPhys(0x80_0000)).unwrap() as u64;
    assert_eq!(entry.addend.wrapping_add(LOCAL), host);
    guest.set_cpl(3);
    let user = entry_of(&guest.state, LOCAL);
    assert_eq!(user.read, u64::MAX);
    guest.set_cpl(0);
    assert_eq!(entry_of(&guest.state, LOCAL).read, LOCAL);
    // Implicit accesses at CPL 3 fill and use the supervisor's array.
    guest.set_cpl(3);
    let fills = guest.mmu.fills;
    guest.mmu.load_supervisor(&guest.state, GuestVirt(LOCAL), Width::Byte).unwrap();
    assert_eq!(guest.mmu.fills, fills);
}
