//! Code that changes under the engine: by writes to it, and by other mappings of it.

mod common;

use common::{CODE, Guest, PML4, RAM, TABLE, everywhere};
use vcpu::Vcpu;
use x86::paging;

#[test]
fn a_loop_that_rewrites_its_next_instruction() {
    // Each round stores the counter into the immediate of the instruction that follows.
    let code = guest!(
        "mov ecx, 300",
        "lea rbx, [rip + 5f + 1]",
        "4: mov [rbx], ecx",
        "5: mov edx, 0x7fffffff",
        "add rax, rdx",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.rax(), 300 * 301 / 2);
    });
}

#[test]
fn a_loop_that_rewrites_what_is_behind_a_branch() {
    // The function's instruction behind its branch is rewritten now and then; every eighth call takes the branch.
    let code = guest!(
        "mov r12d, 20",
        "mov rbx, 0x200000",
        "4: mov r13d, 64",
        "5: mov ecx, r13d",
        "and ecx, 7",
        "call rbx",
        "add r14, rax",
        "dec r13d",
        "jnz 5b",
        "mov [rbx + 5], r12d",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    let function = guest!("test ecx, ecx", "jz 6f", "mov eax, 1000", "ret", "6: mov eax, 1", "ret");
    assert_eq!(function[4..9], [0xb8, 0xe8, 3, 0, 0]);
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.write(0x20_0000, function);
        guest.halt();
        let constants = 1000 + (2..=20).sum::<u64>();
        assert_eq!(guest.gpr(14), 56 * constants + 20 * 8);
        assert!(guest.engine.statistics().invalidated > 0);
    });
}

#[test]
fn functions_rewritten_in_another_page() {
    // The function at 0x200000 returns a constant that changes between calls; it is warm in between.
    let code = guest!(
        "mov rbx, 0x200000",
        "mov r12d, 50",
        "4: mov [rbx + 1], r12d",
        "mov r13d, 10",
        "5: call rbx",
        "add r14, rax",
        "dec r13d",
        "jnz 5b",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    let function = guest!("mov eax, 0x12345678", "ret");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.write(0x20_0000, function);
        guest.halt();
        assert_eq!(guest.gpr(14), 10 * 50 * 51 / 2);
        assert!(guest.engine.statistics().invalidated > 0);
    });
}

#[test]
fn data_beside_code_does_not_cost_the_code() {
    let code = guest!(
        "mov ecx, 1000",
        "lea rbx, [rip + 6f]",
        "4: add qword ptr [rbx], rcx",
        "dec ecx",
        "jnz 4b",
        "hlt",
        ".balign 64",
        "6: .quad 0",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.read(CODE + code.len() as u64 - 8), 500_500);
        assert_eq!(guest.engine.statistics().invalidated, 0);
    });
}

#[test]
fn a_rewritten_callee_of_a_direct_call() {
    // Direct, across pages: the chain must be cut, not only the lookup.
    let code = guest!(
        "mov r12d, 40",
        "4: mov r13d, 8",
        "5: call 5b + 0x5000",
        "add r14, rax",
        "dec r13d",
        "jnz 5b",
        "mov dword ptr [0x105000 + 13], r12d",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    let function = guest!("mov eax, 1", "nop", "nop", "ret");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        // `5:` is at CODE + 12.
        let callee = CODE + 12 + 0x5000;
        guest.write(callee, function);
        guest.halt();
        let expected: u64 = 8 + 8 * (2..=40).sum::<u64>();
        assert_eq!(guest.gpr(14), expected);
    });
}

/// Calls the page at 0x150000 eight times, exchanges its mapping, calls again, and so on, by the given change.
fn remapping(flush: &[u8], other_tables: bool) {
    let head = guest!(
        "mov r12d, 30",
        "mov r15, 0x14020", // unused
        "4: mov r13d, 8",
        "5: call 5b + 0x50000",
        "add r14, rax",
        "dec r13d",
        "jnz 5b",
        "call 5b + 0x60000", // changes the mapping
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, head);
        let call = head.windows(1).position(|bytes| bytes[0] == 0xe8).expect("a call") as u64;
        let page = (CODE + call + 0x5_0000) & !0xfff;
        let entry = CODE + call + 0x5_0000;
        guest.write(entry, guest!("mov eax, 1", "ret"));
        guest.write(entry + 0x1000, guest!("mov eax, 1000", "ret"));
        guest.write(CODE + call + 0x6_0000, flush);
        guest.set(|state| {
            state.gpr[6] = TABLE + (page >> 12) * 8;
            state.gpr[7] = page;
        });
        if other_tables {
            second_address_space(&guest, page);
        }
        guest.halt();
        assert_eq!(guest.gpr(14), 15 * 8 * 1001);
    });
}

