//! Accesses of any length, across any number of pages, and what the board does of them.
//!
//! They are all or nothing: every page is resolved before the first byte is touched, and RAM is written only when
//! the board has done its part.

use x86::{CpuState, Exception, GuestPhys, GuestVirt, PAGE_SIZE};

use super::slow::crosses;
use super::{Mmu, Stop};
use crate::tlb::View;
use crate::walk::Access;
use crate::{MmioAccess, host};

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

/// The greatest access of 1, 2, 4 or 8 bytes with which to begin `length` bytes of MMIO.
fn mmio_size(length: usize) -> usize {
    let greatest = length.min(8);
    if greatest == 0 { 0 } else { 1 << greatest.ilog2() }
}

impl Mmu {
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
        // An access that runs out of the canonical addresses faults as such, whatever page its first byte has.
        let last = address.offset(length.max(1) as u64 - 1);
        if state.mode.is_64bit() && !last.is_canonical() {
            return Err(Exception::GP0.into());
        }
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
}
