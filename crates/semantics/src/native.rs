//! Instructions run as they are on the host processor, which is the same architecture as the guest: what they give is
//! exact by construction. This module owns the one-line-per-instruction macros (all the `asm!` of the SSE groups) and
//! the list of host features that they need; the instructions stand in the files of their groups.
//!
//! `asm!` and not intrinsics: operand roles decide which NaN survives, and the compiler may swap or fold intrinsics.

use core::arch::x86_64::__m128i;
use iced_x86::CpuidFeature;

/// Features of the host that vector operations rely on whatever the host, as `(name, present)`: x86-64-v2.
///
/// An engine checks them once, at start ([`missing_host_features`]); the functions here assume them.
pub fn required_host_features() -> [(&'static str, bool); 6] {
    [
        ("sse3", std::arch::is_x86_feature_detected!("sse3")),
        ("ssse3", std::arch::is_x86_feature_detected!("ssse3")),
        ("sse4.1", std::arch::is_x86_feature_detected!("sse4.1")),
        ("sse4.2", std::arch::is_x86_feature_detected!("sse4.2")),
        ("fxsr", std::arch::is_x86_feature_detected!("fxsr")),
        ("sse2", std::arch::is_x86_feature_detected!("sse2")),
    ]
}

/// Whether guests have an extension on this host: those listed here only where the host has them, because guest code of theirs
/// becomes host code. Without it the extension's instructions are #UD, or what older processors take them for
/// ([`crate::decode::options`]), and CPUID does not announce it. All other extensions do not depend on the host.
pub fn is_offered(feature: CpuidFeature) -> bool {
    match feature {
        CpuidFeature::AES => std::arch::is_x86_feature_detected!("aes"),
        CpuidFeature::PCLMULQDQ => std::arch::is_x86_feature_detected!("pclmulqdq"),
        CpuidFeature::SHA => std::arch::is_x86_feature_detected!("sha"),
        CpuidFeature::BMI1 => std::arch::is_x86_feature_detected!("bmi1"),
        CpuidFeature::BMI2 => std::arch::is_x86_feature_detected!("bmi2"),
        CpuidFeature::ADX => std::arch::is_x86_feature_detected!("adx"),
        CpuidFeature::LZCNT => std::arch::is_x86_feature_detected!("lzcnt"),
        CpuidFeature::MOVBE => std::arch::is_x86_feature_detected!("movbe"),
        _ => true,
    }
}

/// The required features that this host lacks. Empty: every vector operation can run. Otherwise the engine must
/// refuse to start.
pub fn missing_host_features() -> Vec<&'static str> {
    required_host_features().iter().filter(|(_, present)| !present).map(|(name, _)| *name).collect()
}

/// A value as `asm!` takes XMM operands.
#[inline(always)]
pub(crate) fn register(value: u128) -> __m128i {
    // SAFETY: both are 16 bytes in which every bit pattern is valid.
    unsafe { core::mem::transmute(value) }
}

/// The opposite of [`register`].
#[inline(always)]
pub(crate) fn value(register: __m128i) -> u128 {
    // SAFETY: both are 16 bytes in which every bit pattern is valid.
    unsafe { core::mem::transmute(register) }
}

/// `name = "mnemonic";`: the destination is read and written, MXCSR plays no role.
macro_rules! destructive {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b`")]
        pub fn $name(_: &mut x86::CpuState, a: u128, b: u128, _: u8) -> u128 {
            let mut result = $crate::native::register(a);
            // SAFETY: the instruction touches the named registers only; the host has it (required_host_features).
            unsafe {
                core::arch::asm!(
                    concat!($mnemonic, " {0}, {1}"),
                    inout(xmm_reg) result,
                    in(xmm_reg) $crate::native::register(b),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            $crate::native::value(result)
        }
    )*};
}

/// `name = "mnemonic";`: the result depends on the source alone.
macro_rules! unary {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " result, b`")]
        pub fn $name(_: &mut x86::CpuState, _: u128, b: u128, _: u8) -> u128 {
            let result;
            // SAFETY: as in `destructive`.
            unsafe {
                core::arch::asm!(
                    concat!($mnemonic, " {0}, {1}"),
                    lateout(xmm_reg) result,
                    in(xmm_reg) $crate::native::register(b),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            $crate::native::value(result)
        }
    )*};
}

/// `name = "mnemonic";`: bits of the source as an integer, in the low half of the result.
macro_rules! to_mask {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " r32, b`, zero-extended")]
        pub fn $name(_: &mut x86::CpuState, _: u128, b: u128, _: u8) -> u128 {
            let result: u32;
            // SAFETY: as in `destructive`.
            unsafe {
                core::arch::asm!(
                    concat!($mnemonic, " {0:e}, {1}"),
                    lateout(reg) result,
                    in(xmm_reg) $crate::native::register(b),
                    options(pure, nomem, nostack, preserves_flags),
                );
            }
            u128::from(result)
        }
    )*};
}

/// `name = "mnemonic", mask, [0 1 2 …] last;`: the immediate is part of the encoding, so there is one instruction for
/// each value of its significant bits.
macro_rules! by_immediate {
    ($($name:ident = $mnemonic:literal, $mask:literal, [$($n:literal)*] $last:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b, immediate`")]
        pub fn $name(_: &mut x86::CpuState, a: u128, b: u128, immediate: u8) -> u128 {
            let mut result = $crate::native::register(a);
            let b = $crate::native::register(b);
            match immediate & $mask {
                $($n => $crate::native::by_immediate!(@one $mnemonic, $n, result, b),)*
                _ => $crate::native::by_immediate!(@one $mnemonic, $last, result, b),
            }
            $crate::native::value(result)
        }
    )*};
    (@one $mnemonic:literal, $n:literal, $a:ident, $b:ident) => {
        // SAFETY: as in `destructive`.
        unsafe {
            core::arch::asm!(
                concat!($mnemonic, " {0}, {1}, ", $n),
                inout(xmm_reg) $a,
                in(xmm_reg) $b,
                options(pure, nomem, nostack, preserves_flags),
            )
        }
    };
}

pub(crate) use {by_immediate, destructive, to_mask, unary};
