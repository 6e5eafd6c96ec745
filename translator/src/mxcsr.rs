//! The guest's MXCSR in the host's register: naked functions that change no other register.
//!
//! Compiled code runs floating-point instructions as they are, so their rounding, flags and denormals are the guest's if the host's
//! MXCSR is. Code that has such instructions calls [`load`] unless `CpuState::mxcsr_loaded` says that somebody did;
//! whoever entered compiled code calls [`unload`] when it has left, if so. In between, the flags are newest in the
//! register; [`store`] makes `CpuState::mxcsr` current. Only an MXCSR that masks all exceptions is ever loaded
//! (`Mode::float_traps`), so nothing traps on the host.

use core::arch::naked_asm;
use core::mem::offset_of;

use x86::{CpuState, fpu};

/// Loads the guest's MXCSR. r15 = state.
///
/// # Safety
/// Called by compiled code, with r15 = the state.
#[unsafe(naked)]
pub unsafe extern "C" fn load() {
    naked_asm!(
        "ldmxcsr dword ptr [r15 + {mxcsr}]",
        "mov dword ptr [r15 + {loaded}], 1",
        "ret",
        mxcsr = const offset_of!(CpuState, mxcsr),
        loaded = const offset_of!(CpuState, mxcsr_loaded),
    )
}

/// Makes `CpuState::mxcsr` current. r15 = state.
///
/// # Safety
/// As for [`load`].
#[unsafe(naked)]
pub unsafe extern "C" fn store() {
    naked_asm!(
        "cmp dword ptr [r15 + {loaded}], 0",
        "je 2f",
        "stmxcsr dword ptr [r15 + {mxcsr}]",
        "2: ret",
        mxcsr = const offset_of!(CpuState, mxcsr),
        loaded = const offset_of!(CpuState, mxcsr_loaded),
    )
}

/// Takes the guest's MXCSR back into `CpuState` and gives the host its own. r15 = state.
///
/// # Safety
/// r15 = a state whose MXCSR is loaded.
#[unsafe(naked)]
pub unsafe extern "C" fn unload() {
    naked_asm!(
        "stmxcsr dword ptr [r15 + {mxcsr}]",
        "mov dword ptr [r15 + {loaded}], 0",
        "push {host}",
        "ldmxcsr dword ptr [rsp]",
        "lea rsp, [rsp + 8]",
        "ret",
        mxcsr = const offset_of!(CpuState, mxcsr),
        loaded = const offset_of!(CpuState, mxcsr_loaded),
        host = const fpu::MXCSR_RESET,
    )
}

/// For a function called by compiled code that needs the host's MXCSR, or the guest's in `state`: as [`unload`]. True
/// if it was loaded; then [`resume`] is due before the function returns.
pub fn suspend(state: &mut CpuState) -> bool {
    if state.mxcsr_loaded == 0 {
        return false;
    }
    // SAFETY: stores and loads MXCSR, which is then as Rust code has it.
    unsafe {
        core::arch::asm!(
            "stmxcsr dword ptr [{guest}]",
            "ldmxcsr dword ptr [{host}]",
            guest = in(reg) &raw mut state.mxcsr,
            host = in(reg) &raw const HOST,
            options(nostack),
        );
    }
    true
}

/// Loads the guest's MXCSR again.
pub fn resume(state: &mut CpuState) {
    // SAFETY: what was loaded before `suspend`, with perhaps more flags: it masks all exceptions. The caller returns
    // to compiled code, whose MXCSR it is.
    unsafe {
        core::arch::asm!("ldmxcsr dword ptr [{}]", in(reg) &raw const state.mxcsr, options(nostack, readonly));
    }
}

static HOST: u32 = fpu::MXCSR_RESET;
