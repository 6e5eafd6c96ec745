//! The vector operations that have CLIF of their own: packed integers, logic, and moves of elements.
//!
//! Cranelift lowers each of these to the SSE instruction that it came from, or to a few.

use cranelift_codegen::ir::{Constant, InstBuilder, Type, Value, condcodes::IntCC, types};
use semantics::helper::VectorOp as Op;
use x86::Width;

use super::{Lifter, vector::lanes};

use Width::{Byte, Dword, Qword, Word};

/// A packed shift.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Shift {
    Left,
    Right,
    RightSigned,
}

impl Lifter<'_> {
    /// Emits an operation, if it is one that is emitted. The result may have any shape.
    pub(super) fn inline_vector(&mut self, op: Op, a: Value, b: Value, immediate: u8) -> Option<Value> {
        self.arithmetic(op, a, b)
            .or_else(|| self.comparison(op, a, b))
            .or_else(|| self.shift(op, a, b, immediate))
            .or_else(|| self.element_moves(op, a, b, immediate))
            .or_else(|| self.conversion(op, a, b))
            .or_else(|| self.mask(op, a, b))
    }

    /// Applies an instruction to both operands in the shape of `width`.
    fn shaped(
        &mut self,
        width: Width,
        a: Value,
        b: Value,
        emit: impl FnOnce(&mut Self, Value, Value) -> Value,
    ) -> Option<Value> {
        let (a, b) = (self.cast(lanes(width), a), self.cast(lanes(width), b));
        Some(emit(self, a, b))
    }

    fn arithmetic(&mut self, op: Op, a: Value, b: Value) -> Option<Value> {
        let element = match op {
            Op::Paddb | Op::Psubb | Op::Paddsb | Op::Psubsb | Op::Paddusb | Op::Psubusb | Op::Pavgb => Byte,
            Op::Paddw | Op::Psubw | Op::Paddsw | Op::Psubsw | Op::Paddusw | Op::Psubusw | Op::Pavgw => Word,
            Op::Pmullw => Word,
            Op::Paddd | Op::Psubd | Op::Pmulld => Dword,
            Op::Paddq | Op::Psubq => Qword,
            Op::Pand | Op::Pandn | Op::Por | Op::Pxor => Byte,
            _ => return None,
        };
        self.shaped(element, a, b, |l, a, b| {
            let ins = l.b.ins();
            match op {
                Op::Paddb | Op::Paddw | Op::Paddd | Op::Paddq => ins.iadd(a, b),
                Op::Psubb | Op::Psubw | Op::Psubd | Op::Psubq => ins.isub(a, b),
                Op::Paddsb | Op::Paddsw => ins.sadd_sat(a, b),
                Op::Psubsb | Op::Psubsw => ins.ssub_sat(a, b),
                Op::Paddusb | Op::Paddusw => ins.uadd_sat(a, b),
                Op::Psubusb | Op::Psubusw => ins.usub_sat(a, b),
                Op::Pavgb | Op::Pavgw => ins.avg_round(a, b),
                Op::Pmullw | Op::Pmulld => ins.imul(a, b),
                Op::Pand => ins.band(a, b),
                Op::Pandn => ins.band_not(b, a),
                Op::Por => ins.bor(a, b),
                _ => ins.bxor(a, b),
            }
        })
    }

    fn comparison(&mut self, op: Op, a: Value, b: Value) -> Option<Value> {
        let element = match op {
            Op::Pcmpeqb | Op::Pcmpgtb | Op::Pminub | Op::Pmaxub | Op::Pminsb | Op::Pmaxsb => Byte,
            Op::Pcmpeqw | Op::Pcmpgtw | Op::Pminuw | Op::Pmaxuw | Op::Pminsw | Op::Pmaxsw => Word,
            Op::Pcmpeqd | Op::Pcmpgtd | Op::Pminud | Op::Pmaxud | Op::Pminsd | Op::Pmaxsd => Dword,
            Op::Pcmpeqq | Op::Pcmpgtq => Qword,
            _ => return None,
        };
        self.shaped(element, a, b, |l, a, b| {
            let ins = l.b.ins();
            match op {
                Op::Pcmpeqb | Op::Pcmpeqw | Op::Pcmpeqd | Op::Pcmpeqq => ins.icmp(IntCC::Equal, a, b),
                Op::Pcmpgtb | Op::Pcmpgtw | Op::Pcmpgtd | Op::Pcmpgtq => {
                    ins.icmp(IntCC::SignedGreaterThan, a, b)
                }
                Op::Pminub | Op::Pminuw | Op::Pminud => ins.umin(a, b),
                Op::Pmaxub | Op::Pmaxuw | Op::Pmaxud => ins.umax(a, b),
                Op::Pminsb | Op::Pminsw | Op::Pminsd => ins.smin(a, b),
                _ => ins.smax(a, b),
            }
        })
    }

    /// Shifts whose count is an immediate; others are the host's instructions. Counts are not masked: what is shifted out is gone.
    fn shift(&mut self, op: Op, a: Value, b: Value, immediate: u8) -> Option<Value> {
        let (element, shift) = match op {
            Op::Psllw => (Word, Shift::Left),
            Op::Pslld => (Dword, Shift::Left),
            Op::Psllq => (Qword, Shift::Left),
            Op::Psrlw => (Word, Shift::Right),
            Op::Psrld => (Dword, Shift::Right),
            Op::Psrlq => (Qword, Shift::Right),
            Op::Psraw => (Word, Shift::RightSigned),
            Op::Psrad => (Dword, Shift::RightSigned),
            Op::Pslldq | Op::Psrldq => return Some(self.byte_shift(op == Op::Pslldq, a, immediate)),
            _ => return None,
        };
        let count = self.low_half(b);
        let count = self.constant_of(count)?;
        let bits = u64::from(element.bits());
        if count >= bits && shift != Shift::RightSigned {
            return Some(self.zero_vector(lanes(element)));
        }
        let count = self.iconst(types::I32, count.min(bits - 1));
        let a = self.cast(lanes(element), a);
        Some(match shift {
            Shift::Left => self.b.ins().ishl(a, count),
            Shift::Right => self.b.ins().ushr(a, count),
            Shift::RightSigned => self.b.ins().sshr(a, count),
        })
    }

    /// All 16 bytes at once, in zeros.
    fn byte_shift(&mut self, left: bool, a: Value, count: u8) -> Value {
        let zero = self.zero_vector(types::I8X16);
        if count > 15 {
            zero
        } else if left {
            self.window(a, zero, 16 - count)
        } else {
            self.window(zero, a, count)
        }
    }

    /// 16 bytes of `high:low` from byte `first` on, which is 16 at most.
    fn window(&mut self, high: Value, low: Value, first: u8) -> Value {
        self.bytes(low, high, |n| first + n)
    }

    /// Each byte of the result from the byte of that number: 0..16 are `a`'s, 16..32 are `b`'s.
    fn bytes(&mut self, a: Value, b: Value, from: impl Fn(u8) -> u8) -> Value {
        let mask: [u8; 16] = core::array::from_fn(|n| from(n as u8));
        let mask = self.b.func.dfg.immediates.push(mask.as_slice().into());
        self.b.ins().shuffle(a, b, mask)
    }

    /// Each element of the result from the element of that number; `b`'s follow `a`'s.
    fn elements(&mut self, width: Width, a: Value, b: Value, from: impl Fn(u8) -> u8) -> Value {
        let size = width.bytes() as u8;
        self.bytes(a, b, |n| from(n / size) * size + n % size)
    }

    fn element_moves(&mut self, op: Op, a: Value, b: Value, i: u8) -> Option<Value> {
        let two_bits = move |n: u8| i >> (2 * n) & 3;
        // Elements of the low or high halves, alternating.
        let unpack =
            |count: u8, high: bool| move |n: u8| n / 2 + (n & 1) * count + if high { count / 2 } else { 0 };
        let blend = |count: u8| move |n: u8| n + if i >> n & 1 != 0 { count } else { 0 };
        Some(match op {
            Op::Punpcklbw => self.elements(Byte, a, b, unpack(16, false)),
            Op::Punpcklwd => self.elements(Word, a, b, unpack(8, false)),
            Op::Punpckldq => self.elements(Dword, a, b, unpack(4, false)),
            Op::Punpcklqdq => self.elements(Qword, a, b, unpack(2, false)),
            Op::Punpckhbw => self.elements(Byte, a, b, unpack(16, true)),
            Op::Punpckhwd => self.elements(Word, a, b, unpack(8, true)),
            Op::Punpckhdq => self.elements(Dword, a, b, unpack(4, true)),
            Op::Punpckhqdq => self.elements(Qword, a, b, unpack(2, true)),
            Op::Pshufd => self.elements(Dword, b, b, two_bits),
            Op::Pshuflw => self.elements(Word, b, b, |n| if n < 4 { two_bits(n) } else { n }),
            Op::Pshufhw => self.elements(Word, b, b, |n| if n < 4 { n } else { 4 + two_bits(n - 4) }),
            Op::Shufps => self.elements(Dword, a, b, |n| two_bits(n) + if n < 2 { 0 } else { 4 }),
            Op::Shufpd => self.elements(Qword, a, b, |n| (i >> n & 1) + 2 * n),
            Op::Pblendw => self.elements(Word, a, b, blend(8)),
            Op::Blendps => self.elements(Dword, a, b, blend(4)),
            Op::Blendpd => self.elements(Qword, a, b, blend(2)),
            Op::Movddup => self.elements(Qword, b, b, |_| 0),
            Op::Movshdup => self.elements(Dword, b, b, |n| n | 1),
            Op::Movsldup => self.elements(Dword, b, b, |n| n & !1),
            Op::Palignr => match i {
                0..=16 => self.window(a, b, i),
                17..=31 => self.byte_shift(false, a, i - 16),
                _ => self.zero_vector(types::I8X16),
            },
            Op::Pshufb => self.b.ins().x86_pshufb(a, b),
            _ => return None,
        })
    }

    fn conversion(&mut self, op: Op, a: Value, b: Value) -> Option<Value> {
        let (from, to, signed) = match op {
            Op::Pmovsxbw => (Byte, Word, true),
            Op::Pmovsxbd => (Byte, Dword, true),
            Op::Pmovsxbq => (Byte, Qword, true),
            Op::Pmovsxwd => (Word, Dword, true),
            Op::Pmovsxwq => (Word, Qword, true),
            Op::Pmovsxdq => (Dword, Qword, true),
            Op::Pmovzxbw => (Byte, Word, false),
            Op::Pmovzxbd => (Byte, Dword, false),
            Op::Pmovzxbq => (Byte, Qword, false),
            Op::Pmovzxwd => (Word, Dword, false),
            Op::Pmovzxwq => (Word, Qword, false),
            Op::Pmovzxdq => (Dword, Qword, false),
            Op::Packsswb => return self.shaped(Word, a, b, |l, a, b| l.b.ins().snarrow(a, b)),
            Op::Packssdw => return self.shaped(Dword, a, b, |l, a, b| l.b.ins().snarrow(a, b)),
            Op::Packuswb => return self.shaped(Word, a, b, |l, a, b| l.b.ins().unarrow(a, b)),
            Op::Packusdw => return self.shaped(Dword, a, b, |l, a, b| l.b.ins().unarrow(a, b)),
            Op::Pabsb => return self.shaped(Byte, b, b, |l, b, _| l.b.ins().iabs(b)),
            Op::Pabsw => return self.shaped(Word, b, b, |l, b, _| l.b.ins().iabs(b)),
            Op::Pabsd => return self.shaped(Dword, b, b, |l, b, _| l.b.ins().iabs(b)),
            _ => return None,
        };
        let mut value = self.cast(lanes(from), b);
        let mut bytes = from.bytes();
        while bytes < to.bytes() {
            value = if signed { self.b.ins().swiden_low(value) } else { self.b.ins().uwiden_low(value) };
            bytes *= 2;
        }
        Some(value)
    }

    /// Masks of signs, and operations whose result is an integer in the low half.
    fn mask(&mut self, op: Op, a: Value, b: Value) -> Option<Value> {
        let signs = |l: &mut Self, width: Width| {
            let a = l.cast(lanes(width), a);
            let zero = l.zero_vector(lanes(width));
            Some(l.b.ins().icmp(IntCC::SignedGreaterThan, zero, a))
        };
        let bits = |l: &mut Self, width: Width| {
            let b = l.cast(lanes(width), b);
            l.b.ins().vhigh_bits(types::I64, b)
        };
        let low = match op {
            Op::SignBytes => return signs(self, Byte),
            Op::SignDwords => return signs(self, Dword),
            Op::SignQwords => return signs(self, Qword),
            Op::Pmovmskb => bits(self, Byte),
            Op::Movmskps => bits(self, Dword),
            Op::Movmskpd => bits(self, Qword),
            Op::Ptest => {
                // ZF at bit 6, CF at bit 0.
                let common = self.b.ins().band(a, b);
                let missing = self.b.ins().band_not(b, a);
                let zero = self.none_set(common);
                let carry = self.none_set(missing);
                let zero = self.b.ins().ishl_imm_u(zero, 6);
                self.b.ins().bor(zero, carry)
            }
            _ => return None,
        };
        let zero = self.word(0);
        Some(self.vector_from_halves(low, zero))
    }

    /// 1 if no bit is set, else 0, in 64 bits.
    fn none_set(&mut self, vector: Value) -> Value {
        let any = self.b.ins().vany_true(vector);
        let none = self.b.ins().bxor_imm_u(any, 1);
        self.extend(none)
    }

    fn zero_vector(&mut self, ty: Type) -> Value {
        let zero: Constant = self.b.func.dfg.constants.insert([0; 16].as_slice().into());
        self.b.ins().vconst(ty, zero)
    }
}
