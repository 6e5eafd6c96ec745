//! Status flags: where each comes from, computed only when something asks.
//!
//! An instruction that sets flags notes a [`Source`] for each; no CLIF is emitted. A condition looks at the sources of
//! the flags that it needs: after CMP or SUB it is a comparison of the operands, after logic a comparison of the result
//! with zero, else it is put together from single flags. Only exits and cold paths turn sources into the words that
//! `x86::Flags` keeps.

use core::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, condcodes::IntCC, types};
use semantics::{ConditionCode, Flag};
use x86::{CpuState, Flags, Width};

use super::Lifter;

/// Number of status flags. Their numbers here are the order of the words in [`Flags`].
pub(super) const FLAGS: usize = 6;

pub(super) const CARRY: usize = offset_of!(Flags, carry) / 8;
pub(super) const ZERO: usize = offset_of!(Flags, zero) / 8;
pub(super) const SIGN: usize = offset_of!(Flags, sign) / 8;
pub(super) const PARITY: usize = offset_of!(Flags, parity) / 8;
pub(super) const ADJUST: usize = offset_of!(Flags, adjust) / 8;
pub(super) const OVERFLOW: usize = offset_of!(Flags, overflow) / 8;

/// Where a flag comes from.
#[derive(Clone, Copy, Default, PartialEq)]
pub(super) enum Source {
    /// It is in `CpuState`.
    #[default]
    State,
    /// The word of [`Flags`] that it is kept as.
    Word(Value),
    /// Its value, 0 or 1, 8 bits.
    Truth(Value),
    /// Its value.
    Known(bool),
    /// ZF, SF or PF of a result.
    Result(Value),
    /// CF, AF or OF of an addition or subtraction.
    Sum(Sum),
}

/// An addition or subtraction.
#[derive(Clone, Copy, PartialEq)]
pub(super) struct Sum {
    pub subtract: bool,
    pub a: Value,
    pub b: Value,
    /// Carry or borrow that went in.
    pub carry: Option<Value>,
    pub result: Value,
}

const fn number(flag: Flag) -> usize {
    match flag {
        Flag::Carry => CARRY,
        Flag::Parity => PARITY,
        Flag::Adjust => ADJUST,
        Flag::Zero => ZERO,
        Flag::Sign => SIGN,
        Flag::Overflow => OVERFLOW,
    }
}

