//! Bytes to guest blocks.

use x86::Mode;

use crate::Insn;

/// The longest guest block, in instructions.
pub const MAX_BLOCK: usize = 64;

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
