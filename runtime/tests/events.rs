//! Exceptions, interrupts, shadows and traps.

mod common;

use common::{CODE, Guest, STACK, everywhere};
use vcpu::{Entry, Exit, Vcpu};
use x86::{exception::page_fault, flags};

/// An address that is not mapped.
const HOLE: u64 = 0x4000_0000;

#[test]
fn faults_are_precise() {
    // The faulting store is in the middle of a block, after changes to registers and flags, before others.
    let code = guest!(
        "mov ecx, 50",
        "4: mov rbx, 0x300000",
        "cmp ecx, 7",
        "jne 5f",
        "mov rbx, 0x40000000",
        "5: add rax, 3",
        "stc",
        "mov [rbx], rax",
        "add rax, 1000",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    // Saves error code, rip and rax, and goes on with RBX mended.
    let handler = guest!(
        "pop r8",
        "mov r9, [rsp]",
        "mov r10, rax",
        "mov r11, [rsp + 16]",
        "mov r12, cr2",
        "mov rbx, 0x300008",
        "iretq",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(14, handler);
        guest.halt();
        assert_eq!(guest.rax(), 50 * 1003);
        assert_eq!(guest.gpr(8), u64::from(page_fault::WRITE));
        let store = guest!("mov [rbx], rax");
        let offset = code.windows(store.len()).position(|bytes| bytes == store).expect("it is there");
        assert_eq!(guest.gpr(9), CODE + offset as u64);
        assert_eq!(guest.gpr(10), 43 * 1003 + 3);
        assert_eq!(guest.gpr(11) & flags::CF, flags::CF);
        assert_ne!(guest.gpr(11) & flags::RF, 0, "the saved image of a fault has RF");
        assert_eq!(guest.gpr(12), HOLE);
        assert_eq!(guest.read(0x30_0008), 43 * 1003 + 3);
        assert_eq!(guest.engine.state().rflags & flags::RF, 0);
    });
}

#[test]
fn divide_errors_in_a_hot_loop() {
    let code = guest!(
        "mov ecx, 100",
        "4: mov eax, 100",
        "xor edx, edx",
        "mov ebx, ecx",
        "and ebx, 3",
        "div ebx",
        "add r8, rax",
        "5: dec ecx",
        "jnz 4b",
        "hlt",
    );
    let handler = guest!("inc r9", "mov ebx, 1", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0, handler);
        guest.halt();
        assert_eq!(guest.gpr(9), 25);
        assert_eq!(guest.gpr(8), 25 * (100 + 50 + 33) + 25 * 100);
    });
}

#[test]
fn interrupts_come_within_a_bounded_number_of_instructions() {
    let code = guest!("sti", "4: inc rax", "mov [0x300000], rax", "jmp 4b");
    let handler = guest!("inc rbx", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0x20, handler);
        // After STI comes its shadow, then the window opens.
        assert_eq!(guest.enter(Entry { interrupt_window: true, ..Entry::default() }), Exit::InterruptWindow);
        assert_eq!(guest.rax(), 1, "the instruction after STI runs, and no other");
        for n in 1..20 {
            assert!(guest.engine.ready_for_interrupt());
            let entry = Entry { interrupt: Some(0x20), interrupt_window: true, ..Entry::default() };
            assert_eq!(guest.enter(entry), Exit::InterruptWindow, "at the handler's IRET");
            assert_eq!(guest.gpr(3), n);
        }
    });
}

#[test]
fn a_window_opens_only_where_interrupts_are_enabled() {
    let code =
        guest!("mov ecx, 10000", "4: dec ecx", "jnz 4b", "sti", "mov rax, 1", "mov rax, 2", "5: jmp 5b",);
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        assert!(!guest.engine.ready_for_interrupt());
        let entry = Entry { interrupt_window: true, ..Entry::default() };
        assert_eq!(guest.enter(entry), Exit::InterruptWindow);
        assert_eq!((guest.gpr(1), guest.rax()), (0, 1));
        assert!(guest.engine.ready_for_interrupt());
    });
}

