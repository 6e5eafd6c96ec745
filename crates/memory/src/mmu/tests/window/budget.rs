//! What a window may cost.

use x86::GuestVirt;
use x86::control::cr4;
use x86::paging::LARGE;

use super::super::guest::{Guest, OPEN, ROOT};
use super::{AT, GONE, LARGE_AT, LARGE_PAGE, PAGE, READ, alone, guest, load_cr3, rights, shown, touch};

/// What a block of 16 pages costs to be shared.
const BLOCK_COST: u64 = 68;

#[test]
fn too_dear_a_window_is_closed_for_a_while() {
    let _alone = alone();
    let mut guest = shown(0);
    let nowhere = GuestVirt(AT + 0x5000);
    let mut faults = 0;
    while guest.state.window != 0 {
        assert!(faults < 40_000);
        assert!(!guest.mmu.window_fault(&mut guest.state, nowhere, false));
        faults += 1;
    }
    // Of 40,000 tokens, 68 are for the block, 8 for the page, 3 for each fault.
    assert_eq!(faults, (40_000 - BLOCK_COST - 8 - 2 * 3) / 3 + 1);
    assert_eq!(rights(AT), GONE);
    let stats = guest.mmu.window_stats();
    assert_eq!((stats.dropped, stats.emptied), (1, 1));
    let spent = BLOCK_COST + 8 + (2 + faults) * 3;
    let pass = |guest: &mut Guest, instructions| {
        guest.state.instructions += instructions;
        guest.mmu.select_view(&mut guest.state);
        guest.state.window
    };
    assert!(!guest.mmu.window_fault(&mut guest.state, nowhere, false));
    load_cr3(&mut guest, ROOT, true);
    assert_eq!(pass(&mut guest, spent * 4_000 - 1), 0, "the savings are for others");
    assert_eq!(pass(&mut guest, 1), 1);
    assert!(touch(&mut guest, AT, true));
    assert_eq!(guest.mmu.window_stats().faults, stats.faults + 1, "none is counted while it is off");
}

#[test]
fn dropping_pages_is_paid_with_mapping_them() {
    let _alone = alone();
    let mut guest = shown(0);
    // Each round: a fault and a page, which is 11 tokens. The first time the page had not been accessed: one fault more.
    for round in 1..4000 {
        guest.mmu.flush_all(&mut guest.state);
        if guest.state.window == 0 {
            // The block costs 68.
            assert_eq!(round - 1, (40_000 - BLOCK_COST - 14).div_ceil(11));
            assert_eq!(rights(AT), GONE);
            return;
        }
        touch(&mut guest, AT, true);
    }
    panic!("never closed");
}

#[test]
fn so_many_pages_and_no_more() {
    let _alone = alone();
    let mut guest = guest();
    for number in 0..4_u64 {
        for large in 0..512 {
            let at = (0x6000_0000_0000 | number << 30) + (large << 21);
            guest.map(at, (large % 8) << 21 | OPEN | LARGE, 21);
        }
    }
    let at = |chunk: u64| 0x6000_0000_0000 + (chunk << 17);
    for chunk in 0..1024 {
        // Instructions pay for it.
        guest.state.instructions += 20_000_000;
        assert!(touch(&mut guest, at(chunk), false));
    }
    let stats = guest.mmu.window_stats();
    assert_eq!((stats.mapped, stats.dropped), (16_384, 0));
    assert_eq!((rights(at(0)), rights(at(1023) + 0xf000)), (READ, READ));
    assert!(touch(&mut guest, at(1024), false));
    let stats = guest.mmu.window_stats();
    assert_eq!((stats.mapped, stats.dropped, stats.emptied), (16_384 + 16, 16_384, 0));
    assert_eq!((rights(at(0)), rights(at(1023) + 0xf000), rights(at(1024))), (GONE, GONE, READ));
}

#[test]
fn pieces_cost_less_than_their_pages() {
    let _alone = alone();
    let mut guest = guest();
    for number in 0..4 {
        guest.map(LARGE_AT + (number << 21), LARGE_PAGE | OPEN | LARGE, 21);
    }
    for chunk in 0..80 {
        assert!(touch(&mut guest, LARGE_AT + (chunk << 16), true));
    }
    // 68 for each block, 80 times a fault and a piece, a fault more at the first access to each large page, one page that is dropped by itself.
    guest.map_page(LARGE_AT + (4 << 21), PAGE);
    guest.mmu.flush_all(&mut guest.state);
    assert_eq!(guest.mmu.window_stats().dropped, 1280);
    assert!(touch(&mut guest, LARGE_AT + (4 << 21), true));
    guest.mmu.flush_page(&mut guest.state, GuestVirt(LARGE_AT + (4 << 21)));
    guest.mmu.flush_page(&mut guest.state, GuestVirt(LARGE_AT + (4 << 21)));
    assert_eq!(guest.mmu.window_stats().dropped, 1281);
    let left = 40_000 - 33 * BLOCK_COST - 80 * (3 + 20) - 3 * 3 - (2 * 3 + 8 + 2);
    assert_eq!(rest(&mut guest), left / 3 * 3);
}

