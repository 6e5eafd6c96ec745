//! Encoding guest instructions again, over host registers and host addresses.

use iced_x86::{Code, Instruction, Mnemonic, OpCodeOperandKind, OpKind, Register as Iced};
use semantics::{Insn, Operand, Register};
use x86::Width;

use super::{
    Declined, Template, accesses,
    assembler::{Mem, RAX, RCX, Reg, Space},
    effects::{Effects, FlagUse, Use},
    encoding,
    form::{self, Field},
    memory::{Access, Address},
    registers::numbers,
    source,
};
use crate::Part;

impl Template<'_> {
    /// The current instruction, as its row says.
    pub(super) fn encode_again(&mut self, insn: &Insn, effects: Effects) -> Result<(), Declined> {
        if effects.float {
            if self.mode.float_traps() {
                return Err(Declined);
            }
            self.need_mxcsr();
        }
        if effects.xmm0 == Some(Use::Read) {
            self.read_xmm(0);
        }
        let mut memory = None;
        for (n, operand) in insn.operands.into_iter().enumerate().take(3) {
            let what = effects.operands[n];
            match operand {
                Operand::Gpr(register) if what.reads() || register.width < Width::Dword => {
                    self.read(register.index);
                }
                Operand::Xmm(index) if what.reads() => {
                    self.read_xmm(index);
                }
                Operand::Memory => memory = Some(what),
                _ => {}
            }
        }
        for guest in numbers(effects.reads) {
            self.read(guest);
        }
        let memory = match memory {
            Some(what) => Some(self.operand_place(insn, what, effects.aligned)?),
            None => None,
        };
        match effects.flags {
            FlagUse::Read | FlagUse::Update => self.need_flags(),
            FlagUse::Merge if !self.flags_are_dead() => self.need_flags(),
            _ => {}
        }
        let loaded = self.load_operand(insn, effects, memory);
        match loaded {
            Some(n) => self.encode(insn, None, Some((n, RAX)))?,
            None => self.encode(insn, memory, None)?,
        }
        for (n, operand) in insn.operands.into_iter().enumerate().take(3) {
            match operand {
                Operand::Gpr(register) if effects.operands[n].writes() => {
                    match accesses::step(insn).filter(|_| n == 0) {
                        Some(by) => self.write_moved(register.index, by),
                        None => self.write(register.index),
                    };
                    if register.width == Width::Dword {
                        self.known.shorten(register.index);
                    }
                }
                Operand::Xmm(index) if effects.operands[n].writes() => self.write_xmm(index),
                _ => {}
            }
        }
        for guest in numbers(effects.writes) {
            self.write(guest);
        }
        if effects.xmm0 == Some(Use::Write) {
            self.write_xmm(0);
        }
        if effects.flags.writes() {
            self.flags_set();
            if effects.flags == FlagUse::Set {
                self.note_source(insn, loaded.is_some());
            }
        }
        Ok(())
    }

    /// Loads the operand in memory, which was looked up, to RAX if that makes the instruction a source of the flags that it sets, and something
    /// could see them. Gives its number.
    fn load_operand(&mut self, insn: &Insn, effects: Effects, memory: Option<Mem>) -> Option<u32> {
        let n = insn.operands.iter().position(|operand| *operand == Operand::Memory)?;
        let sets = effects.flags == FlagUse::Set && effects.operands[n] == Use::Read;
        if self.course.is_none()
            || !self.registers.keeps_flags()
            || !sets
            || !source::wants_load(insn)
            || self.flags_are_dead()
        {
            return None;
        }
        let memory = memory.filter(|_| matches!(insn.memory_bytes, 1 | 4 | 8))?;
        self.asm.begin_access(memory);
        match insn.memory_bytes {
            1 => self.asm.load8(RAX, memory),
            4 => self.asm.load32(RAX, memory),
            _ => self.asm.load(RAX, memory),
        }
        Some(n as u32)
    }

    /// The memory operand, looked up.
    pub(super) fn operand(&mut self, insn: &Insn, what: Use, aligned: bool) -> Result<Mem, Declined> {
        let (address, access) = self.operand_access(insn, what, aligned)?;
        self.lookup(address, access)
    }

    /// The same, perhaps in the window: for who accesses it next, and changes nothing before that.
    pub(super) fn operand_place(&mut self, insn: &Insn, what: Use, aligned: bool) -> Result<Mem, Declined> {
        let (address, access) = self.operand_access(insn, what, aligned)?;
        self.place(address, access)
    }

    fn operand_access(
        &mut self,
        insn: &Insn,
        what: Use,
        aligned: bool,
    ) -> Result<(Address, Access), Declined> {
        let bytes = match insn.memory_bytes {
            bytes @ (1 | 2 | 4 | 8 | 16) => bytes as u8,
            _ => return Err(Declined),
        };
        let address = self.address(insn);
        Ok((address, Access { bytes, write: what.writes(), aligned }))
    }

    /// Encodes the instruction with `memory` for its memory operand and `instead`, if any, for the operand of that number.
    pub(super) fn encode(
        &mut self,
        insn: &Insn,
        memory: Option<Mem>,
        instead: Option<(u32, Reg)>,
    ) -> Result<(), Declined> {
        let code = canonical(insn.code);
        if self.encode_simply(code, insn, memory, instead).is_some() {
            return Ok(());
        }
        let mut host = Instruction::default();
        host.set_code(code);
        let op_code = host.op_code();
        for n in 0..op_code.op_count() {
            let operand = insn.operand(n as usize);
            if let Some((_, register)) = instead.filter(|(number, _)| *number == n) {
                host.set_op_register(n, gpr(register, insn.operand_width(n as usize), false));
                continue;
            }
            match operand {
                Operand::Gpr(Register { index, width, high }) => {
                    host.set_op_register(n, gpr(self.registers.home(index), width, high));
                }
                Operand::Xmm(index) => host.set_op_register(n, Iced::XMM0 + u32::from(index)),
                Operand::Memory => {
                    set_memory(&mut host, n, memory.ok_or(Declined)?);
                }
                Operand::Immediate => {
                    host.set_op_kind(n, immediate_kind(op_code.op_kind(n)).ok_or(Declined)?);
                    host.set_immediate_u64(n, insn.immediate);
                }
                _ => return Err(Declined),
            }
        }
        if memory.is_some_and(|memory| memory.space != Space::Host) {
            self.asm.note_window();
        }
        // CMPXCHG16B is carried out atomically whether it says so or not.
        host.set_has_lock_prefix(insn.lock || insn.mnemonic == Mnemonic::Cmpxchg16b);
        if self.asm.instruction(&host) { Ok(()) } else { Err(Declined) }
    }
}

