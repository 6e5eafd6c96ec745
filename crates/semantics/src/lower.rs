//! From iced-x86's instruction to [`Insn`]: operands resolved, sizes made explicit, implicit memory named.

use iced_x86::{Code, Instruction, MemorySize, Mnemonic, OpKind, Register as Iced};
use x86::{Mode, SegmentRegister, Width};

use crate::{Insn, MemoryOperand, Operand, Register, Repeat};

const NO_MEMORY: MemoryOperand = MemoryOperand {
    segment: SegmentRegister::Ds,
    base: MemoryOperand::NONE,
    index: MemoryOperand::NONE,
    scale: 0,
    width: Width::Qword,
    displacement: 0,
};

const RBX: u8 = 3;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// No instruction yet.
pub(crate) const BLANK: Insn = Insn {
    rip: 0,
    code: Code::INVALID,
    mnemonic: Mnemonic::INVALID,
    length: 0,
    operand_count: 0,
    operands: [Operand::None; 4],
    memory: NO_MEMORY,
    memory_bytes: 0,
    width: Width::Byte,
    address_width: Width::Byte,
    lock: false,
    repeat: Repeat::None,
    immediate: 0,
    immediate2: 0,
    code_bits: 0,
};

/// Lowers a valid instruction, in place: what is written in small pieces and copied at once keeps the host waiting. `None` if it has
/// an operand that no announced processor knows (YMM, test registers, …).
pub(crate) fn lower(insn: &mut Insn, from: &Instruction, mode: Mode) -> Option<()> {
    let code_bits = mode.code_bits() as u8;
    *insn = Insn {
        rip: from.ip(),
        code: from.code(),
        mnemonic: from.mnemonic(),
        length: from.len() as u8,
        address_width: width_of_bits(u32::from(code_bits)),
        lock: from.has_lock_prefix(),
        code_bits,
        ..BLANK
    };
    let count = from.op_count();
    if count > 4 {
        return None;
    }
    insn.operand_count = count as u8;
    for n in 0..count {
        insn.operands[n as usize] = operand(insn, from, n)?;
    }
    finish_sizes(insn);
    finish_repeat(insn, from);
    if insn.mnemonic == Mnemonic::Xlatb {
        // The address is rBX plus zero-extended AL: the definition adds AL.
        insn.memory.base = RBX;
        insn.memory.index = MemoryOperand::NONE;
    }
    Some(())
}

fn operand(insn: &mut Insn, from: &Instruction, n: u32) -> Option<Operand> {
    Some(match from.op_kind(n) {
        OpKind::Register => register(from.op_register(n))?,
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            insn.immediate = from.near_branch_target();
            Operand::Near
        }
        OpKind::FarBranch16 => {
            insn.immediate = u64::from(from.far_branch16());
            insn.immediate2 = from.far_branch_selector();
            Operand::Far
        }
        OpKind::FarBranch32 => {
            insn.immediate = u64::from(from.far_branch32());
            insn.immediate2 = from.far_branch_selector();
            Operand::Far
        }
        OpKind::Immediate8
        | OpKind::Immediate16
        | OpKind::Immediate32
        | OpKind::Immediate64
        | OpKind::Immediate8to16
        | OpKind::Immediate8to32
        | OpKind::Immediate8to64
        | OpKind::Immediate32to64 => {
            insn.immediate = from.immediate(n);
            Operand::Immediate
        }
        OpKind::Immediate8_2nd => {
            insn.immediate2 = u16::from(from.immediate8_2nd());
            Operand::Immediate2
        }
        OpKind::MemorySegSI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RSI, Width::Word)?
        }
        OpKind::MemorySegESI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RSI, Width::Dword)?
        }
        OpKind::MemorySegRSI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RSI, Width::Qword)?
        }
        OpKind::MemorySegDI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RDI, Width::Word)?
        }
        OpKind::MemorySegEDI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RDI, Width::Dword)?
        }
        OpKind::MemorySegRDI => {
            implicit(insn, from, effective_segment(from, insn.code_bits)?, RDI, Width::Qword)?
        }
        OpKind::MemoryESDI => implicit(insn, from, SegmentRegister::Es, RDI, Width::Word)?,
        OpKind::MemoryESEDI => implicit(insn, from, SegmentRegister::Es, RDI, Width::Dword)?,
        OpKind::MemoryESRDI => implicit(insn, from, SegmentRegister::Es, RDI, Width::Qword)?,
        OpKind::Memory => explicit(insn, from)?,
    })
}

/// A memory operand at rSI or rDI. Of the two that MOVS and CMPS have, [`Insn::memory`] is the one at rSI.
fn implicit(
    insn: &mut Insn,
    from: &Instruction,
    segment: SegmentRegister,
    base: u8,
    width: Width,
) -> Option<Operand> {
    insn.address_width = width;
    insn.memory_bytes = from.memory_size().size() as u16;
    if insn.memory.base != RSI {
        insn.memory = MemoryOperand { segment, base, width, ..NO_MEMORY };
    }
    Some(Operand::Memory)
}

