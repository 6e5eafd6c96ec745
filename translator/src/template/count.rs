//! Counting guest instructions: all of a block at its entry, or, in a region, where something can look at the count.

use core::mem::offset_of;

use x86::CpuState;

use super::{Template, assembler::Mem};

pub(super) const INSTRUCTIONS: usize = offset_of!(CpuState, instructions);

impl Template<'_> {
    /// The current instruction is done.
    pub(super) fn complete(&mut self) {
        self.pending += i32::from(self.course.is_some());
    }

    /// Counts in the state what is done and not counted. Changes host flags.
    pub(super) fn count_pending(&mut self) {
        if self.pending != 0 {
            self.asm.add_immediate(Mem::state(INSTRUCTIONS), core::mem::take(&mut self.pending));
        }
    }

    /// Counts in the state what is done, and the current instruction, which may still be abandoned. Changes host flags.
    pub(super) fn count_current(&mut self) {
        self.complete();
        self.count_pending();
        self.pending = -i32::from(self.course.is_some());
    }

    /// How many instructions are counted in the state but not done before the current one.
    pub(super) fn uncounted(&self) -> i32 {
        if self.course.is_some() { -self.pending } else { self.undone() }
    }

    /// How many instructions of the block are not done before the current one.
    pub(super) fn undone(&self) -> i32 {
        i32::from(self.blocks[self.at].total) - self.index as i32
    }
}
