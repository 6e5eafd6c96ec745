//! The seam between an engine (what executes guest instructions) and a machine (the board around it).
//!
//! A vCPU is a ring: `exit = run(entry)`, the board does what the exit asks, and its answer is the next entry.
//! An engine names no device; a device names no engine.

mod clock;
mod lent;

use std::sync::Arc;

pub use clock::Clock;
pub use lent::Lent;
use x86::{CpuState, GuestPhys};

/// How the board resumes the guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// The answer to the last exit.
    pub answer: Answer,
    /// Deliver this external-interrupt vector first. Only if [`Vcpu::ready_for_interrupt`] said so since the last
    /// exit; otherwise ask for a window.
    pub interrupt: Option<u8>,
    /// Deliver an NMI as soon as NMIs are not blocked.
    pub nmi: bool,
    /// CR8 has changed from outside (by the local APIC's TPR) to this.
    pub task_priority: Option<u64>,
    /// Leave with [`Exit::InterruptWindow`] once the guest can take an interrupt.
    pub interrupt_window: bool,
}

/// The answer to an [`Exit`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Answer {
    /// Nothing was asked, or it was done.
    #[default]
    Done,
    /// The value read, for the read exits; bits beyond the access are ignored.
    Value(u64),
    /// The access is refused: the instruction raises #GP(0). For MSR exits.
    Fault,
}

/// Why the guest stopped. All exits but the last three are resumed by the next entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// IN or INS wants `size` (1, 2, 4) bytes of a port.
    PortRead {
        /// Port number.
        port: u16,
        /// Bytes.
        size: u8,
    },
    /// OUT or OUTS.
    PortWrite {
        /// Port number.
        port: u16,
        /// Bytes.
        size: u8,
        /// Zero-extended.
        value: u32,
    },
    /// A load from a physical address that is not RAM.
    MmioRead {
        /// Where.
        address: GuestPhys,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
    },
    /// A store to a physical address that is not RAM.
    MmioWrite {
        /// Where.
        address: GuestPhys,
        /// Bytes: 1, 2, 4 or 8.
        size: u8,
        /// Zero-extended.
        value: u64,
    },
    /// RDMSR of an MSR that belongs to the board (APIC base, x2APIC, TSC deadline) or to nobody.
    MsrRead {
        /// ECX.
        index: u32,
    },
    /// WRMSR of an MSR that belongs to the board or to nobody.
    MsrWrite {
        /// ECX.
        index: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// VMCALL or VMMCALL; the answer's value goes to RAX.
    Hypercall {
        /// RAX.
        number: u64,
        /// RBX, RCX, RDX, RSI.
        arguments: [u64; 4],
        /// From 64-bit mode; else number and arguments have 32 bits.
        wide: bool,
    },
    /// HLT: nothing to do until an interrupt comes.
    Halt,
    /// The guest can take an interrupt now, as the entry had asked.
    InterruptWindow,
    /// Somebody kicked this vCPU, or its time slice is over.
    Kicked,
    /// Triple fault: the processor has shut down. Running it again gives the same exit.
    Shutdown,
}

/// What an engine can't go on after. These are errors of the host or of the configuration, never the guest's doing.
#[derive(Debug, thiserror::Error)]
#[error("{engine}: {what}")]
pub struct EngineError {
    /// The engine's name.
    pub engine: &'static str,
    /// What happened and what to do about it.
    pub what: String,
}

/// Makes a vCPU leave its engine soon, from any thread, or from a signal's handler on its own.
pub trait Kicker: Send + Sync {
    /// Asks for [`Exit::Kicked`]. Kicks that come before the exit are merged into one. Takes no lock and allocates nothing (signal-safety(7)).
    fn kick(&self);
}

/// A shared [`Kicker`].
pub type Kick = Arc<dyn Kicker>;

/// Counters of an engine; zero where they do not apply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Guest instructions retired.
    pub instructions: u64,
    /// Of these, by the interpreter.
    pub interpreted: u64,
    /// Guest blocks decoded.
    pub blocks: u64,
    /// Blocks compiled.
    pub compiled: u64,
    /// Host code bytes produced.
    pub code_bytes: u64,
    /// Nanoseconds in the compiler.
    pub compile_nanoseconds: u64,
    /// Blocks invalidated by writes to code.
    pub invalidated: u64,
    /// Times that code memory was full and emptied.
    pub evictions: u64,
    /// Exits to the board.
    pub exits: u64,
    /// Softmmu misses that led to a page walk.
    pub tlb_fills: u64,
    /// Pages that compiled code was let to access by the host's own MMU.
    pub window_pages: u64,
    /// Its accesses there that the host faulted at.
    pub window_faults: u64,
}

/// A virtual processor and the engine that runs it.
pub trait Vcpu: Send {
    /// Runs the guest until something needs the board.
    fn run(&mut self, entry: Entry) -> Result<Exit, EngineError>;

    /// Whether an external interrupt could be delivered at the next entry.
    fn ready_for_interrupt(&self) -> bool;

    /// A handle that stops [`Vcpu::run`] from elsewhere.
    fn kick_handle(&self) -> Kick;

    /// Architectural state, up to date outside [`Vcpu::run`].
    fn state(&self) -> &CpuState;

    /// CR8, without the cost of the whole state.
    fn task_priority(&self) -> u64 {
        self.state().cr8
    }

    /// The guest's TSC minus [`Clock::tsc`], in the terms of the values that MSR exits carry.
    fn tsc_offset(&self) -> u64 {
        self.state().msrs.tsc_offset
    }

    /// Changes architectural state from outside (boot, debugger); the engine drops what it derived from the old.
    fn update_state(&mut self, change: &mut dyn FnMut(&mut CpuState));

    /// Counters so far.
    fn statistics(&self) -> Statistics;
}
