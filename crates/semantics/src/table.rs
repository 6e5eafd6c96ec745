//! The instruction table: one row per instruction. Everything else about "which instructions exist" derives from it.

use iced_x86::Mnemonic;

use crate::{Insn, Machine};

/// How an instruction is carried out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Defined over [`Machine`] in this crate (it may call helpers).
    Lifted,
    /// Privileged or sensitive: the monitor does it.
    Callout,
    /// Not an instruction of the announced processor: #UD.
    Undefined,
}

/// `instructions! { Lifted { Mnemonic => module::function, … } Callout { Mnemonic, … } }`
macro_rules! instructions {
    (
        Lifted { $($lifted:ident => $function:path,)* }
        Callout { $($callout:ident,)* }
    ) => {
        /// How instructions of that name are carried out.
        pub fn kind(mnemonic: Mnemonic) -> Kind {
            match mnemonic {
                $(Mnemonic::$lifted => Kind::Lifted,)*
                $(Mnemonic::$callout => Kind::Callout,)*
                _ => Kind::Undefined,
            }
        }

        /// Executes or emits a lifted instruction. Others decline.
        #[inline]
        pub fn execute<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
            match i.mnemonic {
                $(Mnemonic::$lifted => $function(m, i),)*
                _ => Err(m.decline("not a lifted instruction")),
            }
        }

        /// The definition of a lifted instruction as a function pointer, for pre-decoded dispatch.
        pub fn definition<M: Machine>(mnemonic: Mnemonic) -> Option<fn(&mut M, &Insn) -> Result<(), M::Stop>> {
            let definition: fn(&mut M, &Insn) -> Result<(), M::Stop> = match mnemonic {
                $(Mnemonic::$lifted => $function,)*
                _ => return None,
            };
            Some(definition)
        }

        /// Every mnemonic that has a lifted definition.
        pub const LIFTED: &[Mnemonic] = &[$(Mnemonic::$lifted,)*];

        /// Every mnemonic that is a callout.
        pub const CALLOUTS: &[Mnemonic] = &[$(Mnemonic::$callout,)*];
    };
}

instructions! {
    Lifted {
        // Binary arithmetic.
        Add => crate::arithmetic::add,
        Cmp => crate::arithmetic::cmp,
    }
    Callout {
        Cpuid,
        Hlt,
    }
}
