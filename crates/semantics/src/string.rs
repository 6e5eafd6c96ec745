//! String instructions (SDM Vol. 1 5.1.8). INS and OUTS are callouts.
//!
//! With REP an instruction is one element and a branch to itself, so it can be interrupted between elements as the
//! architecture says; [`Machine::bulk`] takes what is cheap to do at once before that.

use x86::{SegmentRegister, Width};

use crate::{Bulk, Flag, Insn, Machine, Register, Repeat, Repetition, helper::VectorOp, sse_data, vector};

const RAX: u8 = 0;
const RCX: u8 = 1;
const RSI: u8 = 6;
const RDI: u8 = 7;

/// MOVSB, MOVSW, MOVSQ, and MOVSD where it is not the SSE2 move.
pub fn movs<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    repeat(m, i, Bulk::Movs, |m| {
        let value = load_source(m, i)?;
        let to = destination(m, i, true)?;
        m.store(i.width, to, value)?;
        advance(m, i, RSI);
        advance(m, i, RDI);
        Ok(())
    })
}

/// STOS.
pub fn stos<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    repeat(m, i, Bulk::Stos, |m| {
        let value = m.gpr(Register::new(RAX, i.width));
        let to = destination(m, i, true)?;
        m.store(i.width, to, value)?;
        advance(m, i, RDI);
        Ok(())
    })
}

/// LODS.
pub fn lods<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    repeat(m, i, Bulk::Lods, |m| {
        let value = load_source(m, i)?;
        m.set_gpr(Register::new(RAX, i.width), value);
        advance(m, i, RSI);
        Ok(())
    })
}

/// CMPS, where it is not the SSE2 comparison. Of two elements that fault, that at ES:rDI does, as on Intel's processors.
pub fn cmps<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    repeat(m, i, Bulk::Cmps, |m| {
        let from = destination(m, i, false)?;
        let b = m.load(i.width, from)?;
        let a = load_source(m, i)?;
        advance(m, i, RSI);
        advance(m, i, RDI);
        let result = m.sub(i.width, a, b);
        m.set_sub_flags(i.width, a, b, None, result);
        Ok(())
    })
}

/// SCAS.
pub fn scas<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    repeat(m, i, Bulk::Scas, |m| {
        let a = m.gpr(Register::new(RAX, i.width));
        let from = destination(m, i, false)?;
        let b = m.load(i.width, from)?;
        advance(m, i, RDI);
        let result = m.sub(i.width, a, b);
        m.set_sub_flags(i.width, a, b, None, result);
        Ok(())
    })
}

/// One element, or as many as REP says.
fn repeat<M: Machine>(
    m: &mut M,
    i: &Insn,
    kind: Bulk,
    element: impl FnOnce(&mut M) -> Result<(), M::Stop>,
) -> Result<(), M::Stop> {
    if i.repeat == Repeat::None {
        return element(m);
    }
    m.bulk(Repetition::of(kind, i))?;
    let width = i.address_width;
    let counter = Register::new(RCX, width);
    let zero = m.constant(width, 0);
    let count = m.gpr(counter);
    let done = m.equal(width, count, zero);
    let counts = m.bool_not(done);
    m.when(counts, |m| {
        element(m)?;
        let one = m.constant(width, 1);
        let count = m.gpr(counter);
        let count = m.sub(width, count, one);
        m.set_gpr(counter, count);
        Ok(())
    })?;
    let count = m.gpr(counter);
    let done = m.equal(width, count, zero);
    let mut again = m.bool_not(done);
    if kind.compares() {
        let flag = m.flag(Flag::Zero);
        let holds = if i.repeat == Repeat::Equal { flag } else { m.bool_not(flag) };
        again = m.bool_and(again, holds);
    }
    m.branch(again, i.rip)
}

/// Loads the element at segment:rSI.
fn load_source<M: Machine>(m: &mut M, i: &Insn) -> Result<M::Int, M::Stop> {
    let offset = m.gpr(Register::new(RSI, i.address_width));
    let offset = m.resize(i.address_width, Width::Qword, offset);
    let address = m.linear(i.memory.segment, offset, i.width.bytes() as u16, false)?;
    m.load(i.width, address)
}

/// The linear address of the element at ES:rDI.
fn destination<M: Machine>(m: &mut M, i: &Insn, write: bool) -> Result<M::Int, M::Stop> {
    let offset = m.gpr(Register::new(RDI, i.address_width));
    let offset = m.resize(i.address_width, Width::Qword, offset);
    m.linear(SegmentRegister::Es, offset, i.width.bytes() as u16, write)
}

/// Moves rSI or rDI by one element, the way DF says.
fn advance<M: Machine>(m: &mut M, i: &Insn, index: u8) {
    let register = Register::new(index, i.address_width);
    let step = m.string_step(i.width);
    let step = m.resize(Width::Qword, i.address_width, step);
    let old = m.gpr(register);
    let new = m.add(i.address_width, old, step);
    m.set_gpr(register, new);
}

/// MOVSD is two instructions: the string move and SSE2's.
pub fn movsd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    if crate::lower::is_string(i.code) { movs(m, i) } else { sse_data::movsd(m, i) }
}

/// CMPSD is two instructions: the string comparison and SSE2's.
pub fn cmpsd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    if crate::lower::is_string(i.code) { cmps(m, i) } else { vector::binary(m, i, VectorOp::Cmpsd) }
}
