//! Running compiled code, and chaining what it left through.
//!
//! Code leaves with a reason ([`Leave`]). Where that is a target it did not know, the target is looked up as any
//! block is, after events had their chance; if it has code, the exit is linked to it ([`chain`]) so that it is not
//! left through again.

use memory::tlb;
use translator::abi::Leave;
use x86::{CpuState, Exception, GuestVirt, Mode};

use crate::{
    block::{Block, Extent},
    block_cache::CodeCache,
    dispatch::Interruption,
    engine::Engine,
    enter,
    jump_cache::JumpCache,
    profile::Phase,
};

/// An exit that compiled code left through and that may be linked to the next block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OpenExit {
    kind: ExitKind,
    rip: u64,
    mode: Mode,
    generation: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ExitKind {
    /// Address of the slot.
    Slot(u64),
    Indirect,
}

/// How often compiled code left, by reason.
#[derive(Clone, Copy, Default, Debug, PartialEq, Eq)]
pub struct LeaveCounters {
    /// Entries into compiled code.
    pub entered: u64,
    /// Direct exits without a link.
    pub unlinked: u64,
    /// Direct exits whose page was mapped otherwise.
    pub guard: u64,
    /// Indirect exits that the jump cache did not know.
    pub indirect: u64,
    /// Single instructions for the interpreter or monitor.
    pub step: u64,
    /// Exit requests.
    pub poll: u64,
    /// Counters of executions that ran out.
    pub hot: u64,
    /// Callouts after which there was something to see to.
    pub callout: u64,
    /// Regions for the window while that was off.
    pub window_off: u64,
}

impl Engine {
    /// Runs compiled code of the block at the state's rip until it leaves; does the single instruction if it left
    /// for one.
    pub(crate) fn enter(&mut self, code: u64) -> Result<(), Interruption> {
        self.state.engine = (&raw mut self.mmu).cast();
        self.state.clock = (&raw const self.clock).cast();
        self.state.callouts = (&raw mut self.callouts).cast();
        self.leaves.entered += 1;
        if let Some(profile) = &self.profile {
            profile.phase(Phase::Compiled);
        }
        if self.cache.take_written() {
            enter::serialize();
        }
        // SAFETY: `attach` and the MMU keep the state's tables valid; the state is boxed and, like the MMU, not
        // touched by anyone else during the call; `code` was found for the state's rip and mode by the caller.
        let leave = unsafe { enter::enter(&raw mut *self.state, code) };
        self.state.take_shadow();
        if let Some(profile) = &self.profile {
            profile.left(&self.state, leave);
        }
        const UNLINKED: u64 = Leave::Unlinked as u64;
        const GUARD: u64 = Leave::Guard as u64;
        const INDIRECT: u64 = Leave::Indirect as u64;
        const STEP: u64 = Leave::Step as u64;
        const POLL: u64 = Leave::Poll as u64;
        const HOT: u64 = Leave::Hot as u64;
        const CALLOUT: u64 = Leave::Callout as u64;
        const WINDOW_OFF: u64 = Leave::WindowOff as u64;
        match leave {
            UNLINKED => {
                self.leaves.unlinked += 1;
                self.leave_by_slot()
            }
            GUARD => {
                self.leaves.guard += 1;
                self.leave_by_slot()
            }
            INDIRECT => {
                self.leaves.indirect += 1;
                self.open = Some(OpenExit {
                    kind: ExitKind::Indirect,
                    rip: self.state.rip,
                    mode: self.state.mode,
                    generation: self.cache.generation(),
                });
                Ok(())
            }
            STEP => {
                self.leaves.step += 1;
                match self.state.abandoned.take() {
                    Some(fault) => self.fault(fault),
                    None => self.step(),
                }
            }
            CALLOUT => {
                self.leaves.callout += 1;
                let Some(outcome) = self.callouts.take() else {
                    let what = "compiled code left after a callout that it did not call: a translator bug";
                    return Err(Interruption::failed(what.to_owned()));
                };
                self.finish_callout(&outcome.insn, outcome.began, outcome.result)
            }
            POLL => {
                self.leaves.poll += 1;
                Ok(())
            }
            HOT => {
                self.leaves.hot += 1;
                let (block, _) = self.finder.find(&self.state, &mut self.mmu, Extent::Full)?;
                if let Some(compiler) = &mut self.compiler {
                    compiler.hot(block, &self.state, &self.mmu);
                }
                Ok(())
            }
            WINDOW_OFF => {
                self.leaves.window_off += 1;
                let (block, fresh) = self.finder.find(&self.state, &mut self.mmu, Extent::Full)?;
                if let Some(compiler) = &mut self.compiler {
                    compiler.without_window(block, fresh, &self.state, &self.mmu);
                }
                // Whatever became of it, the guest gets on.
                self.step()
            }
            other => {
                Err(Interruption::failed(format!("compiled code left with {other:#x}: a translator bug")))
            }
        }
    }

    /// A page fault of the instruction at the state's rip, at whose start the state is. Where tests disturb the engine, and
    /// where a profile counts, the interpreter runs into it once more; it must raise the same.
    fn fault(&mut self, fault: Exception) -> Result<(), Interruption> {
        self.open = None;
        if self.stress.is_none() && self.profile.is_none() {
            return Err(fault.into());
        }
        match self.step() {
            Err(interruption) if interruption.is_exception(fault) => Err(interruption),
            other => Err(Interruption::failed(format!(
                "{fault:x?} of compiled code at {:#x} came out as {other:x?}: a translator bug",
                self.state.rip
            ))),
        }
    }

    fn leave_by_slot(&mut self) -> Result<(), Interruption> {
        let slot = self.state.scratch[0];
        let Some(rip) = self.cache.target(slot) else {
            return Err(Interruption::failed(format!(
                "compiled code left through {slot:#x}, which is no slot: a translator bug"
            )));
        };
        self.state.rip = rip;
        self.open = Some(OpenExit {
            kind: ExitKind::Slot(slot),
            rip,
            mode: self.state.mode,
            generation: self.cache.generation(),
        });
        Ok(())
    }
}

/// Links the exit that was left through last to `block`, which is at the state's rip and has code, if that is where
/// the exit led.
pub(crate) fn chain(
    state: &CpuState,
    cache: &CodeCache,
    jump_cache: &JumpCache,
    exit: OpenExit,
    block: &Block,
    code: u64,
) {
    if exit.rip != state.rip || exit.mode != state.mode {
        return;
    }
    let Some(addend) = execute_addend(state, state.linear_rip(exit.rip)) else { return };
    match exit.kind {
        ExitKind::Slot(slot) => cache.link(slot, block, addend, exit.generation),
        ExitKind::Indirect => jump_cache.fill(exit.rip, exit.mode, addend, code),
    }
}

/// The addend of the TLB entry that allows fetches from an address's page in the current view: what guards compare.
pub(crate) fn execute_addend(state: &CpuState, address: GuestVirt) -> Option<u64> {
    let offset = address.0 >> (x86::PAGE_SHIFT - tlb::ENTRY_SHIFT) & state.fetch_tlb_mask;
    // SAFETY: `fetch_tlb` and its mask describe the MMU's current array, and the mask keeps the offset at an entry's
    // start within it.
    let entry = unsafe { state.fetch_tlb.byte_add(offset as usize).cast::<tlb::Entry>().read() };
    (entry.execute == address.page().0).then_some(entry.addend)
}
