//! From a warm block to installed code: asks the [`Policy`], forms a region, has it compiled, finds room.

use std::{sync::Arc, time::Instant};

use memory::Mmu;
use profiler::model::Tier;
use semantics::decode::{MAX_BLOCK, MAX_LENGTH};
use translator::{
    CodeBlock, TemplateTranslator, Translator,
    region::Versions,
    windows::{Scattered, Windows},
};
use x86::CpuState;

use crate::{
    block::{Block, Extent},
    block_cache::CodeCache,
    finder::{self, Fresh},
    hash::Map,
    kick::KickTarget,
    persistent::{Guest, Translations},
    profile::{Phase, Recorder},
    region::{self, Formed, Most},
    tier::{NEVER, Policy},
    worker::{Done, Worker},
};

/// Who compiles.
enum Site {
    /// The vCPU's thread, at once: for tests that want to know what runs.
    Here(Box<Translator>),
    /// A thread of its own.
    Background(Worker),
}

/// Compiles for one vCPU.
pub struct Compiler {
    policy: Policy,
    templates: TemplateTranslator,
    site: Site,
    cache: Arc<CodeCache>,
    nanoseconds: u64,
    declined: u64,
    profile: Option<Arc<Recorder>>,
    /// Where translations are kept for later runs.
    translations: Option<Arc<Translations>>,
    /// Accesses in what templates made; in a box, since those who handle faults know its place.
    windows: Box<Windows>,
    /// By the address of a region's code that has such accesses, its head.
    windowed: Map<u64, Arc<Block>>,
}

impl Compiler {
    /// Into a shared cache, on the vCPU's thread.
    pub fn here(policy: Policy, translator: Translator, cache: Arc<CodeCache>) -> Self {
        Self::at(policy, Site::Here(Box::new(translator)), cache)
    }

    /// Into a shared cache, on another thread, which makes `target` leave compiled code when something is done.
    pub fn in_background(
        policy: Policy,
        translator: Translator,
        cache: Arc<CodeCache>,
        target: Arc<KickTarget>,
    ) -> std::io::Result<Self> {
        let site = Site::Background(Worker::start(translator, target)?);
        Ok(Self::at(policy, site, cache))
    }

    fn at(policy: Policy, site: Site, cache: Arc<CodeCache>) -> Self {
        let templates = TemplateTranslator::counting();
        Self {
            policy,
            templates,
            site,
            cache,
            nanoseconds: 0,
            declined: 0,
            profile: None,
            translations: None,
            windows: Box::default(),
            windowed: Map::default(),
        }
    }

    /// Templates count for a profile, to which all code is made known. The translator was told the same.
    pub fn recording(self, recorder: Arc<Recorder>) -> Self {
        let templates = TemplateTranslator::counting().instrumented();
        Self { templates, profile: Some(recorder), ..self }
    }

    /// Has it note there what templates make.
    pub fn keep_translations(&mut self, translations: Arc<Translations>) {
        self.translations = Some(translations);
    }

    /// The guest is idle.
    pub fn rest(&self) {
        if let Some(translations) = &self.translations {
            translations.rest();
        }
    }

    /// Has regions of user processes access memory in the window, which is open.
    pub fn use_windows(&mut self) {
        self.templates.use_windows(true);
    }

    /// Where compiled code accesses the window.
    pub fn windows(&self) -> *const Windows {
        &raw const *self.windows
    }

    /// What it decides by.
    pub fn policy(&self) -> Policy {
        self.policy
    }

    /// Code for a block that is about to run: what it has, or new code if it is warm now. `None`: interpret it.
    ///
    /// May evict all code, so no compiled code may be on the host stack.
    #[inline]
    pub fn code_for(
        &mut self,
        block: &Arc<Block>,
        fresh: &mut Fresh,
        state: &CpuState,
        mmu: &Mmu,
    ) -> Option<u64> {
        if let Some(code) = block.code() {
            return Some(code);
        }
        let executions = block.count()?;
        self.compile(block, fresh, executions, state, mmu)
    }

    fn phase(&self, phase: Phase) {
        if let Some(profile) = &self.profile {
            profile.phase(phase);
        }
    }

    /// Nanoseconds in the translator.
    pub fn nanoseconds(&self) -> u64 {
        self.nanoseconds
    }

    /// Blocks that the translator refused.
    pub fn declined(&self) -> u64 {
        self.declined
    }

    /// Installs what was compiled in the background.
    ///
    /// May evict all code, so no compiled code may be on the host stack.
    pub fn collect(&mut self) {
        while let Some(done) = self.take() {
            if let Some(profile) = &self.profile {
                profile.compiled_in_background(done.nanoseconds);
            }
            self.install(done);
        }
    }

