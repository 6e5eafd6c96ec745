//! Random operands, by the kind that an encoding asks for.

use iced_x86::{Instruction, OpCodeOperandKind as Kind, OpKind, Register};

use crate::{
    image::{DATA, DATA_SIZE},
    random::Random,
};

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

/// Makes up operand `operand` of an instruction; `None` where it is not ours to choose.
pub fn place(
    random: &mut Random,
    insn: &mut Instruction,
    operand: u32,
    kind: Kind,
    bits: u32,
    registers: u64,
) -> Option<()> {
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
        Kind::r16_or_mem | Kind::r16_reg | Kind::r16_opcode | Kind::r16_rm | Kind::r16_reg_mem => {
            register(insn, general(2, number))
        }
        Kind::r32_or_mem
        | Kind::r32_reg
        | Kind::r32_opcode
        | Kind::r32_rm
        | Kind::r32_reg_mem
        | Kind::r32_vvvv => register(insn, general(4, number)),
        Kind::r64_or_mem
        | Kind::r64_reg
        | Kind::r64_opcode
        | Kind::r64_rm
        | Kind::r64_reg_mem
        | Kind::r64_vvvv => register(insn, general(8, number)),
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
        Kind::mem_offs => offsets_only(random, insn, operand, bits),
        Kind::seg_rBX_al => {
            insn.set_op_kind(operand, OpKind::Memory);
            insn.set_memory_base(general(bits / 8, 3));
            insn.set_memory_index(Register::AL);
        }
        Kind::seg_reg => {
            let all = [Register::ES, Register::CS, Register::SS, Register::DS, Register::FS, Register::GS];
            register(insn, random.pick(&all));
        }
        Kind::es => register(insn, Register::ES),
        Kind::cs => register(insn, Register::CS),
        Kind::ss => register(insn, Register::SS),
        Kind::ds => register(insn, Register::DS),
        Kind::fs => register(insn, Register::FS),
        Kind::gs => register(insn, Register::GS),
        Kind::imm8 if operand == 1 && insn.op0_kind() == OpKind::Immediate16 => {
            // ENTER's nesting level.
            insn.set_op_kind(operand, OpKind::Immediate8_2nd);
            insn.set_immediate8_2nd(random.integer() as u8 & 31);
        }
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
        Kind::br16_1 | Kind::br16_2 => {
            insn.set_op_kind(operand, OpKind::NearBranch16);
            insn.set_near_branch16(20 + random.below(80) as u16);
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
            let kinds = [OpKind::MemorySegRSI, OpKind::MemorySegESI, OpKind::MemorySegSI];
            insn.set_op_kind(operand, by_size(random, bits, kinds));
            insn.set_memory_base(Register::None);
        }
        Kind::es_rDI => {
            let kinds = [OpKind::MemoryESRDI, OpKind::MemoryESEDI, OpKind::MemoryESDI];
            let kind = match insn.op0_kind() {
                // Both operands of MOVS and CMPS have the same address size.
                OpKind::MemorySegRSI if operand == 1 => kinds[0],
                OpKind::MemorySegESI if operand == 1 => kinds[1],
                OpKind::MemorySegSI if operand == 1 => kinds[2],
                _ => by_size(random, bits, kinds),
            };
            insn.set_op_kind(operand, kind);
        }
        Kind::seg_rDI => {
            let kinds = [OpKind::MemorySegRDI, OpKind::MemorySegEDI, OpKind::MemorySegDI];
            insn.set_op_kind(operand, by_size(random, bits, kinds));
        }
        _ => return None,
    }
    Some(())
}

/// An address that is part of the instruction (MOV AL, [moffs] and its like): mostly in the data window.
fn offsets_only(random: &mut Random, insn: &mut Instruction, operand: u32, bits: u32) {
    let address = match random.below(8) {
        0 => random.integer(),
        _ => DATA + random.below(DATA_SIZE),
    };
    insn.set_op_kind(operand, OpKind::Memory);
    insn.set_memory_base(Register::None);
    insn.set_memory_displ_size(bits / 8);
    insn.set_memory_displacement64(match bits {
        64 => address,
        32 => address & 0xffff_ffff,
        _ => address & 0xffff,
    });
}

/// What goes with the mode's own address size, or now and then with the other one that a prefix gives.
fn by_size<T: Copy>(random: &mut Random, bits: u32, [qword, dword, word]: [T; 3]) -> T {
    match (bits, random.one_in(12)) {
        (64, false) => qword,
        (32, false) | (64, true) | (16, true) => dword,
        _ => word,
    }
}

/// An operand with a 16-bit address (SDM Vol. 2A table 2-1).
fn memory16(random: &mut Random, insn: &mut Instruction) {
    use Register::{BP, BX, DI, None, SI};
    let forms = [(BX, SI), (BX, DI), (BP, SI), (BP, DI), (SI, None), (DI, None), (BP, None), (BX, None)];
    let (base, index) = random.pick(&forms);
    insn.set_memory_base(base);
    insn.set_memory_index(index);
    let (displacement, bytes) = match random.below(3) {
        0 if base != BP || index != None => (0, 0),
        1 => (i64::from(random.bits() as i8), 1),
        _ => (random.below(64) as i64, 2),
    };
    insn.set_memory_displacement64(displacement as u64 & 0xffff);
    insn.set_memory_displ_size(bytes);
}

fn memory(random: &mut Random, insn: &mut Instruction, operand: u32, bits: u32, registers: u64) {
    insn.set_op_kind(operand, OpKind::Memory);
    if bits == 64 && random.one_in(16) {
        // Around the instruction's own bytes, so that it says the same wherever the program is put.
        insn.set_memory_base(Register::RIP);
        insn.set_memory_displ_size(8);
        insn.set_memory_displacement64(random.below(24).wrapping_sub(16));
        return;
    }
    let size = by_size(random, bits, [8, 4, 2]);
    if size == 2 {
        return memory16(random, insn);
    }
    let base = general(size, random.below(registers));
    let index = match random.below(registers) {
        4 => Register::None,
        number if random.one_in(4) => general(size, number),
        _ => Register::None,
    };
    let (displacement, bytes) = match random.below(3) {
        0 => (0, 0),
        1 => (i64::from(random.bits() as i8), 1),
        _ => (random.below(64) as i64, size),
    };
    let scale = if index == Register::None { 1 } else { 1 << random.below(4) };
    insn.set_memory_base(base);
    insn.set_memory_index(index);
    insn.set_memory_index_scale(scale);
    insn.set_memory_displacement64(displacement as u64);
    insn.set_memory_displ_size(bytes);
}
