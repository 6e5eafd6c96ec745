//! From real mode to 32-bit protected mode and ring 3 and back: blocks of every mode, interpreted or compiled.

mod common;

use common::{CODE, GDT, Guest, STACK, everywhere};
use vcpu::{Exit, Vcpu};
use x86::{CpuState, Segment, control::cr0, flags};

#[test]
fn real_mode_to_protected_mode() {
    // At 0x1000, in real mode; the GDT has flat 32-bit code at 8 and data at 0x10.
    let real = guest!(
        ".code16",
        "mov cx, 100",
        "4: add ax, cx",
        "loop 4b",
        "mov bx, ax",
        "mov eax, cr0",
        "or eax, 1",
        "mov cr0, eax",
        ".byte 0xea, 0x00, 0x20, 0x08, 0x00", // jmp far 8:0x2000
        ".code64",
    );
    let protected = guest!(
        ".code32",
        "mov eax, 0x10",
        "mov ds, eax",
        "mov es, eax",
        "mov ss, eax",
        "mov esp, 0x80000",
        "mov ecx, 5000",
        "4: push ecx",
        "call 5f",
        "pop ecx",
        "loop 4b",
        "hlt",
        "5: mov edx, [esp + 4]",
        "add [0x300000], edx",
        "inc ecx",
        "jecxz 6f",
        "6: ret",
        ".code64",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, &[0xf4]);
        guest.write(0x1000, real);
        guest.write(0x2000, protected);
        guest.write(GDT + 8, &0x00cf_9b00_0000_ffff_u64.to_le_bytes());
        guest.set(|state| {
            *state = CpuState::new();
            state.segments[1] = Segment { attributes: 0x9b, ..Segment::real(0) };
            state.cr0 = cr0::ET;
            state.gdtr = Segment { base: GDT, limit: 0x17, ..Segment::default() };
            state.gpr = [0; 16];
            state.rip = 0x1000;
        });
        guest.halt();
        assert_eq!(guest.gpr(3), 5050);
        assert_eq!(guest.read(0x30_0000) as u32, 5000 * 5001 / 2);
        assert!(guest.engine.state().mode.is_protected());
    });
}

#[test]
fn system_calls_to_ring_3_and_back() {
    // Ring 3 counts in a loop and calls the system 200 times; the same page is run in both rings.
    let kernel = guest!(
        "mov ecx, 0x200000",      // RIP of the user
        "mov r11d, 2",            // its RFLAGS
        ".byte 0x48, 0x0f, 0x07", // sysretq
    );
    let user = guest!(
        "mov r12d, 200",
        "4: mov ebx, 5",
        "5: inc r13",
        "dec ebx",
        "jnz 5b",
        "syscall",
        "dec r12d",
        "jnz 4b",
        "mov edi, 1",
        "syscall",
    );
    let entry = guest!(
        "inc r14",
        "test edi, edi",
        "jnz 4f",
        ".byte 0x48, 0x0f, 0x07", // sysretq
        "4: hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, kernel);
        guest.write(0x20_0000, user);
        guest.write(0x30_0000, entry);
        // Everything is the user's too.
        for address in [0, 0x1000, 0x2000] {
            let table = common::PML4 + address;
            for n in 0..512 {
                let entry = guest.read(table + n * 8);
                if entry != 0 {
                    guest.write(table + n * 8, &(entry | 4).to_le_bytes());
                }
            }
        }
        guest.set(|state| {
            // SYSCALL: CS 8, SS 0x10; SYSRET: SS 0x18 + 8, CS 0x18 + 16, RPL 3.
            state.msrs.star = 0x001b_0008 << 32;
            state.msrs.lstar = 0x30_0000;
            state.msrs.fmask = flags::IF;
        });
        guest.halt();
        assert_eq!((guest.gpr(13), guest.gpr(14)), (1000, 201));
        assert_eq!(guest.engine.state().cpl, 0);
    });
}

#[test]
fn user_code_may_not_run_the_kernels_page() {
    // The user jumps into a supervisor page whose blocks are warm in ring 0.
    let kernel = guest!(
        "mov r12d, 50",
        "4: call 5f",
        "dec r12d",
        "jnz 4b",
        "mov ecx, 0x200000",
        "mov r11d, 2",
        ".byte 0x48, 0x0f, 0x07", // sysretq
        "5: inc r13",
        "ret",
    );
    let user = guest!("mov rax, 0x100000", "jmp rax");
    everywhere(|config| {
        let mut guest = Guest::new(config, kernel);
        guest.write(0x20_0000, user);
        for address in [0, 0x1000] {
            let entry = guest.read(common::PML4 + address);
            guest.write(common::PML4 + address, &(entry | 4).to_le_bytes());
        }
        let page = common::PML4 + 0x2000 + 8;
        guest.write(page, &(guest.read(page) | 4).to_le_bytes());
        // The handler for ring 3 needs a TSS with RSP0.
        guest.handler(14, guest!("pop r8", "mov r9, [rsp]", "hlt"));
        guest.write(0x5_0000 + 4, &STACK.to_le_bytes());
        guest.set(|state| {
            state.msrs.star = 0x001b_0008 << 32;
            state.tr = Segment { base: 0x5_0000, limit: 0x67, selector: 0x28, attributes: 0x8b };
        });
        assert_eq!(guest.run(), Exit::Halt);
        assert_eq!(guest.gpr(13), 50);
        assert_eq!((guest.gpr(8), guest.gpr(9)), (0x15, CODE), "user, fetch, present");
    });
}