impl Template<'_> {
    /// The same, if it has a [`Form`](super::form::Form) and nothing is special about it.
    fn encode_simply(
        &mut self,
        code: Code,
        insn: &Insn,
        memory: Option<Mem>,
        instead: Option<(u32, Reg)>,
    ) -> Option<()> {
        let form = form::of(code)?;
        if insn.lock || insn.mnemonic == Mnemonic::Cmpxchg16b {
            return None;
        }
        debug_assert!(!form.counts_by_cl || self.registers.home(RCX) == RCX, "see `effects::implied`");
        let register = |number: u8| match (insn.operand(number.into()), instead) {
            (_, Some((other, register))) if other == u32::from(number) => Some(register),
            (Operand::Gpr(Register { index, high: false, .. }), _) => Some(self.registers.home(index)),
            (Operand::Xmm(index), _) => Some(index),
            _ => None,
        };
        let field = match form.register {
            Field::Operand(number) => register(number)?,
            Field::Digit(digit) => digit,
        };
        let operand = match register(form.operand) {
            Some(register) => encoding::Operand::Register(register),
            None if insn.operand(form.operand.into()) == Operand::Memory => {
                self.asm.begin_access(memory?);
                memory?.into()
            }
            None => return None,
        };
        self.asm.of_form(form, field, operand, insn.immediate);
        Some(())
    }
}

/// Makes memory the operand of a number.
pub(super) fn set_memory(host: &mut Instruction, operand: u32, memory: Mem) {
    host.set_op_kind(operand, OpKind::Memory);
    if memory.space == Space::Guest(Part::High) {
        host.set_segment_prefix(Iced::GS);
    }
    host.set_memory_base(Iced::RAX + u32::from(memory.base));
    if let Some((index, scale)) = memory.index {
        host.set_memory_index(Iced::RAX + u32::from(index));
        host.set_memory_index_scale(1 << scale);
    }
    host.set_memory_displacement64(i64::from(memory.displacement) as u64);
    host.set_memory_displ_size(u32::from(memory.displacement != 0));
}

/// iced's name of a host register.
pub(super) fn gpr(register: Reg, width: Width, high: bool) -> Iced {
    let number = u32::from(register);
    match width {
        Width::Qword => Iced::RAX + number,
        Width::Dword => Iced::EAX + number,
        Width::Word => Iced::AX + number,
        Width::Byte if high => Iced::AH + number,
        Width::Byte if number < 4 => Iced::AL + number,
        Width::Byte => Iced::SPL + (number - 4),
    }
}