/// Tables at PML4 + 0x100000 like the first, but for one page, which is mapped to the next.
fn second_address_space(guest: &Guest, page: u64) {
    let offset = 0x10_0000u64 + 0x20_0000;
    for table in 0..5 {
        for n in 0..512 {
            let from = PML4 + table * 0x1000 + n * 8;
            let mut entry = guest.read(from);
            if table < 3 && entry & paging::LARGE == 0 && entry & paging::PRESENT != 0 {
                entry += offset;
            }
            guest.write(from + offset, &entry.to_le_bytes());
        }
    }
    let entry = TABLE + offset + (page >> 12) * 8;
    guest.write(entry, &(guest.read(entry) + 0x1000).to_le_bytes());
    assert!(PML4 + offset + 0x5000 < RAM);
}

#[test]
fn chains_across_pages_notice_invlpg() {
    // RSI: the PTE, RDI: the page. The PTE's bit 12 is flipped.
    remapping(guest!("xor qword ptr [rsi], 0x1000", "invlpg [rdi]", "ret"), false);
}

#[test]
fn chains_across_pages_notice_a_flush_by_cr3() {
    remapping(guest!("xor qword ptr [rsi], 0x1000", "mov rax, cr3", "mov cr3, rax", "ret"), false);
}

#[test]
fn chains_across_pages_notice_another_address_space() {
    remapping(guest!("mov rax, cr3", "xor rax, 0x300000", "mov cr3, rax", "ret"), true);
}

#[test]
fn code_that_becomes_not_executable() {
    let code = guest!(
        "mov r13d, 8",
        "5: call 5b + 0x50000",
        "dec r13d",
        "jnz 5b",
        "bts qword ptr [rsi], 63",
        "invlpg [rdi]",
        "mov r13d, 1",
        "jmp 5b",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        let entry = CODE + 6 + 0x5_0000;
        guest.write(entry, guest!("inc rax", "ret"));
        guest.handler(14, guest!("mov r8, [rsp + 8]", "hlt"));
        guest.set(|state| {
            state.gpr[6] = TABLE + (entry >> 12) * 8;
            state.gpr[7] = entry & !0xfff;
        });
        guest.halt();
        assert_eq!((guest.rax(), guest.gpr(8)), (8, entry));
    });
}

/// A loop whose first instruction goes on in the next page: its immediate's upper half lies there.
const ACROSS_PAGES: u64 = CODE + 0x5_0ffb;

fn loop_across_pages() -> &'static [u8] {
    guest!("4: add r14, 0x1000001", "dec r13d", "jnz 4b", "ret")
}

#[test]
fn an_instruction_across_pages_whose_second_page_is_exchanged() {
    let head = guest!(
        "mov r12d, 30",
        "4: mov r13d, 40",
        "call rbx",
        "xor qword ptr [rsi], 0x3000", // between the pages 0x1000 and 0x2000 further on
        "invlpg [rdi]",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, head);
        let code = loop_across_pages();
        guest.write(ACROSS_PAGES, code);
        guest.write(ACROSS_PAGES + 0x1000, code);
        guest.write(ACROSS_PAGES + 0x1000 + 6, &[2]);
        let second = (ACROSS_PAGES & !0xfff) + 0x1000;
        assert_eq!(second >> 12 & 3, 1, "0x3000 leads to the next page and back");
        guest.set(|state| {
            state.gpr[3] = ACROSS_PAGES;
            state.gpr[6] = TABLE + (second >> 12) * 8;
            state.gpr[7] = second;
        });
        guest.halt();
        assert_eq!(guest.gpr(14), 15 * 40 * (0x100_0001 + 0x200_0001));
    });
}

#[test]
fn an_instruction_across_pages_that_is_rewritten_in_its_second_page() {
    let head = guest!(
        "mov r12d, 30",
        "4: mov r13d, 40",
        "call rbx",
        "mov byte ptr [rbx + 6], r12b",
        "dec r12d",
        "jnz 4b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, head);
        guest.write(ACROSS_PAGES, loop_across_pages());
        guest.set(|state| state.gpr[3] = ACROSS_PAGES);
        guest.halt();
        let high: u64 = 1 + (2..=30).sum::<u64>();
        assert_eq!(guest.gpr(14), 40 * (30 + (high << 24)));
    });
}

#[test]
fn an_instruction_across_pages_whose_second_page_can_not_be_fetched() {
    let head = guest!(
        "mov r13d, 40",
        "call rbx",
        "bts qword ptr [rsi], 63",
        "invlpg [rdi]",
        "mov r13d, 40",
        "call rbx",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, head);
        guest.write(ACROSS_PAGES, loop_across_pages());
        // The error code (an instruction fetch), where it happened, and what could not be fetched.
        guest.handler(14, guest!("mov r8, [rsp]", "mov r9, [rsp + 8]", "mov r10, cr2", "hlt"));
        let second = (ACROSS_PAGES & !0xfff) + 0x1000;
        guest.set(|state| {
            state.gpr[3] = ACROSS_PAGES;
            state.gpr[6] = TABLE + (second >> 12) * 8;
            state.gpr[7] = second;
        });
        guest.halt();
        let found = [8, 9, 10].map(|n| guest.gpr(n));
        assert_eq!((guest.gpr(14), found), (40 * 0x100_0001, [0x11, ACROSS_PAGES, second]));
    });
}
