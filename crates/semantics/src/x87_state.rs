//! x87 state as its instructions and the state images handle it: control, status and tag words, TOP, the error
//! summary, and the helper functions by which definitions read and write them (SDM Vol. 1 8.1).

use core::mem::offset_of;

use x86::{CpuState, Exception, Width, control, fpu::X87};

use crate::{Insn, Machine, Operand, operand};

/// Status word: exception flags IE DE ZE OE UE PE, in the order of the control word's masks.
pub const EXCEPTIONS: u16 = 0x3f;
/// Invalid operation.
pub const INVALID: u16 = 1 << 0;
/// Denormal operand.
pub const DENORMAL: u16 = 1 << 1;
/// Division by zero.
pub const ZERO_DIVIDE: u16 = 1 << 2;
/// Numeric overflow.
pub const OVERFLOW: u16 = 1 << 3;
/// Numeric underflow.
pub const UNDERFLOW: u16 = 1 << 4;
/// Inexact result.
pub const PRECISION: u16 = 1 << 5;
/// Stack fault; C1 then says overflow (1) or underflow (0).
pub const STACK_FAULT: u16 = 1 << 6;
/// An unmasked exception is pending.
pub const ERROR_SUMMARY: u16 = 1 << 7;
/// C0.
pub const C0: u16 = 1 << 8;
/// C1.
pub const C1: u16 = 1 << 9;
/// C2.
pub const C2: u16 = 1 << 10;
/// C3.
pub const C3: u16 = 1 << 14;
/// All condition codes.
pub const CONDITIONS: u16 = C0 | C1 | C2 | C3;
/// TOP, bits 13..11.
pub const TOP: u16 = 7 << 11;
/// Always as [`ERROR_SUMMARY`].
pub const BUSY: u16 = 1 << 15;
/// Bits of the control word that can be written; bit 6 always reads as one.
pub const CONTROL_WRITABLE: u16 = 0x1f3f;
/// See [`CONTROL_WRITABLE`].
pub const CONTROL_FIXED: u16 = 1 << 6;

/// Offset in `CpuState` of a field of [`X87`].
pub const fn field(offset: usize) -> usize {
    offset_of!(CpuState, x87) + offset
}

/// Offset in `CpuState` of the status word.
pub const STATUS: usize = field(offset_of!(X87, status));

/// #NM if CR0.EM or CR0.TS is set, and for waiting instructions #MF if an unmasked exception is pending. (CR0.NE
/// clear is treated as set: no board here has the FERR# circuit that would turn it into IRQ 13.)
pub fn check<M: Machine>(m: &mut M, waiting: bool) -> Result<(), M::Stop> {
    if m.mode().x87_traps() {
        return Err(m.raise(Exception::NM));
    }
    if waiting { check_pending(m) } else { Ok(()) }
}

/// #MF if an unmasked exception is pending.
pub fn check_pending<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    let status = m.state(STATUS, Width::Word);
    let pending = m.bit(Width::Word, status, ERROR_SUMMARY.trailing_zeros());
    m.raise_if(pending, Exception::MF)
}

/// #UD if CR0.EM is set, #NM if CR0.TS is.
pub fn check_mmx_enabled<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    if m.mode().x87_traps() {
        let cr0 = m.state(offset_of!(CpuState, cr0), Width::Qword);
        let emulation = m.bit(Width::Qword, cr0, control::cr0::EM.trailing_zeros());
        m.raise_if(emulation, Exception::UD)?;
        let task_switched = m.bit(Width::Qword, cr0, control::cr0::TS.trailing_zeros());
        m.raise_if(task_switched, Exception::NM)?;
    }
    Ok(())
}

/// Records the instruction and data pointers of a non-control instruction (SDM Vol. 1 8.1.8). Selectors and opcode
/// stay zero: processors that announce so in CPUID (7.EBX bit 13) don't keep them either.
pub fn record<M: Machine>(m: &mut M, i: &Insn) {
    let rip = m.constant(Width::Qword, i.rip);
    m.set_state(field(offset_of!(X87, instruction_pointer)), Width::Qword, rip);
    if i.operand(0) == Operand::Memory {
        let offset = operand::effective_address(m, i);
        m.set_state(field(offset_of!(X87, data_pointer)), Width::Qword, offset);
    }
}

/// Physical number of ST(i).
#[inline]
pub fn physical(x87: &X87, i: usize) -> usize {
    (x87.top() + i) & 7
}

/// Whether ST(i) is empty.
#[inline]
pub fn is_empty(x87: &X87, i: usize) -> bool {
    x87.tags >> physical(x87, i) & 1 == 0
}

/// Sets TOP.
#[inline]
pub fn set_top(x87: &mut X87, top: usize) {
    x87.status = x87.status & !TOP | ((top & 7) as u16) << 11;
}

/// Sets the status word, with the error summary and busy bits as the masks make them.
pub fn set_status(x87: &mut X87, status: u16) {
    x87.status = status & !(ERROR_SUMMARY | BUSY);
    if x87.status & !x87.control & EXCEPTIONS != 0 {
        x87.status |= ERROR_SUMMARY | BUSY;
    }
}

/// Sets the control word, which may make an exception pending or no longer so.
pub fn set_control(x87: &mut X87, control: u16) {
    x87.control = control & CONTROL_WRITABLE | CONTROL_FIXED;
    set_status(x87, x87.status);
}

