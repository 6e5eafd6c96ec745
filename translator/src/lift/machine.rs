//! `impl Machine for Lifter`: every operation that a definition may use, and what it emits.

use core::mem::offset_of;

use cranelift_codegen::ir::{AtomicRmwOp, InstBuilder, Value, condcodes::IntCC, types};
use memory::AtomicOp;
use semantics::{
    ConditionCode, Flag, Machine, Register, Repetition, Transfer,
    helper::{Helper, VectorOp},
};
use x86::{CpuState, Exception, Mode, Segment, SegmentRegister, Width, flags, fpu::X87, segment::attribute};

use super::{Ended, Lifter, emit::int_type};
use crate::abi::{FIRST_HELPER, SlowPath};

const RFLAGS: usize = offset_of!(CpuState, rflags);

const fn segment_offset(segment: SegmentRegister) -> usize {
    offset_of!(CpuState, segments) + segment as usize * size_of::<Segment>()
}

const fn mm_offset(index: u8) -> usize {
    offset_of!(CpuState, x87) + offset_of!(X87, registers) + (index & 7) as usize * 16
}

impl Machine for Lifter<'_> {
    type Int = Value;
    type Bool = Value;
    type Vector = Value;
    type Stop = Ended;

    fn mode(&self) -> Mode {
        self.mode
    }

    fn constant(&mut self, width: Width, value: u64) -> Value {
        self.iconst(int_type(width), value)
    }

    fn truth(&mut self, value: bool) -> Value {
        self.iconst(types::I8, value.into())
    }

    fn gpr(&mut self, register: Register) -> Value {
        self.read_gpr(register)
    }

    fn set_gpr(&mut self, register: Register, value: Value) {
        self.write_gpr(register, value);
    }

    fn segment_base(&mut self, segment: SegmentRegister) -> Value {
        if matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs) {
            self.state_load(types::I64, segment_offset(segment) + offset_of!(Segment, base))
        } else {
            // Only flat code is lifted.
            self.word(0)
        }
    }

    fn state(&mut self, offset: usize, width: Width) -> Value {
        self.state_load(int_type(width), offset)
    }

    fn set_state(&mut self, offset: usize, _width: Width, value: Value) {
        self.state_store(value, offset);
    }

    fn linear(
        &mut self,
        segment: SegmentRegister,
        offset: Value,
        bytes: u16,
        write: bool,
    ) -> Result<Value, Ended> {
        let based = matches!(segment, SegmentRegister::Fs | SegmentRegister::Gs);
        if self.mode.is_64bit() {
            if !based {
                return Ok(offset);
            }
            let base = self.segment_base(segment);
            return Ok(self.b.ins().iadd(base, offset));
        }
        if segment == SegmentRegister::Cs && write {
            return Err(self.decline("a write through CS faults"));
        }
        if !based {
            return Ok(offset);
        }
        // What is not plain data within its limit is for the interpreter to judge (SDM Vol. 3A 5.3 to 5.5).
        let kind = self.state_load(types::I16, segment_offset(segment) + offset_of!(Segment, attributes));
        let mut examined = attribute::PRESENT | attribute::CODE | attribute::EXPAND_DOWN;
        let mut wanted = attribute::PRESENT;
        if write {
            examined |= attribute::WRITABLE;
            wanted |= attribute::WRITABLE;
        }
        let kind = self.b.ins().band_imm_u(kind, i64::from(examined));
        let other_kind = self.b.ins().icmp_imm_u(IntCC::NotEqual, kind, i64::from(wanted));
        let limit = self.state_load(types::I32, segment_offset(segment) + offset_of!(Segment, limit));
        let limit = self.b.ins().uextend(types::I64, limit);
        let last = self.b.ins().iadd_imm_s(offset, i64::from(bytes.max(1)) - 1);
        let beyond = self.b.ins().icmp(IntCC::UnsignedGreaterThan, last, limit);
        let refused = self.b.ins().bor(other_kind, beyond);
        self.abandon_if(refused);
        let base = self.segment_base(segment);
        let sum = self.b.ins().iadd(base, offset);
        Ok(self.b.ins().band_imm_u(sum, 0xffff_ffff))
    }

    fn load(&mut self, width: Width, address: Value) -> Result<Value, Ended> {
        Ok(self.load_guest(width, address))
    }

    fn load_for_update(&mut self, width: Width, address: Value) -> Result<Value, Ended> {
        Ok(self.load_guest_for_update(width, address))
    }

    fn store(&mut self, width: Width, address: Value, value: Value) -> Result<(), Ended> {
        self.store_guest(width, address, value);
        Ok(())
    }

    fn probe_write(&mut self, address: Value, bytes: u16) -> Result<(), Ended> {
        self.probe_guest_write(address, bytes);
        Ok(())
    }

    fn load_vector(&mut self, address: Value, aligned: bool) -> Result<Value, Ended> {
        Ok(self.load_guest_vector(address, aligned))
    }

    fn load_low(&mut self, width: Width, address: Value) -> Result<Value, Ended> {
        Ok(self.load_guest_low(width, address))
    }

    fn store_vector(&mut self, address: Value, value: Value, aligned: bool) -> Result<(), Ended> {
        self.store_guest_vector(address, value, aligned);
        Ok(())
    }

    fn atomic(&mut self, op: AtomicOp, width: Width, address: Value, operand: Value) -> Result<Value, Ended> {
        let number = self.word(op as u64);
        let rmw = match op {
            AtomicOp::Add => AtomicRmwOp::Add,
            AtomicOp::Sub => AtomicRmwOp::Sub,
            AtomicOp::And => AtomicRmwOp::And,
            AtomicOp::Or => AtomicRmwOp::Or,
            AtomicOp::Xor => AtomicRmwOp::Xor,
            AtomicOp::Exchange => AtomicRmwOp::Xchg,
        };
        let operands = [operand, number];
        Ok(self.atomic_guest(width, address, SlowPath::Atomic, operands, |l, host| {
            l.b.ins().atomic_rmw(int_type(width), l.fields.guest, rmw, host, operand)
        }))
    }

    fn compare_exchange(
        &mut self,
        width: Width,
        address: Value,
        expected: Value,
        new: Value,
    ) -> Result<Value, Ended> {
        let operands = [expected, new];
        Ok(self.atomic_guest(width, address, SlowPath::CompareExchange, operands, |l, host| {
            l.b.ins().atomic_cas(l.fields.guest, host, expected, new)
        }))
    }

    fn compare_exchange_pair(
        &mut self,
        address: Value,
        expected: (Value, Value),
        new: (Value, Value),
    ) -> Result<(Value, Value), Ended> {
        Ok(self.compare_exchange_guest_pair(address, expected, new))
    }

    fn fence(&mut self) {
        self.b.ins().fence();
    }

    fn add(&mut self, width: Width, a: Value, b: Value) -> Value {
        if width == Width::Qword { self.sum(a, b) } else { self.b.ins().iadd(a, b) }
    }

    fn sub(&mut self, width: Width, a: Value, b: Value) -> Value {
        if a == b {
            return self.constant(width, 0);
        }
        self.b.ins().isub(a, b)
    }

    fn and(&mut self, _: Width, a: Value, b: Value) -> Value {
        if a == b { a } else { self.b.ins().band(a, b) }
    }

    fn or(&mut self, _: Width, a: Value, b: Value) -> Value {
        if a == b { a } else { self.b.ins().bor(a, b) }
    }

    /// XOR of a register with itself is how programs write zero.
    fn xor(&mut self, width: Width, a: Value, b: Value) -> Value {
        if a == b {
            return self.constant(width, 0);
        }
        self.b.ins().bxor(a, b)
    }

    fn not(&mut self, _: Width, a: Value) -> Value {
        self.b.ins().bnot(a)
    }

    fn multiply(&mut self, _: Width, a: Value, b: Value) -> Value {
        self.b.ins().imul(a, b)
    }

    fn multiply_wide(&mut self, signed: bool, a: Value, b: Value) -> (Value, Value) {
        // One host instruction, which the code generator knows in this form.
        let extend = |l: &mut Self, value| {
            if signed { l.b.ins().sextend(types::I128, value) } else { l.b.ins().uextend(types::I128, value) }
        };
        let (a, b) = (extend(self, a), extend(self, b));
        let product = self.b.ins().imul(a, b);
        self.b.ins().isplit(product)
    }

    fn add_with_carry(&mut self, a: Value, b: Value, carry: Value) -> (Value, Value) {
        self.sum_with_carry(a, b, carry)
    }

    fn multiply_high(&mut self, width: Width, signed: bool, a: Value, b: Value) -> Value {
        self.high_product(width, signed, a, b)
    }

    fn divide(
        &mut self,
        width: Width,
        signed: bool,
        high: Value,
        low: Value,
        divisor: Value,
    ) -> Result<(Value, Value), Ended> {
        self.quotient(width, signed, high, low, divisor)
    }

    fn shift_left(&mut self, width: Width, a: Value, count: Value) -> Value {
        if width == Width::Qword { self.shifted(a, count) } else { self.b.ins().ishl(a, count) }
    }

    fn shift_right(&mut self, _: Width, a: Value, count: Value) -> Value {
        self.b.ins().ushr(a, count)
    }

    fn shift_right_signed(&mut self, _: Width, a: Value, count: Value) -> Value {
        self.b.ins().sshr(a, count)
    }

    fn rotate_left(&mut self, _: Width, a: Value, count: Value) -> Value {
        self.b.ins().rotl(a, count)
    }

    fn rotate_right(&mut self, _: Width, a: Value, count: Value) -> Value {
        self.b.ins().rotr(a, count)
    }

    fn leading_zeros(&mut self, _: Width, a: Value) -> Value {
        self.b.ins().clz(a)
    }

    fn trailing_zeros(&mut self, _: Width, a: Value) -> Value {
        self.b.ins().ctz(a)
    }

    fn count_ones(&mut self, _: Width, a: Value) -> Value {
        self.b.ins().popcnt(a)
    }

    fn swap_bytes(&mut self, width: Width, a: Value) -> Value {
        if width == Width::Byte { a } else { self.b.ins().bswap(a) }
    }

    fn resize(&mut self, from: Width, to: Width, a: Value) -> Value {
        if to <= from {
            return self.reduce(to, a);
        }
        match self.known_extension(a) {
            Some(wide) => {
                let resized = self.reduce(to, wide);
                self.extended.push((resized, wide));
                resized
            }
            None if to == Width::Qword => self.extend(a),
            None => self.b.ins().uextend(int_type(to), a),
        }
    }

    fn resize_signed(&mut self, from: Width, to: Width, a: Value) -> Value {
        match to {
            _ if to <= from => self.reduce(to, a),
            Width::Qword => self.sign_extend(a),
            _ => self.b.ins().sextend(int_type(to), a),
        }
    }

    fn equal(&mut self, _: Width, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::Equal, a, b)
    }

    fn below(&mut self, _: Width, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::UnsignedLessThan, a, b)
    }

    fn less(&mut self, _: Width, a: Value, b: Value) -> Value {
        self.b.ins().icmp(IntCC::SignedLessThan, a, b)
    }

    fn bit(&mut self, _: Width, a: Value, n: u32) -> Value {
        let shifted = if n == 0 { a } else { self.b.ins().ushr_imm_u(a, i64::from(n)) };
        let low = self.reduce(Width::Byte, shifted);
        self.b.ins().band_imm_u(low, 1)
    }

    fn bool_not(&mut self, a: Value) -> Value {
        self.b.ins().bxor_imm_u(a, 1)
    }

    fn bool_and(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().band(a, b)
    }

    fn bool_or(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().bor(a, b)
    }

    fn bool_xor(&mut self, a: Value, b: Value) -> Value {
        self.b.ins().bxor(a, b)
    }

    fn bool_to_int(&mut self, width: Width, a: Value) -> Value {
        match width {
            Width::Byte => a,
            Width::Qword => self.extend(a),
            _ => self.b.ins().uextend(int_type(width), a),
        }
    }

    fn select(&mut self, _: Width, condition: Value, yes: Value, no: Value) -> Value {
        self.b.ins().select(condition, yes, no)
    }

    fn when(
        &mut self,
        condition: Value,
        then: impl FnOnce(&mut Self) -> Result<(), Ended>,
    ) -> Result<(), Ended> {
        let arm = self.b.create_block();
        let other = self.b.create_block();
        self.b.ins().brif(condition, arm, &[], other, &[]);
        self.b.switch_to_block(arm);
        let before = self.begin_arm();
        let update = self.update;
        self.depth += 1;
        let ended = then(self);
        self.depth -= 1;
        self.update = update;
        match ended {
            Ok(()) => self.join(before, other),
            Err(Ended) => {
                self.b.switch_to_block(other);
                self.file = before;
            }
        }
        Ok(())
    }

    fn flag(&mut self, flag: Flag) -> Value {
        self.read_flag(flag)
    }

    fn set_flag(&mut self, flag: Flag, value: Value) {
        self.write_flag(flag, value);
    }

    fn set_result_flags(&mut self, _: Width, result: Value) {
        self.write_result_flags(result);
    }

    fn set_add_flags(&mut self, _: Width, a: Value, b: Value, carry: Option<Value>, result: Value) {
        self.write_sum_flags(false, a, b, carry, result);
    }

    fn set_sub_flags(&mut self, _: Width, a: Value, b: Value, borrow: Option<Value>, result: Value) {
        self.write_sum_flags(true, a, b, borrow, result);
    }

    fn set_increment_flags(&mut self, _: Width, a: Value, one: Value, result: Value) {
        self.write_step_flags(false, a, one, result);
    }

    fn set_decrement_flags(&mut self, _: Width, a: Value, one: Value, result: Value) {
        self.write_step_flags(true, a, one, result);
    }

    fn set_logic_flags(&mut self, _: Width, result: Value) {
        self.write_logic_flags(result);
    }

    fn condition(&mut self, code: ConditionCode) -> Value {
        self.read_condition(code)
    }

    fn system_flags(&mut self) -> Value {
        self.state_load(types::I64, RFLAGS)
    }

    fn set_direction(&mut self, down: bool) {
        let old = self.state_load(types::I64, RFLAGS);
        let new = if down {
            self.b.ins().bor_imm_u(old, flags::DF as i64)
        } else {
            self.b.ins().band_imm_s(old, !flags::DF as i64)
        };
        self.state_store(new, RFLAGS);
    }

    fn string_step(&mut self, width: Width) -> Value {
        let rflags = self.state_load(types::I64, RFLAGS);
        let down = self.b.ins().band_imm_u(rflags, flags::DF as i64);
        let forward = self.word(width.bytes());
        let backward = self.word(width.bytes().wrapping_neg());
        self.b.ins().select(down, backward, forward)
    }

    /// CALL writes before it goes. RET and JMP have no effect before they go: [`Lifter::indirect_exit`] checks for them,
    /// where it is free.
    fn foresee_target(&mut self, target: Value) -> Result<(), Ended> {
        if self.mode.is_64bit() {
            let faults = self.not_canonical(target);
            self.abandon_if(faults);
        }
        Ok(())
    }

    fn jump(&mut self, target: u64, _: Transfer) -> Result<(), Ended> {
        self.direct_exit(target);
        Err(Ended)
    }

    fn branch(&mut self, condition: Value, target: u64) -> Result<(), Ended> {
        if self.is_followed() {
            self.branch_aside(condition, target);
            return Ok(());
        }
        self.branch_exit(condition, target);
        Err(Ended)
    }

    fn jump_indirect(&mut self, target: Value, transfer: Transfer) -> Result<(), Ended> {
        match transfer {
            Transfer::Return => self.return_inside(target),
            Transfer::Call | Transfer::Jump => self.foreseen_inside(target),
        }
        self.indirect_exit(target);
        Err(Ended)
    }

    fn raise(&mut self, _: Exception) -> Ended {
        self.abandon()
    }

    fn raise_if(&mut self, condition: Value, _: Exception) -> Result<(), Ended> {
        self.abandon_if(condition);
        Ok(())
    }

    fn decline(&mut self, reason: &'static str) -> Ended {
        if self.depth == 0 {
            self.declined = Some(reason);
        }
        self.abandon()
    }

    fn bulk(&mut self, repetition: Repetition) -> Result<(), Ended> {
        self.call_bulk(repetition);
        Ok(())
    }

    fn call(&mut self, helper: Helper, immediate: u64, a: Value, b: Value) -> Result<Value, Ended> {
        self.flush();
        let immediate = self.word(immediate);
        let (a, b) = (self.extend(a), self.extend(b));
        let result = self.call_table(FIRST_HELPER + helper as usize, &[self.cpu, immediate, a, b]);
        self.abandon_if_raised();
        Ok(result)
    }

    fn vector_op(&mut self, op: VectorOp, a: Value, b: Value, immediate: u8) -> Result<Value, Ended> {
        self.vector_operation(op, a, b, immediate)
    }

    fn compare_floats(&mut self, op: VectorOp, a: Value, b: Value) -> Result<(), Ended> {
        if self.compare_scalars(op, a, b).is_none() {
            let result = self.vector_operation(op, a, b, 0)?;
            semantics::vector::set_compared_flags(self, result);
        }
        Ok(())
    }

    fn mxcsr(&mut self) -> Value {
        self.read_mxcsr()
    }

    fn set_mxcsr(&mut self, value: Value) -> Result<(), Ended> {
        self.write_mxcsr(value)
    }

    fn xmm(&mut self, index: u8) -> Value {
        self.read_xmm(index)
    }

    fn set_xmm(&mut self, index: u8, value: Value) {
        self.write_xmm(index, value);
    }

    fn mm(&mut self, index: u8) -> Value {
        self.state_load(types::I64, mm_offset(index))
    }

    fn set_mm(&mut self, index: u8, value: Value) {
        // An MMX write sets bits 79..64 (SDM Vol. 1 9.6.2).
        let exponent = self.word(0xffff);
        self.state_store(value, mm_offset(index));
        self.state_store(exponent, mm_offset(index) + 8);
    }

    fn vector(&mut self, low: Value, high: Value) -> Value {
        self.vector_from_halves(low, high)
    }

    fn lane(&mut self, width: Width, vector: Value, index: u8) -> Value {
        self.read_lane(width, vector, index)
    }

    fn with_lane(&mut self, width: Width, vector: Value, index: u8, value: Value) -> Value {
        self.replace_lane(width, vector, index, value)
    }
}
