//! Instruction cases: `tests/insn/*.ins`.
//!
//! ```text
//! # a comment
//! bits 32                                   (or 16; until the next such line; 64 to begin with)
//! 48 01 d8 ; add rax,rbx                    (bytes, and the disassembly that they must have)
//!     rax=1 rbx=2 => rax=3 flags=pf         (inputs => what has changed)
//!     rax=5 => ?                            (`cargo xtask bless` has the host processor fill it in)
//!     rcx=0 => #DE                          (a fault)
//! ```
//!
//! Values are hexadecimal. `rax`…`r15`, `xmm0`…`xmm15`, `mxcsr`, `fcw`, `fsw`, `ftw`, `fpr0`…`fpr7` (x87 registers in
//! physical order, 20 digits), `flags=cf,zf` (all of the flags; `flags=` for none), `[50000010]=0123` (bytes in memory order),
//! `rip=+5` (relative to the code). Inputs that are not named are zero (RSP: the top of the data window). Everything
//! that is not named on the right must be unchanged, but for RIP, which goes to the next instruction, and the flags
//! that the architecture leaves undefined. What the host can't offer its guests (SHA, BMI1, …) is expected to be #UD,
//! whatever the right-hand side says; TZCNT and LZCNT are left out there, because they are BSF and BSR. The first line of a
//! case is made from its bytes by the example `case`.

use anyhow::{Context, Result, bail, ensure};
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter, OpKind};

use crate::image::{DATA, DATA_SIZE, FLAGS, Fault, Image, REGISTERS, Ran, is_code_size};

/// One line of inputs and outputs.
#[derive(Clone, Debug)]
pub struct Case {
    /// Line number in the file, from 1.
    pub line: usize,
    /// 64, 32 or 16.
    pub bits: u32,
    /// The instruction (or several).
    pub code: Vec<u8>,
    /// The same, decoded.
    pub instructions: Vec<Instruction>,
    /// State before.
    pub start: Image,
    /// State after, or `None` where it is to be blessed.
    pub expected: Option<Ran>,
    /// Flags that the architecture leaves undefined.
    pub undefined: u64,
    /// Disassembly, for messages.
    pub text: String,
}

/// Disassembles with the formatter that `.ins` files use.
pub fn disassemble(code: &[u8], bits: u32) -> (String, Vec<Instruction>) {
    let mut formatter = NasmFormatter::new();
    let mut text = String::new();
    let mut insns = Vec::new();
    let mut decoder = Decoder::with_ip(bits, code, 0, DecoderOptions::NONE);
    while decoder.can_decode() {
        let insn = decoder.decode();
        if !text.is_empty() {
            text.push_str(" / ");
        }
        formatter.format(&insn, &mut text);
        insns.push(insn);
    }
    (text, insns)
}

/// RFLAGS bits that `insn` leaves undefined.
pub fn undefined_flags(insn: &Instruction) -> u64 {
    use iced_x86::RflagsBits as R;
    use x86::flags as f;
    let mut bits = insn.rflags_undefined();
    let through_carry = matches!(insn.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    if through_carry && insn.op1_kind() == OpKind::Immediate8 && insn.immediate8() & 0x1f > 1 {
        // "The OF flag is defined only for 1-bit rotates", SDM Vol. 2B RCL: also where the count is a multiple of 9 or 17,
        // which iced takes for no rotation. Intel's set OF then, AMD's leave it.
        bits |= R::OF;
    }
    [(R::CF, f::CF), (R::PF, f::PF), (R::AF, f::AF), (R::ZF, f::ZF), (R::SF, f::SF), (R::OF, f::OF)]
        .into_iter()
        .filter(|(theirs, _)| bits & theirs != 0)
        .fold(0, |sum, (_, ours)| sum | ours)
}

/// Whether guests have the instruction on this host.
fn is_offered(insn: &Instruction) -> bool {
    insn.cpuid_features().iter().all(|&feature| semantics::native::is_offered(feature))
}

/// Whether it counts zeros by its name, but scans bits on this host, which is older than that.
fn is_older_scan(insn: &Instruction) -> bool {
    matches!(insn.mnemonic(), Mnemonic::Tzcnt | Mnemonic::Lzcnt) && !is_offered(insn)
}

/// What an instruction that is not offered raises.
const UNDEFINED_OPCODE: Fault = Fault { vector: 6, address: None };

/// Reads a file of cases.
pub fn parse(text: &str) -> Result<Vec<Case>> {
    let mut cases = Vec::new();
    let mut bits = 64;
    let mut code: Option<(Vec<u8>, String, Vec<Instruction>)> = None;
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        // A fault's name (#DE) begins with the same sign as a comment, but has no space after it.
        let line = line.split("# ").next().unwrap_or_default();
        let trimmed = line.trim();
        if trimmed.is_empty() {
            continue;
        }
        let here = || format!("line {number}");
        if let Some(size) = trimmed.strip_prefix("bits ") {
            bits = size.parse().with_context(here)?;
            ensure!(is_code_size(bits), "line {number}: bits 64, bits 32 or bits 16");
        } else if !line.starts_with(' ') {
            let (bytes, text) =
                trimmed.split_once(';').with_context(|| format!("line {number}: bytes ; disassembly"))?;
            let bytes = parse_bytes(bytes).with_context(here)?;
            let (actual, insns) = disassemble(&bytes, bits);
            ensure!(actual == text.trim(), "line {number}: these bytes are `{actual}`");
            code = Some((bytes, actual, insns));
        } else {
            let (bytes, text, insns) =
                code.clone().with_context(|| format!("line {number}: no code before"))?;
            let offered = is_offered(&insns[0]);
            ensure!(insns.iter().all(|insn| is_offered(insn) == offered), "line {number}: mixed extensions");
            if insns.iter().any(is_older_scan) {
                continue;
            }
            let undefined = insns.iter().fold(0, |sum, insn| sum | undefined_flags(insn));
            let (inputs, outputs) =
                trimmed.split_once("=>").with_context(|| format!("line {number}: inputs => outputs"))?;
            let mut start = Image::of(bits);
            for item in inputs.split_whitespace() {
                assign(&mut start, item).with_context(here)?;
            }
            let expected = match outputs.trim() {
                "?" => None,
                _ if !offered => Some(Ran { image: start.clone(), fault: Some(UNDEFINED_OPCODE) }),
                outputs => Some(parse_outputs(&start, bytes.len() as u64, outputs).with_context(here)?),
            };
            cases.push(Case {
                line: number,
                bits,
                code: bytes,
                instructions: insns,
                start,
                expected,
                undefined,
                text,
            });
        }
    }
    Ok(cases)
}

