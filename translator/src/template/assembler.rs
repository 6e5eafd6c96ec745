//! The bytes: what the translator adds around guest instructions, encoded by Cranelift's assembler (its instructions
//! are types, so an encoding costs some 10 ns), and guest instructions over host registers, encoded by iced-x86, which
//! takes any of them by its number. Only jumps, LAHF, SAHF and RET, which the former lacks, are written out.

use core::mem::offset_of;

use cranelift_assembler_x64::{
    Amode, AmodeOffset, AmodeOffsetPlusKnownOffset, CodeSink, DeferredTarget, GprMem, KnownOffset, NonRspGpr,
    Registers, Scale, TrapCode, inst,
};
use iced_x86::{Encoder, Instruction};
use x86::CpuState;

use crate::addresses::{AddressField, is_low_half};

/// Number of a host register.
pub(super) type Reg = u8;

pub(super) const RAX: Reg = 0;
pub(super) const RCX: Reg = 1;
pub(super) const RDX: Reg = 2;
pub(super) const RSI: Reg = 6;
pub(super) const RDI: Reg = 7;
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

/// Registers as plain numbers.
#[derive(Clone, Copy)]
pub(super) struct Host;

impl Registers for Host {
    type ReadGpr = Reg;
    type ReadWriteGpr = Reg;
    type WriteGpr = Reg;
    type ReadXmm = Reg;
    type ReadWriteXmm = Reg;
    type WriteXmm = Reg;
}

/// `base + (index << scale) + displacement`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Mem {
    pub base: Reg,
    pub index: Option<(Reg, u8)>,
    pub displacement: i32,
}

impl Mem {
    pub const fn new(base: Reg, displacement: i32) -> Self {
        Self { base, index: None, displacement }
    }

    /// A field of `CpuState`.
    pub const fn state(offset: usize) -> Self {
        Self::new(STATE, offset as i32)
    }

    pub const fn indexed(base: Reg, index: Reg, displacement: i32) -> Self {
        Self { base, index: Some((index, 0)), displacement }
    }
}

impl From<Mem> for Amode<Reg> {
    fn from(mem: Mem) -> Self {
        let simm32 = AmodeOffset::new(mem.displacement);
        match mem.index {
            None => {
                let simm32 = AmodeOffsetPlusKnownOffset { simm32, offset: None };
                Self::ImmReg { base: mem.base, simm32, trap: None }
            }
            Some((index, scale)) => Self::ImmRegRegShift {
                base: mem.base,
                index: NonRspGpr::new(index),
                scale: Scale::new(scale),
                simm32,
                trap: None,
            },
        }
    }
}

/// A register or memory operand.
pub(super) type Operand = GprMem<Reg, Reg>;

impl From<Mem> for Operand {
    fn from(mem: Mem) -> Self {
        Self::Mem(mem.into())
    }
}

/// A forward jump whose target is not known yet.
#[derive(Clone, Copy)]
#[must_use]
pub(super) struct Jump(usize);

/// Code being written.
pub(super) struct Assembler {
    pub code: Vec<u8>,
    /// Constants in it that may be addresses in the kernel's image: all, whoever wrote them.
    pub addresses: Vec<AddressField>,
    encoder: Encoder,
}

/// Where Cranelift's assembler puts its bytes.
struct Sink<'a> {
    code: &'a mut Vec<u8>,
    addresses: &'a mut Vec<AddressField>,
}

