//! The run loop. One turn: see to events, then run something, which is a block by the interpreter, a chain of compiled
//! blocks, or a single instruction. Everything that stops an instruction comes back here.
//!
//! Bounded latency: every turn looks at the exit request and at events. A turn is at most one block of instructions, or
//! one iteration or page of a REP string instruction, or compiled code, which polls on every cycle of blocks.

use interpreter::BlockExit;
use monitor::{Event, Stop};
use vcpu::{EngineError, Entry, Exit};
use x86::Exception;

use crate::{
    block::Extent,
    compiled,
    engine::{Engine, failed},
    profile::Way,
    step::Began,
    stress::Disturbance,
};

/// Why a turn ended before its end. Boxed, so that the common result of a turn, nothing, is one register.
#[derive(Debug)]
pub(crate) struct Interruption(Box<Reason>);

#[derive(Debug)]
enum Reason {
    /// The current instruction did not complete, or wants the board.
    Stop(Stop),
    /// To be returned as it is.
    Exit(Exit),
    /// The engine can't go on.
    Failed(EngineError),
}

impl Interruption {
    #[cold]
    pub(crate) fn failed(what: String) -> Self {
        Self(Box::new(Reason::Failed(failed(what))))
    }

    #[cold]
    pub(crate) fn exit(exit: Exit) -> Self {
        Self(Box::new(Reason::Exit(exit)))
    }
}

impl Interruption {
    /// Whether it is that exception.
    pub(crate) fn is_exception(&self, exception: Exception) -> bool {
        matches!(*self.0, Reason::Stop(Stop::Exception(raised)) if raised == exception)
    }
}

impl From<Stop> for Interruption {
    #[cold]
    fn from(stop: Stop) -> Self {
        Self(Box::new(Reason::Stop(stop)))
    }
}

impl From<Exception> for Interruption {
    #[cold]
    fn from(exception: Exception) -> Self {
        Stop::Exception(exception).into()
    }
}

impl Engine {
    /// Runs the guest until something needs the board.
    pub(crate) fn run_guest(&mut self, entry: Entry) -> Result<Exit, EngineError> {
        if self.events.is_shut_down() {
            return Ok(Exit::Shutdown);
        }
        let mut turn = self.accept(entry);
        if turn.is_ok() && self.mmu.mmio.is_replaying() {
            // The instruction that asked must be the next to run: it consumes the answers.
            turn = self.step();
        }
        loop {
            if let Err(interruption) = turn
                && let Some(exit) = self.interrupted(interruption)?
            {
                return Ok(exit);
            }
            if self.needs_attention()
                && let Some(exit) = self.attend()
            {
                return Ok(exit);
            }
            turn = self.turn();
        }
    }

    /// Runs something. Compiled code leaves flags in lazy form, which whoever else looks at the state settles first:
    /// the interpreter, a step, an event, the board after an exit.
    #[inline]
    fn turn(&mut self) -> Result<(), Interruption> {
        if self.is_stepping() && !self.is_only_after_sti() {
            return self.step();
        }
        if let Some(stress) = &mut self.stress {
            let disturbance = stress.next();
            self.disturb(disturbance);
        }
        self.run_block()
    }

    /// Runs the block at rip, by compiled code if it has some.
    fn run_block(&mut self) -> Result<(), Interruption> {
        let open = self.open.take();
        let (block, fresh) = self.finder.find(&self.state, &mut self.mmu, Extent::Full)?;
        if let Some(profile) = &self.profile {
            profile.run(block, &self.state, &self.mmu);
        }
        if let Some(compiler) = &mut self.compiler
            && let Some(code) = compiler.code_for(block, fresh, &self.state, &self.mmu)
        {
            if let Some(open) = open {
                compiled::chain(&self.state, &self.cache, &self.jump_cache, open, block, code);
            }
            if self.state.interrupt_shadow != 0 {
                // Compiled code carries on with it as it does with that of its own STI.
                self.state.interrupt_shadow = 0;
                self.state.shadow_from = self.state.instructions;
            }
            return self.enter(code);
        }
        if self.state.interrupt_shadow != 0 {
            return self.step();
        }
        self.state.settle_flags();
        let before = self.state.instructions;
        if let Some(profile) = &self.profile {
            profile.begin_interpreting(block);
        }
        let decoded = fresh.decoded(block, &self.mmu);
        let exit = interpreter::run_block(&mut self.state, &mut self.mmu, decoded);
        self.interpreted += self.state.instructions - before;
        if let Some(profile) = &self.profile {
            profile.interpreted(block, self.state.instructions - before);
        }
        match exit {
            BlockExit::Next => Ok(()),
            BlockExit::CodeWritten => {
                self.mmu.code_written = false;
                Ok(())
            }
            BlockExit::Stop(stop) => Err(Stop::from(stop).into()),
            BlockExit::Callout => {
                let Some(&insn) = decoded.callout() else { return Ok(()) };
                let result = monitor::execute(&mut self.context(), &insn);
                self.finish_callout(&insn, Began::default(), result)
            }
        }
    }

    /// Does what an interruption asks; gives the exit if that is for the board.
    #[cold]
    fn interrupted(&mut self, interruption: Interruption) -> Result<Option<Exit>, EngineError> {
        self.open = None;
        self.state.settle_flags();
        match *interruption.0 {
            Reason::Stop(Stop::Exception(exception)) => {
                self.mmu.mmio.clear();
                self.exceptions += 1;
                if let Some(profile) = &self.profile {
                    profile.exception(exception.vector as u8);
                }
                Ok(self.deliver(Event::Exception(exception)))
            }
            Reason::Stop(Stop::Board) => {
                if let Some(profile) = &self.profile
                    && self.mmu.mmio.pending().is_some_and(|access| !access.is_port())
                {
                    profile.way(Way::Device);
                }
                self.ask_access().map(Some)
            }
            Reason::Stop(Stop::Exit(exit)) | Reason::Exit(exit) => Ok(Some(exit)),
            Reason::Failed(error) => Err(error),
        }
    }

    /// What a stress test does between blocks.
    fn disturb(&mut self, disturbance: Option<Disturbance>) {
        match disturbance {
            None => {}
            Some(Disturbance::Evict) => self.cache.evict(),
            Some(Disturbance::Clear) => self.cache.clear(),
            Some(Disturbance::Unlink(choice)) => self.cache.unlink_some(choice),
            Some(Disturbance::Forget) => {
                self.finder.clear();
                self.jump_cache.clear();
            }
        }
    }
}
