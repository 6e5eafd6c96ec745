//! The plain case of every kind of access.

use x86::{GuestPhys, GuestVirt, Width};

use super::guest::Guest;
use crate::AtomicOp;

const VIRTUAL: u64 = 0xffff_8000_1234_5000;
const PHYSICAL: u64 = 0x30_0000;

#[test]
fn every_access_reaches_ram_through_the_tables() {
    let mut guest = Guest::long();
    guest.map_page(VIRTUAL, PHYSICAL);
    let (mmu, state) = (&mut guest.mmu, &guest.state);
    let at = |offset: u64| GuestVirt(VIRTUAL + offset);
    mmu.store(state, at(8), Width::Qword, 0x1122_3344_5566_7788).unwrap();
    assert_eq!(mmu.load(state, at(9), Width::Dword), Ok(0x4455_6677));
    assert_eq!(mmu.load_for_update(state, at(8), Width::Word), Ok(0x7788));
    mmu.store128(state, at(0x13), 0x0123_4567_89ab_cdef_u128 << 64).unwrap();
    assert_eq!(mmu.load128(state, at(0x13)), Ok(0x0123_4567_89ab_cdef_u128 << 64));
    mmu.store_bytes(state, at(0x40), b"hello").unwrap();
    let mut bytes = [0; 5];
    mmu.load_bytes(state, at(0x40), &mut bytes).unwrap();
    assert_eq!(&bytes, b"hello");
    assert_eq!(mmu.atomic(state, at(8), Width::Byte, AtomicOp::Add, 0x79), Ok(0x88));
    assert_eq!(mmu.load(state, at(8), Width::Word), Ok(0x7701));
    assert_eq!(mmu.compare_exchange(state, at(8), Width::Word, 0x7701, 5), Ok(0x7701));
    assert_eq!(mmu.compare_exchange128(state, at(0x60), 0, 7), Ok(0));
    assert_eq!(mmu.load128(state, at(0x60)), Ok(7));
    assert_eq!(mmu.fetch(state, at(0x123)), Ok(GuestPhys(PHYSICAL + 0x123)));
    assert_eq!(mmu.load_supervisor(state, at(8), Width::Byte), Ok(5));
    mmu.store_supervisor(state, at(8), Width::Byte, 6).unwrap();
    mmu.store_as(state, 3, at(9), Width::Byte, 6).unwrap();
    assert_eq!(mmu.try_load(state, at(8), Width::Word), Some(0x0606));
    assert!(mmu.try_store(state, at(8), Width::Byte, 9));
    assert_eq!(mmu.try_load_for_update(state, at(8), Width::Byte), Some(9));
    assert!(mmu.try_store128(state, at(0x70), 1 << 100));
    assert_eq!(mmu.try_load128(state, at(0x70)), Some(1 << 100));
    let direct = mmu.direct(state, at(8), 16, true).unwrap().unwrap();
    assert_eq!(Some(direct), mmu.ram().host(GuestPhys(PHYSICAL + 8)));
    assert_eq!(mmu.look_up(state, at(8)), Some(GuestPhys(PHYSICAL + 8)));
    assert_eq!(guest.read64(PHYSICAL + 8), 0x1122_3344_5566_0609);
}

#[test]
fn atomics_work_across_lines_and_pages() {
    let mut guest = Guest::long();
    guest.map_page(VIRTUAL, PHYSICAL);
    guest.map_page(VIRTUAL + 0x1000, PHYSICAL + 0x8000);
    for offset in [0x3d, 0xffd] {
        for width in [Width::Dword, Width::Qword] {
            let at = GuestVirt(VIRTUAL + offset);
            let (mmu, state) = (&mut guest.mmu, &guest.state);
            mmu.store(state, at, width, 0xff00_ff00_ff00_ff00).unwrap();
            let old = width.truncate(0xff00_ff00_ff00_ff00);
            assert_eq!(mmu.atomic(state, at, width, AtomicOp::Xor, 1), Ok(old));
            assert_eq!(mmu.compare_exchange(state, at, width, old, 3), Ok(old | 1), "not equal");
            assert_eq!(mmu.compare_exchange(state, at, width, old | 1, 3), Ok(old | 1));
            assert_eq!(mmu.atomic(state, at, width, AtomicOp::Sub, 4), Ok(3));
            assert_eq!(mmu.load(state, at, width), Ok(width.mask()));
        }
    }
}

#[test]
fn without_paging_addresses_are_physical() {
    let mut guest = Guest::new();
    guest.store64(0x7c00, 0x55aa).unwrap();
    assert_eq!(guest.read64(0x7c00), 0x55aa);
    assert_eq!(guest.load64(0x7c00), Ok(0x55aa));
    assert_eq!(guest.mmu.fetch(&guest.state, GuestVirt(0x7c00)), Ok(GuestPhys(0x7c00)));
}
