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

/// A function on vectors (a, b, immediate). State is there for MXCSR, and for a third operand or a second result in
/// [`crate::vector::EXTRA_OPERAND`].
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

            /// Path of its function, as the table has it.
            pub const fn path(self) -> &'static str {
                const PATHS: &[&str] = &[$(stringify!($function),)*];
                PATHS[self as usize]
            }
        }
    };
}

helpers! {
    /// Functions on the processor state.
    Helper: HelperFn {
        Nothing = nothing,
        // x87 state.
        X87Initialize = crate::x87_state::helper_initialize,
        X87Reset = crate::x87_state::helper_reset,
        X87InUse = crate::x87_state::helper_in_use,
        X87ClearExceptions = crate::x87_state::helper_clear_exceptions,
        X87SetControl = crate::x87_state::helper_set_control,
        X87ControlWords = crate::x87_state::helper_control_words,
        X87SetControlWords = crate::x87_state::helper_set_control_words,
        X87Register = crate::x87_state::helper_register,
        X87SetRegister = crate::x87_state::helper_set_register,
        X87Arithmetic = crate::x87_arithmetic::helper_arithmetic,
        X87Compare = crate::x87_arithmetic::helper_compare,
        X87Examine = crate::x87_arithmetic::helper_examine,
        X87Sign = crate::x87_arithmetic::helper_sign,
        X87Load = crate::x87_data::helper_load,
        X87LoadExtended = crate::x87_data::helper_load_extended,
        X87LoadRegister = crate::x87_data::helper_load_register,
        X87StoreValue = crate::x87_data::helper_store_value,
        X87StoreFinish = crate::x87_data::helper_store_finish,
        X87StoreRegister = crate::x87_data::helper_store_register,
        X87CopyAndPop = crate::x87_data::helper_copy_and_pop,
        X87Exchange = crate::x87_data::helper_exchange,
        X87MoveIf = crate::x87_data::helper_move_if,
        X87Free = crate::x87_data::helper_free,
        X87Rotate = crate::x87_data::helper_rotate,
        X87Environment = crate::x87_environment::helper_environment,
        X87SetEnvironment = crate::x87_environment::helper_set_environment,
        X87MaskAll = crate::x87_environment::helper_mask_all,
        // General-purpose instructions.
        Crc32 = crate::misc::crc32c,
        Pdep = crate::bit_manipulation::deposit,
        Pext = crate::bit_manipulation::extract,
    }
}

