//! The time-stamp counter: RDTSC RDTSCP RDPMC, and waiting: HLT (SDM Vol. 3B 18.17; Vol. 2).

use semantics::Insn;
use vcpu::Clock;
use x86::{CpuState, Exception, control::cr4};

use crate::{Context, Result, Stop};

impl Context<'_> {
    /// The guest's TSC.
    #[inline]
    pub(crate) fn tsc(&self) -> u64 {
        tsc(self.state, self.clock)
    }
}

/// The guest's TSC, for an engine that has checked CR4.TSD.
#[inline]
pub fn tsc(state: &CpuState, clock: &Clock) -> u64 {
    clock.tsc().wrapping_add(state.msrs.tsc_offset)
}

/// RDTSC.
pub(crate) fn rdtsc(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_tsc_access(cx)?;
    cx.set_edx_eax(cx.tsc());
    cx.advance(insn);
    Ok(())
}

/// RDTSCP: also IA32_TSC_AUX to ECX.
pub(crate) fn rdtscp(cx: &mut Context<'_>, insn: &Insn) -> Result {
    require_tsc_access(cx)?;
    cx.set_edx_eax(cx.tsc());
    cx.state.gpr[1] = cx.state.msrs.tsc_aux & 0xffff_ffff;
    cx.advance(insn);
    Ok(())
}

fn require_tsc_access(cx: &Context<'_>) -> Result<(), Exception> {
    if cx.state.cr4 & cr4::TSD != 0 && cx.state.cpl != 0 { Err(Exception::GP0) } else { Ok(()) }
}

/// RDPMC: no performance counters are announced, so every index is invalid.
pub(crate) fn rdpmc(_: &mut Context<'_>, _: &Insn) -> Result {
    Err(Exception::GP0.into())
}

/// HLT: the instruction is complete; the board waits for an interrupt.
pub(crate) fn hlt(cx: &mut Context<'_>, insn: &Insn) -> Result {
    cx.require_cpl0()?;
    cx.advance(insn);
    cx.state.halted = true;
    Err(Stop::Exit(vcpu::Exit::Halt))
}
