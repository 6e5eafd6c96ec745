//! Vector operations. Values are I8X16 between operations; each casts to the shape that it needs, which costs nothing.
//!
//! An operation that has no case here is computed by the runtime, through `CpuState::scratch_vector`.

use cranelift_codegen::ir::{Endianness, InstBuilder, MemFlagsData, Type, Value, types};
use semantics::helper::VectorOp;
use x86::{CpuState, Width};

use super::{Ended, Lifter, memory::SCRATCH_VECTOR};
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper};

const fn lanes(width: Width) -> Type {
    match width {
        Width::Byte => types::I8X16,
        Width::Word => types::I16X8,
        Width::Dword => types::I32X4,
        Width::Qword => types::I64X2,
    }
}

impl Lifter<'_, '_> {
    /// The same bits in another shape.
    pub(super) fn cast(&mut self, ty: Type, value: Value) -> Value {
        if self.b.func.dfg.value_type(value) == ty {
            return value;
        }
        let flags = MemFlagsData::new().with_endianness(Endianness::Little);
        self.b.ins().bitcast(ty, flags, value)
    }

    pub(super) fn vector_from_halves(&mut self, low: Value, high: Value) -> Value {
        let vector = self.b.ins().scalar_to_vector(types::I64X2, low);
        let vector = self.b.ins().insertlane(vector, high, 1);
        self.cast(types::I8X16, vector)
    }

    pub(super) fn read_lane(&mut self, width: Width, vector: Value, index: u8) -> Value {
        let shaped = self.cast(lanes(width), vector);
        self.b.ins().extractlane(shaped, index)
    }

    pub(super) fn replace_lane(&mut self, width: Width, vector: Value, index: u8, value: Value) -> Value {
        let shaped = self.cast(lanes(width), vector);
        let replaced = self.b.ins().insertlane(shaped, value, index);
        self.cast(types::I8X16, replaced)
    }

    /// Computes a vector operation.
    pub(super) fn vector_operation(
        &mut self,
        op: VectorOp,
        a: Value,
        b: Value,
        immediate: u8,
    ) -> Result<Value, Ended> {
        match self.inline_vector(op, a, b, immediate) {
            Some(value) => Ok(value),
            None => self.called_vector(op, a, b, immediate),
        }
    }

    fn inline_vector(&mut self, op: VectorOp, a: Value, b: Value, _immediate: u8) -> Option<Value> {
        Some(match op {
            VectorOp::And => self.b.ins().band(a, b),
            #[allow(unreachable_patterns, reason = "operations are still being added")]
            _ => return None,
        })
    }

    fn called_vector(&mut self, op: VectorOp, a: Value, b: Value, immediate: u8) -> Result<Value, Ended> {
        self.state_store(a, SCRATCH_VECTOR + 16);
        self.state_store(b, SCRATCH_VECTOR + 32);
        let number = self.word(op as u64);
        let immediate = self.word(immediate.into());
        self.call_table(
            FIRST_RUNTIME_HELPER + RuntimeHelper::VectorOp as usize,
            &[self.cpu, number, immediate],
        );
        self.abandon_if_raised();
        Ok(self.state_load(types::I8X16, SCRATCH_VECTOR))
    }

    /// After a helper: if it raised, the interpreter does the instruction again.
    pub(super) fn abandon_if_raised(&mut self) {
        let raised = self.state_load(types::I32, core::mem::offset_of!(CpuState, pending_exception));
        self.abandon_if(raised);
    }
}
