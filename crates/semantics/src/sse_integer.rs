//! Packed integers in XMM registers (SDM Vol. 1 5.6.3, 5.8, 5.10, 5.11): the vector operations. In `table` each is a
//! row over a form of [`crate::vector`]; the MMX instructions of the same names use the same operations.
//!
//! `a` is the destination before, `b` the source; results depend on nothing else.

use x86::CpuState;

use crate::native::{by_immediate, destructive, to_mask, unary};

destructive! {
    paddb = "paddb";
    paddw = "paddw";
    paddd = "paddd";
    paddq = "paddq";
    paddsb = "paddsb";
    paddsw = "paddsw";
    paddusb = "paddusb";
    paddusw = "paddusw";
    psubb = "psubb";
    psubw = "psubw";
    psubd = "psubd";
    psubq = "psubq";
    psubsb = "psubsb";
    psubsw = "psubsw";
    psubusb = "psubusb";
    psubusw = "psubusw";
    pmullw = "pmullw";
    pmulld = "pmulld";
    pmulhw = "pmulhw";
    pmulhuw = "pmulhuw";
    pmulhrsw = "pmulhrsw";
    pmuludq = "pmuludq";
    pmuldq = "pmuldq";
    pmaddwd = "pmaddwd";
    pmaddubsw = "pmaddubsw";
    psadbw = "psadbw";
    pavgb = "pavgb";
    pavgw = "pavgw";
    pcmpeqb = "pcmpeqb";
    pcmpeqw = "pcmpeqw";
    pcmpeqd = "pcmpeqd";
    pcmpeqq = "pcmpeqq";
    pcmpgtb = "pcmpgtb";
    pcmpgtw = "pcmpgtw";
    pcmpgtd = "pcmpgtd";
    pcmpgtq = "pcmpgtq";
    pminub = "pminub";
    pminuw = "pminuw";
    pminud = "pminud";
    pminsb = "pminsb";
    pminsw = "pminsw";
    pminsd = "pminsd";
    pmaxub = "pmaxub";
    pmaxuw = "pmaxuw";
    pmaxud = "pmaxud";
    pmaxsb = "pmaxsb";
    pmaxsw = "pmaxsw";
    pmaxsd = "pmaxsd";
    psllw = "psllw";
    pslld = "pslld";
    psllq = "psllq";
    psrlw = "psrlw";
    psrld = "psrld";
    psrlq = "psrlq";
    psraw = "psraw";
    psrad = "psrad";
    packsswb = "packsswb";
    packssdw = "packssdw";
    packuswb = "packuswb";
    packusdw = "packusdw";
    punpcklbw = "punpcklbw";
    punpcklwd = "punpcklwd";
    punpckldq = "punpckldq";
    punpcklqdq = "punpcklqdq";
    punpckhbw = "punpckhbw";
    punpckhwd = "punpckhwd";
    punpckhdq = "punpckhdq";
    punpckhqdq = "punpckhqdq";
    pshufb = "pshufb";
    psignb = "psignb";
    psignw = "psignw";
    psignd = "psignd";
    phaddw = "phaddw";
    phaddd = "phaddd";
    phaddsw = "phaddsw";
    phsubw = "phsubw";
    phsubd = "phsubd";
    phsubsw = "phsubsw";
}

unary! {
    pabsb = "pabsb";
    pabsw = "pabsw";
    pabsd = "pabsd";
    phminposuw = "phminposuw";
    pmovsxbw = "pmovsxbw";
    pmovsxbd = "pmovsxbd";
    pmovsxbq = "pmovsxbq";
    pmovsxwd = "pmovsxwd";
    pmovsxwq = "pmovsxwq";
    pmovsxdq = "pmovsxdq";
    pmovzxbw = "pmovzxbw";
    pmovzxbd = "pmovzxbd";
    pmovzxbq = "pmovzxbq";
    pmovzxwd = "pmovzxwd";
    pmovzxwq = "pmovzxwq";
    pmovzxdq = "pmovzxdq";
    movddup = "movddup";
    movshdup = "movshdup";
    movsldup = "movsldup";
}

to_mask! {
    pmovmskb = "pmovmskb";
    movmskps = "movmskps";
    movmskpd = "movmskpd";
}

by_immediate! {
    mpsadbw = "mpsadbw", 7, [0 1 2 3 4 5 6] 7;
    shufpd = "shufpd", 3, [0 1 2] 3;
}

