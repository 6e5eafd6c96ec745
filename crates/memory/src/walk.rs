//! The page walk: no paging, 32-bit, PAE and 4-level paging (SDM Vol. 3A ch. 4).
//!
//! [`translate`] reads the paging structures, decides by view and access, sets the accessed and dirty flags, and
//! says what a TLB may remember. A structure outside RAM reads as all ones, like a bus that nobody answers.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use x86::control::{cr0, cr4, efer};
use x86::exception::page_fault;
use x86::{CpuState, Exception, GuestPhys, paging};

use crate::Ram;
use crate::tlb::View;

/// What an access does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    /// Loads data.
    Read,
    /// Stores data, or loads it in order to store.
    Write,
    /// Fetches instructions.
    Execute,
}

/// The way from linear to physical addresses that is in force (SDM Vol. 3A 4.1.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PagingMode {
    /// CR0.PG is clear.
    None,
    /// 32-bit paging.
    Legacy,
    /// PAE paging.
    Pae,
    /// 4-level paging.
    FourLevel,
}

impl PagingMode {
    /// The mode that `state` is in.
    pub fn of(state: &CpuState) -> Self {
        if state.cr0 & cr0::PG == 0 {
            Self::None
        } else if state.cr4 & cr4::PAE == 0 {
            Self::Legacy
        } else if state.efer & efer::LMA == 0 {
            Self::Pae
        } else {
            Self::FourLevel
        }
    }
}

/// A translation as a TLB may keep it, for one 4 KiB page whatever the size of the page that it is part of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Translation {
    /// The guest-physical 4 KiB page.
    pub page: GuestPhys,
    /// Loads are allowed in the view.
    pub read: bool,
    /// Stores are allowed in the view.
    pub write: bool,
    /// Fetches are allowed in the view.
    pub execute: bool,
    /// The dirty flag is set: a store needs no walk.
    pub dirty: bool,
    /// A global translation, which survives CR3 loads.
    pub global: bool,
    /// log2 of the size of the page that it is part of: 12, 21, 22 or 30.
    pub size_shift: u32,
}

/// Translates `address`, which must be canonical (4-level) or below 2^32 (else), and sets accessed and dirty flags.
/// `Err` is the #PF.
#[inline]
pub fn translate(
    ram: &Ram,
    state: &CpuState,
    view: View,
    access: Access,
    address: u64,
) -> Result<Translation, Exception> {
    let mode = PagingMode::of(state);
    if mode == PagingMode::None {
        return Ok(Translation {
            page: GuestPhys(address & 0xffff_ffff).page(),
            read: true,
            write: true,
            execute: true,
            dirty: true,
            global: false,
            size_shift: 12,
        });
    }
    let fault = |bits| Exception::page_fault(address, bits | access_bits(state, mode, view, access));
    loop {
        let mut path = Path::default();
        descend(ram, state, mode, address, &mut path).map_err(|miss| fault(miss.error_bits()))?;
        let rights = Rights::of(state, view, &path);
        if !rights.allows(access) {
            return Err(fault(page_fault::PRESENT));
        }
        // Another processor has changed an entry since it was read: walk again.
        let Some(dirty) = path.touch(ram, access == Access::Write) else { continue };
        return Ok(path.translation(state, &rights, dirty));
    }
}

/// Where `address` lies now, without checking rights or touching any flag: for debuggers and profilers.
pub fn look_up(ram: &Ram, state: &CpuState, address: u64) -> Option<GuestPhys> {
    let mode = PagingMode::of(state);
    let offset = address & !x86::PAGE_MASK;
    if mode == PagingMode::None {
        return Some(GuestPhys(address & 0xffff_ffff));
    }
    let mut path = Path::default();
    descend(ram, state, mode, address, &mut path).ok()?;
    Some(path.page.offset(offset))
}

/// What [`translate`] would give for a load, if no flag is to be set for it: accessed flags are set already. Touches nothing.
pub(crate) fn peek(ram: &Ram, state: &CpuState, view: View, address: u64) -> Option<Translation> {
    let mode = PagingMode::of(state);
    if mode == PagingMode::None {
        return None;
    }
    let mut path = Path::default();
    descend(ram, state, mode, address, &mut path).ok()?;
    let rights = Rights::of(state, view, &path);
    let accessed = path.lacking & paging::ACCESSED == 0;
    (accessed && rights.read).then(|| path.translation(state, &rights, path.leaf & paging::DIRTY != 0))
}

/// Error-code bits that say what the access was (SDM Vol. 3A 4.7).
fn access_bits(state: &CpuState, mode: PagingMode, view: View, access: Access) -> u32 {
    let mut bits = 0;
    if access == Access::Write {
        bits |= page_fault::WRITE;
    }
    if view == View::User {
        bits |= page_fault::USER;
    }
    let no_execute = mode != PagingMode::Legacy && state.efer & efer::NXE != 0;
    if access == Access::Execute && (no_execute || state.cr4 & cr4::SMEP != 0) {
        bits |= page_fault::FETCH;
    }
    bits
}