/// Forms whose address or register is part of the encoding have others that do the same.
fn canonical(code: Code) -> Code {
    match code {
        Code::Mov_AL_moffs8 => Code::Mov_r8_rm8,
        Code::Mov_AX_moffs16 => Code::Mov_r16_rm16,
        Code::Mov_EAX_moffs32 => Code::Mov_r32_rm32,
        Code::Mov_RAX_moffs64 => Code::Mov_r64_rm64,
        Code::Mov_moffs8_AL => Code::Mov_rm8_r8,
        Code::Mov_moffs16_AX => Code::Mov_rm16_r16,
        Code::Mov_moffs32_EAX => Code::Mov_rm32_r32,
        Code::Mov_moffs64_RAX => Code::Mov_rm64_r64,
        Code::Add_AL_imm8 => Code::Add_rm8_imm8,
        Code::Add_AX_imm16 => Code::Add_rm16_imm16,
        Code::Add_EAX_imm32 => Code::Add_rm32_imm32,
        Code::Add_RAX_imm32 => Code::Add_rm64_imm32,
        Code::Or_AL_imm8 => Code::Or_rm8_imm8,
        Code::Or_AX_imm16 => Code::Or_rm16_imm16,
        Code::Or_EAX_imm32 => Code::Or_rm32_imm32,
        Code::Or_RAX_imm32 => Code::Or_rm64_imm32,
        Code::Adc_AL_imm8 => Code::Adc_rm8_imm8,
        Code::Adc_AX_imm16 => Code::Adc_rm16_imm16,
        Code::Adc_EAX_imm32 => Code::Adc_rm32_imm32,
        Code::Adc_RAX_imm32 => Code::Adc_rm64_imm32,
        Code::Sbb_AL_imm8 => Code::Sbb_rm8_imm8,
        Code::Sbb_AX_imm16 => Code::Sbb_rm16_imm16,
        Code::Sbb_EAX_imm32 => Code::Sbb_rm32_imm32,
        Code::Sbb_RAX_imm32 => Code::Sbb_rm64_imm32,
        Code::And_AL_imm8 => Code::And_rm8_imm8,
        Code::And_AX_imm16 => Code::And_rm16_imm16,
        Code::And_EAX_imm32 => Code::And_rm32_imm32,
        Code::And_RAX_imm32 => Code::And_rm64_imm32,
        Code::Sub_AL_imm8 => Code::Sub_rm8_imm8,
        Code::Sub_AX_imm16 => Code::Sub_rm16_imm16,
        Code::Sub_EAX_imm32 => Code::Sub_rm32_imm32,
        Code::Sub_RAX_imm32 => Code::Sub_rm64_imm32,
        Code::Xor_AL_imm8 => Code::Xor_rm8_imm8,
        Code::Xor_AX_imm16 => Code::Xor_rm16_imm16,
        Code::Xor_EAX_imm32 => Code::Xor_rm32_imm32,
        Code::Xor_RAX_imm32 => Code::Xor_rm64_imm32,
        Code::Cmp_AL_imm8 => Code::Cmp_rm8_imm8,
        Code::Cmp_AX_imm16 => Code::Cmp_rm16_imm16,
        Code::Cmp_EAX_imm32 => Code::Cmp_rm32_imm32,
        Code::Cmp_RAX_imm32 => Code::Cmp_rm64_imm32,
        Code::Test_AL_imm8 => Code::Test_rm8_imm8,
        Code::Test_AX_imm16 => Code::Test_rm16_imm16,
        Code::Test_EAX_imm32 => Code::Test_rm32_imm32,
        Code::Test_RAX_imm32 => Code::Test_rm64_imm32,
        Code::Xchg_r16_AX => Code::Xchg_rm16_r16,
        Code::Xchg_r32_EAX => Code::Xchg_rm32_r32,
        Code::Xchg_r64_RAX => Code::Xchg_rm64_r64,
        other => other,
    }
}

pub(super) fn immediate_kind(kind: OpCodeOperandKind) -> Option<OpKind> {
    Some(match kind {
        OpCodeOperandKind::imm8 | OpCodeOperandKind::imm8_const_1 => OpKind::Immediate8,
        OpCodeOperandKind::imm8sex16 => OpKind::Immediate8to16,
        OpCodeOperandKind::imm8sex32 => OpKind::Immediate8to32,
        OpCodeOperandKind::imm8sex64 => OpKind::Immediate8to64,
        OpCodeOperandKind::imm16 => OpKind::Immediate16,
        OpCodeOperandKind::imm32 => OpKind::Immediate32,
        OpCodeOperandKind::imm32sex64 => OpKind::Immediate32to64,
        OpCodeOperandKind::imm64 => OpKind::Immediate64,
        _ => return None,
    })
}
