//! Compiled CLIF to a [`CodeBlock`]: copies the code out and turns the code generator's relocations into ours.

use cranelift_codegen::{
    CompiledCode, FinalizedRelocTarget,
    binemit::Reloc,
    ir::{ExternalName, Function},
};

use crate::{
    CodeBlock, Relocation, RelocationKind, RelocationTarget, Text, TranslateError, carried,
    lift::{CALLOUT_NAMESPACE, COUNTERS_NAMESPACE, Lifted, SLOT_NAMESPACE},
};

/// Makes the block out of what the code generator left.
pub(crate) fn code_block(
    rip: u64,
    lifted: Lifted,
    function: &Function,
    compiled: &CompiledCode,
    code: Vec<u8>,
    text: Option<Text>,
) -> Result<CodeBlock, TranslateError> {
    let alignment = compiled.buffer.alignment as usize;
    if alignment > carried::ALIGNMENT {
        return Err(TranslateError::Codegen(format!("code wants an alignment of {alignment} bytes")));
    }
    let prologue = carried::prologue();
    let moved = prologue.len() as u32;
    let mut relocations = Vec::with_capacity(lifted.exits.len());
    for found in compiled.buffer.relocs() {
        let refused = || TranslateError::Codegen(format!("unexpected relocation {found:?}"));
        let kind = match found.kind {
            Reloc::X86PCRel4 | Reloc::X86CallPCRel4 => RelocationKind::Pc32,
            Reloc::Abs8 => RelocationKind::Abs64,
            _ => return Err(refused()),
        };
        let FinalizedRelocTarget::ExternalName(ExternalName::User(name)) = &found.target else {
            return Err(refused());
        };
        let name = &function.params.user_named_funcs()[*name];
        let target = match name.namespace {
            SLOT_NAMESPACE => RelocationTarget::Slot(name.index),
            CALLOUT_NAMESPACE => RelocationTarget::Callout(name.index),
            COUNTERS_NAMESPACE => RelocationTarget::Counters,
            _ => return Err(refused()),
        };
        relocations.push(Relocation { offset: found.offset + moved, kind, target, addend: found.addend });
    }
    let instrumentation = lifted.instrumentation.map(|all| {
        let mut all = all.finished();
        for range in &mut all.sources {
            (range.start, range.end) = (range.start + moved, range.end + moved);
        }
        Box::new(all)
    });
    Ok(CodeBlock {
        rip,
        code: [prologue.as_slice(), &code].concat(),
        relocations,
        exits: lifted.exits,
        callouts: lifted.callouts,
        addends: Vec::new(),
        window_accesses: Vec::new(),
        addresses: None,
        guest_instructions: lifted.guest_instructions,
        guest_bytes: lifted.guest_bytes,
        counts: false,
        instrumentation,
        text,
    })
}
