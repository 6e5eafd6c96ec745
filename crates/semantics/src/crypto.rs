//! AES, SHA and carry-less multiplication (SDM Vol. 1 5.14, 5.15, 5.16, and Vol. 2 SHA1RNDS4 and following).

use core::arch::asm;

use x86::CpuState;

use crate::{
    native::{by_immediate, destructive, register, unary, value},
    vector::extra_operand,
};

destructive! {
    aesenc = "aesenc";
    aesenclast = "aesenclast";
    aesdec = "aesdec";
    aesdeclast = "aesdeclast";
    sha1msg1 = "sha1msg1";
    sha1msg2 = "sha1msg2";
    sha1nexte = "sha1nexte";
    sha256msg1 = "sha256msg1";
    sha256msg2 = "sha256msg2";
}

unary! {
    aesimc = "aesimc";
}

by_immediate! {
    sha1rnds4 = "sha1rnds4", 3, [0 1 2] 3;
    pclmulqdq = "pclmulqdq", 0x11, [0 1 16] 17;
}

/// AESKEYGENASSIST. The round constant is only XORed into dwords 1 and 3, so one encoding serves all.
pub fn aeskeygenassist(_: &mut CpuState, _: u128, b: u128, immediate: u8) -> u128 {
    let result;
    // SAFETY: the instruction touches the named registers only; the host has it (required_host_features).
    unsafe {
        asm!(
            "aeskeygenassist {0}, {1}, 0",
            lateout(xmm_reg) result,
            in(xmm_reg) register(b),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    let constant = u128::from(immediate);
    value(result) ^ (constant << 32 | constant << 96)
}

/// SHA256RNDS2: the two WK dwords of XMM0 are the extra operand.
pub fn sha256rnds2(state: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
    let (low, high) = extra_operand(state);
    let mut result = register(a);
    // SAFETY: the instruction touches the named registers only; the host has it (required_host_features).
    unsafe {
        asm!(
            "sha256rnds2 {0}, {1}, xmm0",
            inout(xmm_reg) result,
            in(xmm_reg) register(b),
            in("xmm0") register(u128::from(high) << 64 | u128::from(low)),
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    value(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FIPS 197 appendix B: the first round of the example.
    #[test]
    fn aes_round_of_fips_197() {
        let mut state = CpuState::new();
        let block = 0x193de3be_a0f4e22b_9ac68d2a_e9f84808_u128.swap_bytes();
        let key = 0xa0fafe17_88542cb1_23a33939_2a6c7605_u128.swap_bytes();
        let expected = 0xa49c7ff2_689f352b_6b5bea43_026a5049_u128.swap_bytes();
        assert_eq!(aesenc(&mut state, block, key, 0), expected);
    }

    /// FIPS 197 appendix A.1: w[3] = 09cf4f3c gives 8b84eb01 after RotWord, SubWord and Rcon 1.
    #[test]
    fn key_expansion_of_fips_197() {
        let mut state = CpuState::new();
        let key = u128::from(0x09cf_4f3c_u32.swap_bytes()) << 96;
        let assist = aeskeygenassist(&mut state, 0, key, 1);
        assert_eq!(((assist >> 96) as u32).swap_bytes(), 0x8b84_eb01);
    }

    #[test]
    fn carry_less_products_of_chosen_halves() {
        let mut state = CpuState::new();
        let (a, b) = (3_u128 << 64 | 5, 7_u128 << 64 | 9);
        // x^2+1 times x^3+1, x+1 times x^3+1, x^2+1 times x^2+x+1, x+1 times x^2+x+1.
        for (immediate, product) in [(0x00, 0b10_1101), (0x01, 0b1_1011), (0x10, 0b1_1011), (0x11, 0b1001)] {
            assert_eq!(pclmulqdq(&mut state, a, b, immediate), product, "{immediate:#x}");
        }
    }

    /// Two rounds from FIPS 180-4's initial hash value with W = K = 0, by the definition.
    #[test]
    fn sha256_rounds_by_the_definition() {
        if !crate::native::is_offered(iced_x86::CpuidFeature::SHA) {
            // No guest has it on this host: it is #UD, which `tests/insn/crypto.ins` checks.
            return;
        }
        let [mut a, mut b, mut c, mut d, mut e, mut f, mut g, mut h] = [
            0x6a09_e667_u32,
            0xbb67_ae85,
            0x3c6e_f372,
            0xa54f_f53a,
            0x510e_527f,
            0x9b05_688c,
            0x1f83_d9ab,
            0x5be0_cd19,
        ];
        let pack = |d3: u32, d2: u32, d1: u32, d0: u32| {
            u128::from(d3) << 96 | u128::from(d2) << 64 | u128::from(d1) << 32 | u128::from(d0)
        };
        let wk = [0x1234_5678_u32, 0x9abc_def0];
        let mut state = CpuState::new();
        state.scratch[6] = u64::from(wk[1]) << 32 | u64::from(wk[0]);
        let result = sha256rnds2(&mut state, pack(c, d, g, h), pack(a, b, e, f), 0);
        for wk in wk {
            let s1 = e.rotate_right(6) ^ e.rotate_right(11) ^ e.rotate_right(25);
            let t1 = h.wrapping_add(s1).wrapping_add(e & f ^ !e & g).wrapping_add(wk);
            let s0 = a.rotate_right(2) ^ a.rotate_right(13) ^ a.rotate_right(22);
            let t2 = s0.wrapping_add(a & b ^ a & c ^ b & c);
            (h, g, f, e, d, c, b, a) = (g, f, e, d.wrapping_add(t1), c, b, a, t1.wrapping_add(t2));
        }
        let _ = (c, d, g, h);
        assert_eq!(result, pack(a, b, e, f));
    }
}
