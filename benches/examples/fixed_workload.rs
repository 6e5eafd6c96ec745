//! Work that is the same in every run, for counting host instructions: `cargo xtask callgrind` runs it under valgrind.
//!
//! `fixed_workload interpret`: 1.4 million guest instructions, interpreted. `fixed_workload decode`: the 64-bit blocks of
//! `tests/lift`, decoded 2,000 times. `fixed_workload translate`: the same, decoded and compiled twice.
//! `fixed_workload templates`: those that templates translate, decoded once and translated 500 times. Nothing depends on
//! time, addresses, threads or random numbers.

extern crate runtime as transvisor_runtime;

#[path = "../../runtime/tests/common/mod.rs"]
mod common;

use std::{fs, hint::black_box, path::Path, process::ExitCode};

use common::Guest;
use runtime::EngineConfig;
use semantics::decode::{GuestBlock, decode_block};
use translator::{HostCode, Options, TemplateTranslator, Translator};
use x86::{CpuState, Mode, Segment, control, segment::attribute};

fn main() -> ExitCode {
    match std::env::args().nth(1).as_deref() {
        Some("interpret") => interpret(),
        Some("decode") => {
            let code = code();
            (0..2000).for_each(|_| drop(black_box(blocks(&code))));
        }
        Some("translate") => translate(),
        Some("templates") => templates(),
        _ => {
            eprintln!("usage: fixed_workload interpret|decode|translate|templates");
            return ExitCode::from(2);
        }
    }
    ExitCode::SUCCESS
}

fn interpret() {
    let programs: [&[u8]; 3] = [
        guest!(
            "mov ecx, 60000",
            "4: add rax, rcx",
            "xor rdx, rax",
            "lea rbx, [rdx + rax * 4]",
            "shr rbx, 3",
            "sub rdx, rbx",
            "cmovc rsi, rdx",
            "dec ecx",
            "jnz 4b",
            "hlt",
        ),
        guest!(
            "mov ecx, 50000",
            "mov rbx, 0x345000",
            "4: push rcx",
            "call 5f",
            "pop rcx",
            "dec ecx",
            "jnz 4b",
            "hlt",
            "5: mov rax, [rbx + 64]",
            "add rax, rcx",
            "mov [rbx + 64], rax",
            "movzx edx, byte ptr [rbx + 65]",
            "test edx, edx",
            "ret",
        ),
        guest!(
            "mov r8d, 200",
            "4: mov edi, 0x345000",
            "mov ecx, 512",
            "rep stosq",
            "movdqu xmm0, [rdi - 64]",
            "paddd xmm0, xmm1",
            "mulsd xmm2, xmm0",
            "pushfq",
            "cli",
            "popfq",
            "dec r8d",
            "jnz 4b",
            "hlt",
        ),
    ];
    for program in programs {
        Guest::new(EngineConfig::interpret(), program).halt();
    }
}

fn translate() {
    let mut translator =
        Translator::new(Options { verify: false, host: HostCode::Baseline, ..Options::default() })
            .expect("a translator");
    let code = code();
    for _ in 0..2 {
        for block in blocks(&code) {
            black_box(translator.translate(&block).expect("a block that the goldens have").code.len());
        }
    }
}

fn templates() {
    let mut translator = TemplateTranslator::counting();
    let blocks = blocks(&code());
    let mut translated = 0;
    for _ in 0..500 {
        for block in &blocks {
            if let Ok(code) = translator.translate(block, None) {
                translated += usize::from(!black_box(code).code.is_empty());
            }
        }
    }
    assert!(translated > 500 * blocks.len() / 2, "most of them have templates: {translated}");
}

fn mode() -> Mode {
    let mut state = CpuState::new();
    state.cr0 |= control::cr0::PE;
    state.cr4 |= control::cr4::OSFXSR;
    state.efer |= control::efer::LMA;
    let attributes = attribute::PRESENT | attribute::CODE | attribute::LONG | attribute::NON_SYSTEM;
    state.segments[1] = Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
    state.update_mode();
    state.mode
}

fn blocks(code: &[Vec<u8>]) -> Vec<GuestBlock> {
    // Once: a state takes longer to make than a block to decode.
    static MODE: std::sync::LazyLock<Mode> = std::sync::LazyLock::new(mode);
    code.iter().map(|bytes| decode_block(bytes, 0xffff_ffff_8100_0100, *MODE)).collect()
}

/// The guest code of `tests/lift`, without those for another mode. Fixed here by name: a new golden changes no count.
fn code() -> Vec<Vec<u8>> {
    const FILES: &[&str] = &[
        "arithmetic",
        "call",
        "callout",
        "carry_chain",
        "compare_branch",
        "conditional",
        "divide",
        "jump_indirect",
        "load_store",
        "locked",
        "narrow",
        "per_cpu",
        "prologue",
        "return",
        "shift_variable",
        "test_branch",
        "update",
        "vector",
    ];
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lift");
    let read = |name: &&str| -> Vec<u8> {
        let path = folder.join(name).with_extension("txt");
        let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let head = text.split_once("----\n").map_or(text.as_str(), |(head, _)| head);
        head.lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("rip "))
            .flat_map(str::split_whitespace)
            .map(|digits| u8::from_str_radix(digits, 16).expect("hexadecimal digits"))
            .collect()
    };
    FILES.iter().map(read).collect()
}
