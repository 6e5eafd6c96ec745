//! What [known pages](super::known) ask of an instruction: what it leaves of them, by how much it moves a register, and by what it accesses
//! memory.

use iced_x86::Mnemonic;
use semantics::{Insn, MemoryOperand, Operand, Register};
use x86::{SegmentRegister, Width, state};

use super::{bit_string, effects, float, vector};

const RSP: u8 = state::RSP as u8;

/// Which known pages outlive an instruction, but for changes of their base registers.
#[derive(Clone, Copy)]
pub(super) enum Keeps {
    /// It uses the pairs for lookups only.
    Both,
    /// It may use temporaries.
    Stack,
    Neither,
}

pub(super) fn keeps(insn: &Insn) -> Keeps {
    use Mnemonic::*;
    let both = match insn.mnemonic {
        Push => matches!(insn.operand(0), Operand::Gpr(_)) || insn.operand(0) == Operand::Immediate,
        Pop | Ret | Nop | Endbr64 => true,
        Call | Jmp => insn.operand(0) == Operand::Near,
        Lea => insn.memory.base != MemoryOperand::NONE,
        Bsf | Bsr | Div | Idiv | Leave => return Keeps::Stack,
        _ if bit_string::is_one(insn) => return Keeps::Stack,
        _ if insn.code.is_string_instruction() => return Keeps::Neither,
        mnemonic if effects::branch_condition(mnemonic).is_some() => true,
        _ => effects::of(insn).or_else(|| vector::of(insn)).or_else(|| float::of(insn)).is_some(),
    };
    if both { Keeps::Both } else { Keeps::Neither }
}

/// By how much an instruction moves the register that it writes, if that is a constant.
pub(super) fn step(insn: &Insn) -> Option<i32> {
    let Operand::Gpr(Register { width: Width::Qword, index, .. }) = insn.operand(0) else { return None };
    let immediate = || {
        let is_one = insn.operand(1) == Operand::Immediate;
        is_one.then(|| i32::try_from(insn.immediate as i64).ok()).flatten()
    };
    match insn.mnemonic {
        Mnemonic::Inc => Some(1),
        Mnemonic::Dec => Some(-1),
        Mnemonic::Add => immediate(),
        Mnemonic::Sub => immediate()?.checked_neg(),
        Mnemonic::Lea => {
            let MemoryOperand { base, index: none, width, displacement, .. } = insn.memory;
            let same = base == index && none == MemoryOperand::NONE && width == Width::Qword;
            same.then(|| i32::try_from(displacement as i64).ok()).flatten()
        }
        _ => None,
    }
}

/// The same of an instruction that moves RSP and accesses the stack.
pub(super) fn stack_step(insn: &Insn) -> Option<i32> {
    match insn.mnemonic {
        Mnemonic::Push => Some(-8),
        Mnemonic::Pop => Some(8),
        _ => None,
    }
}

/// By what an instruction accesses memory.
pub(super) enum By {
    /// By the register in question and nothing else.
    It { displacement: i32, bytes: u8, write: bool },
    /// By RSP and nothing else.
    Stack,
    /// By others.
    Other,
    /// By it too, or in a way that is not told apart.
    Several,
}

pub(super) fn access_by(insn: &Insn, base: u8) -> By {
    let MemoryOperand { base: by, index, displacement, width, segment, .. } = insn.memory;
    let is_operand = insn.operands.contains(&Operand::Memory);
    match insn.mnemonic {
        Mnemonic::Push if base == RSP && !is_operand => By::It { displacement: -8, bytes: 8, write: true },
        Mnemonic::Pop if base == RSP && !is_operand => By::It { displacement: 0, bytes: 8, write: false },
        Mnemonic::Push | Mnemonic::Pop | Mnemonic::Call | Mnemonic::Ret => match base {
            RSP => By::Several,
            _ if is_operand => By::Other,
            _ => By::Stack,
        },
        _ if by == RSP && base != RSP && index == MemoryOperand::NONE => By::Stack,
        _ if by != base || index != MemoryOperand::NONE => By::Other,
        _ => {
            let row = vector::of(insn).or_else(|| effects::of(insn));
            let operand = insn.operands.iter().position(|operand| *operand == Operand::Memory);
            let flat = !matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) && width == Width::Qword;
            let bytes = u8::try_from(insn.memory_bytes).unwrap_or(0);
            match (row, operand, i32::try_from(displacement as i64)) {
                (Some(row), Some(n), Ok(displacement)) if n < 3 && flat && bytes != 0 && !row.aligned => {
                    By::It { displacement, bytes, write: row.operands[n].writes() }
                }
                _ => By::Several,
            }
        }
    }
}
