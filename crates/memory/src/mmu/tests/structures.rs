//! What the walk makes of paging structures: sizes, reserved bits, accessed and dirty flags, addresses.

use x86::control::{cr0, cr4, efer};
use x86::exception::page_fault::{FETCH, PRESENT as P, RESERVED, USER, WRITE};
use x86::paging::{ACCESSED, DIRTY, LARGE, LARGE_PAT, NO_EXECUTE, PRESENT, WRITABLE};
use x86::{Exception, GuestPhys, GuestVirt, Width};

use super::guest::{Guest, OPEN, ROOT};
use crate::Stop;

fn fault(address: u64, code: u32) -> Stop {
    Stop::Exception(Exception::page_fault(address, code))
}

const GP: Stop = Stop::Exception(Exception::GP0);

#[test]
fn pages_of_every_size_translate() {
    let mut guest = Guest::long();
    let base = 0xffff_ff80_0000_0000_u64;
    guest.map(base, 0x40_0000 | OPEN, 12);
    guest.map(base + (1 << 21), 0x60_0000 | OPEN | LARGE | LARGE_PAT, 21);
    guest.map(base + (1 << 30), OPEN | LARGE | LARGE_PAT, 30);
    for (address, physical) in [
        (base + 0xff8, 0x40_0ff8),
        (base + (1 << 21) + 0x12_3450, 0x72_3450),
        (base + (1 << 30) + 0x98_7654, 0x98_7654),
    ] {
        guest.write64(physical, address);
        assert_eq!(guest.load64(address), Ok(address));
        assert_eq!(guest.mmu.fetch(&guest.state, GuestVirt(address)), Ok(GuestPhys(physical)));
        assert_eq!(guest.mmu.look_up(&guest.state, GuestVirt(address)), Some(GuestPhys(physical)));
    }

    let mut guest = Guest::pae();
    guest.map(0xc060_0000, 0x80_0000 | OPEN | LARGE, 21);
    guest.write64(0x81_2340, 5);
    assert_eq!(guest.load64(0xc061_2340), Ok(5));

    let mut guest = Guest::legacy();
    guest.write32(ROOT + (0xc000_0000_u64 >> 22) as u32 as u64 * 4, 0x40_0000 | (OPEN | LARGE) as u32);
    guest.write64(0x71_2340, 6);
    assert_eq!(guest.load64(0xc031_2340), Ok(6));
}

#[test]
fn page_size_bit_needs_pse_in_32_bit_paging() {
    let mut guest = Guest::legacy();
    // With PSE a page at 0, whose bit 12 is PAT; without, the directory itself as a table.
    guest.write32(ROOT, (ROOT | OPEN | LARGE) as u32);
    guest.write32(ROOT + 4 * 5, (0x50_0000 | OPEN) as u32);
    guest.write64(0x50_0000, 1);
    guest.write64(0x5000, 2);
    assert_eq!(guest.load64(0x5000), Ok(2));
    guest.state.cr4 &= !cr4::PSE;
    guest.changed();
    assert_eq!(guest.load64(0x5000), Ok(1));
}

#[test]
fn pse36_addresses_reach_beyond_4g() {
    let mut guest = Guest::legacy();
    // Bits 20:13 are address bits 39:32. There is no RAM there: the board is asked.
    guest.write32(ROOT + 4, 0x0040_0000 | 3 << 13 | (OPEN | LARGE) as u32);
    assert_eq!(guest.load64(0x40_0008), Err(Stop::Board));
    let asked = crate::MmioAccess::Read { address: GuestPhys(0x3_0040_0008), size: 8 };
    assert_eq!(guest.mmu.mmio.pending(), Some(asked));
}

#[test]
fn missing_entries_fault_at_every_level() {
    let address = 0x12_3456_7000;
    for shift in [39, 30, 21, 12] {
        let mut guest = Guest::long();
        guest.map(address, NO_EXECUTE | 1 << 51 | 0xffe, shift);
        assert_eq!(guest.load64(address + 8), Err(fault(address + 8, 0)), "{shift}");
        assert_eq!(guest.store64(address, 0), Err(fault(address, WRITE)));
        let fetch = guest.mmu.fetch(&guest.state, GuestVirt(address));
        assert_eq!(fetch, Err(fault(address, FETCH)));
        guest.set_cpl(3);
        assert_eq!(guest.store64(address, 0), Err(fault(address, WRITE | USER)));
        assert_eq!(guest.mmu.look_up(&guest.state, GuestVirt(address)), None);
    }
    let mut guest = Guest::pae();
    guest.state.pdptes[2] = 0;
    guest.changed();
    assert_eq!(guest.load64(0x8000_0000), Err(fault(0x8000_0000, 0)));
}

