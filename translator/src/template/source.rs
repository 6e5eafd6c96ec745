//! [`Source`]: an instruction that set the flags, as long as they can be computed again from what it left: its operands, or its
//! result and the other operand. Then nothing needs to be kept where host flags are lost, which is at every lookup of an
//! access: mostly nothing but a fault could see the flags, and that is a cold path. An operand in memory is loaded to RAX for that in regions,
//! where flags are kept otherwise.

use iced_x86::{Code, Instruction, Mnemonic, Register as Iced};
use semantics::{Insn, Operand, Register};
use x86::Width;

use super::{
    Template,
    assembler::{RAX, Reg},
    effects::{self, FlagUse, Set},
    flags::Fate,
};

/// See the module's description.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Source {
    how: How,
    /// Block and instruction.
    at: (usize, usize),
    /// Guest registers that it is computed from.
    pub registers: Set,
    /// So is RAX, which has the operand in memory.
    pub loaded: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum How {
    /// The instruction once more.
    Again,
    /// From the result of AND, OR, XOR.
    Result,
    /// From the sum or difference, undone and done again.
    Sum,
    Difference,
    Negation,
}

impl Source {
    /// `loaded`: its operand in memory is in RAX.
    fn of(insn: &Insn, at: (usize, usize), loaded: bool) -> Option<Self> {
        use Mnemonic::*;
        let gpr = |n: usize| match insn.operand(n) {
            Operand::Gpr(register) => Some(register),
            _ => None,
        };
        let (first, second) = (gpr(0), gpr(1));
        let same = first.zip(second).is_some_and(|(first, second)| second.index == first.index);
        let high = first.is_some_and(|first| first.high) || second.is_some_and(|second| second.high);
        let width = insn.operand_width(0);
        let wide = width >= Width::Dword;
        let in_memory = insn.operands.contains(&Operand::Memory);
        let how = match insn.mnemonic {
            _ if high || width == Width::Word => return None,
            Cmp | Test if loaded || !in_memory => How::Again,
            _ if first.is_none() => return None,
            And | Or | Xor => How::Result,
            Sub if same => How::Result,
            Add if wide && !same && (loaded || !in_memory) => How::Sum,
            Sub if wide && (loaded || !in_memory) => How::Difference,
            Neg if wide => How::Negation,
            _ => return None,
        };
        let bit = |register: Option<Register>| register.map_or(0, |register| 1 << register.index);
        let second = second.filter(|_| how != How::Result);
        Some(Self { how, at, registers: bit(first) | bit(second), loaded: loaded && how != How::Result })
    }
}

/// Whether the value of an operand in memory, which is read only, makes a source of an instruction.
pub(super) fn wants_load(insn: &Insn) -> bool {
    matches!(insn.mnemonic, Mnemonic::Cmp | Mnemonic::Test | Mnemonic::Add | Mnemonic::Sub)
        && insn.operand_width(0) != Width::Word
}

/// Codes of an operation by operand form: registers, or a register and an immediate; each of 32 and 64 bits.
type Codes = [[Code; 2]; 2];

const ADD: Codes = [[Code::Add_r32_rm32, Code::Add_r64_rm64], [Code::Add_rm32_imm32, Code::Add_rm64_imm32]];
const SUB: Codes = [[Code::Sub_r32_rm32, Code::Sub_r64_rm64], [Code::Sub_rm32_imm32, Code::Sub_rm64_imm32]];
const CMP: Codes = [[Code::Cmp_r32_rm32, Code::Cmp_r64_rm64], [Code::Cmp_rm32_imm32, Code::Cmp_rm64_imm32]];

