//! Tests over engines. The host processor is the oracle: what runs in ring 3 is run natively too, and compared.
//!
//! [`image`] is the state that a case starts from and ends in; [`oracle`] runs it on the host under ptrace;
//! [`engine`] runs it on our engines; [`ins`] reads the cases of `tests/insn/*.ins`; [`fuzz`] makes up random ones.

pub mod engine;
pub mod fuzz;
pub mod image;
pub mod ins;
pub mod oracle;
