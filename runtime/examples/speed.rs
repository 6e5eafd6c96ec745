//! How fast an engine runs small loops: `cargo run --release -p transvisor-runtime --example speed [interpret|translate]`.

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::Instant;

use common::Guest;
use transvisor_runtime::EngineConfig;
use vcpu::Vcpu;

/// A name and a guest that executes some 100 million instructions.
fn guests() -> Vec<(&'static str, &'static [u8])> {
    vec![
        (
            "registers",
            guest!(
                "mov ecx, 14000000",
                "4: add rax, rcx",
                "xor rdx, rax",
                "lea rbx, [rdx + rax * 4]",
                "shr rbx, 3",
                "sub rdx, rbx",
                "dec ecx",
                "jnz 4b",
                "hlt",
            ),
        ),
        (
            "memory and calls",
            guest!(
                "mov ecx, 9000000",
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
        ),
        (
            "indirect calls",
            guest!(
                "mov ecx, 12000000",
                "lea rbx, [rip + 5f]",
                "4: mov edx, ecx",
                "and edx, 48",
                "lea rdx, [rbx + rdx]",
                "call rdx",
                "dec ecx",
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
        ),
        (
            "scalar double",
            guest!(
                "mov ecx, 12000000",
                "mov rbx, 0x345000",
                "mov eax, 3",
                "cvtsi2sd xmm1, eax",
                "4: movsd xmm0, [rbx + 8]",
                "addsd xmm0, xmm1",
                "mulsd xmm0, xmm1",
                "divsd xmm0, [rbx + 16]",
                "movsd [rbx + 8], xmm0",
                "comisd xmm0, xmm1",
                "dec ecx",
                "jnz 4b",
                "hlt",
            ),
        ),
        (
            "pages copied and cleared",
            guest!(
                "mov r8d, 2000000",
                "4: mov ecx, 4096",
                "mov esi, 0x345000",
                "mov edi, 0x348123",
                "rep movsb",
                "mov ecx, 512",
                "mov edi, 0x34a000",
                "rep stosq",
                "dec r8d",
                "jnz 4b",
                "hlt",
            ),
        ),
        (
            "FXSAVE and FXRSTOR",
            guest!(
                "mov ecx, 1000000",
                "mov edi, 0x345000",
                "4: fxsave64 [rdi]",
                "fxrstor64 [rdi]",
                "dec ecx",
                "jnz 4b",
                "hlt",
            ),
        ),
        (
            "callouts of an entry",
            guest!(
                "mov ecx, 5000000",
                "4: swapgs",
                "cli",
                "mov [0x345000], rcx",
                "sti",
                "nop",
                "swapgs",
                "dec ecx",
                "jnz 4b",
                "hlt"
            ),
        ),
        ("callouts", guest!("mov ecx, 5000000", "4: pushfq", "cli", "popfq", "dec ecx", "jnz 4b", "hlt")),
    ]
}

fn main() {
    let wanted = std::env::args().nth(1);
    for (engine, config) in [("interpret", EngineConfig::interpret()), ("translate", EngineConfig::default())]
    {
        if wanted.as_ref().is_some_and(|wanted| wanted != engine) {
            continue;
        }
        for (name, code) in guests() {
            let mut guest = Guest::new(config, code);
            let start = Instant::now();
            guest.halt();
            let seconds = start.elapsed().as_secs_f64();
            let instructions = guest.engine.statistics().instructions;
            println!(
                "{engine:10} {name:20} {:8.1} M instructions/s  {:6.2} ns each  {:?}",
                instructions as f64 / seconds / 1e6,
                seconds * 1e9 / instructions as f64,
                guest.engine.leaves(),
            );
        }
    }
}
