//! Repeated string instructions: the call that does many elements at once.

use semantics::{Bulk, Repetition};

use super::Lifter;
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper};

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

impl Lifter<'_> {
    /// Has the runtime work through a repetition as far as it does. What is left of the instruction begins anew after that, as
    /// if it had been interrupted there.
    pub(super) fn call_bulk(&mut self, repetition: Repetition) {
        let moved: &[usize] = match repetition.kind {
            Bulk::Lods => return,
            kind if kind.reads_source() => &[RCX, RSI, RDI],
            _ => &[RCX, RDI],
        };
        for &index in moved {
            self.store_gpr(index);
        }
        if matches!(repetition.kind, Bulk::Stos | Bulk::Scas) {
            self.store_gpr(RAX);
        }
        let bits = self.word(repetition.to_bits());
        self.call_table(FIRST_RUNTIME_HELPER + RuntimeHelper::Bulk as usize, &[self.cpu, bits]);
        for &index in moved {
            self.reload_gpr(index);
        }
    }
}
