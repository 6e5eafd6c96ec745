//! Host instructions that CLIF has no operation for.
//!
//! CLIF knows a part of the host's vector instructions, and floating-point ones only in its own semantics. All others
//! have the shape of one that it knows: the same operands, of which the same one is overwritten. So the lifter emits
//! that one, the [`Carrier`], with a source location of its own ([`mark`]), and when the code is done [`apply`] finds
//! it there and exchanges prefix, opcode and immediate. What registers and moves the carrier got is right for the
//! instruction that it becomes. Where the code is not as expected, the translation is given up.
//!
//! The code generator takes carriers for what they are in CLIF: values without side effects. The lifter therefore
//! sees to it that one whose flags in MXCSR matter is not dropped, and functions that have carriers are compiled without
//! the mid-end, which would merge or move them.

use cranelift_codegen::{Final, MachSrcLoc};
use iced_x86::{Code, Decoder, DecoderOptions, Instruction};
use semantics::helper::VectorOp;

/// A mandatory prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the bytes")]
pub(crate) enum Prefix {
    None,
    P66,
    PF3,
    PF2,
}

/// An opcode map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the bytes")]
pub(crate) enum Map {
    M0F,
    M0F38,
    M0F3A,
}

/// The operands of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Shape {
    /// xmm1 = xmm1 op xmm2.
    Binary,
    /// xmm1 = op xmm2.
    Unary,
    /// xmm1 = op r64, which keeps the upper part of xmm1.
    FromInteger,
    /// r32 = op xmm.
    ToDword,
    /// r64 = op xmm.
    ToQword,
}

/// A host instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct HostInstruction {
    prefix: Prefix,
    map: Map,
    opcode: u8,
    immediate: Option<u8>,
    pub shape: Shape,
    /// It reads MXCSR and sets flags in it.
    pub float: bool,
}

/// What CLIF emits in place of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Carrier {
    /// `fsub` of doubles.
    Subpd,
    /// `x86_pshufb`.
    Pshufb,
    /// `shuffle` of bytes one apart.
    Palignr,
    /// `insertlane` of a qword.
    Pinsrq,
    /// `bitcast` of a single to an integer.
    Movd,
    /// `bitcast` of a double to an integer.
    Movq,
}

impl Carrier {
    const fn code(self) -> Code {
        match self {
            Self::Subpd => Code::Subpd_xmm_xmmm128,
            Self::Pshufb => Code::Pshufb_xmm_xmmm128,
            Self::Palignr => Code::Palignr_xmm_xmmm128_imm8,
            Self::Pinsrq => Code::Pinsrq_xmm_rm64_imm8,
            Self::Movd => Code::Movd_rm32_xmm,
            Self::Movq => Code::Movq_rm64_xmm,
        }
    }

    const fn has_immediate(self) -> bool {
        matches!(self, Self::Palignr | Self::Pinsrq)
    }

    /// The register operand is the source, not the destination.
    const fn is_reversed(self) -> bool {
        matches!(self, Self::Movd | Self::Movq)
    }
}

impl HostInstruction {
    /// What to emit for it.
    pub fn carrier(self) -> Carrier {
        match (self.shape, self.map, self.immediate) {
            (Shape::FromInteger, ..) => Carrier::Pinsrq,
            (Shape::ToDword, ..) => Carrier::Movd,
            (Shape::ToQword, ..) => Carrier::Movq,
            (_, _, Some(_)) | (_, Map::M0F3A, _) => Carrier::Palignr,
            (_, Map::M0F38, _) => Carrier::Pshufb,
            (_, Map::M0F, _) => Carrier::Subpd,
        }
    }

