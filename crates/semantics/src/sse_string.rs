//! PCMPESTRI, PCMPESTRM, PCMPISTRI, PCMPISTRM (SDM Vol. 1 5.11.1, Vol. 2 4.1).
//!
//! The comparison itself is the host's PCMPESTRM, giving a bit per element; lengths, index, mask and flags follow from
//! it by the definition. Lengths go in, and flags come out, through the extra operand.

use core::arch::{asm, x86_64::__m128i};

use x86::{CpuState, Width};

use crate::{
    Flag, Insn, Machine, Register,
    helper::VectorOp,
    native::{register, value},
    vector::{self, EXTRA_OPERAND, extra_operand},
};

/// Immediate bit 0: elements are words.
const WORDS: u8 = 1 << 0;
/// Immediate bits that select the comparison (the others select the output).
const COMPARISON: u8 = 0x3f;
/// Immediate bit 6: the last index rather than the first; a mask of elements rather than of bits.
const LAST_OR_EXPANDED: u8 = 1 << 6;

/// IntRes2: one bit an element. Lengths are 0..=16.
fn compare(a: __m128i, a_length: u8, b: __m128i, b_length: u8, immediate: u8) -> u16 {
    macro_rules! encodings {
        ($($n:literal)*) => {
            match immediate & COMPARISON {
                $($n => {
                    let result;
                    // SAFETY: the instruction touches the named registers and flags only; the host has it
                    // (native::required_host_features).
                    unsafe {
                        asm!(
                            concat!("pcmpestrm {a}, {b}, ", $n),
                            a = in(xmm_reg) a,
                            b = in(xmm_reg) b,
                            in("eax") u32::from(a_length),
                            in("edx") u32::from(b_length),
                            out("xmm0") result,
                            options(pure, nomem, nostack),
                        );
                    }
                    value(result) as u16
                })*
                _ => 0,
            }
        };
    }
    encodings!(
        0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 29 30 31
        32 33 34 35 36 37 38 39 40 41 42 43 44 45 46 47 48 49 50 51 52 53 54 55 56 57 58 59 60 61 62 63
    )
}

/// Number of elements.
fn elements(immediate: u8) -> u8 {
    if immediate & WORDS == 0 { 16 } else { 8 }
}

/// Elements before the first that is zero.
fn implicit_length(vector: u128, immediate: u8) -> u8 {
    let bits = 128 / u32::from(elements(immediate));
    let element = u128::MAX >> (128 - bits);
    (0..elements(immediate))
        .find(|n| vector >> (u32::from(*n) * bits) & element == 0)
        .unwrap_or(elements(immediate))
}

/// The magnitude of a register, at most the number of elements.
fn explicit_length(length: u64, immediate: u8) -> u8 {
    (length as i64).unsigned_abs().min(u64::from(elements(immediate))) as u8
}

/// Compares, leaves the flags (at their RFLAGS positions) in the extra operand, and gives IntRes2.
fn compare_with_flags(
    state: &mut CpuState,
    a: u128,
    a_length: u8,
    b: u128,
    b_length: u8,
    immediate: u8,
) -> u16 {
    let bits = compare(register(a), a_length, register(b), b_length, immediate);
    let full = elements(immediate);
    state.scratch[6] = u64::from(bits != 0)
        | u64::from(b_length < full) << 6
        | u64::from(a_length < full) << 7
        | u64::from(bits & 1) << 11;
    bits
}

fn index(bits: u16, immediate: u8) -> u128 {
    if bits == 0 {
        u128::from(elements(immediate))
    } else if immediate & LAST_OR_EXPANDED == 0 {
        u128::from(bits.trailing_zeros())
    } else {
        u128::from(15 - bits.leading_zeros())
    }
}

fn mask(bits: u16, immediate: u8) -> u128 {
    if immediate & LAST_OR_EXPANDED == 0 {
        return u128::from(bits);
    }
    let width = 128 / u32::from(elements(immediate));
    let element = u128::MAX >> (128 - width);
    (0..u32::from(elements(immediate)))
        .filter(|n| bits >> n & 1 != 0)
        .fold(0, |mask, n| mask | element << (n * width))
}

