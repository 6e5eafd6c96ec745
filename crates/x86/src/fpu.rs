//! x87, MMX and SSE state, kept so that MMX registers and pushes cost no moves.

/// MXCSR after reset: all exceptions masked, round to nearest.
pub const MXCSR_RESET: u32 = 0x1f80;
/// Bits of MXCSR that may be set (no DAZ-less processors here): FXSAVE's MXCSR_MASK.
pub const MXCSR_MASK: u32 = 0xffff;
/// The exception masks of MXCSR.
pub const MXCSR_MASKS: u32 = 0x1f80;
/// x87 control word after FNINIT.
pub const FCW_INIT: u16 = 0x037f;

/// x87 state. Registers are in *physical* order, R0..R7: ST(i) is `registers[(top + i) & 7]`, MMi is `registers[i]`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C, align(16))]
pub struct X87 {
    /// R0..R7; the low 10 bytes are the 80-bit value, the rest is zero.
    pub registers: [[u64; 2]; 8],
    /// Control word.
    pub control: u16,
    /// Status word, with TOP in bits 13..11.
    pub status: u16,
    /// Abridged tag word as FXSAVE stores it: bit i set = Ri is not empty.
    pub tags: u16,
    /// Last opcode (11 bits).
    pub opcode: u16,
    /// Last instruction pointer.
    pub instruction_pointer: u64,
    /// Last data pointer.
    pub data_pointer: u64,
    /// Selectors of the two pointers, as 32-bit environments store them.
    pub instruction_selector: u16,
    /// See [`X87::instruction_selector`].
    pub data_selector: u16,
}

impl X87 {
    /// State after FNINIT (registers are left as zero).
    pub const fn new() -> Self {
        Self {
            registers: [[0; 2]; 8],
            control: FCW_INIT,
            status: 0,
            tags: 0,
            opcode: 0,
            instruction_pointer: 0,
            data_pointer: 0,
            instruction_selector: 0,
            data_selector: 0,
        }
    }

    /// TOP: which physical register is ST(0).
    #[inline(always)]
    pub const fn top(&self) -> usize {
        (self.status >> 11) as usize & 7
    }
}

impl Default for X87 {
    fn default() -> Self {
        Self::new()
    }
}
