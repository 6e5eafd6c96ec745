//! The stack: PUSH, POP, LEAVE, and the stack's part in CALL and RET. 64-bit forms only.

use semantics::{Insn, Operand};
use x86::{Width, state};

use super::{
    Declined, Flow, Template,
    assembler::{Mem, Reg},
    effects::Use,
    memory::{Access, Address},
};

const RSP: u8 = state::RSP as u8;
const RBP: u8 = 5;

/// What is pushed.
#[derive(Clone, Copy)]
pub(super) enum Pushed {
    Register(Reg),
    Constant(u64),
}

impl Template<'_> {
    pub(super) fn push(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if insn.width != Width::Qword {
            return Err(Declined);
        }
        let value = match insn.operand(0) {
            Operand::Gpr(register) => Pushed::Register(self.read(register.index)),
            Operand::Immediate => Pushed::Constant(insn.immediate),
            Operand::Memory => Pushed::Register(self.load_to_last_temporary(insn)?),
            _ => return Err(Declined),
        };
        self.push_value(value)?;
        Ok(Flow::Next)
    }

    /// Loads the 64-bit memory operand to the last temporary, which the lookup of a push leaves alone.
    pub(super) fn load_to_last_temporary(&mut self, insn: &Insn) -> Result<Reg, Declined> {
        let operand = self.operand_place(insn, Use::Read, false)?;
        let value = self.last_temporary();
        self.check_again();
        self.asm.begin_access(operand);
        self.asm.load(value, operand);
        Ok(value)
    }

    /// Pushes 64 bits. Uses the first two temporaries.
    pub(super) fn push_value(&mut self, value: Pushed) -> Result<(), Declined> {
        let top = self.read(RSP);
        let place = self.place(Address::Based { base: top, displacement: -8 }, Access::write(8))?;
        match value {
            Pushed::Register(register) => {
                self.asm.begin_access(place);
                self.asm.store(place, register);
            }
            Pushed::Constant(value) => {
                let spare = self.registers.temporaries[0];
                if let Ok(value) = i32::try_from(value as i64) {
                    self.asm.begin_access(place);
                    self.asm.store_immediate(place, value);
                } else {
                    self.known.forget_shared();
                    self.asm.constant(spare, value);
                    self.asm.begin_access(place);
                    self.asm.store(place, spare);
                }
            }
        }
        self.asm.lea(top, Mem::new(top, -8));
        self.write_moved(RSP, -8);
        Ok(())
    }

    /// The place of the 64 bits on top, and the register that RSP is in.
    pub(super) fn top(&mut self) -> Result<(Mem, Reg), Declined> {
        let top = self.read(RSP);
        let place = self.place(Address::Based { base: top, displacement: 0 }, Access::read(8))?;
        Ok((place, top))
    }

    pub(super) fn pop(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let Operand::Gpr(register) = insn.operand(0) else { return Err(Declined) };
        if insn.width != Width::Qword {
            return Err(Declined);
        }
        let (place, top) = self.top()?;
        let to = self.write(register.index);
        self.asm.begin_access(place);
        self.asm.load(to, place);
        if register.index != RSP {
            self.asm.lea(top, Mem::new(top, 8));
            self.write_moved(RSP, 8);
        }
        Ok(Flow::Next)
    }

    /// The target of RET, in the last temporary, and by how much it moves RSP, which is in its home.
    pub(super) fn pop_target(&mut self, insn: &Insn) -> Result<(Reg, i32), Declined> {
        let released = match insn.operand(0) {
            Operand::Immediate => insn.immediate as i32 & 0xffff,
            _ => 0,
        };
        let (place, _) = self.top()?;
        let target = self.last_temporary();
        self.check_again();
        self.asm.begin_access(place);
        self.asm.load(target, place);
        Ok((target, 8 + released))
    }

    pub(super) fn leave_frame(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if insn.width != Width::Qword {
            return Err(Declined);
        }
        let frame = self.read(RBP);
        let place = self.lookup(Address::Based { base: frame, displacement: 0 }, Access::read(8))?;
        let top = self.write(RSP);
        self.asm.lea(top, Mem::new(frame, 8));
        self.asm.load(frame, place);
        self.write(RBP);
        Ok(Flow::Next)
    }
}
