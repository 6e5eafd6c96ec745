//! Flags on their way out: as lazy ones where one instruction set them all ([`x86::LazyFlags`]), as words elsewhere.

use core::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, condcodes::IntCC, types};
use x86::{CpuState, LazyFlags, Width, lazy_flags::Form};

use super::{
    Lifter,
    flags::{ADJUST, CARRY, FLAGS, OVERFLOW, PARITY, SIGN, Source, Sum, ZERO, flag_offset},
    registers::{RegisterFile, bits},
};
use crate::abi::SlowPath;

const LAZY: usize = offset_of!(CpuState, lazy_flags);
const KIND: usize = LAZY + offset_of!(LazyFlags, kind);
const A: usize = LAZY + offset_of!(LazyFlags, a);
const B: usize = LAZY + offset_of!(LazyFlags, b);
const C: usize = LAZY + offset_of!(LazyFlags, c);

/// All six.
const ALL: u8 = (1 << FLAGS) - 1;

/// What the flags are computed from, if one form of [`LazyFlags`] says it.
#[derive(Clone, Copy)]
pub(super) struct LazyValues {
    form: Form,
    /// Of the instruction's width, which the form's kind tells.
    a: Value,
    b: Option<Value>,
    c: Option<Carry>,
}

/// The carry that goes into a form.
#[derive(Clone, Copy)]
enum Carry {
    /// Its value, 0 or 1, 8 bits.
    Truth(Value),
    /// CF as it is.
    Kept,
}

