//! [`LazyFlags`]: the status flags as the operands of what set them last, not yet computed.
//!
//! Only compiled code leaves flags so, at its edges, because hardly anything looks at them there: two or three stores take
//! the place of what computing six words costs. While `kind` is not [`LazyFlags::SETTLED`], the words of [`Flags`] in
//! [`crate::CpuState`] mean nothing. Whoever enters compiled code from Rust settles them when it returns, so
//! interpreter, monitor and board never see them; compiled code that wants an incoming flag settles them itself.

use crate::{Flags, Width};

/// What set the flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Form {
    /// `a + b`.
    Add = 1,
    /// `a - b`.
    Sub = 2,
    /// `a + b + c`, c being 0 or 1.
    AddCarry = 3,
    /// `a - b - c`, c being 0 or 1.
    SubBorrow = 4,
    /// AND, OR, XOR, TEST with the result `a`.
    Logic = 5,
    /// INC with the result `a`; CF is `c`, 0 or 1.
    Increment = 6,
    /// DEC with the result `a`; CF is `c`, 0 or 1.
    Decrement = 7,
    /// What LAHF and SETO AL leave in AX: bits 15..8 of `a` as LAHF has them, bit 0 is OF, bits 7..1 are clear. The width
    /// does not count.
    Packed = 8,
}

impl Form {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Add,
        Self::Sub,
        Self::AddCarry,
        Self::SubBorrow,
        Self::Logic,
        Self::Increment,
        Self::Decrement,
        Self::Packed,
    ];

    /// The number in [`LazyFlags::kind`] for this form at a width.
    pub const fn kind(self, width: Width) -> u64 {
        (self as u64) << 8 | width.bits() as u64
    }

    /// Form and bits of the width of a kind; `None` if it is none.
    fn of(kind: u64) -> Option<(Self, u32)> {
        let form = Self::ALL.into_iter().find(|&form| form as u64 == kind >> 8)?;
        let bits = (kind & 0xff) as u32;
        matches!(bits, 8 | 16 | 32 | 64).then_some((form, bits))
    }
}

/// See the module's description. Of the operands, only the low bits as wide as the operation count.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct LazyFlags {
    /// [`LazyFlags::SETTLED`], or a [`Form::kind`].
    pub kind: u64,
    /// First operand, or the result.
    pub a: u64,
    /// Second operand.
    pub b: u64,
    /// Carry that went in, or stays.
    pub c: u64,
}

impl LazyFlags {
    /// The words of [`Flags`] are the truth.
    pub const SETTLED: u64 = 0;

    /// The kind of packed flags that are [`LazyFlags::packed`] here or by the template translator.
    pub const PACKED: u64 = Form::Packed.kind(Width::Word);

    /// Flags in the form of LAHF and SETO.
    pub fn packed(flags: Flags) -> Self {
        let bits = flags.to_bits();
        Self { kind: Self::PACKED, a: (bits & 0xff) << 8 | bits >> 11 & 1, ..Self::default() }
    }

    /// The flags, computed. `None` if they are settled.
    pub fn settle(&self) -> Option<Flags> {
        let (form, bits) = Form::of(self.kind)?;
        let unused = 64 - bits;
        let cut = |value: u64| value << unused >> unused;
        let (a, b, c) = (cut(self.a), cut(self.b), self.c & 1);
        let one = cut(1);
        Some(match form {
            Form::Add => sum(bits, a, b, 0),
            Form::AddCarry => sum(bits, a, b, c),
            Form::Sub => difference(bits, a, b, 0),
            Form::SubBorrow => difference(bits, a, b, c),
            Form::Logic => of_result(bits, a),
            Form::Increment => Flags { carry: c, ..sum(bits, cut(a.wrapping_sub(one)), one, 0) },
            Form::Decrement => Flags { carry: c, ..difference(bits, cut(a.wrapping_add(one)), one, 0) },
            Form::Packed => Flags::from_bits(self.a >> 8 & 0xff | (self.a & 1) << 11),
        })
    }
}

