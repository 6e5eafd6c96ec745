//! [`Thunks`]: the functions between the slow path of an inline memory access and the runtime's functions.
//!
//! A thunk is compiled once per process and lives as long. It is of Cranelift's `PreserveAll` convention, so an access
//! that hits the TLB pays nothing for the existence of its slow path: no register is spilled for a call that is seldom
//! made. Arguments come in `CpuState::scratch` rather than in registers, so that the call does not tie any value to a
//! register either. The thunk saves what a System V function may change, calls the runtime's function with the state
//! from the pinned register, and either returns or has the frame abandoned (see [`crate::abi`]).

use cranelift_codegen::{
    Context,
    ir::{AbiParam, InstBuilder, MemFlagsData, Signature, TrapCode, condcodes::IntCC, types},
    isa::CallConv,
};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use cranelift_jit::{JITBuilder, JITModule};
use cranelift_module::{FuncId, Linkage, Module};

use crate::{
    Error, Options,
    abi::{RuntimeFunctions, SlowPath},
    settings,
};

/// Raised by a thunk if `abandon` returned, which it never does.
const ABANDON_RETURNED: TrapCode = TrapCode::unwrap_user(1);

/// The thunks of one set of runtime functions.
#[derive(Clone, Copy, Debug)]
pub struct Thunks {
    addresses: [*const u8; SlowPath::ALL.len()],
}

// SAFETY: the addresses are of immutable code that is never unmapped.
unsafe impl Send for Thunks {}
// SAFETY: as above.
unsafe impl Sync for Thunks {}

impl Thunks {
    /// Compiles thunks around `functions`. Their memory is never given back, so do this once per process.
    pub fn new(functions: &RuntimeFunctions) -> Result<Self, Error> {
        let isa = settings::host_isa(&Options { optimize: true, ..Options::default() })?;
        let mut module = JITModule::new(JITBuilder::with_isa(isa, cranelift_module::default_libcall_names()));
        let mut ids = Vec::with_capacity(SlowPath::ALL.len());
        let mut context = module.make_context();
        let mut builder_context = FunctionBuilderContext::new();
        for &path in SlowPath::ALL {
            let id = compile(&mut module, &mut context, &mut builder_context, functions, path)?;
            ids.push(id);
        }
        module.finalize_definitions().map_err(Box::new)?;
        let mut addresses = [core::ptr::null(); SlowPath::ALL.len()];
        for (address, id) in addresses.iter_mut().zip(ids) {
            *address = module.get_finalized_function(id);
        }
        // Dropping a JITModule leaves its code mapped.
        Ok(Self { addresses })
    }

    /// Addresses in the order of [`SlowPath`], for the table at `CpuState::helpers`.
    pub fn addresses(&self) -> &[*const u8; SlowPath::ALL.len()] {
        &self.addresses
    }
}

/// The signature that compiled code calls a thunk by.
pub(crate) fn signature() -> Signature {
    Signature::new(CallConv::PreserveAll)
}

fn compile(
    module: &mut JITModule,
    context: &mut Context,
    builder_context: &mut FunctionBuilderContext,
    functions: &RuntimeFunctions,
    path: SlowPath,
) -> Result<FuncId, Error> {
    module.clear_context(context);
    context.func.signature = signature();
    let mut b = FunctionBuilder::new(&mut context.func, builder_context);

    let entry = b.create_block();
    b.switch_to_block(entry);
    b.seal_block(entry);
    let state = b.ins().get_pinned_reg(types::I64);
    let mut arguments = vec![state];
    for n in 0..SlowPath::MAX_ARGUMENTS {
        let argument = if n < path.arguments() {
            b.ins().load(types::I64, MemFlagsData::trusted(), state, SlowPath::argument(n) as i32)
        } else {
            b.ins().iconst(types::I64, 0)
        };
        arguments.push(argument);
    }

    let mut runtime_signature = Signature::new(CallConv::SystemV);
    runtime_signature.params.resize(5, AbiParam::new(types::I64));
    runtime_signature.returns.push(AbiParam::new(types::I64));
    let runtime_signature = b.import_signature(runtime_signature);
    let function = b.ins().iconst(types::I64, functions.slow_paths[path as usize] as usize as i64);
    let call = b.ins().call_indirect(runtime_signature, function, &arguments);
    let done = b.inst_results(call)[0];
    let done = b.ins().icmp_imm_u(IntCC::NotEqual, done, 0);

    let finished = b.create_block();
    let abandoned = b.create_block();
    b.set_cold_block(abandoned);
    b.ins().brif(done, finished, &[], abandoned, &[]);

    b.switch_to_block(abandoned);
    b.seal_block(abandoned);
    let abandon_signature = b.import_signature(Signature::new(CallConv::SystemV));
    let abandon = b.ins().iconst(types::I64, functions.abandon as usize as i64);
    b.ins().call_indirect(abandon_signature, abandon, &[]);
    b.ins().trap(ABANDON_RETURNED);

    b.switch_to_block(finished);
    b.seal_block(finished);
    b.ins().return_(&[]);
    b.finalize(module.target_config());

    let name = format!("{path:?}");
    let id = module.declare_function(&name, Linkage::Export, &context.func.signature).map_err(Box::new)?;
    module.define_function(id, context).map_err(Box::new)?;
    Ok(id)
}
