//! What privileged and sensitive instructions do, and how events reach the guest's handlers.
//!
//! Two ways in. [`execute`] carries out one instruction of [`semantics::Kind::Callout`] on the state; [`deliver`] takes
//! an exception or interrupt through the IDT. Both work on a [`Context`]: the processor state, its memory, the clock.
//! No device is known here: port I/O and the APIC's MSRs leave as requests to the board.
//!
//! Data flows: engine -> [`dispatch`](execute) -> the module of the instruction's topic -> [`descriptor`], [`stack`] and
//! [`access`] -> `memory`. Every instruction checks everything first and commits registers last, so an exception
//! leaves the state as it was.
//!
//! What the engine keeps:
//! - `state.interrupt_shadow` is cleared by the engine when it *starts* an instruction (after it decided about
//!   interrupts); STI, MOV SS and POP SS set it for the next one.
//! - RFLAGS.TF sampled at the start of an instruction leads to [`debug_trap`] after it.
//! - After `Ok` and after [`Stop::Exit`] it looks at `state.rip`, `state.mode` and RFLAGS.IF anew.

pub mod cpuid;
pub mod debug;
pub mod msr;

mod access;
mod control;
mod delivery;
mod descriptor;
mod dispatch;
mod far;
mod far_return;
mod flags;
mod gate;
mod hypercall;
mod inspect;
mod interrupt;
mod io;
mod iret;
mod kvmclock;
mod protected_delivery;
mod random;
mod real_delivery;
mod segment_load;
mod stack;
mod syscall;
mod table_registers;
mod task;
mod time;
mod tlb;

#[cfg(test)]
mod tests;

pub use debug::debug_trap;
pub use delivery::{Event, TripleFault, deliver};
pub use dispatch::{complete, execute};
pub use time::tsc;

use memory::Mmu;
use x86::{CpuState, Exception};

/// What an instruction or an event works on.
pub struct Context<'a> {
    /// The processor.
    pub state: &'a mut CpuState,
    /// Its way to memory.
    pub mmu: &'a mut Mmu,
    /// The machine's clock.
    pub clock: &'a vcpu::Clock,
}

/// Why an instruction did not complete.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stop {
    /// It faulted; nothing changed. To be given to [`deliver`].
    Exception(Exception),
    /// `mmu.mmio` has a pending access. After the answer the instruction is run again.
    Board,
    /// The board must act. [`vcpu::Exit::Halt`]: the instruction is complete. The others: [`complete`] it.
    Exit(vcpu::Exit),
}

impl From<Exception> for Stop {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl From<memory::Stop> for Stop {
    fn from(stop: memory::Stop) -> Self {
        match stop {
            memory::Stop::Exception(exception) => Self::Exception(exception),
            memory::Stop::Board => Self::Board,
        }
    }
}

/// What every step of an instruction returns.
pub(crate) type Result<T = (), E = Stop> = core::result::Result<T, E>;
