//! Accesses that miss: resolve the pages, then RAM, code pages or the board.

use x86::{CpuState, Exception, GuestPhys, GuestVirt, PAGE_SIZE, Width};

use super::{Mmu, Stop, host_address};
use crate::tlb::View;
use crate::tlb::array::Hit;
use crate::walk::{self, Access};
use crate::{MmioAccess, host};

/// Where an access goes, up to the end of its page.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    /// Guest-physical address of the first byte.
    pub physical: GuestPhys,
    /// Host address of it, or `None` where there is no RAM.
    pub host: Option<*mut u8>,
    /// It is a store, and the page holds translated code.
    pub code: bool,
}

/// The bytes of an access that lie in one page.
#[derive(Clone, Copy)]
struct Piece {
    address: GuestVirt,
    /// Their range in the buffer.
    start: usize,
    end: usize,
}

/// Cuts an access into its pieces.
fn pieces(state: &CpuState, address: GuestVirt, length: usize) -> impl Iterator<Item = Piece> {
    let mut start = 0;
    let state_wraps = !state.mode.is_64bit() && address.0 >> 32 == 0;
    std::iter::from_fn(move || {
        if start == length {
            return None;
        }
        let mut at = address.offset(start as u64);
        if state_wraps {
            // Linear addresses outside 64-bit mode have 32 bits.
            at.0 &= 0xffff_ffff;
        }
        let room = (PAGE_SIZE - at.page_offset()) as usize;
        let end = length.min(start + room);
        let piece = Piece { address: at, start, end };
        start = end;
        Some(piece)
    })
}

/// Whether the access needs more than one page.
fn crosses(address: GuestVirt, length: u64) -> bool {
    address.page_offset() + length > PAGE_SIZE
}

/// The greatest access of 1, 2, 4 or 8 bytes with which to begin `length` bytes of MMIO.
fn mmio_size(length: usize) -> usize {
    let greatest = length.min(8);
    if greatest == 0 { 0 } else { 1 << greatest.ilog2() }
}

impl Mmu {
    /// Finds the page of `address`, by the TLB or by a walk that fills it.
    pub(super) fn resolve(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        access: Access,
    ) -> Result<Place, Exception> {
        let hit = match self.spaces.array(view).look_up(address, access) {
            Some(hit) => hit,
            None => match self.fill(state, view, address, access)? {
                Ok(hit) => hit,
                Err(physical) => return Ok(Place { physical, host: None, code: false }),
            },
        };
        let mut code = false;
        if access == Access::Write && hit.slow_store {
            code = self.code_pages.is_marked(hit.page);
            if !code {
                // Its mark has been taken away.
                self.note_store(hit.page);
                self.spaces.array_mut(view).allow_store(address);
            }
        }
        let physical = hit.page.offset(address.page_offset());
        Ok(Place { physical, host: Some(host_address(address, hit.addend)), code })
    }

    /// Walks and fills the TLB; the inner `Err` is an address outside RAM, which is not kept.
    #[inline(never)]
    fn fill(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        access: Access,
    ) -> Result<Result<Hit, GuestPhys>, Exception> {
        if state.mode.is_long() && !address.is_canonical() {
            return Err(Exception::GP0);
        }
        self.fills += 1;
        let translation = walk::translate(&self.ram, state, view, access, address.0)?;
        let Some(host_page) = self.ram.host_page(translation.page) else {
            return Ok(Err(translation.page.offset(address.page_offset())));
        };
        let marked = self.code_pages.is_marked(translation.page);
        if translation.write && translation.dirty && !marked {
            self.note_store(translation.page);
        }
        if translation.size_shift != x86::PAGE_SHIFT {
            self.spaces.note_large(address, translation.size_shift);
        }
        let array = self.spaces.array_mut(view);
        array.insert(address, &translation, host_page, marked);
        self.crowded |= array.is_crowded();
        let addend = (host_page as u64).wrapping_sub(address.page().0);
        Ok(Ok(Hit { page: translation.page, addend, slow_store: marked }))
    }

    /// Some array is about to have a store entry for the page.
    fn note_store(&mut self, page: GuestPhys) {
        if let Some(index) = self.ram.page_index(page) {
            self.stored[index / 64] |= 1 << (index % 64);
        }
    }

    /// Tells the watch that bytes of a code page are about to change.
    pub(super) fn announce(&mut self, place: &Place, length: u64) {
        if !place.code {
            return;
        }
        self.code_written = true;
        if let Some(watch) = &self.watch
            && watch.code_written(place.physical, length)
        {
            self.code_pages.unmark(place.physical);
        }
    }