fn parse_outputs(start: &Image, length: u64, outputs: &str) -> Result<Ran> {
    let mut ran = Ran { image: start.clone(), fault: None };
    ran.image.rip = length;
    for item in outputs.split_whitespace() {
        if let Some(fault) = item.strip_prefix('#') {
            ran.fault = Some(parse_fault(fault)?);
            ran.image.rip = 0;
        } else {
            assign(&mut ran.image, item)?;
        }
    }
    Ok(ran)
}

fn parse_fault(text: &str) -> Result<Fault> {
    let (name, address) = match text.split_once('(') {
        Some((name, rest)) => (name, Some(hex(rest.trim_end_matches(')').trim_start_matches("0x"))? as u64)),
        None => (text, None),
    };
    let vector = match name {
        "DE" => 0,
        "BP" => 3,
        "OF" => 4,
        "BR" => 5,
        "UD" => 6,
        "NM" => 7,
        "SS" => 12,
        "GP" => 13,
        "PF" => 14,
        "MF" => 16,
        "AC" => 17,
        "XM" => 19,
        other => bail!("unknown fault #{other}"),
    };
    Ok(Fault { vector, address })
}

fn hex(text: &str) -> Result<u128> {
    u128::from_str_radix(text, 16).with_context(|| format!("`{text}` is no hexadecimal number"))
}

fn parse_bytes(text: &str) -> Result<Vec<u8>> {
    let digits: String = text.split_whitespace().collect();
    ensure!(digits.len().is_multiple_of(2) && digits.is_ascii(), "`{text}`: an odd number of digits");
    (0..digits.len()).step_by(2).map(|at| Ok(hex(&digits[at..at + 2])? as u8)).collect()
}

fn assign(image: &mut Image, item: &str) -> Result<()> {
    let (name, value) = item.split_once('=').with_context(|| format!("`{item}` is no assignment"))?;
    if let Some(address) = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        let bytes = parse_bytes(value)?;
        let offset = (hex(address)? as u64).wrapping_sub(DATA);
        ensure!(
            offset.checked_add(bytes.len() as u64).is_some_and(|end| end <= DATA_SIZE),
            "[{address}] is not within the data window"
        );
        image.data[offset as usize..][..bytes.len()].copy_from_slice(&bytes);
        return Ok(());
    }
    if name == "flags" {
        image.flags = 0;
        for flag in value.split(',').filter(|flag| !flag.is_empty()) {
            let (_, bit) =
                FLAGS.iter().find(|(name, _)| *name == flag).with_context(|| format!("no flag {flag}"))?;
            image.flags |= bit;
        }
        return Ok(());
    }
    let number = hex(value.trim_start_matches('+'))?;
    let numbered = |prefix: &str, most: usize| -> Option<usize> {
        name.strip_prefix(prefix)?.parse().ok().filter(|&index| index < most)
    };
    if let Some(index) = REGISTERS.iter().position(|register| *register == name) {
        image.gpr[index] = u64::try_from(number)?;
    } else if let Some(index) = numbered("xmm", 16) {
        image.xmm[index] = number;
    } else if let Some(index) = numbered("fpr", 8) {
        image.x87.registers[index] = [number as u64, (number >> 64) as u64];
    } else {
        match name {
            "rip" => image.rip = u64::try_from(number)?,
            "mxcsr" => image.mxcsr = u32::try_from(number)?,
            "fcw" => image.x87.control = u16::try_from(number)?,
            "fsw" => image.x87.status = u16::try_from(number)?,
            "ftw" => image.x87.tags = u16::try_from(number)?,
            _ => bail!("`{name}` is nothing that a case can name"),
        }
    }
    Ok(())
}

