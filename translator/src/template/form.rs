//! How instructions are encoded, as iced-x86's tables say: what is simple among the legacy encodings, which is nearly all that guests
//! run, can be written by [`super::encoding`], in a fifth of the time of a general encoder.

use std::sync::LazyLock;

use iced_x86::{Code, EncodingKind, MandatoryPrefix, OpCodeInfo, OpCodeOperandKind, OpCodeTableKind};

use super::encoding::{Immediate, Opcode};

/// A way to encode.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Form {
    pub opcode: Opcode,
    /// What ModRM's reg says.
    pub register: Field,
    /// The operand in ModRM's r/m.
    pub operand: u8,
    /// What the operand that is an immediate takes.
    pub immediate: Immediate,
    /// An operand is a count in CL, which is where it has to be.
    pub counts_by_cl: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Field {
    /// The operand of that number.
    Operand(u8),
    /// A part of the opcode.
    Digit(u8),
}

/// The form of an encoding that has one.
#[inline]
pub(super) fn of(code: Code) -> Option<&'static Form> {
    static FORMS: LazyLock<Box<[Option<Form>]>> =
        LazyLock::new(|| Code::values().map(|code| read(code.op_code())).collect());
    FORMS[code as usize].as_ref()
}

fn read(info: &OpCodeInfo) -> Option<Form> {
    if info.encoding() != EncodingKind::Legacy
        || info.op_code_len() != 1
        || info.default_op_size64()
        || info.force_op_size64()
        || info.rm_group_index() >= 0
        || info.fwait()
        || info.address_size() != 0
    {
        return None;
    }
    let byte = u8::try_from(info.op_code()).ok()?;
    let mut opcode = match info.table() {
        OpCodeTableKind::Normal => Opcode::new(byte),
        OpCodeTableKind::T0F => Opcode::second(byte),
        OpCodeTableKind::T0F38 => Opcode::third(0x38, byte),
        OpCodeTableKind::T0F3A => Opcode::third(0x3a, byte),
        _ => return None,
    };
    opcode = match (info.operand_size(), info.mandatory_prefix()) {
        (0 | 32, MandatoryPrefix::None | MandatoryPrefix::PNP) => opcode,
        (16, MandatoryPrefix::None | MandatoryPrefix::PNP) => opcode.word(),
        (64, MandatoryPrefix::None | MandatoryPrefix::PNP) => opcode.wide(),
        (size @ (0 | 32 | 64), prefix) => {
            let opcode = match prefix {
                MandatoryPrefix::P66 => opcode.prefixed(0x66),
                MandatoryPrefix::PF2 => opcode.prefixed(0xf2),
                MandatoryPrefix::PF3 => opcode.prefixed(0xf3),
                _ => return None,
            };
            if size == 64 { opcode.wide() } else { opcode }
        }
        _ => return None,
    };
    let digit = u8::try_from(info.group_index()).ok();
    let (mut register, mut operand, mut immediate) = (digit.map(Field::Digit), None, Immediate::None);
    let mut counts_by_cl = false;
    for number in 0..info.op_count() {
        use OpCodeOperandKind as Kind;
        match info.op_kind(number) {
            kind @ (Kind::r8_reg | Kind::r16_reg | Kind::r32_reg | Kind::r64_reg | Kind::xmm_reg)
                if register.is_none() =>
            {
                register = Some(Field::Operand(number as u8));
                if kind == Kind::r8_reg {
                    opcode = opcode.low_register();
                }
            }
            kind @ (Kind::r8_or_mem
            | Kind::r16_or_mem
            | Kind::r32_or_mem
            | Kind::r64_or_mem
            | Kind::xmm_or_mem
            | Kind::r16_rm
            | Kind::r32_rm
            | Kind::r64_rm
            | Kind::xmm_rm
            | Kind::mem)
                if operand.is_none() =>
            {
                operand = Some(number as u8);
                if kind == Kind::r8_or_mem {
                    opcode = opcode.low_operand();
                }
            }
            Kind::imm8 | Kind::imm8sex16 | Kind::imm8sex32 | Kind::imm8sex64
                if immediate == Immediate::None =>
            {
                immediate = Immediate::Byte;
            }
            Kind::imm32 | Kind::imm32sex64 if immediate == Immediate::None => immediate = Immediate::Word,
            // A shift's count, which the opcode says.
            Kind::imm8_const_1 => {}
            Kind::cl => counts_by_cl = true,
            _ => return None,
        }
    }
    Some(Form {
        opcode,
        register: register.unwrap_or(Field::Digit(0)),
        operand: operand?,
        immediate,
        counts_by_cl,
    })
}

