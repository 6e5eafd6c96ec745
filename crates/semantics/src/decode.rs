//! Bytes to guest blocks: iced-x86 decodes, [`lower`](crate::lower) makes [`Insn`]s of it, and a block ends where
//! control or mode may become another.
//!
//! The decoder is set up for the announced processor: x86-64-v2 and what [`native::is_offered`], without AVX, MPX and
//! CET. Encodings of those that older processors execute as something else are that (ENDBR64 and BNDMK are NOPs, TZCNT is
//! BSF where there is no BMI1); the rest has no row in [`crate::table`] and is #UD.

use iced_x86::{CpuidFeature, Decoder, DecoderError, DecoderOptions, EncodingKind, FlowControl, Instruction};
use x86::Mode;

use crate::{
    Insn, Kind, Operand,
    lower::{BLANK, lower},
    native, table,
};

/// The longest guest block, in instructions.
pub const MAX_BLOCK: usize = 64;

/// Branches that an extended block goes on behind, at most.
pub const MOST_BRANCHES: usize = 1;

/// The longest instruction, in bytes (SDM Vol. 2A 2.3.11).
pub const MAX_LENGTH: usize = 15;

/// How iced-x86 is to decode for the announced processor: F3 0F BC and F3 0F BD are BSF and BSR on those without BMI1 and LZCNT.
pub fn options() -> u32 {
    let without = |feature, option| if native::is_offered(feature) { DecoderOptions::NONE } else { option };
    without(CpuidFeature::BMI1, DecoderOptions::NO_MPFX_0FBC)
        | without(CpuidFeature::LZCNT, DecoderOptions::NO_MPFX_0FBD)
}

/// What decoding at an address gave.
#[derive(Clone, Debug)]
pub struct GuestBlock {
    /// Offset within CS of the first byte.
    pub rip: u64,
    /// The mode it was decoded for.
    pub mode: Mode,
    /// At least one instruction, unless the first does not lie within the given bytes or is invalid.
    pub insns: Vec<Insn>,
    /// Why it ends.
    pub end: BlockEnd,
}

impl GuestBlock {
    /// Bytes from the first instruction to the end of the last.
    pub fn length(&self) -> u64 {
        self.insns.iter().map(|insn| u64::from(insn.length)).sum()
    }
}

/// Why a guest block ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BlockEnd {
    /// The last instruction is a transfer, a callout, or something after which the mode may be another.
    Terminal,
    /// [`MAX_BLOCK`] was reached, or the bytes ended exactly after an instruction: the next block follows.
    Length,
    /// The next instruction lies partly beyond the given bytes (the page's end): it is run by the interpreter, alone.
    PageEnd,
    /// The next bytes are no instruction: #UD (or #GP(0) where longer than 15 bytes).
    Invalid,
}

/// Why bytes are no instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DecodeError {
    /// More bytes are needed.
    #[error("the instruction goes on beyond the given bytes")]
    Truncated,
    /// #UD.
    #[error("no instruction of the announced processor")]
    Invalid,
    /// #GP(0) (SDM Vol. 2A 2.3.11).
    #[error("the instruction is longer than 15 bytes")]
    TooLong,
}

impl DecodeError {
    /// The exception that executing it raises; none if only more bytes are needed.
    pub fn exception(self) -> Option<x86::Exception> {
        match self {
            Self::Truncated => None,
            Self::Invalid => Some(x86::Exception::UD),
            Self::TooLong => Some(x86::Exception::GP0),
        }
    }
}

/// Decodes the instruction at offset `rip` within CS.
pub fn decode_one(bytes: &[u8], rip: u64, mode: Mode) -> Result<Insn, DecodeError> {
    let mut insn = BLANK;
    Stream::new(bytes, rip, mode).next(&mut insn).map(|()| insn)
}

/// Decodes from offset `rip` within CS to the end of the block. `bytes` are those from there to the end of the page;
/// a caller that keeps to CS's limit cuts them there.
pub fn decode_block(bytes: &[u8], rip: u64, mode: Mode) -> GuestBlock {
    decode_extended(bytes, rip, mode, |_| false)
}

