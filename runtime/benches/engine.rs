//! What the engine's paths cost, one at a time, in compiled code: `cargo bench -p transvisor-runtime`.
//!
//! Each guest is a loop whose count is criterion's; a line is the time of one round. What is around the path that a line
//! is named after (a `dec` and a `jnz`) is in "nothing".
#![allow(missing_docs, reason = "a program, not a library")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use common::Guest;
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use transvisor_runtime::{EngineConfig, EngineMode};
use vcpu::{Answer, Entry, Exit, Vcpu};

/// Rounds that make everything compiled that is going to be.
const WARM: u64 = 20_000;

/// Where a guest finds how many rounds it is to do.
const ROUNDS: u64 = 0x34_6000;

/// Time of `rounds` rounds of a guest that counts in RCX and halts. The NMI that wakes it begins anew.
fn rounds(guest: &mut Guest, rounds: u64) -> Duration {
    guest.write(ROUNDS, &rounds.to_le_bytes());
    let begun = Instant::now();
    assert_eq!(guest.enter(Entry { nmi: true, ..Entry::default() }), Exit::Halt);
    let elapsed = begun.elapsed();
    assert_eq!(guest.read(ROUNDS), 0, "the guest began");
    elapsed
}

fn bench(c: &mut Criterion, name: &str, code: &[u8]) {
    let mut guest = Guest::new(EngineConfig::default(), code);
    guest.handler(
        2,
        guest!(
            "mov rcx, [0x346000]",
            "mov qword ptr [0x346000], 0",
            "mov qword ptr [rsp], 0x100000",
            "iretq",
        ),
    );
    // Handlers that return: of INT 0x40, and of #UD, past the two bytes of UD2.
    guest.handler(0x40, guest!("iretq"));
    guest.handler(6, guest!("add qword ptr [rsp], 2", "iretq"));
    rounds(&mut guest, WARM);
    c.bench_function(name, |b| b.iter_custom(|count| rounds(&mut guest, count)));
}

fn jumps(c: &mut Criterion) {
    bench(c, "nothing", guest!("4: dec rcx", "jnz 4b", "hlt"));
    bench(
        c,
        "four direct jumps, chained",
        guest!("4: jmp 5f", "6: jmp 7f", "5: jmp 6b", "7: jmp 8f", "8: dec rcx", "jnz 4b", "hlt"),
    );
    bench(
        c,
        "two direct jumps to another page, chained",
        guest!("4: jmp 5f", "6: dec rcx", "jnz 4b", "hlt", ".balign 4096", "5: jmp 6b"),
    );
    bench(
        c,
        "an indirect jump, one target",
        guest!("lea rbx, [rip + 5f]", "4: jmp rbx", "5: dec rcx", "jnz 4b", "hlt"),
    );
    bench(
        c,
        "an indirect call, four targets in turn, and return",
        guest!(
            "lea rbx, [rip + 5f]",
            "4: mov edx, ecx",
            "and edx, 3",
            "shl edx, 4",
            "add rdx, rbx",
            "call rdx",
            "dec rcx",
            "jnz 4b",
            "hlt",
            ".balign 16",
            "5: add rax, 1",
            "ret",
            ".balign 16",
            "add rax, 2",
            "ret",
            ".balign 16",
            "add rax, 3",
            "ret",
            ".balign 16",
            "add rax, 4",
            "ret",
        ),
    );
    bench(c, "a call and a return", guest!("4: call 5f", "dec rcx", "jnz 4b", "hlt", "5: ret"));
}

