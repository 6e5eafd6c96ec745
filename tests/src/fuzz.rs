//! Random instructions and states. The generator walks the instruction table: every encoding of every lifted
//! mnemonic that can run in ring 3 is made up, so a new row is fuzzed from the day it is written.

use iced_x86::{Code, Encoder, Instruction, MemoryOperand, Mnemonic, OpCodeOperandKind as Kind, Register};
use semantics::table;

use crate::image::{CODE, DATA, DATA_SIZE, Image};

/// A small random generator (xorshift64*), so that a printed seed reproduces a run anywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer that is often special.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.bits() & 0xff,
            5 => self.bits() & 0xffff_ffff,
            _ => self.bits(),
        }
    }

    /// A vector whose lanes are often special as floating-point numbers of either size.
    pub fn vector(&mut self) -> u128 {
        const DOUBLES: [u64; 12] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0xbff8_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0001,
            0x7ff0_0000_0000_0001,
            1,
            0x000f_ffff_ffff_ffff,
            0x7fef_ffff_ffff_ffff,
            0x41df_ffff_ffc0_0000,
        ];
        const SINGLES: [u32; 12] = [
            0,
            1 << 31,
            0x3f80_0000,
            0xbfc0_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0001,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        let mut half = || match self.below(4) {
            0 => self.pick(&DOUBLES),
            1 => u64::from(self.pick(&SINGLES)) | u64::from(self.pick(&SINGLES)) << 32,
            2 => (1.0 + self.below(1000) as f64 / 7.0).to_bits(),
            _ => self.bits(),
        };
        u128::from(half()) | u128::from(half()) << 64
    }

    /// An 80-bit x87 value.
    fn extended(&mut self) -> [u64; 2] {
        const VALUES: [[u64; 2]; 12] = [
            [0, 0],
            [0, 0x8000],
            [1 << 63, 0x3fff],
            [0xc000_0000_0000_0000, 0xc000],
            [1 << 63, 0x7fff],
            [1 << 63, 0xffff],
            [0xc000_0000_0000_0001, 0x7fff],
            [0x8000_0000_0000_0001, 0x7fff],
            [1, 0],
            [0x7fff_ffff_ffff_ffff, 0],
            [0xc90f_daa2_2168_c235, 0x4000],
            [0x4000_0000_0000_0000, 0x3fff],
        ];
        match self.below(3) {
            0 => self.pick(&VALUES),
            1 => [self.bits() | 1 << 63, 0x3fff - 20 + self.below(40)],
            _ => [self.bits() | 1 << 63, self.bits() & 0xffff],
        }
    }
}

/// Mnemonics that are not compared, and why.
pub const EXCLUDED: &[(Mnemonic, &str)] = &[
    (Mnemonic::Rdrand, "random by definition"),
    (Mnemonic::Rdseed, "random by definition"),
    (Mnemonic::Rdpid, "tells the host's processor"),
    (Mnemonic::Rdfsbase, "the host's FS base is the child's thread area"),
    (Mnemonic::Rdgsbase, "the host may not have it enabled"),
    (Mnemonic::Wrfsbase, "the host may not have it enabled"),
    (Mnemonic::Wrgsbase, "the host may not have it enabled"),
    (Mnemonic::Fxsave, "reserved bytes of the image differ between processors"),
    (Mnemonic::Fxsave64, "reserved bytes of the image differ between processors"),
    (Mnemonic::Fxrstor, "a random image is mostly #GP"),
    (Mnemonic::Fxrstor64, "a random image is mostly #GP"),
    (Mnemonic::Xsave, "the host has more state components"),
    (Mnemonic::Xsave64, "the host has more state components"),
    (Mnemonic::Xsaveopt, "the host has more state components"),
    (Mnemonic::Xsaveopt64, "the host has more state components"),
    (Mnemonic::Xrstor, "the host has more state components"),
    (Mnemonic::Xrstor64, "the host has more state components"),
    (Mnemonic::Fnstenv, "x87 pointers are not kept alike by processors"),
    (Mnemonic::Fnsave, "x87 pointers are not kept alike by processors"),
    (Mnemonic::Fldenv, "loads x87 pointers"),
    (Mnemonic::Frstor, "loads x87 pointers"),
    (Mnemonic::Endbr64, "no effect"),
    (Mnemonic::Endbr32, "no effect"),
];

/// All encodings that are fuzzed for 64- or 32-bit code.
pub fn encodings(bits: u32) -> Vec<Code> {
    Code::values()
        .filter(|code| {
            let info = code.op_code();
            let usable = if bits == 64 { info.mode64() } else { info.mode32() };
            table::LIFTED.contains(&code.mnemonic())
                && !EXCLUDED.iter().any(|(mnemonic, _)| *mnemonic == code.mnemonic())
                && usable
                && info.is_instruction()
                && info.encoding() == iced_x86::EncodingKind::Legacy
                && !info.fwait()
        })
        .collect()
}

