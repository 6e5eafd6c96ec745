//! Guest registers in SSA values: which value each has, and which differ from `CpuState`.

use core::mem::offset_of;

use cranelift_codegen::ir::{BlockArg, InstBuilder, Value, types};
use semantics::Register;
use x86::{CpuState, Width};

use super::{
    Lifter,
    count::Count,
    flags::{FLAGS, Source},
    memory::Found,
};
use crate::{locality, region::Registers};

/// A general register. Without values it is in `CpuState`.
#[derive(Clone, Copy, Default)]
pub(super) struct Gpr {
    /// All 64 bits.
    full: Option<Value>,
    /// Bits 31..0. If `full` is not known, the upper half is zero.
    low: Option<Value>,
}

impl Gpr {
    /// Whether it is the same as it was, though more may be known of it by now.
    fn is_still(self, before: Self) -> bool {
        match before.full {
            Some(_) => self.full == before.full,
            None => before.low.is_some() && self.low == before.low,
        }
    }
}

/// A set of registers and flags.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Set {
    pub gpr: u16,
    pub xmm: u16,
    pub flags: u8,
}

impl Set {
    const ALL: Self = Self { gpr: u16::MAX, xmm: u16::MAX, flags: (1 << FLAGS) - 1 };

    fn add(&mut self, other: Self) {
        self.gpr |= other.gpr;
        self.xmm |= other.xmm;
        self.flags |= other.flags;
    }
}

/// What is known of the guest's registers and flags at one place.
#[derive(Clone, Copy, Default)]
pub(super) struct RegisterFile {
    gpr: [Gpr; 16],
    xmm: [Option<Value>; 16],
    pub flags: [Source; FLAGS],
    /// Newer here than in `CpuState`.
    pub dirty: Set,
    /// Written since the innermost `when` began.
    pub written: Set,
    /// The guest's MXCSR is in the host's register.
    pub mxcsr_loaded: bool,
    /// Pages that accesses have looked up, the latest first.
    pub found: [Option<Found>; 2],
    /// The flags in `CpuState` that are not dirty here are not lazy.
    pub settled: bool,
    /// Where instructions are counted.
    pub count: Count,
    /// General registers that point anywhere ([`crate::locality`]).
    pub strange: locality::Set,
}

impl RegisterFile {
    /// A general register has that value.
    pub fn know_gpr(&mut self, index: usize, value: Value) {
        self.gpr[index] = Gpr { full: Some(value), low: None };
    }

    /// An XMM register has that value.
    pub fn know_xmm(&mut self, index: usize, value: Value) {
        self.xmm[index] = Some(value);
    }

    /// The same, but with the given registers, and unless `flags` the flags, not dirty.
    pub fn without(mut self, registers: Registers, flags: bool) -> Self {
        self.dirty.gpr &= !registers.gpr;
        self.dirty.xmm &= !registers.xmm;
        if !flags {
            self.dirty.flags = 0;
        }
        self
    }
}

const fn gpr_offset(index: usize) -> usize {
    offset_of!(CpuState, gpr) + index * 8
}

const fn xmm_offset(index: usize) -> usize {
    offset_of!(CpuState, xmm) + index * 16
}

