//! What the board asked for at the last entry, and what the engine owes it.

use memory::MmioAccess;
use monitor::Event;
use semantics::Insn;
use vcpu::{Answer, EngineError, Entry, Exit};
use x86::state::exit_request;

use crate::{
    dispatch::Interruption,
    engine::{Engine, failed},
    profile::Way,
    step::Began,
};
use std::sync::atomic::Ordering;

/// Events that wait for the guest to be able to take them, and the question that the board has not answered.
#[derive(Default)]
pub(crate) struct Events {
    interrupt: Option<u8>,
    nmi: bool,
    window: bool,
    /// Any of the above.
    waiting: bool,
    asked: Asked,
    /// After a triple fault: for good.
    shutdown: bool,
}

/// What the last exit asked of the board.
#[derive(Default)]
pub(crate) enum Asked {
    #[default]
    Nothing,
    /// The pending access in the MMIO log.
    Access,
    /// To complete a callout.
    Callout(Insn, Exit, Began),
}

impl Engine {
    /// Takes the board's answer and requests. The instruction that asked is completed, or can be run again.
    pub(crate) fn accept(&mut self, entry: Entry) -> Result<(), Interruption> {
        if let Some(vector) = entry.interrupt
            && self.events.interrupt.replace(vector).is_some()
        {
            return Err(Interruption::failed(
                "the board injected an interrupt before the guest took the last one".into(),
            ));
        }
        if let Some(priority) = entry.task_priority {
            self.state.cr8 = priority;
        }
        self.events.nmi |= entry.nmi;
        self.events.window = entry.interrupt_window;
        self.update_events();
        match std::mem::take(&mut self.events.asked) {
            Asked::Nothing => Ok(()),
            Asked::Access => {
                let value = access_answer(self.mmu.mmio.pending(), entry.answer)?;
                self.mmu.mmio.answer(value);
                Ok(())
            }
            Asked::Callout(insn, exit, began) => {
                let result = monitor::complete(&mut self.context(), &insn, exit, entry.answer);
                self.finish_callout(&insn, began, result)
            }
        }
    }

    /// Whether [`Engine::attend`] has something to look at.
    #[inline]
    pub(crate) fn needs_attention(&self) -> bool {
        self.events.waiting || self.state.halted || self.state.exit_request.load(Ordering::Relaxed) != 0
    }

    /// Between two instructions: delivers what can be delivered (SDM Vol. 3A 6.9: NMI before interrupts) and says
    /// whether to leave.
    #[cold]
    pub(crate) fn attend(&mut self) -> Option<Exit> {
        self.state.settle_flags();
        let requests = self.state.exit_request.swap(0, Ordering::Acquire);
        if requests & exit_request::ENGINE != 0
            && let Some(profile) = &self.profile
        {
            profile.drain(&self.state, &self.mmu);
        }
        if requests & exit_request::ENGINE != 0
            && let Some(compiler) = &mut self.compiler
        {
            compiler.collect();
            compiler.reconsider(self.finder.fresh(), &self.mmu);
        }
        if self.events.nmi && !self.state.nmi_blocked && self.state.interrupt_shadow == 0 {
            self.events.nmi = false;
            self.state.halted = false;
            if let Some(exit) = self.deliver(Event::Nmi) {
                return Some(exit);
            }
        }
        if let Some(vector) = self.events.interrupt
            && self.state.interruptible()
        {
            self.events.interrupt = None;
            self.state.halted = false;
            if let Some(exit) = self.deliver(Event::Interrupt(vector)) {
                return Some(exit);
            }
        }
        self.update_events();
        if requests & exit_request::KICK != 0 {
            return Some(Exit::Kicked);
        }
        if self.events.window && self.state.interruptible() {
            self.events.window = false;
            self.update_events();
            return Some(Exit::InterruptWindow);
        }
        self.state.halted.then_some(Exit::Halt)
    }

    /// Tells compiled code too whether events wait.
    pub(crate) fn update_events(&mut self) {
        self.events.update();
        self.state.event_waiting = self.events.waiting.into();
    }

    /// Delivers an event; a triple fault shuts the processor down.
    pub(crate) fn deliver(&mut self, event: Event) -> Option<Exit> {
        self.open = None;
        if let Some(profile) = &self.profile
            && matches!(event, Event::Interrupt(_) | Event::Nmi)
        {
            profile.way(Way::Interrupt);
        }
        match monitor::deliver(&mut self.context(), event) {
            Ok(()) => None,
            Err(monitor::TripleFault) => Some(self.shut_down()),
        }
    }

    pub(crate) fn shut_down(&mut self) -> Exit {
        self.events.shutdown = true;
        Exit::Shutdown
    }

    /// The exit for the access that stopped the current instruction.
    pub(crate) fn ask_access(&mut self) -> Result<Exit, EngineError> {
        self.events.asked = Asked::Access;
        match self.mmu.mmio.pending() {
            Some(MmioAccess::Read { address, size }) => Ok(Exit::MmioRead { address, size }),
            Some(MmioAccess::Write { address, size, value }) => Ok(Exit::MmioWrite { address, size, value }),
            Some(MmioAccess::PortRead { port, size }) => Ok(Exit::PortRead { port, size }),
            Some(MmioAccess::PortWrite { port, size, value }) => Ok(Exit::PortWrite { port, size, value }),
            None => Err(failed("an instruction waits for the board but asked nothing: an engine bug".into())),
        }
    }

    /// The callout is to be completed with the board's answer.
    pub(crate) fn ask_callout(&mut self, insn: Insn, exit: Exit, began: Began) {
        self.events.asked = Asked::Callout(insn, exit, began);
    }
}

impl Events {
    /// Whether the processor has shut down.
    pub(crate) fn is_shut_down(&self) -> bool {
        self.shutdown
    }

    /// Whether nothing stands before an interrupt but the guest's own masks.
    pub(crate) fn admit_interrupt(&self) -> bool {
        !self.shutdown && self.interrupt.is_none() && matches!(self.asked, Asked::Nothing)
    }

    /// Forgets the unanswered question: the state was replaced.
    pub(crate) fn forget(&mut self) {
        *self = Self { nmi: self.nmi, ..Self::default() };
        self.update();
    }

    fn update(&mut self) {
        self.waiting = self.nmi || self.window || self.interrupt.is_some();
    }
}

/// The value that an access gets.
fn access_answer(access: Option<MmioAccess>, answer: Answer) -> Result<u64, Interruption> {
    match (access, answer) {
        (Some(MmioAccess::Write { .. } | MmioAccess::PortWrite { .. }), _) => Ok(0),
        (_, Answer::Value(value)) => Ok(value),
        (access, answer) => Err(Interruption::failed(format!(
            "the board answered {answer:?} to {access:?}, which wants a value: a board bug"
        ))),
    }
}
