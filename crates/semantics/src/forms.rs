//! Definitions with the form of their operands fixed, for engines that look a definition up once and call it often.
//!
//! Each is a definition of [`table`] itself, called with a copy of the instruction in which the operands' kinds and
//! widths are constants; the compiler then drops what the form does not need. Forms that make up little of what
//! programs execute have none: [`definition`] gives the general one.

use iced_x86::Mnemonic;
use x86::{SegmentRegister, Width};

use crate::{
    Insn, MemoryOperand, Operand, Register,
    table::{self, Definition, Family},
};

/// Kinds of the first two operands.
const REGISTER_REGISTER: u8 = 0;
const REGISTER_IMMEDIATE: u8 = 1;
const REGISTER_MEMORY: u8 = 2;
const MEMORY_REGISTER: u8 = 3;
const MEMORY_IMMEDIATE: u8 = 4;
const REGISTER: u8 = 5;

/// The kinds of an instruction's operands, if they are one of those above: registers that are no high bytes, memory
/// at a 64-bit address outside FS and GS, no LOCK.
fn kinds(i: &Insn) -> Option<u8> {
    let plain_memory = i.memory.width == Width::Qword && (i.memory.segment as u8) < SegmentRegister::Fs as u8;
    if i.lock || i.operand(2) != Operand::None {
        return None;
    }
    Some(match (i.operand(0), i.operand(1)) {
        (Operand::Gpr(a), Operand::Gpr(b)) if !a.high && !b.high => REGISTER_REGISTER,
        (Operand::Gpr(a), Operand::Immediate) if !a.high => REGISTER_IMMEDIATE,
        (Operand::Gpr(a), Operand::Memory) if !a.high && plain_memory => REGISTER_MEMORY,
        (Operand::Memory, Operand::Gpr(b)) if !b.high && plain_memory => MEMORY_REGISTER,
        (Operand::Memory, Operand::Immediate) if plain_memory => MEMORY_IMMEDIATE,
        (Operand::Gpr(a), Operand::None) if !a.high => REGISTER,
        _ => return None,
    })
}

/// Widths of the first two operands, in bytes; an operand that has none counts as the other.
fn widths(i: &Insn) -> (u8, u8) {
    let first = i.operand_width(0);
    let second = match i.operand(1) {
        Operand::Gpr(_) | Operand::Memory => i.operand_width(1),
        _ => first,
    };
    (first as u8, second as u8)
}

const fn width(bytes: u8) -> Width {
    match Width::from_bytes(bytes as usize) {
        Some(width) => width,
        None => Width::Byte,
    }
}

#[inline(always)]
fn register(operand: Operand, bytes: u8) -> Operand {
    let index = match operand {
        Operand::Gpr(register) => register.index,
        _ => 0,
    };
    Operand::Gpr(Register::new(index, width(bytes)))
}

/// A copy of an instruction that has this form, with everything that the form says as constants.
#[inline(always)]
fn fixed<const KINDS: u8, const A: u8, const B: u8>(i: &Insn) -> Insn {
    let first = match KINDS {
        MEMORY_REGISTER | MEMORY_IMMEDIATE => Operand::Memory,
        _ => register(i.operands[0], A),
    };
    let second = match KINDS {
        REGISTER_REGISTER | MEMORY_REGISTER => register(i.operands[1], B),
        REGISTER_MEMORY => Operand::Memory,
        REGISTER => Operand::None,
        _ => Operand::Immediate,
    };
    Insn {
        operands: [first, second, Operand::None, Operand::None],
        operand_count: if KINDS == REGISTER { 1 } else { 2 },
        memory: MemoryOperand { width: Width::Qword, ..i.memory },
        memory_bytes: match KINDS {
            MEMORY_REGISTER | MEMORY_IMMEDIATE => A as u16,
            REGISTER_MEMORY => B as u16,
            _ => i.memory_bytes,
        },
        width: width(A),
        lock: false,
        ..*i
    }
}