    /// The instruction that computes a vector operation, if there is one that CLIF lacks.
    pub fn of(op: VectorOp, immediate: u8) -> Option<Self> {
        use Map::{M0F, M0F3A, M0F38};
        use Prefix::{None as NP, P66, PF2, PF3};
        use Shape::{Binary, FromInteger, ToDword, ToQword, Unary};
        use VectorOp::*;
        let whole = Some(immediate);
        let to_integer = if immediate == 8 { ToQword } else { ToDword };
        let (prefix, map, opcode, shape, immediate) = match op {
            // Floating point.
            Addps => (NP, M0F, 0x58, Binary, None),
            Addpd => (P66, M0F, 0x58, Binary, None),
            Addss => (PF3, M0F, 0x58, Binary, None),
            Addsd => (PF2, M0F, 0x58, Binary, None),
            Mulps => (NP, M0F, 0x59, Binary, None),
            Mulpd => (P66, M0F, 0x59, Binary, None),
            Mulss => (PF3, M0F, 0x59, Binary, None),
            Mulsd => (PF2, M0F, 0x59, Binary, None),
            Subps => (NP, M0F, 0x5c, Binary, None),
            Subpd => (P66, M0F, 0x5c, Binary, None),
            Subss => (PF3, M0F, 0x5c, Binary, None),
            Subsd => (PF2, M0F, 0x5c, Binary, None),
            Minps => (NP, M0F, 0x5d, Binary, None),
            Minpd => (P66, M0F, 0x5d, Binary, None),
            Minss => (PF3, M0F, 0x5d, Binary, None),
            Minsd => (PF2, M0F, 0x5d, Binary, None),
            Divps => (NP, M0F, 0x5e, Binary, None),
            Divpd => (P66, M0F, 0x5e, Binary, None),
            Divss => (PF3, M0F, 0x5e, Binary, None),
            Divsd => (PF2, M0F, 0x5e, Binary, None),
            Maxps => (NP, M0F, 0x5f, Binary, None),
            Maxpd => (P66, M0F, 0x5f, Binary, None),
            Maxss => (PF3, M0F, 0x5f, Binary, None),
            Maxsd => (PF2, M0F, 0x5f, Binary, None),
            Sqrtps => (NP, M0F, 0x51, Unary, None),
            Sqrtpd => (P66, M0F, 0x51, Unary, None),
            Sqrtss => (PF3, M0F, 0x51, Binary, None),
            Sqrtsd => (PF2, M0F, 0x51, Binary, None),
            Rsqrtps => (NP, M0F, 0x52, Unary, None),
            Rsqrtss => (PF3, M0F, 0x52, Binary, None),
            Rcpps => (NP, M0F, 0x53, Unary, None),
            Rcpss => (PF3, M0F, 0x53, Binary, None),
            Addsubps => (PF2, M0F, 0xd0, Binary, None),
            Addsubpd => (P66, M0F, 0xd0, Binary, None),
            Haddps => (PF2, M0F, 0x7c, Binary, None),
            Haddpd => (P66, M0F, 0x7c, Binary, None),
            Hsubps => (PF2, M0F, 0x7d, Binary, None),
            Hsubpd => (P66, M0F, 0x7d, Binary, None),
            Cmpps => (NP, M0F, 0xc2, Binary, Some(immediate & 7)),
            Cmppd => (P66, M0F, 0xc2, Binary, Some(immediate & 7)),
            Cmpss => (PF3, M0F, 0xc2, Binary, Some(immediate & 7)),
            Cmpsd => (PF2, M0F, 0xc2, Binary, Some(immediate & 7)),
            Roundps => (P66, M0F3A, 0x08, Unary, whole),
            Roundpd => (P66, M0F3A, 0x09, Unary, whole),
            Roundss => (P66, M0F3A, 0x0a, Binary, whole),
            Roundsd => (P66, M0F3A, 0x0b, Binary, whole),
            Dpps => (P66, M0F3A, 0x40, Binary, whole),
            Dppd => (P66, M0F3A, 0x41, Binary, whole),
            // Conversions.
            Cvtps2pd => (NP, M0F, 0x5a, Unary, None),
            Cvtpd2ps => (P66, M0F, 0x5a, Unary, None),
            Cvtss2sd => (PF3, M0F, 0x5a, Binary, None),
            Cvtsd2ss => (PF2, M0F, 0x5a, Binary, None),
            Cvtdq2ps => (NP, M0F, 0x5b, Unary, None),
            Cvtps2dq => (P66, M0F, 0x5b, Unary, None),
            Cvttps2dq => (PF3, M0F, 0x5b, Unary, None),
            Cvttpd2dq => (P66, M0F, 0xe6, Unary, None),
            Cvtpd2dq => (PF2, M0F, 0xe6, Unary, None),
            Cvtdq2pd => (PF3, M0F, 0xe6, Unary, None),
            Cvtsi2ss => (PF3, M0F, 0x2a, FromInteger, None),
            Cvtsi2sd => (PF2, M0F, 0x2a, FromInteger, None),
            Cvttss2si => (PF3, M0F, 0x2c, to_integer, None),
            Cvttsd2si => (PF2, M0F, 0x2c, to_integer, None),
            Cvtss2si => (PF3, M0F, 0x2d, to_integer, None),
            Cvtsd2si => (PF2, M0F, 0x2d, to_integer, None),
            // Packed integers.
            Psrlw => (P66, M0F, 0xd1, Binary, None),
            Psrld => (P66, M0F, 0xd2, Binary, None),
            Psrlq => (P66, M0F, 0xd3, Binary, None),
            Psraw => (P66, M0F, 0xe1, Binary, None),
            Psrad => (P66, M0F, 0xe2, Binary, None),
            Psllw => (P66, M0F, 0xf1, Binary, None),
            Pslld => (P66, M0F, 0xf2, Binary, None),
            Psllq => (P66, M0F, 0xf3, Binary, None),
            Pmulhuw => (P66, M0F, 0xe4, Binary, None),
            Pmulhw => (P66, M0F, 0xe5, Binary, None),
            Pmuludq => (P66, M0F, 0xf4, Binary, None),
            Pmaddwd => (P66, M0F, 0xf5, Binary, None),
            Psadbw => (P66, M0F, 0xf6, Binary, None),
            Phaddw => (P66, M0F38, 0x01, Binary, None),
            Phaddd => (P66, M0F38, 0x02, Binary, None),
            Phaddsw => (P66, M0F38, 0x03, Binary, None),
            Pmaddubsw => (P66, M0F38, 0x04, Binary, None),
            Phsubw => (P66, M0F38, 0x05, Binary, None),
            Phsubd => (P66, M0F38, 0x06, Binary, None),
            Phsubsw => (P66, M0F38, 0x07, Binary, None),
            Psignb => (P66, M0F38, 0x08, Binary, None),
            Psignw => (P66, M0F38, 0x09, Binary, None),
            Psignd => (P66, M0F38, 0x0a, Binary, None),
            Pmulhrsw => (P66, M0F38, 0x0b, Binary, None),
            Pmuldq => (P66, M0F38, 0x28, Binary, None),
            Phminposuw => (P66, M0F38, 0x41, Unary, None),
            Mpsadbw => (P66, M0F3A, 0x42, Binary, Some(immediate & 7)),
            // Crypto.
            Aesimc => (P66, M0F38, 0xdb, Unary, None),
            Aesenc => (P66, M0F38, 0xdc, Binary, None),
            Aesenclast => (P66, M0F38, 0xdd, Binary, None),
            Aesdec => (P66, M0F38, 0xde, Binary, None),
            Aesdeclast => (P66, M0F38, 0xdf, Binary, None),
            Aeskeygenassist => (P66, M0F3A, 0xdf, Unary, whole),
            Pclmulqdq => (P66, M0F3A, 0x44, Binary, whole),
            _ => return None,
        };
        let path = op.path();
        let float = path.contains("::sse_float::") || path.contains("::sse_convert::");
        Some(Self { prefix, map, opcode, immediate, shape, float })
    }

