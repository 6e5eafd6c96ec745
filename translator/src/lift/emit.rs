//! The lifter's small change: constants, access to `CpuState`, signatures, memory flags.
//!
//! Memory is divided into regions that never overlap, so that Cranelift may keep a value of one across stores to
//! another: `CpuState`, guest RAM, and the engine's tables (TLB arrays, jump cache, chain slots, function table).
//!
//! Guest RAM and x86-TSO: loads and stores become plain host moves in program order. Cranelift never reorders memory
//! instructions; what it may do is replace a load by the value of an earlier access to the same SSA address in the same
//! region with no call, atomic or fence between them, or drop a store that such a store overwrites. TSO allows
//! both, as if the two had happened at once; and since every inline access is followed by a merge with a slow path that
//! contains a call, it hardly ever applies. Loops run through block edges, so polling loops always load.

use cranelift_codegen::{
    ir::{
        AbiParam, AliasRegionData, Endianness, Function, InstBuilder, InstructionData, MemFlagsData, Opcode,
        SigRef, Signature, Type, Value, types,
    },
    isa::CallConv,
};
use cranelift_frontend::FunctionBuilder;
use x86::Width;

use super::Lifter;
use crate::{
    abi::{FIRST_RUNTIME_HELPER, RuntimeHelper, SlowPath},
    thunks,
};

/// Memory flags for each kind of memory.
#[derive(Clone, Copy)]
pub(super) struct Fields {
    /// `CpuState`.
    pub state: MemFlagsData,
    /// Guest RAM.
    pub guest: MemFlagsData,
    /// TLB arrays, jump cache, chain slots, function table.
    pub tables: MemFlagsData,
}

impl Fields {
    pub fn new(function: &mut Function) -> Self {
        let mut region = |user_id, description: &'static str| {
            Some(
                function
                    .dfg
                    .alias_regions
                    .insert(AliasRegionData { user_id, description: description.into() }),
            )
        };
        let trusted = MemFlagsData::trusted().with_endianness(Endianness::Little);
        let guest = MemFlagsData::new().with_notrap().with_endianness(Endianness::Little);
        Self {
            state: trusted.with_alias_region(region(0, "state")),
            guest: guest.with_alias_region(region(1, "guest")),
            tables: trusted.with_alias_region(region(2, "tables")),
        }
    }
}

/// Signatures, imported into the function when first used.
#[derive(Default)]
pub(super) struct Signatures {
    block: Option<SigRef>,
    system_v: [Option<SigRef>; 6],
    thunk: Option<SigRef>,
}

/// The address of `CpuState`.
pub(super) fn pinned(b: &mut FunctionBuilder<'_>) -> Value {
    b.ins().get_pinned_reg(types::I64)
}

/// CLIF's type for a width.
pub(super) const fn int_type(width: Width) -> Type {
    match width {
        Width::Byte => types::I8,
        Width::Word => types::I16,
        Width::Dword => types::I32,
        Width::Qword => types::I64,
    }
}

