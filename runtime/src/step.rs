//! One instruction, exactly: what compiled code leaves to others, and every instruction while traps are armed.
//!
//! Lifted instructions go to the interpreter, callouts to the monitor. Around them are the rules for what happens at an
//! instruction's end (SDM Vol. 3A 6.8.3, 6.9; Vol. 3B 18.3.1): the interrupt shadow lasts for one instruction,
//! RF too; TF sampled at the beginning traps at the end; breakpoints.

use iced_x86::Mnemonic;
use semantics::{Insn, Kind, table};
use vcpu::Exit;
use x86::{control::debug, flags, state::shadow};

use crate::{block::Extent, breakpoints, dispatch::Interruption, engine::Engine, finder};
use monitor::{
    Stop,
    debug::{breakpoints_armed, instruction_breakpoint},
};

/// What was in force when an instruction began.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Began {
    /// RFLAGS.TF.
    trap: bool,
    /// DR6 bits of the data breakpoints that it touches.
    data: u64,
    /// The interrupt shadow.
    shadow: u32,
    /// RFLAGS.RF.
    resume: u64,
}

impl Began {
    /// Of an instruction in the shadow of STI, with no trap armed.
    pub fn after_sti() -> Self {
        Self { shadow: shadow::STI, ..Self::default() }
    }
}

impl Engine {
    /// Whether the next instruction has to be stepped.
    #[inline]
    pub(crate) fn is_stepping(&self) -> bool {
        let state = &self.state;
        state.interrupt_shadow != 0 || state.rflags & (flags::TF | flags::RF) != 0 || breakpoints_armed(state)
    }

    /// Whether that is for the shadow of STI alone, and nothing waits for its end. Then compiled code may run: otherwise
    /// what follows STI would be stepped each time and never become warm.
    pub(crate) fn is_only_after_sti(&self) -> bool {
        let state = &self.state;
        state.interrupt_shadow == shadow::STI
            && state.event_waiting == 0
            && state.rflags & (flags::TF | flags::RF) == 0
            && !breakpoints_armed(state)
    }

    /// Executes the instruction at rip.
    pub(crate) fn step(&mut self) -> Result<(), Interruption> {
        self.open = None;
        self.state.settle_flags();
        let armed = breakpoints_armed(&self.state);
        if armed && let Some(bits) = self.breakpoint_here() {
            return self.debug_trap(bits);
        }
        let (block, fresh) = self.finder.find(&self.state, &mut self.mmu, Extent::Single)?;
        let Some(&insn) = fresh.decoded(block, &self.mmu).insns().next() else {
            if block.is_dead() {
                return Ok(());
            }
            // Blocks are made of at least one instruction.
            return Err(Interruption::failed(format!("an empty block at {:#x}", self.state.rip)));
        };
        let data = if armed {
            breakpoints::touched(&self.state, &insn, &finder::bytes_of(block, &self.mmu))
        } else {
            0
        };
        if let Some(profile) = &self.profile {
            profile.begin_step(block, &self.state, &self.mmu);
        }
        let state = &mut *self.state;
        let began = Began {
            trap: state.rflags & flags::TF != 0,
            data,
            shadow: state.interrupt_shadow,
            resume: state.rflags & flags::RF,
        };
        state.interrupt_shadow = 0;
        state.rflags &= !flags::RF;
        // Left behind by a helper whose block was abandoned; the interpreter will raise it again.
        state.pending_exception = 0;
        if table::kind_of(&insn) == Kind::Callout {
            let result = monitor::execute(&mut self.context(), &insn);
            return self.finish_callout(&insn, began, result);
        }
        let before = self.state.instructions;
        let result = interpreter::step(&mut self.state, &mut self.mmu, &insn);
        if let Some(profile) = &self.profile
            && result.is_ok()
        {
            profile.stepped(&insn, self.state.instructions - before, false);
        }
        match result {
            Ok(()) => self.finish(&insn, began),
            Err(stop) => self.stop_instruction(stop.into(), began),
        }
    }

    /// What follows after the monitor carried out, or completed, an instruction.
    pub(crate) fn finish_callout(
        &mut self,
        insn: &Insn,
        began: Began,
        result: Result<(), Stop>,
    ) -> Result<(), Interruption> {
        match result {
            Ok(()) | Err(Stop::Exit(Exit::Halt)) => {
                self.state.instructions += 1;
                if let Some(profile) = &self.profile {
                    profile.stepped(insn, 1, true);
                }
                self.finish(insn, began)
            }
            Err(Stop::Exit(exit)) => {
                self.ask_callout(*insn, exit, began);
                Err(Stop::Exit(exit).into())
            }
            Err(stop) => self.stop_instruction(stop, began),
        }
    }

    /// An instruction did not complete.
    fn stop_instruction(&mut self, stop: Stop, began: Began) -> Result<(), Interruption> {
        match stop {
            // It will start again after the answer, under the same conditions.
            Stop::Board => {
                self.state.interrupt_shadow = began.shadow;
                self.state.rflags |= began.resume;
            }
            Stop::Exception(_) | Stop::Exit(_) => self.mmu.mmio.clear(),
        }
        Err(stop.into())
    }

    /// An instruction has completed.
    fn finish(&mut self, insn: &Insn, began: Began) -> Result<(), Interruption> {
        self.mmu.mmio.clear();
        self.mmu.code_written = false;
        self.interpreted += 1;
        let mut bits = self.deferred_debug | began.data;
        let trap = match insn.mnemonic {
            // They save TF and clear it: the handler is not stepped.
            Mnemonic::Int | Mnemonic::Int1 | Mnemonic::Int3 => false,
            // The same where it was taken.
            Mnemonic::Into if self.state.rip != insn.next_rip() => false,
            // TF as the instruction left it: a kernel masks TF at SYSCALL, and SYSRET with TF set stops before the first
            // user instruction.
            Mnemonic::Syscall | Mnemonic::Sysret | Mnemonic::Sysretq => self.state.rflags & flags::TF != 0,
            _ => began.trap,
        };
        if trap {
            bits |= debug::DR6_BS;
        }
        if bits == 0 {
            return Ok(());
        }
        if self.state.interrupt_shadow & shadow::MOV_SS != 0 {
            // Debug traps wait for the instruction after; a single-step trap is not made up for, that one has its own.
            self.deferred_debug = bits & !debug::DR6_BS;
            return Ok(());
        }
        self.deferred_debug = 0;
        self.debug_trap(bits)
    }

    /// DR6 bits if the instruction at rip has a breakpoint that is to be met.
    fn breakpoint_here(&self) -> Option<u64> {
        let state = &self.state;
        if state.interrupt_shadow & shadow::MOV_SS != 0 {
            return None;
        }
        let bits = instruction_breakpoint(state, state.linear_rip(state.rip));
        (bits != 0).then_some(bits)
    }

    fn debug_trap(&mut self, bits: u64) -> Result<(), Interruption> {
        self.exceptions += 1;
        if let Some(profile) = &self.profile {
            profile.exception(x86::Vector::Debug as u8);
        }
        match monitor::debug_trap(&mut self.context(), bits) {
            Ok(()) => Ok(()),
            Err(monitor::TripleFault) => Err(Interruption::exit(self.shut_down())),
        }
    }
}