/// Registers by number, for each operand size.
fn general(size: u32, number: u64) -> Register {
    let first = match size {
        1 => return BYTE_REGISTERS[number as usize],
        2 => Register::AX,
        4 => Register::EAX,
        _ => Register::RAX,
    };
    first + number as u32
}

const BYTE_REGISTERS: [Register; 16] = [
    Register::AL,
    Register::CL,
    Register::DL,
    Register::BL,
    Register::AH,
    Register::CH,
    Register::DH,
    Register::BH,
    Register::R8L,
    Register::R9L,
    Register::R10L,
    Register::R11L,
    Register::R12L,
    Register::R13L,
    Register::R14L,
    Register::R15L,
];

/// Makes up one instruction of an encoding; `None` where the operands are not ours to choose.
pub fn instruction(random: &mut Random, code: Code, bits: u32) -> Option<(Instruction, Vec<u8>)> {
    let info = code.op_code();
    let registers = if bits == 64 { 16 } else { 8 };
    let mut insn = Instruction::default();
    insn.set_code(code);
    for operand in 0..info.op_count() {
        place(random, &mut insn, operand, info.op_kind(operand), bits, registers)?;
    }
    if info.can_use_lock_prefix() && insn.op0_kind() == iced_x86::OpKind::Memory && random.one_in(3) {
        insn.set_has_lock_prefix(true);
    }
    if insn.is_string_instruction() && random.one_in(2) {
        if random.one_in(2) || !info.can_use_repne_prefix() {
            insn.set_has_rep_prefix(true);
        } else {
            insn.set_has_repne_prefix(true);
        }
    }
    let mut encoder = Encoder::new(bits);
    // Near branches need an address near their target; code is position-independent otherwise.
    encoder.encode(&insn, 0).ok()?;
    let bytes = encoder.take_buffer();
    Some((insn, bytes))
}

fn place(
    random: &mut Random,
    insn: &mut Instruction,
    operand: u32,
    kind: Kind,
    bits: u32,
    registers: u64,
) -> Option<()> {
    use iced_x86::OpKind;
    let register = |insn: &mut Instruction, register| {
        insn.set_op_kind(operand, OpKind::Register);
        insn.set_op_register(operand, register);
    };
    let number = random.below(registers);
    let memory_instead = random.one_in(2);
    match kind {
        Kind::r8_or_mem | Kind::r16_or_mem | Kind::r32_or_mem | Kind::r64_or_mem if memory_instead => {
            memory(random, insn, operand, bits, registers);
        }
        Kind::xmm_or_mem | Kind::mm_or_mem if memory_instead => {
            memory(random, insn, operand, bits, registers)
        }
        Kind::mem => memory(random, insn, operand, bits, registers),
        Kind::r8_or_mem | Kind::r8_reg | Kind::r8_opcode => register(insn, general(1, number)),
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm => {
            register(insn, general(2, number))
        }
        Kind::r32_or_mem | Kind::r32_reg | Kind::r32_opcode | Kind::r32_rm => {
            register(insn, general(4, number))
        }
        Kind::r64_or_mem | Kind::r64_reg | Kind::r64_opcode | Kind::r64_rm => {
            register(insn, general(8, number))
        }
        Kind::xmm_or_mem | Kind::xmm_reg | Kind::xmm_rm => register(insn, Register::XMM0 + number as u32),
        Kind::mm_or_mem | Kind::mm_reg | Kind::mm_rm => register(insn, Register::MM0 + (number & 7) as u32),
        Kind::sti_opcode => register(insn, Register::ST0 + (number & 7) as u32),
        Kind::al => register(insn, Register::AL),
        Kind::cl => register(insn, Register::CL),
        Kind::ax => register(insn, Register::AX),
        Kind::dx => register(insn, Register::DX),
        Kind::eax => register(insn, Register::EAX),
        Kind::rax => register(insn, Register::RAX),
        Kind::st0 => register(insn, Register::ST0),
        Kind::imm8 => {
            insn.set_op_kind(operand, OpKind::Immediate8);
            insn.set_immediate8(random.integer() as u8);
        }
        Kind::imm8_const_1 => {
            insn.set_op_kind(operand, OpKind::Immediate8);
            insn.set_immediate8(1);
        }
        Kind::imm8sex16 => {
            insn.set_op_kind(operand, OpKind::Immediate8to16);
            insn.set_immediate8to16(i16::from(random.integer() as i8));
        }
        Kind::imm8sex32 => {
            insn.set_op_kind(operand, OpKind::Immediate8to32);
            insn.set_immediate8to32(i32::from(random.integer() as i8));
        }
        Kind::imm8sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate8to64);
            insn.set_immediate8to64(i64::from(random.integer() as i8));
        }
        Kind::imm16 => {
            insn.set_op_kind(operand, OpKind::Immediate16);
            insn.set_immediate16(random.integer() as u16);
        }
        Kind::imm32 => {
            insn.set_op_kind(operand, OpKind::Immediate32);
            insn.set_immediate32(random.integer() as u32);
        }
        Kind::imm32sex64 => {
            insn.set_op_kind(operand, OpKind::Immediate32to64);
            insn.set_immediate32to64(i64::from(random.integer() as i32));
        }
        Kind::imm64 => {
            insn.set_op_kind(operand, OpKind::Immediate64);
            insn.set_immediate64(random.integer());
        }
        Kind::br32_1 | Kind::br32_4 => {
            insn.set_op_kind(operand, OpKind::NearBranch32);
            insn.set_near_branch32(20 + random.below(80) as u32);
        }
        Kind::br64_1 | Kind::br64_4 => {
            insn.set_op_kind(operand, OpKind::NearBranch64);
            insn.set_near_branch64(20 + random.below(80));
        }
        Kind::seg_rSI => {
            insn.set_op_kind(operand, if bits == 64 { OpKind::MemorySegRSI } else { OpKind::MemorySegESI });
            insn.set_memory_base(Register::None);
        }
        Kind::es_rDI => {
            insn.set_op_kind(operand, if bits == 64 { OpKind::MemoryESRDI } else { OpKind::MemoryESEDI });
        }
        Kind::seg_rDI => {
            insn.set_op_kind(operand, if bits == 64 { OpKind::MemorySegRDI } else { OpKind::MemorySegEDI });
        }
        _ => return None,
    }
    Some(())
}

