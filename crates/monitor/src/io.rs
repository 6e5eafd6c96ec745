//! Port I/O: IN OUT INS OUTS (SDM Vol. 1 ch. 19; Vol. 2). The accesses themselves are the board's.

use memory::MmioAccess;
use semantics::{Insn, Operand, Repeat};
use x86::{Exception, GuestVirt, SegmentRegister, Width, flags, segment::system};

use crate::{Context, Result, Stop};

/// Number of RCX, RDX, RSI, RDI.
const RCX: usize = 1;
const RDX: usize = 2;
const RSI: usize = 6;
const RDI: usize = 7;

/// Where the 32-bit TSS keeps the offset of its I/O permission bitmap.
const IO_MAP_BASE: u64 = 0x66;

/// #GP(0) unless CPL and IOPL, or the bitmap in the TSS, allow all the ports (SDM Vol. 1 19.5).
fn check_permission(cx: &mut Context<'_>, port: u16, bytes: u64) -> Result {
    if !cx.is_protected() || (cx.state.cpl <= cx.iopl() && cx.state.rflags & flags::VM == 0) {
        return Ok(());
    }
    let tr = cx.state.tr;
    let limit = u64::from(tr.limit);
    let has_map = matches!(tr.kind(), system::TSS_AVAILABLE | system::TSS_BUSY) && limit > IO_MAP_BASE;
    if !has_map {
        return Err(Exception::GP0.into());
    }
    let base = cx.mmu.load_supervisor(cx.state, GuestVirt(tr.base).offset(IO_MAP_BASE), Width::Word)?;
    // Two bytes are always read, so that an access may span them.
    let offset = base + u64::from(port >> 3);
    if offset + 1 > limit {
        return Err(Exception::GP0.into());
    }
    let map = cx.mmu.load_supervisor(cx.state, GuestVirt(tr.base).offset(offset), Width::Word)?;
    let mask = ((1u64 << bytes) - 1) << (port & 7);
    if map & mask != 0 { Err(Exception::GP0.into()) } else { Ok(()) }
}

pub(crate) fn read_port(cx: &mut Context<'_>, port: u16, width: Width) -> Result<u64> {
    let access = MmioAccess::PortRead { port, size: width.bytes() as u8 };
    cx.mmu.mmio.access(access).map(|value| width.truncate(value)).ok_or(Stop::Board)
}

pub(crate) fn write_port(cx: &mut Context<'_>, port: u16, width: Width, value: u64) -> Result {
    let value = width.truncate(value) as u32;
    let access = MmioAccess::PortWrite { port, size: width.bytes() as u8, value };
    cx.mmu.mmio.access(access).map(|_| ()).ok_or(Stop::Board)
}

/// The port operand: an immediate byte or DX.
fn port_of(cx: &mut Context<'_>, insn: &Insn, n: usize) -> Result<u16> {
    match insn.operand(n) {
        Operand::Immediate => Ok(insn.immediate as u8 as u16),
        _ => Ok(cx.state.gpr[RDX] as u16),
    }
}

/// IN.
pub(crate) fn input(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let Operand::Gpr(accumulator) = insn.operand(0) else { return Err(Exception::UD.into()) };
    let port = port_of(cx, insn, 1)?;
    check_permission(cx, port, accumulator.width.bytes())?;
    let value = read_port(cx, port, accumulator.width)?;
    cx.set_gpr(accumulator, value);
    cx.advance(insn);
    Ok(())
}

/// OUT.
pub(crate) fn output(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let Operand::Gpr(accumulator) = insn.operand(1) else { return Err(Exception::UD.into()) };
    let port = port_of(cx, insn, 0)?;
    check_permission(cx, port, accumulator.width.bytes())?;
    let value = cx.gpr(accumulator);
    write_port(cx, port, accumulator.width, value)?;
    cx.advance(insn);
    Ok(())
}

/// INSB, INSW, INSD: one element.
pub(crate) fn input_string(cx: &mut Context<'_>, insn: &Insn, width: Width) -> Result {
    if repeat_is_over(cx, insn) {
        cx.advance(insn);
        return Ok(());
    }
    let port = cx.state.gpr[RDX] as u16;
    check_permission(cx, port, width.bytes())?;
    let offset = insn.address_width.truncate(cx.state.gpr[RDI]);
    let address = cx.linear(SegmentRegister::Es, offset, width.bytes(), true)?;
    // The port must not be read for nothing.
    cx.mmu.probe_write(cx.state, address, width.bytes())?;
    let value = read_port(cx, port, width)?;
    cx.mmu.store(cx.state, address, width, value)?;
    step(cx, insn, RDI, width);
    Ok(())
}

/// OUTSB, OUTSW, OUTSD: one element.
pub(crate) fn output_string(cx: &mut Context<'_>, insn: &Insn, width: Width) -> Result {
    if repeat_is_over(cx, insn) {
        cx.advance(insn);
        return Ok(());
    }
    let port = cx.state.gpr[RDX] as u16;
    check_permission(cx, port, width.bytes())?;
    let offset = insn.address_width.truncate(cx.state.gpr[RSI]);
    let address = cx.linear(insn.memory.segment, offset, width.bytes(), false)?;
    let value = cx.mmu.load(cx.state, address, width)?;
    write_port(cx, port, width, value)?;
    step(cx, insn, RSI, width);
    Ok(())
}

fn repeat_is_over(cx: &Context<'_>, insn: &Insn) -> bool {
    insn.repeat != Repeat::None && insn.address_width.truncate(cx.state.gpr[RCX]) == 0
}

/// Moves the index register, counts a repetition, and stays at the instruction while there are more.
fn step(cx: &mut Context<'_>, insn: &Insn, index: usize, width: Width) {
    let bytes = width.bytes();
    let down = cx.state.rflags & flags::DF != 0;
    let change = if down { bytes.wrapping_neg() } else { bytes };
    add_to_register(cx, index, insn.address_width, change);
    if insn.repeat != Repeat::None {
        add_to_register(cx, RCX, insn.address_width, u64::MAX);
        if insn.address_width.truncate(cx.state.gpr[RCX]) != 0 {
            return;
        }
    }
    cx.advance(insn);
}

fn add_to_register(cx: &mut Context<'_>, number: usize, width: Width, change: u64) {
    let register = semantics::Register::new(number as u8, width);
    let value = cx.gpr(register).wrapping_add(change);
    cx.set_gpr(register, value);
}
