//! The rows of SSE instructions: moves, and operations on integers and bits, which MXCSR has no part in. The guest's XMM
//! registers are at home in the host's.

use iced_x86::Mnemonic;
use semantics::{Insn, Operand};

use super::effects::{Effects, FlagUse, Use, row};

/// The row of an instruction, if it is one of those over XMM registers.
pub(super) fn of(insn: &Insn) -> Option<Effects> {
    if !insn.operands.iter().any(|operand| matches!(operand, Operand::Xmm(_))) {
        return None;
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
        Ptest => (Use::Read, F::Set, whole),
        mnemonic if is_binary(mnemonic) => (Use::Update, F::None, whole),
        _ => return None,
    };
    Some(Effects { aligned, ..row(first, flags) })
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
    )
}