impl Template<'_> {
    /// The current instruction has set the flags, from what it may be a source of; `loaded`: from RAX instead of memory.
    pub(super) fn note_source(&mut self, insn: &Insn, loaded: bool) {
        self.flags.source = Source::of(insn, (self.at, self.index), loaded);
    }

    /// Sees to it that flags outlive a change of guest registers by the current instruction, which comes after its accesses.
    pub(super) fn keep_flags_from(&mut self, insn: &Insn) {
        let Some(source) = self.flags.source.filter(|_| self.flags.are_loose()) else { return };
        if effects::written(insn) & source.registers == 0 {
            return;
        }
        let own = effects::of(insn).map(|effects| effects.flags);
        let accesses = effects::accesses(insn);
        if own == Some(FlagUse::Set) {
            // Its own accesses find the source as it is; after it there are other flags.
            return;
        }
        match self.fate() {
            Fate::Dead if own == Some(FlagUse::None) => {
                if !accesses {
                    self.drop_flags();
                }
            }
            // The carry is computed behind the lookup.
            Fate::CarryRead if own == Some(FlagUse::None) && effects::is_load(insn) => self.restores = true,
            _ if accesses || own.is_none() => self.keep_flags_themselves(),
            Fate::Read | Fate::CarryRead => self.need_flags(),
            _ if self.flags.in_host() => {}
            _ => self.keep_flags_themselves(),
        }
        if !self.restores {
            self.flags.source = self.flags.source.filter(|_| accesses && self.flags.are_loose());
        }
    }

    /// The same where a guest register loses its home.
    pub(super) fn keep_flags_without(&mut self, guest: u8) {
        if self.flags.source.is_some_and(|source| source.registers >> guest & 1 != 0) {
            self.keep_flags_themselves();
            self.flags.source = None;
        }
    }

    /// Behind the lookup of a load that overwrites what the carry flag is computed from, before an ADC or SBB.
    pub(super) fn restore_carry(&mut self) {
        if !core::mem::take(&mut self.restores) {
            return;
        }
        self.note_flags();
        if let Some(source) = self.flags.source {
            let insn = self.blocks[source.at.0].insns[source.at.1];
            match (source.how, insn.operand(0)) {
                // The sum of two numbers is less than either if it overflows.
                (How::Sum, Operand::Gpr(first)) => {
                    self.operate(CMP, first.width, self.registers.home(first.index), &insn);
                }
                _ => self.compute_again(source),
            }
        }
        self.flags_set();
    }

    /// Sets the host's flags as the source did. Uses the last temporary.
    pub(super) fn compute_again(&mut self, source: Source) {
        let insn = self.blocks[source.at.0].insns[source.at.1];
        let width = insn.operand_width(0);
        if source.how == How::Again {
            let memory = insn.operands.iter().position(|operand| *operand == Operand::Memory);
            let instead = memory.filter(|_| source.loaded).map(|n| (n as u32, RAX));
            // It was encoded once.
            let _ = self.encode(&insn, None, instead);
            return;
        }
        let Operand::Gpr(first) = insn.operand(0) else { return };
        let (result, spare) = (self.registers.home(first.index), self.registers.temporaries[2]);
        match source.how {
            How::Again => {}
            // RAX, which would be the spare one, has the operand.
            How::Sum if source.loaded => {
                self.operate(SUB, width, result, &insn);
                self.operate(ADD, width, result, &insn);
            }
            How::Difference if source.loaded => {
                self.operate(ADD, width, result, &insn);
                self.operate(SUB, width, result, &insn);
            }
            How::Result => {
                let code = match width {
                    Width::Byte => Code::Test_rm8_r8,
                    Width::Dword => Code::Test_rm32_r32,
                    _ => Code::Test_rm64_r64,
                };
                self.emit(code, [result, result], width);
            }
            How::Sum => {
                self.asm.mov(spare, result);
                self.operate(SUB, width, spare, &insn);
                self.operate(ADD, width, spare, &insn);
            }
            How::Difference => {
                self.asm.mov(spare, result);
                self.operate(ADD, width, spare, &insn);
                self.operate(CMP, width, spare, &insn);
            }
            How::Negation => {
                self.asm.mov(spare, result);
                let code = if width == Width::Dword { Code::Neg_rm32 } else { Code::Neg_rm64 };
                self.emit(code, [spare], width);
                self.emit(code, [spare], width);
            }
        }
    }

    /// `register` op the second operand of an instruction.
    fn operate(&mut self, codes: Codes, width: Width, register: Reg, insn: &Insn) {
        let wide = usize::from(width == Width::Qword);
        match insn.operand(1) {
            Operand::Gpr(second) => {
                self.emit(codes[0][wide], [register, self.registers.home(second.index)], width);
            }
            Operand::Memory => self.emit(codes[0][wide], [register, RAX], width),
            _ => {
                let mut host = Instruction::default();
                host.set_code(codes[1][wide]);
                host.set_op_register(0, super::instruction::gpr(register, width, false));
                let kind = super::instruction::immediate_kind(host.op_code().op_kind(1));
                host.set_op_kind(1, kind.unwrap_or(iced_x86::OpKind::Immediate32));
                host.set_immediate_i64(1, insn.immediate as i64);
                let encoded = self.asm.instruction(&host);
                debug_assert!(encoded, "{host:?}");
            }
        }
    }

    fn emit<const N: usize>(&mut self, code: Code, registers: [Reg; N], width: Width) {
        let mut host = Instruction::default();
        host.set_code(code);
        for (n, register) in registers.into_iter().enumerate() {
            let register: Iced = super::instruction::gpr(register, width, false);
            host.set_op_register(n as u32, register);
        }
        let encoded = self.asm.instruction(&host);
        debug_assert!(encoded, "{host:?}");
    }
}
