//! Callouts out of hot code: what they change is in force at the next instruction, and what they raise is precise.

mod common;

use common::{CODE, Guest, PML4, STACK, TABLE, everywhere};
use vcpu::{Answer, Exit, Vcpu};
use x86::{GuestPhys, control::cr4, flags, hypercall::own, paging};

const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;
const RDI: usize = 7;
const R8: usize = 8;
const R9: usize = 9;

/// Times that loops go round: all that `everywhere` has is hot long before.
const ROUNDS: u64 = 200;

/// Page tables like the first ones.
const OTHER_TABLES: u64 = 0x5_0000;
/// Where they have the page of [`CODE`].
const OTHER_CODE: u64 = 0x30_0000;

/// How often the page of [`CODE`] ran here and there: for a hundred rounds, in which exits are linked, here only, then in turn.
const OVER_THERE: (u64, u64) = (150, 50);

/// Makes the other tables, and puts `code` where they have the page of [`CODE`].
fn second_address_space(guest: &Guest, code: &[u8]) {
    let mut tables = vec![0; 0x5000];
    guest.ram.read(GuestPhys(PML4), &mut tables).unwrap();
    guest.write(OTHER_TABLES, &tables);
    let rights = paging::PRESENT | paging::WRITABLE;
    let word = |at: u64, value: u64| guest.write(OTHER_TABLES + at, &(value | rights).to_le_bytes());
    word(0, OTHER_TABLES + 0x1000);
    word(0x1000, OTHER_TABLES + 0x2000);
    word(0x2000, OTHER_TABLES + 0x4000);
    word(0x4000 + (CODE >> 12) * 8, OTHER_CODE);
    guest.write(OTHER_CODE, code);
}

#[test]
fn mov_to_cr3_remaps_the_page_that_runs() {
    let here = guest!(
        "4: mov cr3, rbx",
        "inc r8",
        "nop",
        "xchg rbx, rdx",
        "cmp ecx, 100",
        "cmove rbx, r10",
        "dec ecx",
        "jnz 4b",
        "hlt"
    );
    let there = guest!(
        "4: mov cr3, rbx",
        "inc r9",
        "inc r9",
        "xchg rbx, rdx",
        "cmp ecx, 100",
        "cmove rbx, r10",
        "dec ecx",
        "jnz 4b",
        "hlt"
    );
    // Of as many bytes, so that both go on alike.
    let there = &[&there[..3], &there[3..6], &[0x90], &there[9..]].concat();
    assert_eq!(here.len(), there.len());
    for (pcids, bits) in [(0, [0, 0]), (cr4::PCIDE, [0, 0]), (cr4::PCIDE, [1 << 63, 1 << 63 | 1])] {
        everywhere(|config| {
            let mut guest = Guest::new(config, here);
            second_address_space(&guest, there);
            guest.set(|state| {
                state.cr4 |= pcids;
                state.gpr[RCX] = ROUNDS;
                state.gpr[RBX] = PML4 | bits[0];
                state.gpr[10] = OTHER_TABLES | bits[1];
                state.gpr[RDX] = PML4 | bits[0];
            });
            guest.halt();
            assert_eq!((guest.gpr(R8), guest.gpr(R9)), OVER_THERE, "pcids {pcids:x}, {bits:x?}");
        });
    }
}

#[test]
fn invlpg_of_the_page_that_runs_after_its_entry_changed() {
    let here = guest!(
        "4: mov [rsi], rbx",
        "invlpg [rip]",
        "inc r8",
        "xchg rbx, rdx",
        "cmp ecx, 100",
        "cmove rbx, r10",
        "dec ecx",
        "jnz 4b",
        "hlt"
    );
    let there = guest!(
        "4: mov [rsi], rbx",
        "invlpg [rip]",
        "inc r9",
        "xchg rbx, rdx",
        "cmp ecx, 100",
        "cmove rbx, r10",
        "dec ecx",
        "jnz 4b",
        "hlt"
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, here);
        guest.write(OTHER_CODE, there);
        let rights = paging::PRESENT | paging::WRITABLE;
        guest.set(|state| {
            state.gpr[RCX] = ROUNDS;
            state.gpr[RSI] = TABLE + (CODE >> 12) * 8;
            state.gpr[RBX] = CODE | rights;
            state.gpr[10] = OTHER_CODE | rights;
            state.gpr[RDX] = CODE | rights;
        });
        guest.halt();
        assert_eq!((guest.gpr(R8), guest.gpr(R9)), OVER_THERE);
    });
}

