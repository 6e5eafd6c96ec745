//! Vector operations as the host's own instructions ([`crate::substitute`]), and what those of them need that read
//! and write MXCSR: the guest's in the register, every exception masked, and that none is dropped because its value
//! is.

use core::mem::offset_of;

use cranelift_codegen::{
    cursor::{Cursor, FuncCursor},
    entity::SecondaryMap,
    ir::{
        Block, BlockCall, Endianness, Function, InstBuilder, MemFlagsData, SourceLoc, Value, ValueDef,
        condcodes::FloatCC, types,
    },
};
use semantics::{ConditionCode, Flag, helper::VectorOp};
use x86::CpuState;

use super::{Ended, Lifter, flags, memory::SCRATCH_VECTOR};
use crate::{
    abi::RuntimeHelper,
    substitute::{self, Carrier, HostInstruction, Shape},
};

/// Where values go that nobody wants, computed for the flags that they leave in MXCSR.
const UNWANTED: usize = SCRATCH_VECTOR + 32;

/// The operands of a comparison that set ZF, PF and CF.
#[derive(Clone, Copy)]
pub(super) struct ComparedFloats {
    a: Value,
    b: Value,
    carry: Value,
    zero: Value,
    parity: Value,
}

impl Lifter<'_> {
    /// Emits an operation as one host instruction, if there is one that does it and may.
    pub(super) fn native_vector(&mut self, op: VectorOp, a: Value, b: Value, immediate: u8) -> Option<Value> {
        let instruction = HostInstruction::of(op, immediate)?;
        if self.substituted.len() == substitute::MOST || instruction.float && self.mode.float_traps() {
            return None;
        }
        if instruction.float {
            self.load_mxcsr();
        }
        let doubles = types::F64X2;
        // The destination of one that does not read it is any register.
        let a = if instruction.shape == Shape::Unary { b } else { a };
        let (value, result) = match instruction.carrier() {
            Carrier::Subpd => {
                let (a, b) = (self.cast(doubles, a), self.cast(doubles, b));
                let value = self.carrier(instruction, |l| l.b.ins().fsub(a, b));
                (value, value)
            }
            Carrier::Pshufb => {
                let value = self.carrier(instruction, |l| l.b.ins().x86_pshufb(a, b));
                (value, value)
            }
            Carrier::Palignr => {
                let mask: [u8; 16] = core::array::from_fn(|n| n as u8 + 1);
                let mask = self.b.func.dfg.immediates.push(mask.as_slice().into());
                // PALIGNR overwrites the high operand.
                let value = self.carrier(instruction, |l| l.b.ins().shuffle(b, a, mask));
                (value, value)
            }
            Carrier::Pinsrq => {
                let a = self.cast(types::I64X2, a);
                let integer = self.low_half(b);
                let value = self.carrier(instruction, |l| l.b.ins().insertlane(a, integer, 1));
                (value, value)
            }
            Carrier::Movd | Carrier::Movq => {
                let (float, vector, integer) = if instruction.carrier() == Carrier::Movd {
                    (types::F32, types::F32X4, types::I32)
                } else {
                    (types::F64, doubles, types::I64)
                };
                let b = self.cast(vector, b);
                let low = self.b.ins().extractlane(b, 0);
                debug_assert_eq!(self.b.func.dfg.value_type(low), float);
                let flags = MemFlagsData::new().with_endianness(Endianness::Little);
                let value = self.carrier(instruction, |l| l.b.ins().bitcast(integer, flags, low));
                let wide = self.extend(value);
                let zero = self.word(0);
                (value, self.vector_from_halves(wide, zero))
            }
        };
        if instruction.float {
            self.floats.push(value);
        }
        Some(result)
    }

    /// Emits the carrier of an instruction.
    fn carrier(&mut self, instruction: HostInstruction, emit: impl FnOnce(&mut Self) -> Value) -> Value {
        let source = self.source + u32::from(self.insn.index);
        let mark = substitute::mark(self.substituted.len(), source);
        self.substituted.push(instruction);
        self.b.set_srcloc(SourceLoc::new(mark));
        let value = emit(self);
        self.b.set_srcloc(SourceLoc::new(source));
        value
    }

    /// Sees to it that the guest's MXCSR is in the host's register.
    fn load_mxcsr(&mut self) {
        if self.file.mxcsr_loaded {
            return;
        }
        let loaded = self.state_load(types::I32, offset_of!(CpuState, mxcsr_loaded));
        let cold = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(cold);
        self.b.ins().brif(loaded, go, &[], cold, &[]);
        self.b.switch_to_block(cold);
        self.call_preserving(RuntimeHelper::LoadMxcsr);
        self.b.ins().jump(go, &[]);
        self.b.switch_to_block(go);
        self.file.mxcsr_loaded = true;
    }

    /// The value of MXCSR.
    pub(super) fn read_mxcsr(&mut self) -> Value {
        self.call_preserving(RuntimeHelper::StoreMxcsr);
        self.state_load(types::I32, offset_of!(CpuState, mxcsr))
    }

    /// Sets MXCSR. If that makes it another mode, it is left to the interpreter.
    pub(super) fn write_mxcsr(&mut self, value: Value) -> Result<(), Ended> {
        if self.mode.float_traps() {
            return Err(self.abandon());
        }
        let masks = i64::from(x86::fpu::MXCSR_MASKS);
        let masked = self.b.ins().band_imm_u(value, masks);
        let unmasked = self.b.ins().bxor_imm_u(masked, masks);
        self.abandon_if(unmasked);
        self.state_store(value, offset_of!(CpuState, mxcsr));
        self.call_preserving(RuntimeHelper::LoadMxcsr);
        Ok(())
    }

    /// COMISS and relatives, as comparisons that conditions can use.
    pub(super) fn compare_scalars(&mut self, op: VectorOp, a: Value, b: Value) -> Option<()> {
        if self.mode.float_traps() {
            return None;
        }
        let (vector, signals) = match op {
            VectorOp::Comiss => (types::F32X4, true),
            VectorOp::Comisd => (types::F64X2, true),
            VectorOp::Ucomiss => (types::F32X4, false),
            VectorOp::Ucomisd => (types::F64X2, false),
            _ => return None,
        };
        self.load_mxcsr();
        let (a, b) = (self.cast(vector, a), self.cast(vector, b));
        let (a, b) = (self.b.ins().extractlane(a, 0), self.b.ins().extractlane(b, 0));
        // This comparison is made whatever becomes of the flags, because it ends the CLIF block; so MXCSR gets its
        // flags. It is UCOMIS; where COMIS differs, the interpreter does it.
        let unordered = self.b.ins().fcmp(FloatCC::Unordered, a, b);
        if signals {
            self.abandon_if(unordered);
        } else {
            let aside = self.b.create_block();
            let go = self.b.create_block();
            self.b.set_cold_block(aside);
            self.b.ins().brif(unordered, aside, &[], go, &[]);
            self.b.switch_to_block(aside);
            self.b.ins().jump(go, &[]);
            self.b.switch_to_block(go);
        }
        let parity =
            if signals { self.iconst(types::I8, 0) } else { self.b.ins().fcmp(FloatCC::Unordered, a, b) };
        let carry = self.b.ins().fcmp(FloatCC::UnorderedOrLessThan, a, b);
        let zero = self.b.ins().fcmp(FloatCC::UnorderedOrEqual, a, b);
        let clear = self.iconst(types::I8, 0);
        for flag in [Flag::Adjust, Flag::Sign, Flag::Overflow] {
            self.write_flag(flag, clear);
        }
        self.write_flag(Flag::Carry, carry);
        self.write_flag(Flag::Parity, parity);
        self.write_flag(Flag::Zero, zero);
        self.compared = Some(ComparedFloats { a, b, carry, zero, parity });
        Some(())
    }

    /// A condition as one comparison of floats, if one left the flags that it needs.
    pub(super) fn float_condition(&mut self, code: ConditionCode) -> Option<Value> {
        use ConditionCode as C;
        let compared = self.compared?;
        let cc = match code {
            C::B => FloatCC::UnorderedOrLessThan,
            C::Ae => FloatCC::GreaterThanOrEqual,
            C::Be => FloatCC::UnorderedOrLessThanOrEqual,
            C::A => FloatCC::GreaterThan,
            C::E => FloatCC::UnorderedOrEqual,
            C::Ne => FloatCC::OrderedNotEqual,
            C::P => FloatCC::Unordered,
            C::Np => FloatCC::Ordered,
            _ => return None,
        };
        let needs: &[(usize, Value)] = match code {
            C::B | C::Ae => &[(flags::CARRY, compared.carry)],
            C::E | C::Ne => &[(flags::ZERO, compared.zero)],
            C::P | C::Np => &[(flags::PARITY, compared.parity)],
            _ => &[(flags::CARRY, compared.carry), (flags::ZERO, compared.zero)],
        };
        let stands = needs.iter().all(|&(flag, value)| self.file.flags[flag] == flags::Source::Truth(value));
        stands.then(|| self.b.ins().fcmp(cc, compared.a, compared.b))
    }

    /// Stores the values that floating-point instructions computed and nothing uses: they would be dropped, and with
    /// them their flags.
    pub(super) fn keep_floats(&mut self) {
        if self.floats.is_empty() {
            return;
        }
        let used = used_values(self.b.func);
        for value in core::mem::take(&mut self.floats) {
            if used[value] {
                continue;
            }
            let ValueDef::Result(inst, _) = self.b.func.dfg.value_def(value) else { continue };
            let mut cursor = FuncCursor::new(self.b.func).after_inst(inst);
            // The block that is being lifted has an address of its own, which may not be known there.
            let cpu = cursor.ins().get_pinned_reg(types::I64);
            cursor.ins().store(self.fields.state, value, cpu, UNWANTED as i32);
        }
    }
}

