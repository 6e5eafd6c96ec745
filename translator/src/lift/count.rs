//! Counting guest instructions: in `CpuState` at the entry of a block that is translated alone, in an SSA value in a
//! region, where a store for each block would tie its loops to the speed of store forwarding.

use core::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, types};
use x86::CpuState;

use super::{Lifter, registers::RegisterFile};

const INSTRUCTIONS: usize = offset_of!(CpuState, instructions);

/// Where the count of instructions is.
#[derive(Clone, Copy, Default)]
pub(super) enum Count {
    /// In `CpuState`.
    #[default]
    InState,
    /// `base + add`.
    Value {
        /// What `CpuState` held, or came in.
        base: Value,
        /// Since then.
        add: i64,
    },
}

impl Lifter<'_> {
    /// Takes the count out of `CpuState`.
    pub(super) fn begin_count(&mut self) -> Count {
        Count::Value { base: self.state_load(types::I64, INSTRUCTIONS), add: 0 }
    }

    /// Counts instructions, or takes some back.
    pub(super) fn count(&mut self, instructions: i64) {
        match &mut self.file.count {
            Count::Value { add, .. } => *add += instructions,
            Count::InState => self.count_in_state(instructions),
        }
    }

    /// The same where the count is in `CpuState`.
    pub(super) fn count_in_state(&mut self, instructions: i64) {
        let before = self.state_load(types::I64, INSTRUCTIONS);
        let after = self.b.ins().iadd_imm_s(before, instructions);
        self.state_store(after, INSTRUCTIONS);
    }

    /// The count as a value.
    pub(super) fn count_value(&mut self) -> Value {
        match self.file.count {
            Count::Value { base, add: 0 } => base,
            Count::Value { base, add } => self.b.ins().iadd_imm_s(base, add),
            Count::InState => self.state_load(types::I64, INSTRUCTIONS),
        }
    }

    /// Stores the count of `file` where it is not in `CpuState`.
    pub(super) fn write_back_count(&mut self, file: &RegisterFile) {
        if let Count::Value { base, add } = file.count {
            let value = if add == 0 { base } else { self.b.ins().iadd_imm_s(base, add) };
            self.state_store(value, INSTRUCTIONS);
        }
    }
}
