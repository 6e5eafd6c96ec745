//! [`Machine`]: what a definition may do. Implemented by the interpreter (on numbers) and the lifter (on SSA values).
//!
//! An `Int` has a [`Width`] that both sides know; the interpreter keeps it zero-extended in a u64, the lifter as a
//! CLIF value of that type. Operations take the width explicitly where the value can't tell the interpreter.

use memory::AtomicOp;
use x86::{Exception, Mode, SegmentRegister, Width};

use crate::{
    Register, Repetition,
    helper::{Helper, VectorOp},
    vector,
};

/// The status flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the SDM's")]
pub enum Flag {
    Carry,
    Parity,
    Adjust,
    Zero,
    Sign,
    Overflow,
}

/// Condition codes in encoding order (SDM Vol. 1 appendix B).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the SDM's")]
pub enum ConditionCode {
    O,
    No,
    B,
    Ae,
    E,
    Ne,
    Be,
    A,
    S,
    Ns,
    P,
    Np,
    L,
    Ge,
    Le,
    G,
}

impl ConditionCode {
    /// The code of an encoding number, of which the low four bits count.
    pub const fn from_number(number: u8) -> Self {
        use ConditionCode::*;
        const ALL: [ConditionCode; 16] = [O, No, B, Ae, E, Ne, Be, A, S, Ns, P, Np, L, Ge, Le, G];
        ALL[number as usize & 15]
    }
}

/// What a control transfer is, for return prediction and statistics.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Transfer {
    Jump,
    Call,
    Return,
}

/// Something that executes or emits an instruction.
pub trait Machine: Sized {
    /// Integer of 8, 16, 32 or 64 bits.
    type Int: Copy;
    /// Truth value known at run time.
    type Bool: Copy;
    /// 128 bits.
    type Vector: Copy;
    /// Why a definition ends early. For the interpreter: an exception or a board access. For the lifter: the rest of
    /// the instruction is unreachable, or it declines the instruction.
    type Stop;

    // Facts known at translation time.

    /// The mode that the code runs in.
    fn mode(&self) -> Mode;

    // Constants and registers.

    /// A constant, cut to `width`.
    fn constant(&mut self, width: Width, value: u64) -> Self::Int;
    /// A constant truth value.
    fn truth(&mut self, value: bool) -> Self::Bool;
    /// Reads a general register or part of one.
    fn gpr(&mut self, register: Register) -> Self::Int;
    /// Writes it. 32 bits clear the upper half; 8 and 16 bits keep the rest.
    fn set_gpr(&mut self, register: Register, value: Self::Int);
    /// Base address of a segment (64 bits).
    fn segment_base(&mut self, segment: SegmentRegister) -> Self::Int;
    /// Reads a 64-bit field of [`x86::CpuState`] at a byte offset (`offset_of!`), of the given width.
    fn state(&mut self, offset: usize, width: Width) -> Self::Int;
    /// Writes such a field. Not for registers, flags or anything [`x86::CpuState::update_mode`] depends on.
    fn set_state(&mut self, offset: usize, width: Width, value: Self::Int);

    // Memory. Addresses are 64-bit `Int`s: linear, from `linear`.