impl Lifter<'_> {
    /// Makes the words in `CpuState` the truth about flags that are not known here.
    pub(super) fn ensure_settled(&mut self) {
        if self.file.settled {
            return;
        }
        self.settle();
        self.file.settled = true;
    }

    fn settle(&mut self) {
        let kind = self.state_load(types::I64, KIND);
        let cold = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(cold);
        if self.b.current_block().is_some_and(|here| self.b.func.layout.is_cold(here)) {
            self.b.set_cold_block(go);
        }
        self.b.ins().brif(kind, cold, &[], go, &[]);
        self.b.switch_to_block(cold);
        self.call_thunk(SlowPath::SettleFlags, &[]);
        self.b.ins().jump(go, &[]);
        self.b.switch_to_block(go);
    }

    /// Stores the flags that differ from `CpuState`.
    pub(super) fn write_back_flags(&mut self, file: &RegisterFile) {
        match self.lazy_values(file) {
            Some(lazy) => self.store_lazy(file, &lazy),
            None => self.store_words(file),
        }
    }

    /// CF as it comes in; quick if INC or DEC left it, which loops keep it through.
    pub(super) fn lazy_carry(&mut self) -> Value {
        self.quick_after_step(CARRY, |lifter, _, _| lifter.state_load(types::I8, C))
    }

    /// OF as it comes in; quick after INC and DEC too, which end loops that carry in it (ADOX).
    pub(super) fn lazy_overflow(&mut self) -> Value {
        self.quick_after_step(OVERFLOW, |lifter, kind, step| {
            // The result's bits as the upper ones of 64. INC's overflows to the lowest number, DEC's to the one before that.
            let unused = lifter.b.ins().ineg(kind);
            let result = lifter.state_load(types::I64, A);
            let result = lifter.b.ins().ishl(result, unused);
            let is_decrement = lifter.b.ins().ishl(step, unused);
            let compared = lifter.b.ins().iadd(result, is_decrement);
            lifter.b.ins().icmp_imm_s(IntCC::Equal, compared, i64::MIN)
        })
    }

    /// A flag as it comes in: by `compute`, which gets the kind, and 0 after INC or 1 after DEC, if one of these left it.
    fn quick_after_step(
        &mut self,
        flag: usize,
        compute: impl FnOnce(&mut Self, Value, Value) -> Value,
    ) -> Value {
        let kind = self.state_load(types::I64, KIND);
        let form = self.b.ins().ushr_imm_u(kind, 8);
        let step = self.b.ins().iadd_imm_s(form, -(Form::Increment as i64));
        let is_step = self.b.ins().icmp_imm_u(IntCC::UnsignedLessThan, step, 2);
        let [quick, other, go] = [(); 3].map(|()| self.b.create_block());
        let result = self.b.append_block_param(go, types::I8);
        self.b.ins().brif(is_step, quick, &[], other, &[]);
        self.b.switch_to_block(quick);
        let truth = compute(self, kind, step);
        self.b.ins().jump(go, &[truth.into()]);
        self.b.switch_to_block(other);
        self.settle();
        let word = self.state_load(types::I64, flag_offset(flag));
        let truth = self.word_truth(flag, word);
        self.b.ins().jump(go, &[truth.into()]);
        self.b.switch_to_block(go);
        result
    }

    /// Stores the flags that differ from `CpuState`, and leaves none lazy.
    pub(super) fn write_back_flag_words(&mut self, file: &RegisterFile) {
        if file.dirty.flags == 0 && !file.settled {
            self.settle();
        }
        self.store_words(file);
    }

    fn store_lazy(&mut self, file: &RegisterFile, lazy: &LazyValues) {
        let kind = self.kind_of(lazy);
        let carry = self.carry_of(file, lazy);
        self.state_store(kind, KIND);
        self.state_store(lazy.a, A);
        if let Some(b) = lazy.b {
            self.state_store(b, B);
        }
        if let Some(carry) = carry {
            self.state_store(carry, C);
        }
    }

    fn kind_of(&mut self, lazy: &LazyValues) -> Value {
        let width = match self.b.func.dfg.value_type(lazy.a) {
            types::I8 => Width::Byte,
            types::I16 => Width::Word,
            types::I32 => Width::Dword,
            _ => Width::Qword,
        };
        self.word(lazy.form.kind(width))
    }

    fn carry_of(&mut self, file: &RegisterFile, lazy: &LazyValues) -> Option<Value> {
        match lazy.c? {
            Carry::Truth(value) => Some(value),
            Carry::Kept => Some(self.truth_of(CARRY, file.flags[CARRY])),
        }
    }

    fn store_words(&mut self, file: &RegisterFile) {
        match file.dirty.flags {
            0 => return,
            // Some of the words in `CpuState` stay.
            dirty if dirty != ALL && !file.settled => self.settle(),
            _ => {
                let settled = self.word(LazyFlags::SETTLED);
                self.state_store(settled, KIND);
            }
        }
        // ZF, SF and PF are mostly of the same result.
        let mut last = None;
        for flag in bits(file.dirty.flags.into()) {
            let source = file.flags[flag];
            let word = match (source, last) {
                (Source::State, _) => continue,
                (_, Some((same, word))) if same == source && matches!(source, Source::Result(_)) => word,
                _ => self.flag_word(flag, source),
            };
            last = Some((source, word));
            self.state_store(word, flag_offset(flag));
        }
    }

    /// The form that says it all, if there is one.
    fn lazy_values(&self, file: &RegisterFile) -> Option<LazyValues> {
        // What INC and DEC leave of CF may still be in `CpuState`.
        if file.dirty.flags | 1 << CARRY != ALL {
            return None;
        }
        let flags = &file.flags;
        let Source::Result(result) = flags[ZERO] else { return None };
        if flags[SIGN] != flags[ZERO] || flags[PARITY] != flags[ZERO] {
            return None;
        }
        match (flags[CARRY], flags[ADJUST], flags[OVERFLOW]) {
            (Source::Known(false), Source::Known(false), Source::Known(false)) if file.dirty.flags == ALL => {
                Some(LazyValues { form: Form::Logic, a: result, b: None, c: None })
            }
            (carry, Source::Sum(adjust), Source::Sum(overflow))
                if adjust == overflow && adjust.result == result =>
            {
                self.of_sum(carry, adjust)
            }
            _ => None,
        }
    }

    /// Of flags that, CF apart, are a sum's.
    fn of_sum(&self, carry: Source, sum: Sum) -> Option<LazyValues> {
        if carry == Source::Sum(sum) {
            let form = match (sum.subtract, sum.carry) {
                (false, None) => Form::Add,
                (false, Some(_)) => Form::AddCarry,
                (true, None) => Form::Sub,
                (true, Some(_)) => Form::SubBorrow,
            };
            return Some(LazyValues { form, a: sum.a, b: Some(sum.b), c: sum.carry.map(Carry::Truth) });
        }
        if sum.carry.is_some() || self.constant_of(sum.b) != Some(1) {
            return None;
        }
        let form = if sum.subtract { Form::Decrement } else { Form::Increment };
        Some(LazyValues { form, a: sum.result, b: None, c: Some(Carry::Kept) })
    }
}
