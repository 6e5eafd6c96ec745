//! RDRAND and RDSEED, from the host's random-number source (SDM Vol. 1 7.3.17).

use semantics::{Insn, Operand};
use x86::{Exception, Flags, flags};

use crate::{Context, Result};

/// RDRAND and RDSEED: CF = 1 and a random value, the other status flags cleared. If the host has none to give, CF = 0
/// and the destination is zero, as the architecture provides.
pub(crate) fn random(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let Operand::Gpr(destination) = insn.operand(0) else { return Err(Exception::UD.into()) };
    let mut bytes = [0; 8];
    let filled = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    let success = filled == Ok(bytes.len());
    let value = if success { u64::from_le_bytes(bytes) } else { 0 };
    cx.set_gpr(destination, value);
    cx.state.flags = Flags::from_bits(if success { flags::CF } else { 0 });
    cx.advance(insn);
    Ok(())
}
