//! One vCPU's way to memory.

use std::sync::Arc;

use x86::{CpuState, Exception, GuestPhys, GuestVirt, Width};

use crate::{CodePages, CodeWatch, MmioLog, Ram};

/// Why a memory access did not complete. The instruction is restartable.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// #PF, #AC, …
    Exception(Exception),
    /// The board must answer [`MmioLog::pending`].
    Board,
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

/// Read-modify-write operations that are atomic with respect to other vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it; Exchange stores the operand")]
pub enum AtomicOp {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Exchange,
}

/// One vCPU's memory management unit. Data accesses take the privilege of `state` (CPL, RFLAGS.AC); the
/// `_supervisor` ones are the processor's own implicit accesses to descriptor tables, TSS and stacks of other rings.
pub struct Mmu {
    ram: Ram,
    code_pages: Arc<CodePages>,
    watch: Option<Arc<dyn CodeWatch>>,
    /// Accesses of the current instruction that the board answered.
    pub mmio: MmioLog,
    /// Page walks done for TLB misses.
    pub fills: u64,
}

#[allow(unused_variables, reason = "skeleton")]
impl Mmu {
    /// An MMU with an empty TLB.
    pub fn new(ram: Ram, code_pages: Arc<CodePages>) -> Self {
        Self { ram, code_pages, watch: None, mmio: MmioLog::default(), fills: 0 }
    }

    /// Who is told about writes to code pages.
    pub fn set_watch(&mut self, watch: Arc<dyn CodeWatch>) {
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

    /// Points `state.tlb` and `state.tlb_mask` at the array for the state's CPL, AC, SMAP and address space. To be
    /// called after CPL, RFLAGS.AC, or anything that [`Mmu::flush_all`] is for has changed. Cheap.
    pub fn select_view(&mut self, state: &mut CpuState) {
        unimplemented!()
    }

    /// Loads `width` bytes, zero-extended. Crosses pages where it must; checks alignment if the mode says so.
    #[inline]
    pub fn load(&mut self, state: &CpuState, address: GuestVirt, width: Width) -> Result<u64, Stop> {
        unimplemented!()
    }

    /// Loads for an instruction that will store to the same place: faults as a write does.
    #[inline]
    pub fn load_for_update(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
    ) -> Result<u64, Stop> {
        unimplemented!()
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
        unimplemented!()
    }

    /// Loads 16 bytes, little-endian.
    pub fn load128(&mut self, state: &CpuState, address: GuestVirt) -> Result<u128, Stop> {
        unimplemented!()
    }

    /// Stores 16 bytes, all or nothing.
    pub fn store128(&mut self, state: &CpuState, address: GuestVirt, value: u128) -> Result<(), Stop> {
        unimplemented!()
    }

    /// Loads any number of bytes; for wide state images (FXSAVE, XSAVE, FLDENV).
    pub fn load_bytes(&mut self, state: &CpuState, address: GuestVirt, bytes: &mut [u8]) -> Result<(), Stop> {
        unimplemented!()
    }

    /// Stores any number of bytes, all or nothing.
    pub fn store_bytes(&mut self, state: &CpuState, address: GuestVirt, bytes: &[u8]) -> Result<(), Stop> {
        unimplemented!()
    }

    /// Atomic read-modify-write; returns the old value. Host atomics where the operand lies in one host-aligned
    /// word or page, a global lock where it is split across pages.
    pub fn atomic(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, Stop> {
        unimplemented!()
    }

    /// Atomic compare-and-exchange; returns the old value (equal to `expected` if the exchange was made).
    pub fn compare_exchange(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, Stop> {
        unimplemented!()
    }

    /// CMPXCHG16B's. Returns the old value.
    pub fn compare_exchange128(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        expected: u128,
        new: u128,
    ) -> Result<u128, Stop> {
        unimplemented!()
    }

    /// Checks that `length` bytes can be written, without writing: for instructions that must fault before any effect.
    pub fn probe_write(&mut self, state: &CpuState, address: GuestVirt, length: u64) -> Result<(), Stop> {
        unimplemented!()
    }

    /// As [`Mmu::load`], with supervisor privilege whatever CPL is, and user pages allowed or not as SMAP says for
    /// implicit accesses.
    pub fn load_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
    ) -> Result<u64, Stop> {
        unimplemented!()
    }

    /// As [`Mmu::store`], with supervisor privilege.
    pub fn store_supervisor(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        unimplemented!()
    }

    /// As [`Mmu::load`]/[`Mmu::store`] with the privilege of `cpl`, for pushes onto the stack of another ring.
    pub fn store_as(
        &mut self,
        state: &CpuState,
        cpl: u8,
        address: GuestVirt,
        width: Width,
        value: u64,
    ) -> Result<(), Stop> {
        unimplemented!()
    }

    /// Translates an instruction fetch. `Err(Board)` is never returned: code outside RAM reads as #GP(0).
    pub fn fetch(&mut self, state: &CpuState, address: GuestVirt) -> Result<GuestPhys, Stop> {
        unimplemented!()
    }

    /// Host pointer to `length` bytes (within one page) if a TLB entry allows them directly, filling the TLB if it
    /// must: the fast path of string instructions. `None`: go through [`Mmu::load`]/[`Mmu::store`].
    pub fn direct(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        length: u64,
        write: bool,
    ) -> Result<Option<*mut u8>, Stop> {
        unimplemented!()
    }

    /// Drops every translation (CR0, CR4, EFER or PDPTE changes; INVPCID of everything).
    pub fn flush_all(&mut self, state: &mut CpuState) {
        unimplemented!()
    }

    /// After CR3 was loaded (state.cr3 is new already). `keep`: bit 63 of the source was set with PCIDs on, so
    /// translations of the new PCID stay.
    pub fn switch_address_space(&mut self, state: &mut CpuState, keep: bool) {
        unimplemented!()
    }

    /// Drops all translations that are not global, of the given PCID or (None) of all.
    pub fn flush_non_global(&mut self, state: &mut CpuState, pcid: Option<u16>) {
        unimplemented!()
    }

    /// INVLPG: drops the translations of the page (of whatever size) that holds `address`, in all views.
    pub fn flush_page(&mut self, state: &mut CpuState, address: GuestVirt) {
        unimplemented!()
    }

    /// Makes writes to the guest-physical page slow again in every view: it now holds translated code.
    pub fn protect_page(&mut self, page: GuestPhys) {
        unimplemented!()
    }
}