fn memory(random: &mut Random, insn: &mut Instruction, operand: u32, bits: u32, registers: u64) {
    let size = if bits == 64 { 8 } else { 4 };
    let base = general(size, random.below(registers));
    let index = match random.below(registers) {
        4 => Register::None,
        number if random.one_in(4) => general(size, number),
        _ => Register::None,
    };
    let (displacement, bytes) = match random.below(3) {
        0 => (0, 0),
        1 => (i64::from(random.bits() as i8), 1),
        _ => (random.below(64) as i64, if bits == 64 { 8 } else { 4 }),
    };
    let scale = if index == Register::None { 1 } else { 1 << random.below(4) };
    let memory = MemoryOperand::new(base, index, scale, displacement, bytes, false, Register::None);
    insn.set_op_kind(operand, iced_x86::OpKind::Memory);
    insn.set_memory_base(memory.base);
    insn.set_memory_index(memory.index);
    insn.set_memory_index_scale(memory.scale);
    insn.set_memory_displacement64(memory.displacement as u64);
    insn.set_memory_displ_size(memory.displ_size);
}

/// A random state in which the instructions can mostly reach their memory.
pub fn state(random: &mut Random, insns: &[Instruction], bits: u32) -> Image {
    let mut image = Image::new();
    for value in &mut image.gpr {
        *value = random.integer();
        if bits == 32 {
            *value &= 0xffff_ffff;
        }
    }
    image.gpr[x86::state::RSP] = DATA + 0x100 + (random.below(DATA_SIZE - 0x200) & !7);
    image.flags = random.bits() & x86::flags::STATUS;
    for insn in insns {
        for register in [insn.memory_base(), insn.memory_index()] {
            aim(random, &mut image, register, register == insn.memory_index());
        }
        if insn.is_string_instruction() {
            aim(random, &mut image, Register::RSI, false);
            aim(random, &mut image, Register::RDI, false);
            image.gpr[1] = random.below(70);
            if random.one_in(4) {
                image.flags |= x86::flags::DF;
            }
        }
    }
    for value in &mut image.xmm {
        *value = random.vector();
    }
    if random.one_in(3) {
        // Rounding mode, flush-to-zero, denormals-are-zero and sticky flags; now and then an unmasked exception.
        image.mxcsr = x86::fpu::MXCSR_RESET | random.bits() as u32 & 0xe07f;
        if random.one_in(4) {
            image.mxcsr &= !(1 << (7 + random.below(6)));
        }
    }
    for register in &mut image.x87.registers {
        *register = random.extended();
    }
    let some = random.bits() as u16 & 0xff;
    image.x87.tags = random.pick(&[0xff, 0xff, 0xff, 0, some]);
    image.x87.status = (random.below(8) as u16) << 11;
    image.x87.control = 0x037f ^ (random.below(4) as u16) << 10;
    let filled = image.data.len() / 8;
    for word in 0..filled {
        let value = random.integer();
        image.data[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    image
}

/// Points a register into the data window, mostly; sometimes across its end, or nowhere.
fn aim(random: &mut Random, image: &mut Image, register: Register, is_index: bool) {
    if register == Register::None || !register.is_gpr() {
        return;
    }
    let number = register.full_register() as usize - Register::RAX as usize;
    image.gpr[number] = match random.below(16) {
        _ if is_index => random.below(64),
        0 => DATA + DATA_SIZE - random.below(20),
        1 => random.integer(),
        2 => CODE,
        3..=8 => DATA + 0x200 + (random.below(DATA_SIZE - 0x400) & !15),
        _ => DATA + 0x200 + random.below(DATA_SIZE - 0x400),
    };
}