/// Values that something with an effect depends on.
fn used_values(function: &Function) -> SecondaryMap<Value, bool> {
    let dfg = &function.dfg;
    let mut used = SecondaryMap::new();
    let mut waiting: Vec<Value> = Vec::new();
    // What branches give to the parameters of a block.
    let mut given: SecondaryMap<Block, Vec<BlockCall>> = SecondaryMap::new();
    for block in function.layout.blocks() {
        for inst in function.layout.block_insts(block) {
            let opcode = dfg.insts[inst].opcode();
            if opcode.is_terminator() || opcode.is_call() || opcode.can_store() || opcode.other_side_effects()
            {
                waiting.extend(dfg.inst_args(inst));
            }
            let targets = dfg.insts[inst].branch_destination(&dfg.jump_tables, &dfg.exception_tables);
            for &target in targets {
                given[target.block(&dfg.value_lists)].push(target);
            }
        }
    }
    while let Some(value) = waiting.pop() {
        let value = dfg.resolve_aliases(value);
        if core::mem::replace(&mut used[value], true) {
            continue;
        }
        match dfg.value_def(value) {
            ValueDef::Result(inst, _) => waiting.extend(dfg.inst_args(inst)),
            ValueDef::Param(block, n) => {
                let arguments = given[block].iter().filter_map(|call| call.args(&dfg.value_lists).nth(n));
                waiting.extend(arguments.filter_map(|argument| argument.as_value()));
            }
            ValueDef::Union(..) => {}
        }
    }
    used
}