/// `forms! { Mnemonic, … => function: (KINDS, A, B), …; }`: which forms of which instructions are fixed.
macro_rules! forms {
    ($($mnemonic:ident => $function:path: [$(($kinds:ident, $a:literal, $b:literal)),*];)*) => {
        /// The definition of a lifted instruction as a function pointer: fixed to its form if it is a common one.
        pub fn definition<F: Family>(i: &Insn) -> Option<Definition<F>> {
            if let Some(kinds) = kinds(i) {
                let (a, b) = widths(i);
                match (i.mnemonic, kinds, a, b) {
                    $($(
                        (Mnemonic::$mnemonic, $kinds, $a, $b) => {
                            return Some(|m, i| $function(m, &fixed::<$kinds, $a, $b>(i)));
                        }
                    )*)*
                    _ => {}
                }
            }
            table::definition::<F>(i.mnemonic)
        }
    };
}

/// As `forms!`, for instructions whose operands have one width.
macro_rules! common_forms {
    (
        binary { $($binary:ident => $binary_function:path,)* }
        shift { $($shift:ident => $shift_function:path,)* }
        unary { $($unary:ident => $unary_function:path,)* }
        convert { $($convert:ident => $convert_function:path,)* }
        other { $($other:ident => $other_function:path: $forms:tt;)* }
    ) => {
        forms! {
            $($binary => $binary_function: [
                (REGISTER_REGISTER, 8, 8), (REGISTER_REGISTER, 4, 4), (REGISTER_REGISTER, 1, 1),
                (REGISTER_IMMEDIATE, 8, 8), (REGISTER_IMMEDIATE, 4, 4), (REGISTER_IMMEDIATE, 1, 1),
                (REGISTER_MEMORY, 8, 8), (REGISTER_MEMORY, 4, 4), (REGISTER_MEMORY, 1, 1),
                (MEMORY_REGISTER, 8, 8), (MEMORY_REGISTER, 4, 4), (MEMORY_REGISTER, 1, 1),
                (MEMORY_IMMEDIATE, 8, 8), (MEMORY_IMMEDIATE, 4, 4), (MEMORY_IMMEDIATE, 1, 1)
            ];)*
            $($shift => $shift_function: [(REGISTER_IMMEDIATE, 8, 8), (REGISTER_IMMEDIATE, 4, 4)];)*
            $($unary => $unary_function: [(REGISTER, 8, 8), (REGISTER, 4, 4)];)*
            $($convert => $convert_function: [
                (REGISTER_REGISTER, 4, 1), (REGISTER_REGISTER, 4, 2), (REGISTER_REGISTER, 8, 4),
                (REGISTER_MEMORY, 4, 1), (REGISTER_MEMORY, 4, 2), (REGISTER_MEMORY, 8, 4)
            ];)*
            $($other => $other_function: $forms;)*
        }
    };
}

common_forms! {
    binary {
        Mov => crate::data_transfer::mov,
        Add => crate::arithmetic::add,
        Sub => crate::arithmetic::sub,
        Cmp => crate::arithmetic::cmp,
        And => crate::logical::and,
        Or => crate::logical::or,
        Xor => crate::logical::xor,
        Test => crate::logical::test,
    }
    shift {
        Shl => crate::shift::shl,
        Shr => crate::shift::shr,
        Sar => crate::shift::sar,
    }
    unary {
        Inc => crate::arithmetic::inc,
        Dec => crate::arithmetic::dec,
        Neg => crate::arithmetic::neg,
        Push => crate::stack::push_operand,
        Pop => crate::stack::pop_operand,
    }
    convert {
        Movzx => crate::data_transfer::movzx,
        Movsx => crate::data_transfer::movsx,
        Movsxd => crate::data_transfer::movsx,
    }
    other {
        Lea => crate::misc::lea: [(REGISTER_MEMORY, 8, 8), (REGISTER_MEMORY, 4, 4)];
        Imul => crate::arithmetic::imul: [(REGISTER_REGISTER, 8, 8), (REGISTER_REGISTER, 4, 4)];
    }
}
