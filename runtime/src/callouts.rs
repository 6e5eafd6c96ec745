//! Callouts out of compiled code: the monitor carries them out below the running block, and the guest goes on there unless
//! the dispatcher has something to see to.
//!
//! Compiled code stays on the stack meanwhile. So nothing here empties code memory (only the dispatcher does); a callout that
//! wrote to a code page, by which blocks died and jumps in code changed, goes back to the dispatcher, because the processor must be
//! made to see that before any of it runs. Whatever else a callout changes, the block notices: mappings by the TLB entry that its own page
//! has for fetches, mode and rip by comparison.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use memory::Mmu;
use monitor::{Context, Stop, debug::breakpoints_armed};
use semantics::Insn;
use translator::abi::{Leave, callout};
use x86::{CpuState, flags, state::NO_SHADOW};

use crate::{block_cache::CodeCache, compiled::execute_addend, step::Began};

/// What [`Leave::Callout`] leaves to the dispatcher.
pub(crate) struct Outcome {
    pub insn: Insn,
    pub began: Began,
    pub result: Result<(), Stop>,
}

/// Where compiled code puts it.
pub(crate) struct Callouts {
    /// [`CodeCache::written`].
    written: Arc<AtomicBool>,
    outcome: Option<Outcome>,
}

impl Callouts {
    pub fn new(cache: &CodeCache) -> Self {
        Self { written: Arc::clone(cache.written()), outcome: None }
    }

    /// What compiled code has left for.
    pub fn take(&mut self) -> Option<Outcome> {
        self.outcome.take()
    }
}

/// Carries out `insn`, of these [`callout`] traits, which compiled code has counted as executed. Gives 0 or a [`Leave`], as
/// [`translator::abi::RuntimeHelper::Callout`] says.
pub(crate) fn call(
    state: &mut CpuState,
    mmu: &mut Mmu,
    clock: &vcpu::Clock,
    callouts: &mut Callouts,
    insn: &Insn,
    traits: u64,
) -> u64 {
    state.rip = insn.rip;
    if traits & callout::TOUCHES_STATUS != 0 {
        state.settle_flags();
    }
    let changes_place = traits & callout::CHANGES_PLACE != 0;
    let mode = state.mode;
    let page = if changes_place { execute_addend(state, state.linear_rip(insn.rip)) } else { None };
    let result = monitor::execute(&mut Context { state, mmu, clock }, insn);
    if result.is_ok() && !is_to_be_seen_to(state) && !callouts.written.load(Ordering::Relaxed) {
        mmu.code_written = false;
        let is_here = || {
            let same_page = page.is_some() && page == execute_addend(state, state.linear_rip(insn.rip));
            same_page && state.mode == mode && state.rip == insn.next_rip()
        };
        return if !changes_place || is_here() { 0 } else { Leave::Indirect as u64 };
    }
    state.settle_flags();
    state.instructions -= 1;
    let mut began = Began::default();
    if state.shadow_from == state.instructions {
        // It came right after STI.
        state.shadow_from = NO_SHADOW;
        began = Began::after_sti();
    }
    callouts.outcome = Some(Outcome { insn: *insn, began, result });
    Leave::Callout as u64
}

/// Whether something is due after an instruction that completed.
fn is_to_be_seen_to(state: &CpuState) -> bool {
    state.rflags & (flags::TF | flags::RF) != 0
        || state.interrupt_shadow != 0
        || state.event_waiting != 0
        || breakpoints_armed(state)
}
