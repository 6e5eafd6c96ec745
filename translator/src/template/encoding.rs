//! Host instructions as bytes (SDM Vol. 2 ch. 2): prefix, REX, opcode, ModRM, SIB, displacement, immediate.
//!
//! The template translator writes some fifty instructions around each guest block, so this is where it spends much of its time. An
//! instruction is stored in two numbers of 64 bits: what is too much of them is overwritten by what follows.

use super::assembler::{Mem, Reg, STATE, StateField};

/// Code being written.
#[derive(Default)]
pub(super) struct Code {
    /// Longer than what is written.
    bytes: Vec<u8>,
    length: usize,
}

/// Bytes that are stored for an instruction.
const STORED: usize = 16;

/// Bytes of the immediate behind an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum Immediate {
    None = 0,
    Byte = 1,
    Word = 4,
}

impl Code {
    #[inline]
    pub fn len(&self) -> usize {
        self.length
    }

    /// What is written.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.bytes[..self.length]
    }

    /// Takes back what was written from a place on.
    pub fn truncate(&mut self, length: usize) {
        self.length = self.length.min(length);
    }

    /// Appends bytes, one by one.
    pub fn extend(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.put(byte.into(), 1);
        }
    }

    /// Appends the `count` lowest bytes of a number, up to 7.
    #[inline]
    pub fn put(&mut self, bytes: u64, count: usize) {
        self.put_both((bytes, count), (0, 0));
    }

    /// Appends the lowest bytes of two numbers: up to 7, and up to 8.
    #[inline]
    fn put_both(&mut self, head: (u64, usize), tail: (u64, usize)) {
        debug_assert!(head.1 < 8 && tail.1 <= 8);
        let Some(to) = self.bytes.get_mut(self.length..self.length + STORED) else {
            self.grow();
            return self.put_both(head, tail);
        };
        to[..8].copy_from_slice(&head.0.to_le_bytes());
        to[head.1 & 7..][..8].copy_from_slice(&tail.0.to_le_bytes());
        self.length += head.1 + tail.1;
    }

    #[cold]
    fn grow(&mut self) {
        let length = self.bytes.len();
        self.bytes.resize((2 * length).max(4096), 0);
    }

    /// An instruction whose ModRM has two registers, or a digit of the opcode and one.
    #[inline(always)]
    pub fn of_registers(&mut self, opcode: Opcode, register: u8, operand: Reg, immediate: (u32, Immediate)) {
        let rex = (register >> 3) << 2 | operand >> 3;
        let needs_rex = opcode.is(LOW_REGISTER) && register >= 4 || opcode.is(LOW_OPERAND) && operand >= 4;
        let modrm = 0xc0 | (register & 7) << 3 | operand & 7;
        let head = opcode.head(modrm.into(), 1, rex, needs_rex);
        self.put_both(head, (immediate.0.into(), immediate.1 as usize));
    }

    /// An instruction whose ModRM has a register, or a digit of the opcode, and memory. If the displacement takes 32 bits, gives where
    /// that is.
    #[inline(never)]
    pub fn of_memory(
        &mut self,
        opcode: Opcode,
        register: u8,
        mem: Mem,
        immediate: (u32, Immediate),
    ) -> Option<usize> {
        let base = mem.base & 7;
        let displacement = mem.displacement;
        let (mode, size) = match displacement_size(displacement) {
            // Without displacement, RBP and R13 mean something else.
            (0, _) if base == 5 => (0x40, 1),
            other => other,
        };
        let modrm = mode | (register & 7) << 3;
        let mut rex = (register >> 3) << 2 | mem.base >> 3;
        let (rm, rm_size) = match mem.index {
            Some((index, scale)) => {
                debug_assert!(index != 4, "RSP is no index");
                rex |= (index >> 3) << 1;
                (u16::from(modrm | 4) | u16::from(scale << 6 | (index & 7) << 3 | base) << 8, 2)
            }
            // RSP and R12 mean an index.
            None if base == 4 => (u16::from(modrm | 4) | 0x24 << 8, 2),
            None => (u16::from(modrm | base), 1),
        };
        let head = opcode.head(rm, rm_size, rex, opcode.is(LOW_REGISTER) && register >= 4);
        let tail = tail(displacement, size, immediate);
        let at = self.length + head.1;
        self.put_both(head, (tail, size + immediate.1 as usize));
        (size == 4).then_some(at)
    }

    /// An instruction whose ModRM has a register, or a digit of the opcode, and a field of the state.
    #[inline(always)]
    pub fn of_state(&mut self, opcode: Opcode, register: u8, offset: i32, immediate: (u32, Immediate)) {
        const BASE: u8 = STATE & 7;
        const { assert!(BASE != 4 && BASE != 5, "those mean something else") };
        let (mode, size) = displacement_size(offset);
        let rex = (register >> 3) << 2 | STATE >> 3;
        let modrm = mode | (register & 7) << 3 | BASE;
        let head = opcode.head(modrm.into(), 1, rex, false);
        let tail = tail(offset, size, immediate);
        self.put_both(head, (tail, size + immediate.1 as usize));
    }

    /// An instruction whose opcode a register is part of, and an immediate of 0 to 8 bytes.
    #[inline]
    pub fn of_register(&mut self, wide: bool, byte: u8, register: Reg, immediate: (u64, usize)) {
        let rex = 0x40 | register >> 3 | u8::from(wide) << 3;
        let byte = u64::from(byte | register & 7);
        let head = if rex == 0x40 { (byte, 1) } else { (u64::from(rex) | byte << 8, 2) };
        self.put_both(head, immediate);
    }
}

