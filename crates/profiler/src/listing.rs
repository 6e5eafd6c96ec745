//! Guest assembly, CLIF and host assembly of a piece of code, aligned by the guest instruction that each line came from.

use std::collections::BTreeMap;

use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, NasmFormatter};

use crate::model::{HostLine, Listing, Row};

/// The part of a source location in CLIF that is the number of a guest instruction.
const SOURCE: u32 = 0xffff;

/// A guest block in the code.
pub struct GuestPart {
    /// Index among the code's members.
    pub member: usize,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Where they run.
    pub rip: u64,
    /// 16, 32 or 64.
    pub bits: u32,
    /// Number of its first instruction.
    pub source: u32,
    /// Instructions of it that are in the code.
    pub instructions: u32,
    /// Times entered.
    pub executions: u64,
}

/// A range of host code, from one offset to another, and the number of the guest instruction that it belongs to.
pub type Source = (u32, u32, u32);

/// Host instructions with their offsets.
pub fn host_lines(code: &[u8]) -> Vec<HostLine> {
    let mut formatter = assembler();
    let mut decoder = Decoder::new(64, code, DecoderOptions::NONE);
    let mut lines = Vec::new();
    let mut instruction = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        let mut text = String::new();
        formatter.format(&instruction, &mut text);
        lines.push(HostLine { offset: instruction.ip() as u32, text, samples: 0 });
    }
    lines
}

/// Number of instructions in code of 16, 32 or 64 bits.
pub fn count_instructions(bits: u32, code: &[u8]) -> u32 {
    let mut decoder = Decoder::new(bits, code, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut count = 0;
    while decoder.can_decode() {
        decoder.decode_out(&mut instruction);
        count += 1;
    }
    count
}

/// Where each instruction of code at `rip` is.
pub fn addresses(bits: u32, code: &[u8], rip: u64) -> Vec<u64> {
    let decoder = Decoder::with_ip(bits, code, rip, DecoderOptions::NONE);
    decoder.into_iter().map(|instruction| instruction.ip()).collect()
}

/// Puts the three together; `samples` has how often the host was found at an offset.
pub fn align(
    guest: &[GuestPart],
    code: &[u8],
    sources: &[Source],
    clif: Option<&str>,
    samples: &BTreeMap<u32, u64>,
) -> Listing {
    let mut host: BTreeMap<Option<u32>, Vec<HostLine>> = BTreeMap::new();
    for mut line in host_lines(code) {
        line.samples = samples.get(&line.offset).copied().unwrap_or(0);
        host.entry(source_at(sources, line.offset)).or_default().push(line);
    }
    let mut clif = clif.map(clif_lines).unwrap_or_default();
    let mut rows = Vec::new();
    let mut row =
        |source: Option<u32>, member: Option<usize>, (rip, guest): (u64, String), executions: u64| {
            let clif = clif.remove(&source).unwrap_or_default();
            let host = host.remove(&source).unwrap_or_default();
            if member.is_some() || !host.is_empty() || !clif.is_empty() {
                rows.push(Row { member, guest, rip, line: None, executions, clif, host });
            }
        };
    for part in guest {
        for (index, line) in guest_lines(part).into_iter().enumerate() {
            row(Some(part.source + index as u32), Some(part.member), line, part.executions);
        }
    }
    row(None, None, (0, "entry, exits and what belongs to no instruction".into()), 0);
    Listing { rows }
}

fn source_at(sources: &[Source], offset: u32) -> Option<u32> {
    let after = sources.partition_point(|&(start, _, _)| start <= offset);
    let &(_, end, source) = sources.get(after.checked_sub(1)?)?;
    (offset < end).then_some(source)
}

/// Addresses and assembly.
fn guest_lines(part: &GuestPart) -> Vec<(u64, String)> {
    let mut formatter = assembler();
    let decoder = Decoder::with_ip(part.bits, &part.bytes, part.rip, DecoderOptions::NONE);
    let mut lines = Vec::new();
    for instruction in decoder.into_iter().take(part.instructions as usize) {
        let mut text = format!("{:x}  ", instruction.ip());
        formatter.format(&instruction, &mut text);
        lines.push((instruction.ip(), text));
    }
    lines
}

/// Lines by source. What has none of its own, such as the head of a CLIF block, goes with what follows.
fn clif_lines(clif: &str) -> BTreeMap<Option<u32>, Vec<String>> {
    let mut lines: BTreeMap<Option<u32>, Vec<String>> = BTreeMap::new();
    let mut heads: Vec<String> = Vec::new();
    for line in clif.lines().filter(|line| !line.trim().is_empty()) {
        let (source, text) = match line.strip_prefix('@').and_then(|rest| rest.split_once(' ')) {
            Some((digits, text)) => {
                (u32::from_str_radix(digits, 16).ok().map(|bits| bits & SOURCE), text.trim())
            }
            None if line.trim_start().starts_with("block") => {
                heads.push(line.trim().to_owned());
                continue;
            }
            // Declarations, of which the code itself shows what is used.
            None if line.trim_start().starts_with(['g', 's', 'r']) && line.contains(" = ") => continue,
            None => (None, line.trim()),
        };
        let of_source = lines.entry(source).or_default();
        of_source.append(&mut heads);
        of_source.push(text.to_owned());
    }
    lines
}

fn assembler() -> NasmFormatter {
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    formatter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_stand_beside_their_instruction() {
        // Guest: inc rax; ret. Host: a nop of nobody, inc rax, ret.
        let guest = GuestPart {
            member: 0,
            bytes: vec![0x48, 0xff, 0xc0, 0xc3],
            rip: 0x1000,
            bits: 64,
            source: 0,
            instructions: 2,
            executions: 7,
        };
        let code = [0x90, 0x48, 0xff, 0xc0, 0xc3];
        let clif = "function u0:0() {\nblock0:\n@0000    v1 = iadd v0, v0\n@10001   return\n    nop\n}\n";
        let samples = BTreeMap::from([(1, 3)]);
        let listing = align(&[guest], &code, &[(1, 4, 0), (4, 5, 1)], Some(clif), &samples);
        let row = |n: usize| &listing.rows[n];
        assert_eq!(listing.rows.len(), 3);
        assert_eq!((row(2).member, row(2).host[0].text.as_str()), (None, "nop"));
        assert_eq!(row(2).clif, ["function u0:0() {", "nop", "}"]);
        assert_eq!((row(0).guest.as_str(), row(0).executions), ("1000  inc rax", 7));
        assert_eq!(row(0).clif, ["block0:", "v1 = iadd v0, v0"]);
        assert_eq!((row(0).host[0].offset, row(0).host[0].samples), (1, 3));
        assert_eq!((row(1).clif[0].as_str(), row(1).host[0].text.as_str()), ("return", "ret"));
    }
}
