//! Tests over engines. The host processor is the oracle: what runs in ring 3 is run natively too, and compared.
//!
//! [`image`] is the state that a case starts from and ends in; [`oracle`] runs it on the host under ptrace;
//! [`engine`] runs it on our engines. [`ins`] reads the cases of `tests/insn/*.ins`. The fuzzer makes up
//! instructions ([`fuzz`], [`operand`]) and states ([`start`]) from a seed ([`random`]), puts them together to a
//! [`program`], whose runs are compared as far as processors agree ([`tolerance`]), and where two runs of it differ
//! makes the smallest case of it. [`kernel`] is a guest for profiles, [`debian`] what boots share.

pub mod debian;
pub mod engine;
pub mod fuzz;
pub mod image;
pub mod ins;
pub mod kernel;
pub mod operand;
pub mod oracle;
pub mod program;
pub mod random;
pub mod start;
pub mod tolerance;
