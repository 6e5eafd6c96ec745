//! One vCPU's way to memory.
//!
//! This file has the accesses that hit, and what changes translations. An access that misses goes to `slow`, which
//! resolves pages (TLB array, else page walk), tells the watch about writes to code, and asks the board where there
//! is no RAM; `bytes` has what is longer than a page. Read-modify-writes are in `atomic`; `quiet` has the accesses that give up instead of stopping,
//! `window` brings pages where compiled code accesses them by itself.

mod atomic;
mod bytes;
mod quiet;
mod slow;
#[cfg(test)]
mod tests;
mod window;

use std::sync::Arc;

use x86::{CpuState, Exception, GuestPhys, GuestVirt, PAGE_MASK, PAGE_SHIFT, Width};

pub use atomic::AtomicOp;

use crate::tlb::spaces::{Spaces, pcid_of};
use crate::tlb::{ENTRY_SHIFT, Entry, Stored, View};
use crate::walk::{self, Access};
use crate::{CodePages, CodeWatch, MmioLog, Ram, host};

/// Why a memory access did not complete. The instruction is restartable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// #PF, #AC, … #GP(0) for an address that is not canonical: #SS(0) is the caller's to make of it.
    Exception(Exception),
    /// The board must answer [`MmioLog::pending`].
    Board,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// One vCPU's memory management unit. Data accesses take the privilege of `state` (CPL, RFLAGS.AC) as it was at the
/// last [`Mmu::select_view`]; the `_supervisor` ones are the processor's own implicit accesses to descriptor tables,
/// TSS and stacks of other rings.
pub struct Mmu {
    /// The current view's table and mask, as in [`CpuState`].
    table: *mut Entry,
    mask: u64,
    /// The current table and mask for instruction fetches.
    fetch_table: *mut Entry,
    fetch_mask: u64,
    /// The current view.
    view: View,
    /// An array wants to grow, which waits until the state's pointer can be changed.
    crowded: bool,
    /// A page with translated code was written since the engine last cleared this.
    pub code_written: bool,
    spaces: Spaces,
    ram: Ram,
    code_pages: Arc<CodePages>,
    watch: Option<Arc<dyn CodeWatch>>,
    /// For each page of RAM, where arrays had store entries for it since it was last protected.
    stored: Vec<Stored>,
    /// Accesses of the current instruction that the board answered.
    pub mmio: MmioLog,
    /// Page walks done for TLB misses.
    pub fills: u64,
    /// The page fault of the last access that was given up ([`Mmu::take_fault`]).
    fault: Option<x86::Exception>,
}

// SAFETY: the raw pointers are into tables that `spaces` owns and that move with it.
unsafe impl Send for Mmu {}

impl Mmu {
    /// An MMU with an empty TLB.
    pub fn new(ram: Ram, code_pages: Arc<CodePages>) -> Self {
        let spaces = Spaces::new();
        let view = View::SupervisorUserAccess;
        let array = spaces.array(view);
        Self {
            table: array.table(),
            mask: array.mask(),
            fetch_table: spaces.fetch_array(view).table(),
            fetch_mask: spaces.fetch_array(view).mask(),
            view,
            crowded: false,
            code_written: false,
            stored: vec![Stored::NOWHERE; ram.pages()],
            spaces,
            ram,
            code_pages,
            watch: None,
            mmio: MmioLog::default(),
            fills: 0,
            fault: None,
        }
    }

    /// Who is told about writes to code pages, and by [`CodePages::device_wrote`].
    pub fn set_watch(&mut self, watch: Arc<dyn CodeWatch>) {
        self.code_pages.set_watch(&watch);
        self.watch = Some(watch);
    }

    /// The RAM behind it.
    pub fn ram(&self) -> &Ram {
        &self.ram
    }

    /// The shared marks.
    pub fn code_pages(&self) -> &Arc<CodePages> {
        &self.code_pages
    }