#[test]
fn task_switched_changes_what_the_next_instruction_does() {
    // TS is set, so that MOVAPS raises #NM, whose handler clears it.
    let code = guest!(
        "4: mov rax, cr0",
        "or rax, 8",
        "mov cr0, rax",
        "movaps xmm0, xmm1",
        "movaps xmm1, xmm0",
        "dec ecx",
        "jnz 4b",
        "hlt"
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(7, guest!("clts", "inc rbx", "iretq"));
        guest.set(|state| state.gpr[RCX] = ROUNDS);
        guest.halt();
        assert_eq!(guest.gpr(RBX), ROUNDS);
    });
}

#[test]
fn wrmsr_of_efer_takes_syscall_away() {
    // Every other time SYSCALL is #UD; else it comes to the label 5.
    let code = guest!(
        "lea rax, [rip + 5f]",
        "mov rdx, rax",
        "shr rdx, 32",
        "mov ecx, 0xc0000082",
        "wrmsr",
        "mov rdi, 200",
        "4: mov ecx, 0xc0000080",
        "rdmsr",
        "xor eax, 1",
        "wrmsr",
        "syscall",
        "jmp 6f",
        "5: inc rbp",
        "6: dec rdi",
        "jnz 4b",
        "hlt"
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        // SYSCALL has two bytes.
        guest.handler(6, guest!("inc rbx", "add qword ptr [rsp], 2", "iretq"));
        guest.set(|state| state.msrs.star = 8 << 32);
        guest.halt();
        assert_eq!((guest.gpr(RBX), guest.gpr(5)), (ROUNDS / 2, ROUNDS / 2));
    });
}

#[test]
fn faults_of_rdmsr_and_wrmsr_are_precise() {
    // The last time round they are of registers that do not exist.
    let code = guest!(
        "4: mov ecx, 0xc0000102",
        "mov eax, esi",
        "xor edx, edx",
        "cmp esi, 1",
        "cmove ecx, r10d",
        "add rbp, 3",
        "5: wrmsr",
        "6: rdmsr",
        "add r11, rax",
        "dec esi",
        "jnz 4b",
        "hlt"
    );
    let position = |bytes: [u8; 2]| code.windows(2).position(|two| two == bytes).unwrap() as u64 + CODE;
    let (wrmsr, rdmsr) = (position([0x0f, 0x30]), position([0x0f, 0x32]));
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        // Error code, rip and flags, and where to go on.
        guest.handler(
            13,
            guest!(
                "pop rbx",
                "mov r8, r9",
                "mov r9, [rsp]",
                "add [rsp], r12",
                "mov r13, r14",
                "mov r14, [rsp + 16]",
                "mov r15, rbp",
                "iretq"
            ),
        );
        guest.set(|state| {
            state.gpr[RSI] = ROUNDS;
            state.gpr[10] = 0x1234_5678;
            state.gpr[12] = 2;
        });
        guest.halt();
        let state = guest.engine.state();
        assert_eq!((guest.gpr(RBX), guest.gpr(R8), guest.gpr(R9)), (0, wrmsr, rdmsr));
        // ADD of 3 * 200 was the last to set flags: PF, by the low byte 0x58 with its three bits, is clear.
        assert_eq!([guest.gpr(13), guest.gpr(14)], [flags::FIXED_ONE | flags::RF; 2]);
        assert_eq!(guest.gpr(15), 3 * ROUNDS);
        assert_eq!((guest.gpr(0), guest.gpr(RDX)), (1, 0), "as before the instruction that faulted");
        // RDMSR read what WRMSR wrote, but for the last time.
        assert_eq!(guest.gpr(11), ROUNDS * (ROUNDS + 1) / 2);
        assert_eq!(state.msrs.kernel_gs_base, 2);
    });
}

#[test]
fn cpuid_is_trapped_after_it_where_iret_or_popf_sets_tf() {
    for set_tf in [
        guest!(
            "mov rax, rsp",
            "push 0x10",
            "push rax",
            "push rbp",
            "push 8",
            "lea rax, [rip + 4f]",
            "push rax",
            "iretq",
            "4: cpuid",
            "ret"
        ),
        guest!("push rbp", "popfq", "cpuid", "ret"),
    ] {
        let calls = guest!("4: call 5f", "dec edi", "jnz 4b", "or ebp, 0x100", "call 5f", "hlt", "5:");
        let code = &[calls, set_tf].concat();
        let after = CODE + code.len() as u64 - 1;
        everywhere(|config| {
            let mut guest = Guest::new(config, code);
            // Once only: TF is cleared where it returns to.
            guest.handler(1, guest!("inc rsi", "mov r8, [rsp]", "and qword ptr [rsp + 16], -0x101", "iretq"));
            guest.set(|state| {
                state.gpr[RDI] = ROUNDS;
                state.gpr[5] = flags::FIXED_ONE;
            });
            guest.halt();
            assert_eq!((guest.gpr(RSI), guest.gpr(R8)), (1, after));
        });
    }
}

