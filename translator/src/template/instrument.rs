//! Counting for profiles ([`crate::instrument`]). Writes nothing unless the translator was told to. All of it changes the host's
//! flags, and is where those are saved.

use core::mem::offset_of;

use x86::CpuState;

use super::{
    Template,
    assembler::{Mem, Reg},
};
use crate::{
    Relocation, RelocationKind, RelocationTarget,
    instrument::{Event, Instrumentation},
};

impl Template<'_> {
    /// From now on what is written counts.
    pub(super) fn instrument(&mut self) {
        self.instrumentation = Some(Instrumentation::default());
    }

    /// Counts an execution of the block of that number in the region, at its beginning.
    pub(super) fn count_execution(&mut self, number: usize, source: u32) {
        let Some(instrumentation) = &mut self.instrumentation else { return };
        instrumentation.begin(number, 0, source);
        let counters = instrumentation.event(Event::Executed);
        self.keep_flags();
        self.lose_host_flags();
        self.known.forget_shared();
        let temporary = self.registers.temporaries[0];
        self.add_to_counter(counters, 1, temporary);
        self.asm.store(Mem::state(offset_of!(CpuState, profiled)), temporary);
    }

    /// The number of instructions that an execution counts.
    pub(super) fn know_counted(&mut self, counted: u16) {
        let at = self.at;
        if let Some(block) = self.instrumentation.as_mut().and_then(|all| all.blocks.get_mut(at)) {
            block.instructions = counted;
        }
    }

    /// Adds to a counter of the block, by way of a register.
    pub(super) fn count_event(&mut self, event: Event, by: i32, temporary: Reg) {
        if let Some(instrumentation) = &self.instrumentation {
            let counter = instrumentation.event_of(self.at, event);
            self.add_to_counter(counter, by, temporary);
        }
    }

    /// Counts a call of what an entry of the function table has, by way of a register.
    pub(super) fn count_call(&mut self, entry: usize, temporary: Reg) {
        let counter = self.instrumentation.as_mut().and_then(|all| all.call_of(self.at, entry));
        if let Some(counter) = counter {
            self.add_to_counter(counter, 1, temporary);
        }
    }

    fn add_to_counter(&mut self, counter: u32, by: i32, temporary: Reg) {
        let offset = self.asm.constant_to_come(temporary);
        let (kind, target) = (RelocationKind::Abs64, RelocationTarget::Counters);
        self.relocations.push(Relocation { offset, kind, target, addend: counter.into() });
        self.asm.add_immediate(Mem::new(temporary, 0), by);
    }

    /// What is written from here on belongs to the block's instruction of that index.
    pub(super) fn begin_source(&mut self, index: usize) {
        self.end_source();
        let at = self.asm.code.len() as u32;
        if let Some(instrumentation) = &mut self.instrumentation {
            instrumentation.sources.push(crate::instrument::SourceRange {
                start: at,
                end: at,
                source: self.blocks[self.at].source + index as u32,
            });
        }
    }

    /// What was begun last ends here.
    pub(super) fn end_source(&mut self) {
        let at = self.asm.code.len() as u32;
        if let Some(instrumentation) = &mut self.instrumentation {
            // An instruction without a template was taken back.
            instrumentation.sources.retain(|range| range.start < at);
            if let Some(last) = instrumentation.sources.last_mut() {
                last.end = at;
            }
        }
    }
}