#[cfg(test)]
mod tests {
    use iced_x86::{Encoder, Instruction, Register};
    use x86::Width;

    use super::*;
    use crate::template::{
        assembler::{Assembler, Mem, STATE, Space, StateField},
        encoding::Operand,
        instruction::{gpr, immediate_kind, set_memory},
    };

    /// Registers of all halves, and those that ModRM has another meaning for.
    const REGISTERS: [u8; 8] = [0, 3, 4, 5, 6, 8, 12, 13];

    fn memories() -> Vec<Mem> {
        let displacements = [0, 1, -1, 127, 128, -128, -129, 0x1234_5678];
        let bases = [0, 4, 5, 12, 13, 15];
        let indices = [None, Some((0, 0)), Some((5, 1)), Some((12, 2)), Some((13, 3))];
        let all = bases.into_iter().flat_map(|base| indices.map(|index| (base, index)));
        all.flat_map(|(base, index)| {
            displacements.map(|displacement| Mem { base, index, displacement, space: Space::Host })
        })
        .collect()
    }

    fn register(kind: OpCodeOperandKind, number: u8) -> Register {
        use OpCodeOperandKind as Kind;
        match kind {
            Kind::r8_reg | Kind::r8_or_mem => gpr(number, Width::Byte, false),
            Kind::r16_reg | Kind::r16_or_mem | Kind::r16_rm => gpr(number, Width::Word, false),
            Kind::r32_reg | Kind::r32_or_mem | Kind::r32_rm => gpr(number, Width::Dword, false),
            Kind::r64_reg | Kind::r64_or_mem | Kind::r64_rm => gpr(number, Width::Qword, false),
            _ => Register::XMM0 + u32::from(number),
        }
    }

    /// As iced-x86 encodes it; `None` if it does not take the operands.
    fn expected(code: Code, form: &Form, field: u8, operand: Operand, immediate: u64) -> Option<Vec<u8>> {
        let info = code.op_code();
        let mut instruction = Instruction::default();
        instruction.set_code(code);
        for n in 0..info.op_count() {
            let kind = info.op_kind(n);
            if form.register == Field::Operand(n as u8) {
                instruction.set_op_register(n, register(kind, field));
            } else if form.operand == n as u8 {
                match operand {
                    Operand::Register(number) => instruction.set_op_register(n, register(kind, number)),
                    Operand::Memory(mem) => set_memory(&mut instruction, n, mem),
                    Operand::State(StateField(offset)) => {
                        set_memory(&mut instruction, n, Mem::new(STATE, offset));
                    }
                }
            } else if kind == OpCodeOperandKind::cl {
                instruction.set_op_register(n, Register::CL);
            } else {
                instruction.set_op_kind(n, immediate_kind(kind)?);
                let const_1 = kind == OpCodeOperandKind::imm8_const_1;
                instruction.set_immediate_u64(n, if const_1 { 1 } else { immediate });
            }
        }
        let mut encoder = Encoder::new(64);
        encoder.encode(&instruction, 0).ok()?;
        Some(encoder.take_buffer())
    }

    #[test]
    fn every_form_is_what_the_general_encoder_writes() {
        let memories = memories();
        let (mut forms, mut encodings) = (0, 0);
        for code in Code::values() {
            let Some(form) = of(code) else { continue };
            forms += 1;
            let fields: &[u8] = match form.register {
                Field::Operand(_) => &REGISTERS,
                Field::Digit(ref digit) => core::slice::from_ref(digit),
            };
            for &field in fields {
                let registers = REGISTERS.into_iter().map(Operand::Register);
                let fields = [0, 8, 0x7f, 0x80, 0x25a0].map(|offset| Operand::State(StateField(offset)));
                let memories = memories.iter().copied().map(Operand::Memory);
                for operand in registers.chain(memories).chain(fields) {
                    let immediate = (-0x56_i64) as u64;
                    let Some(expected) = expected(code, form, field, operand, immediate) else { continue };
                    let mut assembler = Assembler::default();
                    assembler.of_form(form, field, operand, immediate);
                    assert_eq!(assembler.code.bytes(), expected, "{code:?} {field} {operand:?}");
                    encodings += 1;
                }
            }
        }
        assert!(forms > 500 && encodings > 500_000, "{forms} forms, {encodings} encodings");
    }
}
