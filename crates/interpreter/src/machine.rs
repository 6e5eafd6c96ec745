//! [`Interpreter`]: `Machine` on numbers. An `Int` is a u64, zero-extended from its width.

use memory::{AtomicOp, Mmu, Stop};
use semantics::{
    ConditionCode, Flag, Machine, Register, Repetition, Transfer,
    helper::{Helper, VectorOp},
    table::Family,
};
use x86::{CpuState, Exception, Flags, GuestVirt, Mode, SegmentRegister, Vector, Width, flags};

use crate::{bulk, integer, segmentation, status};

/// The processor for the time of an instruction or a block.
pub struct Interpreter<'a> {
    pub(crate) state: &'a mut CpuState,
    pub(crate) mmu: &'a mut Mmu,
    /// Offset in CS of the instruction to go on with.
    next: u64,
}

impl<'a> Interpreter<'a> {
    /// Over a state and its memory. `next_rip` is where an instruction continues that transfers no control.
    pub fn new(state: &'a mut CpuState, mmu: &'a mut Mmu, next_rip: u64) -> Self {
        Self { state, mmu, next: next_rip }
    }

    /// Before an instruction: where it continues unless it transfers control.
    #[inline(always)]
    pub(crate) fn start(&mut self, next_rip: u64) {
        self.next = next_rip;
    }

    /// Where the instruction went.
    #[inline(always)]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Makes an exception of what a helper left in the state.
    #[inline(always)]
    fn take_pending(&mut self) -> Result<(), Stop> {
        if self.state.pending_exception == 0 { Ok(()) } else { Err(self.pending()) }
    }

    #[cold]
    fn pending(&mut self) -> Stop {
        let number = core::mem::take(&mut self.state.pending_exception) - 1;
        exception(number).into()
    }
}

/// The exception that a helper means by a vector number; error codes are zero where there is one.
fn exception(number: u32) -> Exception {
    match number {
        n if n == Vector::DivideError as u32 => Exception::DE,
        n if n == Vector::DeviceNotAvailable as u32 => Exception::NM,
        n if n == Vector::StackFault as u32 => Exception::SS0,
        n if n == Vector::GeneralProtection as u32 => Exception::GP0,
        n if n == Vector::X87FloatingPoint as u32 => Exception::MF,
        n if n == Vector::AlignmentCheck as u32 => Exception::AC0,
        n if n == Vector::SimdFloatingPoint as u32 => Exception::XM,
        _ => Exception::UD,
    }
}

/// The family of interpreters, over the lifetimes of what they borrow.
pub struct Interpreting;

impl Family for Interpreting {
    type Stop = Stop;
    type Machine<'a> = Interpreter<'a>;
}

