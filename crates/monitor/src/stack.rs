//! Pushes and pops that commit the stack pointer only at the end, on the current stack or on one to be switched to.

use memory::GuestVirt;
use x86::{CpuState, Exception, Segment, Width, segment::attribute, state::RSP};

use crate::{Context, Result, access::segment_admits};

/// A stack in use by one instruction or one delivery.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stack {
    /// SS, for base and limit (outside 64-bit mode).
    segment: Segment,
    /// Width of the stack pointer: 16, 32 or 64 bits.
    width: Width,
    /// Where it stands.
    pub pointer: u64,
    /// Privilege with which pushes are made.
    cpl: u8,
    /// What a limit violation or a non-canonical address raises.
    fault: Exception,
}

impl Stack {
    /// The current stack.
    pub fn current(state: &CpuState) -> Self {
        let width = stack_width(state);
        Self {
            segment: state.segments[2],
            width,
            pointer: width.truncate(state.gpr[RSP]),
            cpl: state.cpl,
            fault: Exception::SS0,
        }
    }

    /// The current stack, for a delivery: its faults carry the EXT bit.
    pub fn current_external(state: &CpuState, external: u32) -> Self {
        let mut stack = Self::current(state);
        stack.fault = Exception::with_code(x86::Vector::StackFault, external);
        stack
    }

    /// A stack of another privilege level outside 64-bit mode.
    pub fn legacy(segment: Segment, pointer: u64, cpl: u8, external: u32) -> Self {
        let width = if segment.has(attribute::DEFAULT_32) { Width::Dword } else { Width::Word };
        let fault =
            Exception::with_code(x86::Vector::StackFault, u32::from(segment.selector & !3) | external);
        Self { segment, width, pointer: width.truncate(pointer), cpl, fault }
    }

    /// A stack in 64-bit mode.
    pub fn long(pointer: u64, cpl: u8, external: u32) -> Self {
        let fault = Exception::with_code(x86::Vector::StackFault, external);
        Self { segment: Segment::default(), width: Width::Qword, pointer, cpl, fault }
    }

    fn address(&self, pointer: u64, bytes: u64) -> Result<GuestVirt, Exception> {
        if self.width == Width::Qword {
            let address = GuestVirt(pointer);
            return if address.is_canonical() && address.offset(bytes - 1).is_canonical() {
                Ok(address)
            } else {
                Err(self.fault)
            };
        }
        if !segment_admits(&self.segment, pointer, bytes - 1) {
            return Err(self.fault);
        }
        Ok(GuestVirt(self.segment.base.wrapping_add(pointer) & 0xffff_ffff))
    }

    /// Writes below the pointer and moves it down. The pointer in the state is untouched.
    pub fn push(&mut self, cx: &mut Context<'_>, width: Width, value: u64) -> Result {
        let pointer = self.width.truncate(self.pointer.wrapping_sub(width.bytes()));
        let address = self.address(pointer, width.bytes())?;
        if self.cpl == cx.state.cpl {
            cx.mmu.store(cx.state, address, width, value)?;
        } else {
            cx.mmu.store_as(cx.state, self.cpl, address, width, value)?;
        }
        self.pointer = pointer;
        Ok(())
    }

    /// Reads at the pointer, with the current privilege, and moves it up.
    pub fn pop(&mut self, cx: &mut Context<'_>, width: Width) -> Result<u64> {
        let value = self.peek(cx, 0, width)?;
        self.skip(width.bytes());
        Ok(value)
    }

    /// Reads `displacement` bytes above the pointer, with the current privilege.
    pub fn peek(&self, cx: &mut Context<'_>, displacement: u64, width: Width) -> Result<u64> {
        let pointer = self.width.truncate(self.pointer.wrapping_add(displacement));
        let address = self.address(pointer, width.bytes())?;
        Ok(cx.mmu.load(cx.state, address, width)?)
    }

    /// Moves the pointer up.
    pub fn skip(&mut self, bytes: u64) {
        self.pointer = self.width.truncate(self.pointer.wrapping_add(bytes));
    }

    /// Makes the pointer the processor's.
    pub fn commit(&self, state: &mut CpuState) {
        set_stack_pointer(state, self.width, self.pointer);
    }
}

/// Width of the stack pointer in the current mode.
pub(crate) fn stack_width(state: &CpuState) -> Width {
    match state.mode.stack_bits() {
        64 => Width::Qword,
        32 => Width::Dword,
        _ => Width::Word,
    }
}

/// Writes SP, ESP or RSP.
pub(crate) fn set_stack_pointer(state: &mut CpuState, width: Width, value: u64) {
    let register = &mut state.gpr[RSP];
    *register = match width {
        Width::Qword | Width::Dword => width.truncate(value),
        _ => *register & !0xffff | value & 0xffff,
    };
}