/// The same, but behind a forward conditional branch the block goes on if the function says so of the rip there, [`MOST_BRANCHES`] times at
/// most. What is behind a branch that is taken is not executed.
pub fn decode_extended(
    bytes: &[u8],
    rip: u64,
    mode: Mode,
    mut goes_on: impl FnMut(u64) -> bool,
) -> GuestBlock {
    let mut stream = Stream::new(bytes, rip, mode);
    let mut insns = Vec::with_capacity(8);
    let mut branches = 0;
    // Where it has to end, unless something follows.
    let mut behind_branch = 0;
    let end = loop {
        if insns.len() == MAX_BLOCK || (stream.is_at_end() && !insns.is_empty()) {
            break BlockEnd::Length;
        }
        let insn = insns.push_mut(BLANK);
        if let Err(error) = stream.next(insn) {
            insns.pop();
            break match error {
                DecodeError::Truncated => BlockEnd::PageEnd,
                DecodeError::Invalid | DecodeError::TooLong => BlockEnd::Invalid,
            };
        }
        if ends_block(insn) {
            if branches == MOST_BRANCHES || !is_forward_branch(insn) || !goes_on(insn.next_rip()) {
                break BlockEnd::Terminal;
            }
            (branches, behind_branch) = (branches + 1, insns.len());
        }
    };
    let end = if behind_branch == insns.len() && behind_branch != 0 { BlockEnd::Terminal } else { end };
    GuestBlock { rip, mode, insns, end }
}

/// Whether an instruction is a conditional branch to further on, which is mostly not taken.
fn is_forward_branch(insn: &Insn) -> bool {
    insn.code.is_jcc_short_or_near() && insn.operand(0) == Operand::Near && insn.immediate > insn.rip
}

/// Whether nothing may follow `insn` in its block: transfers, and callouts, which may change mode or control.
/// Instructions that branch to themselves (REP) may be followed.
pub fn ends_block(insn: &Insn) -> bool {
    insn.code.flow_control() != FlowControl::Next || table::kind_of(insn) == Kind::Callout
}

/// A decoder at a position.
struct Stream<'a> {
    bytes: &'a [u8],
    mode: Mode,
    decoder: Decoder<'a>,
    instruction: Instruction,
}

impl<'a> Stream<'a> {
    fn new(bytes: &'a [u8], rip: u64, mode: Mode) -> Self {
        let decoder = Decoder::with_ip(mode.code_bits(), bytes, rip, options());
        Self { bytes, mode, decoder, instruction: Instruction::default() }
    }

    fn is_at_end(&self) -> bool {
        !self.decoder.can_decode()
    }

    fn next(&mut self, insn: &mut Insn) -> Result<(), DecodeError> {
        let position = self.decoder.position();
        let rip = self.decoder.ip();
        self.decoder.decode_out(&mut self.instruction);
        match self.decoder.last_error() {
            DecoderError::None => {}
            DecoderError::NoMoreBytes => return Err(DecodeError::Truncated),
            _ => return Err(self.invalid(position, rip)),
        }
        match self.instruction.code().encoding() {
            EncodingKind::Legacy => {}
            // #UD in real and virtual-8086 mode (SDM Vol. 2A 2.5.1).
            EncodingKind::VEX if self.mode.is_protected() => {}
            _ => return Err(DecodeError::Invalid),
        }
        if !self.instruction.cpuid_features().iter().all(|&feature| native::is_offered(feature)) {
            return Err(DecodeError::Invalid);
        }
        lower(insn, &self.instruction, self.mode).ok_or(DecodeError::Invalid)?;
        match table::kind_of(insn) {
            Kind::Undefined => Err(DecodeError::Invalid),
            Kind::Lifted | Kind::Callout => Ok(()),
        }
    }

    /// Tells bytes that are no instruction from an instruction that is too long: the latter wants more bytes where it
    /// is given one less than the longest has.
    fn invalid(&self, position: usize, rip: u64) -> DecodeError {
        let rest = &self.bytes[position..];
        if rest.len() < MAX_LENGTH || self.decoder.position() - position < MAX_LENGTH {
            return DecodeError::Invalid;
        }
        let shorter = &rest[..MAX_LENGTH - 1];
        let mut decoder = Decoder::with_ip(self.mode.code_bits(), shorter, rip, options());
        let _ = decoder.decode();
        match decoder.last_error() {
            DecoderError::NoMoreBytes => DecodeError::TooLong,
            _ => DecodeError::Invalid,
        }
    }
}

#[cfg(test)]
mod tests;