fn memory(c: &mut Criterion) {
    bench(c, "a load, TLB hit", guest!("mov rbx, 0x345000", "4: mov rax, [rbx]", "dec rcx", "jnz 4b", "hlt"));
    bench(
        c,
        "a store, TLB hit",
        guest!("mov rbx, 0x345000", "4: mov [rbx], rax", "dec rcx", "jnz 4b", "hlt"),
    );
    bench(
        c,
        "a load across pages",
        guest!("mov rbx, 0x345ffc", "4: mov rax, [rbx]", "dec rcx", "jnz 4b", "hlt"),
    );
    bench(
        c,
        "a load, TLB miss after INVLPG",
        guest!("mov rbx, 0x345000", "4: invlpg [rbx]", "mov rax, [rbx]", "dec rcx", "jnz 4b", "hlt"),
    );
    bench(
        c,
        "a load, TLB miss after a CR3 load",
        guest!(
            "mov rbx, 0x345000",
            "mov rdx, cr3",
            "4: mov cr3, rdx",
            "mov rax, [rbx]",
            "dec rcx",
            "jnz 4b",
            "hlt",
        ),
    );
    bench(
        c,
        "rep movsb, 4 KiB",
        guest!(
            "mov r8, rcx",
            "4: mov esi, 0x345000",
            "mov edi, 0x347000",
            "mov ecx, 4096",
            "rep movsb",
            "dec r8",
            "jnz 4b",
            "hlt",
        ),
    );
}

fn callouts(c: &mut Criterion) {
    bench(c, "cli and sti", guest!("4: cli", "sti", "dec rcx", "jnz 4b", "cli", "hlt"));
    bench(c, "pushfq and popfq", guest!("4: pushfq", "popfq", "dec rcx", "jnz 4b", "hlt"));
    bench(c, "rdtsc", guest!("4: rdtsc", "dec rcx", "jnz 4b", "hlt"));
    bench(
        c,
        "wrmsr of the FS base",
        guest!("mov r8, rcx", "mov ecx, 0xc0000100", "4: wrmsr", "dec r8", "jnz 4b", "hlt"),
    );
    bench(c, "cpuid", guest!("mov r8, rcx", "4: xor eax, eax", "cpuid", "dec r8", "jnz 4b", "hlt"));
    bench(c, "an interrupt and iretq", guest!("4: int 0x40", "dec rcx", "jnz 4b", "hlt"));
    bench(c, "an exception (#UD) and iretq", guest!("4: ud2", "dec rcx", "jnz 4b", "hlt"));
}

/// Out of the engine and in again.
fn exits(c: &mut Criterion) {
    let mut guest = Guest::new(EngineConfig::default(), guest!("4: out 0x80, al", "jmp 4b"));
    let mut exit = |answer| guest.enter(Entry { answer, ..Entry::default() });
    exit(Answer::Done);
    c.bench_function("an exit to the board and an entry (out)", |b| b.iter(|| exit(Answer::Done)));

    let mut guest = Guest::new(EngineConfig::default(), guest!("4: pause", "jmp 4b"));
    let kick = guest.engine.kick_handle();
    c.bench_function("a kick", |b| {
        b.iter(|| {
            kick.kick();
            assert_eq!(guest.run(), Exit::Kicked);
        });
    });
}

/// Code that is executed once: what a guest pays for its first steps in new code.
fn new_code(c: &mut Criterion) {
    // 32 bytes a block, 1,000 of them, no two alike at the same place in a page.
    let piece = guest!(
        "mov rax, [rbx + 8]",
        "lea rdx, [rax + rcx * 4]",
        "add rdx, rsi",
        "mov [rbx + 16], rdx",
        "cmp rdx, 77",
        "jne 4f",
        "inc rsi",
        ".balign 32",
        "4:",
    );
    let mut code = guest!("mov ebx, 0x345000").to_vec();
    (0..1000).for_each(|_| code.extend(piece));
    code.extend(guest!("hlt"));
    let translate = EngineConfig { mode: EngineMode::Translate, threshold: 1, ..EngineConfig::default() };
    let mut group = c.benchmark_group("1,000 new blocks of six instructions");
    group.sample_size(10);
    for (name, config) in [("decoded and interpreted", EngineConfig::interpret()), ("compiled", translate)] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(|| Guest::new(config, &code), |guest| guest.halt(), BatchSize::PerIteration);
        });
    }
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(30).measurement_time(Duration::from_secs(1)).warm_up_time(Duration::from_millis(300));
    targets = jumps, memory, callouts, exits, new_code
}
criterion_main!(benches);
