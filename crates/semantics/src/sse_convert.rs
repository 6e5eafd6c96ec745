//! Conversions between floating-point formats and integers (SDM Vol. 1 5.5.1, 5.6.1): the vector operations, and the
//! definitions of those that convert between XMM and MMX registers.

use x86::{CpuState, Width};

use crate::{
    Insn, Machine, Operand,
    helper::VectorOp,
    mmx,
    mxcsr::{control, finish, float, tiny, with_mxcsr},
    native::register,
    vector,
};

float! {
    cvtps2pd = "cvtps2pd", none;
    cvtpd2ps = "cvtpd2ps", ps;
    cvtss2sd = "cvtss2sd", none;
    cvtsd2ss = "cvtsd2ss", ss;
    cvtdq2ps = "cvtdq2ps", none;
    cvtdq2pd = "cvtdq2pd", none;
    cvtps2dq = "cvtps2dq", none;
    cvttps2dq = "cvttps2dq", none;
    cvtpd2dq = "cvtpd2dq", none;
    cvttpd2dq = "cvttpd2dq", none;
}

/// `name = "mnemonic";`: the low qword of `b`, a signed integer, into the low element of `a`. A dword, sign-extended,
/// gives the same as its own encoding.
macro_rules! from_integer {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " a, r64`")]
        pub fn $name(state: &mut CpuState, a: u128, b: u128, _: u8) -> u128 {
            let mut control = control(state);
            let mut result = register(a);
            with_mxcsr!(
                control,
                concat!($mnemonic, " {a}, {b}"),
                a = inout(xmm_reg) result,
                b = in(reg) b as u64,
            );
            finish(state, control, crate::native::value(result), tiny::none)
        }
    )*};
}

from_integer! {
    cvtsi2ss = "cvtsi2ss";
    cvtsi2sd = "cvtsi2sd";
}

/// `name = "mnemonic";`: the low element of `b` as a signed integer of `immediate` bytes, 4 or 8.
macro_rules! to_integer {
    ($($name:ident = $mnemonic:literal;)*) => {$(
        #[doc = concat!("`", $mnemonic, " r32/r64, b`")]
        pub fn $name(state: &mut CpuState, _: u128, b: u128, immediate: u8) -> u128 {
            let mut control = control(state);
            let result: u64;
            let b = register(b);
            if immediate == 8 {
                with_mxcsr!(
                    control,
                    concat!($mnemonic, " {a}, {b}"),
                    a = out(reg) result,
                    b = in(xmm_reg) b,
                );
            } else {
                with_mxcsr!(
                    control,
                    concat!($mnemonic, " {a:e}, {b}"),
                    a = out(reg) result,
                    b = in(xmm_reg) b,
                );
            }
            finish(state, control, u128::from(result), tiny::none)
        }
    )*};
}

to_integer! {
    cvtss2si = "cvtss2si";
    cvttss2si = "cvttss2si";
    cvtsd2si = "cvtsd2si";
    cvttsd2si = "cvttsd2si";
}

/// The destination of MMX conversions to floating point: an XMM register.
fn xmm_destination<M: Machine>(m: &mut M, i: &Insn) -> Result<u8, M::Stop> {
    match i.operand(0) {
        Operand::Xmm(index) => Ok(index),
        _ => Err(m.decline("destination is not an XMM register")),
    }
}

/// CVTPI2PS: two dwords into the low half; the high half stays.
pub fn cvtpi2ps<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::begin_both(m)?;
    let destination = xmm_destination(m, i)?;
    let source = vector::read(m, i, 1, true)?;
    let result = m.vector_op(VectorOp::Cvtdq2ps, source, source, 0)?;
    mmx::enter(m);
    let result = m.lane(Width::Qword, result, 0);
    let old = m.xmm(destination);
    let result = m.with_lane(Width::Qword, old, 0, result);
    m.set_xmm(destination, result);
    Ok(())
}

/// CVTPI2PD. With a memory operand it leaves the x87 state alone.
pub fn cvtpi2pd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    if vector::uses_mmx(i) {
        mmx::check(m)?;
    }
    let destination = xmm_destination(m, i)?;
    let source = vector::read(m, i, 1, true)?;
    let result = m.vector_op(VectorOp::Cvtdq2pd, source, source, 0)?;
    if vector::uses_mmx(i) {
        mmx::enter(m);
    }
    m.set_xmm(destination, result);
    Ok(())
}

/// Two elements to dwords in an MMX register.
fn to_mmx<M: Machine>(m: &mut M, i: &Insn, op: VectorOp, both_halves: bool) -> Result<(), M::Stop> {
    vector::begin_both(m)?;
    let mut source = vector::read(m, i, 1, true)?;
    if !both_halves {
        let half = m.lane(Width::Qword, source, 0);
        source = vector::low(m, Width::Qword, half);
    }
    let result = m.vector_op(op, source, source, 0)?;
    let Operand::Mm(destination) = i.operand(0) else {
        return Err(m.decline("destination is not an MMX register"));
    };
    let result = m.lane(Width::Qword, result, 0);
    mmx::write(m, destination, result);
    Ok(())
}

/// CVTPS2PI.
pub fn cvtps2pi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    to_mmx(m, i, VectorOp::Cvtps2dq, false)
}

/// CVTTPS2PI.
pub fn cvttps2pi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    to_mmx(m, i, VectorOp::Cvttps2dq, false)
}

/// CVTPD2PI.
pub fn cvtpd2pi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    to_mmx(m, i, VectorOp::Cvtpd2dq, true)
}

/// CVTTPD2PI.
pub fn cvttpd2pi<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    to_mmx(m, i, VectorOp::Cvttpd2dq, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_that_do_not_fit_are_indefinite() {
        let mut state = CpuState::new();
        let large = u128::from(3e9_f64.to_bits());
        assert_eq!(cvttsd2si(&mut state, 0, large, 8), 3_000_000_000);
        assert_eq!(state.mxcsr & 1, 0);
        assert_eq!(cvttsd2si(&mut state, 0, large, 4), 0x8000_0000);
        assert_eq!(state.mxcsr & 1, 1);
    }

    #[test]
    fn conversions_round_as_mxcsr_says_or_truncate() {
        let mut state = CpuState::new();
        let value = u128::from(2.5_f32.to_bits());
        assert_eq!(cvtss2si(&mut state, 0, value, 4), 2);
        state.mxcsr |= 2 << 13;
        assert_eq!(cvtss2si(&mut state, 0, value, 4), 3);
        assert_eq!(cvttss2si(&mut state, 0, value, 4), 2);
    }

    #[test]
    fn the_rest_of_a_scalar_destination_stays() {
        let mut state = CpuState::new();
        let old = 0x1111_2222_3333_4444_5555_6666_7777_8888;
        let expected = old & !u128::from(u64::MAX) | u128::from((-7.0_f64).to_bits());
        assert_eq!(cvtsi2sd(&mut state, old, -7_i64 as u64 as u128, 0), expected);
        let expected = old & !u128::from(u32::MAX) | u128::from(0.5_f32.to_bits());
        assert_eq!(cvtsd2ss(&mut state, old, u128::from(0.5_f64.to_bits()), 0), expected);
    }
}
