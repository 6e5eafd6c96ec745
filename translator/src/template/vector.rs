//! The rows of SSE instructions: here moves and operations on integers, bits and strings, which MXCSR has no part in; the
//! others are in [`super::float`]. The guest's XMM registers are at home in the host's.

use iced_x86::Mnemonic;
use semantics::{Insn, Operand};

use super::{
    effects::{self, Effects, FlagUse, Use, row},
    float,
};

/// The row of an instruction, if it is one of those over XMM registers.
pub(super) fn of(insn: &Insn) -> Option<Effects> {
    if !insn.operands.iter().any(|operand| matches!(operand, Operand::Xmm(_))) {
        return float::of(insn).filter(|_| float::is_to_integer(insn.mnemonic));
    }
    use FlagUse as F;
    use Mnemonic::*;
    let whole = insn.memory_bytes == 16;
    let (first, flags, aligned) = match insn.mnemonic {
        Movaps | Movapd | Movdqa | Movntps | Movntpd | Movntdq | Movntdqa => (Use::Write, F::None, true),
        Movups | Movupd | Movdqu | Lddqu | Movd | Movq => (Use::Write, F::None, false),
        Movss | Movsd if insn.operand(0) == Operand::Memory || insn.operand(1) == Operand::Memory => {
            (Use::Write, F::None, false)
        }
        Movss | Movsd | Movlhps | Movhlps => (Use::Update, F::None, false),
        Movlps | Movlpd | Movhps | Movhpd if insn.operand(0) == Operand::Memory => {
            (Use::Write, F::None, false)
        }
        Movlps | Movlpd | Movhps | Movhpd => (Use::Update, F::None, false),
        Movmskps | Movmskpd | Pmovmskb | Pextrb | Pextrw | Pextrd | Pextrq | Extractps => {
            (Use::Write, F::None, false)
        }
        Pinsrb | Pinsrw | Pinsrd | Pinsrq | Insertps => (Use::Update, F::None, false),
        Pshufd | Pshuflw | Pshufhw | Pabsb | Pabsw | Pabsd | Movshdup | Movsldup => {
            (Use::Write, F::None, whole)
        }
        Movddup | Pmovsxbw | Pmovsxbd | Pmovsxbq | Pmovsxwd | Pmovsxwq | Pmovsxdq | Pmovzxbw | Pmovzxbd
        | Pmovzxbq | Pmovzxwd | Pmovzxwq | Pmovzxdq => (Use::Write, F::None, false),
        Phminposuw | Aesimc | Aeskeygenassist => (Use::Write, F::None, whole),
        Ptest => (Use::Read, F::Set, whole),
        // Bits of the immediate without a meaning.
        Mpsadbw if insn.immediate & 0xf8 != 0 => return None,
        Pclmulqdq if insn.immediate & 0xee != 0 => return None,
        Pcmpistri | Pcmpestri | Pcmpestri64 | Pcmpistrm | Pcmpestrm | Pcmpestrm64 => {
            return Some(string_comparison(insn));
        }
        Pblendvb | Blendvps | Blendvpd | Sha256rnds2 => {
            let effects = row(Use::Update, F::None);
            return Some(Effects { aligned: whole, xmm0: Some(Use::Read), ..effects });
        }
        mnemonic if is_binary(mnemonic) => (Use::Update, F::None, whole),
        _ => return float::of(insn),
    };
    Some(Effects { aligned, ..row(first, flags) })
}

/// Lengths are in RAX and RDX, or none are given; the result is an index in RCX or a mask in XMM0.
fn string_comparison(insn: &Insn) -> Effects {
    use Mnemonic::*;
    let has_lengths = !matches!(insn.mnemonic, Pcmpistri | Pcmpistrm);
    let gives_index = matches!(insn.mnemonic, Pcmpistri | Pcmpestri | Pcmpestri64);
    Effects {
        reads: if has_lengths { effects::RAX | effects::RDX } else { 0 },
        writes: if gives_index { effects::RCX } else { 0 },
        xmm0: (!gives_index).then_some(Use::Write),
        ..row(Use::Read, FlagUse::Set)
    }
}

/// First operand := first op second.
fn is_binary(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Andps
            | Andpd
            | Andnps
            | Andnpd
            | Orps
            | Orpd
            | Xorps
            | Xorpd
            | Unpcklps
            | Unpckhps
            | Unpcklpd
            | Unpckhpd
            | Shufps
            | Shufpd
            | Blendps
            | Blendpd
            | Paddb
            | Paddw
            | Paddd
            | Paddq
            | Paddsb
            | Paddsw
            | Paddusb
            | Paddusw
            | Psubb
            | Psubw
            | Psubd
            | Psubq
            | Psubsb
            | Psubsw
            | Psubusb
            | Psubusw
            | Pmullw
            | Pmulld
            | Pmulhw
            | Pmulhuw
            | Pmulhrsw
            | Pmuludq
            | Pmuldq
            | Pmaddwd
            | Pmaddubsw
            | Psadbw
            | Pavgb
            | Pavgw
            | Pcmpeqb
            | Pcmpeqw
            | Pcmpeqd
            | Pcmpeqq
            | Pcmpgtb
            | Pcmpgtw
            | Pcmpgtd
            | Pcmpgtq
            | Pminub
            | Pminuw
            | Pminud
            | Pminsb
            | Pminsw
            | Pminsd
            | Pmaxub
            | Pmaxuw
            | Pmaxud
            | Pmaxsb
            | Pmaxsw
            | Pmaxsd
            | Psllw
            | Pslld
            | Psllq
            | Psrlw
            | Psrld
            | Psrlq
            | Psraw
            | Psrad
            | Pslldq
            | Psrldq
            | Pand
            | Pandn
            | Por
            | Pxor
            | Punpcklbw
            | Punpcklwd
            | Punpckldq
            | Punpcklqdq
            | Punpckhbw
            | Punpckhwd
            | Punpckhdq
            | Punpckhqdq
            | Packsswb
            | Packssdw
            | Packuswb
            | Packusdw
            | Pshufb
            | Palignr
            | Pblendw
            | Psignb
            | Psignw
            | Psignd
            | Phaddw
            | Phaddd
            | Phsubw
            | Phsubd
            | Phaddsw
            | Phsubsw
            | Mpsadbw
            | Aesenc
            | Aesenclast
            | Aesdec
            | Aesdeclast
            | Pclmulqdq
            | Sha1msg1
            | Sha1msg2
            | Sha1nexte
            | Sha1rnds4
            | Sha256msg1
            | Sha256msg2
    )
}
