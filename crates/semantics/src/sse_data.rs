//! Data movement of SSE to SSE4.1 and MMX (SDM Vol. 1 5.4.1, 5.5.1, 5.6.1, 5.7, 5.10.8, 5.10.13), and MXCSR.
//!
//! Moves are made of loads, stores and lanes only, so that every engine sees them through.

use x86::{Exception, Width, fpu};

use crate::{Insn, Machine, Operand, mmx, operand, vector};

/// Moves 16 bytes between XMM registers and memory.
fn move_vector<M: Machine>(m: &mut M, i: &Insn, aligned: bool) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    let value = vector::read(m, i, 1, aligned)?;
    match i.operand(0) {
        Operand::Xmm(index) => m.set_xmm(index, value),
        _ => {
            let address = operand::address(m, i, 16, true)?;
            m.store_vector(address, value, aligned)?;
        }
    }
    Ok(())
}

/// MOVAPS, MOVAPD, MOVDQA, MOVNTPS, MOVNTPD, MOVNTDQ, MOVNTDQA.
pub fn move_aligned<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_vector(m, i, true)
}

/// MOVUPS, MOVUPD, MOVDQU, LDDQU.
pub fn move_unaligned<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_vector(m, i, false)
}

/// Moves `width` bits between general, MMX and XMM registers and memory; vector registers are zero-extended into.
fn move_low<M: Machine>(m: &mut M, i: &Insn, width: Width) -> Result<(), M::Stop> {
    vector::begin(m, i)?;
    if let (Operand::Xmm(destination), Operand::Memory) = (i.operand(0), i.operand(1)) {
        let address = operand::address(m, i, width.bytes() as u16, false)?;
        let value = m.load_low(width, address)?;
        m.set_xmm(destination, value);
        return Ok(());
    }
    let value = match i.operand(1) {
        Operand::Gpr(register) => m.gpr(register),
        Operand::Xmm(index) => {
            let source = m.xmm(index);
            m.lane(width, source, 0)
        }
        Operand::Mm(index) => {
            let source = m.mm(index);
            m.resize(Width::Qword, width, source)
        }
        _ => {
            let address = operand::address(m, i, width.bytes() as u16, false)?;
            m.load(width, address)?
        }
    };
    match i.operand(0) {
        Operand::Gpr(register) => m.set_gpr(register, value),
        Operand::Xmm(index) => {
            let value = vector::low(m, width, value);
            m.set_xmm(index, value);
        }
        Operand::Mm(index) => {
            let value = m.resize(width, Width::Qword, value);
            mmx::write(m, index, value);
            return Ok(());
        }
        _ => {
            let address = operand::address(m, i, width.bytes() as u16, true)?;
            m.store(width, address, value)?;
        }
    }
    if vector::uses_mmx(i) {
        mmx::enter(m);
    }
    Ok(())
}

/// MOVD.
pub fn movd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_low(m, i, Width::Dword)
}

/// MOVQ and MOVNTQ.
pub fn movq<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_low(m, i, Width::Qword)
}

/// MOVNTI.
pub fn movnti<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let value = operand::read(m, i, 1)?;
    operand::write(m, i, 0, value)
}

/// MOVSS, MOVSD: a load clears the rest of the register, a move between registers keeps it.
fn move_scalar<M: Machine>(m: &mut M, i: &Insn, width: Width) -> Result<(), M::Stop> {
    match (i.operand(0), i.operand(1)) {
        (Operand::Xmm(destination), Operand::Xmm(source)) => {
            vector::check_sse(m)?;
            let source = m.xmm(source);
            let value = m.lane(width, source, 0);
            let old = m.xmm(destination);
            let result = m.with_lane(width, old, 0, value);
            m.set_xmm(destination, result);
            Ok(())
        }
        _ => move_low(m, i, width),
    }
}

/// MOVSS.
pub fn movss<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_scalar(m, i, Width::Dword)
}