impl CodeSink for Sink<'_> {
    #[inline]
    fn put1(&mut self, value: u8) {
        self.code.push(value);
    }

    #[inline]
    fn put2(&mut self, value: u16) {
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    #[inline]
    fn put4(&mut self, value: u32) {
        if is_low_half(value) {
            self.addresses.push(AddressField::value(self.code.len(), value));
        }
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    #[inline]
    fn put8(&mut self, value: u64) {
        self.code.extend_from_slice(&value.to_le_bytes());
    }

    fn add_trap(&mut self, _: TrapCode) {}

    fn use_target(&mut self, _: DeferredTarget) {}

    fn known_offset(&self, _: KnownOffset) -> i32 {
        // Operands have none: see `From<Mem>`.
        0
    }
}

macro_rules! instructions {
    ($($(#[$doc:meta])* $name:ident($($argument:ident: $type:ty),*) = $inst:ident($($value:expr),*);)*) => {
        $($(#[$doc])* #[inline] pub fn $name(&mut self, $($argument: $type),*) {
            inst::$inst::<Host>::new($($value),*).encode(&mut self.sink());
        })*
    };
}

impl Default for Assembler {
    fn default() -> Self {
        Self { code: Vec::with_capacity(4096), addresses: Vec::new(), encoder: Encoder::new(64) }
    }
}

impl Jump {
    /// Where its displacement of 32 bits stands.
    pub fn displacement(self) -> u32 {
        self.0 as u32 - 4
    }
}

impl Assembler {
    #[inline]
    fn sink(&mut self) -> Sink<'_> {
        Sink { code: &mut self.code, addresses: &mut self.addresses }
    }

    instructions! {
        mov(to: Reg, from: Reg) = movq_rm(to, from);
        load(to: Reg, from: Mem) = movq_rm(to, Operand::from(from));
        /// The low 32 bits, zero-extended.
        load32(to: Reg, from: Mem) = movl_rm(to, Operand::from(from));
        /// The low 8 bits; the others keep.
        load_low8(to: Reg, from: Mem) = movb_rm(to, Operand::from(from));
        /// The low 16 bits; the others keep.
        load_low16(to: Reg, from: Mem) = movw_rm(to, Operand::from(from));
        /// The low 8 bits, zero-extended.
        load8(to: Reg, from: Mem) = movzbl_rm(to, Operand::from(from));
        /// The low 16 bits, zero-extended.
        load16(to: Reg, from: Mem) = movzwl_rm(to, Operand::from(from));
        sign_extend16(to: Reg, from: Reg) = movswq_rm(to, from);
        sign_extend32(to: Reg, from: Reg) = movslq_rm(to, from);
        store(to: Mem, from: Reg) = movq_mr(Operand::from(to), from);
        store8(to: Mem, from: Reg) = movb_mr(Operand::from(to), from);
        store16(to: Mem, from: Reg) = movw_mr(Operand::from(to), from);
        store32(to: Mem, from: Reg) = movl_mr(Operand::from(to), from);
        /// Stores a sign-extended immediate, 64 bits.
        store_immediate(to: Mem, value: i32) = movq_mi_sxl(Operand::from(to), value);
        lea(to: Reg, from: Mem) = leaq_rm(to, from);
        /// The low 32 bits, zero-extended.
        lea32(to: Reg, from: Mem) = leal_rm(to, from);
        /// The low 16 bits; the others keep.
        lea16(to: Reg, from: Mem) = leaw_rm(to, from);
        add_from(to: Reg, from: Mem) = addq_rm(to, Operand::from(from));
        subtract_from(to: Reg, from: Mem) = subq_rm(to, Operand::from(from));
        and_from(to: Reg, from: Mem) = andq_rm(to, Operand::from(from));
        and_immediate(to: Reg, value: i32) = andq_mi_sxl(to, value);
        and_memory(to: Mem, value: i32) = andq_mi_sxl(Operand::from(to), value);
        or_memory(to: Mem, value: i32) = orq_mi_sxl(Operand::from(to), value);
        add(to: Reg, from: Reg) = addq_rm(to, from);
        subtract(to: Reg, from: Reg) = subq_rm(to, from);
        negate(to: Reg) = negq_m(to);
        or(to: Reg, from: Reg) = orq_rm(to, from);
        xor(to: Reg, from: Reg) = xorq_rm(to, from);
        test(a: Reg, b: Reg) = testq_mr(a, b);
        compare(a: Reg, b: Mem) = cmpq_rm(a, Operand::from(b));
        compare_registers(a: Reg, b: Reg) = cmpq_rm(a, b);
        compare_registers8(a: Reg, b: Reg) = cmpb_rm(a, b);
        compare_registers16(a: Reg, b: Reg) = cmpw_rm(a, b);
        compare_registers32(a: Reg, b: Reg) = cmpl_rm(a, b);
        compare_immediate(a: Mem, b: i32) = cmpq_mi(Operand::from(a), b);
        compare_immediate_register(a: Reg, b: i8) = cmpq_mi_sxb(a, b);
        compare_constant(a: Reg, b: i32) = cmpq_mi(a, b);
        compare_immediate_register32(a: Reg, b: i32) = cmpl_mi(a, b as u32);
        compare_immediate32(a: Mem, b: i8) = cmpl_mi_sxb(Operand::from(a), b);
        shift_right(to: Reg, by: u8) = shrq_mi(to, by);
        shift_left(to: Reg, by: u8) = shlq_mi(to, by);
        shift_right_signed(to: Reg, by: u8) = sarq_mi(to, by);
        /// 64 bits; the immediate has 8, sign-extended.
        add_small_immediate(to: Mem, value: i8) = addq_mi_sxb(Operand::from(to), value);
        /// The same of 32.
        add_large_immediate(to: Mem, value: i32) = addq_mi_sxl(Operand::from(to), value);
        compare_immediate8(to: Reg, value: i8) = cmpb_mi(to, value as u8);
        set_overflow(to: Reg) = seto_m(to);
        move_if_not_zero(to: Reg, from: Reg) = cmovneq_rm(to, from);
        jump_to(to: Mem) = jmpq_m(Operand::from(to));
        call(to: Mem) = callq_m(Operand::from(to));
        push(from: Reg) = pushq_o(from);
        pop(to: Reg) = popq_o(to);
        load_xmm(to: Reg, from: Mem) = movups_a(to, Amode::from(from));
        store_xmm(to: Mem, from: Reg) = movups_b(Amode::from(to), from);
    }

    /// Loads a constant; changes no flags.
    pub fn constant(&mut self, to: Reg, value: u64) {
        if let Ok(value) = u32::try_from(value) {
            inst::movl_oi::<Host>::new(to, value).encode(&mut self.sink());
        } else if let Ok(value) = i32::try_from(value as i64) {
            inst::movq_mi_sxl::<Host>::new(to, value).encode(&mut self.sink());
        } else {
            inst::movabsq_oi::<Host>::new(to, value).encode(&mut self.sink());
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
    pub fn store_constant(&mut self, to: Mem, value: u64, temporary: Reg) {
        if let Ok(value) = i32::try_from(value as i64) {
            self.store_immediate(to, value);
        } else {
            self.constant(temporary, value);
            self.store(to, temporary);
        }
    }

    /// Stores flags to AH.
    pub fn lahf(&mut self) {
        self.code.push(0x9f);
    }

    /// Loads flags but OF from AH.
    pub fn sahf(&mut self) {
        self.code.push(0x9e);
    }

    pub fn add_immediate(&mut self, to: Mem, value: i32) {
        match i8::try_from(value) {
            Ok(value) => self.add_small_immediate(to, value),
            Err(_) => self.add_large_immediate(to, value),
        }
    }

    pub fn ret(&mut self) {
        self.code.push(0xc3);
    }

    /// Jumps forward if a condition holds.
    pub fn jump_if(&mut self, condition: u8) -> Jump {
        match condition {
            // JRCXZ reaches only what is near.
            condition::COUNT_ZERO => self.code.extend([0xe3, 2, 0xeb, 5, 0xe9, 0, 0, 0, 0]),
            condition::COUNT_NOT_ZERO => self.code.extend([0xe3, 5, 0xe9, 0, 0, 0, 0]),
            _ => self.code.extend([0x0f, 0x80 | condition, 0, 0, 0, 0]),
        }
        Jump(self.code.len())
    }

    /// Jumps forward.
    pub fn jump(&mut self) -> Jump {
        self.code.extend([0xe9, 0, 0, 0, 0]);
        Jump(self.code.len())
    }

    /// Calls what comes later.
    pub fn call_forward(&mut self) -> Jump {
        self.code.extend([0xe8, 0, 0, 0, 0]);
        Jump(self.code.len())
    }

    /// Jumps back.
    pub fn jump_back(&mut self, to: usize) {
        let jump = self.jump();
        self.bind_at(jump, to);
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
        self.code[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Overwrites 64 bits.
    pub fn patch64(&mut self, at: usize, value: u64) {
        self.code[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }

    /// `lea to, [rip + …]`; gives the place of the displacement.
    pub fn lea_relative(&mut self, to: Reg) -> u32 {
        self.code.extend([0x48 | (to >> 3) << 2, 0x8d, 0x05 | (to & 7) << 3, 0, 0, 0, 0]);
        self.code.len() as u32 - 4
    }

    /// `sub dword [rip + …], 1`; gives the place of the displacement, which an immediate byte follows.
    pub fn decrement_relative(&mut self) -> u32 {
        self.code.extend([0x83, 0x2d, 0, 0, 0, 0, 1]);
        self.code.len() as u32 - 5
    }

    /// `mov to, …` of 64 bits to be filled in; gives their place.
    pub fn constant_to_come(&mut self, to: Reg) -> u32 {
        inst::movabsq_oi::<Host>::new(to, 0).encode(&mut self.sink());
        self.code.len() as u32 - 8
    }

    /// A guest instruction over host registers. `false`: there is no such encoding.
    pub fn instruction(&mut self, instruction: &Instruction) -> bool {
        let start = self.code.len();
        self.encoder.set_buffer(core::mem::take(&mut self.code));
        let encoded = self.encoder.encode(instruction, 0).is_ok();
        let constants = self.encoder.get_constant_offsets();
        self.code = self.encoder.take_buffer();
        if encoded {
            for (offset, size) in [
                (constants.displacement_offset(), constants.displacement_size()),
                (constants.immediate_offset(), constants.immediate_size()),
            ] {
                if size >= 4 {
                    self.note_address(start + offset, size);
                }
            }
        }
        encoded
    }
}

impl Assembler {
    /// Notes a constant of 4 or 8 bytes that is in the code, if it may be an address.
    fn note_address(&mut self, offset: usize, size: usize) {
        let word = |at: usize| {
            let bytes = self.code.get(at..at + 4).and_then(|bytes| bytes.try_into().ok());
            bytes.map_or(0, u32::from_le_bytes)
        };
        let value = word(offset);
        if is_low_half(value) && (size == 4 || word(offset + 4) == u32::MAX) {
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
