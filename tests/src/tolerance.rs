//! Where the SDM leaves it open what a processor does, or processors do it differently: what a comparison with the host
//! at hand does not hold against an engine. What the generator can avoid altogether is in [`crate::fuzz`].

use iced_x86::{Instruction, Mnemonic};

use crate::{image::Ran, program::uses_x87};

/// Flags of MXCSR.
const OVERFLOW: u32 = 1 << 3;
const UNDERFLOW: u32 = 1 << 4;
const PRECISION: u32 = 1 << 5;

/// MXCSR.MM, which only AMD's have: LDMXCSR of random memory may set it.
pub const AMD_MISALIGNED: u32 = 1 << 17;

/// Makes `got` like `native` in what a faulting instruction may do either way.
pub fn tolerate(insn: &Instruction, got: &mut Ran, native: &Ran) {
    let (Some(ours), Some(theirs)) = (&mut got.fault, &native.fault) else { return };
    if matches!(insn.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq) && ours.vector == theirs.vector {
        // Which of the bytes faults first.
        ours.address = theirs.address;
    }
    if insn.mnemonic() == Mnemonic::Call && ours.vector == 13 && matches!(theirs.vector, 12 | 14) {
        // A target that is not canonical, and a stack that can't be written.
        *ours = *theirs;
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

/// Whether an access of a few bytes there may go beyond 4 GiB.
fn wraps(address: u64) -> bool {
    (0xffff_ffe0..=0xffff_ffff).contains(&address)
}
