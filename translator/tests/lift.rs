//! Golden lifts: `tests/lift/*.txt` in the repository's root, each a guest block with its CLIF (or what templates make of it), its host code and
//! the number of host instructions, so that a change for the worse shows in a diff. `BLESS=1` (or `cargo xtask bless`)
//! rewrites what follows the line of dashes.

mod common;

use std::{collections::VecDeque, fmt::Write, fs, path::Path};

use common::{long_mode_state, protected_state, user_state};
use iced_x86::{Decoder, DecoderOptions, Formatter, NasmFormatter};
use semantics::{Operand, decode::decode_block};
use transvisor_translator::{
    CodeBlock, HostCode, Options, TemplateTranslator, Translator, WindowAccess,
    region::{Region, RegionBlock, Versions},
};
use x86::Mode;

const SEPARATOR: &str = "----\n";

/// What stands above the dashes: comments (`#`), `mode 32`, `rip 401000`, `region` (all blocks that can be reached from
/// the first one, together), `template` (by templates), `window` (of a user process, with the window), `window only` (without the version for the TLB), and lines of bytes.
struct Case {
    mode: Mode,
    rip: u64,
    region: bool,
    template: bool,
    /// Of a user process, which accesses memory in the window.
    window: bool,
    versions: Versions,
    bytes: Vec<u8>,
}

fn parse(name: &str, text: &str) -> Case {
    let mut case = Case {
        mode: long_mode_state().mode,
        rip: 0xffff_ffff_8100_0100,
        region: false,
        template: false,
        window: false,
        versions: Versions::Both,
        bytes: Vec::new(),
    };
    for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
        let hex =
            |digits| u64::from_str_radix(digits, 16).unwrap_or_else(|_| panic!("{name}: {line}: no hex"));
        if let Some(rip) = line.strip_prefix("rip ") {
            case.rip = hex(rip);
        } else if line == "region" {
            case.region = true;
        } else if line == "template" {
            case.template = true;
        } else if line == "window" {
            case.window = true;
            case.mode = user_state().mode;
        } else if line == "window only" {
            (case.window, case.versions) = (true, Versions::Window);
            case.mode = user_state().mode;
        } else if line == "mode 32" {
            case.mode = protected_state().mode;
        } else {
            case.bytes.extend(line.split_whitespace().map(|digits| hex(digits) as u8));
        }
    }
    case
}

/// The blocks that direct transfers reach from the first byte on.
fn region(case: &Case) -> Region {
    let mut blocks: Vec<RegionBlock> = Vec::new();
    let mut waiting = VecDeque::from([case.rip]);
    while let Some(rip) = waiting.pop_front() {
        let Some(bytes) = rip.checked_sub(case.rip).and_then(|offset| case.bytes.get(offset as usize..))
        else {
            continue;
        };
        let guest = decode_block(bytes, rip, case.mode);
        let Some(last) = guest.insns.last().copied() else { continue };
        if blocks.iter().any(|block| block.guest.rip == rip) {
            continue;
        }
        blocks.push(RegionBlock::new(guest, bytes, 0x7000_0000_0000, None, None));
        waiting.push_back(last.next_rip());
        if last.operand(0) == Operand::Near {
            waiting.push_back(last.immediate);
        }
    }
    Region { blocks, low: 0 }
}

fn assembly(bits: u32, bytes: &[u8], rip: u64) -> String {
    let mut text = String::new();
    let mut formatter = NasmFormatter::new();
    formatter.options_mut().set_space_after_operand_separator(true);
    let decoder = Decoder::with_ip(bits, bytes, rip, DecoderOptions::NONE);
    for instruction in decoder {
        write!(text, "{:x}  ", instruction.ip()).unwrap();
        formatter.format(&instruction, &mut text);
        text.push('\n');
    }
    text
}

fn describe(case: &Case, block: &CodeBlock) -> String {
    let (host_assembly, clif) = match &block.text {
        Some(text) => (text.assembly.clone(), text.clif.as_str()),
        None => (assembly(64, &block.code, 0), ""),
    };
    let host = host_assembly.lines().count();
    let mut out = String::new();
    write!(
        out,
        "guest: {} instructions, {} bytes\n{}",
        block.guest_instructions,
        block.guest_bytes,
        assembly(case.mode.code_bits(), &case.bytes, case.rip)
    )
    .unwrap();
    write!(out, "\nhost: {host} instructions, {} bytes\n{}\n", block.code.len(), host_assembly).unwrap();
    for (n, exit) in block.exits.iter().enumerate() {
        let guard = if exit.guarded { ", guarded" } else { "" };
        writeln!(out, "slot {n}: {:x}{guard}", exit.target).unwrap();
    }
    let mut accesses = block.window_accesses.clone();
    accesses.sort_by_key(|access| access.access);
    for WindowAccess { access, refused, .. } in accesses {
        writeln!(out, "window {access:x}: else {refused:x}").unwrap();
    }
    write!(out, "\n{clif}").unwrap();
    out
}

#[test]
fn lifts_are_as_written_down() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lift");
    let bless = std::env::var_os("BLESS").is_some();
    let options = Options { text: true, verify: true, host: HostCode::Baseline, ..Options::default() };
    let mut translator = Translator::new(options).unwrap();
    let mut changed = Vec::new();
    let mut files: Vec<_> = fs::read_dir(&folder)
        .expect("tests/lift is there")
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .collect();
    files.sort();
    assert!(files.len() >= 10, "the goldens are gone from {}", folder.display());
    for path in files {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let text = fs::read_to_string(&path).unwrap();
        let (head, golden) = text.split_once(SEPARATOR).unwrap_or((&text, ""));
        let case = parse(&name, head);
        let mut templates = TemplateTranslator::new();
        templates.use_windows(case.window);
        let translated = if case.template && case.region {
            templates.translate_region(&region(&case), case.versions).cloned()
        } else if case.template {
            templates.translate(&decode_block(&case.bytes, case.rip, case.mode), None).cloned()
        } else if case.region {
            translator.translate_region(&region(&case))
        } else {
            translator.translate(&decode_block(&case.bytes, case.rip, case.mode))
        };
        let translated = translated.unwrap_or_else(|error| panic!("{name}: {error}"));
        let actual = describe(&case, &translated);
        if bless {
            fs::write(&path, format!("{head}{SEPARATOR}{actual}")).unwrap();
        } else if actual != golden {
            let size = |text: &str| text.lines().find(|line| line.starts_with("host:")).map(str::to_owned);
            changed.push(format!("{name}: was {:?}, is {:?}", size(golden), size(&actual)));
        }
    }
    assert!(changed.is_empty(), "lifts changed; see the diff after BLESS=1:\n{}", changed.join("\n"));
}
