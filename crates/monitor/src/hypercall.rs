//! Hypercalls: VMCALL and VMMCALL, the guest's questions to the monitor (docs/hypercalls.md).
//!
//! Number in RAX, arguments in RBX, RCX, RDX and RSI, the result in RAX: KVM's convention. KVM's own calls concern
//! interrupts and leave to the board, but for the one that is about time. Those of [`own`] do what a privileged instruction does, on the same path, so what the
//! instruction would fault for is an error here. Ring 0 only.

use memory::{GuestPhys, GuestVirt, MmioAccess};
use semantics::Insn;
use vcpu::{Answer, Exit};
use x86::{
    Exception, Width, flags,
    hypercall::{KVM_HC_CLOCK_PAIRING, error, own},
    paging::PHYSICAL_BITS,
};

use crate::{Context, Result, Stop, control, cpuid, io, kvmclock, msr};

const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;

/// VMCALL, VMMCALL. #UD on a machine without paravirtual features, as on a processor outside VMX operation.
pub(crate) fn execute(cx: &mut Context<'_>, insn: &Insn) -> Result {
    if !cx.state.paravirt {
        return Err(Exception::UD.into());
    }
    if cx.state.cpl != 0 {
        return finish(cx, insn, error::EPERM);
    }
    let wide = cx.state.mode.is_64bit();
    let width = if wide { Width::Qword } else { Width::Dword };
    let argument = |n: usize| width.truncate(cx.state.gpr[n]);
    let number = argument(RAX);
    let arguments = [argument(RBX), argument(RCX), argument(RDX), argument(RSI)];
    if number == KVM_HC_CLOCK_PAIRING {
        let result = kvmclock::pair(cx, arguments[0], arguments[1]);
        return finish(cx, insn, result);
    }
    if !wide || number < own::BASE || number - own::BASE >= 32 {
        return Err(Stop::Exit(Exit::Hypercall { number, arguments, wide }));
    }
    match call(cx, number, arguments) {
        Ok(()) => finish(cx, insn, 0),
        Err(Refusal::Error(error)) => finish(cx, insn, error),
        Err(Refusal::Stop(Stop::Exception(_))) => finish(cx, insn, error::EINVAL),
        Err(Refusal::Stop(stop @ Stop::Exit(Exit::Halt))) => {
            finish(cx, insn, 0)?;
            Err(stop)
        }
        Err(Refusal::Stop(stop)) => Err(stop),
    }
}

/// Why a call did not succeed.
enum Refusal {
    /// With this result.
    Error(u64),
    /// As the instruction for which it stands would.
    Stop(Stop),
}

impl From<Stop> for Refusal {
    fn from(stop: Stop) -> Self {
        Self::Stop(stop)
    }
}

impl From<u64> for Refusal {
    fn from(error: u64) -> Self {
        Self::Error(error)
    }
}

/// Sets the result and goes on.
fn finish(cx: &mut Context<'_>, insn: &Insn, result: u64) -> Result {
    cx.state.gpr[RAX] = result;
    cx.advance(insn);
    Ok(())
}

