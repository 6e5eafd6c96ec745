//! Integer arithmetic that takes more than one CLIF instruction.

use cranelift_codegen::ir::{InstBuilder, Value, condcodes::IntCC, types};
use x86::Width;

use super::{Ended, Lifter, emit::int_type, memory::SCRATCH};
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper};

impl Lifter<'_> {
    /// High half of the product.
    pub(super) fn high_product(&mut self, width: Width, signed: bool, a: Value, b: Value) -> Value {
        match (width, signed) {
            (Width::Qword, true) => self.b.ins().smulhi(a, b),
            (Width::Qword, false) => self.b.ins().umulhi(a, b),
            _ => {
                let (a, b) = if signed {
                    (self.sign_extend(a), self.sign_extend(b))
                } else {
                    (self.extend(a), self.extend(b))
                };
                let product = self.b.ins().imul(a, b);
                let high = self.b.ins().ushr_imm_u(product, i64::from(width.bits()));
                self.reduce(width, high)
            }
        }
    }

    /// a + b + carry and the carry out of it, of 64-bit values.
    pub(super) fn sum_with_carry(&mut self, a: Value, b: Value, carry: Value) -> (Value, Value) {
        if self.constant_of(carry) == Some(0) {
            return self.b.ins().uadd_overflow(a, b);
        }
        // ADD, ADC, SETC: the carry and all ones give the carry that goes into the upper half.
        let (carry, ones) = (self.extend(carry), self.word(u64::MAX));
        let (a, b) = (self.b.ins().iconcat(carry, a), self.b.ins().iconcat(ones, b));
        let (sum, carry) = self.b.ins().uadd_overflow(a, b);
        let (_, sum) = self.b.ins().isplit(sum);
        (sum, carry)
    }

    /// (high:low) / divisor. #DE is left to the interpreter.
    pub(super) fn quotient(
        &mut self,
        width: Width,
        signed: bool,
        high: Value,
        low: Value,
        divisor: Value,
    ) -> Result<(Value, Value), Ended> {
        let zero = self.b.ins().icmp_imm_s(IntCC::Equal, divisor, 0);
        self.abandon_if(zero);
        if width == Width::Qword {
            return Ok(self.wide_quotient(signed, high, low, divisor));
        }
        // Twice the width fits in 64 bits: one 64-bit division, whose quotient may be too wide.
        let upper = self.extend(high);
        let upper = self.b.ins().ishl_imm_u(upper, i64::from(width.bits()));
        let lower = self.extend(low);
        let mut dividend = self.b.ins().bor(upper, lower);
        let unused = i64::from(64 - 2 * width.bits());
        if signed && unused != 0 {
            dividend = self.b.ins().ishl_imm_u(dividend, unused);
            dividend = self.b.ins().sshr_imm_u(dividend, unused);
        }
        let (quotient, wide_divisor) = if signed {
            let divisor = self.sign_extend(divisor);
            self.abandon_if_signed_overflow(dividend, divisor);
            (self.b.ins().sdiv(dividend, divisor), divisor)
        } else {
            let divisor = self.extend(divisor);
            (self.b.ins().udiv(dividend, divisor), divisor)
        };
        let narrow = self.b.ins().ireduce(int_type(width), quotient);
        let back = if signed { self.sign_extend(narrow) } else { self.extend(narrow) };
        let too_wide = self.b.ins().icmp(IntCC::NotEqual, back, quotient);
        self.abandon_if(too_wide);
        let remainder = self.remainder(dividend, quotient, wide_divisor);
        let remainder = self.reduce(width, remainder);
        Ok((narrow, remainder))
    }

    /// The host traps on the most negative number divided by -1.
    fn abandon_if_signed_overflow(&mut self, dividend: Value, divisor: Value) {
        let lowest = self.b.ins().icmp_imm_s(IntCC::Equal, dividend, i64::MIN);
        let minus_one = self.b.ins().icmp_imm_s(IntCC::Equal, divisor, -1);
        let both = self.b.ins().band(lowest, minus_one);
        self.abandon_if(both);
    }

    fn remainder(&mut self, dividend: Value, quotient: Value, divisor: Value) -> Value {
        let product = self.b.ins().imul(quotient, divisor);
        self.b.ins().isub(dividend, product)
    }

    /// 128 by 64 bits: inline if the upper half only extends the lower one, which is what compilers emit.
    fn wide_quotient(&mut self, signed: bool, high: Value, low: Value, divisor: Value) -> (Value, Value) {
        let wide = if signed {
            let sign = self.b.ins().sshr_imm_u(low, 63);
            self.b.ins().icmp(IntCC::NotEqual, high, sign)
        } else {
            self.b.ins().icmp_imm_s(IntCC::NotEqual, high, 0)
        };
        let cold = self.b.create_block();
        let fast = self.b.create_block();
        let met = self.b.create_block();
        let quotient = self.b.append_block_param(met, types::I64);
        let remainder = self.b.append_block_param(met, types::I64);
        self.b.set_cold_block(cold);
        self.b.ins().brif(wide, cold, &[], fast, &[]);

        self.b.switch_to_block(fast);
        let fast_quotient = if signed {
            self.abandon_if_signed_overflow(low, divisor);
            self.b.ins().sdiv(low, divisor)
        } else {
            self.b.ins().udiv(low, divisor)
        };
        let fast_remainder = self.remainder(low, fast_quotient, divisor);
        self.b.ins().jump(met, &[fast_quotient.into(), fast_remainder.into()]);

        self.b.switch_to_block(cold);
        let signed = self.word(signed.into());
        let done = self.call_table(
            FIRST_RUNTIME_HELPER + RuntimeHelper::Divide as usize,
            &[self.cpu, high, low, divisor, signed],
        );
        let fails = self.b.ins().icmp_imm_s(IntCC::Equal, done, 0);
        self.abandon_if(fails);
        let slow_quotient = self.state_load(types::I64, SCRATCH);
        let slow_remainder = self.state_load(types::I64, SCRATCH + 16);
        self.b.ins().jump(met, &[slow_quotient.into(), slow_remainder.into()]);

        self.b.switch_to_block(met);
        (quotient, remainder)
    }
}