impl Lifter<'_> {
    /// A constant of an integer type.
    pub(super) fn iconst(&mut self, ty: Type, value: u64) -> Value {
        let bits = 64 - ty.bits();
        let extended = ((value << bits) as i64) >> bits;
        self.b.ins().iconst(ty, extended)
    }

    /// A 64-bit constant.
    pub(super) fn word(&mut self, value: u64) -> Value {
        self.iconst(types::I64, value)
    }

    /// The constant that an integer is, if that is known without looking further than its definition.
    pub(super) fn constant_of(&self, value: Value) -> Option<u64> {
        let inst = self.b.func.dfg.value_def(value).inst()?;
        match self.b.func.dfg.insts[inst] {
            InstructionData::UnaryImm { opcode: Opcode::Iconst, imm } => Some(imm.bits() as u64),
            _ => None,
        }
    }

    /// An address plus a constant. If the address is such a sum itself, from its base: that is one LEA.
    pub(super) fn displaced(&mut self, address: Value, by: i64) -> Value {
        let inst = self.b.func.dfg.value_def(address).inst();
        if let Some(inst) = inst
            && let InstructionData::Binary { opcode: Opcode::Iadd, args: [base, displacement] } =
                self.b.func.dfg.insts[inst]
            && let Some(displacement) = self.constant_of(displacement)
        {
            return self.b.ins().iadd_imm_s(base, by.wrapping_add(displacement as i64));
        }
        self.b.ins().iadd_imm_s(address, by)
    }

    /// Loads a field of `CpuState`.
    pub(super) fn state_load(&mut self, ty: Type, offset: usize) -> Value {
        self.b.ins().load(ty, self.fields.state, self.cpu, offset as i32)
    }

    /// Stores a field of `CpuState`.
    pub(super) fn state_store(&mut self, value: Value, offset: usize) {
        self.b.ins().store(self.fields.state, value, self.cpu, offset as i32);
    }

    /// Zero-extends to 64 bits. This and the next two fold constants, so that code is as good without Cranelift's
    /// optimizer as it can cheaply be.
    pub(super) fn extend(&mut self, value: Value) -> Value {
        if let Some(wide) = self.known_extension(value) {
            wide
        } else if let Some(constant) = self.constant_of(value) {
            let mask = u64::MAX >> (64 - self.b.func.dfg.value_type(value).bits());
            self.word(constant & mask)
        } else {
            self.b.ins().uextend(types::I64, value)
        }
    }

    /// A value that is already there and is the zero extension to 64 bits.
    pub(super) fn known_extension(&self, value: Value) -> Option<Value> {
        if self.b.func.dfg.value_type(value) == types::I64 {
            return Some(value);
        }
        self.extended.iter().find(|(narrow, _)| *narrow == value).map(|(_, wide)| *wide)
    }

    /// Sign-extends to 64 bits.
    pub(super) fn sign_extend(&mut self, value: Value) -> Value {
        let ty = self.b.func.dfg.value_type(value);
        if ty == types::I64 {
            value
        } else if let Some(constant) = self.constant_of(value) {
            let unused = 64 - ty.bits();
            self.word(((constant << unused) as i64 >> unused) as u64)
        } else {
            self.b.ins().sextend(types::I64, value)
        }
    }

    /// The low part of a value.
    pub(super) fn reduce(&mut self, width: Width, value: Value) -> Value {
        if self.b.func.dfg.value_type(value) == int_type(width) {
            value
        } else if let Some(constant) = self.constant_of(value) {
            self.iconst(int_type(width), constant)
        } else {
            self.b.ins().ireduce(int_type(width), value)
        }
    }

    /// The signature of blocks.
    pub(super) fn block_signature(&mut self) -> SigRef {
        let Self { b, signatures, .. } = self;
        *signatures.block.get_or_insert_with(|| {
            let mut signature = Signature::new(CallConv::Tail);
            signature.params.push(AbiParam::new(types::I64));
            signature.returns.push(AbiParam::new(types::I64));
            b.import_signature(signature)
        })
    }

    /// Calls entry `index` of the function table, a System V function of up to five 64-bit arguments.
    pub(super) fn call_table(&mut self, index: usize, arguments: &[Value]) -> Value {
        let function = self.table_entry(index);
        let Self { b, signatures, .. } = self;
        let signature = *signatures.system_v[arguments.len()].get_or_insert_with(|| {
            let mut signature = Signature::new(CallConv::SystemV);
            signature.params.resize(arguments.len(), AbiParam::new(types::I64));
            signature.returns.push(AbiParam::new(types::I64));
            b.import_signature(signature)
        });
        let call = b.ins().call_indirect(signature, function, arguments);
        b.inst_results(call)[0]
    }

    /// Calls the thunk of a slow path.
    pub(super) fn call_thunk(&mut self, path: SlowPath, arguments: &[Value]) {
        debug_assert_eq!(arguments.len(), path.arguments());
        for (n, &argument) in arguments.iter().enumerate() {
            self.state_store(argument, SlowPath::argument(n));
        }
        let function = self.table_entry(crate::abi::FIRST_THUNK + path as usize);
        let Self { b, signatures, .. } = self;
        let signature = *signatures.thunk.get_or_insert_with(|| b.import_signature(thunks::signature()));
        b.ins().call_indirect(signature, function, &[]);
    }

    /// Calls a function of the runtime that takes and gives nothing and changes no register but its purpose.
    pub(super) fn call_preserving(&mut self, helper: RuntimeHelper) {
        let function = self.table_entry(FIRST_RUNTIME_HELPER + helper as usize);
        let Self { b, signatures, .. } = self;
        let signature = *signatures.thunk.get_or_insert_with(|| b.import_signature(thunks::signature()));
        b.ins().call_indirect(signature, function, &[]);
    }

    fn table_entry(&mut self, index: usize) -> Value {
        self.count_call(index);
        let table = self.state_load(types::I64, core::mem::offset_of!(x86::CpuState, helpers));
        self.b.ins().load(types::I64, self.fields.tables, table, index as i32 * 8)
    }
}
