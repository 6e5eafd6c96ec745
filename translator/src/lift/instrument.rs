//! Counting for profiles ([`crate::instrument`]). Emits nothing unless the lifter was told to.

use core::mem::offset_of;

use cranelift_codegen::ir::{
    ExternalName, GlobalValueData, InstBuilder, SourceLoc, UserExternalName, Value, types,
};
use x86::CpuState;

use super::Lifter;
use crate::instrument::{Event, Instrumentation};

/// Namespace of the symbol that stands for the array of counters.
pub(crate) const COUNTERS_NAMESPACE: u32 = 2;

const PROFILED: usize = offset_of!(CpuState, profiled);

impl Lifter<'_> {
    /// From now on what is emitted counts.
    pub fn instrument(&mut self) {
        self.instrumentation = Some(Instrumentation::default());
    }

    /// Counts an execution of the guest block that begins here, the `number`-th of the region.
    pub(super) fn count_execution(&mut self, number: usize) {
        let Some(instrumentation) = &mut self.instrumentation else { return };
        instrumentation.begin(number, self.counted, self.source);
        let counters = instrumentation.event(Event::Executed);
        self.b.set_srcloc(SourceLoc::new(self.source));
        let address = self.counter_address(counters);
        self.add_to_counter(address, 1);
        self.state_store(address, PROFILED);
    }

    /// Adds to a counter of the current guest block.
    pub(super) fn count_event(&mut self, event: Event, by: i64) {
        let Some(instrumentation) = &self.instrumentation else { return };
        let counter = instrumentation.event(event);
        let address = self.counter_address(counter);
        self.add_to_counter(address, by);
    }

    /// Counts a call through an entry of the function table.
    pub(super) fn count_call(&mut self, index: usize) {
        let Some(instrumentation) = &mut self.instrumentation else { return };
        let Some(counter) = instrumentation.call(index) else { return };
        let address = self.counter_address(counter);
        self.add_to_counter(address, 1);
    }

    fn add_to_counter(&mut self, address: Value, by: i64) {
        let before = self.table_load(address, 0);
        let after = self.b.ins().iadd_imm_s(before, by);
        self.b.ins().store(self.fields.tables, after, address, 0);
    }

    fn counter_address(&mut self, offset: u32) -> Value {
        let function = &mut self.b.func;
        let name = function.declare_imported_user_function(UserExternalName::new(COUNTERS_NAMESPACE, 0));
        let counters = function.create_global_value(GlobalValueData::Symbol {
            name: ExternalName::user(name),
            offset: i64::from(offset).into(),
            // The counters are nowhere near the code.
            colocated: false,
            tls: false,
        });
        self.b.ins().symbol_value(types::I64, counters)
    }
}
