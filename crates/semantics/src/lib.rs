//! What x86 instructions do: one definition per instruction, generic over [`Machine`].
//!
//! With `M` the interpreter a definition executes; with `M` the lifter it emits CLIF. Rust `if` decides at
//! translation time (operand kinds, widths, prefixes, mode); [`Machine::when`] and [`Machine::select`] decide at run
//! time. Effect order in every definition: reads, computation, memory writes, registers, flags, rip; so a fault
//! leaves the state as it was before the instruction.
//!
//! Data flows: bytes -> [`decode`] -> [`Insn`] (compact, key into [`table`]) -> [`execute`] over a `Machine`.

pub mod crypto;
pub mod decode;
pub mod forms;
pub mod helper;
pub mod insn;
pub mod machine;
pub mod mmx;
mod mxcsr;
pub mod native;
pub mod operand;
pub mod sse_convert;
pub mod sse_data;
pub mod sse_float;
pub mod sse_integer;
pub mod sse_string;
pub mod state_image;
pub mod table;
pub mod vector;
pub mod x87_arithmetic;
pub mod x87_control;
pub mod x87_data;
pub mod x87_environment;
pub mod x87_native;
pub mod x87_state;

mod arithmetic;
mod bit;
mod bit_manipulation;
mod control_transfer;
mod data_transfer;
mod decimal;
mod exchange;
mod flag_control;
mod logical;
mod lower;
mod misc;
mod repetition;
mod shift;
mod stack;
mod string;

pub use insn::{Insn, MemoryOperand, Operand, Register, Repeat};
pub use machine::{ConditionCode, Flag, Machine, Transfer};
pub use repetition::{Bulk, Repetition};
pub use table::{Kind, execute};