fn explicit(insn: &mut Insn, from: &Instruction) -> Option<Operand> {
    let base = from.memory_base();
    let index = from.memory_index();
    let width = match (base, index) {
        (Iced::RIP, _) => Width::Qword,
        (Iced::EIP, _) => Width::Dword,
        (Iced::None, Iced::None) => displacement_width(from, insn.code_bits),
        (Iced::None, register) | (register, _) => Width::from_bytes(register.size())?,
    };
    insn.address_width = width;
    insn.memory_bytes = match from.memory_size() {
        MemorySize::Unknown => 0,
        size => size.size() as u16,
    };
    insn.memory = MemoryOperand {
        segment: effective_segment(from, insn.code_bits)?,
        // iced gives RIP-relative operands as absolute.
        base: if base == Iced::RIP || base == Iced::EIP {
            MemoryOperand::NONE
        } else {
            address_register(base)
        },
        index: address_register(index),
        scale: from.memory_index_scale().trailing_zeros() as u8,
        width,
        displacement: from.memory_displacement64(),
    };
    Some(Operand::Memory)
}

/// The segment of the memory operand. In 64-bit mode overrides other than FS and GS are ignored (SDM Vol. 2A 2.1.1),
/// though iced reports them.
fn effective_segment(from: &Instruction, code_bits: u8) -> Option<SegmentRegister> {
    if code_bits == 64 && matches!(from.segment_prefix(), Iced::ES | Iced::CS | Iced::SS | Iced::DS) {
        let stack = matches!(from.memory_base(), Iced::RSP | Iced::RBP | Iced::ESP | Iced::EBP);
        return Some(if stack { SegmentRegister::Ss } else { SegmentRegister::Ds });
    }
    segment(from.memory_segment())
}

/// The address size of an operand without registers, which only the size of its displacement shows.
fn displacement_width(from: &Instruction, code_bits: u8) -> Width {
    match from.memory_displ_size() {
        2 => Width::Word,
        4 => Width::Dword,
        8 => Width::Qword,
        _ => width_of_bits(u32::from(code_bits)),
    }
}

/// Number of a register in an address, or [`MemoryOperand::NONE`].
fn address_register(register: Iced) -> u8 {
    if register == Iced::None { MemoryOperand::NONE } else { register.number() as u8 }
}

fn register(register: Iced) -> Option<Operand> {
    let number = |first: Iced| (register as u32 - first as u32) as u8;
    Some(if register.is_gpr8() {
        // iced's order: AL CL DL BL AH CH DH BH SPL BPL SIL DIL R8L…
        Operand::Gpr(match number(Iced::AL) {
            n @ 0..=3 => Register::new(n, Width::Byte),
            n @ 4..=7 => Register { index: n - 4, width: Width::Byte, high: true },
            n => Register::new(n - 4, Width::Byte),
        })
    } else if register.is_gpr() {
        Operand::Gpr(Register::new(register.number() as u8, Width::from_bytes(register.size())?))
    } else if register.is_segment_register() {
        Operand::Segment(segment(register)?)
    } else if register.is_xmm() {
        let n = number(Iced::XMM0);
        if n > 15 {
            return None;
        }
        Operand::Xmm(n)
    } else if register.is_mm() {
        Operand::Mm(number(Iced::MM0))
    } else if register.is_st() {
        Operand::St(number(Iced::ST0))
    } else if register.is_cr() {
        Operand::Control(number(Iced::CR0))
    } else if register.is_dr() {
        Operand::Debug(number(Iced::DR0))
    } else {
        return None;
    })
}

fn segment(register: Iced) -> Option<SegmentRegister> {
    Some(match register {
        Iced::ES => SegmentRegister::Es,
        Iced::CS => SegmentRegister::Cs,
        Iced::SS => SegmentRegister::Ss,
        Iced::DS => SegmentRegister::Ds,
        Iced::FS => SegmentRegister::Fs,
        Iced::GS => SegmentRegister::Gs,
        _ => return None,
    })
}

fn width_of_bits(bits: u32) -> Width {
    match bits {
        16 => Width::Word,
        32 => Width::Dword,
        64 => Width::Qword,
        _ => Width::Byte,
    }
}

/// Operand size, and the address size of instructions that have one without a memory operand (LOOP, JCXZ, MONITOR).
/// iced's table knows both per encoding; an operand size of zero means a byte form or none.
fn finish_sizes(insn: &mut Insn) {
    let op_code = insn.code.op_code();
    if op_code.address_size() != 0 {
        insn.address_width = width_of_bits(op_code.address_size());
    }
    insn.width = match op_code.operand_size() {
        0 => width_of_operands(insn),
        bits => width_of_bits(bits),
    };
}

/// Byte if any operand is a byte (the first of OUT DX, AL is not), else that of the first.
fn width_of_operands(insn: &Insn) -> Width {
    let width = |operand: Operand| match operand {
        Operand::Gpr(register) => Some(register.width),
        Operand::Memory => Width::from_bytes(usize::from(insn.memory_bytes)),
        _ => None,
    };
    if insn.operands.iter().any(|&operand| width(operand) == Some(Width::Byte)) {
        return Width::Byte;
    }
    width(insn.operands[0]).unwrap_or(Width::Byte)
}

/// String instructions honour F2 and F3; elsewhere they are part of the encoding or ignored.
fn finish_repeat(insn: &mut Insn, from: &Instruction) {
    if from.code().is_string_instruction() {
        if from.has_repe_prefix() {
            insn.repeat = Repeat::Equal;
        } else if from.has_repne_prefix() {
            insn.repeat = Repeat::NotEqual;
        }
    }
}

/// Whether the code is a string instruction: those that share a mnemonic with SSE (MOVSD, CMPSD) need it.
pub(crate) fn is_string(code: Code) -> bool {
    code.is_string_instruction()
}
