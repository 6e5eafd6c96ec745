//! Debug registers and debug exceptions (SDM Vol. 3B ch. 18).
//!
//! The engine asks [`instruction_breakpoint`] before an instruction and [`data_breakpoints`] about its accesses, only
//! while [`breakpoints_armed`]; traps go through [`debug_trap`].

use memory::GuestVirt;
use semantics::{Insn, Operand};
use x86::{
    CpuState, Exception, Vector,
    control::{cr4, debug},
    flags,
};

use crate::{
    Context, Result,
    delivery::{Event, TripleFault, deliver},
};

/// DR6: B0 to B3.
const DR6_CONDITIONS: u64 = 0xf;
/// DR6 bits that software can write; the others are fixed.
const DR6_WRITABLE: u64 = DR6_CONDITIONS | debug::DR6_BD | debug::DR6_BS | debug::DR6_BT;
/// DR7 bits that read as zero: 12, 14, 15 and 11 (RTM is not announced).
const DR7_ZERO: u64 = 0xd800;

/// #DB.
const DB: Exception = Exception::new(Vector::Debug);

/// Delivers the debug trap that an instruction earned: `conditions` are DR6 bits ([`debug::DR6_BS`] for TF, B0 to B3
/// for data breakpoints). To be called after the instruction, with `state.rip` at the next one, unless
/// `state.interrupt_shadow` has MOV_SS.
pub fn debug_trap(cx: &mut Context<'_>, conditions: u64) -> Result<(), TripleFault> {
    note(cx.state, conditions);
    deliver(cx, Event::Exception(DB))
}

/// Enters conditions in DR6. B0 to B3 tell of the latest exception only, the others are left to software to clear.
pub(crate) fn note(state: &mut CpuState, conditions: u64) {
    state.dr[6] = state.dr[6] & !DR6_CONDITIONS | conditions & DR6_WRITABLE | debug::DR6_FIXED;
}

/// Whether any breakpoint is enabled: engines take the slow road while it is so.
#[inline]
pub fn breakpoints_armed(state: &CpuState) -> bool {
    state.dr[7] & debug::DR7_ENABLES != 0
}

/// DR6 bits of the instruction breakpoints at a linear address, 0 if none or RFLAGS.RF holds them off. If not 0, the
/// fault comes before the instruction: [`debug_trap`] without executing it.
pub fn instruction_breakpoint(state: &CpuState, address: GuestVirt) -> u64 {
    if state.rflags & flags::RF != 0 {
        return 0;
    }
    // The length field must be 0 for instruction breakpoints.
    matching(state, |n, kind, length| kind == 0 && length == 1 && state.dr[n] == address.0)
}

/// DR6 bits of the data breakpoints that an access of `length` bytes hits.
pub fn data_breakpoints(state: &CpuState, address: GuestVirt, length: u64, write: bool) -> u64 {
    matching(state, |n, kind, size| {
        let watched = kind == 3 || (kind == 1 && write);
        let first = state.dr[n] & !(size - 1);
        watched && address.0 < first.saturating_add(size) && first < address.0.saturating_add(length)
    })
}

/// DR6 bits of the I/O breakpoints that an access to ports hits (needs CR4.DE).
pub fn io_breakpoints(state: &CpuState, port: u16, length: u64) -> u64 {
    if state.cr4 & cr4::DE == 0 {
        return 0;
    }
    let port = u64::from(port);
    matching(state, |n, kind, size| {
        let first = state.dr[n] & !(size - 1);
        kind == 2 && port < first.saturating_add(size) && first < port.saturating_add(length)
    })
}

/// Bits of the enabled breakpoints for which `test(n, R/W field, length in bytes)` holds.
fn matching(state: &CpuState, test: impl Fn(usize, u64, u64) -> bool) -> u64 {
    let dr7 = state.dr[7];
    let mut bits = 0;
    for n in 0..4 {
        let field = dr7 >> (16 + 4 * n);
        // LEN: 1, 2, 8, 4 bytes.
        let length = [1, 2, 8, 4][(field >> 2) as usize & 3];
        if dr7 >> (2 * n) & 3 != 0 && test(n, field & 3, length) {
            bits |= 1 << n;
        }
    }
    bits
}

/// MOV to or from a debug register.
pub(crate) fn mov(cx: &mut Context<'_>, insn: &Insn) -> Result {
    match (insn.operand(0), insn.operand(1)) {
        (Operand::Gpr(destination), Operand::Debug(number)) => {
            let number = check_access(cx, number)?;
            cx.set_gpr(destination, cx.state.dr[number]);
        }
        (Operand::Debug(number), Operand::Gpr(source)) => {
            let number = check_access(cx, number)?;
            let value = cx.gpr(source);
            write(cx.state, number, value)?;
        }
        _ => return Err(Exception::UD.into()),
    }
    cx.advance(insn);
    Ok(())
}

/// #UD, #GP and #DB in the order of SDM Vol. 2 MOV debug registers; gives the register meant (DR4 and DR5 are DR6 and
/// DR7 while CR4.DE is clear).
fn check_access(cx: &mut Context<'_>, number: u8) -> Result<usize> {
    let number = match number {
        4 | 5 if cx.state.cr4 & cr4::DE != 0 => return Err(Exception::UD.into()),
        4 | 5 => number + 2,
        0..=3 | 6 | 7 => number,
        _ => return Err(Exception::UD.into()),
    };
    cx.require_cpl0()?;
    if cx.state.dr[7] & debug::DR7_GD != 0 {
        note(cx.state, debug::DR6_BD);
        return Err(DB.into());
    }
    Ok(usize::from(number))
}

fn write(state: &mut CpuState, number: usize, value: u64) -> Result<(), Exception> {
    match number {
        6 | 7 if value >> 32 != 0 => return Err(Exception::GP0),
        6 => state.dr[6] = value & DR6_WRITABLE | debug::DR6_FIXED,
        7 => state.dr[7] = value & !DR7_ZERO | debug::DR7_FIXED,
        _ => state.dr[number] = value,
    }
    Ok(())
}