#[test]
fn reserved_bits_fault() {
    let address = 0x7f00_0060_0000;
    // Physical address 0, where all is zero: no address bit of any page size is in the way.
    for (shift, bits) in [
        (39, vec![7, 40, 51]),
        (30, vec![13, 14, 29, 40, 51]),
        (21, vec![13, 20, 40, 51]),
        (12, vec![40, 45, 51]),
    ] {
        for bit in bits {
            let mut guest = Guest::long();
            let size = if shift == 12 || shift == 39 { 0 } else { LARGE };
            guest.map(address, OPEN | size | 1 << bit, shift);
            assert_eq!(guest.load64(address), Err(fault(address, P | RESERVED)), "bit {bit} at {shift}");
        }
        for bit in [8, 9, 11, 52, 58, 62] {
            let mut guest = Guest::long();
            let size = if shift == 12 || shift == 39 { 0 } else { LARGE };
            guest.map(address, OPEN | size | 1 << bit, shift);
            let load = guest.load64(address);
            assert_ne!(load, Err(fault(address, P | RESERVED)), "bit {bit} at {shift} is ignored");
        }
    }
    // Without NXE, bit 63 is reserved.
    let mut guest = Guest::long();
    guest.map(address, 0x40_0000 | OPEN | NO_EXECUTE, 12);
    assert_eq!(guest.load64(address), Ok(0));
    guest.state.efer &= !efer::NXE;
    guest.changed();
    assert_eq!(guest.load64(address), Err(fault(address, P | RESERVED)));
    assert_eq!(
        guest.mmu.fetch(&guest.state, GuestVirt(address)),
        Err(fault(address, P | RESERVED)),
        "no I/D"
    );
    // PAE: everything from bit 40 to 62.
    for bit in 40..63 {
        let mut guest = Guest::pae();
        guest.map(0x5000, 0x40_0000 | OPEN | 1 << bit, 12);
        assert_eq!(guest.load64(0x5000), Err(fault(0x5000, P | RESERVED)), "bit {bit}");
    }
    // 32-bit paging: bit 21 of a large page.
    let mut guest = Guest::legacy();
    guest.write32(ROOT, (OPEN | LARGE) as u32 | 1 << 21);
    assert_eq!(guest.load64(0), Err(fault(0, P | RESERVED)));
}

#[test]
fn accessed_and_dirty_flags() {
    let address = 0x5000;
    let mut guest = Guest::long();
    let leaf = guest.map_page(address, 0x40_0000);
    let entries = |guest: &Guest| {
        let directory_pointers = guest.read64(ROOT) & x86::PAGE_MASK & !NO_EXECUTE;
        let directory = guest.read64(directory_pointers) & x86::PAGE_MASK;
        [ROOT, directory_pointers, directory, leaf].map(|entry| guest.read64(entry) & (ACCESSED | DIRTY))
    };
    assert_eq!(entries(&guest), [0; 4]);
    guest.load64(address).unwrap();
    assert_eq!(entries(&guest), [ACCESSED; 4]);
    // The read has filled the TLB, but the first write has to walk and set the flag.
    guest.store64(address, 1).unwrap();
    assert_eq!(entries(&guest), [ACCESSED, ACCESSED, ACCESSED, ACCESSED | DIRTY]);
    let fills = guest.mmu.fills;
    guest.store64(address, 1).unwrap();
    guest.load64(address).unwrap();
    assert_eq!(guest.mmu.fills, fills);
    // Cleared and flushed, it is set again.
    guest.write64(leaf, 0x40_0000 | OPEN);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(address));
    guest.mmu.load_for_update(&guest.state, GuestVirt(address), Width::Byte).unwrap();
    assert_eq!(entries(&guest)[3], ACCESSED | DIRTY);
    // A read of a dirty page allows writes without a walk.
    guest.mmu.flush_all(&mut guest.state);
    guest.load64(address).unwrap();
    let fills = guest.mmu.fills;
    guest.store64(address, 1).unwrap();
    assert_eq!(guest.mmu.fills, fills);
}