/// The right-hand side that says what `ran` changed.
pub fn outputs(start: &Image, length: u64, ran: &Ran, undefined: u64) -> String {
    let mut items = Vec::new();
    if let Some(fault) = ran.fault {
        items.push(fault.to_string().replace("0x", ""));
    }
    let end = &ran.image;
    items.extend(assignments(start, end, undefined));
    let usual = if ran.fault.is_some() { 0 } else { length };
    if end.rip != usual {
        items.push(format!("rip=+{:x}", end.rip));
    }
    items.join(" ")
}

/// What must be assigned to get from one state to the other (RIP apart).
pub fn assignments(from: &Image, to: &Image, undefined: u64) -> Vec<String> {
    let mut items = Vec::new();
    for (index, name) in REGISTERS.iter().enumerate() {
        if to.gpr[index] != from.gpr[index] {
            items.push(format!("{name}={:x}", to.gpr[index]));
        }
    }
    let flags = to.flags & !undefined;
    if flags != from.flags & !undefined {
        let set: Vec<&str> =
            FLAGS.iter().filter(|(_, bit)| flags & bit != 0).map(|(name, _)| *name).collect();
        items.push(format!("flags={}", set.join(",")));
    }
    for index in 0..16 {
        if to.xmm[index] != from.xmm[index] {
            items.push(format!("xmm{index}={:032x}", to.xmm[index]));
        }
    }
    for index in 0..8 {
        let [low, high] = to.x87.registers[index];
        if to.x87.registers[index] != from.x87.registers[index] {
            items.push(format!("fpr{index}={:04x}{low:016x}", high & 0xffff));
        }
    }
    let words = [
        ("mxcsr", from.mxcsr, to.mxcsr),
        ("fcw", from.x87.control.into(), to.x87.control.into()),
        ("fsw", from.x87.status.into(), to.x87.status.into()),
        ("ftw", from.x87.tags.into(), to.x87.tags.into()),
    ];
    for (name, from, to) in words {
        if from != to {
            items.push(format!("{name}={to:x}"));
        }
    }
    let mut offset = 0;
    while offset < to.data.len() {
        let changed = |at: usize| at < to.data.len() && to.data[at] != from.data[at];
        let first = offset;
        while changed(offset) {
            offset += 1;
        }
        if offset > first {
            let bytes: String = to.data[first..offset].iter().map(|byte| format!("{byte:02x}")).collect();
            items.push(format!("[{:x}]={bytes}", DATA + first as u64));
        }
        offset += 1;
    }
    items
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case() {
        let cases =
            parse("# c\n48 01 d8 ; add rax,rbx\n    rax=1 rbx=ff flags=cf => rax=100 flags=af,pf # why\n")
                .unwrap();
        let case = &cases[0];
        assert_eq!((case.line, case.start.gpr[3], case.start.flags), (3, 0xff, 1));
        let expected = case.expected.as_ref().unwrap();
        assert_eq!((expected.image.gpr[0], expected.image.rip), (0x100, 3));
        assert_eq!(outputs(&case.start, 3, expected, 0), "rax=100 flags=pf,af");
    }

    #[test]
    fn faults_and_questions() {
        let cases =
            parse("f7 f1 ; div ecx\n    => #DE\n    rcx=1 => ?\n    [50000000]=0102 => #PF(4ff)\n").unwrap();
        assert_eq!(cases[0].expected.as_ref().unwrap().fault, Some(Fault { vector: 0, address: None }));
        assert!(cases[1].expected.is_none());
        assert_eq!(
            cases[2].expected.as_ref().unwrap().fault,
            Some(Fault { vector: 14, address: Some(0x4ff) })
        );
        assert_eq!(cases[2].start.data[..2], [1, 2]);
    }

    #[test]
    fn mistakes_are_told() {
        for (text, what) in [
            ("48 01 d8 ; add rax,rcx\n", "these bytes are"),
            ("    rax=1 => ?\n", "no code"),
            ("90 ; nop\n  rax=1\n", "inputs => outputs"),
            ("90 ; nop\n  rix=1 => ?\n", "nothing that a case can name"),
            ("90 ; nop\n  [10]=00 => ?\n", "data window"),
            ("90 ; nop\n  => #ZZ\n", "unknown fault"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(what), "{error}");
        }
    }
}
