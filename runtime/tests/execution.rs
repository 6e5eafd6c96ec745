//! Plain execution: the same guests give the same results, and retire the same instructions, on every engine.

mod common;

use common::{CODE, Guest, everywhere};
use transvisor_runtime::EngineConfig;
use vcpu::Vcpu;

#[test]
fn a_loop() {
    let code = guest!("mov ecx, 1000", "xor eax, eax", "4: add rax, rcx", "dec ecx", "jnz 4b", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.rax(), 500_500);
        assert_eq!(guest.engine.statistics().instructions, 2 + 3 * 1000 + 1);
        assert_eq!(guest.engine.state().rip, CODE + code.len() as u64);
    });
}

#[test]
fn recursive_calls() {
    let code = guest!(
        "mov edi, 20",
        "call 4f",
        "hlt",
        "4: cmp edi, 1",
        "jbe 5f",
        "push rdi",
        "dec edi",
        "call 4b",
        "pop rdi",
        "imul rax, rdi",
        "ret",
        "5: mov eax, 1",
        "ret",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.rax(), 2_432_902_008_176_640_000);
        assert_eq!(guest.gpr(4), common::STACK);
    });
}

#[test]
fn memory_across_pages() {
    // Writes words at odd addresses over three pages, then sums them.
    let code = guest!(
        "mov rdi, 0x300fff",
        "mov ecx, 1024",
        "4: mov [rdi], rcx",
        "add rdi, 9",
        "dec rcx",
        "jnz 4b",
        "mov rsi, 0x300fff",
        "mov ecx, 1024",
        "xor eax, eax",
        "5: add rax, [rsi]",
        "add qword ptr [rsi], 1",
        "add rsi, 9",
        "loop 5b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.rax(), 1024 * 1025 / 2);
        assert_eq!(guest.read(0x30_0fff), 1025);
    });
}

#[test]
fn indirect_jumps_through_a_table() {
    let code = guest!(
        "mov ecx, 3000",
        "xor eax, eax",
        "lea rbx, [rip + 7f]",
        "4: mov edx, ecx",
        "and edx, 1",
        "imul edx, edx, 16",
        "lea rdx, [rbx + rdx]",
        "call rdx",
        "dec ecx",
        "jnz 4b",
        "hlt",
        ".balign 16",
        "7: add rax, 1",
        "ret",
        ".balign 16",
        "add rax, 1000",
        "ret",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.rax(), 1500 + 1_500_000);
    });
}

#[test]
fn strings() {
    let code = guest!(
        "mov rdi, 0x200800",
        "mov eax, 0x5a",
        "mov ecx, 10000",
        "rep stosb",
        "mov rsi, 0x200800",
        "mov rdi, 0x400001",
        "mov ecx, 10000",
        "rep movsb",
        "mov rdi, 0x400001",
        "mov ecx, 20000",
        "repe scasb",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.gpr(7), 0x40_0001 + 10_001, "one beyond the first other byte");
        assert_eq!(guest.gpr(1), 20_000 - 10_001);
    });
}

#[test]
fn an_instruction_that_crosses_into_another_page() {
    let before = guest!("mov ecx, 100", "4: add rax, 0x12345678", "dec ecx", "jnz 4b", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, &[0xcc]);
        // The 6-byte addition begins two bytes before the page's end.
        let start = CODE + 0x1000 - 5 - 2;
        guest.write(start, before);
        guest.set(|state| state.rip = start);
        guest.halt();
        assert_eq!(guest.rax(), 100 * 0x1234_5678);
    });
}

#[test]
fn more_code_than_code_memory_holds() {
    // 600 functions of their own, called in order, 3 times.
    let caller = guest!(
        "mov r12d, 3",
        "4: mov ebx, 600",
        "mov rdx, 0x200000",
        "5: call rdx",
        "add rdx, 64",
        "dec ebx",
        "jnz 5b",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    let function = guest!(
        "add rax, 1",
        "mov rcx, [0x300000]",
        "lea rcx, [rcx + rax]",
        "mov [0x300000], rcx",
        "test rcx, rcx",
        "jz 6f",
        "6: ret",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, caller);
        for n in 0..600 {
            guest.write(0x20_0000 + n * 64, function);
        }
        guest.halt();
        assert_eq!(guest.rax(), 1_800);
        assert_eq!(guest.read(0x30_0000), 1_800 * 1_801 / 2);
        let statistics = guest.engine.statistics();
        if config.code_memory == 64 << 10 && statistics.compiled > 0 {
            assert!(statistics.evictions > 0);
        }
    });
}

#[test]
fn every_engine_retires_the_same_instructions() {
    let code = guest!(
        "mov ecx, 200",
        "4: push rcx",
        "mov [0x300000 + rcx * 8], rcx",
        "xor eax, eax",
        "cmp ecx, 50",
        "ja 5f",
        "cpuid",
        "5: pop rcx",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    let mut counts = Vec::new();
    for (_, config) in common::configurations() {
        let mut guest = Guest::new(config, code);
        guest.halt();
        counts.push(guest.engine.statistics().instructions);
    }
    assert_eq!(counts, vec![2 + 200 * 8 + 50; counts.len()]);
}

#[test]
fn calls_through_a_pointer_that_changes() {
    // The loop's region foresees the target that it had; then the target is another one, in another page.
    let code = guest!(
        "mov ecx, 600",
        "xor eax, eax",
        "lea rbx, [rip + 6f]",
        "lea rdx, [rip + 7f]",
        "push rbx",
        "4: call [rsp]",
        "cmp ecx, 300",
        "jne 5f",
        "mov [rsp], rdx",
        "5: dec ecx",
        "jnz 4b",
        "hlt",
        "6: inc rax",
        "ret",
        ".balign 4096",
        "7: add rax, 1000",
        "ret",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        // 301 calls until the pointer has changed: the check comes after the call.
        assert_eq!(guest.rax(), 301 + 299 * 1000);
        assert_eq!(guest.engine.statistics().instructions, 5 + 600 * 7 + 1 + 1);
    });
}

