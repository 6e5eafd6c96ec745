//! Guest bytes to host code. The only package that names Cranelift.

pub mod abi;
mod code_block;
mod settings;
mod thunks;

use semantics::decode::GuestBlock;

pub use code_block::{CodeBlock, DirectExit, OutOfReach, Relocation, RelocationKind, RelocationTarget, Text};
pub use settings::{Options, RegisterAllocator};
pub use thunks::Thunks;

/// Why there can be no translator on this host.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host is no x86-64 with SSE2.
    #[error("this host can't run translated code: {0}; use the interpreter")]
    Host(&'static str),
    /// The code generator does not know a setting.
    #[error("code generator setting {name}: {reason}")]
    Setting {
        /// Its name.
        name: &'static str,
        /// What the code generator said.
        reason: String,
    },
    /// The code generator refused the combination of settings.
    #[error("code generator: {0}")]
    Isa(Box<cranelift_codegen::CodegenError>),
    /// Thunks could not be compiled or mapped.
    #[error("thunks: {0}")]
    Thunks(#[from] Box<cranelift_module::ModuleError>),
}

/// Why a guest block was not translated. None of them is an error of the guest: the interpreter carries on.
#[derive(Debug, thiserror::Error)]
pub enum TranslateError {
    /// There is no instruction in the block, or its first one is left to the interpreter or monitor.
    #[error("the first instruction is not translated: {0}")]
    FirstDeclined(&'static str),
    /// Code in that mode is interpreted.
    #[error("code in this mode is not translated: {0}")]
    Mode(&'static str),
    /// The code generator failed.
    #[error("code generator: {0}")]
    Codegen(String),
}

/// Translates guest blocks; one for each compiling thread.
pub struct Translator {
    isa: cranelift_codegen::isa::OwnedTargetIsa,
}

impl Translator {
    /// A translator for this host.
    pub fn new(options: Options) -> Result<Self, Error> {
        Ok(Self { isa: settings::host_isa(&options)? })
    }

    /// Translates a guest block. All status flags count as live at its exits.
    pub fn translate(&mut self, block: &GuestBlock) -> Result<CodeBlock, TranslateError> {
        let _ = (&self.isa, block);
        Err(TranslateError::FirstDeclined("the lifter is not there yet"))
    }
}
