//! The instruction table: one row per instruction. Everything else about "which instructions exist" derives from it.

use iced_x86::Mnemonic;

use crate::{Insn, Machine, helper::VectorOp};

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

/// `instructions! { Lifted { Mnemonic => module::function, … } Vector { Mnemonic => form(VectorOp), … }
/// Callout { Mnemonic, … } }`. Forms are functions of [`crate::vector`]; their instructions are lifted ones too.
macro_rules! instructions {
    (
        Lifted { $($lifted:ident => $function:path,)* }
        Vector { $($vector:ident => $form:ident($op:ident),)* }
        Callout { $($callout:ident,)* }
    ) => {
        /// How instructions of that name are carried out.
        pub fn kind(mnemonic: Mnemonic) -> Kind {
            match mnemonic {
                $(Mnemonic::$lifted => Kind::Lifted,)*
                $(Mnemonic::$vector => Kind::Lifted,)*
                $(Mnemonic::$callout => Kind::Callout,)*
                _ => Kind::Undefined,
            }
        }

        /// Executes or emits a lifted instruction. Others decline.
        #[inline]
        pub fn execute<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
            match i.mnemonic {
                $(Mnemonic::$lifted => $function(m, i),)*
                $(Mnemonic::$vector => crate::vector::$form(m, i, VectorOp::$op),)*
                _ => Err(m.decline("not a lifted instruction")),
            }
        }

        /// The definition of a lifted instruction as a function pointer, for pre-decoded dispatch.
        pub fn definition<M: Machine>(mnemonic: Mnemonic) -> Option<fn(&mut M, &Insn) -> Result<(), M::Stop>> {
            let definition: fn(&mut M, &Insn) -> Result<(), M::Stop> = match mnemonic {
                $(Mnemonic::$lifted => $function,)*
                $(Mnemonic::$vector => |m, i| crate::vector::$form(m, i, VectorOp::$op),)*
                _ => return None,
            };
            Some(definition)
        }

        /// Every mnemonic that has a lifted definition.
        pub const LIFTED: &[Mnemonic] = &[$(Mnemonic::$lifted,)* $(Mnemonic::$vector,)*];

        /// Every mnemonic that is a callout.
        pub const CALLOUTS: &[Mnemonic] = &[$(Mnemonic::$callout,)*];
    };
}

