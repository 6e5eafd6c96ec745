//! Every combination of page rights and controls, against the rules of SDM Vol. 3A 4.6.1 and 4.7 written down again.

use x86::control::{cr0, cr4, efer};
use x86::exception::page_fault;
use x86::{Exception, GuestVirt, Width, flags, paging};

use super::guest::{Guest, ROOT};
use crate::walk::Access;
use crate::{Stop, mmu::Mmu};

const VIRTUAL: u64 = 0x4567_8000;
const PHYSICAL: u64 = 0x30_0000;

/// Controls that decide about rights, one bit each.
#[derive(Clone, Copy, Debug)]
struct Controls {
    wp: bool,
    smep: bool,
    smap: bool,
    nxe: bool,
    ac: bool,
    cpl: u8,
}

impl Controls {
    fn all() -> impl Iterator<Item = Self> {
        (0..64).map(|n| Self {
            wp: n & 1 != 0,
            smep: n & 2 != 0,
            smap: n & 4 != 0,
            nxe: n & 8 != 0,
            ac: n & 16 != 0,
            cpl: if n & 32 != 0 { 3 } else { 0 },
        })
    }

    fn apply(&self, guest: &mut Guest) {
        let set = |register: &mut u64, bit: u64, on: bool| {
            *register = *register & !bit | if on { bit } else { 0 };
        };
        set(&mut guest.state.cr0, cr0::WP, self.wp);
        set(&mut guest.state.cr4, cr4::SMEP, self.smep);
        set(&mut guest.state.cr4, cr4::SMAP, self.smap);
        set(&mut guest.state.efer, efer::NXE, self.nxe);
        set(&mut guest.state.rflags, flags::AC, self.ac);
        guest.state.cpl = self.cpl;
        guest.changed();
    }
}

/// A page's rights: those of its leaf and of one table above.
#[derive(Clone, Copy, Debug)]
struct Rights {
    leaf: u64,
    table: u64,
}

impl Rights {
    fn all(with_nx: bool) -> impl Iterator<Item = Self> {
        let bits = [paging::WRITABLE, paging::USER, if with_nx { paging::NO_EXECUTE } else { 0 }];
        let count = if with_nx { 3 } else { 2 };
        let pick =
            move |n: u32| (0..count).filter(|i| n >> i & 1 != 0).map(|i| bits[i as usize]).sum::<u64>();
        (0..1 << (2 * count)).map(move |n| Self { leaf: pick(n), table: pick(n >> count) })
    }
}

/// What happens, by the book. `implicit`: the access is the processor's own to a system structure.
fn by_the_book(
    rights: Rights,
    controls: Controls,
    access: Access,
    implicit: bool,
    legacy: bool,
) -> Result<(), u32> {
    let user_mode = controls.cpl == 3 && !implicit;
    let mut code = 0;
    if access == Access::Write {
        code |= page_fault::WRITE;
    }
    if user_mode {
        code |= page_fault::USER;
    }
    // "This flag is 1 if (1) the access causing the page-fault exception was an instruction fetch; and (2) either
    // (a) CR4.SMEP = 1; or (b) both (i) CR4.PAE = 1 (…); and (ii) IA32_EFER.NXE = 1."
    if access == Access::Execute && (controls.smep || (!legacy && controls.nxe)) {
        code |= page_fault::FETCH;
    }
    let nx = (rights.leaf | rights.table) & paging::NO_EXECUTE != 0;
    if nx && !controls.nxe {
        return Err(code | page_fault::PRESENT | page_fault::RESERVED);
    }
    // "Every linear address is either a supervisor-mode address or a user-mode address", the latter if U/S is 1 in
    // every paging-structure entry that controls the translation; likewise for R/W.
    let user_address = rights.leaf & rights.table & paging::USER != 0;
    let writable = rights.leaf & rights.table & paging::WRITABLE != 0;
    let smap_lets = !controls.smap || (controls.ac && !implicit);
    let allowed = match (user_mode, user_address, access) {
        (true, false, _) => false,
        (true, true, Access::Read) => true,
        (true, true, Access::Write) => writable,
        (true, true, Access::Execute) => !nx,
        (false, false, Access::Read) => true,
        (false, false, Access::Write) => writable || !controls.wp,
        (false, false, Access::Execute) => !nx,
        (false, true, Access::Read) => smap_lets,
        (false, true, Access::Write) => smap_lets && (writable || !controls.wp),
        (false, true, Access::Execute) => !controls.smep && !nx,
    };
    if allowed { Ok(()) } else { Err(code | page_fault::PRESENT) }
}

const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::Execute];

fn perform(guest: &mut Guest, access: Access) -> Result<(), Stop> {
    let at = GuestVirt(VIRTUAL + 0x10);
    let Guest { mmu, state, .. } = guest;
    match access {
        Access::Read => mmu.load(state, at, Width::Dword).map(|_| ()),
        Access::Write => mmu.store(state, at, Width::Dword, 0),
        Access::Execute => mmu.fetch(state, at).map(|_| ()),
    }
}

