//! From an instruction to the function that carries it out: one line for each mnemonic of
//! [`semantics::Kind::Callout`].

use iced_x86::Mnemonic;
use semantics::{Insn, Operand};
use vcpu::{Answer, Exit};
use x86::{Exception, SegmentRegister, Width};

use crate::{
    Context, Result, Stop, control, cpuid, debug, far, far_return, flags, hypercall, inspect, interrupt, io,
    iret, msr, random, segment_load, syscall, table_registers, time, tlb,
};

/// Carries out one callout instruction.
///
/// `Ok`: `state.rip` is where to go on (the instruction itself, for a string instruction with repetitions left).
/// `Err(Exception)`: nothing changed, except that IRET has unblocked NMIs, and that a task switch may fault in the new
/// task; [`crate::deliver`] it. `Err(Board)`: run it again after the answer. `Err(Exit(Halt))`: complete, with `state.halted`
/// set. Other exits: [`complete`] it.
pub fn execute(cx: &mut Context<'_>, insn: &Insn) -> Result<(), Stop> {
    match insn.mnemonic {
        // The frequent ones of a running kernel.
        Mnemonic::Cli => flags::cli(cx, insn),
        Mnemonic::Sti => flags::sti(cx, insn),
        Mnemonic::Pushf | Mnemonic::Pushfd | Mnemonic::Pushfq => flags::pushf(cx, insn),
        Mnemonic::Popf | Mnemonic::Popfd | Mnemonic::Popfq => flags::popf(cx, insn),
        Mnemonic::Clac => flags::clac(cx, insn),
        Mnemonic::Stac => flags::stac(cx, insn),
        Mnemonic::Syscall => syscall::syscall(cx, insn),
        Mnemonic::Sysret | Mnemonic::Sysretq => syscall::sysret(cx, insn),
        Mnemonic::Swapgs => syscall::swapgs(cx, insn),
        Mnemonic::Iret | Mnemonic::Iretd | Mnemonic::Iretq => iret::iret(cx, insn),
        Mnemonic::Rdtsc => time::rdtsc(cx, insn),
        Mnemonic::Rdtscp => time::rdtscp(cx, insn),
        Mnemonic::Rdmsr => msr::rdmsr(cx, insn),
        Mnemonic::Wrmsr => msr::wrmsr(cx, insn),
        Mnemonic::Invlpg => tlb::invlpg(cx, insn),
        Mnemonic::Invpcid => tlb::invpcid(cx, insn),
        Mnemonic::Hlt => time::hlt(cx, insn),

        Mnemonic::Mov => mov(cx, insn),
        Mnemonic::Pop => segment_load::pop(cx, insn),
        Mnemonic::Lds => segment_load::load_far_pointer(cx, insn, SegmentRegister::Ds),
        Mnemonic::Les => segment_load::load_far_pointer(cx, insn, SegmentRegister::Es),
        Mnemonic::Lss => segment_load::load_far_pointer(cx, insn, SegmentRegister::Ss),
        Mnemonic::Lfs => segment_load::load_far_pointer(cx, insn, SegmentRegister::Fs),
        Mnemonic::Lgs => segment_load::load_far_pointer(cx, insn, SegmentRegister::Gs),
        Mnemonic::Jmp => far::jmp(cx, insn),
        Mnemonic::Call => far::call(cx, insn),
        Mnemonic::Retf => far_return::retf(cx, insn),
        Mnemonic::Int => interrupt::int(cx, insn),
        Mnemonic::Int1 => interrupt::int1(cx, insn),
        Mnemonic::Int3 => interrupt::int3(cx, insn),
        Mnemonic::Into => interrupt::into(cx, insn),
        Mnemonic::Sysenter => syscall::sysenter(cx, insn),
        Mnemonic::Sysexit | Mnemonic::Sysexitq => syscall::sysexit(cx, insn),

        Mnemonic::In => io::input(cx, insn),
        Mnemonic::Out => io::output(cx, insn),
        Mnemonic::Insb => io::input_string(cx, insn, Width::Byte),
        Mnemonic::Insw => io::input_string(cx, insn, Width::Word),
        Mnemonic::Insd => io::input_string(cx, insn, Width::Dword),
        Mnemonic::Outsb => io::output_string(cx, insn, Width::Byte),
        Mnemonic::Outsw => io::output_string(cx, insn, Width::Word),
        Mnemonic::Outsd => io::output_string(cx, insn, Width::Dword),

        Mnemonic::Lar => inspect::lar(cx, insn),
        Mnemonic::Lsl => inspect::lsl(cx, insn),
        Mnemonic::Verr => inspect::verr(cx, insn),
        Mnemonic::Verw => inspect::verw(cx, insn),
        Mnemonic::Arpl => inspect::arpl(cx, insn),
        Mnemonic::Lgdt => table_registers::lgdt(cx, insn),
        Mnemonic::Lidt => table_registers::lidt(cx, insn),
        Mnemonic::Lldt => table_registers::lldt(cx, insn),
        Mnemonic::Ltr => table_registers::ltr(cx, insn),
        Mnemonic::Sgdt => table_registers::sgdt(cx, insn),
        Mnemonic::Sidt => table_registers::sidt(cx, insn),
        Mnemonic::Sldt => table_registers::sldt(cx, insn),
        Mnemonic::Str => table_registers::str(cx, insn),

        Mnemonic::Smsw => control::smsw(cx, insn),
        Mnemonic::Lmsw => control::lmsw(cx, insn),
        Mnemonic::Clts => control::clts(cx, insn),
        Mnemonic::Xgetbv => control::xgetbv(cx, insn),
        Mnemonic::Xsetbv => control::xsetbv(cx, insn),
        Mnemonic::Invd | Mnemonic::Wbinvd | Mnemonic::Wbnoinvd => tlb::cache_control(cx, insn),
        Mnemonic::Rdpmc => time::rdpmc(cx, insn),
        Mnemonic::Cpuid => cpuid::execute(cx, insn),
        Mnemonic::Rdrand | Mnemonic::Rdseed => random::random(cx, insn),
        Mnemonic::Vmcall | Mnemonic::Vmmcall => hypercall::execute(cx, insn),

        // MONITOR, MWAIT and whatever else is not announced.
        _ => Err(Exception::UD.into()),
    }
}

/// Completes an instruction that stopped with [`Exit::MsrRead`], [`Exit::MsrWrite`] or [`Exit::Hypercall`].
pub fn complete(cx: &mut Context<'_>, insn: &Insn, exit: Exit, answer: Answer) -> Result<(), Stop> {
    if matches!(insn.mnemonic, Mnemonic::Vmcall | Mnemonic::Vmmcall) {
        hypercall::complete(cx, insn, exit, answer);
        return Ok(());
    }
    msr::complete(cx, insn, exit, answer)
}

/// MOV with a segment, control or debug register.
fn mov(cx: &mut Context<'_>, insn: &Insn) -> Result {
    match (insn.operand(0), insn.operand(1)) {
        (Operand::Control(_), _) | (_, Operand::Control(_)) => control::mov(cx, insn),
        (Operand::Debug(_), _) | (_, Operand::Debug(_)) => debug::mov(cx, insn),
        _ => segment_load::mov(cx, insn),
    }
}