helpers! {
    /// Functions on vectors.
    VectorOp: VectorFn {
        // Packed integers.
        Paddb = crate::sse_integer::paddb,
        Paddw = crate::sse_integer::paddw,
        Paddd = crate::sse_integer::paddd,
        Paddq = crate::sse_integer::paddq,
        Paddsb = crate::sse_integer::paddsb,
        Paddsw = crate::sse_integer::paddsw,
        Paddusb = crate::sse_integer::paddusb,
        Paddusw = crate::sse_integer::paddusw,
        Psubb = crate::sse_integer::psubb,
        Psubw = crate::sse_integer::psubw,
        Psubd = crate::sse_integer::psubd,
        Psubq = crate::sse_integer::psubq,
        Psubsb = crate::sse_integer::psubsb,
        Psubsw = crate::sse_integer::psubsw,
        Psubusb = crate::sse_integer::psubusb,
        Psubusw = crate::sse_integer::psubusw,
        Pmullw = crate::sse_integer::pmullw,
        Pmulld = crate::sse_integer::pmulld,
        Pmulhw = crate::sse_integer::pmulhw,
        Pmulhuw = crate::sse_integer::pmulhuw,
        Pmulhrsw = crate::sse_integer::pmulhrsw,
        Pmuludq = crate::sse_integer::pmuludq,
        Pmuldq = crate::sse_integer::pmuldq,
        Pmaddwd = crate::sse_integer::pmaddwd,
        Pmaddubsw = crate::sse_integer::pmaddubsw,
        Psadbw = crate::sse_integer::psadbw,
        Pavgb = crate::sse_integer::pavgb,
        Pavgw = crate::sse_integer::pavgw,
        Pcmpeqb = crate::sse_integer::pcmpeqb,
        Pcmpeqw = crate::sse_integer::pcmpeqw,
        Pcmpeqd = crate::sse_integer::pcmpeqd,
        Pcmpeqq = crate::sse_integer::pcmpeqq,
        Pcmpgtb = crate::sse_integer::pcmpgtb,
        Pcmpgtw = crate::sse_integer::pcmpgtw,
        Pcmpgtd = crate::sse_integer::pcmpgtd,
        Pcmpgtq = crate::sse_integer::pcmpgtq,
        Pminub = crate::sse_integer::pminub,
        Pminuw = crate::sse_integer::pminuw,
        Pminud = crate::sse_integer::pminud,
        Pminsb = crate::sse_integer::pminsb,
        Pminsw = crate::sse_integer::pminsw,
        Pminsd = crate::sse_integer::pminsd,
        Pmaxub = crate::sse_integer::pmaxub,
        Pmaxuw = crate::sse_integer::pmaxuw,
        Pmaxud = crate::sse_integer::pmaxud,
        Pmaxsb = crate::sse_integer::pmaxsb,
        Pmaxsw = crate::sse_integer::pmaxsw,
        Pmaxsd = crate::sse_integer::pmaxsd,
        Psllw = crate::sse_integer::psllw,
        Pslld = crate::sse_integer::pslld,
        Psllq = crate::sse_integer::psllq,
        Psrlw = crate::sse_integer::psrlw,
        Psrld = crate::sse_integer::psrld,
        Psrlq = crate::sse_integer::psrlq,
        Psraw = crate::sse_integer::psraw,
        Psrad = crate::sse_integer::psrad,
        Pslldq = crate::sse_integer::pslldq,
        Psrldq = crate::sse_integer::psrldq,
        Pand = crate::sse_integer::pand,
        Pandn = crate::sse_integer::pandn,
        Por = crate::sse_integer::por,
        Pxor = crate::sse_integer::pxor,
        Punpcklbw = crate::sse_integer::punpcklbw,
        Punpcklwd = crate::sse_integer::punpcklwd,
        Punpckldq = crate::sse_integer::punpckldq,
        Punpcklqdq = crate::sse_integer::punpcklqdq,
        Punpckhqdq = crate::sse_integer::punpckhqdq,
        Psignb = crate::sse_integer::psignb,
        Psignw = crate::sse_integer::psignw,
        Psignd = crate::sse_integer::psignd,
        Pabsb = crate::sse_integer::pabsb,
        Pabsw = crate::sse_integer::pabsw,
        Pabsd = crate::sse_integer::pabsd,
        Phminposuw = crate::sse_integer::phminposuw,
        Pmovsxbw = crate::sse_integer::pmovsxbw,
        Pmovsxbd = crate::sse_integer::pmovsxbd,
        Pmovsxbq = crate::sse_integer::pmovsxbq,
        Pmovsxwd = crate::sse_integer::pmovsxwd,
        Pmovsxwq = crate::sse_integer::pmovsxwq,
        Pmovsxdq = crate::sse_integer::pmovsxdq,
        Pmovzxbw = crate::sse_integer::pmovzxbw,
        Pmovzxbd = crate::sse_integer::pmovzxbd,
        Pmovzxbq = crate::sse_integer::pmovzxbq,
        Pmovzxwd = crate::sse_integer::pmovzxwd,
        Pmovzxwq = crate::sse_integer::pmovzxwq,
        Pmovzxdq = crate::sse_integer::pmovzxdq,
        Movddup = crate::sse_integer::movddup,
        Movshdup = crate::sse_integer::movshdup,
        Movsldup = crate::sse_integer::movsldup,
        Mpsadbw = crate::sse_integer::mpsadbw,
        Pshufd = crate::sse_integer::pshufd,
        Pshufhw = crate::sse_integer::pshufhw,
        Pshuflw = crate::sse_integer::pshuflw,
        Shufps = crate::sse_integer::shufps,
        Shufpd = crate::sse_integer::shufpd,
        Pblendw = crate::sse_integer::pblendw,
        Blendps = crate::sse_integer::blendps,
        Blendpd = crate::sse_integer::blendpd,
        Pshufb = crate::sse_integer::pshufb,
        Palignr = crate::sse_integer::palignr,
        Ptest = crate::sse_integer::ptest,
        Pmovmskb = crate::sse_integer::pmovmskb,
        Movmskps = crate::sse_integer::movmskps,
        Movmskpd = crate::sse_integer::movmskpd,
        Packsswb = crate::sse_integer::packsswb,
        Packssdw = crate::sse_integer::packssdw,
        Packuswb = crate::sse_integer::packuswb,
        Packusdw = crate::sse_integer::packusdw,
        Phaddw = crate::sse_integer::phaddw,
        Phaddd = crate::sse_integer::phaddd,
        Phaddsw = crate::sse_integer::phaddsw,
        Phsubw = crate::sse_integer::phsubw,
        Phsubd = crate::sse_integer::phsubd,
        Phsubsw = crate::sse_integer::phsubsw,
        Punpckhbw = crate::sse_integer::punpckhbw,
        Punpckhwd = crate::sse_integer::punpckhwd,
        Punpckhdq = crate::sse_integer::punpckhdq,
        SignBytes = crate::sse_integer::sign_bytes,
        SignDwords = crate::sse_integer::sign_dwords,
        SignQwords = crate::sse_integer::sign_qwords,
        // Floating point.
        Addps = crate::sse_float::addps,
        Addpd = crate::sse_float::addpd,
        Addss = crate::sse_float::addss,
        Addsd = crate::sse_float::addsd,
        Subps = crate::sse_float::subps,
        Subpd = crate::sse_float::subpd,
        Subss = crate::sse_float::subss,
        Subsd = crate::sse_float::subsd,
        Mulps = crate::sse_float::mulps,
        Mulpd = crate::sse_float::mulpd,
        Mulss = crate::sse_float::mulss,
        Mulsd = crate::sse_float::mulsd,
        Divps = crate::sse_float::divps,
        Divpd = crate::sse_float::divpd,
        Divss = crate::sse_float::divss,
        Divsd = crate::sse_float::divsd,
        Sqrtps = crate::sse_float::sqrtps,
        Sqrtpd = crate::sse_float::sqrtpd,
        Sqrtss = crate::sse_float::sqrtss,
        Sqrtsd = crate::sse_float::sqrtsd,
        Minps = crate::sse_float::minps,
        Minpd = crate::sse_float::minpd,
        Minss = crate::sse_float::minss,
        Minsd = crate::sse_float::minsd,
        Maxps = crate::sse_float::maxps,
        Maxpd = crate::sse_float::maxpd,
        Maxss = crate::sse_float::maxss,
        Maxsd = crate::sse_float::maxsd,
        Rcpps = crate::sse_float::rcpps,
        Rcpss = crate::sse_float::rcpss,
        Rsqrtps = crate::sse_float::rsqrtps,
        Rsqrtss = crate::sse_float::rsqrtss,
        Addsubps = crate::sse_float::addsubps,
        Addsubpd = crate::sse_float::addsubpd,
        Haddps = crate::sse_float::haddps,
        Haddpd = crate::sse_float::haddpd,
        Hsubps = crate::sse_float::hsubps,
        Hsubpd = crate::sse_float::hsubpd,
        Cmpps = crate::sse_float::cmpps,
        Cmppd = crate::sse_float::cmppd,
        Cmpss = crate::sse_float::cmpss,
        Cmpsd = crate::sse_float::cmpsd,
        Roundps = crate::sse_float::roundps,
        Roundpd = crate::sse_float::roundpd,
        Roundss = crate::sse_float::roundss,
        Roundsd = crate::sse_float::roundsd,
        Dpps = crate::sse_float::dpps,
        Dppd = crate::sse_float::dppd,
        Comiss = crate::sse_float::comiss,
        Comisd = crate::sse_float::comisd,
        Ucomiss = crate::sse_float::ucomiss,
        Ucomisd = crate::sse_float::ucomisd,
        // Conversions.
        Cvtps2pd = crate::sse_convert::cvtps2pd,
        Cvtpd2ps = crate::sse_convert::cvtpd2ps,
        Cvtss2sd = crate::sse_convert::cvtss2sd,
        Cvtsd2ss = crate::sse_convert::cvtsd2ss,
        Cvtdq2ps = crate::sse_convert::cvtdq2ps,
        Cvtdq2pd = crate::sse_convert::cvtdq2pd,
        Cvtps2dq = crate::sse_convert::cvtps2dq,
        Cvttps2dq = crate::sse_convert::cvttps2dq,
        Cvtpd2dq = crate::sse_convert::cvtpd2dq,
        Cvttpd2dq = crate::sse_convert::cvttpd2dq,
        Cvtsi2ss = crate::sse_convert::cvtsi2ss,
        Cvtsi2sd = crate::sse_convert::cvtsi2sd,
        Cvtss2si = crate::sse_convert::cvtss2si,
        Cvttss2si = crate::sse_convert::cvttss2si,
        Cvtsd2si = crate::sse_convert::cvtsd2si,
        Cvttsd2si = crate::sse_convert::cvttsd2si,
        // Strings.
        Pcmpistri = crate::sse_string::pcmpistri,
        Pcmpistrm = crate::sse_string::pcmpistrm,
        Pcmpestri = crate::sse_string::pcmpestri,
        Pcmpestrm = crate::sse_string::pcmpestrm,
        // Crypto.
        Aesenc = crate::crypto::aesenc,
        Aesenclast = crate::crypto::aesenclast,
        Aesdec = crate::crypto::aesdec,
        Aesdeclast = crate::crypto::aesdeclast,
        Aesimc = crate::crypto::aesimc,
        Aeskeygenassist = crate::crypto::aeskeygenassist,
        Pclmulqdq = crate::crypto::pclmulqdq,
        Sha1msg1 = crate::crypto::sha1msg1,
        Sha1msg2 = crate::crypto::sha1msg2,
        Sha1nexte = crate::crypto::sha1nexte,
        Sha1rnds4 = crate::crypto::sha1rnds4,
        Sha256msg1 = crate::crypto::sha256msg1,
        Sha256msg2 = crate::crypto::sha256msg2,
        Sha256rnds2 = crate::crypto::sha256rnds2,
    }
}

extern "C" fn nothing(_: &mut CpuState, _: u64, a: u64, _: u64) -> u64 {
    a
}
