//! How Cranelift is configured: [`Options`] to a target ISA.

use cranelift_codegen::{
    isa::{OwnedTargetIsa, TargetIsa},
    settings::{self, Configurable},
};

use crate::Error;

/// Register allocators.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum RegisterAllocator {
    /// Better code.
    #[default]
    Backtracking,
    /// Quicker to compile.
    SinglePass,
}

/// How to translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Which register allocator.
    pub registers: RegisterAllocator,
    /// Run Cranelift's mid-end (GVN, folding, redundant loads).
    pub optimize: bool,
    /// Have Cranelift check what the lifter made. For tests.
    pub verify: bool,
    /// Keep CLIF and assembly as text.
    pub text: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registers: RegisterAllocator::default(),
            optimize: true,
            verify: cfg!(debug_assertions),
            text: false,
        }
    }
}

/// What the lifter must know of the host's ISA.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostFeatures {
    /// 16-byte compare-and-exchange.
    pub cmpxchg16b: bool,
}

impl HostFeatures {
    pub fn of(isa: &dyn TargetIsa) -> Self {
        let has = |name| isa.isa_flags().iter().any(|flag| flag.name == name && flag.as_bool() == Some(true));
        Self { cmpxchg16b: has("has_cmpxchg16b") }
    }
}

/// The host's ISA, with the features that it has.
pub(crate) fn host_isa(options: &Options) -> Result<OwnedTargetIsa, Error> {
    let mut flags = settings::builder();
    let registers = match options.registers {
        RegisterAllocator::Backtracking => "backtracking",
        RegisterAllocator::SinglePass => "single_pass",
    };
    let set = [
        ("opt_level", if options.optimize { "speed" } else { "none" }),
        ("regalloc_algorithm", registers),
        ("enable_verifier", if options.verify { "true" } else { "false" }),
        ("enable_pinned_reg", "true"),
        // Cranelift's tail calls want them on x86-64.
        ("preserve_frame_pointers", "true"),
        ("enable_probestack", "false"),
        ("unwind_info", "false"),
        ("is_pic", "false"),
        ("use_colocated_libcalls", "false"),
    ];
    for (name, value) in set {
        flags.set(name, value).map_err(|error| Error::Setting { name, reason: error.to_string() })?;
    }
    let builder = cranelift_native::builder().map_err(Error::Host)?;
    builder.finish(settings::Flags::new(flags)).map_err(|error| Error::Isa(Box::new(error)))
}
