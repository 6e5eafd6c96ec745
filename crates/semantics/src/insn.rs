//! A decoded instruction, lowered from iced-x86's form to what definitions ask for.

use x86::{SegmentRegister, Width};

/// A general register operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Register {
    /// Encoding number, 0..16. For AH CH DH BH: of the register they are part of.
    pub index: u8,
    /// How much of it.
    pub width: Width,
    /// Bits 15..8 (AH CH DH BH).
    pub high: bool,
}

impl Register {
    /// The whole register, or its low part, of a width.
    pub const fn new(index: u8, width: Width) -> Self {
        Self { index, width, high: false }
    }
}

/// One operand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Operand {
    /// There is none at this position.
    None,
    /// General register.
    Gpr(Register),
    /// Memory: see [`Insn::memory`]; the width is [`Insn::memory_bytes`].
    Memory,
    /// [`Insn::immediate`], sign-extended to 64 bits as the encoding says.
    Immediate,
    /// [`Insn::immediate2`] (ENTER, EXTRQ, INSERTQ).
    Immediate2,
    /// Segment register number.
    Segment(SegmentRegister),
    /// XMM register.
    Xmm(u8),
    /// MMX register.
    Mm(u8),
    /// x87 stack register ST(i).
    St(u8),
    /// Control register.
    Control(u8),
    /// Debug register.
    Debug(u8),
    /// Near branch: the target offset (already wrapped to the operand size) is in [`Insn::immediate`].
    Near,
    /// Far branch: offset in [`Insn::immediate`], selector in [`Insn::immediate2`].
    Far,
}

/// A memory operand before segmentation: `base + index * scale + displacement`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MemoryOperand {
    /// Effective segment.
    pub segment: SegmentRegister,
    /// Base register number, or [`MemoryOperand::NONE`].
    pub base: u8,
    /// Index register number, or [`MemoryOperand::NONE`].
    pub index: u8,
    /// log2 of the scale.
    pub scale: u8,
    /// Width of the address computation: the result is cut to it.
    pub width: Width,
    /// Sign-extended. For RIP-relative operands the absolute address, with no base.
    pub displacement: u64,
}

impl MemoryOperand {
    /// No register.
    pub const NONE: u8 = 0xff;
}

/// REP prefixes, where the instruction honours them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Repeat {
    /// None.
    None,
    /// F3 (REP, REPE).
    Equal,
    /// F2 (REPNE).
    NotEqual,
}

/// A decoded instruction. It knows its address ([`Insn::rip`]); blocks are keyed by address, so that is constant.
#[derive(Clone, Copy, Debug)]
pub struct Insn {
    /// Offset within CS of the first byte.
    pub rip: u64,
    /// Which, exactly (encoding form).
    pub code: iced_x86::Code,
    /// Which, by name: the key into [`crate::table`].
    pub mnemonic: iced_x86::Mnemonic,
    /// Bytes, 1..=15.
    pub length: u8,
    /// Number of operands that are not [`Operand::None`].
    pub operand_count: u8,
    /// Operands, destination first.
    pub operands: [Operand; 4],
    /// The memory operand, if one of `operands` is [`Operand::Memory`] or the instruction has an implicit one.
    pub memory: MemoryOperand,
    /// Bytes that the memory operand has (0 = no access, as in LEA); up to 64 and beyond for state images.
    pub memory_bytes: u16,
    /// Effective operand size (for string, stack and implicit-operand instructions): 16, 32, 64; 8 for byte forms.
    pub width: Width,
    /// Effective address size.
    pub address_width: Width,
    /// LOCK prefix.
    pub lock: bool,
    /// REP prefix.
    pub repeat: Repeat,
    /// See [`Operand::Immediate`].
    pub immediate: u64,
    /// See [`Operand::Immediate2`] and [`Operand::Far`].
    pub immediate2: u16,
    /// The code size that it was decoded for: 16, 32, 64.
    pub code_bits: u8,
}

/// Decoded blocks are walked in order: an instruction is one cache line.
const _: () = assert!(size_of::<Insn>() <= 64);

impl Insn {
    /// Offset of the following instruction, wrapped to the code size (64 bits in 64-bit mode, else 32; 16-bit code
    /// wraps at 64 KiB only on near transfers, SDM Vol. 3B 21.1.1).
    #[inline]
    pub fn next_rip(&self) -> u64 {
        let next = self.rip.wrapping_add(u64::from(self.length));
        if self.code_bits == 64 { next } else { next & 0xffff_ffff }
    }

    /// Operand `n`, or [`Operand::None`].
    #[inline]
    pub fn operand(&self, n: usize) -> Operand {
        self.operands[n & 3]
    }

    /// Width of operand `n`, if it is a general register or memory of 1, 2, 4, 8 bytes; else the operand size.
    #[inline]
    pub fn operand_width(&self, n: usize) -> Width {
        match self.operand(n) {
            Operand::Gpr(r) => r.width,
            Operand::Memory => Width::from_bytes(self.memory_bytes as usize).unwrap_or(self.width),
            _ => self.width,
        }
    }
}
