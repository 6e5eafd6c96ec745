//! Sums that addresses consist of, computed once: instructions that share a base and a scaled index are then seen to
//! be near each other ([`super::memory`]), and have one register between them.

use cranelift_codegen::ir::{InstBuilder, Value};

use super::Lifter;

/// How many are remembered.
const KEPT: usize = 8;

/// What was computed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Term {
    /// Two values added.
    Sum(Value, Value),
    /// A value shifted left by a constant.
    Shifted(Value, u64),
}

impl Lifter<'_> {
    /// a + b, 64 bits.
    pub(super) fn sum(&mut self, a: Value, b: Value) -> Value {
        if self.constant_of(a).is_some() || self.constant_of(b).is_some() {
            return self.b.ins().iadd(a, b);
        }
        self.remembered(Term::Sum(a, b), |l| l.b.ins().iadd(a, b))
    }

    /// a << count, 64 bits.
    pub(super) fn shifted(&mut self, a: Value, count: Value) -> Value {
        match self.constant_of(count) {
            Some(constant) => self.remembered(Term::Shifted(a, constant), |l| l.b.ins().ishl(a, count)),
            None => self.b.ins().ishl(a, count),
        }
    }

    fn remembered(&mut self, term: Term, compute: impl FnOnce(&mut Self) -> Value) -> Value {
        if let Some((_, value)) = self.terms.iter().find(|(known, _)| *known == term) {
            return *value;
        }
        let value = compute(self);
        // What an arm computes is not there behind it.
        if self.depth == 0 {
            if self.terms.len() == KEPT {
                self.terms.remove(0);
            }
            self.terms.push((term, value));
        }
        value
    }
}