    /// Segmentation: adds the base, checks limit, type and (in 64-bit mode) canonicality; #GP(0), or #SS(0) for SS.
    /// In 64-bit mode the canonical check may be left to the access itself.
    fn linear(
        &mut self,
        segment: SegmentRegister,
        offset: Self::Int,
        bytes: u16,
        write: bool,
    ) -> Result<Self::Int, Self::Stop>;
    /// Loads.
    fn load(&mut self, width: Width, address: Self::Int) -> Result<Self::Int, Self::Stop>;
    /// Loads from where a store by the same instruction will follow: faults as a write.
    fn load_for_update(&mut self, width: Width, address: Self::Int) -> Result<Self::Int, Self::Stop>;
    /// Stores.
    fn store(&mut self, width: Width, address: Self::Int, value: Self::Int) -> Result<(), Self::Stop>;
    /// Checks that `bytes` can be written.
    fn probe_write(&mut self, address: Self::Int, bytes: u16) -> Result<(), Self::Stop>;
    /// Loads 16 bytes; `aligned`: #GP(0) unless on a 16-byte boundary.
    fn load_vector(&mut self, address: Self::Int, aligned: bool) -> Result<Self::Vector, Self::Stop>;
    /// Loads `width` bits (32 or 64) into the low element of a vector that is zero elsewhere.
    fn load_low(&mut self, width: Width, address: Self::Int) -> Result<Self::Vector, Self::Stop> {
        let value = self.load(width, address)?;
        Ok(vector::low(self, width, value))
    }
    /// Stores 16 bytes.
    fn store_vector(
        &mut self,
        address: Self::Int,
        value: Self::Vector,
        aligned: bool,
    ) -> Result<(), Self::Stop>;
    /// Atomic read-modify-write, returns the old value. Used for LOCK forms and XCHG.
    fn atomic(
        &mut self,
        op: AtomicOp,
        width: Width,
        address: Self::Int,
        operand: Self::Int,
    ) -> Result<Self::Int, Self::Stop>;
    /// Atomic compare-and-exchange, returns the old value.
    fn compare_exchange(
        &mut self,
        width: Width,
        address: Self::Int,
        expected: Self::Int,
        new: Self::Int,
    ) -> Result<Self::Int, Self::Stop>;
    /// CMPXCHG16B's, on 16-byte aligned memory; pairs are (low, high).
    fn compare_exchange_pair(
        &mut self,
        address: Self::Int,
        expected: (Self::Int, Self::Int),
        new: (Self::Int, Self::Int),
    ) -> Result<(Self::Int, Self::Int), Self::Stop>;
    /// Orders memory accesses as MFENCE does.
    fn fence(&mut self);

    // Integer computation. Both operands and the result have `width` unless said otherwise.