#[test]
fn an_access_that_faults_sets_no_flag() {
    let mut guest = Guest::long();
    let leaf = guest.map(0x5000, 0x40_0000 | PRESENT, 12);
    guest.set_cpl(3);
    assert!(guest.load64(0x5000).is_err());
    guest.set_cpl(0);
    assert!(guest.store64(0x5000, 0).is_err());
    assert_eq!(guest.read64(leaf), 0x40_0000 | PRESENT);
    assert_eq!(guest.read64(ROOT) & ACCESSED, 0);
}

#[test]
fn flags_of_4_byte_entries() {
    let mut guest = Guest::legacy();
    let table = guest.table();
    guest.write32(ROOT, (table | OPEN) as u32);
    guest.write32(table + 4, (0x40_0000 | OPEN) as u32);
    guest.write32(table + 8, 0xdead_0000);
    guest.store64(0x1000, 1).unwrap();
    assert_eq!(guest.read32(ROOT), (table | OPEN | ACCESSED) as u32);
    assert_eq!(guest.read32(table + 4), (0x40_0000 | OPEN | ACCESSED | DIRTY) as u32);
    assert_eq!(guest.read32(table + 8), 0xdead_0000);
}

#[test]
fn structures_outside_ram_never_crash() {
    let mut guest = Guest::long();
    guest.state.cr3 = 0xd000_0000;
    guest.changed();
    assert_eq!(guest.load64(0x1000), Err(fault(0x1000, P | RESERVED)));
    let mut guest = Guest::long();
    guest.map(0x5000, 0xff_f000_0000 | OPEN, 21);
    assert_eq!(guest.store64(0x5000, 0), Err(fault(0x5000, P | RESERVED | WRITE)));
    let mut guest = Guest::legacy();
    guest.state.cr3 = 0xd000_0000;
    guest.state.cr4 &= !cr4::PSE;
    guest.changed();
    // All ones lead to a page of the hole.
    assert_eq!(guest.load64(0x1000), Err(Stop::Board));
    assert_eq!(guest.mmu.fetch(&guest.state, GuestVirt(0x1000)), Err(GP));
}

#[test]
fn addresses_must_be_canonical_in_long_mode() {
    let mut guest = Guest::long();
    let top = 0x7fff_ffff_f000_u64;
    guest.map_page(top, 0x40_0000);
    guest.map_page(0xffff_ffff_ffff_f000, 0x40_1000);
    guest.map_page(0, 0x40_2000);
    for address in [top + 0x1000, 0xffff_7fff_ffff_fff8, 0x1234 << 48] {
        assert_eq!(guest.load64(address), Err(GP), "{address:#x}");
        assert_eq!(guest.store64(address, 0), Err(GP));
        assert_eq!(guest.mmu.fetch(&guest.state, GuestVirt(address)), Err(GP));
        assert_eq!(guest.mmu.load128(&guest.state, GuestVirt(address)), Err(GP));
        assert_eq!(guest.mmu.try_load(&guest.state, GuestVirt(address), Width::Byte), None);
    }
    // The last canonical page is mapped, but the access runs out of it.
    assert_eq!(guest.load64(top + 0xff8), Ok(0));
    assert_eq!(guest.load64(top + 0xffc), Err(GP));
    // From the end of the address space to its start is no fault.
    guest.store64(u64::MAX - 3, 0x1111_1111_2222_2222).unwrap();
    assert_eq!(guest.read32(0x40_1ffc), 0x2222_2222);
    assert_eq!(guest.read32(0x40_2000), 0x1111_1111);
}