    /// #AC for an explicit access at CPL 3.
    pub(super) fn check_alignment(
        state: &CpuState,
        view: View,
        address: GuestVirt,
        width: Width,
    ) -> Result<(), Exception> {
        if view == View::User && Self::misaligned(state, address, width) {
            return Err(Exception::AC0);
        }
        Ok(())
    }

    #[inline(never)]
    pub(super) fn load_slow(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        width: Width,
        access: Access,
    ) -> Result<u64, Stop> {
        Self::check_alignment(state, view, address, width)?;
        let length = width.bytes();
        if crosses(address, length) {
            let mut bytes = [0; 8];
            self.read_bytes(state, view, address, &mut bytes[..length as usize], access)?;
            return Ok(u64::from_le_bytes(bytes));
        }
        let place = self.resolve(state, view, address, access)?;
        match place.host {
            // SAFETY: `resolve` found RAM up to the end of the page, which the access does not cross.
            Some(host) => Ok(unsafe { host::load(host, width) }),
            None => self.board_read(place.physical, length as u8).map(|value| width.truncate(value)),
        }
    }

    #[inline(never)]
    pub(super) fn store_slow(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        Self::check_alignment(state, view, address, width)?;
        let length = width.bytes();
        if crosses(address, length) {
            let bytes = value.to_le_bytes();
            return self.write_bytes(state, view, address, &bytes[..length as usize]);
        }
        let place = self.resolve(state, view, address, Access::Write)?;
        let Some(host) = place.host else {
            return self.board_write(place.physical, length as u8, width.truncate(value));
        };
        self.announce(&place, length);
        // SAFETY: as in `load_slow`.
        unsafe { host::store(host, width, value) };
        Ok(())
    }

    #[cold]
    pub(super) fn load128_slow(&mut self, state: &CpuState, address: GuestVirt) -> Result<u128, Stop> {
        if !crosses(address, 16) {
            let place = self.resolve(state, self.own_view(state), address, Access::Read)?;
            if let Some(host) = place.host {
                // SAFETY: as in `load_slow`.
                return Ok(unsafe { host::load128(host) });
            }
        }
        let mut bytes = [0; 16];
        self.read_bytes(state, self.own_view(state), address, &mut bytes, Access::Read)?;
        Ok(u128::from_le_bytes(bytes))
    }

    #[cold]
    pub(super) fn store128_slow(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        value: u128,
    ) -> Result<(), Stop> {
        if !crosses(address, 16) {
            let place = self.resolve(state, self.own_view(state), address, Access::Write)?;
            if let Some(host) = place.host {
                self.announce(&place, 16);
                // SAFETY: as in `load_slow`.
                unsafe { host::store128(host, value) };
                return Ok(());
            }
        }
        self.write_bytes(state, self.own_view(state), address, &value.to_le_bytes())
    }

    #[cold]
    pub(super) fn fetch_slow(&mut self, state: &CpuState, address: GuestVirt) -> Result<GuestPhys, Stop> {
        let place = self.resolve(state, self.own_view(state), address, Access::Execute)?;
        match place.host {
            Some(_) => Ok(place.physical),
            None => Err(Exception::GP0.into()),
        }
    }

    /// Loads any number of bytes; for wide state images (FXSAVE, XSAVE, FLDENV).
    pub fn load_bytes(&mut self, state: &CpuState, address: GuestVirt, bytes: &mut [u8]) -> Result<(), Stop> {
        self.read_bytes(state, self.own_view(state), address, bytes, Access::Read)
    }

    /// Stores any number of bytes, all or nothing.
    pub fn store_bytes(&mut self, state: &CpuState, address: GuestVirt, bytes: &[u8]) -> Result<(), Stop> {
        self.write_bytes(state, self.own_view(state), address, bytes)
    }

    /// Checks that `length` bytes can be written, without writing: for instructions that must fault before any effect.
    pub fn probe_write(&mut self, state: &CpuState, address: GuestVirt, length: u64) -> Result<(), Stop> {
        self.probe(state, self.own_view(state), address, length as usize, Access::Write)
    }

    /// Checks that `length` bytes can be read, without reading.
    pub fn probe_read(&mut self, state: &CpuState, address: GuestVirt, length: u64) -> Result<(), Stop> {
        self.probe(state, self.own_view(state), address, length as usize, Access::Read)
    }

    fn probe(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        length: usize,
        access: Access,
    ) -> Result<(), Stop> {
        for piece in pieces(state, address, length) {
            self.resolve(state, view, piece.address, access)?;
        }
        Ok(())
    }

