//! Host code as text, for golden tests and profiles.

use std::fmt::Write;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

/// One instruction a line, with addresses that count from the block's first byte. What follows the code proper
/// (constants) is shown as instructions too.
pub(crate) fn assembly(code: &[u8]) -> String {
    let mut text = String::new();
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let _ = write!(text, "{:4x}  ", instruction.ip());
        formatter.format(&instruction, &mut text);
        text.push('\n');
    }
    text
}