fn compare_implicit(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u16 {
    let (a_length, b_length) = (implicit_length(a, immediate), implicit_length(b, immediate));
    compare_with_flags(state, a, a_length, b, b_length, immediate)
}

fn compare_explicit(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u16 {
    let (rax, rdx) = extra_operand(state);
    let (a_length, b_length) = (explicit_length(rax, immediate), explicit_length(rdx, immediate));
    compare_with_flags(state, a, a_length, b, b_length, immediate)
}

/// PCMPISTRI: the index.
pub fn pcmpistri(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    index(compare_implicit(state, a, b, immediate), immediate)
}

/// PCMPISTRM: the mask.
pub fn pcmpistrm(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    mask(compare_implicit(state, a, b, immediate), immediate)
}

/// PCMPESTRI: the index.
pub fn pcmpestri(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    index(compare_explicit(state, a, b, immediate), immediate)
}

/// PCMPESTRM: the mask.
pub fn pcmpestrm(state: &mut CpuState, a: u128, b: u128, immediate: u8) -> u128 {
    mask(compare_explicit(state, a, b, immediate), immediate)
}

/// Runs the operation and sets the flags. `lengths`: the width of RAX and RDX, for the explicit forms.
fn compare_operands<M: Machine>(
    m: &mut M,
    i: &Insn,
    op: VectorOp,
    lengths: Option<Width>,
) -> Result<M::Vector, M::Stop> {
    const RAX: u8 = 0;
    const RDX: u8 = 2;
    vector::check_sse(m)?;
    let a = vector::read(m, i, 0, false)?;
    let b = vector::read(m, i, 1, false)?;
    if let Some(width) = lengths {
        let [a_length, b_length] = [RAX, RDX].map(|index| {
            let length = m.gpr(Register::new(index, width));
            m.resize_signed(width, Width::Qword, length)
        });
        vector::set_extra_operand(m, a_length, b_length);
    }
    let result = m.vector_op(op, a, b, i.immediate as u8)?;
    let flags = m.state(EXTRA_OPERAND, Width::Qword);
    let values = [(Flag::Carry, 0), (Flag::Zero, 6), (Flag::Sign, 7), (Flag::Overflow, 11)]
        .map(|(flag, position)| (flag, m.bit(Width::Qword, flags, position)));
    vector::set_flags(m, &values);
    Ok(result)
}

/// The index goes to ECX (RCX is cleared above it).
fn compare_to_index<M: Machine>(
    m: &mut M,
    i: &Insn,
    op: VectorOp,
    lengths: Option<Width>,
) -> Result<(), M::Stop> {
    const RCX: u8 = 1;
    let result = compare_operands(m, i, op, lengths)?;
    let index = m.lane(Width::Dword, result, 0);
    m.set_gpr(Register::new(RCX, Width::Dword), index);
    Ok(())
}

/// The mask goes to XMM0.
fn compare_to_mask<M: Machine>(
    m: &mut M,
    i: &Insn,
    op: VectorOp,
    lengths: Option<Width>,
) -> Result<(), M::Stop> {
    let result = compare_operands(m, i, op, lengths)?;
    m.set_xmm(0, result);
    Ok(())
}

/// Strings that end at the first zero element; the index of a match.
pub fn implicit_to_index<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_index(m, i, op, None)
}

/// Strings that end at the first zero element; the mask of matches.
pub fn implicit_to_mask<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_mask(m, i, op, None)
}

/// Strings with lengths in EAX and EDX; the index of a match.
pub fn explicit_to_index<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_index(m, i, op, Some(Width::Dword))
}

/// Strings with lengths in EAX and EDX; the mask of matches.
pub fn explicit_to_mask<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_mask(m, i, op, Some(Width::Dword))
}

/// Strings with lengths in RAX and RDX; the index of a match.
pub fn explicit64_to_index<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_index(m, i, op, Some(Width::Qword))
}

/// Strings with lengths in RAX and RDX; the mask of matches.
pub fn explicit64_to_mask<M: Machine>(m: &mut M, i: &Insn, op: VectorOp) -> Result<(), M::Stop> {
    compare_to_mask(m, i, op, Some(Width::Qword))
}

#[cfg(test)]
mod tests {
    use core::arch::x86_64 as arch;

    use super::*;