    /// The bytes of the instruction with the operands that its carrier has.
    fn in_place_of(self, carrier: Carrier, bytes: &[u8]) -> Option<Vec<u8>> {
        // 66, perhaps REX, 0F, perhaps 38 or 3A, opcode, operands, perhaps an immediate.
        let rest = bytes.strip_prefix(&[0x66])?;
        let (mut rex, rest) = match rest {
            [rex @ 0x40..=0x4f, rest @ ..] => (Some(*rex), rest),
            _ => (None, rest),
        };
        let rest = rest.strip_prefix(&[0x0f])?;
        let rest = match rest {
            [0x38 | 0x3a, rest @ ..] => rest,
            _ => rest,
        };
        let operands = rest.get(1..rest.len() - usize::from(carrier.has_immediate()))?;
        let mut operands = operands.to_vec();
        if carrier.is_reversed() {
            let modrm = operands.first_mut().filter(|modrm| **modrm >= 0xc0)?;
            *modrm = 0xc0 | (*modrm & 7) << 3 | *modrm >> 3 & 7;
            rex = rex.map(|rex| rex & 0xfa | (rex & 1) << 2 | rex >> 2 & 1);
        }
        let mut made: Vec<u8> = match self.prefix {
            Prefix::None => vec![],
            Prefix::P66 => vec![0x66],
            Prefix::PF3 => vec![0xf3],
            Prefix::PF2 => vec![0xf2],
        };
        made.extend(rex);
        made.push(0x0f);
        made.extend(match self.map {
            Map::M0F => None,
            Map::M0F38 => Some(0x38),
            Map::M0F3A => Some(0x3a),
        });
        made.push(self.opcode);
        made.extend(operands);
        made.extend(self.immediate);
        // A DS prefix says nothing, and may be repeated.
        let missing = bytes.len().checked_sub(made.len())?;
        made.splice(0..0, core::iter::repeat_n(0x3e, missing));
        Some(made)
    }
}