    /// Points `state.tlb` and `state.fetch_tlb`, and their masks, at the arrays for the state's CPL, AC, SMAP and address space, and says
    /// whether that space may use the window. To be called after CPL, RFLAGS.AC, or anything that [`Mmu::flush_all`] is for has changed. Cheap.
    #[inline]
    pub fn select_view(&mut self, state: &mut CpuState) {
        if self.crowded {
            self.grow();
        }
        self.view = View::of(state);
        let array = self.spaces.array(self.view);
        (self.table, self.mask) = (array.table(), array.mask());
        state.tlb = self.table.cast();
        state.tlb_mask = self.mask;
        let array = self.spaces.fetch_array(self.view);
        (self.fetch_table, self.fetch_mask) = (array.table(), array.mask());
        state.fetch_tlb = self.fetch_table.cast();
        state.fetch_tlb_mask = self.fetch_mask;
        state.window = self.spaces.window_switch(self.view, state);
    }

    #[cold]
    fn grow(&mut self) {
        self.crowded = false;
        self.spaces.adjust();
    }

    /// The view that the state's own accesses have.
    fn own_view(&self, state: &CpuState) -> View {
        debug_assert_eq!(
            self.view,
            View::of(state),
            "select_view was not called after CPL, AC or SMAP changed"
        );
        self.view
    }

    /// The entry that `address` would be in.
    #[inline(always)]
    fn entry(&self, address: u64) -> &Entry {
        let offset = address >> (PAGE_SHIFT - ENTRY_SHIFT) & self.mask;
        // SAFETY: `table` and `mask` are the current array's (every method that may move arrays takes the state by
        // `&mut` and ends with `select_view`), and the mask keeps the offset within it, at an entry's start.
        unsafe { &*self.table.byte_add(offset as usize) }
    }

    /// Whether an access of `length` bytes hits a tag: see [`crate::tlb`].
    #[inline(always)]
    fn hits(tag: u64, address: GuestVirt, length: u64) -> bool {
        address.0.wrapping_add(length - 1) & PAGE_MASK == tag
    }

    /// Whether an access raises #AC.
    #[inline(always)]
    fn misaligned(state: &CpuState, address: GuestVirt, width: Width) -> bool {
        address.0 & (width.bytes() - 1) != 0 && state.mode.checks_alignment()
    }

    /// Loads `width` bytes, zero-extended. Crosses pages where it must; checks alignment if the mode says so.
    #[inline]
    pub fn load(&mut self, state: &CpuState, address: GuestVirt, width: Width) -> Result<u64, Stop> {
        let entry = self.entry(address.0);
        if Self::hits(entry.read, address, width.bytes()) && !Self::misaligned(state, address, width) {
            let host = host_address(address, entry.addend);
            // SAFETY: a tag that matches vouches for the whole access within one page of RAM.
            return Ok(unsafe { host::load(host, width) });
        }
        self.load_slow(state, self.own_view(state), address, width, Access::Read)
    }

    /// Loads for an instruction that will store to the same place: faults as a write does.
    #[inline]
    pub fn load_for_update(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
    ) -> Result<u64, Stop> {
        let entry = self.entry(address.0);
        if Self::hits(entry.write, address, width.bytes()) && !Self::misaligned(state, address, width) {
            let host = host_address(address, entry.addend);
            // SAFETY: as in `load`.
            return Ok(unsafe { host::load(host, width) });
        }
        self.load_slow(state, self.own_view(state), address, width, Access::Write)
    }

    /// Stores the low `width` bytes. All or nothing, also across pages. Writes to code pages tell the watch.
    #[inline]
    pub fn store(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        let entry = self.entry(address.0);
        if Self::hits(entry.write, address, width.bytes()) && !Self::misaligned(state, address, width) {
            let host = host_address(address, entry.addend);
            // SAFETY: as in `load`.
            unsafe { host::store(host, width, value) };
            return Ok(());
        }
        self.store_slow(state, self.own_view(state), address, width, value)
    }

