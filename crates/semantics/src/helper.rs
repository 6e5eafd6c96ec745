//! Functions in plain Rust that both engines call where lifting makes no sense: x87, wide BCD, crypto, vector
//! operations that the code generator lacks.
//!
//! Two kinds. A [`Helper`] works on [`CpuState`] with two integers: `fn(&mut CpuState, immediate, a, b) -> u64`. A
//! [`VectorOp`] is a function of two vectors. Compiled code calls them through the table in `CpuState::helpers`: entry
//! `Helper as usize` is that helper; vector operations all go through one function that takes the operation's number
//! and finds its operands in `CpuState::scratch_vector`. A helper raises an exception by `state.pending_exception`
//! ([`raise`]); it must then have changed nothing else.

use x86::{CpuState, Vector};

/// A function on the state. The immediate is a translation-time constant.
pub type HelperFn = extern "C" fn(&mut CpuState, immediate: u64, a: u64, b: u64) -> u64;

/// A function on vectors (a, b, immediate). State is there for MXCSR.
pub type VectorFn = fn(&mut CpuState, a: u128, b: u128, immediate: u8) -> u128;

/// Marks an exception for the engine to raise when the helper returns.
pub fn raise(state: &mut CpuState, vector: Vector) -> u64 {
    state.pending_exception = vector as u32 + 1;
    0
}

/// Declares an enum of helpers, one line each, and the table of their functions.
macro_rules! helpers {
    ($(#[$meta:meta])* $enum:ident: $fn:ty { $($name:ident = $function:path,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
        #[repr(u16)]
        #[allow(missing_docs, reason = "one line each; the function says what it does")]
        pub enum $enum { $($name,)* }

        impl $enum {
            /// All, in numeric order.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// Its function.
            #[inline]
            pub const fn function(self) -> $fn {
                const TABLE: &[$fn] = &[$($function,)*];
                TABLE[self as usize]
            }

            /// Its name.
            pub const fn name(self) -> &'static str {
                const NAMES: &[&str] = &[$(stringify!($name),)*];
                NAMES[self as usize]
            }
        }
    };
}

helpers! {
    /// Functions on the processor state.
    Helper: HelperFn {
        Nothing = nothing,
    }
}

helpers! {
    /// Functions on vectors.
    VectorOp: VectorFn {
        And = vector_and,
    }
}

extern "C" fn nothing(_: &mut CpuState, _: u64, a: u64, _: u64) -> u64 {
    a
}

fn vector_and(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    a & b
}