/// a & b.
pub fn pand(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    a & b
}

/// !a & b.
pub fn pandn(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    !a & b
}

/// a | b.
pub fn por(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    a | b
}

/// a ^ b.
pub fn pxor(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    a ^ b
}

/// `a` shifted left by `immediate` bytes.
pub fn pslldq(_: &mut CpuState, a: u128, _: u128, immediate: u8) -> u128 {
    if immediate > 15 { 0 } else { a << (u32::from(immediate) * 8) }
}

/// `a` shifted right by `immediate` bytes.
pub fn psrldq(_: &mut CpuState, a: u128, _: u128, immediate: u8) -> u128 {
    if immediate > 15 { 0 } else { a >> (u32::from(immediate) * 8) }
}

/// The low 16 bytes of `a:b` shifted right by `immediate` bytes.
pub fn palignr(_: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    match u32::from(immediate) * 8 {
        0 => b,
        shift @ 1..128 => b >> shift | a << (128 - shift),
        shift @ 128..256 => a >> (shift - 128),
        _ => 0,
    }
}

/// Four dwords of `b`, chosen by two bits each.
pub fn pshufd(_: &mut CpuState, _: u128, b: u128, immediate: u8) -> u128 {
    let dword = |n: u8| b >> (u32::from(immediate >> (2 * n) & 3) * 32) & 0xffff_ffff;
    dword(0) | dword(1) << 32 | dword(2) << 64 | dword(3) << 96
}

/// SHUFPS: two dwords chosen from `a`, then two from `b`.
pub fn shufps(_: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    let dword = |from: u128, n: u8| from >> (u32::from(immediate >> (2 * n) & 3) * 32) & 0xffff_ffff;
    dword(a, 0) | dword(a, 1) << 32 | dword(b, 2) << 64 | dword(b, 3) << 96
}

fn shuffle_words(half: u64, immediate: u8) -> u64 {
    let word = |n: u8| half >> (u32::from(immediate >> (2 * n) & 3) * 16) & 0xffff;
    word(0) | word(1) << 16 | word(2) << 32 | word(3) << 48
}

/// The low four words of `b` shuffled, the high ones as they are.
pub fn pshuflw(_: &mut CpuState, _: u128, b: u128, immediate: u8) -> u128 {
    b >> 64 << 64 | u128::from(shuffle_words(b as u64, immediate))
}

/// The high four words of `b` shuffled, the low ones as they are.
pub fn pshufhw(_: &mut CpuState, _: u128, b: u128, immediate: u8) -> u128 {
    u128::from(shuffle_words((b >> 64) as u64, immediate)) << 64 | u128::from(b as u64)
}

/// Elements of `bits` bits: from `b` where the immediate's bit is set, else from `a`.
fn blend(a: u128, b: u128, immediate: u8, bits: u32) -> u128 {
    let element = u128::MAX >> (128 - bits);
    let mask =
        (0..128 / bits).filter(|n| immediate >> n & 1 != 0).fold(0, |mask, n| mask | element << (n * bits));
    a & !mask | b & mask
}

/// Words by immediate.
pub fn pblendw(_: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    blend(a, b, immediate, 16)
}

/// Dwords by immediate.
pub fn blendps(_: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    blend(a, b, immediate, 32)
}

/// Qwords by immediate.
pub fn blendpd(_: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    blend(a, b, immediate, 64)
}

/// PTEST: ZF (bit 6) if a & b is zero, CF (bit 0) if !a & b is zero.
pub fn ptest(_: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    u128::from(a & b == 0) << 6 | u128::from(!a & b == 0)
}

/// Ones in every byte of `a` whose sign bit is set (the selector of PBLENDVB).
pub fn sign_bytes(state: &mut CpuState, a: u128, _: u128, _: u8) -> u128 {
    pcmpgtb(state, 0, a, 0)
}

/// Ones in every dword of `a` whose sign bit is set (the selector of BLENDVPS).
pub fn sign_dwords(state: &mut CpuState, a: u128, _: u128, _: u8) -> u128 {
    psrad(state, a, 31, 0)
}

/// Ones in every qword of `a` whose sign bit is set (the selector of BLENDVPD).
pub fn sign_qwords(_: &mut CpuState, a: u128, _: u128, _: u8) -> u128 {
    let spread = |half: u64| u128::from((half as i64 >> 63) as u64);
    spread(a as u64) | spread((a >> 64) as u64) << 64
}

