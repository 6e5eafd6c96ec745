//! Translations that are kept from run to run: what comes out of the file is code like any other.

mod common;

use std::sync::Arc;

use common::{Guest, Scratch};
use transvisor_runtime::{
    EngineConfig,
    persistent::{Saved, Translations, Usage},
};
use vcpu::Vcpu;

/// Templates, kept soon.
fn config() -> EngineConfig {
    EngineConfig {
        template_threshold: 1,
        threshold: u32::MAX,
        hot_threshold: u32::MAX,
        background: false,
        ..EngineConfig::default()
    }
}

/// Runs a guest to its HLT with the translations of a file, which are saved then.
fn run(config: EngineConfig, code: &[u8], file: &Scratch, prepare: impl Fn(&Guest)) -> (Guest, Usage, Saved) {
    let (translations, refusal) = Translations::open(&file.0);
    assert!(refusal.is_none(), "{refusal:?}");
    let translations = Arc::new(translations.expect("not refused"));
    let mut guest = Guest::new(config, code);
    guest.engine.use_translations(&translations);
    prepare(&guest);
    guest.halt();
    let saved = translations.save().expect("a file");
    (guest, translations.usage(), saved)
}

/// Sums of sums, by calls, a callout and string instructions.
fn program() -> &'static [u8] {
    guest!(
        "mov ecx, 200",
        "4: push rcx",
        "call 5f",
        "add r12, rax",
        "pop rcx",
        "lea rbx, [rip + 6f]",
        "dec ecx",
        "jnz 4b",
        "xor ecx, ecx",
        "mov eax, 1",
        "cpuid",
        "mov rdi, 0x300000",
        "mov ecx, 512",
        "rep stosq",
        "mov ebx, 0x200ffe",
        "jmp rbx",
        "5: mov rax, rcx",
        "8: add rax, [rip + 6f]",
        "dec rcx",
        "jnz 8b",
        "ret",
        "6: .quad 3",
    )
}

/// Its end, over a page's.
fn end(guest: &Guest) {
    guest.write(0x20_0ffe, guest!("mov edx, 0x12345678", "hlt"));
}

#[test]
fn the_second_run_takes_all_its_code_from_the_file() {
    let file = Scratch::new();
    let (first, usage, saved) = run(config(), program(), &file, end);
    assert_eq!((usage.loaded, usage.file_bytes), (0, 0));
    assert!(usage.new > 8 && matches!(saved, Saved::Written(_)), "{usage:?}");
    let statistics = first.engine.statistics();
    let (second, again, saved) = run(config(), program(), &file, end);
    assert_eq!((again.loaded, again.new, saved), (usage.new, 0, Saved::Unchanged), "{again:?}");
    let now = second.engine.statistics();
    assert_eq!(now.compile_nanoseconds, 0, "nothing was translated");
    assert_eq!((now.instructions, now.interpreted), (statistics.instructions, statistics.interpreted));
    assert_eq!((now.blocks, now.compiled), (statistics.blocks, statistics.compiled));
    assert_eq!(second.engine.state().gpr, first.engine.state().gpr);
    assert_eq!(second.gpr(2), 0x1234_5678);
}

#[test]
fn changed_code_is_translated_anew_and_the_rest_is_not() {
    let file = Scratch::new();
    let (_, usage, _) = run(config(), program(), &file, end);
    let other_end = |guest: &Guest| guest.write(0x20_0ffe, guest!("mov edx, 0x12345679", "hlt"));
    let (guest, again, _) = run(config(), program(), &file, other_end);
    assert_eq!(guest.gpr(2), 0x1234_5679);
    assert_eq!((again.loaded, again.new), (usage.new - 1, 1));
}

#[test]
fn code_from_the_file_dies_with_its_bytes() {
    // The function at 0x200000 is called, rewritten, and called.
    let code = guest!(
        "mov rbx, 0x200000",
        "call rbx",
        "mov r12, rax",
        "mov dword ptr [rbx + 1], 77",
        "call rbx",
        "add rax, r12",
        "hlt",
    );
    let function = guest!("mov eax, 5", "ret");
    let file = Scratch::new();
    for loaded in [false, true, true] {
        let (guest, usage, _) = run(config(), code, &file, |guest| guest.write(0x20_0000, function));
        assert_eq!(guest.rax(), 82);
        assert_eq!((usage.loaded > 0, usage.new > 0), (loaded, !loaded));
        assert!(guest.engine.statistics().invalidated > 0);
    }
}

#[test]
fn what_comes_from_the_file_becomes_hot_too() {
    let file = Scratch::new();
    run(config(), program(), &file, end);
    let hot = EngineConfig { hot_threshold: 3, ..config() };
    let (guest, usage, _) = run(hot, program(), &file, end);
    assert!(usage.loaded > 0);
    assert!(guest.engine.leaves().hot > 0);
    assert!(guest.engine.statistics().compile_nanoseconds > 0, "regions were made");
}

#[test]
fn regions_come_from_the_file() {
    // Two blocks, and a function in another page.
    let code = guest!(
        "mov ecx, 3000",
        "mov rbx, 0x200000",
        "4: call 4b + 0x3000",
        "test cl, 1",
        "jz 5f",
        "add r12, rax",
        "5: dec ecx",
        "jnz 4b",
        "hlt",
    );
    let function = common::CODE + 5 + 7 + 0x3000;
    let prepare = |guest: &Guest| guest.write(function, guest!("lea rax, [rcx + rbx]", "ret"));
    let file = Scratch::new();
    let hot = EngineConfig { hot_threshold: 200, ..config() };
    let (first, usage, _) = run(hot, code, &file, prepare);
    assert!(first.engine.leaves().hot > 0, "a region was made");
    assert_eq!(first.gpr(12), 1500 * 0x20_0000 + 1500 * 1500);
    let (second, again, _) = run(hot, code, &file, prepare);
    assert!(second.engine.leaves().hot > 0, "a region was looked for");
    assert_eq!((again.loaded, again.new, second.engine.statistics().compile_nanoseconds), (usage.new, 0, 0));
    assert_eq!(second.engine.state().gpr, first.engine.state().gpr);
    assert_eq!(second.engine.statistics().instructions, first.engine.statistics().instructions);
}

#[test]
fn under_stress_and_in_little_memory_all_is_as_it_was() {
    let file = Scratch::new();
    let (first, ..) = run(config(), program(), &file, end);
    for stress in 0..8 {
        let stressed = EngineConfig { stress: Some(stress), hot_threshold: 20, threshold: 20, ..config() };
        let (guest, usage, _) = run(stressed, program(), &file, end);
        assert_eq!(guest.engine.state().gpr, first.engine.state().gpr);
        assert!(usage.loaded > 0);
    }
    let little = EngineConfig { code_memory: 64 << 10, ..config() };
    let (guest, ..) = run(little, program(), &file, end);
    assert_eq!(guest.engine.state().gpr, first.engine.state().gpr);
}

#[test]
fn code_that_is_not_the_usual_is_not_kept() {
    for config in [
        EngineConfig { profile: true, ..config() },
        EngineConfig { longest_block: 1, ..config() },
        EngineConfig::interpret(),
    ] {
        let file = Scratch::new();
        let (_, usage, saved) = run(config, program(), &file, end);
        assert_eq!((usage, saved), (Usage::default(), Saved::Unchanged));
    }
}
