//! SSE to SSE4.1 floating-point arithmetic, comparison and rounding (SDM Vol. 1 5.5.1, 5.6.1, 5.7, 5.10): the vector
//! operations, each the instruction itself under the guest's MXCSR.

use x86::CpuState;

use crate::{
    mxcsr::{self, control, control_with_rounding, finish, float, tiny, with_mxcsr},
    native::{register, value},
};

float! {
    addps = "addps", ps;
    addpd = "addpd", pd;
    addss = "addss", ss;
    addsd = "addsd", sd;
    subps = "subps", ps;
    subpd = "subpd", pd;
    subss = "subss", ss;
    subsd = "subsd", sd;
    mulps = "mulps", ps;
    mulpd = "mulpd", pd;
    mulss = "mulss", ss;
    mulsd = "mulsd", sd;
    divps = "divps", ps;
    divpd = "divpd", pd;
    divss = "divss", ss;
    divsd = "divsd", sd;
    sqrtps = "sqrtps", none;
    sqrtpd = "sqrtpd", none;
    sqrtss = "sqrtss", none;
    sqrtsd = "sqrtsd", none;
    minps = "minps", none;
    minpd = "minpd", none;
    minss = "minss", none;
    minsd = "minsd", none;
    maxps = "maxps", none;
    maxpd = "maxpd", none;
    maxss = "maxss", none;
    maxsd = "maxsd", none;
    rcpps = "rcpps", none;
    rcpss = "rcpss", none;
    rsqrtps = "rsqrtps", none;
    rsqrtss = "rsqrtss", none;
    addsubps = "addsubps", ps;
    addsubpd = "addsubpd", pd;
    haddps = "haddps", ps;
    haddpd = "haddpd", pd;
    hsubps = "hsubps", ps;
    hsubpd = "hsubpd", pd;
}

/// `name = "mnemonic";`: COMISS and relatives; the result is the low byte of RFLAGS.
macro_rules! compare_to_flags {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b`; ZF, PF and CF at their places in RFLAGS")]
        pub fn $name(state: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
            let mut control = control(state);
            let flags: u64;
            with_mxcsr!(
                control,
                concat!($mnemonic, " {a}, {b}\nlahf"),
                a = in(xmm_reg) register(a),
                b = in(xmm_reg) register(b),
                out("rax") flags,
            );
            finish(state, control, u128::from(flags >> 8 & 0x45), tiny::none)
        }
    )*};
}

compare_to_flags! {
    comiss = "comiss";
    comisd = "comisd";
    ucomiss = "ucomiss";
    ucomisd = "ucomisd";
}

/// `name = "mnemonic";`: CMPPS and relatives, with the eight predicates of the legacy encoding.
macro_rules! compare_to_mask {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b, immediate`")]
        pub fn $name(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
            match immediate & 7 {
                0 => compare_to_mask!(@one $mnemonic, "0", state, a, b),
                1 => compare_to_mask!(@one $mnemonic, "1", state, a, b),
                2 => compare_to_mask!(@one $mnemonic, "2", state, a, b),
                3 => compare_to_mask!(@one $mnemonic, "3", state, a, b),
                4 => compare_to_mask!(@one $mnemonic, "4", state, a, b),
                5 => compare_to_mask!(@one $mnemonic, "5", state, a, b),
                6 => compare_to_mask!(@one $mnemonic, "6", state, a, b),
                _ => compare_to_mask!(@one $mnemonic, "7", state, a, b),
            }
        }
    )*};
    (@one $mnemonic:literal, $predicate:literal, $state:ident, $a:ident, $b:ident) => {{
        let mut control = control($state);
        let mut result = register($a);
        with_mxcsr!(
            control,
            concat!($mnemonic, " {a}, {b}, ", $predicate),
            a = inout(xmm_reg) result,
            b = in(xmm_reg) register($b),
        );
        finish($state, control, value(result), tiny::none)
    }};
}

compare_to_mask! {
    cmpps = "cmpps";
    cmppd = "cmppd";
    cmpss = "cmpss";
    cmpsd = "cmpsd";
}