impl Lifter<'_> {
    /// Reads a general register or part of one.
    pub(super) fn read_gpr(&mut self, register: Register) -> Value {
        let index = usize::from(register.index & 15);
        match register.width {
            Width::Qword => self.gpr_full(index),
            Width::Dword => self.gpr_low(index),
            width => {
                let gpr = self.file.gpr[index];
                let mut value = match (gpr.full, gpr.low) {
                    (None, Some(low)) => low,
                    _ => self.gpr_full(index),
                };
                if register.high {
                    value = self.b.ins().ushr_imm_u(value, 8);
                }
                self.reduce(width, value)
            }
        }
    }

    /// Writes a general register or part of one.
    pub(super) fn write_gpr(&mut self, register: Register, value: Value) {
        let index = usize::from(register.index & 15);
        let gpr = match register.width {
            Width::Qword => Gpr { full: Some(value), low: None },
            Width::Dword => Gpr { full: self.known_extension(value), low: Some(value) },
            width => {
                let old = self.gpr_full(index);
                let shift = if register.high { 8 } else { 0 };
                let kept = self.b.ins().band_imm_s(old, !((width.mask() << shift) as i64));
                let mut new = self.extend(value);
                if register.high {
                    new = self.b.ins().ishl_imm_u(new, 8);
                }
                Gpr { full: Some(self.b.ins().bor(kept, new)), low: None }
            }
        };
        self.file.gpr[index] = gpr;
        self.file.dirty.gpr |= 1 << index;
        self.file.written.gpr |= 1 << index;
    }

    pub(super) fn gpr_full(&mut self, index: usize) -> Value {
        let gpr = self.file.gpr[index];
        let full = match (gpr.full, gpr.low) {
            (Some(full), _) => return full,
            (None, Some(low)) => self.extend(low),
            (None, None) => self.state_load(types::I64, gpr_offset(index)),
        };
        self.file.gpr[index].full = Some(full);
        full
    }

    fn gpr_low(&mut self, index: usize) -> Value {
        if let Some(low) = self.file.gpr[index].low {
            return low;
        }
        let full = self.gpr_full(index);
        let low = self.reduce(Width::Dword, full);
        self.file.gpr[index].low = Some(low);
        low
    }

    /// Has `CpuState` hold a register, for a function that is about to be called.
    pub(super) fn store_gpr(&mut self, index: usize) {
        if self.file.dirty.gpr & 1 << index != 0 {
            let full = self.gpr_full(index);
            self.state_store(full, gpr_offset(index));
        }
    }

    /// Takes a register from `CpuState`, where a function has changed it, now and for a restart of the instruction.
    pub(super) fn reload_gpr(&mut self, index: usize) {
        let full = self.state_load(types::I64, gpr_offset(index));
        let gpr = Gpr { full: Some(full), low: None };
        for file in [&mut self.file, &mut self.start] {
            file.gpr[index] = gpr;
            file.dirty.gpr &= !(1 << index);
        }
        self.file.written.gpr |= 1 << index;
    }

    /// Reads an XMM register, as I8X16.
    pub(super) fn read_xmm(&mut self, index: u8) -> Value {
        let index = usize::from(index & 15);
        if let Some(value) = self.file.xmm[index] {
            return value;
        }
        let value = self.state_load(types::I8X16, xmm_offset(index));
        self.file.xmm[index] = Some(value);
        value
    }

    /// Writes an XMM register.
    pub(super) fn write_xmm(&mut self, index: u8, value: Value) {
        let index = usize::from(index & 15);
        self.file.xmm[index] = Some(value);
        self.file.dirty.xmm |= 1 << index;
        self.file.written.xmm |= 1 << index;
    }

    /// Stores what differs from `CpuState` in `file`. Changes no knowledge: the values may be stored again on another
    /// path.
    pub(super) fn write_back(&mut self, file: &RegisterFile) {
        self.write_back_count(file);
        self.write_back_state(file);
    }

    /// The same without the count of instructions.
    pub(super) fn write_back_state(&mut self, file: &RegisterFile) {
        let known = self.file;
        self.write_back_registers(file);
        if self.flushed {
            // What goes on after the cold path counts on the words.
            self.write_back_flag_words(file);
        } else if file.dirty.flags != 0 {
            self.write_back_flags(file);
        }
        self.file = known;
    }

    fn write_back_registers(&mut self, file: &RegisterFile) {
        for index in bits(file.dirty.gpr) {
            let gpr = file.gpr[index];
            let value = match (gpr.full, gpr.low) {
                (Some(full), _) => full,
                (None, Some(low)) => self.extend(low),
                (None, None) => continue,
            };
            self.state_store(value, gpr_offset(index));
        }
        for index in bits(file.dirty.xmm) {
            if let Some(value) = file.xmm[index] {
                self.state_store(value, xmm_offset(index));
            }
        }
    }

    /// Before an access to memory: stores the general and XMM registers as they were at the instruction's start, so
    /// that the access's cold path needs to store none of them. Each change of a register is stored once that way, and
    /// what is overwritten before anything could look is not.
    pub(super) fn store_early(&mut self) {
        if self.depth != 0 {
            // What is stored here is not stored where the condition does not hold.
            return;
        }
        let start = self.start;
        let known = self.file;
        self.write_back_registers(&start);
        self.file = known;
        self.start.dirty = Set { flags: start.dirty.flags, ..Set::default() };
        for index in bits(start.dirty.gpr) {
            if self.file.gpr[index].is_still(start.gpr[index]) {
                self.file.dirty.gpr &= !(1 << index);
            }
        }
        for index in bits(start.dirty.xmm) {
            if self.file.xmm[index] == start.xmm[index] {
                self.file.dirty.xmm &= !(1 << index);
            }
        }
    }

    /// Stores everything, flags as settled words, and forgets it: what follows may look at or change `CpuState`.
    pub(super) fn flush(&mut self) {
        let file = self.file;
        self.write_back_registers(&file);
        self.write_back_flag_words(&file);
        self.flushed = true;
        self.file = RegisterFile {
            written: Set::ALL,
            settled: true,
            mxcsr_loaded: file.mxcsr_loaded,
            found: file.found,
            count: file.count,
            ..RegisterFile::default()
        };
    }

    /// Begins an arm that is run only if a condition holds, at the (still empty) current block. Returns what is known
    /// before it, for [`Lifter::join`].
    pub(super) fn begin_arm(&mut self) -> RegisterFile {
        let before = self.file;
        self.file.written = Set::default();
        before
    }

    /// Ends an arm that ran to its end: merges what is known after it (the current place) with `before`, which holds at
    /// the (still empty) block `other`. What follows is where both meet.
    pub(super) fn join(&mut self, before: RegisterFile, other: cranelift_codegen::ir::Block) {
        let mut arm = self.file;
        let changed = arm.written;
        let joined = self.b.create_block();
        let mut result = before;
        let mut from_arm: Vec<BlockArg> = Vec::new();
        let mut from_other: Vec<BlockArg> = Vec::new();

        // The knowledge of one side is needed in the other's block only as stored values, so each side is emitted in
        // its own block, register by register.
        let dirty = Set {
            gpr: arm.dirty.gpr | before.dirty.gpr,
            xmm: arm.dirty.xmm | before.dirty.xmm,
            flags: arm.dirty.flags | before.dirty.flags,
        };
        for index in bits(changed.gpr) {
            result.gpr[index] = Gpr::default();
            if dirty.gpr & 1 << index == 0 {
                continue;
            }
            let narrow = arm.gpr[index].full.is_none()
                && before.gpr[index].full.is_none()
                && arm.gpr[index].low.is_some()
                && before.gpr[index].low.is_some();
            self.file = arm;
            let ours = if narrow { self.gpr_low(index) } else { self.gpr_full(index) };
            arm = self.file;
            from_arm.push(ours.into());
            let ty = if narrow { types::I32 } else { types::I64 };
            let parameter = self.b.append_block_param(joined, ty);
            result.gpr[index] = if narrow {
                Gpr { full: None, low: Some(parameter) }
            } else {
                Gpr { full: Some(parameter), low: None }
            };
        }
        for index in bits(changed.xmm) {
            result.xmm[index] = None;
            if dirty.xmm & 1 << index != 0 {
                self.file = arm;
                let ours = self.read_xmm(index as u8);
                arm = self.file;
                from_arm.push(ours.into());
                result.xmm[index] = Some(self.b.append_block_param(joined, types::I8X16));
            }
        }
        for flag in bits(changed.flags.into()) {
            result.flags[flag] = Source::State;
            if dirty.flags & 1 << flag != 0 {
                let ours = self.flag_word(flag, arm.flags[flag]);
                from_arm.push(ours.into());
                result.flags[flag] = Source::Word(self.b.append_block_param(joined, types::I64));
            }
        }
        self.b.ins().jump(joined, &from_arm);

        self.b.switch_to_block(other);
        self.file = before;
        for index in bits(changed.gpr) {
            if dirty.gpr & 1 << index != 0 {
                let narrow = result.gpr[index].full.is_none();
                let theirs = if narrow { self.gpr_low(index) } else { self.gpr_full(index) };
                from_other.push(theirs.into());
            }
        }
        for index in bits(changed.xmm) {
            if dirty.xmm & 1 << index != 0 {
                let theirs = self.read_xmm(index as u8);
                from_other.push(theirs.into());
            }
        }
        for flag in bits(changed.flags.into()) {
            if dirty.flags & 1 << flag != 0 {
                let theirs = self.flag_word(flag, before.flags[flag]);
                from_other.push(theirs.into());
            }
        }
        self.b.ins().jump(joined, &from_other);

        self.b.switch_to_block(joined);
        result.dirty.gpr = before.dirty.gpr & !changed.gpr | dirty.gpr & changed.gpr;
        result.dirty.xmm = before.dirty.xmm & !changed.xmm | dirty.xmm & changed.xmm;
        result.dirty.flags = before.dirty.flags & !changed.flags | dirty.flags & changed.flags;
        result.written = before.written;
        result.written.add(changed);
        self.file = result;
    }
}

/// Numbers of the bits that are set.
pub(super) fn bits(mut set: u16) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let index = set.trailing_zeros() as usize;
        set &= set.wrapping_sub(1);
        (index < 16).then_some(index)
    })
}
