//! Accesses that miss: resolve the page, then RAM, code page or the board. What crosses pages goes to `bytes`.

use x86::{CpuState, Exception, GuestPhys, GuestVirt, PAGE_SHIFT, PAGE_SIZE, Width};

use super::{Mmu, Stop, host_address};
use crate::host;
use crate::tlb::array::Hit;
use crate::tlb::{ENTRY_SHIFT, View};
use crate::walk::{self, Access, Translation};

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

/// Whether the access needs more than one page.
pub(super) fn crosses(address: GuestVirt, length: u64) -> bool {
    address.page_offset() + length > PAGE_SIZE
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
        let array = match access {
            Access::Execute => self.spaces.fetch_array(view),
            Access::Read | Access::Write => self.spaces.array(view),
        };
        let hit = match array.look_up(address, access) {
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
                self.note_store(hit.page, address);
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
        if access != Access::Execute && translation.write && translation.dirty && !marked {
            self.note_store(translation.page, address);
        }
        if translation.size_shift != x86::PAGE_SHIFT {
            self.spaces.note_large(address, translation.size_shift);
        }
        let (array, translation) = match access {
            Access::Execute => {
                let fetch = Translation { read: false, write: false, ..translation };
                (self.spaces.fetch_array_mut(view), fetch)
            }
            Access::Read | Access::Write => {
                (self.spaces.array_mut(view), Translation { execute: false, ..translation })
            }
        };
        array.insert(address, &translation, host_page, marked);
        self.crowded |= array.is_crowded();
        let addend = (host_page as u64).wrapping_sub(address.page().0);
        Ok(Ok(Hit { page: translation.page, addend, slow_store: marked }))
    }

    /// Some array, or the window, is about to allow stores to the page, at a linear address.
    pub(super) fn note_store(&mut self, page: GuestPhys, address: GuestVirt) {
        if let Some(index) = self.ram.page_index(page) {
            self.stored[index].add(address);
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

    /// Where an access to a supervisor view hits: the processor's own accesses come in rows of five and more at every
    /// event, so they too get a short path. The user view is left to its #AC checks.
    #[inline(always)]
    fn hit_in(&self, view: View, address: GuestVirt, width: Width, write: bool) -> Option<*mut u8> {
        let array = self.spaces.array(view);
        let offset = address.0 >> (PAGE_SHIFT - ENTRY_SHIFT) & array.mask();
        // SAFETY: the mask keeps the offset within the array's table, at an entry's start.
        let entry = unsafe { &*array.table().byte_add(offset as usize) };
        let tag = if write { entry.write } else { entry.read };
        let hits = view != View::User && Self::hits(tag, address, width.bytes());
        hits.then(|| host_address(address, entry.addend))
    }

    #[inline(always)]
    fn store_in(
        &mut self,
        state: &CpuState,
        view: View,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        if let Some(host) = self.hit_in(view, address, width, true) {
            // SAFETY: `hit_in` vouches for the whole access.
            unsafe { host::store(host, width, value) };
            return Ok(());
        }
        self.store_slow(state, view, address, width, value)
    }

    /// As [`Mmu::load`], with supervisor privilege whatever CPL is, and user pages allowed or not as SMAP says for
    /// implicit accesses.
    #[inline]
    pub fn load_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
    ) -> Result<u64, Stop> {
        let view = View::implicit(state);
        if let Some(host) = self.hit_in(view, address, width, false) {
            // SAFETY: `hit_in` vouches for the whole access.
            return Ok(unsafe { host::load(host, width) });
        }
        self.load_slow(state, view, address, width, Access::Read)
    }

    /// As [`Mmu::store`], with supervisor privilege.
    #[inline]
    pub fn store_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        self.store_in(state, View::implicit(state), address, width, value)
    }

    /// As [`Mmu::store`] with the privilege of `cpl`, for pushes onto the stack of another ring.
    #[inline]
    pub fn store_as(
        &mut self,
        state: &CpuState,
        cpl: u8,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        self.store_in(state, View::at(state, cpl), address, width, value)
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

    /// The same for stores, also to a page that holds translated code: then what the bytes hold is dropped, so they are to be
    /// stored to, all of them, and whoever runs code looks at [`Mmu::code_written`] before it goes on.
    pub fn direct_over_code(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        length: u64,
    ) -> Result<Option<*mut u8>, Stop> {
        if length > PAGE_SIZE || crosses(address, length) {
            return Ok(None);
        }
        let place = self.resolve(state, self.own_view(state), address, Access::Write)?;
        if place.host.is_some() {
            self.announce(&place, length);
        }
        Ok(place.host)
    }
}
