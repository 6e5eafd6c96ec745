//! String instructions. One element is done here, at addresses of 64 bits; with REP, the runtime does first what it can at
//! once, and a further element is the same instruction once more: through a chain slot, so with a poll.

use core::mem::offset_of;

use iced_x86::Mnemonic;
use semantics::{Bulk, Insn, Repeat, Repetition};
use x86::{CpuState, SegmentRegister, Width, flags};

use super::{
    Declined, Flow, Template,
    assembler::{Mem, RAX, RCX, RDI, RSI, condition, gpr_offset},
    cold::ColdKind,
    memory::{Access, Address},
};
use crate::abi::RuntimeHelper;

const RFLAGS: usize = offset_of!(CpuState, rflags);

/// Which one an instruction is.
fn kind(insn: &Insn) -> Option<Bulk> {
    use Mnemonic::*;
    Some(match insn.mnemonic {
        Movsb | Movsw | Movsd | Movsq => Bulk::Movs,
        Stosb | Stosw | Stosd | Stosq => Bulk::Stos,
        Lodsb | Lodsw | Lodsd | Lodsq => Bulk::Lods,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => Bulk::Cmps,
        Scasb | Scasw | Scasd | Scasq => Bulk::Scas,
        _ => return None,
    })
}

impl Template<'_> {
    pub(super) fn string(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        let kind = kind(insn).ok_or(Declined)?;
        if insn.address_width != Width::Qword {
            return Err(Declined);
        }
        if insn.repeat == Repeat::None {
            self.element(insn, kind)?;
        } else {
            self.repeat(insn, kind)?;
        }
        Ok(Flow::Next)
    }

    /// CLD, STD.
    pub(super) fn set_direction(&mut self, down: bool) {
        self.save_flags();
        self.lose_host_flags();
        let direction = flags::DF as i32;
        if down {
            self.asm.or_memory(Mem::state(RFLAGS), direction);
        } else {
            self.asm.and_memory(Mem::state(RFLAGS), !direction);
        }
    }

    fn repeat(&mut self, insn: &Insn, kind: Bulk) -> Result<(), Declined> {
        self.settle();
        self.lose_host_flags();
        if kind != Bulk::Lods {
            self.asm.compare_immediate(Mem::state(gpr_offset(RCX)), Repetition::FEWEST as i32);
            let few = self.asm.jump_if(condition::BELOW);
            self.call_runtime(RuntimeHelper::Bulk, Some(Repetition::of(kind, insn).to_bits()));
            self.asm.bind(few);
        }
        // What is known behind the element is what is known here, whether there is one or not.
        let count = self.read(RCX);
        for register in [RAX, RSI, RDI] {
            self.read(register);
        }
        let (registers, flags) = (self.registers, self.flags);
        self.asm.test(count, count);
        let none = self.asm.jump_if(condition::EQUAL);
        self.element(insn, kind)?;
        self.asm.lea(count, Mem::new(count, -1));
        self.write(RCX);
        self.settle();
        let differs = kind.compares().then(|| {
            let ends = if insn.repeat == Repeat::Equal { condition::NOT_EQUAL } else { condition::EQUAL };
            self.asm.jump_if(ends)
        });
        self.asm.test(count, count);
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        self.note(from, 0, ColdKind::Again);
        self.asm.bind(none);
        if let Some(differs) = differs {
            self.asm.bind(differs);
        }
        self.registers = registers;
        self.merge_flags(flags);
        Ok(())
    }

    /// One element, with its flags in the host's if it compares. Accesses are in the order in which they may fault.
    fn element(&mut self, insn: &Insn, kind: Bulk) -> Result<(), Declined> {
        let width = insn.width;
        let bytes = width.bytes() as u8;
        let first = self.registers.temporaries[0];
        let third = self.last_temporary();
        let from = if kind.reads_source() { Some(self.source(insn)) } else { None };
        let to = Address::Based { base: self.read(RDI), displacement: 0 };
        match (kind, from) {
            (Bulk::Movs, Some(from)) => {
                let from = self.lookup(from, Access::read(bytes))?;
                self.load_width(width, third, from);
                let to = self.lookup(to, Access::write(bytes))?;
                self.store_width(width, to, third);
                self.advance(width, &[RSI, RDI]);
            }
            (Bulk::Lods, Some(from)) => {
                let accumulator = self.read(RAX);
                let from = self.lookup(from, Access::read(bytes))?;
                match width {
                    Width::Byte => self.asm.load_low8(accumulator, from),
                    Width::Word => self.asm.load_low16(accumulator, from),
                    Width::Dword => self.asm.load32(accumulator, from),
                    Width::Qword => self.asm.load(accumulator, from),
                }
                self.write(RAX);
                self.advance(width, &[RSI]);
            }
            (Bulk::Cmps, Some(from)) => {
                if !matches!(from, Address::Based { .. }) {
                    // Its lookup takes the third temporary.
                    return Err(Declined);
                }
                let to = self.lookup(to, Access::read(bytes))?;
                self.load_width(width, third, to);
                let from = self.lookup(from, Access::read(bytes))?;
                self.load_width(width, first, from);
                self.advance(width, &[RSI, RDI]);
                self.compare_width(width, first, third);
            }
            (Bulk::Scas, _) => {
                let accumulator = self.read(RAX);
                let to = self.lookup(to, Access::read(bytes))?;
                self.load_width(width, third, to);
                self.advance(width, &[RDI]);
                self.compare_width(width, accumulator, third);
            }
            _ => {
                let accumulator = self.read(RAX);
                let to = self.lookup(to, Access::write(bytes))?;
                self.store_width(width, to, accumulator);
                self.advance(width, &[RDI]);
            }
        }
        Ok(())
    }

    /// Where the element at segment:RSI is.
    fn source(&mut self, insn: &Insn) -> Address {
        let base = self.read(RSI);
        let segment = insn.memory.segment;
        if !matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) {
            return Address::Based { base, displacement: 0 };
        }
        let (base, segment) = (Some(base), Some(segment));
        Address::Computed { base, index: None, displacement: 0, narrow: false, segment }
    }

    /// Moves registers by one element, the way DF says. Uses the second temporary.
    fn advance(&mut self, width: Width, moved: &[u8]) {
        let bytes = width.bytes() as i32;
        let back = self.registers.temporaries[1];
        // Twice the element's size if DF is set, or 0.
        self.asm.load(back, Mem::state(RFLAGS));
        self.asm.and_immediate(back, flags::DF as i32);
        self.asm.shift_right(back, (flags::DF.trailing_zeros() - 1 - bytes.trailing_zeros()) as u8);
        for &guest in moved {
            let register = self.registers.home(guest);
            self.asm.subtract(register, back);
            self.asm.lea(register, Mem::new(register, bytes));
            self.write(guest);
        }
    }

    /// Sets the flags for `a - b`.
    fn compare_width(&mut self, width: Width, a: u8, b: u8) {
        match width {
            Width::Byte => self.asm.compare_registers8(a, b),
            Width::Word => self.asm.compare_registers16(a, b),
            Width::Dword => self.asm.compare_registers32(a, b),
            Width::Qword => self.asm.compare_registers(a, b),
        }
        self.flags_set();
    }
}
