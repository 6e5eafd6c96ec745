//! Executes decoded instructions: the definitions of `semantics` over [`Interpreter`], a `Machine` on numbers.
//!
//! Data flows: [`semantics::Insn`] -> definition -> [`CpuState`] and memory. [`step`] runs one instruction;
//! [`DecodedBlock`] holds a guest block with its definitions looked up, and [`run_block`] runs it to where it is left.
//! What the monitor does (callouts) is not here: the caller is told which instruction it is.

mod block;
pub mod bulk;
mod integer;
mod machine;
mod segmentation;
mod status;

pub use block::{BlockExit, DecodedBlock, run_block};
pub use machine::{Interpreter, Interpreting};
use memory::{Mmu, Stop};
use semantics::{Insn, table};
use x86::{CpuState, Exception};

/// Executes one lifted instruction at `insn.rip`. Afterwards `state.rip` is where it continues, and it is counted in
/// `state.instructions`. On `Err` the state is as before (a REP instruction may have done some of its elements), with
/// `state.rip` at the instruction: it can be restarted.
///
/// A REP instruction does a part of its work and leaves `state.rip` at itself until it is done. An instruction that
/// is not lifted raises #UD: the caller keeps callouts away.
pub fn step(state: &mut CpuState, mmu: &mut Mmu, insn: &Insn) -> Result<(), Stop> {
    let rip = insn.rip;
    let mut machine = Interpreter::new(state, mmu, insn.next_rip());
    let result = match table::kind_of(insn) {
        table::Kind::Lifted => table::execute(&mut machine, insn),
        table::Kind::Callout | table::Kind::Undefined => Err(Exception::UD.into()),
    };
    let next = machine.next();
    match result {
        Ok(()) => {
            state.rip = next;
            state.instructions += 1;
            mmu.mmio.clear();
            Ok(())
        }
        Err(stop) => {
            state.rip = rip;
            if matches!(stop, Stop::Exception(_)) {
                mmu.mmio.clear();
            }
            Err(stop)
        }
    }
}
