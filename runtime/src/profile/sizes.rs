//! How much host code a guest block became, without the counting for the profile.

use iced_x86::{Decoder, DecoderOptions, Instruction, Register};

use super::book::Version;

/// Bytes and instructions of host code.
#[derive(Clone, Copy, Default)]
pub(super) struct Size {
    pub bytes: u32,
    pub instructions: u32,
}

impl Size {
    fn add(&mut self, instruction: &Instruction) {
        self.bytes += instruction.len() as u32;
        self.instructions += 1;
    }
}

/// Of a piece of code, and of each guest block in it: what belongs to the block's instructions.
pub(super) struct Sizes {
    pub all: Size,
    pub members: Vec<Size>,
}

/// Instructions after the one that names a counter among which those that use it are.
const REACH: u32 = 4;

impl Sizes {
    /// Counting begins where a counter is named, and goes on as long as instructions use the register that has its address.
    pub fn of(version: &Version) -> Self {
        let all = &version.instrumentation;
        let mut sizes = Self { all: Size::default(), members: vec![Size::default(); all.blocks.len()] };
        let mut counting = version.counting.clone();
        counting.sort_unstable();
        let mut counting = counting.iter().peekable();
        let mut sources = all.sources.iter().peekable();
        let (mut counter, mut left) = (Register::None, 0u32);
        let mut decoder = Decoder::new(64, &version.host, DecoderOptions::NONE);
        let mut instruction = Instruction::default();
        while decoder.can_decode() {
            decoder.decode_out(&mut instruction);
            let at = instruction.ip() as u32;
            while sources.next_if(|range| range.end <= at).is_some() {}
            if counting.next_if(|&&field| u64::from(field) < instruction.next_ip()).is_some() {
                (counter, left) = (instruction.op0_register(), REACH);
                continue;
            }
            left = left.saturating_sub(1);
            if left > 0 && uses(&instruction, counter) {
                continue;
            }
            left = 0;
            sizes.all.add(&instruction);
            let source = sources.peek().filter(|range| range.start <= at).map(|range| range.source);
            let position = source
                .and_then(|source| all.blocks.iter().rposition(|block| block.source <= source))
                .and_then(|position| sizes.members.get_mut(position));
            if let Some(size) = position {
                size.add(&instruction);
            }
        }
        sizes
    }
}

fn uses(instruction: &Instruction, counter: Register) -> bool {
    let profiled = core::mem::offset_of!(x86::CpuState, profiled) as u64;
    instruction.memory_base() == counter
        || instruction.memory_displacement64() == profiled && instruction.op1_register() == counter
}
