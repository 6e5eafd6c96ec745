//! Where the SDM leaves it open what a processor does, or processors do it differently: what a comparison with the host
//! at hand does not hold against an engine. What the generator can avoid altogether is in [`crate::fuzz`].

use std::{arch::x86_64::__cpuid, sync::LazyLock};

use iced_x86::{Instruction, Mnemonic, OpKind};
use x86::state::RSP;

use crate::{
    image::{DATA, DATA_SIZE, Ran},
    program::uses_x87,
};

/// Flags of MXCSR.
const OVERFLOW: u32 = 1 << 3;
const UNDERFLOW: u32 = 1 << 4;
const PRECISION: u32 = 1 << 5;

/// MXCSR.MM, which only AMD's have: LDMXCSR of random memory may set it.
pub const AMD_MISALIGNED: u32 = 1 << 17;

/// Whether the host is one of Intel's, which the engines follow where processors differ.
static HOST_IS_INTEL: LazyLock<bool> = LazyLock::new(|| __cpuid(0).ebx.to_le_bytes() == *b"Genu");

/// Numbers of the registers that string instructions use.
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// ES, in the x87 status word: an unmasked exception waits.
pub const ERROR_SUMMARY: u16 = 1 << 7;

/// What FBSTP stores.
const FBSTP_BYTES: usize = 10;

/// TOP, in the x87 status word.
const TOP: u16 = 7 << 11;

/// Makes `got` (or what a case expects) like `native` in what a faulting instruction of `bits`-bit code does one way on
/// Intel's processors and another way on AMD's. Each holds on hosts of one vendor alone.
pub fn tolerate_vendor(insn: &Instruction, bits: u32, got: &mut Ran, native: &Ran) {
    let memory = |vector: u8| matches!(vector, 12..=14);
    let mnemonic = insn.mnemonic();
    if *HOST_IS_INTEL && got.fault == native.fault && bits == 64 && is_copy_with_32_bit_addresses(insn) {
        // RSI and RDI of REP MOVS and REP STOS, and RCX where ECX is 0, are cut to 32 bits before the first element is
        // done, faults, or turns out not to be there. (Measured on Cascade Lake; the SDM says nothing of the upper
        // halves then, AMD's leave them.)
        for register in [RSI, RDI].into_iter().chain((got.image.gpr[RCX] as u32 == 0).then_some(RCX)) {
            if native.image.gpr[register] == got.image.gpr[register] & 0xffff_ffff {
                got.image.gpr[register] = native.image.gpr[register];
            }
        }
    }
    if *HOST_IS_INTEL && native.fault.is_none() && got.fault.is_some_and(|fault| memory(fault.vector)) {
        let pending = native.image.x87.status & ERROR_SUMMARY != 0;
        if is_converting_store(insn) && pending && native.image.rip == got.image.rip + insn.len() as u64 {
            // The result traps, so there will be no store: Intel's report it without a look at the address
            // (measured on Cascade Lake), AMD's fault first (Zen 5, where the cases were made).
            (got.fault, got.image.rip) = (None, native.image.rip);
            got.image.x87.status = native.image.x87.status;
        }
    }
    let (Some(ours), Some(theirs)) = (&mut got.fault, &native.fault) else { return };
    if *HOST_IS_INTEL {
        if mnemonic == Mnemonic::Fbstp && ours == theirs && ours.vector == 14 {
            // What of a store across a page's end lies before it is written. (Measured on Cascade Lake.)
            let end = ours.address.unwrap_or(0).wrapping_sub(DATA).min(DATA_SIZE) as usize;
            let before = end.saturating_sub(FBSTP_BYTES - 1)..end;
            got.image.data[before.clone()].copy_from_slice(&native.image.data[before]);
        }
        let mmx_store = matches!(mnemonic, Mnemonic::Movd | Mnemonic::Movq | Mnemonic::Movntq)
            && insn.op0_kind() == OpKind::Memory
            && insn.op1_register().is_mm();
        let top_cleared = native.image.x87.status == got.image.x87.status & !TOP;
        if mmx_store && ours == theirs && memory(ours.vector) && top_cleared {
            // TOP is 0 before the store faults, though the tags are as they were. (Measured on Cascade Lake; SDM Vol. 1
            // 9.5.1 tells only what an instruction that completes does.)
            got.image.x87.status = native.image.x87.status;
        }
        return;
    }
    if mnemonic == Mnemonic::Call && ours == theirs && ours.vector == 13 {
        // Intel's write the return address before they find that there is no such target (measured on Cascade Lake),
        // AMD's find it first (Zen 5, where the cases were made), as the SDM's pseudocode does.
        let width = match insn.op0_kind() {
            OpKind::Memory => insn.memory_size().size(),
            _ => insn.op0_register().size(),
        };
        let top = native.image.gpr[RSP];
        let top = if bits == 16 { DATA + (top & 0xffff) } else { top };
        let slot = top.wrapping_sub(width as u64).wrapping_sub(DATA);
        if let Some(slot) = usize::try_from(slot).ok().filter(|slot| slot + width <= DATA_SIZE as usize) {
            let slot = slot..slot + width;
            got.image.data[slot.clone()].copy_from_slice(&native.image.data[slot]);
        }
    }
    let compares = matches!(mnemonic, Mnemonic::Cmpsb | Mnemonic::Cmpsw | Mnemonic::Cmpsd | Mnemonic::Cmpsq);
    if insn.is_string_instruction() && compares && memory(ours.vector) && memory(theirs.vector) {
        // Which of two elements that fault does: Intel's read that at rDI first (measured on Cascade Lake), AMD's that at
        // rSI (the fuzzer's finding on Zen 5).
        *ours = *theirs;
    }
    if mnemonic == Mnemonic::Bound && ours.vector == 5 && memory(theirs.vector) {
        // Intel's don't read the upper bound for an index below the lower one, (measured on Cascade
        // Lake), AMD's read both first (the fuzzer's finding on Zen 5).
        *ours = *theirs;
    }
}

