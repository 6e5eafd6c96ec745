//! Accesses that the board answers.

use x86::{GuestPhys, GuestVirt, Width};

use super::guest::Guest;
use crate::{AtomicOp, MmioAccess, Stop};

/// Mapped to the hole.
const DEVICE: u64 = 0x7000;
const REGISTERS: u64 = 0xd000_0000;

/// A guest with RAM at 0x6000 and a device page after it.
fn guest() -> Guest {
    let mut guest = Guest::long();
    guest.map_page(0x6000, 0x40_0000);
    guest.map_page(DEVICE, REGISTERS);
    guest.map_page(DEVICE + 0x1000, 0x40_1000);
    guest
}

/// Runs an access like an engine: asks the "board" until it goes through. Returns what was asked.
fn run<T>(
    guest: &mut Guest,
    answers: impl Fn(MmioAccess) -> u64,
    mut access: impl FnMut(&mut Guest) -> Result<T, Stop>,
) -> (T, Vec<MmioAccess>) {
    let mut asked = Vec::new();
    loop {
        match access(guest) {
            Ok(value) => {
                guest.mmu.mmio.clear();
                return (value, asked);
            }
            Err(Stop::Board) => {
                let pending = guest.mmu.mmio.pending().unwrap();
                asked.push(pending);
                guest.mmu.mmio.answer(answers(pending));
            }
            Err(stop) => panic!("{stop:?}"),
        }
    }
}

fn read(offset: u64, size: u8) -> MmioAccess {
    MmioAccess::Read { address: GuestPhys(REGISTERS + offset), size }
}

fn write(offset: u64, size: u8, value: u64) -> MmioAccess {
    MmioAccess::Write { address: GuestPhys(REGISTERS + offset), size, value }
}

/// Byte n of the device is n.
fn counting(access: MmioAccess) -> u64 {
    match access {
        MmioAccess::Read { address, .. } => (0..8).map(|n| ((address.0 + n) & 0xff) << (8 * n)).sum(),
        _ => 0,
    }
}

#[test]
fn every_width_is_one_access() {
    let mut guest = guest();
    for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
        let at = GuestVirt(DEVICE + 0x11);
        let size = width as u8;
        let (value, asked) = run(&mut guest, counting, |guest| guest.mmu.load(&guest.state, at, width));
        assert_eq!(value, width.truncate(0x1817_1615_1413_1211), "cut to the width");
        assert_eq!(asked, [read(0x11, size)]);
        let (_, asked) = run(&mut guest, counting, |guest| {
            guest.mmu.store(&guest.state, at, width, 0x8877_6655_4433_2211)
        });
        assert_eq!(asked, [write(0x11, size, width.truncate(0x8877_6655_4433_2211))]);
    }
    assert_eq!(guest.mmu.try_load(&guest.state, GuestVirt(DEVICE), Width::Byte), None);
    assert!(!guest.mmu.try_store(&guest.state, GuestVirt(DEVICE), Width::Byte, 0));
    assert_eq!(guest.mmu.mmio.pending(), None, "try_ asks nobody");
    assert_eq!(guest.mmu.direct(&guest.state, GuestVirt(DEVICE), 4, false), Ok(None));
}

#[test]
fn wide_accesses_are_split() {
    let mut guest = guest();
    let at = GuestVirt(DEVICE + 0x10);
    let (value, asked) = run(&mut guest, counting, |guest| guest.mmu.load128(&guest.state, at));
    assert_eq!(value.to_le_bytes(), std::array::from_fn(|n| 0x10 + n as u8));
    assert_eq!(asked, [read(0x10, 8), read(0x18, 8)]);
    let (_, asked) =
        run(&mut guest, counting, |guest| guest.mmu.store128(&guest.state, at, 0x2222_u128 << 64 | 0x1111));
    assert_eq!(asked, [write(0x10, 8, 0x1111), write(0x18, 8, 0x2222)]);
    let (_, asked) = run(&mut guest, counting, |guest| {
        let mut bytes = [0; 15];
        guest.mmu.load_bytes(&guest.state, at, &mut bytes)?;
        assert_eq!(bytes, std::array::from_fn(|n| 0x10 + n as u8));
        Ok(())
    });
    assert_eq!(asked, [read(0x10, 8), read(0x18, 4), read(0x1c, 2), read(0x1e, 1)]);
}

#[test]
fn ram_is_untouched_until_the_board_has_done_its_part() {
    let mut guest = guest();
    // From RAM into the device and from the device into RAM.
    for (at, ram, offset) in [(DEVICE - 5, 0x40_0ffb, 0), (DEVICE + 0xffd, 0x40_1000, 0xffd)] {
        let before = guest.read64(ram);
        let (_, asked) = run(
            &mut guest,
            |_| 0,
            |guest| {
                assert_eq!(guest.read64(ram), before);
                guest.store64(at, 0x8877_6655_4433_2211)
            },
        );
        let pieces = if offset == 0 {
            [write(0, 2, 0x7766), write(2, 1, 0x88)]
        } else {
            [write(0xffd, 2, 0x2211), write(0xfff, 1, 0x33)]
        };
        assert_eq!(asked, pieces);
        assert_eq!(guest.read64(ram) as u32, if offset == 0 { 0x4433_2211 } else { 0x7766_5544 });
        let (value, _) = run(&mut guest, counting, |guest| guest.load64(at));
        let expected = if offset == 0 { 0x0201_0055_4433_2211 } else { 0x8877_6655_44ff_fefd };
        assert_eq!(value, expected);
    }
}

#[test]
fn the_board_is_not_asked_for_part_of_an_access_that_faults() {
    let mut guest = guest();
    guest.map_page(0xa000, REGISTERS);
    let fault = |code| Err(Stop::Exception(x86::Exception::page_fault(0xb000, code)));
    assert_eq!(guest.store64(0xaffc, 1), fault(2));
    assert_eq!(guest.load64(0xaffc).map(|_| ()), fault(0));
    assert_eq!(guest.mmu.mmio.pending(), None);
}

#[test]
fn atomics_on_registers_read_and_write() {
    let mut guest = guest();
    let at = GuestVirt(DEVICE + 4);
    let (old, asked) = run(&mut guest, counting, |guest| {
        guest.mmu.atomic(&guest.state, at, Width::Byte, AtomicOp::Add, 0xff)
    });
    assert_eq!((old, asked), (4, vec![read(4, 1), write(4, 1, 3)]));
    let (old, asked) =
        run(&mut guest, counting, |guest| guest.mmu.compare_exchange(&guest.state, at, Width::Byte, 9, 0xff));
    assert_eq!((old, asked), (4, vec![read(4, 1), write(4, 1, 4)]), "the old value is written back");
    let at = GuestVirt(DEVICE + 0x10);
    let (old, asked) =
        run(&mut guest, |_| 0, |guest| guest.mmu.compare_exchange128(&guest.state, at, 0, 1 << 64));
    assert_eq!(old, 0);
    assert_eq!(asked, [read(0x10, 8), read(0x18, 8), write(0x10, 8, 0), write(0x18, 8, 1)]);
}

#[test]
fn code_outside_ram_is_a_general_protection_fault() {
    let mut guest = guest();
    let fetch = guest.mmu.fetch(&guest.state, GuestVirt(DEVICE));
    assert_eq!(fetch, Err(Stop::Exception(x86::Exception::GP0)));
}