impl Machine for Interpreter<'_> {
    type Int = u64;
    type Bool = bool;
    type Vector = u128;
    type Stop = Stop;

    #[inline(always)]
    fn mode(&self) -> Mode {
        self.state.mode
    }

    #[inline(always)]
    fn constant(&mut self, width: Width, value: u64) -> u64 {
        width.truncate(value)
    }

    #[inline(always)]
    fn truth(&mut self, value: bool) -> bool {
        value
    }

    #[inline(always)]
    fn gpr(&mut self, register: Register) -> u64 {
        let value = self.state.gpr[usize::from(register.index & 15)];
        if register.high { value >> 8 & 0xff } else { register.width.truncate(value) }
    }

    #[inline(always)]
    fn set_gpr(&mut self, register: Register, value: u64) {
        let place = &mut self.state.gpr[usize::from(register.index & 15)];
        *place = match register.width {
            Width::Qword | Width::Dword => value,
            Width::Word => *place & !0xffff | value,
            Width::Byte if register.high => *place & !0xff00 | value << 8,
            Width::Byte => *place & !0xff | value,
        };
    }

    #[inline(always)]
    fn segment_base(&mut self, segment: SegmentRegister) -> u64 {
        segmentation::base(self.state, segment)
    }

    #[inline]
    fn state(&mut self, offset: usize, width: Width) -> u64 {
        let bytes = width.bytes() as usize;
        assert!(offset + bytes <= size_of::<CpuState>(), "offset {offset} is not within the state");
        let mut value = [0; 8];
        let state: *const CpuState = self.state;
        // SAFETY: the bytes are within the state, and definitions name fields of plain integers.
        unsafe { state.byte_add(offset).cast::<u8>().copy_to_nonoverlapping(value.as_mut_ptr(), bytes) };
        u64::from_le_bytes(value)
    }

    #[inline]
    fn set_state(&mut self, offset: usize, width: Width, value: u64) {
        let bytes = width.bytes() as usize;
        assert!(offset + bytes <= size_of::<CpuState>(), "offset {offset} is not within the state");
        let state: *mut CpuState = self.state;
        // SAFETY: as in `state`; any integer is a valid one.
        unsafe {
            state.byte_add(offset).cast::<u8>().copy_from_nonoverlapping(value.to_le_bytes().as_ptr(), bytes);
        }
    }

    #[inline(always)]
    fn linear(
        &mut self,
        segment: SegmentRegister,
        offset: u64,
        bytes: u16,
        write: bool,
    ) -> Result<u64, Stop> {
        segmentation::linear(self.state, segment, offset, bytes, write)
    }

    #[inline(always)]
    fn load(&mut self, width: Width, address: u64) -> Result<u64, Stop> {
        self.mmu.load(self.state, GuestVirt(address), width)
    }

    #[inline(always)]
    fn load_for_update(&mut self, width: Width, address: u64) -> Result<u64, Stop> {
        self.mmu.load_for_update(self.state, GuestVirt(address), width)
    }

    #[inline(always)]
    fn store(&mut self, width: Width, address: u64, value: u64) -> Result<(), Stop> {
        self.mmu.store(self.state, GuestVirt(address), width, value)
    }

    fn probe_write(&mut self, address: u64, bytes: u16) -> Result<(), Stop> {
        self.mmu.probe_write(self.state, GuestVirt(address), u64::from(bytes))
    }

    #[inline]
    fn load_vector(&mut self, address: u64, aligned: bool) -> Result<u128, Stop> {
        if aligned && address & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        self.mmu.load128(self.state, GuestVirt(address))
    }

    #[inline]
    fn store_vector(&mut self, address: u64, value: u128, aligned: bool) -> Result<(), Stop> {
        if aligned && address & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        self.mmu.store128(self.state, GuestVirt(address), value)
    }

    #[inline]
    fn atomic(&mut self, op: AtomicOp, width: Width, address: u64, operand: u64) -> Result<u64, Stop> {
        self.mmu.atomic(self.state, GuestVirt(address), width, op, operand)
    }

    #[inline]
    fn compare_exchange(&mut self, width: Width, address: u64, expected: u64, new: u64) -> Result<u64, Stop> {
        self.mmu.compare_exchange(self.state, GuestVirt(address), width, expected, new)
    }

    fn compare_exchange_pair(
        &mut self,
        address: u64,
        expected: (u64, u64),
        new: (u64, u64),
    ) -> Result<(u64, u64), Stop> {
        let join = |(low, high)| u128::from(low) | u128::from(high) << 64;
        let old = self.mmu.compare_exchange128(self.state, GuestVirt(address), join(expected), join(new))?;
        Ok((old as u64, (old >> 64) as u64))
    }

    #[inline]
    fn fence(&mut self) {
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }

    #[inline(always)]
    fn add(&mut self, width: Width, a: u64, b: u64) -> u64 {
        width.truncate(a.wrapping_add(b))
    }

    #[inline(always)]
    fn sub(&mut self, width: Width, a: u64, b: u64) -> u64 {
        width.truncate(a.wrapping_sub(b))
    }

    #[inline(always)]
    fn and(&mut self, _: Width, a: u64, b: u64) -> u64 {
        a & b
    }

    #[inline(always)]
    fn or(&mut self, _: Width, a: u64, b: u64) -> u64 {
        a | b
    }

    #[inline(always)]
    fn xor(&mut self, _: Width, a: u64, b: u64) -> u64 {
        a ^ b
    }

    #[inline(always)]
    fn not(&mut self, width: Width, a: u64) -> u64 {
        width.truncate(!a)
    }

    #[inline(always)]
    fn multiply(&mut self, width: Width, a: u64, b: u64) -> u64 {
        width.truncate(a.wrapping_mul(b))
    }

    #[inline]
    fn multiply_high(&mut self, width: Width, signed: bool, a: u64, b: u64) -> u64 {
        integer::multiply_high(width, signed, a, b)
    }

    fn divide(
        &mut self,
        width: Width,
        signed: bool,
        high: u64,
        low: u64,
        divisor: u64,
    ) -> Result<(u64, u64), Stop> {
        integer::divide(width, signed, high, low, divisor).ok_or(Stop::Exception(Exception::DE))
    }

    #[inline(always)]
    fn shift_left(&mut self, width: Width, a: u64, count: u64) -> u64 {
        width.truncate(a.wrapping_shl(count as u32))
    }

    #[inline(always)]
    fn shift_right(&mut self, _: Width, a: u64, count: u64) -> u64 {
        a.wrapping_shr(count as u32)
    }

    #[inline(always)]
    fn shift_right_signed(&mut self, width: Width, a: u64, count: u64) -> u64 {
        width.truncate((width.sign_extend(a) as i64).wrapping_shr(count as u32) as u64)
    }

    #[inline]
    fn rotate_left(&mut self, width: Width, a: u64, count: u64) -> u64 {
        integer::rotate_left(width, a, count as u32)
    }

    #[inline]
    fn rotate_right(&mut self, width: Width, a: u64, count: u64) -> u64 {
        integer::rotate_left(width, a, width.bits() - (count as u32 & (width.bits() - 1)))
    }

    #[inline]
    fn leading_zeros(&mut self, width: Width, a: u64) -> u64 {
        u64::from(a.leading_zeros() - (64 - width.bits()))
    }

    #[inline]
    fn trailing_zeros(&mut self, width: Width, a: u64) -> u64 {
        u64::from(a.trailing_zeros().min(width.bits()))
    }

    #[inline]
    fn count_ones(&mut self, _: Width, a: u64) -> u64 {
        u64::from(a.count_ones())
    }

    #[inline]
    fn swap_bytes(&mut self, width: Width, a: u64) -> u64 {
        a.swap_bytes() >> (64 - width.bits())
    }

    #[inline(always)]
    fn resize(&mut self, _: Width, to: Width, a: u64) -> u64 {
        to.truncate(a)
    }

    #[inline(always)]
    fn resize_signed(&mut self, from: Width, to: Width, a: u64) -> u64 {
        to.truncate(from.sign_extend(a))
    }

    #[inline(always)]
    fn equal(&mut self, _: Width, a: u64, b: u64) -> bool {
        a == b
    }

    #[inline(always)]
    fn below(&mut self, _: Width, a: u64, b: u64) -> bool {
        a < b
    }

    #[inline(always)]
    fn less(&mut self, width: Width, a: u64, b: u64) -> bool {
        (width.sign_extend(a) as i64) < width.sign_extend(b) as i64
    }

    #[inline(always)]
    fn bit(&mut self, _: Width, a: u64, n: u32) -> bool {
        a >> n & 1 != 0
    }

    #[inline(always)]
    fn bool_not(&mut self, a: bool) -> bool {
        !a
    }

    #[inline(always)]
    fn bool_and(&mut self, a: bool, b: bool) -> bool {
        a & b
    }

    #[inline(always)]
    fn bool_or(&mut self, a: bool, b: bool) -> bool {
        a | b
    }

    #[inline(always)]
    fn bool_xor(&mut self, a: bool, b: bool) -> bool {
        a ^ b
    }

    #[inline(always)]
    fn bool_to_int(&mut self, _: Width, a: bool) -> u64 {
        u64::from(a)
    }

    #[inline(always)]
    fn select(&mut self, _: Width, condition: bool, yes: u64, no: u64) -> u64 {
        if condition { yes } else { no }
    }

    #[inline(always)]
    fn when(
        &mut self,
        condition: bool,
        then: impl FnOnce(&mut Self) -> Result<(), Stop>,
    ) -> Result<(), Stop> {
        if condition { then(self) } else { Ok(()) }
    }

    #[inline]
    fn flag(&mut self, flag: Flag) -> bool {
        status::read(&self.state.flags, flag)
    }

    #[inline]
    fn set_flag(&mut self, flag: Flag, value: bool) {
        status::write(&mut self.state.flags, flag, value);
    }

    #[inline(always)]
    fn set_result_flags(&mut self, width: Width, result: u64) {
        status::set_result(&mut self.state.flags, width, result);
    }

    #[inline(always)]
    fn set_add_flags(&mut self, width: Width, a: u64, b: u64, carry: Option<bool>, result: u64) {
        self.state.flags = status::after_add(width, a, b, carry, result);
    }

    #[inline(always)]
    fn set_sub_flags(&mut self, width: Width, a: u64, b: u64, borrow: Option<bool>, result: u64) {
        self.state.flags = status::after_sub(width, a, b, borrow, result);
    }

    #[inline(always)]
    fn set_increment_flags(&mut self, width: Width, a: u64, one: u64, result: u64) {
        let carry = self.state.flags.carry;
        self.state.flags = Flags { carry, ..status::after_add(width, a, one, None, result) };
    }

    #[inline(always)]
    fn set_decrement_flags(&mut self, width: Width, a: u64, one: u64, result: u64) {
        let carry = self.state.flags.carry;
        self.state.flags = Flags { carry, ..status::after_sub(width, a, one, None, result) };
    }

    #[inline(always)]
    fn set_logic_flags(&mut self, width: Width, result: u64) {
        self.state.flags = status::after_logic(width, result);
    }

    #[inline]
    fn condition(&mut self, code: ConditionCode) -> bool {
        status::condition(&self.state.flags, code)
    }

    #[inline]
    fn system_flags(&mut self) -> u64 {
        self.state.rflags
    }

    #[inline]
    fn set_direction(&mut self, down: bool) {
        self.state.rflags = self.state.rflags & !flags::DF | if down { flags::DF } else { 0 };
    }

    #[inline]
    fn string_step(&mut self, width: Width) -> u64 {
        if self.state.rflags & flags::DF == 0 { width.bytes() } else { width.bytes().wrapping_neg() }
    }

    #[inline]
    fn check_target(&mut self, target: u64) -> Result<(), Stop> {
        segmentation::check_target(self.state, target)
    }

    #[inline(always)]
    fn jump(&mut self, target: u64, _: Transfer) -> Result<(), Stop> {
        self.next = target;
        Ok(())
    }

    #[inline(always)]
    fn branch(&mut self, condition: bool, target: u64) -> Result<(), Stop> {
        if condition {
            self.next = target;
        }
        Ok(())
    }

    #[inline(always)]
    fn jump_indirect(&mut self, target: u64, _: Transfer) -> Result<(), Stop> {
        self.next = target;
        Ok(())
    }

    #[inline]
    fn raise(&mut self, exception: Exception) -> Stop {
        exception.into()
    }

    #[inline]
    fn raise_if(&mut self, condition: bool, exception: Exception) -> Result<(), Stop> {
        if condition { Err(exception.into()) } else { Ok(()) }
    }

    /// A definition that declines has no meaning for the form of the instruction: the announced processor has none.
    fn decline(&mut self, _: &'static str) -> Stop {
        Exception::UD.into()
    }

    fn bulk(&mut self, repetition: Repetition) -> Result<(), Stop> {
        if !self.mmu.mmio.is_replaying() {
            bulk::run_over_code(self.state, self.mmu, repetition);
        }
        Ok(())
    }

    #[inline]
    fn call(&mut self, helper: Helper, immediate: u64, a: u64, b: u64) -> Result<u64, Stop> {
        let value = helper.function()(self.state, immediate, a, b);
        self.take_pending()?;
        Ok(value)
    }

    #[inline]
    fn vector_op(&mut self, op: VectorOp, a: u128, b: u128, immediate: u8) -> Result<u128, Stop> {
        let value = op.function()(self.state, a, b, immediate);
        self.take_pending()?;
        Ok(value)
    }

    #[inline]
    fn mxcsr(&mut self) -> u64 {
        self.state.mxcsr.into()
    }

    #[inline]
    fn set_mxcsr(&mut self, value: u64) -> Result<(), Stop> {
        self.state.mxcsr = value as u32;
        self.state.update_mode();
        Ok(())
    }

    #[inline(always)]
    fn xmm(&mut self, index: u8) -> u128 {
        self.state.xmm[usize::from(index & 15)]
    }

    #[inline(always)]
    fn set_xmm(&mut self, index: u8, value: u128) {
        self.state.xmm[usize::from(index & 15)] = value;
    }

    #[inline]
    fn mm(&mut self, index: u8) -> u64 {
        self.state.x87.registers[usize::from(index & 7)][0]
    }

    /// Sets the exponent and sign bits, as MMX instructions do (SDM Vol. 1 9.5.1).
    #[inline]
    fn set_mm(&mut self, index: u8, value: u64) {
        self.state.x87.registers[usize::from(index & 7)] = [value, 0xffff];
    }

    #[inline(always)]
    fn vector(&mut self, low: u64, high: u64) -> u128 {
        u128::from(low) | u128::from(high) << 64
    }

    #[inline]
    fn lane(&mut self, width: Width, vector: u128, index: u8) -> u64 {
        width.truncate((vector >> integer::lane_shift(width, index)) as u64)
    }

    #[inline]
    fn with_lane(&mut self, width: Width, vector: u128, index: u8, value: u64) -> u128 {
        let shift = integer::lane_shift(width, index);
        let mask = u128::from(width.mask()) << shift;
        vector & !mask | u128::from(value) << shift
    }
}