/// What FNINIT leaves (SDM Vol. 2, FINIT).
pub fn initialize(x87: &mut X87) {
    let registers = x87.registers;
    *x87 = X87 { registers, ..X87::new() };
}

/// The full tag word (two bits a register) that environments store.
pub fn tag_word(x87: &X87) -> u16 {
    (0..8).fold(0, |word, i| {
        let [fraction, sign_exponent] = x87.registers[i];
        let tag = if x87.tags >> i & 1 == 0 {
            3
        } else {
            match sign_exponent & 0x7fff {
                0 if fraction == 0 => 1,
                0x7fff | 0 => 2,
                _ if fraction >> 63 == 0 => 2,
                _ => 0,
            }
        };
        word | tag << (2 * i)
    })
}

/// The abridged tags of a full tag word: only "empty" is looked at; the rest is recomputed when stored.
pub fn abridge(tag_word: u16) -> u16 {
    (0..8).filter(|i| tag_word >> (2 * i) & 3 != 3).fold(0, |tags, i| tags | 1 << i)
}

/// Helper: sets the control word to `a`.
pub extern "C" fn helper_set_control(state: &mut CpuState, _: u64, a: u64, _: u64) -> u64 {
    set_control(&mut state.x87, a as u16);
    0
}

/// Helper: FNINIT.
pub extern "C" fn helper_initialize(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    initialize(&mut state.x87);
    0
}

/// Helper: FNCLEX.
pub extern "C" fn helper_clear_exceptions(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    state.x87.status &= !(EXCEPTIONS | STACK_FAULT | ERROR_SUMMARY | BUSY);
    0
}

/// Helper: control word, status word, abridged tags and opcode, as the first qword of an FXSAVE image.
pub extern "C" fn helper_control_words(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    let x87 = &state.x87;
    u64::from(x87.control)
        | u64::from(x87.status) << 16
        | u64::from(x87.tags & 0xff) << 32
        | u64::from(x87.opcode) << 48
}

/// Helper: the opposite of [`helper_control_words`].
pub extern "C" fn helper_set_control_words(state: &mut CpuState, _: u64, a: u64, _: u64) -> u64 {
    let x87 = &mut state.x87;
    x87.tags = (a >> 32) as u16 & 0xff;
    x87.opcode = (a >> 48) as u16 & 0x7ff;
    x87.status = (a >> 16) as u16;
    set_control(x87, a as u16);
    0
}

/// Helper: half `immediate & 1` of ST(`immediate >> 1`).
pub extern "C" fn helper_register(state: &mut CpuState, immediate: u64, _: u64, _: u64) -> u64 {
    let x87 = &state.x87;
    x87.registers[physical(x87, immediate as usize >> 1)][immediate as usize & 1]
}

/// Helper: ST(immediate) = low qword `a`, sign and exponent `b`. Tags are left alone.
pub extern "C" fn helper_set_register(state: &mut CpuState, immediate: u64, a: u64, b: u64) -> u64 {
    let x87 = &mut state.x87;
    x87.registers[physical(x87, immediate as usize)] = [a, b & 0xffff];
    0
}

/// Helper: whether any of it differs from the initial configuration of XSAVE (SDM Vol. 1 13.6).
pub extern "C" fn helper_in_use(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    u64::from(state.x87 != X87::new())
}

/// Helper: puts everything into the initial configuration of XRSTOR, registers included (SDM Vol. 1 13.6).
pub extern "C" fn helper_reset(state: &mut CpuState, _: u64, _: u64, _: u64) -> u64 {
    state.x87 = X87::new();
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Measured on a processor: FLDENV of each status word with IM clear, FNSTSW after it.
    #[test]
    fn the_error_summary_follows_flags_and_masks() {
        for (control, loaded, stored) in [
            (0x340, 0x0001, 0x8081),
            (0x340, 0x8080, 0x0000),
            (0x340, 0x00ff, 0x80ff),
            (0x340, 0x0041, 0x80c1),
            (0x37f, 0x00ff, 0x007f),
            (0x37f, 0x4700, 0x4700),
        ] {
            let mut x87 = X87::new();
            x87.status = loaded;
            set_control(&mut x87, control);
            assert_eq!(x87.status, stored, "control {control:#x}, status {loaded:#x}");
        }
    }

    #[test]
    fn reserved_control_bits_are_fixed() {
        let mut x87 = X87::new();
        set_control(&mut x87, 0xffff);
        assert_eq!(x87.control, 0x1f7f);
        set_control(&mut x87, 0);
        assert_eq!(x87.control, 0x0040);
    }

    #[test]
    fn tag_words_classify_registers() {
        let mut x87 = X87::new();
        let values = [
            ([1 << 63, 0x3fff], 0),         // 1.0
            ([0, 0], 1),                    // +0
            ([0, 0x8000], 1),               // -0
            ([1, 0], 2),                    // denormal
            ([1 << 63, 0x7fff], 2),         // infinity
            ([1 << 62, 0x4000], 2),         // unnormal
            ([u64::MAX, 0x7fff], 2),        // NaN
            ([1 << 63 | 1, 0x3fff], 3_u16), // empty
        ];
        x87.tags = 0x7f;
        for (i, (register, _)) in values.iter().enumerate() {
            x87.registers[i] = *register;
        }
        let expected = values.iter().enumerate().fold(0, |word, (i, (_, tag))| word | tag << (2 * i));
        assert_eq!(tag_word(&x87), expected);
        assert_eq!(abridge(tag_word(&x87)), 0x7f);
    }
}