#[test]
fn kicks_never_come_between_sti_and_the_next_instruction() {
    // Windows that ask for interrupts all the time, and kicks from another thread, among blocks that end with STI: an
    // interrupt before the INC would show as an odd count.
    let code = guest!(
        "4: mov rbx, 0x300000",
        "sti",
        "inc rax",
        "cli",
        "inc rax",
        "pushfq",
        "popfq",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    let handler = guest!("inc r9", "test al, 1", "jnz 4f", "inc r10", "4: iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0x20, handler);
        guest.set(|state| state.gpr[1] = 200_000);
        let kick = guest.engine.kick_handle();
        let done = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
        let over = std::sync::Arc::clone(&done);
        let thread = std::thread::spawn(move || {
            while !over.load(std::sync::atomic::Ordering::Relaxed) {
                kick.kick();
                std::thread::sleep(std::time::Duration::from_micros(20));
            }
        });
        let mut entry = Entry { interrupt_window: true, ..Entry::default() };
        loop {
            match guest.enter(entry) {
                Exit::Halt => break,
                Exit::Kicked if guest.engine.ready_for_interrupt() => {
                    entry = Entry { interrupt: Some(0x20), ..Entry::default() };
                }
                Exit::Kicked => entry = Entry { interrupt_window: true, ..Entry::default() },
                Exit::InterruptWindow => entry = Entry { interrupt: Some(0x20), ..Entry::default() },
                other => panic!("{other:?}"),
            }
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        thread.join().expect("the kicker ends");
        assert_eq!(guest.rax(), 400_000);
        assert!(guest.gpr(9) > 0, "interrupts came");
        assert_eq!(guest.gpr(10), 0, "none of them in the shadow");
    });
}

#[test]
fn flags_go_through_pushf_and_popf() {
    let code = guest!(
        "mov ecx, 5",
        "4: xor eax, eax",
        "mov edx, 0x400cd5", // CF PF AF ZF SF DF OF, and a bit that is not there
        "push rdx",
        "popfq",
        "pushfq",
        "pop rbx",
        "push 2",
        "popfq",
        "pushfq",
        "pop rsi",
        "cmp eax, 1", // CF AF SF PF
        "pushfq",
        "pop rdi",
        "mov r8d, 0x200202", // IF ID
        "push r8",
        "popfq",
        "nop",
        "pushfq",
        "pop r9",
        "cli",
        "pushfq",
        "pop r10",
        "dec ecx",
        "jnz 4b",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!((guest.gpr(3), guest.gpr(6), guest.gpr(7)), (0xcd7, 2, 0x97));
        assert_eq!((guest.gpr(9), guest.gpr(10)), (0x20_0202, 0x20_0002));
    });
}

#[test]
fn swapgs_rdtsc_and_the_access_flag() {
    let code = guest!(
        "mov r12d, 5",
        "4: swapgs",
        "rdgsbase rax",
        "swapgs",
        "rdgsbase rbx",
        "rdtsc",
        "mov r8, rax",
        "mov r9, rdx",
        "rdtscp",
        "stac",
        "pushfq",
        "pop r10",
        "mov [0x300000], r10",
        "clac",
        "pushfq",
        "pop r11",
        "dec r12d",
        "jnz 4b",
        "swapgs",
        "rdgsbase rax",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.set(|state| {
            state.cr4 |= x86::control::cr4::SMAP | x86::control::cr4::FSGSBASE;
            state.segments[5].base = 0x1111_0000;
            state.msrs.kernel_gs_base = 0x2222_0000;
            state.msrs.tsc_offset = 0x5_0000_0003;
            state.msrs.tsc_aux = 9;
        });
        guest.halt();
        assert_eq!((guest.rax(), guest.gpr(3)), (0x2222_0000, 0x1111_0000));
        assert_eq!((guest.gpr(8), guest.gpr(9), guest.gpr(1)), (3, 5, 9));
        assert_eq!((guest.gpr(10) & flags::AC, guest.gpr(11) & flags::AC), (flags::AC, 0));
        assert_eq!(guest.engine.state().segments[5].base, 0x2222_0000);
    });
}

#[test]
fn sti_hlt_is_one_step_for_interrupts() {
    let code = guest!("sti", "hlt", "mov eax, 7", "cli", "hlt");
    let handler = guest!("inc rbx", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0x20, handler);
        let entry = Entry { interrupt_window: true, ..Entry::default() };
        // The window and the halt come at the same time: the window is what the board waits for.
        assert_eq!(guest.enter(entry), Exit::InterruptWindow);
        assert_eq!(guest.run(), Exit::Halt);
        assert_eq!((guest.engine.state().rip, guest.rax()), (CODE + 2, 0));
        assert_eq!(guest.interrupt(0x20), Exit::Halt);
        assert_eq!((guest.gpr(3), guest.rax()), (1, 7));
        assert!(!guest.engine.ready_for_interrupt());
    });
}

