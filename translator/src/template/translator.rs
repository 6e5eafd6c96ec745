//! [`TemplateTranslator`]: has blocks and regions written, and keeps what that allocates from one to the next.

use semantics::decode::GuestBlock;

use super::{
    Template, Written,
    assembler::Assembler,
    branch,
    cold::{Cold, Tails},
    guesses::Guesses,
    registers::Registers,
};
use crate::{
    CodeBlock, Part, TranslateError,
    region::{Region, Versions},
};

/// Translates guest blocks by templates.
pub struct TemplateTranslator {
    /// Here unless it is at work.
    assembler: Option<Box<Assembler>>,
    counts: bool,
    instruments: bool,
    /// Regions of user processes access memory in the window.
    uses_windows: bool,
    guesses: Guesses,
    /// The last translation: what it allocated serves the next one.
    block: CodeBlock,
    /// So do these.
    cold: Vec<Cold>,
    tails: Tails,
    blocks: Vec<Written<'static>>,
}

impl Default for TemplateTranslator {
    fn default() -> Self {
        Self::new()
    }
}

impl TemplateTranslator {
    /// A translator. It needs nothing of the host but what every guest is promised.
    pub fn new() -> Self {
        Self {
            assembler: None,
            counts: false,
            instruments: false,
            uses_windows: false,
            guesses: Guesses::default(),
            block: CodeBlock::default(),
            cold: Vec::new(),
            tails: Tails::default(),
            blocks: Vec::new(),
        }
    }

    /// A translator whose blocks count their executions down and leave with [`crate::abi::Leave::Hot`] when the count has
    /// run out; see [`CodeBlock::counts`].
    pub fn counting() -> Self {
        Self { counts: true, ..Self::new() }
    }

    /// The same, but its blocks count what they do: see [`crate::instrument`].
    pub fn instrumented(self) -> Self {
        Self { instruments: true, ..self }
    }

    /// Has regions of user processes access memory in the window, or not: see [`memory::window`].
    pub fn use_windows(&mut self, on: bool) {
        self.uses_windows = on;
    }

    /// Has accesses of the instructions at these addresses looked up from now on, wherever they are in a region's window: they are all over memory, and each
    /// page costs more there than it brings.
    pub fn scatter(&mut self, rips: impl IntoIterator<Item = u64>) {
        self.guesses.note_bad(rips);
    }

    /// Accesses of the instructions at these addresses keep missing these parts of the window, which were guessed for them: it is the other one, or if that
    /// was guessed before, they are looked up.
    pub fn misguessed(&mut self, guessed: impl IntoIterator<Item = (u64, Part)>) {
        self.guesses.note_wrong(guessed);
    }

    /// Translates a guest block, or its beginning. `second` is [`crate::region::RegionBlock::second`].
    pub fn translate(
        &mut self,
        block: &GuestBlock,
        second: Option<u64>,
    ) -> Result<&CodeBlock, TranslateError> {
        let counts = self.counts;
        self.block.counts = counts;
        self.make(block, |template| {
            template.registers = Registers::plan(block.insns.iter());
            template.load_carried();
            if branch::needs_poll(block) {
                template.poll();
            }
            template.enter(block.rip, counts, second);
            template.take_over();
            template.begin_block(block, 0, None);
            template.block(block)
        })
    }

    /// Translates a region, in these versions if it may access memory in the window; its executions are not counted.
    pub fn translate_region(
        &mut self,
        region: &Region,
        versions: Versions,
    ) -> Result<&CodeBlock, TranslateError> {
        let Some(first) = region.blocks.first() else {
            return Err(TranslateError::FirstDeclined("an empty region"));
        };
        self.block.counts = false;
        self.make(&first.guest, |template| template.region(region, versions))
    }

    fn make<'a>(
        &mut self,
        first: &'a GuestBlock,
        write: impl FnOnce(&mut Template<'a>) -> Result<(u16, u16), TranslateError>,
    ) -> Result<&CodeBlock, TranslateError> {
        if !first.mode.is_64bit() {
            return Err(TranslateError::Mode("not 64-bit"));
        }
        if first.mode.checks_alignment() {
            return Err(TranslateError::Mode("alignment checks"));
        }
        let assembler = self.assembler.take().unwrap_or_default();
        let mut template = Template::new(assembler, first);
        template.relocations = taken(&mut self.block.relocations);
        template.exits = taken(&mut self.block.exits);
        template.callouts = taken(&mut self.block.callouts);
        template.addends = taken(&mut self.block.addends);
        template.asm.addresses = self.block.addresses.as_mut().map(taken).unwrap_or_default();
        template.accesses = taken(&mut self.block.window_accesses);
        template.uses_windows = self.uses_windows;
        template.guesses = core::mem::take(&mut self.guesses);
        template.cold = taken(&mut self.cold);
        template.tails = core::mem::take(&mut self.tails);
        template.blocks = emptied(core::mem::take(&mut self.blocks));
        if self.instruments {
            template.instrument();
        }
        let translated = write(&mut template);
        if translated.is_ok() {
            template.finish();
        }
        let Template { mut asm, relocations, exits, callouts, addends, instrumentation, accesses, .. } =
            template;
        (self.cold, self.tails, self.blocks) = (template.cold, template.tails, emptied(template.blocks));
        self.guesses = template.guesses;
        self.block.code.clear();
        self.block.code.extend_from_slice(asm.code.bytes());
        self.block.addresses = Some(core::mem::take(&mut asm.addresses));
        self.block.addends = addends;
        self.block.window_accesses = accesses;
        self.assembler = Some(asm);
        (self.block.relocations, self.block.exits, self.block.callouts) = (relocations, exits, callouts);
        self.block.instrumentation = instrumentation.map(|all| Box::new(all.finished()));
        self.block.rip = first.rip;
        (self.block.guest_instructions, self.block.guest_bytes) = translated?;
        Ok(&self.block)
    }
}

/// A list's memory.
fn taken<T>(list: &mut Vec<T>) -> Vec<T> {
    list.clear();
    core::mem::take(list)
}

/// The same list without its elements, for others that live elsewhere: collecting from a list of the same layout takes over its memory.
fn emptied<'b>(mut list: Vec<Written<'_>>) -> Vec<Written<'b>> {
    list.clear();
    list.into_iter().map(|written| Written { insns: &[], ..written }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_keeps_its_memory_when_it_is_emptied() {
        let mut list = Vec::with_capacity(17);
        list.push(Written { insns: &[], total: 0, source: 0 });
        let emptied = emptied(list);
        assert_eq!((emptied.len(), emptied.capacity()), (0, 17));
    }
}
