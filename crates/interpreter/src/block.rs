//! Guest blocks ready to run: each instruction beside its definition.

use core::sync::atomic::Ordering;

use memory::{Mmu, Stop};
use semantics::{
    Insn, Kind,
    decode::{GuestBlock, ends_block},
    forms,
    table::{self, Definition},
};
use x86::CpuState;

use crate::{Interpreter, Interpreting};

/// An instruction and what executes it.
struct Operation {
    definition: Definition<Interpreting>,
    /// Where it continues unless it transfers control.
    next_rip: u64,
    insn: Insn,
}

/// A guest block with its definitions looked up.
pub struct DecodedBlock {
    operations: Box<[Operation]>,
    /// The instruction after `operations`, if the block ends with a callout.
    callout: Option<Box<Insn>>,
    /// Where the block continues when none of its instructions transfers control.
    next_rip: u64,
}

/// How [`run_block`] left a block. `state.rip` is the instruction to go on with, or the one that stopped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockExit {
    /// To the instruction at `state.rip`: the block's end or a transfer, which may have gone back to its start.
    Next,
    /// To the monitor: the block's last instruction, at `state.rip`, is a callout; see [`DecodedBlock::callout`].
    Callout,
    /// An exception or a board access, at the instruction at `state.rip`.
    Stop(Stop),
    /// A page with translated code was written by the instruction before `state.rip`: this block may be stale.
    CodeWritten,
}

impl DecodedBlock {
    /// Looks up the definitions of a block's instructions.
    pub fn new(block: &GuestBlock) -> Self {
        Self::from_insns(&block.insns, block.rip)
    }

    /// The same for instructions that follow each other from `rip`. What comes after a callout or an instruction
    /// without a definition is dropped.
    pub fn from_insns(insns: &[Insn], rip: u64) -> Self {
        let mut operations = Vec::with_capacity(insns.len());
        let mut callout = None;
        let mut next_rip = rip;
        for insn in insns {
            next_rip = insn.next_rip();
            match (table::kind_of(insn), forms::definition::<Interpreting>(insn)) {
                (Kind::Lifted, Some(definition)) => {
                    operations.push(Operation { definition, next_rip, insn: *insn })
                }
                _ => {
                    callout = Some(Box::new(*insn));
                    break;
                }
            }
            if ends_block(insn) {
                break;
            }
        }
        Self { operations: operations.into_boxed_slice(), callout, next_rip }
    }

    /// The callout that the block ends with.
    pub fn callout(&self) -> Option<&Insn> {
        self.callout.as_deref()
    }

    /// Number of instructions, a callout included.
    pub fn len(&self) -> usize {
        self.operations.len() + usize::from(self.callout.is_some())
    }

    /// Whether there is no instruction.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instructions in order, a callout included.
    pub fn insns(&self) -> impl Iterator<Item = &Insn> {
        self.operations.iter().map(|operation| &operation.insn).chain(self.callout())
    }
}

/// Runs a block from its first instruction. `state.exit_request` is the caller's to look at between blocks; here only
/// an instruction that repeats itself does.
pub fn run_block(state: &mut CpuState, mmu: &mut Mmu, block: &DecodedBlock) -> BlockExit {
    let mut machine = Interpreter::new(state, mmu, 0);
    // Only the first instruction can be the one that waited for answers of the board.
    let mut answered = machine.mmu.mmio.is_replaying();
    let mut done = 0;
    let exit = 'block: {
        for operation in &block.operations {
            let insn = &operation.insn;
            let next_rip = operation.next_rip;
            loop {
                machine.start(next_rip);
                let result = (operation.definition)(&mut machine, insn);
                if let Err(stop) = result {
                    machine.state.rip = insn.rip;
                    if answered && matches!(stop, Stop::Exception(_)) {
                        machine.mmu.mmio.clear();
                    }
                    break 'block BlockExit::Stop(stop);
                }
                done += 1;
                if answered {
                    machine.mmu.mmio.clear();
                    answered = false;
                }
                if machine.next() == next_rip && !machine.mmu.code_written {
                    break;
                }
                let target = machine.next();
                machine.state.rip = target;
                if machine.mmu.code_written {
                    break 'block BlockExit::CodeWritten;
                }
                if target != insn.rip || machine.state.exit_request.load(Ordering::Relaxed) != 0 {
                    break 'block BlockExit::Next;
                }
            }
        }
        match &block.callout {
            Some(insn) => {
                machine.state.rip = insn.rip;
                BlockExit::Callout
            }
            None => {
                machine.state.rip = block.next_rip;
                BlockExit::Next
            }
        }
    };
    state.instructions += done;
    exit
}