    /// Reads after all pages have been found readable (or, for [`Access::Write`], writable).
    pub(super) fn read_bytes(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        bytes: &mut [u8],
        access: Access,
    ) -> Result<(), Stop> {
        if crosses(address, bytes.len() as u64) {
            self.probe(state, view, address, bytes.len(), access)?;
        }
        for piece in pieces(state, address, bytes.len()) {
            let place = self.resolve(state, view, piece.address, access)?;
            let target = &mut bytes[piece.start..piece.end];
            match place.host {
                // SAFETY: `resolve` found RAM up to the end of the page, where the piece ends at the latest.
                Some(host) => unsafe { host::copy_out(host, target) },
                None => self.board_read_bytes(place.physical, target)?,
            }
        }
        Ok(())
    }

    /// Writes after all pages have been found writable. What the board must do comes first: until it has, the
    /// instruction starts again and RAM has to be untouched.
    pub(super) fn write_bytes(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        bytes: &[u8],
    ) -> Result<(), Stop> {
        if crosses(address, bytes.len() as u64) {
            self.probe(state, view, address, bytes.len(), Access::Write)?;
        }
        for piece in pieces(state, address, bytes.len()) {
            let place = self.resolve(state, view, piece.address, Access::Write)?;
            if place.host.is_none() {
                self.board_write_bytes(place.physical, &bytes[piece.start..piece.end])?;
            }
        }
        for piece in pieces(state, address, bytes.len()) {
            let place = self.resolve(state, view, piece.address, Access::Write)?;
            if let Some(host) = place.host {
                let source = &bytes[piece.start..piece.end];
                self.announce(&place, source.len() as u64);
                // SAFETY: as in `read_bytes`.
                unsafe { host::copy_in(host, source) };
            }
        }
        Ok(())
    }

    /// One read by the board; bits beyond the access are what the board says.
    pub(super) fn board_read(&mut self, address: GuestPhys, size: u8) -> Result<u64, Stop> {
        self.mmio.access(MmioAccess::Read { address, size }).ok_or(Stop::Board)
    }

    /// One write by the board.
    pub(super) fn board_write(&mut self, address: GuestPhys, size: u8, value: u64) -> Result<(), Stop> {
        self.mmio.access(MmioAccess::Write { address, size, value }).ok_or(Stop::Board)?;
        Ok(())
    }

    fn board_read_bytes(&mut self, address: GuestPhys, bytes: &mut [u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < bytes.len() {
            let size = mmio_size(bytes.len() - done);
            let value = self.board_read(address.offset(done as u64), size as u8)?;
            bytes[done..done + size].copy_from_slice(&value.to_le_bytes()[..size]);
            done += size;
        }
        Ok(())
    }

    fn board_write_bytes(&mut self, address: GuestPhys, bytes: &[u8]) -> Result<(), Stop> {
        let mut done = 0;
        while done < bytes.len() {
            let size = mmio_size(bytes.len() - done);
            let mut value = [0; 8];
            value[..size].copy_from_slice(&bytes[done..done + size]);
            self.board_write(address.offset(done as u64), size as u8, u64::from_le_bytes(value))?;
            done += size;
        }
        Ok(())
    }

    /// As [`Mmu::load`], with supervisor privilege whatever CPL is, and user pages allowed or not as SMAP says for
    /// implicit accesses.
    pub fn load_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
    ) -> Result<u64, Stop> {
        self.load_slow(state, View::implicit(state), address, width, Access::Read)
    }

    /// As [`Mmu::store`], with supervisor privilege.
    pub fn store_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        self.store_slow(state, View::implicit(state), address, width, value)
    }

    /// As [`Mmu::store`] with the privilege of `cpl`, for pushes onto the stack of another ring.
    pub fn store_as(
        &mut self,
        state: &CpuState,
        cpl: u8,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        self.store_slow(state, View::at(state, cpl), address, width, value)
    }

    /// Host pointer to `length` bytes (within one page) if a TLB entry allows them directly, filling the TLB if it
    /// must: the fast path of string instructions. `None`: go through [`Mmu::load`]/[`Mmu::store`]. The bytes may
    /// only be accessed as [`crate::host`] does.
    pub fn direct(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        length: u64,
        write: bool,
    ) -> Result<Option<*mut u8>, Stop> {
        if length > PAGE_SIZE || crosses(address, length) {
            return Ok(None);
        }
        let access = if write { Access::Write } else { Access::Read };
        let place = self.resolve(state, self.own_view(state), address, access)?;
        Ok(if place.code { None } else { place.host })
    }
}
