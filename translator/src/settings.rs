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

/// Which instructions host code may use.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum HostCode {
    /// All that this host has.
    #[default]
    Detected,
    /// Those of x86-64-v2: the same code on every host, for golden tests.
    Baseline,
}

/// How to translate.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Options {
    /// Which register allocator.
    pub registers: RegisterAllocator,
    /// Which host instructions.
    pub host: HostCode,
    /// Run Cranelift's mid-end (GVN, folding, redundant loads). The lifter leaves it so little to do in a single block
    /// that code is no faster with it, and compiling takes 1.4 times as long (`cargo bench -p transvisor-translator`).
    pub optimize: bool,
    /// Have Cranelift check what the lifter made. For tests.
    pub verify: bool,
    /// Keep CLIF and assembly as text.
    pub text: bool,
    /// Code counts what it does: see [`crate::instrument`].
    pub instrument: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            registers: RegisterAllocator::default(),
            host: HostCode::default(),
            optimize: false,
            verify: cfg!(debug_assertions),
            text: false,
            instrument: false,
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

/// The features of x86-64-v2 that matter to Cranelift.
const BASELINE: [&str; 6] =
    ["has_cmpxchg16b", "has_sse3", "has_ssse3", "has_sse41", "has_sse42", "has_popcnt"];

/// The host's ISA, with the features that it has or that were asked for.
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
    // 128-bit operations as the guest has them, in its own two-operand encoding: see `substitute`.
    const VECTOR_EXTENSIONS: [&str; 7] =
        ["has_avx", "has_avx2", "has_avx512bitalg", "has_avx512dq", "has_avx512f", "has_avx512vl", "has_fma"];
    let detect = options.host == HostCode::Detected;
    let mut builder = cranelift_native::builder_with_options(detect).map_err(Error::Host)?;
    for name in VECTOR_EXTENSIONS {
        builder.set(name, "false").map_err(|error| Error::Setting { name, reason: error.to_string() })?;
    }
    if !detect {
        for name in BASELINE {
            builder.enable(name).map_err(|error| Error::Setting { name, reason: error.to_string() })?;
        }
    }
    builder.finish(settings::Flags::new(flags)).map_err(|error| Error::Isa(Box::new(error)))
}