#[test]
fn recent_pages_follow_the_page_tables() {
    // In a hot loop, the page that RSP and RDI lead to is exchanged, and INVLPG says so: what is pushed in one frame must not be
    // seen in the other. The accesses at the page's end are those that a recent page does not serve.
    let code = guest!(
        "mov ecx, 200",
        "xor eax, eax",
        "mov rsp, 0x101000 + 0x80000",
        "mov rdi, 0x180000",
        "4: push rcx",
        "mov [rdi], ecx",
        "mov byte ptr [rdi + 4095], cl",
        "mov rbx, [rdx]",
        "xor rbx, 0x1000",
        "mov [rdx], rbx",
        "invlpg [rdi]",
        "pop rsi",
        "add rax, rsi",
        "mov r8d, [rdi]",
        "add rax, r8",
        "movzx r8d, byte ptr [rdi + 4095]",
        "xor rax, r8",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    // The same, on numbers.
    let mut expected = 0_u64;
    let mut frames = [(0_u64, 0_u32, 0_u8); 2];
    for n in 0..200_u64 {
        let rcx = 200 - n;
        let other = (n % 2) as usize;
        frames[other] = (rcx, rcx as u32, rcx as u8);
        let (top, first, _) = frames[1 - other];
        // The last byte is the highest of what was pushed.
        let last = frames[1 - other].2;
        let top = top & 0x00ff_ffff_ffff_ffff | u64::from(last) << 56;
        expected = expected.wrapping_add(top).wrapping_add(first.into()) ^ u64::from(last);
    }
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.set(|state| state.gpr[2] = common::TABLE + 0x180 * 8);
        guest.halt();
        assert_eq!(guest.rax(), expected);
    });
}

#[test]
fn stack_accesses_that_leave_the_page_or_its_rights() {
    // A frame across two pages, of which the upper one can only be read: what an access by RSP proved for one page must serve no
    // access in another, no store where it was a load, and nothing once RSP is another.
    let code = guest!(
        "mov ecx, 40",
        "xor eax, eax",
        "mov rsp, 0x181000",
        "4: mov rdx, 7",
        // Written, then read over the page's end, then stored to where that load was.
        "mov [rsp - 16], rdx",
        "mov rsi, [rsp - 12]",
        "mov rdi, [rsp]",
        "add rax, rdi",
        "mov [rsp], rdx",
        "add rax, rsi",
        "push rcx",
        "pop rbx",
        "add rax, rbx",
        "lea rbx, [rip + 5f]",
        "push rbx",
        "pop rsp",
        "pop r9",
        "mov rsp, 0x181000",
        "dec ecx",
        "jnz 4b",
        "hlt",
        ".balign 4096",
        ".space 16",
        "5: .quad 0x1234",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        // Of a store that is refused: counts it in R8 and goes on after it.
        guest.handler(
            14,
            guest!(
                "inc r8",
                "add rsp, 8",
                "add qword ptr [rsp], 4", // the instruction's length
                "iretq",
            ),
        );
        guest.write(common::TABLE + 0x181 * 8, &(0x18_1000_u64 | 1).to_le_bytes());
        guest.set(|state| state.cr0 |= 1 << 16);
        guest.write(0x18_1000, &9_u64.to_le_bytes());
        guest.halt();
        assert_eq!(guest.gpr(8), 40, "every store to the page is refused");
        assert_eq!(guest.gpr(9), 0x1234);
        assert_eq!(guest.read(0x18_1000), 9);
    });
}

#[test]
fn blocks_go_on_behind_branches() {
    // What is behind the loop's branches is no block by itself, but in a profile.
    let code = guest!(
        "mov ecx, 90",
        "4: inc rax",
        "cmp ecx, 1000",
        "ja 5f",
        "add rax, 2",
        "test cl, 3",
        "jz 6f",
        "add rdx, 1",
        "7: dec ecx",
        "jnz 4b",
        "hlt",
        "5: ud2",
        "6: add rbx, 1",
        "jmp 7b",
    );
    let templates = EngineConfig {
        template_threshold: 1,
        threshold: u32::MAX,
        hot_threshold: u32::MAX,
        background: false,
        ..EngineConfig::default()
    };
    let run = |config: EngineConfig| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!((guest.rax(), guest.gpr(2), guest.gpr(3), guest.gpr(1)), (270, 68, 22, 0));
        let statistics = guest.engine.statistics();
        (statistics.blocks, statistics.instructions)
    };
    let (blocks, instructions) = run(templates);
    let (alone, same) = run(EngineConfig { profile: true, ..templates });
    assert!(blocks < alone, "{blocks} blocks, {alone} without");
    assert_eq!(instructions, same);
    run(EngineConfig { hot_threshold: 20, ..templates });
}
