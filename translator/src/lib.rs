//! Guest bytes to host code. The only package that names Cranelift.
//!
//! A guest block (`semantics::decode`) is lifted to CLIF ([`lift`]), compiled by Cranelift as [`settings`] say, and
//! copied out as a [`CodeBlock`] ([`finish`]) for the runtime to place, link and run under the contract of [`abi`].

pub mod abi;
pub mod addresses;
pub mod carried;
mod code_block;
mod finish;
pub mod instrument;
mod lift;
mod locality;
pub mod misses;
pub mod mxcsr;
pub mod region;
mod settings;
mod substitute;
mod template;
mod text;
mod thunks;
pub mod windows;

use std::panic::{AssertUnwindSafe, catch_unwind};

use cranelift_codegen::{Context, control::ControlPlane, isa::OwnedTargetIsa};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use semantics::decode::GuestBlock;

use lift::{Lifted, Lifter};
use region::Region;
use settings::HostFeatures;

pub use code_block::{
    AddendField, CodeBlock, DirectExit, ExitJump, Guess, OutOfReach, Part, Relocation, RelocationKind,
    RelocationTarget, Text, WindowAccess,
};
pub use settings::{HostCode, Options, RegisterAllocator};
pub use template::TemplateTranslator;
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
    options: Options,
    isa: OwnedTargetIsa,
    /// The same without the mid-end.
    plain_isa: OwnedTargetIsa,
    host: HostFeatures,
    context: Context,
    builder_context: FunctionBuilderContext,
    control: ControlPlane,
}

impl Translator {
    /// A translator for this host.
    pub fn new(options: Options) -> Result<Self, Error> {
        let isa = settings::host_isa(&options)?;
        let plain_isa = settings::host_isa(&Options { optimize: false, ..options })?;
        let host = HostFeatures::of(&*isa);
        let (context, builder_context) = (Context::new(), FunctionBuilderContext::new());
        Ok(Self { options, isa, plain_isa, host, context, builder_context, control: ControlPlane::default() })
    }

    /// Translates a guest block.
    pub fn translate(&mut self, block: &GuestBlock) -> Result<CodeBlock, TranslateError> {
        self.guarded(block.mode, block.rip, |lifter| lifter.block(block))
    }

    /// Translates a region.
    pub fn translate_region(&mut self, region: &Region) -> Result<CodeBlock, TranslateError> {
        let Some(first) = region.blocks.first() else {
            return Err(TranslateError::FirstDeclined("an empty region"));
        };
        self.guarded(first.guest.mode, first.guest.rip, |lifter| lifter.region(region))
    }

    fn guarded(
        &mut self,
        mode: x86::Mode,
        rip: u64,
        lift: impl FnOnce(&mut Lifter<'_>) -> Result<Lifted, TranslateError>,
    ) -> Result<CodeBlock, TranslateError> {
        mode_is_lifted(mode)?;
        // A code generator that gives up on something that a guest brought it to must not take the monitor with it:
        // the block is interpreted, and what was left half done is made anew.
        let result = catch_unwind(AssertUnwindSafe(|| self.compile(mode, rip, lift)));
        result.unwrap_or_else(|panic| {
            self.context = Context::new();
            self.builder_context = FunctionBuilderContext::new();
            let message = panic.downcast_ref::<String>().map(String::as_str);
            let message = message.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(TranslateError::Codegen(message.unwrap_or("it gave up").to_owned()))
        })
    }

    fn compile(
        &mut self,
        mode: x86::Mode,
        rip: u64,
        lift: impl FnOnce(&mut Lifter<'_>) -> Result<Lifted, TranslateError>,
    ) -> Result<CodeBlock, TranslateError> {
        self.context.clear();
        let mut lifted = self.lift(mode, lift).inspect_err(|_| {
            // Cranelift's builder wants to begin with nothing left over.
            self.builder_context = FunctionBuilderContext::new();
        })?;
        let wants_text = self.options.text || self.options.instrument;
        let clif = wants_text.then(|| self.context.func.display().to_string());

        // The mid-end takes a carrier for what it looks like.
        let isa = if lifted.substituted.is_empty() { &self.isa } else { &self.plain_isa };
        let compiled = self
            .context
            .compile(&**isa, &mut self.control)
            .map_err(|error| TranslateError::Codegen(error.inner.to_string()))?;

        let mut code = compiled.code_buffer().to_vec();
        substitute::apply(&mut code, compiled.buffer.get_srclocs_sorted(), &lifted.substituted)
            .map_err(TranslateError::Codegen)?;
        if let (Some(instrumentation), Some(clif)) = (&mut lifted.instrumentation, &clif) {
            for location in compiled.buffer.get_srclocs_sorted() {
                if !location.loc.is_default() {
                    let source = location.loc.bits() & substitute::SOURCE;
                    instrumentation.source(location.start, location.end, source);
                }
            }
            instrumentation.clif = Some(clif.clone());
        }
        let text =
            clif.filter(|_| self.options.text).map(|clif| Text { clif, assembly: text::assembly(&code) });
        let Some(compiled) = self.context.compiled_code() else {
            return Err(TranslateError::Codegen("no code".to_owned()));
        };
        finish::code_block(rip, lifted, &self.context.func, compiled, code, text)
    }

    fn lift(
        &mut self,
        mode: x86::Mode,
        lift: impl FnOnce(&mut Lifter<'_>) -> Result<Lifted, TranslateError>,
    ) -> Result<Lifted, TranslateError> {
        let builder = FunctionBuilder::new(&mut self.context.func, &mut self.builder_context);
        let mut lifter = Lifter::new(builder, mode, self.host);
        if self.options.instrument {
            lifter.instrument();
        }
        let lifted = lift(&mut lifter)?;
        lifter.finish(self.isa.frontend_config());
        Ok(lifted)
    }
}

/// Only flat code is lifted: 64-bit, or protected mode with segments that don't show. The rest is seldom run and is
/// interpreted.
fn mode_is_lifted(mode: x86::Mode) -> Result<(), TranslateError> {
    if !mode.is_flat() {
        return Err(TranslateError::Mode("segments with bases or limits"));
    }
    if !mode.is_64bit() && !mode.is_protected() {
        return Err(TranslateError::Mode("real or virtual-8086 mode"));
    }
    Ok(())
}