/// MOVSD (the SSE2 instruction; its string namesake has no XMM operand).
pub fn movsd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_scalar(m, i, Width::Qword)
}

/// Whether an instruction is the SSE2 one of the two that are called MOVSD, or CMPSD.
pub fn is_sse(i: &Insn) -> bool {
    i.operands.iter().any(|operand| matches!(operand, Operand::Xmm(_)))
}

/// Moves a qword into half `to` of the destination, or out of half `from` of the source.
fn move_half<M: Machine>(m: &mut M, i: &Insn, to: u8, from: u8) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    let value = match i.operand(1) {
        Operand::Xmm(index) => {
            let source = m.xmm(index);
            m.lane(Width::Qword, source, from)
        }
        _ => {
            let address = operand::address(m, i, 8, false)?;
            m.load(Width::Qword, address)?
        }
    };
    match i.operand(0) {
        Operand::Xmm(index) => {
            let old = m.xmm(index);
            let result = m.with_lane(Width::Qword, old, to, value);
            m.set_xmm(index, result);
            Ok(())
        }
        _ => {
            let address = operand::address(m, i, 8, true)?;
            m.store(Width::Qword, address, value)
        }
    }
}

/// MOVLPS, MOVLPD: between the low half and memory.
pub fn move_low_half<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_half(m, i, 0, 0)
}

/// MOVHPS, MOVHPD: between the high half and memory.
pub fn move_high_half<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_half(m, i, 1, 1)
}

/// MOVLHPS.
pub fn movlhps<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_half(m, i, 1, 0)
}

/// MOVHLPS.
pub fn movhlps<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    move_half(m, i, 0, 1)
}

/// PEXTRB, PEXTRW, PEXTRD, PEXTRQ, EXTRACTPS: element `immediate` of operand 1, zero-extended in a register.
fn extract<M: Machine>(m: &mut M, i: &Insn, width: Width) -> Result<(), M::Stop> {
    vector::begin(m, i)?;
    let source = vector::read(m, i, 1, true)?;
    let bytes = if vector::uses_mmx(i) { 8 } else { 16 };
    let index = i.immediate as u8 & (bytes / width as u8 - 1);
    let element = m.lane(width, source, index);
    if let Operand::Gpr(register) = i.operand(0) {
        let element = m.resize(width, register.width, element);
        m.set_gpr(register, element);
    } else {
        let address = operand::address(m, i, width.bytes() as u16, true)?;
        m.store(width, address, element)?;
    }
    if vector::uses_mmx(i) {
        mmx::enter(m);
    }
    Ok(())
}

/// PEXTRB.
pub fn pextrb<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    extract(m, i, Width::Byte)
}

/// PEXTRW.
pub fn pextrw<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    extract(m, i, Width::Word)
}

/// PEXTRD, EXTRACTPS.
pub fn pextrd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    extract(m, i, Width::Dword)
}

/// PEXTRQ.
pub fn pextrq<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    extract(m, i, Width::Qword)
}

/// PINSRB, PINSRW, PINSRD, PINSRQ: element `immediate` of the destination becomes the low part of operand 1.
fn insert<M: Machine>(m: &mut M, i: &Insn, width: Width) -> Result<(), M::Stop> {
    vector::begin(m, i)?;
    let element = match i.operand(1) {
        Operand::Gpr(register) => {
            let value = m.gpr(register);
            m.resize(register.width, width, value)
        }
        _ => {
            let address = operand::address(m, i, width.bytes() as u16, false)?;
            m.load(width, address)?
        }
    };
    let old = vector::read(m, i, 0, true)?;
    match i.operand(0) {
        Operand::Mm(index) => {
            let result = m.with_lane(width, old, i.immediate as u8 & (8 / width as u8 - 1), element);
            let result = m.lane(Width::Qword, result, 0);
            mmx::write(m, index, result);
        }
        Operand::Xmm(index) => {
            let result = m.with_lane(width, old, i.immediate as u8 & (16 / width as u8 - 1), element);
            m.set_xmm(index, result);
        }
        _ => return Err(m.decline("destination is not a vector register")),
    }
    Ok(())
}

