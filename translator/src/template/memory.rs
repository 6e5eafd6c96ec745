//! Guest memory: the inline TLB lookup (`memory::tlb` has its layout), which gives a host operand.
//!
//! A miss has the TLB filled and looks again, so the access itself is written once, whatever it is. What the TLB can't
//! answer at all (page crossings, MMIO, code pages, faults, atomic operands out of alignment) is the interpreter's.

use core::mem::offset_of;

use memory::tlb::{ENTRY_SHIFT, Entry, MAX_ENTRIES};
use semantics::{Insn, MemoryOperand};
use x86::{CpuState, PAGE_MASK, PAGE_SHIFT, Segment, SegmentRegister, Width};

use super::{
    Declined, Template,
    assembler::{Mem, Reg, condition},
    cold::{Cold, ColdKind},
};

const TLB: usize = offset_of!(CpuState, tlb);
const TLB_MASK: usize = offset_of!(CpuState, tlb_mask);
const FETCH_TLB: usize = offset_of!(CpuState, fetch_tlb);
const FETCH_TLB_MASK: usize = offset_of!(CpuState, fetch_tlb_mask);
const ADDEND: i32 = offset_of!(Entry, addend) as i32;
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

    const fn tag(self) -> i32 {
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
                    Some(base) => Mem { base, index, displacement: displacement as i32 },
                    None => {
                        let cut = if narrow { displacement & 0xffff_ffff } else { displacement };
                        self.asm.constant(to, cut);
                        Mem { base: to, index, displacement: 0 }
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

    /// Looks an access up; gives the host operand, which holds the first two temporaries (of [`Address::Based`]: the
    /// second). Settles the state first, since this may fault.
    pub(super) fn lookup(&mut self, address: Address, access: Access) -> Result<Mem, Declined> {
        let beyond = if access.aligned { 0 } else { i32::from(access.bytes) - 1 };
        self.settle();
        self.lose_host_flags();
        let [first, second, third] = self.registers.temporaries;
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
                self.asm.constant(second, address >> INDEX_SHIFT & most);
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
            Address::Computed { .. } | Address::Ready => {
                self.linear(address, first);
                self.asm.mov(second, first);
                self.asm.shift_right(second, INDEX_SHIFT);
                self.entry(second);
                self.asm.lea(third, Mem::new(first, beyond));
                self.asm.and_immediate(third, page_mask);
                self.asm.compare(third, entry);
            }
        }
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        let kind = ColdKind::Miss {
            address,
            bytes: access.bytes,
            alignment: if access.aligned { access.bytes - 1 } else { 0 },
            write: access.write,
            temporaries: [first, second],
        };
        self.cold.push(Cold { from, resume, index: self.index, kind });
        self.asm.load(second, Mem::new(second, ADDEND));
        Ok(match address {
            Address::Based { base, displacement } => Mem::indexed(base, second, displacement),
            Address::Computed { .. } | Address::Ready => Mem::indexed(first, second, 0),
            Address::Absolute(address) => match i32::try_from(address as i64) {
                Ok(address) => Mem::new(second, address),
                Err(_) => {
                    self.asm.constant(first, address);
                    Mem::indexed(first, second, 0)
                }
            },
        })
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