fn check(guest: &mut Guest, rights: Rights, controls: Controls, legacy: bool) {
    // Each access first, and then after each other one: what the TLB has learnt must not change a verdict.
    for first in 0..3 {
        guest.mmu.flush_all(&mut guest.state);
        for access in (0..6).map(|n| ACCESSES[(first + n) % 3]) {
            let expected = by_the_book(rights, controls, access, false, legacy)
                .map_err(|code| Stop::Exception(Exception::page_fault(VIRTUAL + 0x10, code)));
            assert_eq!(perform(guest, access), expected, "{access:?} {rights:x?} {controls:?}");
        }
        let Guest { mmu, state, .. } = guest;
        let at = GuestVirt(VIRTUAL + 0x10);
        let implicit = |access| {
            by_the_book(rights, controls, access, true, legacy)
                .map_err(|code| Stop::Exception(Exception::page_fault(at.0, code)))
        };
        let load = mmu.load_supervisor(state, at, Width::Word).map(|_| ());
        assert_eq!(load, implicit(Access::Read), "implicit {rights:x?} {controls:?}");
        let store = mmu.store_supervisor(state, at, Width::Word, 0);
        assert_eq!(store, implicit(Access::Write), "implicit {rights:x?} {controls:?}");
    }
    agree(&mut guest.mmu, &guest.state, rights, controls, legacy);
}

/// The other kinds of access that need the same rights.
fn agree(mmu: &mut Mmu, state: &x86::CpuState, rights: Rights, controls: Controls, legacy: bool) {
    let at = GuestVirt(VIRTUAL + 0x10);
    let read = by_the_book(rights, controls, Access::Read, false, legacy).is_ok();
    let write = by_the_book(rights, controls, Access::Write, false, legacy).is_ok();
    assert_eq!(mmu.try_load(state, at, Width::Qword).is_some(), read);
    assert_eq!(mmu.try_load128(state, at).is_some(), read);
    assert_eq!(mmu.load128(state, at).is_ok(), read);
    assert_eq!(mmu.direct(state, at, 64, false).is_ok(), read);
    assert_eq!(mmu.try_load_for_update(state, at, Width::Qword).is_some(), write);
    assert_eq!(mmu.try_store(state, at, Width::Qword, 0), write);
    assert_eq!(mmu.try_store128(state, at, 0), write);
    assert_eq!(mmu.load_for_update(state, at, Width::Qword).is_ok(), write);
    assert_eq!(mmu.store128(state, at, 0).is_ok(), write);
    assert_eq!(mmu.probe_write(state, at, 64).is_ok(), write);
    assert_eq!(mmu.direct(state, at, 64, true).is_ok(), write);
    assert_eq!(mmu.compare_exchange(state, at, Width::Word, 1, 0).is_ok(), write);
    assert_eq!(mmu.atomic(state, at, Width::Word, crate::AtomicOp::Or, 0).is_ok(), write);
}

#[test]
fn four_level_paging() {
    let mut guest = Guest::long();
    let leaf = guest.map_page(VIRTUAL, PHYSICAL);
    let table = guest.map(VIRTUAL, leaf & x86::PAGE_MASK | 7, 21);
    for controls in Controls::all() {
        controls.apply(&mut guest);
        for rights in Rights::all(true) {
            guest.write64(leaf, PHYSICAL | rights.leaf | paging::PRESENT);
            guest.write64(table, leaf & x86::PAGE_MASK | rights.table | paging::PRESENT);
            check(&mut guest, rights, controls, false);
        }
    }
}

#[test]
fn four_level_paging_with_a_large_page() {
    let mut guest = Guest::long();
    let base = VIRTUAL & !0x1f_ffff;
    let leaf = guest.map(base, 0, 21);
    let table = ROOT;
    let next = guest.read64(table) & paging::ADDRESS;
    for controls in Controls::all() {
        controls.apply(&mut guest);
        for rights in Rights::all(true) {
            guest.write64(leaf, 0x20_0000 | rights.leaf | paging::PRESENT | paging::LARGE);
            guest.write64(table, next | rights.table | paging::PRESENT);
            check(&mut guest, rights, controls, false);
        }
    }
}

#[test]
fn pae_paging() {
    let mut guest = Guest::pae();
    let leaf = guest.map_page(VIRTUAL, PHYSICAL);
    let table = guest.map(VIRTUAL, leaf & x86::PAGE_MASK | 7, 21);
    for controls in Controls::all() {
        controls.apply(&mut guest);
        for rights in Rights::all(true) {
            guest.write64(leaf, PHYSICAL | rights.leaf | paging::PRESENT);
            guest.write64(table, leaf & x86::PAGE_MASK | rights.table | paging::PRESENT);
            check(&mut guest, rights, controls, false);
        }
    }
}

#[test]
fn legacy_paging() {
    let mut guest = Guest::legacy();
    let table = guest.table();
    let directory_entry = ROOT + (VIRTUAL >> 22) * 4;
    let leaf = table + (VIRTUAL >> 12 & 0x3ff) * 4;
    for controls in Controls::all() {
        controls.apply(&mut guest);
        for rights in Rights::all(false) {
            guest.write32(leaf, (PHYSICAL | rights.leaf | paging::PRESENT) as u32);
            guest.write32(directory_entry, (table | rights.table | paging::PRESENT) as u32);
            check(&mut guest, rights, controls, true);
        }
    }
}