impl Lifter<'_> {
    fn set_source(&mut self, flag: usize, source: Source) {
        self.file.flags[flag] = source;
        self.file.dirty.flags |= 1 << flag;
        self.file.written.flags |= 1 << flag;
    }

    pub(super) fn write_flag(&mut self, flag: Flag, value: Value) {
        let source = match self.constant_of(value) {
            Some(constant) => Source::Known(constant & 1 != 0),
            None => Source::Truth(value),
        };
        self.set_source(number(flag), source);
    }

    pub(super) fn write_result_flags(&mut self, result: Value) {
        for flag in [ZERO, SIGN, PARITY] {
            self.set_source(flag, Source::Result(result));
        }
    }

    pub(super) fn write_sum_flags(
        &mut self,
        subtract: bool,
        a: Value,
        b: Value,
        carry: Option<Value>,
        result: Value,
    ) {
        self.write_result_flags(result);
        for flag in [CARRY, ADJUST, OVERFLOW] {
            self.set_source(flag, Source::Sum(Sum { subtract, a, b, carry, result }));
        }
    }

    /// Those of a sum but CF.
    pub(super) fn write_step_flags(&mut self, subtract: bool, a: Value, one: Value, result: Value) {
        self.write_result_flags(result);
        for flag in [ADJUST, OVERFLOW] {
            self.set_source(flag, Source::Sum(Sum { subtract, a, b: one, carry: None, result }));
        }
    }

    pub(super) fn write_logic_flags(&mut self, result: Value) {
        self.write_result_flags(result);
        for flag in [CARRY, ADJUST, OVERFLOW] {
            self.set_source(flag, Source::Known(false));
        }
    }

    /// The value of a flag, 8 bits.
    pub(super) fn read_flag(&mut self, flag: Flag) -> Value {
        self.flag_truth(number(flag))
    }

    /// A condition code, 8 bits.
    pub(super) fn read_condition(&mut self, code: ConditionCode) -> Value {
        if let Some(value) = self.fused(code).or_else(|| self.float_condition(code)) {
            return value;
        }
        use ConditionCode as C;
        let truth = match code {
            C::O | C::No => self.flag_truth(OVERFLOW),
            C::B | C::Ae => self.flag_truth(CARRY),
            C::E | C::Ne => self.flag_truth(ZERO),
            C::S | C::Ns => self.flag_truth(SIGN),
            C::P | C::Np => self.flag_truth(PARITY),
            C::Be | C::A => {
                let (carry, zero) = (self.flag_truth(CARRY), self.flag_truth(ZERO));
                self.b.ins().bor(carry, zero)
            }
            C::L | C::Ge => self.less(),
            C::Le | C::G => {
                let (less, zero) = (self.less(), self.flag_truth(ZERO));
                self.b.ins().bor(less, zero)
            }
        };
        if code as u8 & 1 == 0 { truth } else { self.b.ins().bxor_imm_u(truth, 1) }
    }

    /// SF != OF.
    fn less(&mut self) -> Value {
        let (sign, overflow) = (self.flag_truth(SIGN), self.flag_truth(OVERFLOW));
        self.b.ins().bxor(sign, overflow)
    }

    /// A condition as one comparison, if the flags it needs come from one instruction.
    fn fused(&mut self, code: ConditionCode) -> Option<Value> {
        use ConditionCode as C;
        let flags = self.file.flags;
        let result = match (flags[ZERO], flags[SIGN]) {
            (Source::Result(zero), Source::Result(sign)) if zero == sign => zero,
            _ => return None,
        };
        // Of a subtraction without borrow: its operands.
        let compared = |flag: usize| match flags[flag] {
            Source::Sum(sum) if sum.subtract && sum.carry.is_none() && sum.result == result => Some(sum),
            _ => None,
        };
        let cc = match code {
            C::B => IntCC::UnsignedLessThan,
            C::Ae => IntCC::UnsignedGreaterThanOrEqual,
            C::E => IntCC::Equal,
            C::Ne => IntCC::NotEqual,
            C::Be => IntCC::UnsignedLessThanOrEqual,
            C::A => IntCC::UnsignedGreaterThan,
            C::L | C::S => IntCC::SignedLessThan,
            C::Ge | C::Ns => IntCC::SignedGreaterThanOrEqual,
            C::Le => IntCC::SignedLessThanOrEqual,
            C::G => IntCC::SignedGreaterThan,
            C::O | C::No | C::P | C::Np => return None,
        };
        let needs = match code {
            C::E | C::Ne | C::B | C::Ae | C::Be | C::A => CARRY,
            _ => OVERFLOW,
        };
        let of_operands = match code {
            C::S | C::Ns => None,
            // INC and DEC keep CF, so either source may be the subtraction's.
            C::E | C::Ne => compared(CARRY).or(compared(OVERFLOW)),
            _ => compared(needs),
        };
        if let Some(sum) = of_operands {
            return Some(self.b.ins().icmp(cc, sum.a, sum.b));
        }
        // Against zero: signed conditions want OF clear, unsigned ones CF clear.
        match code {
            C::E | C::Ne | C::S | C::Ns => {}
            C::B | C::Ae | C::Be | C::A if flags[CARRY] == Source::Known(false) => {}
            C::L | C::Ge | C::Le | C::G if flags[OVERFLOW] == Source::Known(false) => {}
            _ => return None,
        }
        Some(self.b.ins().icmp_imm_s(cc, result, 0))
    }

    fn flag_truth(&mut self, flag: usize) -> Value {
        if self.file.flags[flag] == Source::State {
            let source = match flag {
                CARRY if !self.file.settled => Source::Truth(self.lazy_carry()),
                OVERFLOW if !self.file.settled => Source::Truth(self.lazy_overflow()),
                _ => Source::Word(self.load_flag(flag)),
            };
            self.file.flags[flag] = source;
        }
        self.truth_of(flag, self.file.flags[flag])
    }

    /// The value of a flag from `source`, 8 bits.
    pub(super) fn truth_of(&mut self, flag: usize, source: Source) -> Value {
        match source {
            Source::State if flag == CARRY && !self.file.settled => self.lazy_carry(),
            Source::State if flag == OVERFLOW && !self.file.settled => self.lazy_overflow(),
            Source::State => {
                let word = self.load_flag(flag);
                self.word_truth(flag, word)
            }
            Source::Word(word) => self.word_truth(flag, word),
            Source::Truth(value) => value,
            Source::Known(value) => self.iconst(types::I8, value.into()),
            Source::Result(result) => self.word_truth(flag, result),
            Source::Sum(sum) if flag == CARRY => self.carry(sum),
            Source::Sum(sum) => {
                let word = self.sum_word(flag, sum);
                self.word_truth(flag, word)
            }
        }
    }

    /// A flag's value from its word, or from any narrower integer that the word is the sign extension of.
    pub(super) fn word_truth(&mut self, flag: usize, word: Value) -> Value {
        match flag {
            CARRY => self.reduce(Width::Byte, word),
            ZERO => self.b.ins().icmp_imm_s(IntCC::Equal, word, 0),
            PARITY => {
                let low = self.reduce(Width::Byte, word);
                let ones = self.b.ins().popcnt(low);
                let odd = self.b.ins().band_imm_u(ones, 1);
                self.b.ins().bxor_imm_u(odd, 1)
            }
            ADJUST => {
                let low = self.reduce(Width::Byte, word);
                let shifted = self.b.ins().ushr_imm_u(low, 4);
                self.b.ins().band_imm_u(shifted, 1)
            }
            _ => self.b.ins().icmp_imm_s(IntCC::SignedLessThan, word, 0),
        }
    }

    /// The word of [`Flags`] for a flag from `source`.
    pub(super) fn flag_word(&mut self, flag: usize, source: Source) -> Value {
        match source {
            Source::State => self.load_flag(flag),
            Source::Word(word) => word,
            Source::Result(result) => self.sign_extend(result),
            Source::Known(value) => {
                let rflags = if value { u64::MAX } else { 0 };
                let flags = Flags::from_bits(rflags);
                let words = [flags.carry, flags.zero, flags.sign, flags.parity, flags.adjust, flags.overflow];
                self.word(words[flag])
            }
            Source::Truth(value) => {
                let word = self.extend(value);
                match flag {
                    CARRY => word,
                    ZERO | PARITY => self.b.ins().bxor_imm_u(word, 1),
                    ADJUST => self.b.ins().ishl_imm_u(word, 4),
                    _ => self.b.ins().ishl_imm_u(word, 63),
                }
            }
            Source::Sum(sum) if flag == CARRY => {
                let carry = self.carry(sum);
                self.extend(carry)
            }
            Source::Sum(sum) => {
                let word = self.sum_word(flag, sum);
                self.sign_extend(word)
            }
        }
    }

    /// What AF or OF of a sum is kept as, at the sum's width.
    fn sum_word(&mut self, flag: usize, sum: Sum) -> Value {
        let ins = |lifter: &mut Self, a, b| lifter.b.ins().bxor(a, b);
        if flag == ADJUST {
            let operands = ins(self, sum.a, sum.b);
            return ins(self, operands, sum.result);
        }
        // OF: the operands of an addition have the same sign and the result another one; those of a subtraction have
        // different signs and the result not the minuend's.
        let first = ins(self, sum.a, sum.result);
        let second = ins(self, sum.b, if sum.subtract { sum.a } else { sum.result });
        self.b.ins().band(first, second)
    }

    fn carry(&mut self, sum: Sum) -> Value {
        if let Some(carry) = sum.carry
            && sum.subtract
            && sum.a == sum.b
        {
            return carry;
        }
        let (left, right) = if sum.subtract { (sum.a, sum.b) } else { (sum.result, sum.a) };
        if !sum.subtract && self.constant_of(sum.b) == Some(0) {
            // Nothing but the carry is added.
            return self.b.ins().icmp(IntCC::UnsignedLessThan, left, right);
        }
        let below = self.b.ins().icmp(IntCC::UnsignedLessThan, left, right);
        let Some(carry) = sum.carry else {
            return below;
        };
        let equal = self.b.ins().icmp(IntCC::Equal, left, right);
        let both = self.b.ins().band(equal, carry);
        self.b.ins().bor(below, both)
    }

    fn load_flag(&mut self, flag: usize) -> Value {
        self.ensure_settled();
        self.state_load(types::I64, flag_offset(flag))
    }
}

pub(super) const fn flag_offset(flag: usize) -> usize {
    offset_of!(CpuState, flags) + flag * 8
}