#[test]
fn linear_addresses_wrap_at_4g_outside_64_bit_mode() {
    let mut guest = Guest::legacy();
    guest.write32(ROOT, (OPEN | LARGE) as u32 | 0x40_0000);
    guest.write32(ROOT + 4 * 1023, (OPEN | LARGE) as u32 | 0x80_0000);
    guest.store64(0xffff_fffc, 0x1111_1111_2222_2222).unwrap();
    assert_eq!(guest.read32(0xbf_fffc), 0x2222_2222);
    assert_eq!(guest.read32(0x40_0000), 0x1111_1111);
    assert_eq!(guest.load64(0xffff_fffc), Ok(0x1111_1111_2222_2222));
    assert!(guest.mmu.try_store(&guest.state, GuestVirt(0xffff_fffe), Width::Dword, 0x3333_4444));
    assert_eq!(guest.read32(0x40_0000), 0x1111_3333);
}

#[test]
fn alignment_checks_only_where_armed() {
    let ac = Stop::Exception(Exception::AC0);
    let mut guest = Guest::long();
    guest.map_page(0x5000, 0x40_0000);
    guest.load64(0x5000).unwrap();
    guest.state.cr0 |= cr0::AM;
    guest.state.rflags |= x86::flags::AC;
    guest.changed();
    assert_eq!(guest.load64(0x5001), Ok(0), "not at CPL 0");
    guest.set_cpl(3);
    guest.load64(0x5000).unwrap();
    let at = GuestVirt(0x5002);
    assert_eq!(guest.load64(0x5002), Err(ac));
    assert_eq!(guest.store64(0x5004, 0), Err(ac));
    let Guest { mmu, state, .. } = &mut guest;
    assert_eq!(mmu.load(state, at, Width::Word), Ok(0));
    assert_eq!(mmu.load_for_update(state, at, Width::Dword), Err(ac));
    assert_eq!(mmu.compare_exchange(state, at, Width::Dword, 0, 0), Err(ac));
    assert_eq!(mmu.load_supervisor(state, at, Width::Qword), Ok(0), "implicit accesses are not checked");
    assert_eq!(mmu.try_load(state, at, Width::Dword), None);
    assert!(!mmu.try_store(state, at, Width::Dword, 0));
    state.rflags &= !x86::flags::AC;
    guest.changed();
    assert_eq!(guest.load64(0x5002), Ok(0));
}

#[test]
fn a_write_that_crosses_into_a_page_without_rights_changes_nothing() {
    let mut guest = Guest::long();
    guest.map_page(0x5000, 0x40_0000);
    guest.map(0x6000, 0x40_8000 | PRESENT, 12);
    guest.map(0x8000, 0x40_9000 | PRESENT, 12);
    guest.map_page(0x9000, 0x40_a000);
    guest.write64(0x40_0ff8, 0x5555_5555_5555_5555);
    guest.load64(0x5000).unwrap();
    let at = GuestVirt(0x5ffc);
    let refused = fault(0x6000, P | WRITE);
    let Guest { mmu, state, .. } = &mut guest;
    assert_eq!(mmu.store(state, at, Width::Qword, 0), Err(refused), "CR2 is the second page's first byte");
    assert_eq!(mmu.store128(state, at, 0), Err(refused));
    assert_eq!(mmu.store_bytes(state, at, &[0; 100]), Err(refused));
    assert_eq!(mmu.atomic(state, at, Width::Qword, crate::AtomicOp::Exchange, 0), Err(refused));
    assert_eq!(mmu.probe_write(state, at, 5), Err(refused));
    assert_eq!(mmu.probe_write(state, at, 4), Ok(()));
    assert!(!mmu.try_store(state, at, Width::Qword, 0));
    assert!(!mmu.try_store128(state, at, 0));
    assert_eq!(mmu.load(state, at, Width::Qword), Ok(0x5555_5555), "but it can be read");
    let refused = fault(0x8fff, P | WRITE);
    assert_eq!(mmu.store(state, GuestVirt(0x8fff), Width::Word, 0), Err(refused));
    assert_eq!(guest.read64(0x40_0ff8), 0x5555_5555_5555_5555);
    // WRITABLE in the leaf makes all of them go through.
    guest.map(0x6000, 0x40_8000 | PRESENT | WRITABLE, 12);
    guest.mmu.flush_page(&mut guest.state, GuestVirt(0x6000));
    guest.store64(0x5ffc, 0x0123_4567_89ab_cdef).unwrap();
    assert_eq!(guest.read32(0x40_8000), 0x0123_4567);
}
