//! The rows of floating-point instructions, which are done under the guest's MXCSR. It is brought to the host's register
//! before the first of a block, unless the state says that it is there ([`crate::abi`]).

use core::mem::offset_of;

use iced_x86::Mnemonic;
use semantics::Insn;
use x86::CpuState;

use super::{
    Template,
    assembler::{Mem, condition},
    cold::ColdKind,
    effects::{Effects, FlagUse, Use, row},
};
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper};

/// The row of an instruction, if it is one of those.
pub(super) fn of(insn: &Insn) -> Option<Effects> {
    use FlagUse as F;
    use Mnemonic::*;
    let (first, flags) = match insn.mnemonic {
        Comiss | Comisd | Ucomiss | Ucomisd => (Use::Read, F::Set),
        Sqrtps | Sqrtpd | Rsqrtps | Rcpps | Roundps | Roundpd => (Use::Write, F::None),
        Cvtps2pd | Cvtpd2ps | Cvtdq2ps | Cvtdq2pd | Cvtps2dq | Cvttps2dq | Cvtpd2dq | Cvttpd2dq => {
            (Use::Write, F::None)
        }
        // Bits of the immediate without a meaning.
        Cmpps | Cmppd | Cmpss | Cmpsd if insn.immediate & 0xf8 != 0 => return None,
        mnemonic if is_to_integer(mnemonic) => (Use::Write, F::None),
        mnemonic if is_update(mnemonic) => (Use::Update, F::None),
        _ => return None,
    };
    Some(Effects { aligned: insn.memory_bytes == 16, float: true, ..row(first, flags) })
}

/// Conversions to a general register.
pub(super) fn is_to_integer(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(mnemonic, Cvtss2si | Cvttss2si | Cvtsd2si | Cvttsd2si)
}

/// First operand := first op second. Of a scalar operation with one operand, the upper part of the first keeps.
fn is_update(mnemonic: Mnemonic) -> bool {
    use Mnemonic::*;
    matches!(
        mnemonic,
        Addps
            | Addpd
            | Addss
            | Addsd
            | Subps
            | Subpd
            | Subss
            | Subsd
            | Mulps
            | Mulpd
            | Mulss
            | Mulsd
            | Divps
            | Divpd
            | Divss
            | Divsd
            | Minps
            | Minpd
            | Minss
            | Minsd
            | Maxps
            | Maxpd
            | Maxss
            | Maxsd
            | Sqrtss
            | Sqrtsd
            | Rsqrtss
            | Rcpss
            | Roundss
            | Roundsd
            | Addsubps
            | Addsubpd
            | Haddps
            | Haddpd
            | Hsubps
            | Hsubpd
            | Cmpps
            | Cmppd
            | Cmpss
            | Cmpsd
            | Dpps
            | Dppd
            | Cvtss2sd
            | Cvtsd2ss
            | Cvtsi2ss
            | Cvtsi2sd
    )
}

impl Template<'_> {
    /// Sees to it that the guest's MXCSR is in the host's register. Host flags are lost if it is not known to be.
    pub(super) fn need_mxcsr(&mut self) {
        if self.mxcsr_loaded {
            return;
        }
        self.save_flags();
        self.lose_host_flags();
        self.asm.compare_immediate32(Mem::state(offset_of!(CpuState, mxcsr_loaded)), 0);
        let from = self.asm.jump_if(condition::EQUAL);
        let entry = FIRST_RUNTIME_HELPER + RuntimeHelper::LoadMxcsr as usize;
        let resume = self.asm.code.len();
        self.note(from, resume, ColdKind::Call(entry));
        self.mxcsr_loaded = true;
    }
}