/// How many tokens are left, to within the cost of a fault. Spends them.
fn rest(guest: &mut Guest) -> u64 {
    let before = guest.mmu.window_stats();
    while guest.mmu.window_stats().emptied == before.emptied {
        guest.mmu.window_fault(&mut guest.state, GuestVirt(0), false);
    }
    (guest.mmu.window_stats().faults - before.faults - 1) * 3
}

/// Another process: with another PCID, after so many instructions as make it patient.
fn patient(guest: &mut Guest, pcid: u64) {
    load_cr3(guest, ROOT | pcid, true);
    guest.state.instructions += 8_000_000;
    guest.mmu.select_view(&mut guest.state);
}

/// Tables of another process that map what those at [`ROOT`] do.
fn other_root(guest: &mut Guest) -> u64 {
    let root = guest.table();
    for entry in (0..0x1000).step_by(8) {
        guest.write64(root + entry, guest.read64(ROOT + entry));
    }
    root
}

#[test]
fn a_new_owner_gets_the_savings() {
    type Pass = fn(&mut Guest);
    let cases: [(&str, u64, Pass, bool); 6] = [
        ("the same space", cr4::PCIDE, |_| (), false),
        ("its CR3 again", cr4::PCIDE, |guest| load_cr3(guest, ROOT, false), false),
        (
            "a recycled number",
            cr4::PCIDE,
            |guest| (1..9).for_each(|pcid| load_cr3(guest, ROOT | pcid, true)),
            true,
        ),
        ("a patient space", cr4::PCIDE, |guest| patient(guest, 1), true),
        (
            "its PCID with other tables",
            cr4::PCIDE,
            |guest| {
                let root = other_root(guest);
                load_cr3(guest, root, false);
            },
            true,
        ),
        (
            "other tables, no PCIDs",
            0,
            |guest| {
                let root = other_root(guest);
                load_cr3(guest, root, false);
            },
            true,
        ),
    ];
    let _alone = alone();
    for (what, features, pass, full) in cases {
        let mut guest = shown(features);
        for _ in 0..12_000 {
            guest.mmu.window_fault(&mut guest.state, GuestVirt(AT + 0x5000), false);
        }
        pass(&mut guest);
        assert_eq!(guest.state.window, 1, "{what}");
        assert_eq!(
            rest(&mut guest),
            if full { 39_999 } else { 40_000 - BLOCK_COST - 8 - 12_002 * 3 },
            "{what}"
        );
    }
}

#[test]
fn a_new_owner_begins_with_the_window_on_after_one_that_thrashed() {
    let _alone = alone();
    let mut guest = shown(cr4::PCIDE);
    guest.state.instructions += 1_000_000_000;
    guest.mmu.select_view(&mut guest.state);
    rest(&mut guest);
    assert_eq!(guest.state.window, 0);
    patient(&mut guest, 1);
    assert_eq!(guest.state.window, 1);
    // Now the savings are spent: the next one has to earn them.
    rest(&mut guest);
    patient(&mut guest, 2);
    assert_eq!(guest.state.window, 0);
    guest.state.instructions += 40_000 * 4_000;
    guest.mmu.select_view(&mut guest.state);
    assert_eq!(guest.state.window, 1);
}

#[test]
fn taking_turns_costs_no_more_than_instructions_earn() {
    const PAGES: u64 = 1000;
    let _alone = alone();
    let mut guest = shown(cr4::PCIDE);
    // No neighbours: every second page.
    let at = |number: u64| AT + 0x10_0000 + (number << 13);
    for number in 0..PAGES {
        guest.map_page(at(number), PAGE);
    }
    let mut turns = 0;
    let mut closed = 0;
    for turn in 0..60 {
        patient(&mut guest, turn % 2 + 1);
        if guest.state.window == 0 {
            closed += 1;
            continue;
        }
        turns += 1;
        for number in 0..PAGES {
            if guest.state.window != 0 {
                touch(&mut guest, at(number), true);
            }
        }
    }
    let stats = guest.mmu.window_stats();
    let spent = BLOCK_COST + stats.faults * 3 + stats.mapped * 8;
    let earned = 2 * 40_000 + guest.state.instructions / 4_000;
    assert!(spent <= earned + 8, "{spent} of {earned}, in {turns} turns");
    // It is used, as long as it is paid for.
    assert!(turns > 5 && closed > 30, "{turns} with it, {closed} without");
    assert!(spent > earned / 2, "{spent} of {earned}");
}