/// ZF, SF and PF of a result; the others clear.
fn of_result(bits: u32, result: u64) -> Flags {
    Flags { zero: result, sign: result << (64 - bits), parity: result, ..Flags::default() }
}

fn sum(bits: u32, a: u64, b: u64, carry: u64) -> Flags {
    let wide = u128::from(a) + u128::from(b) + u128::from(carry);
    let result = (wide as u64) << (64 - bits) >> (64 - bits);
    Flags {
        carry: (wide >> bits) as u64 & 1,
        adjust: a ^ b ^ result,
        overflow: ((a ^ result) & (b ^ result)) << (64 - bits),
        ..of_result(bits, result)
    }
}

fn difference(bits: u32, a: u64, b: u64, borrow: u64) -> Flags {
    let result = a.wrapping_sub(b).wrapping_sub(borrow) << (64 - bits) >> (64 - bits);
    Flags {
        carry: u64::from(u128::from(a) < u128::from(b) + u128::from(borrow)),
        adjust: a ^ b ^ result,
        overflow: ((a ^ b) & (a ^ result)) << (64 - bits),
        ..of_result(bits, result)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flags::{AF, CF, OF, PF, SF, ZF};

    fn settled(form: Form, width: Width, a: u64, b: u64, c: u64) -> u64 {
        LazyFlags { kind: form.kind(width), a, b, c }.settle().unwrap().to_bits()
    }

    #[test]
    fn settled_flags_have_no_form() {
        assert_eq!(LazyFlags::default().settle(), None);
        assert_eq!(LazyFlags { kind: 9 << 8 | 8, ..LazyFlags::default() }.settle(), None);
    }

    #[test]
    fn sums_at_every_width() {
        for (width, top) in [(Width::Byte, 7), (Width::Word, 15), (Width::Dword, 31), (Width::Qword, 63)] {
            let min = 1u64 << top;
            assert_eq!(settled(Form::Add, width, min, min, 0), CF | ZF | PF | OF);
            assert_eq!(
                settled(Form::Add, width, min - 1, 1, 0),
                SF | OF | AF | if top == 7 { 0 } else { PF }
            );
            assert_eq!(settled(Form::AddCarry, width, u64::MAX, 0, 1), CF | ZF | PF | AF);
            assert_eq!(settled(Form::AddCarry, width, u64::MAX, u64::MAX, 1), CF | SF | PF | AF);
            assert_eq!(settled(Form::Sub, width, 0, 1, 0), CF | SF | PF | AF);
            assert_eq!(settled(Form::Sub, width, min, 1, 0), OF | AF | if top == 7 { 0 } else { PF });
            assert_eq!(settled(Form::SubBorrow, width, 0, u64::MAX, 1), CF | ZF | PF | AF);
            assert_eq!(
                settled(Form::Increment, width, min, 0, 1),
                CF | SF | OF | AF | if top == 7 { 0 } else { PF }
            );
            assert_eq!(settled(Form::Decrement, width, 0, 0, 0), ZF | PF);
            assert_eq!(settled(Form::Logic, width, min, 0, 0), SF | if top == 7 { 0 } else { PF });
        }
    }

    #[test]
    fn operands_are_cut_to_the_width() {
        assert_eq!(settled(Form::Sub, Width::Dword, 0x1_0000_0005, 0x7_0000_0005, 0), ZF | PF);
        assert_eq!(settled(Form::Logic, Width::Byte, 0x1200, 0, 0), ZF | PF);
    }

    #[test]
    fn every_packed_image() {
        for bits in 0..1u64 << 12 {
            let bits = bits & crate::flags::STATUS;
            let ax = (bits & 0xff | 2) << 8 | bits >> 11;
            assert_eq!(settled(Form::Packed, Width::Word, ax, 0, 0), bits);
            assert_eq!(LazyFlags::packed(Flags::from_bits(bits)).settle().unwrap().to_bits(), bits);
        }
    }
}