instructions! {
    Lifted {
        // Binary arithmetic.
        Add => crate::arithmetic::add,
        Cmp => crate::arithmetic::cmp,
        // SSE data movement.
        Movaps => crate::sse_data::move_aligned,
        Movapd => crate::sse_data::move_aligned,
        Movdqa => crate::sse_data::move_aligned,
        Movntps => crate::sse_data::move_aligned,
        Movntpd => crate::sse_data::move_aligned,
        Movntdq => crate::sse_data::move_aligned,
        Movntdqa => crate::sse_data::move_aligned,
        Movups => crate::sse_data::move_unaligned,
        Movupd => crate::sse_data::move_unaligned,
        Movdqu => crate::sse_data::move_unaligned,
        Lddqu => crate::sse_data::move_unaligned,
        Movd => crate::sse_data::movd,
        Movq => crate::sse_data::movq,
        Movntq => crate::sse_data::movq,
        Movnti => crate::sse_data::movnti,
        Movss => crate::sse_data::movss,
        Movsd => crate::sse_data::movsd,
        Movlps => crate::sse_data::move_low_half,
        Movlpd => crate::sse_data::move_low_half,
        Movhps => crate::sse_data::move_high_half,
        Movhpd => crate::sse_data::move_high_half,
        Movlhps => crate::sse_data::movlhps,
        Movhlps => crate::sse_data::movhlps,
        Pextrb => crate::sse_data::pextrb,
        Pextrw => crate::sse_data::pextrw,
        Pextrd => crate::sse_data::pextrd,
        Pextrq => crate::sse_data::pextrq,
        Extractps => crate::sse_data::pextrd,
        Pinsrb => crate::sse_data::pinsrb,
        Pinsrw => crate::sse_data::pinsrw,
        Pinsrd => crate::sse_data::pinsrd,
        Pinsrq => crate::sse_data::pinsrq,
        Insertps => crate::sse_data::insertps,
        Maskmovdqu => crate::sse_data::maskmov,
        Maskmovq => crate::sse_data::maskmov,
        Ldmxcsr => crate::sse_data::ldmxcsr,
        Stmxcsr => crate::sse_data::stmxcsr,
        // Conversions between XMM and MMX registers.
        Cvtpi2ps => crate::sse_convert::cvtpi2ps,
        Cvtpi2pd => crate::sse_convert::cvtpi2pd,
        Cvtps2pi => crate::sse_convert::cvtps2pi,
        Cvttps2pi => crate::sse_convert::cvttps2pi,
        Cvtpd2pi => crate::sse_convert::cvtpd2pi,
        Cvttpd2pi => crate::sse_convert::cvttpd2pi,
        // MMX state.
        Emms => crate::mmx::emms,
        Movdq2q => crate::mmx::movdq2q,
        Movq2dq => crate::mmx::movq2dq,
        // x87 control.
        Fninit => crate::x87_control::fninit,
        Fnclex => crate::x87_control::fnclex,
        Fldcw => crate::x87_control::fldcw,
        Fnstcw => crate::x87_control::fnstcw,
        Fnstsw => crate::x87_control::fnstsw,
        Wait => crate::x87_control::fwait,
        Fnop => crate::x87_control::fnop,
        Fneni => crate::x87_control::ignored,
        Fndisi => crate::x87_control::ignored,
        Fnsetpm => crate::x87_control::ignored,
        // State images.
        Fxsave => crate::state_image::fxsave,
        Fxsave64 => crate::state_image::fxsave64,
        Fxrstor => crate::state_image::fxrstor,
        Fxrstor64 => crate::state_image::fxrstor64,
        Xsave => crate::state_image::xsave,
        Xsave64 => crate::state_image::xsave64,
        Xsaveopt => crate::state_image::xsaveopt,
        Xsaveopt64 => crate::state_image::xsaveopt64,
        Xrstor => crate::state_image::xrstor,
        Xrstor64 => crate::state_image::xrstor64,
    }
    Vector {
        // Logic and shuffles of floating-point names: the same bits.
        Andps => binary(Pand),
        Andpd => binary(Pand),
        Andnps => binary(Pandn),
        Andnpd => binary(Pandn),
        Orps => binary(Por),
        Orpd => binary(Por),
        Xorps => binary(Pxor),
        Xorpd => binary(Pxor),
        Unpcklps => binary(Punpckldq),
        Unpckhps => binary(Punpckhdq),
        Unpcklpd => binary(Punpcklqdq),
        Unpckhpd => binary(Punpckhqdq),
        // Packed integers (sse_integer).
        Paddb => binary(Paddb),
        Paddw => binary(Paddw),
        Paddd => binary(Paddd),
        Paddq => binary(Paddq),
        Paddsb => binary(Paddsb),
        Paddsw => binary(Paddsw),
        Paddusb => binary(Paddusb),
        Paddusw => binary(Paddusw),
        Psubb => binary(Psubb),
        Psubw => binary(Psubw),
        Psubd => binary(Psubd),
        Psubq => binary(Psubq),
        Psubsb => binary(Psubsb),
        Psubsw => binary(Psubsw),
        Psubusb => binary(Psubusb),
        Psubusw => binary(Psubusw),
        Pmullw => binary(Pmullw),
        Pmulld => binary(Pmulld),
        Pmulhw => binary(Pmulhw),
        Pmulhuw => binary(Pmulhuw),
        Pmulhrsw => binary(Pmulhrsw),
        Pmuludq => binary(Pmuludq),
        Pmuldq => binary(Pmuldq),
        Pmaddwd => binary(Pmaddwd),
        Pmaddubsw => binary(Pmaddubsw),
        Psadbw => binary(Psadbw),
        Pavgb => binary(Pavgb),
        Pavgw => binary(Pavgw),
        Pcmpeqb => binary(Pcmpeqb),
        Pcmpeqw => binary(Pcmpeqw),
        Pcmpeqd => binary(Pcmpeqd),
        Pcmpeqq => binary(Pcmpeqq),
        Pcmpgtb => binary(Pcmpgtb),
        Pcmpgtw => binary(Pcmpgtw),
        Pcmpgtd => binary(Pcmpgtd),
        Pcmpgtq => binary(Pcmpgtq),
        Pminub => binary(Pminub),
        Pminuw => binary(Pminuw),
        Pminud => binary(Pminud),
        Pminsb => binary(Pminsb),
        Pminsw => binary(Pminsw),
        Pminsd => binary(Pminsd),
        Pmaxub => binary(Pmaxub),
        Pmaxuw => binary(Pmaxuw),
        Pmaxud => binary(Pmaxud),
        Pmaxsb => binary(Pmaxsb),
        Pmaxsw => binary(Pmaxsw),
        Pmaxsd => binary(Pmaxsd),
        Psllw => binary(Psllw),
        Pslld => binary(Pslld),
        Psllq => binary(Psllq),
        Psrlw => binary(Psrlw),
        Psrld => binary(Psrld),
        Psrlq => binary(Psrlq),
        Psraw => binary(Psraw),
        Psrad => binary(Psrad),
        Pslldq => binary(Pslldq),
        Psrldq => binary(Psrldq),
        Pand => binary(Pand),
        Pandn => binary(Pandn),
        Por => binary(Por),
        Pxor => binary(Pxor),
        Punpcklbw => binary(Punpcklbw),
        Punpcklwd => binary(Punpcklwd),
        Punpckldq => binary(Punpckldq),
        Punpcklqdq => binary(Punpcklqdq),
        Punpckhqdq => binary(Punpckhqdq),
        Psignb => binary(Psignb),
        Psignw => binary(Psignw),
        Psignd => binary(Psignd),
        Pabsb => binary(Pabsb),
        Pabsw => binary(Pabsw),
        Pabsd => binary(Pabsd),
        Phminposuw => binary(Phminposuw),
        Pmovsxbw => binary(Pmovsxbw),
        Pmovsxbd => binary(Pmovsxbd),
        Pmovsxbq => binary(Pmovsxbq),
        Pmovsxwd => binary(Pmovsxwd),
        Pmovsxwq => binary(Pmovsxwq),
        Pmovsxdq => binary(Pmovsxdq),
        Pmovzxbw => binary(Pmovzxbw),
        Pmovzxbd => binary(Pmovzxbd),
        Pmovzxbq => binary(Pmovzxbq),
        Pmovzxwd => binary(Pmovzxwd),
        Pmovzxwq => binary(Pmovzxwq),
        Pmovzxdq => binary(Pmovzxdq),
        Movddup => binary(Movddup),
        Movshdup => binary(Movshdup),
        Movsldup => binary(Movsldup),
        Mpsadbw => binary(Mpsadbw),
        Pshufd => binary(Pshufd),
        Pshufhw => binary(Pshufhw),
        Pshuflw => binary(Pshuflw),
        Shufps => binary(Shufps),
        Shufpd => binary(Shufpd),
        Pblendw => binary(Pblendw),
        Blendps => binary(Blendps),
        Blendpd => binary(Blendpd),
        Pshufw => binary(Pshuflw),
        Packsswb => pairwise(Packsswb),
        Packssdw => pairwise(Packssdw),
        Packuswb => pairwise(Packuswb),
        Packusdw => pairwise(Packusdw),
        Phaddw => pairwise(Phaddw),
        Phaddd => pairwise(Phaddd),
        Phaddsw => pairwise(Phaddsw),
        Phsubw => pairwise(Phsubw),
        Phsubd => pairwise(Phsubd),
        Phsubsw => pairwise(Phsubsw),
        Punpckhbw => unpack_high(Punpckhbw),
        Punpckhwd => unpack_high(Punpckhwd),
        Punpckhdq => unpack_high(Punpckhdq),
        Pshufb => shuffle_bytes(Pshufb),
        Palignr => align(Palignr),
        Pmovmskb => to_register(Pmovmskb),
        Movmskps => to_register(Movmskps),
        Movmskpd => to_register(Movmskpd),
        Ptest => to_flags(Ptest),
        Pblendvb => blend_variable(SignBytes),
        Blendvps => blend_variable(SignDwords),
        Blendvpd => blend_variable(SignQwords),
        // Floating point (sse_float).
        Addps => binary(Addps),
        Addpd => binary(Addpd),
        Addss => binary(Addss),
        Addsd => binary(Addsd),
        Subps => binary(Subps),
        Subpd => binary(Subpd),
        Subss => binary(Subss),
        Subsd => binary(Subsd),
        Mulps => binary(Mulps),
        Mulpd => binary(Mulpd),
        Mulss => binary(Mulss),
        Mulsd => binary(Mulsd),
        Divps => binary(Divps),
        Divpd => binary(Divpd),
        Divss => binary(Divss),
        Divsd => binary(Divsd),
        Sqrtps => binary(Sqrtps),
        Sqrtpd => binary(Sqrtpd),
        Sqrtss => binary(Sqrtss),
        Sqrtsd => binary(Sqrtsd),
        Minps => binary(Minps),
        Minpd => binary(Minpd),
        Minss => binary(Minss),
        Minsd => binary(Minsd),
        Maxps => binary(Maxps),
        Maxpd => binary(Maxpd),
        Maxss => binary(Maxss),
        Maxsd => binary(Maxsd),
        Rcpps => binary(Rcpps),
        Rcpss => binary(Rcpss),
        Rsqrtps => binary(Rsqrtps),
        Rsqrtss => binary(Rsqrtss),
        Addsubps => binary(Addsubps),
        Addsubpd => binary(Addsubpd),
        Haddps => binary(Haddps),
        Haddpd => binary(Haddpd),
        Hsubps => binary(Hsubps),
        Hsubpd => binary(Hsubpd),
        Cmpps => binary(Cmpps),
        Cmppd => binary(Cmppd),
        Cmpss => binary(Cmpss),
        Cmpsd => binary(Cmpsd),
        Roundps => binary(Roundps),
        Roundpd => binary(Roundpd),
        Roundss => binary(Roundss),
        Roundsd => binary(Roundsd),
        Dpps => binary(Dpps),
        Dppd => binary(Dppd),
        Comiss => to_flags(Comiss),
        Comisd => to_flags(Comisd),
        Ucomiss => to_flags(Ucomiss),
        Ucomisd => to_flags(Ucomisd),
        // Conversions (sse_convert).
        Cvtps2pd => binary(Cvtps2pd),
        Cvtpd2ps => binary(Cvtpd2ps),
        Cvtss2sd => binary(Cvtss2sd),
        Cvtsd2ss => binary(Cvtsd2ss),
        Cvtdq2ps => binary(Cvtdq2ps),
        Cvtdq2pd => binary(Cvtdq2pd),
        Cvtps2dq => binary(Cvtps2dq),
        Cvttps2dq => binary(Cvttps2dq),
        Cvtpd2dq => binary(Cvtpd2dq),
        Cvttpd2dq => binary(Cvttpd2dq),
        Cvtsi2ss => from_integer(Cvtsi2ss),
        Cvtsi2sd => from_integer(Cvtsi2sd),
        Cvtss2si => to_integer(Cvtss2si),
        Cvttss2si => to_integer(Cvttss2si),
        Cvtsd2si => to_integer(Cvtsd2si),
        Cvttsd2si => to_integer(Cvttsd2si),
        // AES, SHA, carry-less multiplication (crypto).
        Aesenc => binary(Aesenc),
        Aesenclast => binary(Aesenclast),
        Aesdec => binary(Aesdec),
        Aesdeclast => binary(Aesdeclast),
        Aesimc => binary(Aesimc),
        Aeskeygenassist => binary(Aeskeygenassist),
        Pclmulqdq => binary(Pclmulqdq),
        Sha1msg1 => binary(Sha1msg1),
        Sha1msg2 => binary(Sha1msg2),
        Sha1nexte => binary(Sha1nexte),
        Sha1rnds4 => binary(Sha1rnds4),
        Sha256msg1 => binary(Sha256msg1),
        Sha256msg2 => binary(Sha256msg2),
        Sha256rnds2 => with_xmm0(Sha256rnds2),
    }
    Callout {
        Cpuid,
        Hlt,
    }
}