    fn take(&self) -> Option<Done> {
        match &self.site {
            Site::Here(_) => None,
            Site::Background(worker) => worker.take(),
        }
    }

    #[cold]
    fn compile(
        &mut self,
        block: &Arc<Block>,
        fresh: &mut Fresh,
        executions: u32,
        state: &CpuState,
        mmu: &Mmu,
    ) -> Option<u64> {
        self.phase(Phase::Translating);
        let warm_at = match self.policy.warm_at(block.key.mode, block.changes) {
            Some(executions) if block.key.extent == Extent::Full => executions,
            _ => {
                block.give_up();
                return None;
            }
        };
        if executions < warm_at {
            let template_at =
                self.policy.template_at(block.key.mode, block.changes, warm_at).unwrap_or(warm_at);
            if executions < template_at {
                block.ask_at(template_at);
                return None;
            }
            block.ask_at(warm_at);
            return self.translate(block, fresh, mmu);
        }
        self.compile_region(block, executions, state, mmu)
    }

    /// The counter of a block's executions has run out: a region is made by templates.
    #[cold]
    pub fn hot(&mut self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu) {
        // Until there is better code, what there is runs on.
        self.cache.recount(block, NEVER);
        if self.restore_region(block, state, mmu) {
            return;
        }
        let (executions, hot_at) = (self.cache.executions(block), self.hot_at(block));
        if self.translations.is_some() && executions < hot_at {
            // It was thought to have one.
            self.cache.recount(block, hot_at - executions);
            return;
        }
        let versions = if state.window == 0 { Versions::Both } else { Versions::Window };
        self.make_region(block, block.executions(), versions, state, mmu);
    }

    /// A region that is only for the window was entered while that is off: it is made anew with both versions.
    #[cold]
    pub fn without_window(&mut self, block: &Arc<Block>, fresh: &mut Fresh, state: &CpuState, mmu: &Mmu) {
        let before = block.code();
        self.make_region(block, self.hot_at(block), Versions::Both, state, mmu);
        if block.code() == before {
            // If it can't be made, its first block can.
            self.translate(block, fresh, mmu);
        }
    }

    /// Makes a region by templates around a block, of such as have run as often as one that has run so many times.
    fn make_region(
        &mut self,
        block: &Arc<Block>,
        executions: u32,
        versions: Versions,
        state: &CpuState,
        mmu: &Mmu,
    ) {
        self.phase(Phase::Translating);
        if let Some(formed) = self.form(block, executions, Most::WHOLE, state, mmu) {
            let start = Instant::now();
            // If it is declined, which nothing is whose first block had a template, blocks run on alone.
            if let Ok(code) = self.templates.translate_region(&formed.region, versions) {
                let taken = start.elapsed().as_nanos() as u64;
                self.nanoseconds += taken;
                if let Some(translations) = &self.translations {
                    note_region(translations, &formed, code);
                }
                let made = (code, Tier::Region);
                if let Some(address) =
                    put(&self.cache, self.profile.as_ref(), &formed.members, made, NEVER, taken)
                {
                    if self.windows.installed(self.cache.generation(), address, code) {
                        self.windowed.clear();
                    }
                    if !code.window_accesses.is_empty() {
                        self.windowed.insert(address, Arc::clone(block));
                    }
                }
            }
        }
        self.phase(Phase::Dispatch);
    }

    /// Takes regions back in which accesses are scattered. At their next execution they are made anew, with those by the TLB or in the other part of the window.
    ///
    /// May evict all code, so no compiled code may be on the host stack.
    pub fn reconsider(&mut self, fresh: &mut Fresh, mmu: &Mmu) {
        while let Some(Scattered { code, faulting, missing }) = self.windows.take_scattered() {
            self.templates.scatter(faulting);
            self.templates.misguessed(missing);
            if let Some(head) = self.windowed.remove(&code)
                && head.code() == Some(code)
            {
                self.translate(&head, fresh, mmu);
                self.cache.recount(&head, 1);
            }
        }
    }

    fn form(
        &self,
        block: &Arc<Block>,
        executions: u32,
        most: Most,
        state: &CpuState,
        mmu: &Mmu,
    ) -> Option<Formed> {
        // Until it is done there is nothing to ask; afterwards it has code, or is given up.
        block.give_up();
        let formed =
            region::form(block, self.policy.warm_in_region(executions), most, &self.cache, state, mmu)?;
        for member in &formed.members[1..] {
            // Mostly they will be run as parts of this region; who comes to them otherwise has to come often.
            member.ask_at(self.policy.warm_again(member.executions()));
            self.cache.recount(member, self.hot_at(member));
        }
        Some(formed)
    }

