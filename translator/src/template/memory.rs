//! Guest memory: the inline TLB lookup (`memory::tlb` has its layout), which gives a host operand.
//!
//! A miss has the TLB filled and looks again, so the access itself is written once, whatever it is. What the TLB can't
//! answer at all (page crossings, MMIO, code pages, faults, atomic operands out of alignment) is the interpreter's.
//!
//! Accesses by RSP are looked up in its recent page ([`memory::tlb::Recent`]). Those near one by the same register are only compared
//! with the page that it was in ([`super::known`]).

use core::mem::offset_of;

use memory::tlb::{ENTRY_SHIFT, Entry, MAX_ENTRIES, Recent, recent_offset};
use semantics::{Insn, MemoryOperand};
use x86::{CpuState, PAGE_MASK, PAGE_SHIFT, Segment, SegmentRegister, Width};

use super::{
    Declined, Template,
    assembler::{Jump, Mem, Reg, Space, condition},
    cold::ColdKind,
};

const TLB: usize = offset_of!(CpuState, tlb);
const TLB_MASK: usize = offset_of!(CpuState, tlb_mask);
const FETCH_TLB: usize = offset_of!(CpuState, fetch_tlb);
const FETCH_TLB_MASK: usize = offset_of!(CpuState, fetch_tlb_mask);
/// Of an entry.
pub(super) const ADDEND: i32 = offset_of!(Entry, addend) as i32;
/// From an address to the offset of its entry in an endless array.
const INDEX_SHIFT: u8 = (PAGE_SHIFT - ENTRY_SHIFT) as u8;

/// A linear address, over host registers.
#[derive(Clone, Copy)]
pub(super) enum Address {
    /// Register plus displacement, the usual case.
    Based { base: Reg, displacement: i32 },
    /// What else there is.
    Computed {
        base: Option<Reg>,
        index: Option<(Reg, u8)>,
        displacement: u64,
        /// Cut to 32 bits before the segment's base is added.
        narrow: bool,
        segment: Option<SegmentRegister>,
    },
    /// A constant.
    Absolute(u64),
    /// In the first temporary already.
    Ready,
}

impl Address {
    /// It can be computed from registers alone, in one instruction.
    fn is_simple(&self) -> bool {
        matches!(
            self,
            Self::Based { .. } | Self::Computed { base: Some(_), narrow: false, segment: None, .. }
        )
    }
}

/// An access.
#[derive(Clone, Copy)]
pub(super) struct Access {
    pub bytes: u8,
    pub write: bool,
    /// Must be a multiple of `bytes`.
    pub aligned: bool,
}

impl Access {
    pub const fn read(bytes: u8) -> Self {
        Self { bytes, write: false, aligned: false }
    }

    pub const fn write(bytes: u8) -> Self {
        Self { bytes, write: true, aligned: false }
    }

    /// Where an entry has the tag for it.
    pub const fn tag(self) -> i32 {
        if self.write { offset_of!(Entry, write) as i32 } else { offset_of!(Entry, read) as i32 }
    }
}