    /// a + b.
    fn add(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a - b.
    fn sub(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a & b.
    fn and(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a | b.
    fn or(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// a ^ b.
    fn xor(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Ones' complement.
    fn not(&mut self, width: Width, a: Self::Int) -> Self::Int;
    /// Low half of the product.
    fn multiply(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Int;
    /// High half of the product.
    fn multiply_high(&mut self, width: Width, signed: bool, a: Self::Int, b: Self::Int) -> Self::Int;
    /// Low and high half of the product of 64-bit values.
    fn multiply_wide(&mut self, signed: bool, a: Self::Int, b: Self::Int) -> (Self::Int, Self::Int) {
        let width = Width::Qword;
        (self.multiply(width, a, b), self.multiply_high(width, signed, a, b))
    }
    /// a + b + carry and the carry out of it, of 64-bit values.
    fn add_with_carry(&mut self, a: Self::Int, b: Self::Int, carry: Self::Bool) -> (Self::Int, Self::Bool) {
        let width = Width::Qword;
        let carry_value = self.bool_to_int(width, carry);
        let addend = self.add(width, b, carry_value);
        let sum = self.add(width, a, addend);
        let below = self.below(width, sum, a);
        let equal = self.equal(width, sum, a);
        let wraps = self.bool_and(equal, carry);
        (sum, self.bool_or(below, wraps))
    }
    /// (high:low) / divisor -> (quotient, remainder); #DE if the divisor is 0 or the quotient does not fit.
    fn divide(
        &mut self,
        width: Width,
        signed: bool,
        high: Self::Int,
        low: Self::Int,
        divisor: Self::Int,
    ) -> Result<(Self::Int, Self::Int), Self::Stop>;
    /// a << count; count (same width) must be below the width's bits, at run time.
    fn shift_left(&mut self, width: Width, a: Self::Int, count: Self::Int) -> Self::Int;
    /// Logical a >> count.
    fn shift_right(&mut self, width: Width, a: Self::Int, count: Self::Int) -> Self::Int;
    /// Arithmetic a >> count.
    fn shift_right_signed(&mut self, width: Width, a: Self::Int, count: Self::Int) -> Self::Int;
    /// Rotates; count is taken modulo the width's bits.
    fn rotate_left(&mut self, width: Width, a: Self::Int, count: Self::Int) -> Self::Int;
    /// Rotates; count is taken modulo the width's bits.
    fn rotate_right(&mut self, width: Width, a: Self::Int, count: Self::Int) -> Self::Int;
    /// Leading zeros; the width's bits for 0.
    fn leading_zeros(&mut self, width: Width, a: Self::Int) -> Self::Int;
    /// Trailing zeros; the width's bits for 0.
    fn trailing_zeros(&mut self, width: Width, a: Self::Int) -> Self::Int;
    /// Number of ones.
    fn count_ones(&mut self, width: Width, a: Self::Int) -> Self::Int;
    /// Reverses the bytes (16, 32, 64 bits).
    fn swap_bytes(&mut self, width: Width, a: Self::Int) -> Self::Int;
    /// Zero-extends or truncates.
    fn resize(&mut self, from: Width, to: Width, a: Self::Int) -> Self::Int;
    /// Sign-extends or truncates.
    fn resize_signed(&mut self, from: Width, to: Width, a: Self::Int) -> Self::Int;

    // Truth values.

    /// a == b.
    fn equal(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Bool;
    /// a < b, unsigned.
    fn below(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Bool;
    /// a < b, signed.
    fn less(&mut self, width: Width, a: Self::Int, b: Self::Int) -> Self::Bool;
    /// Bit `n` of a.
    fn bit(&mut self, width: Width, a: Self::Int, n: u32) -> Self::Bool;
    /// Negation.
    fn bool_not(&mut self, a: Self::Bool) -> Self::Bool;
    /// Conjunction.
    fn bool_and(&mut self, a: Self::Bool, b: Self::Bool) -> Self::Bool;
    /// Disjunction.
    fn bool_or(&mut self, a: Self::Bool, b: Self::Bool) -> Self::Bool;
    /// Exclusive or.
    fn bool_xor(&mut self, a: Self::Bool, b: Self::Bool) -> Self::Bool;
    /// 0 or 1.
    fn bool_to_int(&mut self, width: Width, a: Self::Bool) -> Self::Int;
    /// `yes` if `condition`, else `no`; both are computed.
    fn select(&mut self, width: Width, condition: Self::Bool, yes: Self::Int, no: Self::Int) -> Self::Int;
    /// Does `then` only if `condition` holds at run time. `then` may write registers, flags and memory, and stop.
    fn when(
        &mut self,
        condition: Self::Bool,
        then: impl FnOnce(&mut Self) -> Result<(), Self::Stop>,
    ) -> Result<(), Self::Stop>;

    // Flags.

    /// Reads one flag.
    fn flag(&mut self, flag: Flag) -> Self::Bool;
    /// Writes one flag.
    fn set_flag(&mut self, flag: Flag, value: Self::Bool);
    /// ZF, SF and PF from a result.
    fn set_result_flags(&mut self, width: Width, result: Self::Int);
    /// All six after `result = a + b + carry`.
    fn set_add_flags(
        &mut self,
        width: Width,
        a: Self::Int,
        b: Self::Int,
        carry: Option<Self::Bool>,
        result: Self::Int,
    );
    /// All six after `result = a - b - borrow`. Machines may fuse it with a following condition.
    fn set_sub_flags(
        &mut self,
        width: Width,
        a: Self::Int,
        b: Self::Int,
        borrow: Option<Self::Bool>,
        result: Self::Int,
    );
    /// All but CF after `result = a + 1` (INC).
    fn set_increment_flags(&mut self, width: Width, a: Self::Int, one: Self::Int, result: Self::Int);
    /// All but CF after `result = a - 1` (DEC).
    fn set_decrement_flags(&mut self, width: Width, a: Self::Int, one: Self::Int, result: Self::Int);
    /// All six after AND, OR, XOR, TEST: CF = OF = AF = 0.
    fn set_logic_flags(&mut self, width: Width, result: Self::Int);
    /// Evaluates a condition code.
    fn condition(&mut self, code: ConditionCode) -> Self::Bool;
    /// RFLAGS bits that are not status flags (64 bits): DF, IF, IOPL, …
    fn system_flags(&mut self) -> Self::Int;
    /// Sets DF.
    fn set_direction(&mut self, down: bool);
    /// The element step of string instructions for `width`: +bytes or -bytes as DF says (64 bits).
    fn string_step(&mut self, width: Width) -> Self::Int;

    // Control. Without a call to one of these the next instruction follows.

    /// Says that [`Machine::check_target`] will follow once the instruction has written memory. Compiled code, which
    /// may leave nothing half done for the interpreter to begin again, checks here, before it writes.
    fn foresee_target(&mut self, target: Self::Int) -> Result<(), Self::Stop> {
        let _ = target;
        Ok(())
    }

    /// #GP(0) if no instruction can be fetched at `target` (64 bits): beyond CS's limit, or not canonical. Transfers
    /// call it before they change a register. It may be left to the fetch at the target, which faults after the
    /// transfer instead of before it.
    fn check_target(&mut self, target: Self::Int) -> Result<(), Self::Stop> {
        let _ = target;
        Ok(())
    }

    /// Goes to a constant offset in CS.
    fn jump(&mut self, target: u64, transfer: Transfer) -> Result<(), Self::Stop>;
    /// Goes to `target` if the condition holds, else to the next instruction.
    fn branch(&mut self, condition: Self::Bool, target: u64) -> Result<(), Self::Stop>;
    /// Goes to a computed offset (64 bits, already cut to the operand size).
    fn jump_indirect(&mut self, target: Self::Int, transfer: Transfer) -> Result<(), Self::Stop>;
    /// The exception always happens.
    fn raise(&mut self, exception: Exception) -> Self::Stop;
    /// The exception happens if the condition holds.
    fn raise_if(&mut self, condition: Self::Bool, exception: Exception) -> Result<(), Self::Stop>;
    /// The instruction is left to the interpreter whenever it is reached. Never returned by the interpreter.
    fn decline(&mut self, reason: &'static str) -> Self::Stop;
    /// Many iterations of a REP string instruction at once, as far as is cheap: within pages of RAM, no more than the
    /// count. RSI, RDI, RCX are updated. Does nothing where there is no such path; the definition then does one
    /// element and repeats itself. For CMPS and SCAS it goes no further than up to the element that ends the
    /// repetition (by its result or as the last one), which the definition then does, with its flags.
    fn bulk(&mut self, repetition: Repetition) -> Result<(), Self::Stop>;

    // Helpers: functions in plain Rust that both engines call; see `helper`.

    /// Calls a function on the processor state that takes and gives integers and may raise an exception.
    fn call(
        &mut self,
        helper: Helper,
        immediate: u64,
        a: Self::Int,
        b: Self::Int,
    ) -> Result<Self::Int, Self::Stop>;
    /// Computes a vector operation. Floating-point ones honour and update MXCSR and may raise #XM.
    fn vector_op(
        &mut self,
        op: VectorOp,
        a: Self::Vector,
        b: Self::Vector,
        immediate: u8,
    ) -> Result<Self::Vector, Self::Stop>;
    /// As [`Machine::vector_op`], with an operand that the operation finds in [`vector::EXTRA_OPERAND`].
    fn vector_op_with(
        &mut self,
        op: VectorOp,
        a: Self::Vector,
        b: Self::Vector,
        extra: Self::Vector,
        immediate: u8,
    ) -> Result<Self::Vector, Self::Stop> {
        let (low, high) = (self.lane(Width::Qword, extra, 0), self.lane(Width::Qword, extra, 1));
        vector::set_extra_operand(self, low, high);
        self.vector_op(op, a, b, immediate)
    }
    /// COMISS and relatives: ZF, PF and CF from the operation, the other status flags cleared.
    fn compare_floats(&mut self, op: VectorOp, a: Self::Vector, b: Self::Vector) -> Result<(), Self::Stop> {
        let result = self.vector_op(op, a, b, 0)?;
        vector::set_compared_flags(self, result);
        Ok(())
    }
    /// Reads MXCSR.
    fn mxcsr(&mut self) -> Self::Int;
    /// Writes MXCSR; the value is valid.
    fn set_mxcsr(&mut self, value: Self::Int) -> Result<(), Self::Stop>;

    // Vectors.

    /// Reads an XMM register.
    fn xmm(&mut self, index: u8) -> Self::Vector;
    /// Writes an XMM register.
    fn set_xmm(&mut self, index: u8, value: Self::Vector);
    /// Reads an MMX register (no transition to MMX state: that is a helper).
    fn mm(&mut self, index: u8) -> Self::Int;
    /// Writes an MMX register.
    fn set_mm(&mut self, index: u8, value: Self::Int);
    /// A vector from its two halves.
    fn vector(&mut self, low: Self::Int, high: Self::Int) -> Self::Vector;
    /// Element `index` of `width`.
    fn lane(&mut self, width: Width, vector: Self::Vector, index: u8) -> Self::Int;
    /// The vector with element `index` replaced.
    fn with_lane(&mut self, width: Width, vector: Self::Vector, index: u8, value: Self::Int) -> Self::Vector;
}
