//! Vectors: their shapes, halves and lanes, and operations that the runtime computes.
//!
//! Values are I8X16 between operations; each operation casts to the shape that it needs, which costs nothing. An
//! operation that neither [`super::vector_inline`] nor [`super::native`] emits is called, through
//! `CpuState::scratch_vector`.

use cranelift_codegen::ir::{
    Endianness, InstBuilder, InstructionData, MemFlagsData, Opcode, Type, Value, types,
};
use semantics::helper::VectorOp;
use x86::{CpuState, Width};

use super::{Ended, Lifter, memory::SCRATCH_VECTOR};
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper};

/// A vector that the current instruction put together from two halves, so that taking it apart costs nothing.
#[derive(Clone, Copy)]
pub(super) struct Halves {
    vector: Value,
    low: Value,
    high: Value,
}

pub(super) const fn lanes(width: Width) -> Type {
    match width {
        Width::Byte => types::I8X16,
        Width::Word => types::I16X8,
        Width::Dword => types::I32X4,
        Width::Qword => types::I64X2,
    }
}

impl Lifter<'_> {
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
        let vector = if self.constant_of(high) == Some(0) {
            // MOVQ clears the upper half.
            vector
        } else {
            self.b.ins().insertlane(vector, high, 1)
        };
        let vector = self.cast(types::I8X16, vector);
        self.halves.push(Halves { vector, low, high });
        vector
    }

    /// The lower half of a vector.
    pub(super) fn low_half(&mut self, vector: Value) -> Value {
        self.read_lane(Width::Qword, vector, 0)
    }

    pub(super) fn read_lane(&mut self, width: Width, vector: Value, index: u8) -> Value {
        let known = self.halves.iter().find(|halves| halves.vector == vector).copied();
        let per_half = 8 / width.bytes() as u8;
        match known {
            Some(halves) if index == 0 => self.reduce(width, halves.low),
            Some(halves) if index == per_half => self.reduce(width, halves.high),
            _ => {
                let shaped = self.cast(lanes(width), vector);
                self.b.ins().extractlane(shaped, index)
            }
        }
    }

    /// If a value is the low element of a vector: the same as a float, which is in the vector's register already.
    pub(super) fn low_element(&mut self, value: Value) -> Option<Value> {
        let (scalar, shape) = match self.b.func.dfg.value_type(value) {
            types::I64 => (types::F64, types::F64X2),
            types::I32 => (types::F32, types::F32X4),
            _ => return None,
        };
        let inst = self.b.func.dfg.value_def(value).inst()?;
        let InstructionData::BinaryImm8 { opcode: Opcode::Extractlane, arg, imm: 0 } =
            self.b.func.dfg.insts[inst]
        else {
            return None;
        };
        let vector = self.cast(shape, arg);
        let low = self.b.ins().extractlane(vector, 0);
        debug_assert_eq!(self.b.func.dfg.value_type(low), scalar);
        Some(low)
    }

    pub(super) fn replace_lane(&mut self, width: Width, vector: Value, index: u8, value: Value) -> Value {
        let (shape, value) = match self.low_element(value) {
            Some(low) if width == Width::Qword => (types::F64X2, low),
            Some(low) if width == Width::Dword => (types::F32X4, low),
            _ => (lanes(width), value),
        };
        let shaped = self.cast(shape, vector);
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
        let value = match self.inline_vector(op, a, b, immediate) {
            Some(value) => Some(value),
            None => self.native_vector(op, a, b, immediate),
        };
        match value {
            Some(value) => Ok(self.cast(types::I8X16, value)),
            None => self.called_vector(op, a, b, immediate),
        }
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
