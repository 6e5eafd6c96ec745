//! INT n, INT3, INTO, INT1, BOUND's sibling events that software asks for (SDM Vol. 2 INT n; Vol. 3B 21.3.3).

use semantics::Insn;
use x86::{Exception, Vector, control::debug, flags};

use crate::{
    Context, Result,
    delivery::{Delivery, Source, deliver_once},
};

/// INT n. In virtual-8086 mode only with IOPL 3 (CR4.VME is not announced).
pub(crate) fn int(cx: &mut Context<'_>, insn: &Insn) -> Result {
    if cx.is_virtual_8086() && cx.iopl() < 3 {
        return Err(Exception::GP0.into());
    }
    software(cx, insn, insn.immediate as u8, Source::Software)
}

/// INT3: not subject to IOPL.
pub(crate) fn int3(cx: &mut Context<'_>, insn: &Insn) -> Result {
    software(cx, insn, Vector::Breakpoint as u8, Source::Software)
}

/// INTO; #UD in 64-bit mode is the decoder's.
pub(crate) fn into(cx: &mut Context<'_>, insn: &Insn) -> Result {
    if cx.state.rflags() & flags::OF == 0 {
        cx.advance(insn);
        return Ok(());
    }
    software(cx, insn, Vector::Overflow as u8, Source::Software)
}

/// INT1 (ICEBP): #DB without a DPL check and without a bit in DR6.
pub(crate) fn int1(cx: &mut Context<'_>, insn: &Insn) -> Result {
    software(cx, insn, Vector::Debug as u8, Source::PrivilegedSoftware)?;
    cx.state.dr[7] &= !debug::DR7_GD;
    Ok(())
}

fn software(cx: &mut Context<'_>, insn: &Insn, vector: u8, source: Source) -> Result {
    let delivery = Delivery {
        vector,
        source,
        error_code: None,
        return_rip: insn.next_rip(),
        return_rflags: cx.state.rflags(),
    };
    deliver_once(cx, &delivery)
}