/// `name = "mnemonic";`: ROUNDPS and relatives. The immediate's rounding mode goes through MXCSR.
macro_rules! round {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b, immediate`")]
        pub fn $name(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
            const FROM_MXCSR: u8 = 1 << 2;
            const NO_PRECISION_EXCEPTION: u8 = 1 << 3;
            let mut control = if immediate & FROM_MXCSR == 0 {
                control_with_rounding(state, immediate)
            } else {
                mxcsr::control(state)
            };
            let mut result = register(a);
            let b = register(b);
            if immediate & NO_PRECISION_EXCEPTION == 0 {
                with_mxcsr!(
                    control,
                    concat!($mnemonic, " {a}, {b}, 4"),
                    a = inout(xmm_reg) result,
                    b = in(xmm_reg) b,
                );
            } else {
                with_mxcsr!(
                    control,
                    concat!($mnemonic, " {a}, {b}, 12"),
                    a = inout(xmm_reg) result,
                    b = in(xmm_reg) b,
                );
            }
            finish(state, control, value(result), tiny::none)
        }
    )*};
}

round! {
    roundps = "roundps";
    roundpd = "roundpd";
    roundss = "roundss";
    roundsd = "roundsd";
}

/// Elements of `bits` bits, all ones where `selector` has a bit.
fn element_mask(selector: u8, bits: u32) -> u128 {
    let element = u128::MAX >> (128 - bits);
    (0..128 / bits).filter(|n| selector >> n & 1 != 0).fold(0, |mask, n| mask | element << (n * bits))
}

/// `name = "mnemonic", bits, tiny;`: DPPS, DPPD. A product that the immediate leaves out counts as +0, which is what
/// +0 times +0 gives, so one encoding serves all.
macro_rules! dot_product {
    ($($name:ident = $mnemonic:literal, $bits:literal, $tiny:ident;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, b, immediate`")]
        pub fn $name(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
            let factors = element_mask(immediate >> 4, $bits);
            let mut control = control(state);
            let mut result = register(a & factors);
            with_mxcsr!(
                control,
                concat!($mnemonic, " {a}, {b}, 0xff"),
                a = inout(xmm_reg) result,
                b = in(xmm_reg) register(b & factors),
            );
            let result = value(result) & element_mask(immediate, $bits);
            finish(state, control, result, tiny::$tiny)
        }
    )*};
}

dot_product! {
    dpps = "dpps", 32, ps;
    dppd = "dppd", 64, pd;
}

#[cfg(test)]
mod tests {
    use core::arch::x86_64 as arch;

    use super::*;

    fn ps(values: [f32; 4]) -> u128 {
        values.iter().rev().fold(0, |bits, v| bits << 32 | u128::from(v.to_bits()))
    }

    #[test]
    fn dot_products_are_the_instructions() {
        let mut state = CpuState::new();
        let a = ps([1.5, f32::NAN, -3.25, 1e30]);
        let b = ps([2.0, 1.0, 0.5, 1e30]);
        macro_rules! check {
            ($($n:literal)*) => {$(
                // SAFETY: the tests run on a host that has the required features.
                let expected = unsafe {
                    let [a, b] = [a, b].map(|v| core::mem::transmute::<u128, arch::__m128>(v));
                    core::mem::transmute::<arch::__m128, u128>(arch::_mm_dp_ps::<$n>(a, b))
                };
                assert_eq!(dpps(&mut state, a, b, $n), expected, "immediate {}", $n);
            )*};
        }
        check!(0 0x11 0x1f 0x5f 0x55 0x5a 0x87 0xff 0xf1 0x2f);
    }

    #[test]
    fn the_survivor_of_two_nans_is_the_destination() {
        let mut state = CpuState::new();
        let (first, second) = (0x7fc0_0001, 0x7fc0_0002);
        assert_eq!(addss(&mut state, first, second, 0), first);
        assert_eq!(addss(&mut state, second, first, 0), second);
        assert_eq!(maxss(&mut state, first, second, 0), second, "MAXSS gives the source");
        assert_eq!(state.mxcsr & 0x3f, 1, "only MAXSS is invalid with quiet NaNs");
    }

    #[test]
    fn comparisons() {
        let mut state = CpuState::new();
        let (one, two, nan) = (1.0_f64.to_bits().into(), 2.0_f64.to_bits().into(), f64::NAN.to_bits().into());
        assert_eq!(ucomisd(&mut state, one, two, 0), 1);
        assert_eq!(ucomisd(&mut state, two, one, 0), 0);
        assert_eq!(ucomisd(&mut state, one, one, 0), 0x40);
        assert_eq!(ucomisd(&mut state, one, nan, 0), 0x45);
        assert_eq!(state.mxcsr & 1, 0);
        assert_eq!(comisd(&mut state, one, nan, 0), 0x45);
        assert_eq!(state.mxcsr & 1, 1);
        let below = [0, 1, 1, 0, 1, 0, 0, 1]; // EQ LT LE UNORD NEQ NLT NLE ORD of 1 and 2
        for (predicate, expected) in (0..).zip(below) {
            let mask = cmpsd(&mut state, one, two, predicate) as u64;
            assert_eq!(mask, if expected == 1 { u64::MAX } else { 0 }, "predicate {predicate}");
        }
    }

    #[test]
    fn rounding_by_immediate_and_by_mxcsr() {
        let mut state = CpuState::new();
        let value = u128::from((-2.5_f64).to_bits());
        for (immediate, expected) in [(0, -2.0_f64), (1, -3.0), (2, -2.0), (3, -2.0)] {
            assert_eq!(roundsd(&mut state, 0, value, immediate | 8) as u64, expected.to_bits());
        }
        assert_eq!(state.mxcsr, 0x1f80, "bit 3 suppresses the precision exception");
        state.mxcsr |= 1 << 13;
        assert_eq!(roundsd(&mut state, 0, value, 4) as u64, (-3.0_f64).to_bits());
        assert_eq!(state.mxcsr & 0x3f, 0x20);
    }
}