    /// Strings with and without terminators, equal and not, and with high bytes for the signed forms.
    const STRINGS: [&[u8; 16]; 6] = [
        b"abcdefghijklmnop",
        b"bca\0zzzzzzzzzzzz",
        b"az\0AZ\0\0\0\0\0\0\0\0\0\0\0",
        b"\0bcdefghijklmnop",
        b"\x80\xff\x01\x7f\x00\x01\xfe\xdc\x80\xff\x01\x7f\x00\x01\xfe\xdc",
        b"defdefdefdefdefa",
    ];
    const LENGTHS: [i32; 9] = [0, 1, 3, 7, 8, 15, 16, 17, -5];

    macro_rules! against_the_instruction {
        ($($n:literal)*) => {$(
            for a in STRINGS.map(|s| u128::from_le_bytes(*s)) {
                for b in STRINGS.map(|s| u128::from_le_bytes(*s)) {
                    // SAFETY: the tests run on a host that has SSE4.2.
                    unsafe { check_implicit::<$n>(a, b); check_explicit::<$n>(a, b); }
                }
            }
        )*};
    }

    #[target_feature(enable = "sse4.2")]
    fn check_implicit<const N: i32>(a: u128, b: u128) {
        let mut state = CpuState::new();
        let (x, y) = (register(a), register(b));
        let expected = arch::_mm_cmpistri::<N>(x, y) as u128;
        assert_eq!(pcmpistri(&mut state, a, b, N as u8), expected, "pcmpistri {N:#x} {a:x} {b:x}");
        let flags = arch::_mm_cmpistrc::<N>(x, y)
            | arch::_mm_cmpistrz::<N>(x, y) << 6
            | arch::_mm_cmpistrs::<N>(x, y) << 7
            | arch::_mm_cmpistro::<N>(x, y) << 11;
        assert_eq!(state.scratch[6], flags as u64, "flags {N:#x} {a:x} {b:x}");
        let expected = value(arch::_mm_cmpistrm::<N>(x, y));
        assert_eq!(pcmpistrm(&mut state, a, b, N as u8), expected, "pcmpistrm {N:#x} {a:x} {b:x}");
    }

    #[target_feature(enable = "sse4.2")]
    fn check_explicit<const N: i32>(a: u128, b: u128) {
        let mut state = CpuState::new();
        let (x, y) = (register(a), register(b));
        for la in LENGTHS {
            for lb in LENGTHS {
                let lengths = (i64::from(la) as u64, i64::from(lb) as u64);
                (state.scratch[6], state.scratch[7]) = lengths;
                let expected = arch::_mm_cmpestri::<N>(x, la, y, lb) as u128;
                assert_eq!(pcmpestri(&mut state, a, b, N as u8), expected, "pcmpestri {N:#x} {la} {lb}");
                let flags = arch::_mm_cmpestrc::<N>(x, la, y, lb)
                    | arch::_mm_cmpestrz::<N>(x, la, y, lb) << 6
                    | arch::_mm_cmpestrs::<N>(x, la, y, lb) << 7
                    | arch::_mm_cmpestro::<N>(x, la, y, lb) << 11;
                assert_eq!(state.scratch[6], flags as u64, "flags {N:#x} {la} {lb}");
                (state.scratch[6], state.scratch[7]) = lengths;
                let expected = value(arch::_mm_cmpestrm::<N>(x, la, y, lb));
                assert_eq!(pcmpestrm(&mut state, a, b, N as u8), expected, "pcmpestrm {N:#x} {la} {lb}");
            }
        }
    }

    #[test]
    fn every_comparison_gives_the_instructions_index_mask_and_flags() {
        against_the_instruction!(
            0x00 0x01 0x02 0x03 0x04 0x05 0x06 0x07 0x08 0x09 0x0a 0x0b 0x0c 0x0d 0x0e 0x0f
            0x10 0x12 0x14 0x18 0x19 0x1a 0x1c 0x1f 0x30 0x31 0x34 0x38 0x39 0x3a 0x3b 0x3d
            0x40 0x41 0x44 0x46 0x48 0x4a 0x4c 0x4d 0x58 0x5a 0x5b 0x70 0x74 0x78 0x7a 0x7f
        );
    }
}
