//! Floating-point vector operations on the host's SSE unit with the guest's MXCSR loaded (SDM Vol. 1 10.2.3, 11.5):
//! the macro that runs one instruction so, and what becomes of the exceptions it raised.
//!
//! On the host every exception is masked. If one occurred that the guest has not masked, the operation raises #XM
//! instead of giving its result.

use x86::{CpuState, Vector, control};

use crate::helper::raise;

/// The exception flags IE DE ZE OE UE PE.
const FLAGS: u32 = 0x3f;
/// IE, DE and ZE: found before the computation. If one of them traps nothing is computed.
const PRE_COMPUTATION: u32 = 0x07;
/// Underflow.
const UNDERFLOW: u32 = 1 << 4;
/// From a flag's position to its mask's.
const MASK_SHIFT: u32 = 7;
/// Flush to zero; without effect while underflow is not masked.
const FLUSH_TO_ZERO: u32 = 1 << 15;
/// Rounding control.
const ROUNDING: u32 = 3 << 13;
/// MXCSR as Rust's code has it.
pub(crate) static HOST: u32 = x86::fpu::MXCSR_RESET;

/// What to load on the host to run an instruction under the guest's MXCSR: no flags, everything masked.
#[inline(always)]
pub(crate) fn control(state: &CpuState) -> u32 {
    let mut control = state.mxcsr & !FLAGS | FLAGS << MASK_SHIFT;
    if state.mxcsr & UNDERFLOW << MASK_SHIFT == 0 {
        control &= !FLUSH_TO_ZERO;
    }
    control
}

/// [`control`] with another rounding mode.
#[inline(always)]
pub(crate) fn control_with_rounding(state: &CpuState, rounding: u8) -> u32 {
    control(state) & !ROUNDING | u32::from(rounding & 3) << ROUNDING.trailing_zeros()
}

/// Takes over the flags that the instruction left in MXCSR. `tiny`: whether the result has a denormal, which is an
/// underflow even if exact where underflow is not masked (SDM Vol. 1 4.9.1.5).
#[inline(always)]
pub(crate) fn finish(state: &mut CpuState, status: u32, result: u128, tiny: fn(u128) -> bool) -> u128 {
    let raised = status & FLAGS;
    if state.mxcsr >> MASK_SHIFT & FLAGS == FLAGS {
        state.mxcsr |= raised;
        result
    } else {
        finish_unmasked(state, raised, result, tiny(result))
    }
}

#[cold]
fn finish_unmasked(state: &mut CpuState, mut raised: u32, result: u128, tiny: bool) -> u128 {
    let unmasked = !(state.mxcsr >> MASK_SHIFT) & FLAGS;
    if tiny && unmasked & UNDERFLOW != 0 {
        raised |= UNDERFLOW;
    }
    if raised & unmasked & PRE_COMPUTATION != 0 {
        raised &= PRE_COMPUTATION;
    }
    state.mxcsr |= raised;
    if raised & unmasked != 0 {
        let enabled = state.cr4 & control::cr4::OSXMMEXCPT != 0;
        raise(state, if enabled { Vector::SimdFloatingPoint } else { Vector::InvalidOpcode });
    }
    result
}

/// Which results can be denormal, for [`finish`].
pub(crate) mod tiny {
    fn f32(bits: u32) -> bool {
        bits & 0x7f80_0000 == 0 && bits & 0x7f_ffff != 0
    }

    fn f64(bits: u64) -> bool {
        bits & 0x7ff0_0000_0000_0000 == 0 && bits & 0xf_ffff_ffff_ffff != 0
    }

    /// Four singles (or two and zeros).
    pub fn ps(result: u128) -> bool {
        (0..4).any(|n| f32((result >> (n * 32)) as u32))
    }

    /// Two doubles.
    pub fn pd(result: u128) -> bool {
        f64(result as u64) || f64((result >> 64) as u64)
    }

    /// A single in the low dword.
    pub fn ss(result: u128) -> bool {
        f32(result as u32)
    }

    /// A double in the low qword.
    pub fn sd(result: u128) -> bool {
        f64(result as u64)
    }

    /// The operation does not compute: comparisons, integers, MIN and MAX.
    pub fn none(_: u128) -> bool {
        false
    }
}