#[test]
fn a_lower_task_priority_is_the_boards_at_the_next_instruction() {
    let code = guest!("4: mov cr8, rax", "mov cr8, rbx", "inc rsi", "dec ecx", "jnz 4b", "hlt");
    let increment = code.windows(3).position(|bytes| bytes == [0x48, 0xff, 0xc6]).unwrap() as u64 + CODE;
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.set(|state| {
            state.gpr[0] = 9;
            state.gpr[RBX] = 3;
            state.gpr[RCX] = ROUNDS;
        });
        for round in 0..ROUNDS {
            let exit = guest.run();
            let state = guest.engine.state();
            assert_eq!((exit, state.rip, state.cr8), (Exit::Kicked, increment, 3));
            assert_eq!(guest.gpr(RSI), round);
        }
        guest.halt();
    });
}

#[test]
fn wrmsr_of_gs_base_moves_the_segment() {
    let code = guest!(
        "mov ecx, 0xc0000101",
        "xor edx, edx",
        "mov esi, 200",
        "4: lea eax, [rsi * 8 + 0x200000]",
        "wrmsr",
        "mov gs:[0], rsi",
        "add rbx, gs:[8]",
        "dec esi",
        "jnz 4b",
        "hlt"
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.gpr(RBX), (2..=ROUNDS).sum::<u64>());
        assert_eq!(guest.read(0x20_0000 + 8 * ROUNDS), ROUNDS);
    });
}

#[test]
fn a_hypercall_writes_the_code_behind_it() {
    // `add r8, imm8` and padding, in a quadword of its own, which the hypercall writes each time with another number.
    let code = guest!(
        "4: mov rax, r9",
        "mov rbx, r10",
        "mov rcx, r11",
        "mov rdx, r12",
        "vmcall",
        "or r13, rax",
        ".fill 6, 1, 0x90",
        "add r8, 1",
        "jmp 5f",
        ".fill 2, 1, 0x90",
        "5: bswap r11",
        "add r11, rbp",
        "bswap r11",
        "dec esi",
        "jnz 4b",
        "hlt"
    );
    let at = 24;
    assert_eq!(code[at..at + 4], [0x49, 0x83, 0xc0, 1]);
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        let word = u64::from_le_bytes(code[at..at + 8].try_into().unwrap());
        guest.set(|state| {
            state.gpr[R9] = own::SET_PTE;
            state.gpr[10] = CODE + at as u64;
            state.gpr[11] = word;
            state.gpr[12] = STACK;
            state.gpr[5] = 1 << 32;
            state.gpr[RSI] = 100;
        });
        guest.halt();
        assert_eq!(guest.gpr(13), 0, "every hypercall succeeded");
        // The number begins with 1 and grows by one each time.
        assert_eq!(guest.gpr(R8), 100 * 101 / 2);
    });
}

#[test]
fn each_in_and_out_asks_the_board_once() {
    let code = guest!("4: in al, dx", "add al, 1", "out 0x80, al", "insb", "dec ecx", "jnz 4b", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.set(|state| {
            state.gpr[RCX] = ROUNDS;
            state.gpr[RDX] = 0x61;
            state.gpr[RDI] = 0x20_0000;
        });
        for round in 0..ROUNDS as u32 {
            let read = Exit::PortRead { port: 0x61, size: 1 };
            let exit = if round == 0 { guest.run() } else { guest.answer(Answer::Value(7)) };
            assert_eq!(exit, read);
            let value = round % 255;
            let exit = guest.answer(Answer::Value(value.into()));
            assert_eq!(exit, Exit::PortWrite { port: 0x80, size: 1, value: value + 1 });
            assert_eq!(guest.answer(Answer::Done), read);
        }
        assert_eq!(guest.answer(Answer::Value(7)), Exit::Halt);
        assert_eq!(guest.read(0x20_0000 + ROUNDS - 8), 0x0707_0707_0707_0707);
        assert_eq!(guest.engine.state().instructions, 6 * ROUNDS + 1);
    });
}

#[test]
fn hlt_after_sti_halts_each_time() {
    let code = guest!("4: sti", "hlt", "cli", "inc rbx", "dec ecx", "jnz 4b", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0x40, guest!("inc rsi", "iretq"));
        guest.set(|state| state.gpr[RCX] = ROUNDS);
        guest.halt();
        for round in 0..ROUNDS {
            assert_eq!((guest.gpr(RBX), guest.gpr(RSI)), (round, round));
            assert_eq!(guest.interrupt(0x40), Exit::Halt);
        }
        assert_eq!(guest.gpr(RBX), ROUNDS);
    });
}