/// The most instructions that a function can have substituted.
pub(crate) const MOST: usize = 0xfffe;

/// The part of a source location that is the number of the guest instruction.
pub(crate) const SOURCE: u32 = 0xffff;

/// Source location of the `n`-th substituted instruction, belonging to guest instruction `source`.
pub(crate) const fn mark(n: usize, source: u32) -> u32 {
    (n as u32 + 1) << 16 | source & SOURCE
}

/// Exchanges the carriers in finished code.
pub(crate) fn apply(
    code: &mut [u8],
    locations: &[MachSrcLoc<Final>],
    wanted: &[HostInstruction],
) -> Result<(), String> {
    let mut found = vec![false; wanted.len()];
    for location in locations {
        let Some(n) = (location.loc.bits() >> 16).checked_sub(1).map(|n| n as usize) else { continue };
        let Some(&instruction) = wanted.get(n) else { continue };
        let range = location.start as usize..location.end as usize;
        found[n] |= exchange(&mut code[range], instruction)?;
    }
    match wanted.iter().zip(found).find(|(instruction, found)| instruction.float && !found) {
        Some((instruction, _)) => Err(format!("{instruction:?} is not in the code")),
        None => Ok(()),
    }
}

/// Exchanges the one carrier among a few instructions. False if there is none: its value was not needed.
fn exchange(code: &mut [u8], instruction: HostInstruction) -> Result<bool, String> {
    let carrier = instruction.carrier();
    let places: Vec<_> = {
        let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
        let found = decoder.iter().filter(|found: &Instruction| found.code() == carrier.code());
        found.map(|found| found.ip() as usize..found.next_ip() as usize).collect()
    };
    match places.as_slice() {
        [] => Ok(false),
        [place] => {
            let bytes = &mut code[place.clone()];
            let made = instruction
                .in_place_of(carrier, bytes)
                .ok_or_else(|| format!("{instruction:?} can't be made of {bytes:02x?}"))?;
            bytes.copy_from_slice(&made);
            Ok(true)
        }
        _ => Err(format!("{} carriers of {instruction:?}", places.len())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Instruction {
        let mut decoder = Decoder::new(64, bytes, DecoderOptions::NONE);
        let instruction = decoder.decode();
        assert_eq!(instruction.len(), bytes.len(), "{bytes:02x?}");
        instruction
    }

    /// Carriers with low and high registers.
    fn carriers(carrier: Carrier) -> [&'static [u8]; 2] {
        match carrier {
            Carrier::Subpd => [&[0x66, 0x0f, 0x5c, 0xca], &[0x66, 0x45, 0x0f, 0x5c, 0xca]],
            Carrier::Pshufb => [&[0x66, 0x0f, 0x38, 0x00, 0xca], &[0x66, 0x45, 0x0f, 0x38, 0x00, 0xca]],
            Carrier::Palignr => {
                [&[0x66, 0x0f, 0x3a, 0x0f, 0xca, 1], &[0x66, 0x45, 0x0f, 0x3a, 0x0f, 0xca, 1]]
            }
            Carrier::Pinsrq => {
                [&[0x66, 0x48, 0x0f, 0x3a, 0x22, 0xca, 0], &[0x66, 0x4d, 0x0f, 0x3a, 0x22, 0xca, 0]]
            }
            Carrier::Movd => [&[0x66, 0x0f, 0x7e, 0xd1], &[0x66, 0x45, 0x0f, 0x7e, 0xd1]],
            Carrier::Movq => [&[0x66, 0x48, 0x0f, 0x7e, 0xd1], &[0x66, 0x4d, 0x0f, 0x7e, 0xd1]],
        }
    }

    #[test]
    fn every_instruction_is_made_of_its_carrier() {
        for &op in VectorOp::ALL {
            for immediate in [0, 4, 7, 8, 0x11] {
                let Some(instruction) = HostInstruction::of(op, immediate) else { continue };
                let carrier = instruction.carrier();
                for (bytes, number) in carriers(carrier).into_iter().zip([1, 9]) {
                    assert_eq!(decode(bytes).code(), carrier.code());
                    let made = instruction.in_place_of(carrier, bytes).unwrap();
                    let made = decode(&made);
                    assert_eq!(format!("{:?}", made.mnemonic()), op.name(), "{made:?}");
                    let (to, from) = (made.op0_register(), made.op1_register());
                    assert_eq!((to.number(), from.number()), (number, number + 1), "{made:?}");
                    let wide = matches!(instruction.shape, Shape::FromInteger | Shape::ToQword);
                    assert_eq!(to.is_gpr64() || from.is_gpr64(), wide, "{made:?}");
                }
            }
        }
    }

    #[test]
    fn operands_in_memory_stay() {
        // subpd xmm9, [rip + 0x10] becomes divsd; pshufb xmm1, [rsp + r12*8 + 0x100] becomes aesenc.
        let divsd = HostInstruction::of(VectorOp::Divsd, 0).unwrap();
        let mut code = [0x90, 0x66, 0x44, 0x0f, 0x5c, 0x0d, 0x10, 0, 0, 0, 0x90];
        assert_eq!(exchange(&mut code, divsd), Ok(true));
        assert_eq!(code, [0x90, 0xf2, 0x44, 0x0f, 0x5e, 0x0d, 0x10, 0, 0, 0, 0x90]);
        let aesenc = HostInstruction::of(VectorOp::Aesenc, 0).unwrap();
        let mut code = [0x66, 0x42, 0x0f, 0x38, 0x00, 0x8c, 0xe4, 0, 1, 0, 0];
        assert_eq!(exchange(&mut code, aesenc), Ok(true));
        assert_eq!(code, [0x66, 0x42, 0x0f, 0x38, 0xdc, 0x8c, 0xe4, 0, 1, 0, 0]);
    }

    #[test]
    fn unexpected_code_is_refused() {
        let divsd = HostInstruction::of(VectorOp::Divsd, 0).unwrap();
        assert_eq!(exchange(&mut [0x90], divsd), Ok(false));
        let mut twice = [0x66, 0x0f, 0x5c, 0xca, 0x66, 0x0f, 0x5c, 0xca];
        assert!(exchange(&mut twice, divsd).is_err());
        assert!(apply(&mut [], &[], &[divsd]).is_err());
        let aesenc = HostInstruction::of(VectorOp::Aesenc, 0).unwrap();
        assert_eq!(apply(&mut [], &[], &[aesenc]), Ok(()), "it has no effect but its value");
    }
}
