//! From a warm block to installed code: asks the [`Policy`], forms a region, has it compiled, finds room.

use std::sync::Arc;

use memory::Mmu;
use translator::Translator;
use x86::CpuState;

use crate::{
    block::{Block, Extent},
    block_cache::CodeCache,
    kick::KickTarget,
    region,
    tier::Policy,
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
    site: Site,
    cache: Arc<CodeCache>,
    nanoseconds: u64,
    declined: u64,
}

impl Compiler {
    /// Into a shared cache, on the vCPU's thread.
    pub fn here(policy: Policy, translator: Translator, cache: Arc<CodeCache>) -> Self {
        Self { policy, site: Site::Here(Box::new(translator)), cache, nanoseconds: 0, declined: 0 }
    }

    /// Into a shared cache, on another thread, which makes `target` leave compiled code when something is done.
    pub fn in_background(
        policy: Policy,
        translator: Translator,
        cache: Arc<CodeCache>,
        target: Arc<KickTarget>,
    ) -> std::io::Result<Self> {
        let site = Site::Background(Worker::start(translator, target)?);
        Ok(Self { policy, site, cache, nanoseconds: 0, declined: 0 })
    }

    /// Code for a block that is about to run: what it has, or new code if it is warm now. `None`: interpret it.
    ///
    /// May evict all code, so no compiled code may be on the host stack.
    #[inline]
    pub fn code_for(&mut self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu) -> Option<u64> {
        if let Some(code) = block.code() {
            return Some(code);
        }
        let executions = block.count()?;
        self.compile(block, executions, state, mmu)
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
    fn compile(&mut self, block: &Arc<Block>, executions: u32, state: &CpuState, mmu: &Mmu) -> Option<u64> {
        let invalidations = self.cache.invalidations(block.key.first.page());
        let warm_at = match self.policy.warm_at(block.key.mode, invalidations) {
            Some(executions) if block.key.extent == Extent::Full && block.second.is_none() => executions,
            _ => {
                block.give_up();
                return None;
            }
        };
        if executions < warm_at {
            block.ask_at(warm_at);
            return None;
        }
        // Until it is done there is nothing to ask; afterwards it has code, or is given up.
        block.give_up();
        let formed = region::form(block, self.policy.warm_in_region(executions), &self.cache, state, mmu)?;
        for member in &formed.members[1..] {
            // Mostly they will be run as parts of this region; who comes to them otherwise has to come often.
            member.ask_at(self.policy.warm_again(member.executions()));
        }
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

    fn install(&mut self, done: Done) {
        self.nanoseconds += done.nanoseconds;
        let Ok(code) = done.code else {
            self.declined += 1;
            return;
        };
        let members = &done.formed.members;
        if !self.cache.install(members, &code) {
            self.cache.evict();
            // If it does not fit now either, it is larger than all of code memory, and stays interpreted.
            self.cache.install(members, &code);
        }
    }
}