impl Template<'_> {
    /// The address of the current instruction's memory operand; its registers are brought home.
    pub(super) fn address(&mut self, insn: &Insn) -> Address {
        let operand = &insn.memory;
        let segment =
            matches!(operand.segment, SegmentRegister::Fs | SegmentRegister::Gs).then_some(operand.segment);
        let narrow = operand.width != Width::Qword;
        let has = |register: u8| register != MemoryOperand::NONE;
        let base = has(operand.base).then(|| self.read(operand.base));
        let index = has(operand.index).then(|| (self.read(operand.index), operand.scale));
        match (base, index, segment, narrow) {
            (None, None, None, false) => Address::Absolute(operand.displacement),
            (None, None, None, true) => Address::Absolute(operand.displacement & 0xffff_ffff),
            (Some(base), None, None, false) => {
                Address::Based { base, displacement: operand.displacement as i32 }
            }
            _ => Address::Computed { base, index, displacement: operand.displacement, narrow, segment },
        }
    }

    /// Computes an address. Changes host flags.
    pub(super) fn linear(&mut self, address: Address, to: Reg) {
        match address {
            Address::Absolute(address) => self.asm.constant(to, address),
            Address::Ready => {}
            Address::Based { base, displacement: 0 } => self.asm.mov(to, base),
            Address::Based { base, displacement } => self.asm.lea(to, Mem::new(base, displacement)),
            Address::Computed { base, index, displacement, narrow, segment } => {
                let mem = match base {
                    Some(base) => Mem { base, index, displacement: displacement as i32, space: Space::Host },
                    None => {
                        let cut = if narrow { displacement & 0xffff_ffff } else { displacement };
                        self.asm.constant(to, cut);
                        Mem { base: to, index, displacement: 0, space: Space::Host }
                    }
                };
                match (base, index, narrow) {
                    (None, None, _) => {}
                    (_, _, false) => self.asm.lea(to, mem),
                    (_, _, true) => self.asm.lea32(to, mem),
                }
                if let Some(segment) = segment {
                    let offset = offset_of!(CpuState, segments)
                        + segment as usize * size_of::<Segment>()
                        + offset_of!(Segment, base);
                    self.asm.add_from(to, Mem::state(offset));
                }
            }
        }
    }

    /// The place of an access: in the window, or looked up, as [`Template::lookup`] says.
    pub(super) fn place(&mut self, address: Address, access: Access) -> Result<Mem, Declined> {
        match self.in_window(address, access) {
            Some(place) => Ok(place),
            None => self.lookup(address, access),
        }
    }

    /// Looks an access up; gives the host operand, which holds the first two temporaries (of [`Address::Based`]: the
    /// second). Flags are kept; the cold path settles the state, since this may fault.
    pub(super) fn lookup(&mut self, address: Address, access: Access) -> Result<Mem, Declined> {
        let [mut first, mut second, third] = self.registers.temporaries;
        let mut by = None;
        if let Address::Based { base, displacement } = address
            && let Some(base) = self.registers.guest_in(base)
        {
            match self.lookup_near(base, displacement, access) {
                Ok(place) => return Ok(place),
                Err(pair) => [first, second] = pair,
            }
            by = Some((base, displacement));
        } else {
            if let Address::Absolute(address) = address
                && self.known.has_absolute(address, access)
            {
                self.need_no_lookup();
                return Ok(self.absolute_place(address));
            }
            self.known.forget_shared();
            if let Some(page) = self.recent
                && address.is_simple()
                && u64::from(access.bytes) <= Recent::BYTES
                && !access.aligned
            {
                return Ok(self.recent_lookup(page, address, access));
            }
        }
        let beyond = if access.aligned { 0 } else { i32::from(access.bytes) - 1 };
        if matches!(address, Address::Ready) {
            self.last_temporary();
        } else {
            self.keep_flags();
        }
        self.lose_host_flags();
        let resume = self.asm.code.len();
        let page_mask = PAGE_MASK as i32 | if access.aligned { i32::from(access.bytes) - 1 } else { 0 };
        let entry = Mem::new(second, access.tag());
        match address {
            Address::Absolute(address) => {
                if address & PAGE_MASK != address.wrapping_add(u64::from(access.bytes) - 1) & PAGE_MASK
                    || access.aligned && address % u64::from(access.bytes) != 0
                {
                    return Err(Declined);
                }
                let most = ((MAX_ENTRIES - 1) << ENTRY_SHIFT) as u64;
                self.asm.tlb_index(second, address >> INDEX_SHIFT & most, address);
                self.entry(second);
                let page = address & PAGE_MASK;
                if let Ok(page) = i32::try_from(page as i64) {
                    self.asm.compare_immediate(entry, page);
                } else {
                    self.asm.constant(first, page);
                    self.asm.compare(first, entry);
                }
            }
            Address::Based { base, displacement } => {
                let last = displacement.checked_add(beyond).ok_or(Declined)?;
                self.asm.lea(first, Mem::new(base, last));
                self.linear(address, second);
                self.asm.shift_right(second, INDEX_SHIFT);
                self.entry(second);
                self.asm.and_immediate(first, page_mask);
                self.asm.compare(first, entry);
            }
            Address::Computed { base: Some(base), index, displacement, narrow: false, segment: None } => {
                let last = (displacement as i32).checked_add(beyond).ok_or(Declined)?;
                self.linear(address, second);
                self.asm.shift_right(second, INDEX_SHIFT);
                self.entry(second);
                self.asm.lea(first, Mem { base, index, displacement: last, space: Space::Host });
                self.asm.and_immediate(first, page_mask);
                self.asm.compare(first, entry);
            }
            Address::Computed { .. } | Address::Ready => {
                // What is ready can't be computed again.
                let last = if matches!(address, Address::Ready) { third } else { first };
                self.linear(address, first);
                self.asm.mov(second, first);
                self.asm.shift_right(second, INDEX_SHIFT);
                self.entry(second);
                self.asm.lea(last, Mem::new(first, beyond));
                self.asm.and_immediate(last, page_mask);
                self.asm.compare(last, entry);
            }
        }
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        let kind = ColdKind::Miss { address, access, temporaries: [first, second] };
        self.note(from, resume, kind);
        if let Some((base, displacement)) = by {
            self.know_looked_up(base, displacement, access);
        } else {
            self.address_again(address, first);
            self.restore_carry();
            self.asm.load(second, Mem::new(second, ADDEND));
        }
        Ok(match address {
            Address::Based { base, displacement } => Mem::indexed(base, second, displacement),
            Address::Computed { .. } | Address::Ready => Mem::indexed(first, second, 0),
            Address::Absolute(address) => {
                self.known.know_absolute(address, access.write);
                self.absolute_place(address)
            }
        })
    }

    /// The place of a constant address whose page's addend is in the second temporary, and the page in the first unless that has 32 bits.
    fn absolute_place(&self, address: u64) -> Mem {
        let [first, second, _] = self.registers.temporaries;
        match i32::try_from(address as i64) {
            Ok(address) => Mem::new(second, address),
            Err(_) => Mem::indexed(first, second, (address & !PAGE_MASK) as i32),
        }
    }

    /// Of an address that is computed: does that again, where a third register would have to be free otherwise.
    fn address_again(&mut self, address: Address, to: Reg) {
        if matches!(address, Address::Computed { .. }) {
            self.linear(address, to);
        }
    }

    /// Looks an access up in a recent page.
    fn recent_lookup(&mut self, page: usize, address: Address, access: Access) -> Mem {
        self.keep_flags();
        self.lose_host_flags();
        let [first, second, _] = self.registers.temporaries;
        let from = self.compare_recent(page, address, access, [first, second]);
        let resume = self.asm.code.len();
        self.note(from, resume, ColdKind::Recent { page, address, access, temporaries: [first, second] });
        self.restore_carry();
        self.address_again(address, first);
        match address {
            Address::Based { base, displacement } => Mem::indexed(base, second, displacement),
            _ => Mem::indexed(first, second, 0),
        }
    }

    /// Compares an address with a recent page, and jumps if it is not in that. How far it is from the page is in the first register then, the
    /// page's addend in the second.
    pub(super) fn compare_recent(
        &mut self,
        page: usize,
        address: Address,
        access: Access,
        [first, second]: [Reg; 2],
    ) -> Jump {
        let field = |offset: usize| Mem::new(second, recent_offset(page) + offset as i32);
        self.asm.load(second, Mem::state(TLB));
        self.linear(address, first);
        self.asm.subtract_from(first, field(offset_of!(Recent, page)));
        let limit = if access.write { offset_of!(Recent, write) } else { offset_of!(Recent, read) };
        self.asm.compare(first, field(limit));
        let from = self.asm.jump_if(condition::ABOVE_OR_EQUAL);
        self.asm.load(second, field(offset_of!(Recent, addend)));
        from
    }

    /// From the offset in an endless array to the entry that says whether code may be fetched.
    pub(super) fn fetch_entry(&mut self, register: Reg) {
        self.asm.and_from(register, Mem::state(FETCH_TLB_MASK));
        self.asm.add_from(register, Mem::state(FETCH_TLB));
    }

    /// From the offset in an endless array to the entry.
    fn entry(&mut self, register: Reg) {
        self.asm.and_from(register, Mem::state(TLB_MASK));
        self.asm.add_from(register, Mem::state(TLB));
    }
}