/// Makes `got` like `native` in what a faulting instruction may do either way.
pub fn tolerate(insn: &Instruction, bits: u32, got: &mut Ran, native: &Ran) {
    tolerate_vendor(insn, bits, got, native);
    let (Some(ours), Some(theirs)) = (&mut got.fault, &native.fault) else { return };
    if matches!(insn.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq) && ours.vector == theirs.vector {
        // Which of the bytes faults first.
        ours.address = theirs.address;
    }
    if matches!(insn.mnemonic(), Mnemonic::Popa | Mnemonic::Popad) && ours == theirs {
        // What has been popped before the fault: it will be popped again.
        got.image.gpr = native.image.gpr;
    }
    if insn.mnemonic() == Mnemonic::Enter && ours == theirs {
        // What has been pushed below RSP before the fault.
        got.image.data.clone_from(&native.image.data);
    }
    if (ours.vector, theirs.vector) == (12, 13) && insn.memory_size().size() >= 16 {
        // An address in the stack segment that is neither canonical nor aligned.
        *ours = *theirs;
    }
    if matches!(theirs.vector, 5 | 12 | 13) && ours.vector == 14 && ours.address.is_some_and(wraps) {
        // "These accesses may or may not cause the indicated exceptions": SDM Vol. 3A 6.3.
        *ours = *theirs;
    }
    if ours.vector == theirs.vector && insn.mnemonic() == Mnemonic::Maskmovq {
        (got.image.x87.status, got.image.x87.tags) = (native.image.x87.status, native.image.x87.tags);
    }
    if ours.vector == 19 && theirs.vector == 19 && native.image.mxcsr & (OVERFLOW | UNDERFLOW) != 0 {
        // Whether a result that traps on overflow or underflow would have been exact: not told from the masked result.
        got.image.mxcsr = got.image.mxcsr & !PRECISION | native.image.mxcsr & PRECISION;
    }
    if insn.mnemonic() == Mnemonic::Bound && (ours.vector, theirs.vector) == (13, 5) {
        // The oracle can't tell the #GP of BOUND's memory operand.
        *ours = *theirs;
    }
    let in_steps = matches!(insn.mnemonic(), Mnemonic::Dpps | Mnemonic::Dppd);
    if ours.vector == 19 && theirs.vector == 19 && in_steps {
        // Where the products trap, the flags of the sums: here all is computed before the first trap.
        got.image.mxcsr = native.image.mxcsr;
    }
    if ours.vector == 19 && theirs.vector == 19 && uses_x87(insn) {
        // Whether MMX state is entered first.
        (got.image.x87.status, got.image.x87.tags) = (native.image.x87.status, native.image.x87.tags);
    }
}

/// Whether it is REP MOVS or REP STOS with 32-bit addresses.
fn is_copy_with_32_bit_addresses(insn: &Instruction) -> bool {
    insn.is_string_instruction()
        && insn.has_rep_prefix()
        && insn.op0_kind() == OpKind::MemoryESEDI
        && matches!(
            insn.mnemonic(),
            Mnemonic::Movsb
                | Mnemonic::Movsw
                | Mnemonic::Movsd
                | Mnemonic::Movsq
                | Mnemonic::Stosb
                | Mnemonic::Stosw
                | Mnemonic::Stosd
                | Mnemonic::Stosq
        )
}

/// Whether it is an x87 store that may round or overflow.
fn is_converting_store(insn: &Instruction) -> bool {
    matches!(
        insn.mnemonic(),
        Mnemonic::Fst
            | Mnemonic::Fstp
            | Mnemonic::Fist
            | Mnemonic::Fistp
            | Mnemonic::Fisttp
            | Mnemonic::Fbstp
    ) && insn.op0_kind() == OpKind::Memory
}

/// Whether, on this host, it is an instruction that does not fault where its result traps.
pub fn traps_before_storing(insn: &Instruction) -> bool {
    *HOST_IS_INTEL && is_converting_store(insn)
}

/// Whether an access of a few bytes there may go beyond 4 GiB.
fn wraps(address: u64) -> bool {
    (0xffff_ffe0..=0xffff_ffff).contains(&address)
}