/// A displacement's mode in ModRM, and its bytes.
#[inline]
fn displacement_size(displacement: i32) -> (u8, usize) {
    if displacement == 0 {
        (0, 0)
    } else if displacement as i8 as i32 == displacement {
        (0x40, 1)
    } else {
        (0x80, 4)
    }
}

/// The lowest bytes of a displacement, and an immediate; without one, what is behind them will be overwritten.
#[inline(always)]
fn tail(displacement: i32, size: usize, (value, immediate): (u32, Immediate)) -> u64 {
    let displacement = u64::from(displacement as u32);
    match immediate {
        Immediate::None => displacement,
        _ => displacement & ((1 << (8 * size)) - 1) | u64::from(value) << (8 * size),
    }
}

/// An opcode, and how its operands are encoded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Opcode {
    /// Low byte first, with 0x0f and what else is part of it before it.
    bytes: u32,
    /// How many.
    count: u8,
    /// A prefix before REX, or 0.
    prefix: u8,
    /// REX.W, and these.
    flags: u8,
}

/// The register in ModRM's reg, in its r/m has 8 bits: those from 4 on need a REX prefix.
const LOW_REGISTER: u8 = 1 << 0;
const LOW_OPERAND: u8 = 1 << 1;
const WIDE: u8 = 1 << 3;

impl Opcode {
    /// One byte, operands of 32 bits.
    pub const fn new(byte: u8) -> Self {
        Self { bytes: byte as u32, count: 1, prefix: 0, flags: 0 }
    }

    /// 0x0f and another byte.
    pub const fn second(byte: u8) -> Self {
        Self { bytes: 0x0f | (byte as u32) << 8, count: 2, prefix: 0, flags: 0 }
    }

    /// 0x0f and two more.
    pub const fn third(second: u8, byte: u8) -> Self {
        let bytes = 0x0f | (second as u32) << 8 | (byte as u32) << 16;
        Self { bytes, count: 3, prefix: 0, flags: 0 }
    }

    /// With operands of 64 bits.
    pub const fn wide(self) -> Self {
        self.with(WIDE)
    }

    /// With operands of 16 bits.
    pub const fn word(self) -> Self {
        self.prefixed(0x66)
    }

    /// With a prefix.
    pub const fn prefixed(self, prefix: u8) -> Self {
        Self { prefix, ..self }
    }

    /// With a register of 8 bits.
    pub const fn low_register(self) -> Self {
        self.with(LOW_REGISTER)
    }

    /// With an operand of 8 bits.
    pub const fn low_operand(self) -> Self {
        self.with(LOW_OPERAND)
    }

    const fn with(self, flag: u8) -> Self {
        Self { flags: self.flags | flag, ..self }
    }

    #[inline]
    fn is(self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// With what comes before it, and ModRM and perhaps SIB behind it; and how many bytes that is. `rex`: without W.
    #[inline]
    fn head(self, rm: u16, rm_size: usize, rex: u8, needs_rex: bool) -> (u64, usize) {
        let mut head = u64::from(self.bytes) | u64::from(rm) << (8 * self.count);
        let mut length = usize::from(self.count) + rm_size;
        let rex = rex | self.flags & WIDE;
        if rex != 0 || needs_rex {
            head = head << 8 | u64::from(0x40 | rex);
            length += 1;
        }
        if self.prefix != 0 {
            head = head << 8 | u64::from(self.prefix);
            length += 1;
        }
        (head, length)
    }
}

/// What ModRM's r/m says.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Register(Reg),
    Memory(Mem),
    State(StateField),
}

impl From<Reg> for Operand {
    fn from(register: Reg) -> Self {
        Self::Register(register)
    }
}

impl From<Mem> for Operand {
    fn from(mem: Mem) -> Self {
        Self::Memory(mem)
    }
}

impl From<StateField> for Operand {
    fn from(field: StateField) -> Self {
        Self::State(field)
    }
}
