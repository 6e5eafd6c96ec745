//! Bit tests at register offsets in memory: the offset is signed, and reaches beyond the operand.

use iced_x86::Mnemonic;
use semantics::{Insn, Operand};
use x86::{CpuState, Width};

use super::{
    Declined, Flow, Template,
    assembler::{Mem, Reg},
    memory::{Access, Address},
};

/// A word of scratch that nothing on the way uses.
const SCRATCH: usize = core::mem::offset_of!(CpuState, scratch) + 7 * 8;

/// Whether an instruction is one of them.
pub(super) fn is_one(insn: &Insn) -> bool {
    matches!(insn.mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.operand(0) == Operand::Memory
        && matches!(insn.operand(1), Operand::Gpr(_))
}

impl Template<'_> {
    pub(super) fn bit_string(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let Operand::Gpr(offset) = insn.operand(1) else { return Err(Declined) };
        if insn.memory.width != Width::Qword {
            return Err(Declined);
        }
        let width = offset.width;
        let offset = self.read(offset.index);
        let address = self.address(insn);
        let [first, second, _] = self.registers.temporaries;
        let third = self.last_temporary();
        self.lose_host_flags();
        self.linear(address, first);
        match width {
            Width::Qword => self.asm.mov(second, offset),
            Width::Dword => self.asm.sign_extend32(second, offset),
            _ => self.asm.sign_extend16(second, offset),
        }
        // To operands of its width, and to bytes.
        self.asm.shift_right_signed(second, width.bits().trailing_zeros() as u8);
        self.asm.shift_left(second, width.bytes().trailing_zeros() as u8);
        self.asm.add(first, second);
        let write = insn.mnemonic != Mnemonic::Bt;
        let access = Access { bytes: width.bytes() as u8, write, aligned: insn.lock };
        let place = self.lookup(Address::Ready, access)?;
        if insn.lock {
            self.locked_bit(insn, place, offset, width)?;
        } else {
            if !self.flags_are_dead() {
                self.need_flags();
            }
            self.load_width(width, third, place);
            // Of a register, the offset counts within the operand.
            self.encode(insn, None, Some((0, third)))?;
            if write {
                self.store_width(width, place, third);
            }
        }
        self.flags_set();
        Ok(Flow::Next)
    }

    /// The host's instruction at an offset cut to the operand.
    fn locked_bit(&mut self, insn: &Insn, place: Mem, offset: Reg, width: Width) -> Result<(), Declined> {
        let third = self.last_temporary();
        self.asm.mov(third, offset);
        self.asm.and_immediate(third, width.bits() as i32 - 1);
        if !self.flags_are_dead() {
            // That takes the register.
            self.asm.store(Mem::state(SCRATCH), third);
            self.need_flags();
            self.asm.load(third, Mem::state(SCRATCH));
        }
        self.encode(insn, Some(place), Some((1, third)))
    }

    /// Loads as much, zero-extended.
    pub(super) fn load_width(&mut self, width: Width, to: Reg, from: Mem) {
        match width {
            Width::Byte => self.asm.load8(to, from),
            Width::Word => self.asm.load16(to, from),
            Width::Dword => self.asm.load32(to, from),
            Width::Qword => self.asm.load(to, from),
        }
    }

    /// Stores as much.
    pub(super) fn store_width(&mut self, width: Width, to: Mem, from: Reg) {
        match width {
            Width::Byte => self.asm.store8(to, from),
            Width::Word => self.asm.store16(to, from),
            Width::Dword => self.asm.store32(to, from),
            Width::Qword => self.asm.store(to, from),
        }
    }
}