/// Why a walk ended early.
enum Miss {
    NotPresent,
    ReservedBit,
}

impl Miss {
    fn error_bits(&self) -> u32 {
        match self {
            Self::NotPresent => 0,
            Self::ReservedBit => page_fault::PRESENT | page_fault::RESERVED,
        }
    }
}

/// An entry that the walk used.
#[derive(Clone, Copy, Default)]
struct Step {
    address: GuestPhys,
    value: u64,
}

/// A walk that came to a page.
#[derive(Default)]
struct Path {
    steps: [Step; 4],
    count: usize,
    /// Entries are 8 bytes, else 4.
    wide: bool,
    /// The entries and-ed, inverted.
    lacking: u64,
    /// The entries or-ed.
    any: u64,
    /// The last entry.
    leaf: u64,
    page: GuestPhys,
    size_shift: u32,
}

impl Path {
    #[inline(always)]
    fn push(&mut self, address: GuestPhys, value: u64) {
        self.steps[self.count] = Step { address, value };
        self.count += 1;
        self.lacking |= !value;
        self.any |= value;
        self.leaf = value;
    }

    #[inline(always)]
    fn translation(&self, state: &CpuState, rights: &Rights, dirty: bool) -> Translation {
        Translation {
            page: self.page,
            read: rights.read,
            write: rights.write,
            execute: rights.execute,
            dirty,
            global: self.leaf & paging::GLOBAL != 0 && state.cr4 & cr4::PGE != 0,
            size_shift: self.size_shift,
        }
    }

    /// Sets the accessed flags and, for a write, the leaf's dirty flag (SDM Vol. 3A 4.8). Returns whether the leaf
    /// is dirty now, or `None` if an entry is not what the walk read.
    #[inline(always)]
    fn touch(&self, ram: &Ram, write: bool) -> Option<bool> {
        let dirty = self.leaf & paging::DIRTY != 0;
        if self.lacking & paging::ACCESSED == 0 && (dirty || !write) {
            return Some(dirty);
        }
        self.set_flags(ram, write).then_some(dirty || write)
    }

    #[cold]
    fn set_flags(&self, ram: &Ram, write: bool) -> bool {
        self.steps[..self.count].iter().enumerate().all(|(number, step)| {
            let mut wanted = step.value | paging::ACCESSED;
            if write && number == self.count - 1 {
                wanted |= paging::DIRTY;
            }
            wanted == step.value || replace_entry(ram, step, self.wide, wanted)
        })
    }
}

/// What a translation allows in a view (SDM Vol. 3A 4.6.1).
struct Rights {
    read: bool,
    write: bool,
    execute: bool,
}

impl Rights {
    #[inline(always)]
    fn of(state: &CpuState, view: View, path: &Path) -> Self {
        let user_page = path.lacking & paging::USER == 0;
        let writable = path.lacking & paging::WRITABLE == 0;
        // In 4-byte entries the bit does not exist; with EFER.NXE clear it is reserved and the walk has faulted.
        let executable = path.any & paging::NO_EXECUTE == 0;
        match view {
            View::User => {
                Self { read: user_page, write: user_page && writable, execute: user_page && executable }
            }
            View::Supervisor | View::SupervisorUserAccess => {
                let data = !user_page || view == View::SupervisorUserAccess;
                let protect = state.cr0 & cr0::WP != 0;
                let prevented = user_page && state.cr4 & cr4::SMEP != 0;
                Self { read: data, write: data && (writable || !protect), execute: executable && !prevented }
            }
        }
    }

    #[inline(always)]
    fn allows(&self, access: Access) -> bool {
        match access {
            Access::Read => self.read,
            Access::Write => self.write,
            Access::Execute => self.execute,
        }
    }
}

/// Walks the structures of the paging mode (not [`PagingMode::None`]).
#[inline(always)]
fn descend(ram: &Ram, state: &CpuState, mode: PagingMode, address: u64, path: &mut Path) -> Result<(), Miss> {
    match mode {
        PagingMode::FourLevel => {
            let reserved = paging::RESERVED_ADDRESS | no_execute_reserved(state);
            let top = GuestPhys(state.cr3 & paging::ADDRESS);
            descend_wide(ram, top, [39, 30, 21, 12], reserved, address, path)
        }
        PagingMode::Pae => {
            let pdpte = state.pdptes[(address >> 30) as usize & 3];
            if pdpte & paging::PRESENT == 0 {
                return Err(Miss::NotPresent);
            }
            // Bits 62:MAXPHYADDR (SDM Vol. 3A tables 4-9 to 4-11).
            let ignored_in_four_level = !paging::NO_EXECUTE & !((1 << 52) - 1);
            let reserved = paging::RESERVED_ADDRESS | ignored_in_four_level | no_execute_reserved(state);
            descend_wide(ram, GuestPhys(pdpte & paging::ADDRESS), [21, 12], reserved, address, path)
        }
        PagingMode::Legacy | PagingMode::None => descend_legacy(ram, state, address, path),
    }
}