/// PINSRB.
pub fn pinsrb<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    insert(m, i, Width::Byte)
}

/// PINSRW.
pub fn pinsrw<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    insert(m, i, Width::Word)
}

/// PINSRD.
pub fn pinsrd<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    insert(m, i, Width::Dword)
}

/// PINSRQ.
pub fn pinsrq<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    insert(m, i, Width::Qword)
}

/// INSERTPS: immediate bits 7..6 choose the source dword (registers only), 5..4 its place, 3..0 what is cleared.
pub fn insertps<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    let immediate = i.immediate as u8;
    let source = vector::read(m, i, 1, true)?;
    let from = if i.operand(1) == Operand::Memory { 0 } else { immediate >> 6 };
    let element = m.lane(Width::Dword, source, from);
    let Operand::Xmm(destination) = i.operand(0) else {
        return Err(m.decline("destination is not a vector register"));
    };
    let old = m.xmm(destination);
    let mut result = m.with_lane(Width::Dword, old, immediate >> 4 & 3, element);
    let zero = m.constant(Width::Dword, 0);
    for n in (0..4).filter(|n| immediate >> n & 1 != 0) {
        result = m.with_lane(Width::Dword, result, n, zero);
    }
    m.set_xmm(destination, result);
    Ok(())
}

/// MASKMOVDQU, MASKMOVQ: bytes of operand 1 whose sign bit in operand 2 is set go to DS:rDI. Only pages that get a
/// byte are touched.
pub fn maskmov<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    const RDI: u8 = 7;
    vector::begin(m, i)?;
    let data = vector::read(m, i, 1, true)?;
    let mask = vector::read(m, i, 2, true)?;
    let bytes = if vector::uses_mmx(i) { 8 } else { 16 };
    let base = vector::gpr(m, RDI, i.address_width);
    // All bytes are checked before the first is written.
    for writes in [false, true] {
        for n in 0..bytes {
            let selector = m.lane(Width::Byte, mask, n);
            let selected = m.bit(Width::Byte, selector, 7);
            m.when(selected, |m| {
                let distance = m.constant(i.address_width, u64::from(n));
                let offset = m.add(i.address_width, base, distance);
                let offset = m.resize(i.address_width, Width::Qword, offset);
                let address = m.linear(i.memory.segment, offset, 1, true)?;
                if !writes {
                    return m.probe_write(address, 1);
                }
                let value = m.lane(Width::Byte, data, n);
                m.store(Width::Byte, address, value)
            })?;
        }
    }
    if vector::uses_mmx(i) {
        mmx::enter(m);
    }
    Ok(())
}

/// LDMXCSR: #GP(0) if a reserved bit would be set.
pub fn ldmxcsr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    let address = operand::address(m, i, 4, false)?;
    let value = m.load(Width::Dword, address)?;
    set_mxcsr(m, value)
}

/// Sets MXCSR; #GP(0) if a reserved bit would be set.
pub fn set_mxcsr<M: Machine>(m: &mut M, value: M::Int) -> Result<(), M::Stop> {
    let reserved = m.constant(Width::Dword, u64::from(!fpu::MXCSR_MASK));
    let reserved = m.and(Width::Dword, value, reserved);
    let zero = m.constant(Width::Dword, 0);
    let valid = m.equal(Width::Dword, reserved, zero);
    let invalid = m.bool_not(valid);
    m.raise_if(invalid, Exception::GP0)?;
    m.set_mxcsr(value)
}

/// STMXCSR.
pub fn stmxcsr<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    vector::check_sse(m)?;
    let value = m.mxcsr();
    let address = operand::address(m, i, 4, true)?;
    m.store(Width::Dword, address, value)
}
