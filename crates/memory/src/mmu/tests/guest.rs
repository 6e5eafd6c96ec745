//! A guest to test with: RAM, page tables that tests write by hand, state and MMU.

use std::sync::{Arc, Mutex};

use x86::control::{cr0, cr4, efer};
use x86::segment::attribute;
use x86::{CpuState, GuestPhys, GuestVirt, paging};

use crate::{CodePages, CodeWatch, Mmu, Ram};

/// RAM of every test guest.
pub const RAM_SIZE: u64 = 16 << 20;
/// The top paging structure.
pub const ROOT: u64 = 0x1000;
/// Where [`Guest::map`] takes tables from.
const FIRST_TABLE: u64 = 0x2000;

/// P, W, U, A set: what tests take bits away from.
pub const OPEN: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;

/// A vCPU with memory.
pub struct Guest {
    pub ram: Ram,
    pub state: CpuState,
    pub mmu: Mmu,
    next_table: u64,
}

impl Guest {
    /// No paging, real mode.
    pub fn new() -> Self {
        Self::with_ram(RAM_SIZE)
    }

    /// The same with so much RAM.
    pub fn with_ram(size: u64) -> Self {
        let ram = Ram::new(size).unwrap();
        let pages = CodePages::new(&ram);
        let mut guest =
            Self { mmu: Mmu::new(ram.clone(), pages), ram, state: CpuState::new(), next_table: FIRST_TABLE };
        guest.changed();
        guest
    }

    /// 64-bit mode with 4-level paging and an empty root; WP, NXE and PGE set.
    pub fn long() -> Self {
        Self::new().into_long()
    }

    /// A new guest in that mode.
    pub fn into_long(mut self) -> Self {
        let guest = &mut self;
        guest.state.cr0 |= cr0::PE | cr0::PG | cr0::WP;
        guest.state.cr4 |= cr4::PAE | cr4::PGE;
        guest.state.efer |= efer::LME | efer::LMA | efer::NXE;
        guest.state.cr3 = ROOT;
        guest.state.segments[1].attributes |= attribute::LONG;
        guest.changed();
        self
    }

    /// 32-bit protected mode with 32-bit paging; WP, PSE and PGE set.
    pub fn legacy() -> Self {
        let mut guest = Self::new();
        guest.state.cr0 |= cr0::PE | cr0::PG | cr0::WP;
        guest.state.cr4 |= cr4::PSE | cr4::PGE;
        guest.state.cr3 = ROOT;
        guest.state.segments[1].attributes |= attribute::DEFAULT_32;
        guest.changed();
        guest
    }

    /// 32-bit protected mode with PAE paging; WP, NXE and PGE set. PDPTE i points to [`ROOT`] + 4 KiB * i.
    pub fn pae() -> Self {
        let mut guest = Self::legacy();
        guest.state.cr4 |= cr4::PAE;
        guest.state.efer |= efer::NXE;
        for i in 0..4 {
            guest.state.pdptes[i as usize] = (ROOT + i * 0x1000) | paging::PRESENT;
        }
        guest.next_table = ROOT + 0x4000;
        guest.changed();
        guest
    }

    /// To be called when a test has changed control registers, CPL or AC: drops everything.
    pub fn changed(&mut self) {
        self.state.update_mode();
        self.mmu.flush_all(&mut self.state);
    }

    /// Changes CPL.
    pub fn set_cpl(&mut self, cpl: u8) {
        self.state.cpl = cpl;
        self.state.update_mode();
        self.mmu.select_view(&mut self.state);
    }

    /// A zeroed page for a table.
    pub fn table(&mut self) -> u64 {
        let table = self.next_table;
        self.next_table += 0x1000;
        assert!(table < 0x10_0000, "tables stay below 1 MiB");
        table
    }

    pub fn read64(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(GuestPhys(address), &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    pub fn read32(&self, address: u64) -> u32 {
        self.read64(address) as u32
    }

    pub fn write64(&self, address: u64, value: u64) {
        self.ram.write(GuestPhys(address), &value.to_le_bytes()).unwrap();
    }

    pub fn write32(&self, address: u64, value: u32) {
        self.ram.write(GuestPhys(address), &value.to_le_bytes()).unwrap();
    }

    /// Maps a page of `1 << shift` bytes in 4-level or PAE paging with this leaf entry; tables above are open.
    /// Returns where the leaf is.
    pub fn map(&mut self, address: u64, leaf: u64, shift: u32) -> u64 {
        let long = self.state.efer & efer::LMA != 0;
        let mut level = if long { 39 } else { 21 };
        let mut table = if long {
            self.state.cr3 & paging::ADDRESS
        } else {
            self.state.pdptes[(address >> 30) as usize & 3] & paging::ADDRESS
        };
        loop {
            let entry = table + (address >> level & 511) * 8;
            if level == shift {
                self.write64(entry, leaf);
                return entry;
            }
            if self.read64(entry) & paging::PRESENT == 0 {
                let new = self.table();
                self.write64(entry, new | OPEN);
            }
            table = self.read64(entry) & paging::ADDRESS;
            level -= 9;
        }
    }

    /// Maps a 4 KiB page with all rights.
    pub fn map_page(&mut self, address: u64, physical: u64) -> u64 {
        self.map(address, physical | OPEN, 12)
    }

    pub fn load64(&mut self, address: u64) -> Result<u64, crate::Stop> {
        self.mmu.load(&self.state, GuestVirt(address), x86::Width::Qword)
    }

    pub fn store64(&mut self, address: u64, value: u64) -> Result<(), crate::Stop> {
        self.mmu.store(&self.state, GuestVirt(address), x86::Width::Qword, value)
    }
}

/// A watch that keeps what it was told.
#[derive(Default)]
pub struct Diary {
    pub writes: Mutex<Vec<(GuestPhys, u64)>>,
    /// What to answer.
    pub unmark: bool,
}

impl Diary {
    pub fn new(unmark: bool) -> Arc<Self> {
        Arc::new(Self { unmark, ..Self::default() })
    }

    pub fn take(&self) -> Vec<(GuestPhys, u64)> {
        std::mem::take(&mut self.writes.lock().unwrap())
    }
}

impl CodeWatch for Diary {
    fn code_written(&self, first: GuestPhys, length: u64) -> bool {
        self.writes.lock().unwrap().push((first, length));
        self.unmark
    }
}
