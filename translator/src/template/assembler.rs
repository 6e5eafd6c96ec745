//! The instructions that the translator adds around guest instructions, one function each over [`super::encoding`], and guest
//! instructions over host registers: by their [form](super::form), or, if they have none, by iced-x86.

use core::mem::offset_of;

use iced_x86::{Encoder, Instruction};
use x86::CpuState;

use super::{
    encoding::{Code, Immediate, Opcode, Operand},
    form::Form,
};
use crate::{
    Part,
    addresses::{AddressField, is_low_half},
};

/// Number of a host register.
pub(super) type Reg = u8;

pub(super) const RAX: Reg = 0;
pub(super) const RCX: Reg = 1;
pub(super) const RDX: Reg = 2;
pub(super) const RSI: Reg = 6;
pub(super) const RDI: Reg = 7;
/// The prefix of GS.
const WINDOW_PREFIX: u64 = 0x65;

/// Holds the address of `CpuState`.
pub(super) const STATE: Reg = 15;

/// Host condition codes, as encoded, and two more: the opposite of one differs from it in the lowest bit.
pub(super) mod condition {
    pub const BELOW: u8 = 2;
    pub const ABOVE_OR_EQUAL: u8 = 3;
    pub const EQUAL: u8 = 4;
    pub const NOT_EQUAL: u8 = 5;
    pub const SIGN: u8 = 8;
    /// RCX is 0.
    pub const COUNT_ZERO: u8 = 16;
    /// RCX is not 0.
    pub const COUNT_NOT_ZERO: u8 = 17;
}

/// Whose an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Space {
    /// The host's.
    Host,
    /// The guest's: the access is in that part of the [window](super::window).
    Guest(Part),
}

/// `base + (index << scale) + displacement`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mem {
    pub base: Reg,
    pub index: Option<(Reg, u8)>,
    pub displacement: i32,
    /// Whose address it is.
    pub space: Space,
}

impl Mem {
    pub const fn new(base: Reg, displacement: i32) -> Self {
        Self { base, index: None, displacement, space: Space::Host }
    }

    /// A field of `CpuState`.
    pub const fn state(offset: usize) -> StateField {
        StateField(offset as i32)
    }

    pub const fn indexed(base: Reg, index: Reg, displacement: i32) -> Self {
        Self { base, index: Some((index, 0)), displacement, space: Space::Host }
    }
}

/// A field of `CpuState`, at that offset from its beginning: a constant, mostly, and so is most of what it is encoded as.
#[derive(Clone, Copy, Debug)]
pub(super) struct StateField(pub i32);

/// What instructions access memory at.
pub(super) trait Memory: Into<Operand> {}

impl Memory for Mem {}
impl Memory for StateField {}

/// A forward jump whose target is not known yet.
#[derive(Clone, Copy)]
#[must_use]
pub(super) struct Jump(usize);

/// Code being written.
pub(super) struct Assembler {
    pub code: Code,
    /// Constants in it that may be addresses in the kernel's image: all, whoever wrote them.
    pub addresses: Vec<AddressField>,
    /// Where instructions begin that access the window, of the guest's current one.
    pub windows: Vec<u32>,
    encoder: Encoder,
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) =
        $opcode:expr, $register:expr, $operand:expr $(, $immediate:ident $value:expr)?;)*) => {
        $($(#[$doc])* #[inline(always)] pub fn $name(&mut self, $($argument: $type),*) {
            let immediate = instructions!(@immediate $($immediate $value)?);
            self.emit(const { $opcode }, $register, $operand.into(), immediate);
        })*
    };
    (@immediate) => { (0, Immediate::None) };
    (@immediate byte $value:expr) => { (u32::from($value as u8), Immediate::Byte) };
    (@immediate word $value:expr) => { ($value as u32, Immediate::Word) };
}

impl Default for Assembler {
    fn default() -> Self {
        Self { code: Code::default(), addresses: Vec::new(), windows: Vec::new(), encoder: Encoder::new(64) }
    }
}

impl Jump {
    /// Where its displacement of 32 bits stands.
    pub fn displacement(self) -> u32 {
        self.0 as u32 - 4
    }
}

