//! Miscellaneous instructions (SDM Vol. 1 5.1.13), and those of small extensions: CRC32, FSGSBASE, RDPID, fences.

use core::mem::offset_of;

use x86::{CpuState, Exception, Segment, SegmentRegister, Width, control::cr4, state::Msrs};

use crate::{Insn, Machine, Operand, Register, helper::Helper, operand};

/// LEA.
#[inline(always)]
pub fn lea<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let offset = operand::narrow_address(m, i);
    let value = m.resize(i.memory.width, i.operand_width(0), offset);
    operand::write(m, i, 0, value)
}

/// NOP of any length, PAUSE, prefetches, and hints of extensions that are not announced.
pub fn nop<M: Machine>(_: &mut M, _: &Insn) -> Result<(), M::Stop> {
    Ok(())
}

/// CLFLUSH: caches are invisible here, but it faults as a load of a byte does.
pub fn clflush<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let address = operand::address(m, i, 1, false)?;
    m.load(Width::Byte, address)?;
    Ok(())
}

/// MFENCE. LFENCE and SFENCE order nothing that guests could see: guest accesses keep the host's order, which is x86's.
pub fn mfence<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    m.fence();
    Ok(())
}

/// UD0, UD1, UD2.
pub fn undefined<M: Machine>(m: &mut M, _: &Insn) -> Result<(), M::Stop> {
    Err(m.raise(Exception::UD))
}

/// XLATB: AL := [segment:rBX + AL].
pub fn xlat<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let al = Register::new(0, Width::Byte);
    let width = i.memory.width;
    let base = operand::narrow_address(m, i);
    let index = m.gpr(al);
    let index = m.resize(Width::Byte, width, index);
    let offset = m.add(width, base, index);
    let offset = m.resize(width, Width::Qword, offset);
    let address = m.linear(i.memory.segment, offset, 1, false)?;
    let value = m.load(Width::Byte, address)?;
    m.set_gpr(al, value);
    Ok(())
}

/// CRC32 (CRC-32C, SSE4.2).
pub fn crc32<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let width = i.operand_width(1);
    let data = operand::read(m, i, 1)?;
    let data = m.resize(width, Width::Qword, data);
    let old = operand::read(m, i, 0)?;
    let old = m.resize(i.operand_width(0), Width::Qword, old);
    let value = m.call(Helper::Crc32, width.bytes(), old, data)?;
    // The result has 32 bits; a 64-bit destination is zero-extended.
    let value = m.resize(Width::Qword, i.operand_width(0), value);
    operand::write(m, i, 0, value)
}

/// [`Helper::Crc32`]: polynomial 0x11EDC6F41, bit-reflected, `bytes` bytes of `data`.
pub(crate) extern "C" fn crc32c(_: &mut CpuState, bytes: u64, old: u64, data: u64) -> u64 {
    const REFLECTED: u32 = 0x82f6_3b78;
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut n = 0;
        while n < 256 {
            let mut crc = n as u32;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 != 0 { crc >> 1 ^ REFLECTED } else { crc >> 1 };
                bit += 1;
            }
            table[n] = crc;
            n += 1;
        }
        table
    };
    let mut crc = old as u32;
    for byte in data.to_le_bytes().into_iter().take(bytes as usize) {
        crc = crc >> 8 ^ TABLE[usize::from(crc as u8 ^ byte)];
    }
    u64::from(crc)
}

/// Where the base of FS or GS is in the state.
const fn base_offset(segment: SegmentRegister) -> usize {
    offset_of!(CpuState, segments) + segment as usize * size_of::<Segment>() + offset_of!(Segment, base)
}

/// #UD unless CR4.FSGSBASE is set.
fn check_fsgsbase<M: Machine>(m: &mut M) -> Result<(), M::Stop> {
    let cr4 = m.state(offset_of!(CpuState, cr4), Width::Qword);
    let enabled = m.bit(Width::Qword, cr4, cr4::FSGSBASE.trailing_zeros());
    let disabled = m.bool_not(enabled);
    m.raise_if(disabled, Exception::UD)
}

fn read_base<M: Machine>(m: &mut M, i: &Insn, segment: SegmentRegister) -> Result<(), M::Stop> {
    check_fsgsbase(m)?;
    let base = m.state(base_offset(segment), Width::Qword);
    let value = m.resize(Width::Qword, i.operand_width(0), base);
    operand::write(m, i, 0, value)
}

fn write_base<M: Machine>(m: &mut M, i: &Insn, segment: SegmentRegister) -> Result<(), M::Stop> {
    check_fsgsbase(m)?;
    let value = operand::read(m, i, 0)?;
    let base = m.resize(i.operand_width(0), Width::Qword, value);
    if i.operand_width(0) == Width::Qword {
        let sixteen = m.constant(Width::Qword, 16);
        let shifted = m.shift_left(Width::Qword, base, sixteen);
        let extended = m.shift_right_signed(Width::Qword, shifted, sixteen);
        let canonical = m.equal(Width::Qword, extended, base);
        let bad = m.bool_not(canonical);
        m.raise_if(bad, Exception::GP0)?;
    }
    m.set_state(base_offset(segment), Width::Qword, base);
    Ok(())
}

/// RDFSBASE.
pub fn rdfsbase<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    read_base(m, i, SegmentRegister::Fs)
}

/// RDGSBASE.
pub fn rdgsbase<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    read_base(m, i, SegmentRegister::Gs)
}

/// WRFSBASE.
pub fn wrfsbase<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    write_base(m, i, SegmentRegister::Fs)
}

/// WRGSBASE.
pub fn wrgsbase<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    write_base(m, i, SegmentRegister::Gs)
}

/// RDPID: IA32_TSC_AUX.
pub fn rdpid<M: Machine>(m: &mut M, i: &Insn) -> Result<(), M::Stop> {
    let Operand::Gpr(register) = i.operand(0) else {
        return Err(m.decline("RDPID into no register"));
    };
    let value = m.state(offset_of!(CpuState, msrs) + offset_of!(Msrs, tsc_aux), Width::Qword);
    let value = m.resize(Width::Qword, register.width, value);
    m.set_gpr(register, value);
    Ok(())
}