#[cfg(test)]
mod tests {
    use core::arch::x86_64 as arch;

    use super::*;
    use crate::native::{register, value};

    const A: u128 = 0x8f01_7e23_6d45_dc67_4b89_3aab_a9cd_18ef;
    const B: u128 = 0x0010_f132_d254_8376_6498_05ba_46dc_a7fe;

    /// The instruction's encoding with each immediate against the function that is given the immediate.
    macro_rules! immediates {
        ($function:ident, |$a:ident, $b:ident| $intrinsic:ident $arguments:tt, [$($n:literal)*]) => {{
            let mut state = CpuState::new();
            let ($a, $b) = (register(A), register(B));
            $(
                // SAFETY: the tests run on a host that has the required features.
                let expected = value(unsafe { arch::$intrinsic::<$n> $arguments });
                assert_eq!($function(&mut state, A, B, $n), expected, "immediate {}", $n);
            )*
        }};
    }

    #[test]
    fn shuffles_by_immediate_are_the_instructions() {
        immediates!(pshufd, |_a, b| _mm_shuffle_epi32(b), [0 1 4 16 64 27 78 147 177 228 255]);
        immediates!(pshuflw, |_a, b| _mm_shufflelo_epi16(b), [0 1 4 16 64 27 78 147 177 228 255]);
        immediates!(pshufhw, |_a, b| _mm_shufflehi_epi16(b), [0 1 4 16 64 27 78 147 177 228 255]);
        immediates!(pblendw, |a, b| _mm_blend_epi16(a, b), [0 1 2 4 8 16 32 64 128 0x5a 255]);
        immediates!(palignr, |a, b| _mm_alignr_epi8(a, b), [0 1 7 8 15 16 17 24 31 32 33 255]);
        immediates!(mpsadbw, |a, b| _mm_mpsadbw_epu8(a, b), [0 1 2 3 4 5 6 7]);
        immediates!(pslldq, |a, _b| _mm_slli_si128(a), [0 1 7 8 15 16 255]);
        immediates!(psrldq, |a, _b| _mm_srli_si128(a), [0 1 7 8 15 16 255]);
    }

    #[test]
    fn unused_bits_of_immediates_are_ignored() {
        let mut state = CpuState::new();
        assert_eq!(mpsadbw(&mut state, A, B, 0xfd), mpsadbw(&mut state, A, B, 5));
        assert_eq!(shufpd(&mut state, A, B, 0xfe), B >> 64 << 64 >> 64 << 64 | A & 0xffff_ffff_ffff_ffff);
        assert_eq!(blendps(&mut state, A, B, 0xf0), A);
        assert_eq!(blendpd(&mut state, A, B, 0xfe), A & u128::from(u64::MAX) | B >> 64 << 64);
    }

    #[test]
    fn operand_roles() {
        let mut state = CpuState::new();
        let high_of_a = A & !u128::from(u64::MAX);
        assert_eq!(psubq(&mut state, high_of_a, 1, 0), high_of_a | u128::from(u64::MAX));
        assert_eq!(pandn(&mut state, A, B, 0), !A & B);
        assert_eq!(punpcklqdq(&mut state, A, B, 0), B << 64 | A & u128::from(u64::MAX));
        assert_eq!(psllq(&mut state, 1 << 64 | 1, 64, 0), 0, "a count past the element clears it");
        assert_eq!(pcmpgtd(&mut state, 0, u128::MAX, 0), u128::MAX);
        assert_eq!(ptest(&mut state, 0b0110, 0b1001, 0), 1 << 6);
        assert_eq!(ptest(&mut state, 0b1111, 0b1001, 0), 1);
    }

    #[test]
    fn selectors_are_whole_elements() {
        let mut state = CpuState::new();
        let signs = 0x80_u128 | 1 << 63 | 1 << 127;
        assert_eq!(sign_bytes(&mut state, signs, 0, 0), 0xff | 0xff << 56 | 0xff << 120);
        assert_eq!(sign_dwords(&mut state, signs, 0, 0), 0xffff_ffff << 32 | 0xffff_ffff << 96);
        assert_eq!(sign_qwords(&mut state, signs, 0, 0), u128::MAX);
    }
}