impl Assembler {
    instructions! {
        mov(to: Reg, from: Reg) = Opcode::new(0x8b).wide(), to, from;
        load(to: Reg, from: impl Memory) = Opcode::new(0x8b).wide(), to, from;
        /// The low 32 bits, zero-extended.
        load32(to: Reg, from: impl Memory) = Opcode::new(0x8b), to, from;
        /// The low 8 bits; the others keep.
        load_low8(to: Reg, from: impl Memory) = Opcode::new(0x8a).low_register(), to, from;
        /// The low 16 bits; the others keep.
        load_low16(to: Reg, from: impl Memory) = Opcode::new(0x8b).word(), to, from;
        /// The low 8 bits, zero-extended.
        load8(to: Reg, from: impl Memory) = Opcode::second(0xb6), to, from;
        /// The low 16 bits, zero-extended.
        load16(to: Reg, from: impl Memory) = Opcode::second(0xb7), to, from;
        sign_extend16(to: Reg, from: Reg) = Opcode::second(0xbf).wide(), to, from;
        sign_extend32(to: Reg, from: Reg) = Opcode::new(0x63).wide(), to, from;
        store(to: impl Memory, from: Reg) = Opcode::new(0x89).wide(), from, to;
        store8(to: impl Memory, from: Reg) = Opcode::new(0x88).low_register(), from, to;
        store16(to: impl Memory, from: Reg) = Opcode::new(0x89).word(), from, to;
        store32(to: impl Memory, from: Reg) = Opcode::new(0x89), from, to;
        /// Stores a sign-extended immediate, 64 bits.
        store_immediate(to: impl Memory, value: i32) = Opcode::new(0xc7).wide(), 0, to, word value;
        lea(to: Reg, from: impl Memory) = Opcode::new(0x8d).wide(), to, from;
        /// The low 32 bits, zero-extended.
        lea32(to: Reg, from: impl Memory) = Opcode::new(0x8d), to, from;
        /// The low 16 bits; the others keep.
        lea16(to: Reg, from: impl Memory) = Opcode::new(0x8d).word(), to, from;
        add_from(to: Reg, from: impl Memory) = Opcode::new(0x03).wide(), to, from;
        subtract_from(to: Reg, from: impl Memory) = Opcode::new(0x2b).wide(), to, from;
        and_from(to: Reg, from: impl Memory) = Opcode::new(0x23).wide(), to, from;
        and_immediate(to: Reg, value: i32) = Opcode::new(0x81).wide(), 4, to, word value;
        and_memory(to: impl Memory, value: i32) = Opcode::new(0x81).wide(), 4, to, word value;
        or_memory(to: impl Memory, value: i32) = Opcode::new(0x81).wide(), 1, to, word value;
        add(to: Reg, from: Reg) = Opcode::new(0x03).wide(), to, from;
        subtract(to: Reg, from: Reg) = Opcode::new(0x2b).wide(), to, from;
        negate(to: Reg) = Opcode::new(0xf7).wide(), 3, to;
        or(to: Reg, from: Reg) = Opcode::new(0x0b).wide(), to, from;
        xor(to: Reg, from: Reg) = Opcode::new(0x33).wide(), to, from;
        test(a: Reg, b: Reg) = Opcode::new(0x85).wide(), b, a;
        compare(a: Reg, b: impl Memory) = Opcode::new(0x3b).wide(), a, b;
        compare_registers(a: Reg, b: Reg) = Opcode::new(0x3b).wide(), a, b;
        compare_registers8(a: Reg, b: Reg) = Opcode::new(0x3a).low_register().low_operand(), a, b;
        compare_registers16(a: Reg, b: Reg) = Opcode::new(0x3b).word(), a, b;
        compare_registers32(a: Reg, b: Reg) = Opcode::new(0x3b), a, b;
        compare_immediate(a: impl Memory, b: i32) = Opcode::new(0x81).wide(), 7, a, word b;
        compare_immediate_register(a: Reg, b: i8) = Opcode::new(0x83).wide(), 7, a, byte b;
        compare_constant(a: Reg, b: i32) = Opcode::new(0x81).wide(), 7, a, word b;
        compare_immediate_register32(a: Reg, b: i32) = Opcode::new(0x81), 7, a, word b;
        compare_immediate32(a: impl Memory, b: i8) = Opcode::new(0x83), 7, a, byte b;
        shift_right(to: Reg, by: u8) = Opcode::new(0xc1).wide(), 5, to, byte by;
        shift_left(to: Reg, by: u8) = Opcode::new(0xc1).wide(), 4, to, byte by;
        shift_right_signed(to: Reg, by: u8) = Opcode::new(0xc1).wide(), 7, to, byte by;
        rotate_left(to: Reg, by: u8) = Opcode::new(0xc1).wide(), 0, to, byte by;
        rotate_right(to: Reg, by: u8) = Opcode::new(0xc1).wide(), 1, to, byte by;
        move_low8(to: Reg, from: Reg) = Opcode::new(0x8a).low_register().low_operand(), to, from;
        /// 64 bits; the immediate has 8, sign-extended.
        add_small_immediate(to: impl Memory, value: i8) = Opcode::new(0x83).wide(), 0, to, byte value;
        /// The same of 32.
        add_large_immediate(to: impl Memory, value: i32) = Opcode::new(0x81).wide(), 0, to, word value;
        compare_immediate8(to: Reg, value: i8) = Opcode::new(0x80).low_operand(), 7, to, byte value;
        set_overflow(to: Reg) = Opcode::second(0x90).low_operand(), 0, to;
        move_if_not_zero(to: Reg, from: Reg) = Opcode::second(0x45).wide(), to, from;
        jump_to(to: impl Memory) = Opcode::new(0xff), 4, to;
        call(to: impl Memory) = Opcode::new(0xff), 2, to;
        load_xmm(to: Reg, from: impl Memory) = Opcode::second(0x10), to, from;
        store_xmm(to: impl Memory, from: Reg) = Opcode::second(0x11), from, to;
    }

