//! Accesses that compiled code makes when its inline lookup misses: done if they concern plain RAM and nothing else,
//! given up without a trace otherwise (accessed and dirty flags apart). The engine then interprets the instruction,
//! which raises the fault, tells the watch or asks the board.

use x86::{CpuState, GuestVirt, PAGE_SIZE, Width};

use super::Mmu;
use crate::host;
use crate::walk::Access;

impl Mmu {
    /// The page fault that the access raises which was given up last, if that is why it was, and it lies in one page. Only
    /// for who gives up the instruction too, at its first access that can't be done: then it is the instruction's.
    pub fn take_fault(&mut self) -> Option<x86::Exception> {
        self.fault.take().filter(|fault| fault.vector == x86::Vector::PageFault)
    }

    /// Loads `width` bytes, zero-extended.
    pub fn try_load(&mut self, state: &CpuState, address: GuestVirt, width: Width) -> Option<u64> {
        self.try_load_with(state, address, width, Access::Read)
    }

    /// Loads for an instruction that will store to the same place.
    pub fn try_load_for_update(&mut self, state: &CpuState, address: GuestVirt, width: Width) -> Option<u64> {
        self.try_load_with(state, address, width, Access::Write)
    }

    /// Stores the low `width` bytes; false if it was not done.
    pub fn try_store(&mut self, state: &CpuState, address: GuestVirt, width: Width, value: u64) -> bool {
        self.fault = None;
        if Self::misaligned(state, address, width) {
            return false;
        }
        let Some(places) = self.plain(state, address, width.bytes(), Access::Write) else { return false };
        // SAFETY: `plain` found RAM for all bytes.
        unsafe {
            match places {
                Plain::Whole(host) => host::store(host, width, value),
                Plain::Split(split) => split.store(&value.to_le_bytes()[..width.bytes() as usize]),
            }
        }
        true
    }

    /// Loads 16 bytes.
    pub fn try_load128(&mut self, state: &CpuState, address: GuestVirt) -> Option<u128> {
        let places = self.plain(state, address, 16, Access::Read)?;
        // SAFETY: `plain` found RAM for all bytes.
        Some(unsafe {
            match places {
                Plain::Whole(host) => host::load128(host),
                Plain::Split(split) => u128::from_le_bytes(split.load(16)),
            }
        })
    }

    /// Stores 16 bytes; false if it was not done.
    pub fn try_store128(&mut self, state: &CpuState, address: GuestVirt, value: u128) -> bool {
        let Some(places) = self.plain(state, address, 16, Access::Write) else { return false };
        // SAFETY: `plain` found RAM for all bytes.
        unsafe {
            match places {
                Plain::Whole(host) => host::store128(host, value),
                Plain::Split(split) => split.store(&value.to_le_bytes()),
            }
        }
        true
    }

    /// Makes the inline lookup of an access hit, whose `length` bytes are in one page; gives the page's addend, `None` if it can't.
    pub fn try_fill(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        length: u64,
        write: bool,
    ) -> Option<u64> {
        let access = if write { Access::Write } else { Access::Read };
        self.fault = None;
        if self.plain_page(state, address, access).is_none() {
            if address.page_offset() + length > PAGE_SIZE {
                // Which of two pages faults first is the interpreter's to say.
                self.fault = None;
            }
            return None;
        }
        let entry = self.entry(address.0);
        Self::hits(if write { entry.write } else { entry.read }, address, length).then_some(entry.addend)
    }

    fn try_load_with(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        access: Access,
    ) -> Option<u64> {
        self.fault = None;
        if Self::misaligned(state, address, width) {
            return None;
        }
        let places = self.plain(state, address, width.bytes(), access)?;
        // SAFETY: `plain` found RAM for all bytes.
        Some(unsafe {
            match places {
                Plain::Whole(host) => host::load(host, width),
                Plain::Split(split) => u128::from_le_bytes(split.load(width.bytes() as usize)) as u64,
            }
        })
    }

    /// Where `length` (at most 16) bytes lie, if that is RAM, the access is allowed, and no code is overwritten.
    fn plain(&mut self, state: &CpuState, address: GuestVirt, length: u64, access: Access) -> Option<Plain> {
        self.fault = None;
        let first = self.plain_page(state, address, access);
        let room = PAGE_SIZE - address.page_offset();
        if room >= length {
            return first.map(Plain::Whole);
        }
        // Which of two pages faults first is the interpreter's to say.
        self.fault = None;
        let first = first?;
        let mut next = address.page().offset(PAGE_SIZE);
        if !state.mode.is_64bit() {
            next.0 &= 0xffff_ffff;
        }
        let second = self.plain_page(state, next, access);
        self.fault = None;
        let second = second?;
        Some(Plain::Split(Split { first, second, room: room as usize }))
    }

    fn plain_page(&mut self, state: &CpuState, address: GuestVirt, access: Access) -> Option<*mut u8> {
        match self.resolve(state, self.own_view(state), address, access) {
            Ok(place) => place.host.filter(|_| !place.code),
            Err(fault) => {
                self.fault = Some(fault);
                None
            }
        }
    }
}

/// Where the bytes of an access are.
enum Plain {
    Whole(*mut u8),
    Split(Split),
}

/// An access across two pages.
struct Split {
    first: *mut u8,
    second: *mut u8,
    /// How many bytes lie in the first page.
    room: usize,
}

impl Split {
    /// # Safety
    /// `room` bytes at `first` and the rest at `second` must be guest memory.
    unsafe fn load(&self, length: usize) -> [u8; 16] {
        let mut bytes = [0; 16];
        // SAFETY: the caller's promise.
        unsafe {
            host::copy_out(self.first, &mut bytes[..self.room]);
            host::copy_out(self.second, &mut bytes[self.room..length]);
        }
        bytes
    }

    /// # Safety
    /// As for [`Split::load`].
    unsafe fn store(&self, bytes: &[u8]) {
        let (first, second) = bytes.split_at(self.room);
        // SAFETY: the caller's promise.
        unsafe {
            host::copy_in(self.first, first);
            host::copy_in(self.second, second);
        }
    }
}
