//! From a warm block to installed code: asks the [`Policy`], has the block translated, finds room.

use std::{sync::Arc, time::Instant};

use memory::Mmu;
use translator::Translator;

use crate::{
    block::{Block, Extent},
    block_cache::CodeCache,
    finder,
    tier::Policy,
};

/// Compiles for one vCPU, on its own thread.
pub struct Compiler {
    policy: Policy,
    translator: Translator,
    cache: Arc<CodeCache>,
    nanoseconds: u64,
    declined: u64,
}

impl Compiler {
    /// Into a shared cache.
    pub fn new(policy: Policy, translator: Translator, cache: Arc<CodeCache>) -> Self {
        Self { policy, translator, cache, nanoseconds: 0, declined: 0 }
    }

    /// Code for a block that is about to run: what it has, or new code if it is warm now. `None`: interpret it.
    ///
    /// May evict all code, so no compiled code may be on the host stack.
    #[inline]
    pub fn code_for(&mut self, block: &Arc<Block>, mmu: &Mmu) -> Option<u64> {
        if let Some(code) = block.code() {
            return Some(code);
        }
        let executions = block.count()?;
        self.compile(block, executions, mmu)
    }

    /// Nanoseconds in the translator.
    pub fn nanoseconds(&self) -> u64 {
        self.nanoseconds
    }

    /// Blocks that the translator refused.
    pub fn declined(&self) -> u64 {
        self.declined
    }

    #[cold]
    fn compile(&mut self, block: &Arc<Block>, executions: u32, mmu: &Mmu) -> Option<u64> {
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
        let start = Instant::now();
        let compiled = finder::decode_again(block, mmu).map(|guest| self.translator.translate(&guest));
        self.nanoseconds += start.elapsed().as_nanos() as u64;
        let Some(Ok(code)) = compiled else {
            self.declined += 1;
            block.give_up();
            return None;
        };
        if !self.cache.install(block, &code) {
            self.cache.evict();
            if !self.cache.install(block, &code) {
                // Larger than all of code memory.
                block.give_up();
                return None;
            }
        }
        block.code()
    }
}