/// One of our own.
fn call(cx: &mut Context<'_>, number: u64, [a, b, c, _]: [u64; 4]) -> Result<(), Refusal> {
    match number {
        own::NOTHING => {}
        own::PORT_READ => {
            let (port, width) = (port(a)?, port_width(b)?);
            cx.state.gpr[RBX] = io::read_port(cx, port, width)?;
        }
        own::PORT_WRITE => {
            let (port, width) = (port(a)?, port_width(b)?);
            io::write_port(cx, port, width, c)?;
        }
        own::MMIO_READ => {
            let (address, size) = device_address(cx, a, b)?;
            let access = MmioAccess::Read { address, size };
            let value = cx.mmu.mmio.access(access).ok_or(Stop::Board)?;
            cx.state.gpr[RBX] = truncate(value, size);
        }
        own::MMIO_WRITE => {
            let (address, size) = device_address(cx, a, b)?;
            let access = MmioAccess::Write { address, size, value: truncate(c, size) };
            cx.mmu.mmio.access(access).ok_or(Stop::Board)?;
        }
        own::MSR_READ => cx.state.gpr[RBX] = msr::read(cx.state, cx.clock, msr_index(a)?)?,
        own::MSR_WRITE => msr::write(cx, msr_index(a)?, b)?,
        own::SET_CR3 => control::write_cr3(cx, a)?,
        own::SET_CR8 => control::write_cr8(cx, a)?,
        own::FLUSH_PAGE => flush_page(cx, a)?,
        own::SET_PTE => {
            if !a.is_multiple_of(8) || !GuestVirt(c).is_canonical() {
                return Err(error::EINVAL.into());
            }
            cx.write_physical(GuestPhys(a), &b.to_le_bytes()).map_err(|_| error::EFAULT)?;
            flush_page(cx, c)?;
        }
        own::CPUID => {
            let [eax, ebx, ecx, edx] = cpuid::query(cx.state, a as u32, b as u32).map(u64::from);
            let gpr = &mut cx.state.gpr;
            (gpr[RBX], gpr[RCX], gpr[RDX], gpr[RSI]) = (eax, ebx, ecx, edx);
        }
        own::WAIT => {
            cx.state.rflags |= flags::IF;
            cx.state.halted = true;
            return Err(Stop::Exit(Exit::Halt).into());
        }
        _ => return Err(error::ENOSYS.into()),
    }
    Ok(())
}

fn flush_page(cx: &mut Context<'_>, address: u64) -> Result<(), Refusal> {
    if !GuestVirt(address).is_canonical() {
        return Err(error::EINVAL.into());
    }
    cx.mmu.flush_page(cx.state, GuestVirt(address));
    Ok(())
}

fn port(number: u64) -> Result<u16, Refusal> {
    u16::try_from(number).map_err(|_| error::EINVAL.into())
}

fn port_width(bytes: u64) -> Result<Width, Refusal> {
    match bytes {
        1 => Ok(Width::Byte),
        2 => Ok(Width::Word),
        4 => Ok(Width::Dword),
        _ => Err(error::EINVAL.into()),
    }
}

fn msr_index(index: u64) -> Result<u32, Refusal> {
    u32::try_from(index).map_err(|_| error::EINVAL.into())
}

/// A naturally aligned access to what is no RAM. (RAM needs no hypercall, and its pages may hold code.)
fn device_address(cx: &Context<'_>, address: u64, bytes: u64) -> Result<(GuestPhys, u8), Refusal> {
    if !matches!(bytes, 1 | 2 | 4 | 8) || !address.is_multiple_of(bytes) || address >> PHYSICAL_BITS != 0 {
        return Err(error::EINVAL.into());
    }
    if cx.mmu.ram().host(GuestPhys(address)).is_some() {
        return Err(error::EFAULT.into());
    }
    Ok((GuestPhys(address), bytes as u8))
}

fn truncate(value: u64, bytes: u8) -> u64 {
    if bytes >= 8 { value } else { value & ((1 << (8 * u32::from(bytes))) - 1) }
}

/// Completes a hypercall that the board answered: one of KVM's, or an access to an MSR of the board's.
pub(crate) fn complete(cx: &mut Context<'_>, insn: &Insn, exit: Exit, answer: Answer) {
    let value = match answer {
        Answer::Value(value) => value,
        Answer::Done | Answer::Fault => 0,
    };
    cx.state.gpr[RAX] = match (exit, answer) {
        (Exit::Hypercall { .. }, Answer::Fault) => error::ENOSYS,
        (Exit::Hypercall { .. }, _) => value,
        (_, Answer::Fault) => error::EINVAL,
        (Exit::MsrRead { .. }, _) => {
            cx.state.gpr[RBX] = value;
            0
        }
        _ => 0,
    };
    cx.advance(insn);
}
