//! Instructions that are more than themselves: LEA, bytes in the middle of registers, bit scans, divisions.

use iced_x86::Mnemonic;
use semantics::{Insn, MemoryOperand, Operand};
use x86::Width;

use super::{
    Declined, Flow, Template, accesses,
    assembler::{Mem, RAX, RDX, Space, condition},
    cold::ColdKind,
    effects::Use,
};

/// Whether an instruction moves a byte between memory and AH to BH.
pub(super) fn is_high_move(insn: &Insn) -> bool {
    let is_high = |operand: &Operand| matches!(operand, Operand::Gpr(register) if register.high);
    insn.mnemonic == Mnemonic::Mov && insn.memory_bytes == 1 && insn.operands[..2].iter().any(is_high)
}

impl Template<'_> {
    pub(super) fn lea(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let Operand::Gpr(destination) = insn.operand(0) else { return Err(Declined) };
        let is_part = destination.width < Width::Dword;
        if is_part {
            self.read(destination.index);
        }
        let operand = &insn.memory;
        let narrow = operand.width != Width::Qword || destination.width != Width::Qword;
        let cut = if narrow { 0xffff_ffff } else { u64::MAX };
        let has = |register: u8| register != MemoryOperand::NONE;
        let base = has(operand.base).then(|| self.read(operand.base));
        let index = has(operand.index).then(|| (self.read(operand.index), operand.scale));
        let mem = match (base, index) {
            (None, None) if !is_part => {
                let to = self.write(destination.index);
                self.asm.constant(to, operand.displacement & cut);
                return Ok(Flow::Next);
            }
            (Some(base), index) => {
                Mem { base, index, displacement: operand.displacement as i32, space: Space::Host }
            }
            (None, index) => {
                let spare = self.registers.temporaries[0];
                self.asm.constant(spare, operand.displacement & cut);
                Mem { base: spare, index, displacement: 0, space: Space::Host }
            }
        };
        let to = match accesses::step(insn) {
            Some(by) => self.write_moved(destination.index, by),
            None => self.write(destination.index),
        };
        if is_part {
            self.asm.lea16(to, mem)
        } else if narrow {
            self.asm.lea32(to, mem)
        } else {
            self.asm.lea(to, mem)
        }
        Ok(Flow::Next)
    }

    /// MOV between memory and AH to BH, which no instruction names beside a host register from R8 on. Flags are saved.
    pub(super) fn move_high(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if self.restores {
            // The carry would be lost again.
            return Err(Declined);
        }
        let (register, what) = match (insn.operand(0), insn.operand(1)) {
            (Operand::Memory, Operand::Gpr(register)) => (register.index, Use::Write),
            (Operand::Gpr(register), Operand::Memory) => (register.index, Use::Read),
            _ => return Err(Declined),
        };
        let home = self.read(register);
        let place = self.operand_place(insn, what, false)?;
        let byte = self.last_temporary();
        self.lose_host_flags();
        if what == Use::Write {
            self.asm.mov(byte, home);
            self.asm.shift_right(byte, 8);
            self.check_again();
            self.asm.begin_access(place);
            self.asm.store8(place, byte);
        } else {
            self.check_again();
            self.asm.begin_access(place);
            self.asm.load8(byte, place);
            self.asm.rotate_right(home, 8);
            self.asm.move_low8(home, byte);
            self.asm.rotate_left(home, 8);
            self.write(register);
        }
        Ok(Flow::Next)
    }

    /// BSF, BSR: of zero, the whole destination keeps.
    pub(super) fn bit_scan(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let Operand::Gpr(destination) = insn.operand(0) else { return Err(Declined) };
        if destination.width < Width::Dword {
            return Err(Declined);
        }
        let to = self.read(destination.index);
        let memory = match insn.operand(1) {
            Operand::Memory => Some(self.operand(insn, Use::Read, false)?),
            Operand::Gpr(source) => {
                self.read(source.index);
                None
            }
            _ => return Err(Declined),
        };
        let found = self.registers.temporaries[0];
        self.encode(insn, memory, Some((0, found)))?;
        self.asm.move_if_not_zero(to, found);
        self.write(destination.index);
        self.flags_set();
        Ok(Flow::Next)
    }

    /// DIV, IDIV of 32 and 64 bits. Quotients that might not fit are the interpreter's: of signed divisions all whose
    /// dividend is wider than the divisor, or whose divisor is 0 or -1. Flags keep.
    pub(super) fn divide(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let width = insn.operand_width(0);
        if width < Width::Dword {
            return Err(Declined);
        }
        let wide = width == Width::Qword;
        let (low, high) = (self.read(RAX), self.read(RDX));
        let spare = self.registers.temporaries[0];
        let divisor = match insn.operand(0) {
            Operand::Gpr(register) => self.read(register.index),
            _ => {
                let operand = self.operand(insn, Use::Read, false)?;
                let last = self.last_temporary();
                if wide {
                    self.asm.load(last, operand)
                } else {
                    self.asm.load32(last, operand)
                }
                last
            }
        };
        self.save_flags();
        self.lose_host_flags();
        if insn.mnemonic == Mnemonic::Div {
            if wide {
                self.asm.compare_registers(high, divisor);
            } else {
                self.asm.compare_registers32(high, divisor);
            }
            self.abandon_if(condition::ABOVE_OR_EQUAL);
        } else {
            self.asm.mov(spare, low);
            if wide {
                self.asm.shift_right_signed(spare, 63);
                self.asm.compare_registers(high, spare);
            } else {
                self.asm.shift_left(spare, 32);
                self.asm.shift_right_signed(spare, 63);
                self.asm.compare_registers32(high, spare);
            }
            self.abandon_if(condition::NOT_EQUAL);
            let next = Mem::new(divisor, 1);
            if wide {
                self.asm.lea(spare, next)
            } else {
                self.asm.lea32(spare, next)
            }
            // Of -1 and 0: 0 and 1.
            self.asm.compare_immediate_register(spare, 2);
            self.abandon_if(condition::BELOW);
        }
        self.encode(insn, None, Some((0, divisor)))?;
        self.write(RAX);
        self.write(RDX);
        Ok(Flow::Next)
    }

    /// Leaves the current instruction to the interpreter if a condition holds. Flags are saved.
    pub(super) fn abandon_if(&mut self, condition: u8) {
        let from = self.asm.jump_if(condition);
        self.note(from, 0, ColdKind::Abandon);
    }
}