/// Bit 63 is reserved unless EFER.NXE is set.
#[inline(always)]
fn no_execute_reserved(state: &CpuState) -> u64 {
    if state.efer & efer::NXE == 0 { paging::NO_EXECUTE } else { 0 }
}

/// Tables of 512 8-byte entries; `shifts` are the lowest address bits that each level translates.
#[inline(always)]
fn descend_wide<const LEVELS: usize>(
    ram: &Ram,
    mut table: GuestPhys,
    shifts: [u32; LEVELS],
    reserved: u64,
    address: u64,
    path: &mut Path,
) -> Result<(), Miss> {
    path.wide = true;
    for shift in shifts {
        let entry = table.offset((address >> shift & 0x1ff) * 8);
        let value = read_entry(ram, entry, true);
        path.push(entry, value);
        if value & paging::PRESENT == 0 {
            return Err(Miss::NotPresent);
        }
        // Bit 7 is PAT in a PTE, the page size in a PDE or PDPTE, reserved in a PML4E.
        let leaf = shift == 12 || value & paging::LARGE != 0;
        let mut forbidden = reserved;
        if shift == 39 {
            forbidden |= paging::LARGE;
        } else if leaf && shift != 12 {
            // Address bits below the page size, but for PAT in bit 12.
            forbidden |= ((1 << shift) - 1) & x86::PAGE_MASK & !paging::LARGE_PAT;
        }
        if value & forbidden != 0 {
            return Err(Miss::ReservedBit);
        }
        if leaf {
            let within = (1_u64 << shift) - 1;
            path.page = GuestPhys((value & paging::ADDRESS & !within) | (address & within)).page();
            path.size_shift = shift;
            return Ok(());
        }
        table = GuestPhys(value & paging::ADDRESS);
    }
    // The last shift is 12, which is a leaf.
    Err(Miss::NotPresent)
}

/// 32-bit paging: two tables of 1024 4-byte entries (SDM Vol. 3A 4.3).
fn descend_legacy(ram: &Ram, state: &CpuState, address: u64, path: &mut Path) -> Result<(), Miss> {
    let directory = GuestPhys(state.cr3 & 0xffff_f000);
    let entry = directory.offset((address >> 22 & 0x3ff) * 4);
    let value = read_entry(ram, entry, false);
    path.push(entry, value);
    if value & paging::PRESENT == 0 {
        return Err(Miss::NotPresent);
    }
    if value & paging::LARGE != 0 && state.cr4 & cr4::PSE != 0 {
        // PSE-36: bits 20:13 are address bits 39:32, bit 21 is reserved (SDM Vol. 3A table 4-4).
        if value & 1 << 21 != 0 {
            return Err(Miss::ReservedBit);
        }
        let base = (value & 0xffc0_0000) | (value >> 13 & 0xff) << 32;
        path.page = GuestPhys(base | (address & 0x003f_ffff)).page();
        path.size_shift = 22;
        return Ok(());
    }
    let entry = GuestPhys(value & 0xffff_f000).offset((address >> 12 & 0x3ff) * 4);
    let value = read_entry(ram, entry, false);
    path.push(entry, value);
    if value & paging::PRESENT == 0 {
        return Err(Miss::NotPresent);
    }
    path.page = GuestPhys(value & 0xffff_f000);
    path.size_shift = 12;
    Ok(())
}

/// Reads an entry; 4-byte ones are zero-extended.
#[inline(always)]
fn read_entry(ram: &Ram, address: GuestPhys, wide: bool) -> u64 {
    let Some(host) = ram.host(address) else {
        return if wide { u64::MAX } else { u32::MAX.into() };
    };
    // SAFETY: the entry is aligned and within a page of RAM, which everybody accesses atomically or from assembly.
    unsafe {
        if wide {
            AtomicU64::from_ptr(host.cast()).load(Ordering::Acquire)
        } else {
            AtomicU32::from_ptr(host.cast()).load(Ordering::Acquire).into()
        }
    }
}

/// Changes an entry if it still is what the walk read. Outside RAM there is nothing to change.
fn replace_entry(ram: &Ram, step: &Step, wide: bool, value: u64) -> bool {
    let Some(host) = ram.host(step.address) else { return true };
    // SAFETY: as for `read_entry`.
    unsafe {
        if wide {
            AtomicU64::from_ptr(host.cast())
                .compare_exchange(step.value, value, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        } else {
            AtomicU32::from_ptr(host.cast())
                .compare_exchange(step.value as u32, value as u32, Ordering::SeqCst, Ordering::Relaxed)
                .is_ok()
        }
    }
}