    /// Loads 16 bytes, little-endian.
    #[inline]
    pub fn load128(&mut self, state: &CpuState, address: GuestVirt) -> Result<u128, Stop> {
        let entry = self.entry(address.0);
        if Self::hits(entry.read, address, 16) {
            let host = host_address(address, entry.addend);
            // SAFETY: as in `load`.
            return Ok(unsafe { host::load128(host) });
        }
        self.load128_slow(state, address)
    }

    /// Stores 16 bytes, all or nothing.
    #[inline]
    pub fn store128(&mut self, state: &CpuState, address: GuestVirt, value: u128) -> Result<(), Stop> {
        let entry = self.entry(address.0);
        if Self::hits(entry.write, address, 16) {
            let host = host_address(address, entry.addend);
            // SAFETY: as in `load`.
            unsafe { host::store128(host, value) };
            return Ok(());
        }
        self.store128_slow(state, address, value)
    }

    /// Translates an instruction fetch. `Err(Board)` is never returned: code outside RAM reads as #GP(0).
    #[inline]
    pub fn fetch(&mut self, state: &CpuState, address: GuestVirt) -> Result<GuestPhys, Stop> {
        if self.fetch_addend(address).is_some() {
            let page = self.spaces.fetch_array(self.view).physical(address);
            return Ok(page.offset(address.page_offset()));
        }
        self.fetch_slow(state, address)
    }

    /// Host address minus linear address of a page that may be fetched from without a walk, if the TLB knows it.
    #[inline(always)]
    pub fn fetch_addend(&self, address: GuestVirt) -> Option<u64> {
        let offset = address.0 >> (PAGE_SHIFT - ENTRY_SHIFT) & self.fetch_mask;
        // SAFETY: as in `entry`.
        let entry = unsafe { &*self.fetch_table.byte_add(offset as usize) };
        (entry.execute == address.page().0).then_some(entry.addend)
    }

    /// Where `address` lies, without checking rights or touching anything: for debuggers and profilers.
    pub fn look_up(&self, state: &CpuState, address: GuestVirt) -> Option<GuestPhys> {
        walk::look_up(&self.ram, state, address.0)
    }

    /// Drops every translation (CR0, CR4, EFER or PDPTE changes; INVPCID of everything).
    pub fn flush_all(&mut self, state: &mut CpuState) {
        self.spaces.flush(pcid_of(state));
        self.spaces.adjust();
        self.select_view(state);
    }

    /// After CR3 was loaded (state.cr3 is new already). `keep`: bit 63 of the source was set with PCIDs on, so
    /// translations of the new PCID stay.
    pub fn switch_address_space(&mut self, state: &mut CpuState, keep: bool) {
        let pcid = pcid_of(state);
        let known = self.spaces.switch(pcid);
        if known && !keep {
            self.spaces.flush_local(Some(pcid));
        }
        self.spaces.note_switch(state);
        self.spaces.adjust();
        self.select_view(state);
    }

    /// Drops all translations that are not global, of the given PCID or (None) of all.
    pub fn flush_non_global(&mut self, state: &mut CpuState, pcid: Option<u16>) {
        self.spaces.flush_local(pcid);
        self.spaces.adjust();
        self.select_view(state);
    }

    /// INVLPG: drops the translations of the page (of whatever size) that holds `address`, in all views. Of all
    /// PCIDs, so it serves INVPCID of an individual address too.
    pub fn flush_page(&mut self, _state: &mut CpuState, address: GuestVirt) {
        self.spaces.flush_page(address);
    }

    /// Makes writes to the guest-physical page slow again in every view, and in the window: it now holds translated code.
    pub fn protect_page(&mut self, page: GuestPhys) {
        let Some(index) = self.ram.page_index(page) else { return };
        let stored = std::mem::replace(&mut self.stored[index], Stored::NOWHERE);
        if stored != Stored::NOWHERE {
            self.spaces.protect(page.page(), stored.slot());
        }
    }
}

/// The host address that an entry gives.
#[inline(always)]
fn host_address(address: GuestVirt, addend: u64) -> *mut u8 {
    std::ptr::with_exposed_provenance_mut(address.0.wrapping_add(addend) as usize)
}