#[test]
fn nmis_wait_for_iret() {
    let code = guest!("4: inc rax", "jmp 4b");
    // Asks the board in the middle, which then sends the next one.
    let handler = guest!("inc rbx", "out 0x80, al", "mov rcx, rbx", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(2, handler);
        let nmi = Entry { nmi: true, ..Entry::default() };
        assert!(matches!(guest.enter(nmi), Exit::PortWrite { port: 0x80, .. }));
        assert_eq!((guest.gpr(3), guest.gpr(1)), (1, 0));
        assert!(guest.engine.state().nmi_blocked);
        assert!(matches!(guest.enter(nmi), Exit::PortWrite { port: 0x80, .. }));
        assert_eq!((guest.gpr(3), guest.gpr(1)), (2, 1), "the second came after the first's IRET");
        assert_eq!(guest.gpr(4), STACK - 40, "not nested");
    });
}

#[test]
fn a_triple_fault_shuts_down_for_good() {
    let code = guest!("ud2");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.set(|state| state.idtr.limit = 0);
        assert_eq!(guest.run(), Exit::Shutdown);
        assert_eq!(guest.run(), Exit::Shutdown);
        assert!(!guest.engine.ready_for_interrupt());
    });
}

#[test]
fn single_stepping() {
    let code = guest!(
        "pushfq",
        "or dword ptr [rsp], 0x100",
        "popfq",
        "mov ecx, 3",                      // trap 1: after this one, not after POPF
        "4: dec ecx",                      // 2, 4, 6
        "jnz 4b",                          // 3, 5, 7
        "pushfq",                          // 8
        "and dword ptr [rsp], 0xfffffeff", // 9
        "popfq",                           // 10: TF was set when it began
        "mov eax, 5",
        "hlt",
    );
    let handler = guest!("inc rbx", "mov r8, dr6", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(1, handler);
        guest.halt();
        assert_eq!(guest.gpr(3), 10);
        assert_eq!(guest.gpr(8), 0xffff_4ff0, "BS and the fixed bits");
        assert_eq!(guest.rax(), 5);
    });
}

#[test]
fn a_stack_switch_is_not_interrupted() {
    let code =
        guest!("mov eax, 0x10", "sti", "nop", "mov ss, eax", "mov rsp, 0x90000", "mov r8d, 1", "4: jmp 4b",);
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(0x20, guest!("mov r9, [rsp + 24]", "out 0x80, al", "iretq"));
        let window = Entry { interrupt_window: true, ..Entry::default() };
        assert_eq!(guest.enter(window), Exit::InterruptWindow);
        // At MOV SS now; from here an interrupt would be taken before it, so let it pass.
        guest.set(|state| {
            assert_eq!(state.rip, CODE + 7);
        });
        let entry = Entry { interrupt_window: true, ..Entry::default() };
        assert_eq!(guest.enter(entry), Exit::InterruptWindow, "the window is still open");
        let mut steps = 0;
        // With TF the trap of MOV SS waits for the next instruction too.
        guest.handler(1, guest!("inc r10", "mov r11, [rsp]", "out 0x81, al", "iretq"));
        guest.set(|state| state.rflags |= flags::TF);
        while steps < 1 {
            assert!(matches!(guest.run(), Exit::PortWrite { port: 0x81, .. }));
            steps += 1;
        }
        assert_eq!(guest.gpr(11), CODE + 7 + 2 + 7, "after MOV RSP");
    });
}

#[test]
fn hardware_breakpoints() {
    let code = guest!(
        "mov ecx, 10",
        "4: mov [0x300000 + rcx * 8], rcx",
        "5: dec ecx",
        "jnz 4b",
        "mov esi, 0x300100",
        "lodsq",
        "hlt",
    );
    // After an instruction breakpoint it is the handler that sets RF in the saved RFLAGS (SDM Vol. 3B 18.3.1.1).
    let handler = guest!(
        "inc rbx",
        "mov r8, dr6",
        "xor eax, eax",
        "mov dr6, rax",
        "or r9, r8",
        "and r8d, 1",
        "shl r8d, 16",
        "or [rsp + 16], r8",
        "iretq",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(1, handler);
        guest.set(|state| {
            state.dr[0] = CODE + 5 + 8; // the DEC: instruction breakpoint, met ten times
            state.dr[1] = 0x30_0000 + 5 * 8 + 4; // half of the fifth word, on write
            state.dr[2] = 0x30_0100; // the string, on reads and writes
            state.dr[7] |= 0b010101 | 0b1101 << 20 | 0b1011 << 24;
        });
        guest.halt();
        assert_eq!(guest.gpr(9) & 0xf, 0b111);
        assert_eq!(guest.gpr(3), 10 + 1 + 1);
    });
}