/// Runs one instruction between loading and storing MXCSR. `control` goes in with the guest's settings and comes out
/// with the flags; the other operands are those of `asm!`.
macro_rules! with_mxcsr {
    ($control:ident, $instruction:expr, $($operands:tt)*) => {
        // SAFETY: the instructions touch the named registers, `control` and HOST; MXCSR is as it was afterwards but
        // for flags, which nobody reads; the host has the instruction (native::required_host_features).
        unsafe {
            core::arch::asm!(
                "ldmxcsr dword ptr [{control}]",
                $instruction,
                "stmxcsr dword ptr [{control}]",
                "ldmxcsr dword ptr [{host}]",
                control = in(reg) &raw mut $control,
                host = in(reg) &raw const $crate::mxcsr::HOST,
                $($operands)*
                options(nostack),
            )
        }
    };
}

/// `name = "mnemonic", tiny;`: `mnemonic a, b` under the guest's MXCSR.
macro_rules! float {
    ($($name:ident = $mnemonic:literal, $tiny:ident;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b`")]
        pub fn $name(state: &mut x86::CpuState, a: u128, b: u128, _: u8) -> u128 {
            let mut control = $crate::mxcsr::control(state);
            let mut result = $crate::native::register(a);
            $crate::mxcsr::with_mxcsr!(
                control,
                concat!($mnemonic, " {a}, {b}"),
                a = inout(xmm_reg) result,
                b = in(xmm_reg) $crate::native::register(b),
            );
            let result = $crate::native::value(result);
            $crate::mxcsr::finish(state, control, result, $crate::mxcsr::tiny::$tiny)
        }
    )*};
}

pub(crate) use {float, with_mxcsr};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sse_float::{addsd, divss, mulsd};

    const ONE: u128 = 0x3ff0_0000_0000_0000;
    const TINY: u128 = 0x0010_0000_0000_0000; // the smallest normal double
    const HALF: u128 = 0x3fe0_0000_0000_0000;

    fn with(mxcsr: u32) -> CpuState {
        let mut state = CpuState::new();
        state.mxcsr = mxcsr;
        state.cr4 = control::cr4::OSXMMEXCPT;
        state
    }

    #[test]
    fn flags_accumulate_and_the_host_is_restored() {
        let mut state = with(0x1f80 | 1);
        divss(&mut state, 0x3f80_0000, 0, 0);
        addsd(&mut state, ONE, 1, 0);
        // IE stays, ZE from the division, DE and PE from the addition of a denormal.
        assert_eq!(state.mxcsr, 0x1f80 | 0b10_0111);
        let mut host = 0_u32;
        // SAFETY: stores MXCSR into a local.
        unsafe { core::arch::asm!("stmxcsr dword ptr [{}]", in(reg) &raw mut host, options(nostack)) };
        assert_eq!(host & !0x3f, 0x1f80);
    }

    #[test]
    fn the_guests_rounding_applies() {
        for (rounding, expected) in [(0, ONE), (1, ONE), (2, ONE + 1), (3, ONE)] {
            let mut state = with(0x1f80 | rounding << 13);
            assert_eq!(addsd(&mut state, ONE, TINY, 0), expected, "RC {rounding}");
        }
    }

    #[test]
    fn an_exact_denormal_underflows_only_if_that_traps() {
        let mut state = with(0x1f80);
        assert_eq!(mulsd(&mut state, TINY, HALF, 0), TINY >> 1);
        assert_eq!((state.mxcsr, state.pending_exception), (0x1f80, 0));
        let unmasked = 0x1f80 & !(UNDERFLOW << MASK_SHIFT);
        for flush in [0, FLUSH_TO_ZERO] {
            let mut state = with(unmasked | flush);
            mulsd(&mut state, TINY, HALF, 0);
            assert_eq!(state.mxcsr, unmasked | flush | UNDERFLOW);
            assert_eq!(state.pending_exception, Vector::SimdFloatingPoint as u32 + 1);
        }
    }

    #[test]
    fn a_trap_before_the_computation_hides_flags_of_the_result() {
        let unmasked_denormal = 0x1f80 & !(2 << MASK_SHIFT);
        let mut state = with(unmasked_denormal);
        addsd(&mut state, ONE, 1, 0);
        assert_eq!(state.mxcsr, unmasked_denormal | 2);
        assert_eq!(state.pending_exception, Vector::SimdFloatingPoint as u32 + 1);
    }

    #[test]
    fn without_osxmmexcpt_it_is_undefined() {
        let mut state = with(0);
        state.cr4 = 0;
        addsd(&mut state, ONE, TINY, 0);
        assert_eq!(state.pending_exception, Vector::InvalidOpcode as u32 + 1);
    }
}