    pub fn push(&mut self, from: Reg) {
        self.code.of_register(false, 0x50, from, (0, 0));
    }

    pub fn pop(&mut self, to: Reg) {
        self.code.of_register(false, 0x58, to, (0, 0));
    }

    #[inline(always)]
    fn emit(&mut self, opcode: Opcode, register: u8, operand: Operand, immediate: (u32, Immediate)) {
        match operand {
            Operand::Register(operand) => self.code.of_registers(opcode, register, operand, immediate),
            Operand::Memory(mem) => {
                if let Some(at) = self.code.of_memory(opcode, register, mem, immediate) {
                    self.note_address(at, mem.displacement as u32);
                }
            }
            Operand::State(StateField(offset)) => self.code.of_state(opcode, register, offset, immediate),
        }
        if immediate.1 == Immediate::Word {
            self.note_address(self.code.len() - 4, immediate.0);
        }
    }

    /// Loads a constant; changes no flags.
    pub fn constant(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            self.code.of_register(false, 0xb8, to, (value.into(), 4));
            self.note_address(self.code.len() - 4, value);
        } else if let Ok(value) = i32::try_from(value as i64) {
            self.emit(const { Opcode::new(0xc7).wide() }, 0, to.into(), (value as u32, Immediate::Word));
        } else {
            self.code.of_register(true, 0xb8, to, (value, 8));
        }
    }

    /// Loads a constant of our own, which is no address whatever it looks like; changes no flags.
    pub fn number(&mut self, to: Reg, value: u32) {
        let known = self.addresses.len();
        self.constant(to, value.into());
        self.addresses.truncate(known);
    }

    /// Loads `index`, a part of the TLB array's offset that is computed from `address`; changes no flags.
    pub fn tlb_index(&mut self, to: Reg, index: u64, address: u64) {
        self.constant(to, index);
        self.addresses.extend(AddressField::tlb_index(self.code.len() - 4, address));
    }

    /// Stores a 64-bit constant, by way of `temporary` if it is no immediate.
    pub fn store_constant(&mut self, to: StateField, value: u64, temporary: Reg) {
        if let Ok(value) = i32::try_from(value as i64) {
            self.store_immediate(to, value);
        } else {
            self.constant(temporary, value);
            self.store(to, temporary);
        }
    }

    /// Stores flags to AH.
    pub fn lahf(&mut self) {
        self.code.put(0x9f, 1);
    }

    /// Loads flags but OF from AH.
    pub fn sahf(&mut self) {
        self.code.put(0x9e, 1);
    }

    pub fn add_immediate(&mut self, to: impl Memory, value: i32) {
        match i8::try_from(value) {
            Ok(value) => self.add_small_immediate(to, value),
            Err(_) => self.add_large_immediate(to, value),
        }
    }

    /// Has the host fetch what the jump cache, which begins at `base`, has for `rip` at an offset.
    pub fn prefetch_jump(&mut self, base: Reg, offset: i32, rip: u64) {
        debug_assert!(base & 7 != 4, "that means an index");
        // PREFETCHT0, with a displacement of 32 bits whatever it is, so that it can move.
        let modrm = 0x80 | 1 << 3 | base & 7;
        self.code.put(u64::from_le_bytes([0x40 | base >> 3, 0x0f, 0x18, modrm, 0, 0, 0, 0]), 4);
        self.addresses.extend(AddressField::jump_index(self.code.len(), rip));
        self.code.put(offset as u64, 4);
    }

    /// HLT, at which a process faults.
    pub fn halt(&mut self) {
        self.code.put(0xf4, 1);
    }

    pub fn ret(&mut self) {
        self.code.put(0xc3, 1);
    }

    /// Jumps forward if a condition holds.
    pub fn jump_if(&mut self, condition: u8) -> Jump {
        match condition {
            // JRCXZ reaches only what is near.
            condition::COUNT_ZERO => {
                self.code.put(0x05eb_02e3, 4);
                self.code.put(0xe9, 5);
            }
            condition::COUNT_NOT_ZERO => self.code.put(0xe9_05e3, 7),
            _ => self.code.put(0x800f | u64::from(condition) << 8, 6),
        }
        Jump(self.code.len())
    }

    /// Jumps forward.
    pub fn jump(&mut self) -> Jump {
        self.code.put(0xe9, 5);
        Jump(self.code.len())
    }

    /// Calls what comes later.
    pub fn call_forward(&mut self) -> Jump {
        self.code.put(0xe8, 5);
        Jump(self.code.len())
    }

    /// Jumps back.
    pub fn jump_back(&mut self, to: usize) {
        match i8::try_from(to as isize - (self.code.len() as isize + 2)) {
            Ok(distance) => self.code.put(0xeb | u64::from(distance as u8) << 8, 2),
            Err(_) => {
                let jump = self.jump();
                self.bind_at(jump, to);
            }
        }
    }

    /// Makes a jump lead here.
    pub fn bind(&mut self, jump: Jump) {
        self.bind_at(jump, self.code.len());
    }

    pub fn bind_at(&mut self, jump: Jump, target: usize) {
        let distance = target.wrapping_sub(jump.0) as i32;
        self.patch32(jump.0 - 4, distance);
    }

    /// Overwrites 32 bits.
    pub fn patch32(&mut self, at: usize, value: i32) {
        self.code.bytes_mut()[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Overwrites 64 bits.
    pub fn patch64(&mut self, at: usize, value: u64) {
        self.code.bytes_mut()[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// `lea to, [rip + …]`; gives the place of the displacement.
    pub fn lea_relative(&mut self, to: Reg) -> u32 {
        self.code.put(u64::from(0x48 | (to >> 3) << 2) | 0x8d << 8 | u64::from(5 | (to & 7) << 3) << 16, 7);
        self.code.len() as u32 - 4
    }

    /// `sub dword [rip + …], 1`; gives the place of the displacement, which an immediate byte follows.
    pub fn decrement_relative(&mut self) -> u32 {
        self.code.put(0x0001_0000_0000_2d83, 7);
        self.code.len() as u32 - 5
    }

    /// `mov to, …` of 64 bits to be filled in; gives their place.
    pub fn constant_to_come(&mut self, to: Reg) -> u32 {
        self.code.of_register(true, 0xb8, to, (0, 8));
        self.code.len() as u32 - 8
    }

    /// An instruction with that in ModRM, and perhaps an immediate.
    #[inline]
    pub fn of_form(&mut self, form: &Form, register: u8, operand: Operand, immediate: u64) {
        let value = if form.immediate == Immediate::Byte { immediate & 0xff } else { immediate };
        self.emit(form.opcode, register, operand, (value as u32, form.immediate));
    }

    /// A guest instruction over host registers. `false`: there is no such encoding.
    pub fn instruction(&mut self, instruction: &Instruction) -> bool {
        let mut buffer = self.encoder.take_buffer();
        buffer.clear();
        self.encoder.set_buffer(buffer);
        if self.encoder.encode(instruction, 0).is_err() {
            return false;
        }
        let constants = self.encoder.get_constant_offsets();
        let buffer = self.encoder.take_buffer();
        for (offset, size) in [
            (constants.displacement_offset(), constants.displacement_size()),
            (constants.immediate_offset(), constants.immediate_size()),
        ] {
            let word = |at: usize| {
                let bytes = buffer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
                bytes.map_or(0, u32::from_le_bytes)
            };
            if size == 4 || size == 8 && word(offset + 4) == u32::MAX {
                self.note_address(self.code.len() + offset, word(offset));
            }
        }
        self.code.extend(&buffer);
        self.encoder.set_buffer(buffer);
        true
    }

    /// An access to memory is about to be written, which has its prefix, if it needs one, from here.
    #[inline]
    pub fn begin_access(&mut self, mem: Mem) {
        if mem.space != Space::Host {
            self.note_window();
            if mem.space == Space::Guest(Part::High) {
                self.code.put(WINDOW_PREFIX, 1);
            }
        }
    }

    /// An access to the window is about to be written, prefix and all.
    pub fn note_window(&mut self) {
        self.windows.push(self.code.len() as u32);
    }

    /// Notes a constant of 32 bits, or the low half of one that has ones above it, if it may be an address.
    #[inline]
    fn note_address(&mut self, offset: usize, value: u32) {
        if is_low_half(value) {
            self.addresses.push(AddressField::value(offset, value));
        }
    }
}

/// Offset in `CpuState` of a general register.
pub(super) const fn gpr_offset(index: u8) -> usize {
    offset_of!(CpuState, gpr) + index as usize * 8
}

/// Offset in `CpuState` of an XMM register.
pub(super) const fn xmm_offset(index: u8) -> usize {
    offset_of!(CpuState, xmm) + index as usize * 16
}
