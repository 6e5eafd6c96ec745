//! MMX state (SDM Vol. 1 9.2, 9.5, Vol. 3A 12): when MMX instructions trap, and what each does to the x87 state that
//! they share. The packed operations themselves are the SSE ones: see [`crate::vector`].

use core::mem::offset_of;

use x86::{Width, fpu::X87};

use crate::{
    Insn, Machine, Operand, vector,
    x87_state::{self, STATUS, TOP, field},
};

/// #UD if CR0.EM is set, #NM if CR0.TS is, #MF if an x87 exception is pending (SDM Vol. 3A 12.1, table 12-1; CR0.NE
/// clear is treated as set: there is no external interrupt for FERR#).
pub fn check<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    x87_state::check_mmx_enabled(m)?;
    x87_state::check_pending(m)
}

/// What every MMX instruction but EMMS does when it completes: TOP = 0, all tags valid.
pub fn enter<M: Machine>(m: &mut M) {
    let status = m.state(STATUS, Width::Word);
    let keep = m.constant(Width::Word, u64::from(!TOP));
    let status = m.and(Width::Word, status, keep);
    m.set_state(STATUS, Width::Word, status);
    let valid = m.constant(Width::Word, 0xff);
    m.set_state(field(offset_of!(X87, tags)), Width::Word, valid);
}

/// Writes an MMX register, enters MMX state, and sets the sign and exponent of the x87 register to ones.
pub fn write<M: Machine>(m: &mut M, index: u8, value: M::Int) {
    enter(m);
    m.set_mm(index, value);
    let ones = m.constant(Width::Qword, 0xffff);
    let register = field(offset_of!(X87, registers)) + usize::from(index & 7) * 16;
    m.set_state(register + 8, Width::Qword, ones);
}

/// EMMS: all tags empty, TOP = 0 (SDM Vol. 3A table 13-1).
pub fn emms<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    check(m)?;
    enter(m);
    let empty = m.constant(Width::Word, 0);
    m.set_state(field(offset_of!(X87, tags)), Width::Word, empty);
    Ok(())
}

/// MOVDQ2Q.
pub fn movdq2q<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::begin_both(m)?;
    let (Operand::Mm(destination), Operand::Xmm(source)) = (i.operand(0), i.operand(1)) else {
        return Err(m.decline("MOVDQ2Q operands"));
    };
    let value = m.xmm(source);
    let value = m.lane(Width::Qword, value, 0);
    write(m, destination, value);
    Ok(())
}

/// MOVQ2DQ.
pub fn movq2dq<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::begin_both(m)?;
    let (Operand::Xmm(destination), Operand::Mm(source)) = (i.operand(0), i.operand(1)) else {
        return Err(m.decline("MOVQ2DQ operands"));
    };
    let value = m.mm(source);
    enter(m);
    let value = vector::low(m, Width::Qword, value);
    m.set_xmm(destination, value);
    Ok(())
}