    /// Translates a block by templates.
    fn translate(&mut self, block: &Arc<Block>, fresh: &mut Fresh, mmu: &Mmu) -> Option<u64> {
        // Not the processor's time: asking for that takes as long as a translation.
        let start = Instant::now();
        let guest = fresh.of(block, mmu)?;
        let countdown = self.hot_at(block);
        let code = self.templates.translate(&guest, region::second_addend(block, mmu)?);
        let taken = start.elapsed().as_nanos() as u64;
        self.nanoseconds += taken;
        match code {
            Ok(code) => {
                if let Some(translations) = &self.translations
                    && translations.wants(guest.rip, guest.mode)
                {
                    let mut bytes = [0; MAX_BLOCK * MAX_LENGTH];
                    let bytes = &mut bytes[..block.bytes.into()];
                    finder::read_block(block, mmu, bytes);
                    let (end, crosses) = (block.end, block.second.is_some());
                    let guest = Guest { block: &guest, bytes, end, crosses };
                    translations.note(&[guest], code, block.changes != 0);
                }
                let members = core::slice::from_ref(block);
                put(&self.cache, self.profile.as_ref(), members, (code, Tier::Templates), countdown, taken);
            }
            // What has no template waits for the compiler.
            Err(_) => fresh.keep(block, guest),
        }
        block.code()
    }

    /// Installs a region that an earlier run has kept, if there is one that is entered at the block.
    fn restore_region(&mut self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu) -> bool {
        let Some(translations) = &self.translations else { return false };
        let mut code = CodeBlock::default();
        let Some(members) = region::kept(block, translations, &mut code, &self.cache, state, mmu) else {
            return false;
        };
        put(&self.cache, None, &members, (&code, Tier::Region), NEVER, 0);
        true
    }

    fn compile_region(
        &mut self,
        block: &Arc<Block>,
        executions: u32,
        state: &CpuState,
        mmu: &Mmu,
    ) -> Option<u64> {
        let most = if block.key.mode.is_64bit() { Most::AROUND } else { Most::WHOLE };
        let formed = self.form(block, executions, most, state, mmu)?;
        match &mut self.site {
            Site::Here(translator) => {
                let done = Done::compile(translator, formed);
                self.install(done);
                block.code()
            }
            Site::Background(worker) => {
                worker.submit(formed);
                None
            }
        }
    }

    /// What the counter of a block that was translated by templates begins with. Of its length only the bytes are known.
    fn hot_at(&self, block: &Block) -> u32 {
        self.policy.countdown(block.bytes)
    }

    fn install(&mut self, done: Done) {
        self.nanoseconds += done.nanoseconds;
        let Ok(code) = done.code else {
            self.declined += 1;
            return;
        };
        let members = &done.formed.members;
        if let Some(translations) = &self.translations {
            note_region(translations, &done.formed, &code);
        }
        put(&self.cache, self.profile.as_ref(), members, (&code, Tier::Compiled), NEVER, done.nanoseconds);
        if let Some(head) = members.first()
            && members.iter().any(|member| member.is_dead())
        {
            // It was compiled in vain, and its head may be as hot as before.
            self.cache.recount(head, self.hot_at(head));
        }
    }
}

/// Has a region kept, if its code can be. A block that only leads to itself is kept as the block that it is, with code that counts.
fn note_region(translations: &Translations, formed: &Formed, code: &CodeBlock) {
    let is_wanted = formed
        .region
        .blocks
        .first()
        .is_some_and(|first| translations.wants(first.guest.rip, first.guest.mode));
    // What faults lead to is not kept.
    if code.addresses.is_none()
        || formed.region.blocks.len() == 1
        || !is_wanted
        || !code.window_accesses.is_empty()
    {
        return;
    }
    let parts = formed.region.blocks.iter().zip(&formed.bytes);
    let guests: Vec<Guest<'_>> = parts
        .map(|(block, bytes)| Guest {
            block: &block.guest,
            bytes,
            end: block.guest.end,
            crosses: block.second.is_some(),
        })
        .collect();
    translations.note(&guests, code, formed.members.iter().any(|member| member.changes != 0));
}

/// Installs code, after an eviction if need be; gives its address, if it was.
fn put(
    cache: &CodeCache,
    profile: Option<&Arc<Recorder>>,
    members: &[Arc<Block>],
    (code, tier): (&CodeBlock, Tier),
    countdown: u32,
    nanoseconds: u64,
) -> Option<u64> {
    // What tells one installation of a head's code from the next.
    let installed = || (cache.generation(), members.first().and_then(|head| head.code()));
    let before = installed();
    if !cache.install(members, code, countdown) {
        cache.evict();
        // If it does not fit now either, it is larger than all of code memory, and stays interpreted.
        cache.install(members, code, countdown);
    }
    let after = installed();
    let address = after.1.filter(|_| after != before)?;
    if let Some(profile) = profile {
        profile.installed(members, (code, tier), address, nanoseconds);
    }
    Some(address)
}
