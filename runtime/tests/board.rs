//! What goes to the board and comes back: MMIO, ports, MSRs, halts, kicks.

mod common;

use std::time::{Duration, Instant};

use common::{CODE, Guest, MMIO, everywhere};
use vcpu::{Answer, Entry, Exit, Vcpu};
use x86::GuestPhys;

#[test]
fn mmio_goes_round_by_the_board() {
    let code = guest!(
        "mov rbx, 0xfe000000",
        "mov eax, [rbx + 0x10]",
        "add eax, 1",
        "mov [rbx + 0x20], eax",
        "add byte ptr [rbx + 0x30], 2",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        assert_eq!(guest.run(), Exit::MmioRead { address: GuestPhys(MMIO + 0x10), size: 4 });
        assert!(!guest.engine.ready_for_interrupt(), "an instruction is under way");
        assert_eq!(
            guest.answer(Answer::Value(0x1_2345_6789)),
            Exit::MmioWrite { address: GuestPhys(MMIO + 0x20), size: 4, value: 0x2345_678a }
        );
        // A read-modify-write asks twice, and is one instruction.
        assert_eq!(guest.answer(Answer::Done), Exit::MmioRead { address: GuestPhys(MMIO + 0x30), size: 1 });
        assert_eq!(
            guest.answer(Answer::Value(0xfe)),
            Exit::MmioWrite { address: GuestPhys(MMIO + 0x30), size: 1, value: 0 }
        );
        assert_eq!(guest.answer(Answer::Done), Exit::Halt);
        assert_eq!(guest.engine.statistics().instructions, 6);
    });
}

#[test]
fn ports_go_round_by_the_board() {
    let code = guest!(
        "mov edx, 0x3f8",
        "mov eax, 0xffffff41",
        "out dx, al",
        "in al, 0x60",
        "mov rdi, 0x200000",
        "mov ecx, 2",
        "rep insw",
        "hlt",
    );
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        assert_eq!(guest.run(), Exit::PortWrite { port: 0x3f8, size: 1, value: 0x41 });
        assert_eq!(guest.answer(Answer::Done), Exit::PortRead { port: 0x60, size: 1 });
        assert_eq!(guest.answer(Answer::Value(0x1c)), Exit::PortRead { port: 0x3f8, size: 2 });
        assert_eq!(guest.rax(), 0xffff_ff1c);
        assert_eq!(guest.answer(Answer::Value(0x1111)), Exit::PortRead { port: 0x3f8, size: 2 });
        assert_eq!(guest.answer(Answer::Value(0x2222)), Exit::Halt);
        assert_eq!(guest.read(0x20_0000), 0x2222_1111);
    });
}

#[test]
fn a_read_that_nobody_answers_is_the_boards_bug() {
    let code = guest!("in al, 0x60", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.run();
        assert!(guest.engine.run(Entry::default()).is_err());
    });
}

#[test]
fn msrs_of_the_board() {
    // IA32_APIC_BASE is the board's. The #GP handler (vector 13) drops the error code and skips the instruction.
    let code = guest!("mov ecx, 0x1b", "rdmsr", "wrmsr", "rdmsr", "hlt");
    let skip = guest!("mov r15d, 13", "add rsp, 8", "add qword ptr [rsp], 2", "iretq");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.handler(13, skip);
        assert_eq!(guest.run(), Exit::MsrRead { index: 0x1b });
        assert_eq!(
            guest.answer(Answer::Value(0x1_fee0_0900)),
            Exit::MsrWrite { index: 0x1b, value: 0x1_fee0_0900 }
        );
        assert_eq!((guest.rax(), guest.gpr(2)), (0xfee0_0900, 1));
        assert_eq!(guest.answer(Answer::Done), Exit::MsrRead { index: 0x1b });
        assert_eq!(guest.answer(Answer::Fault), Exit::Halt);
        assert_eq!(guest.gpr(15), 13);
    });
}

#[test]
fn a_halted_guest_stays_halted() {
    let code = guest!("hlt", "mov eax, 1", "hlt");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        guest.halt();
        assert_eq!((guest.rax(), guest.engine.state().rip), (0, CODE + 1));
        // Interrupts are disabled: only an NMI wakes it.
        guest.handler(2, guest!("iretq"));
        assert_eq!(guest.enter(Entry { nmi: true, ..Entry::default() }), Exit::Halt);
        assert_eq!(guest.rax(), 1);
    });
}

/// Kicks a guest that does not end, soon, from another thread.
fn kicked(guest: &mut Guest) {
    let kick = guest.engine.kick_handle();
    let start = Instant::now();
    let thread = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(20));
        kick.kick();
    });
    assert_eq!(guest.run(), Exit::Kicked);
    assert!(start.elapsed() >= Duration::from_millis(20));
    thread.join().expect("the kicker ends");
}

#[test]
fn kicks_stop_every_kind_of_endless_guest() {
    let endless: [&[u8]; 5] = [
        guest!("4: jmp 4b"),
        guest!("4: inc rax", "mov [0x300000], rax", "call 5f", "jmp 4b", "5: ret"),
        guest!("lea rbx, [rip + 4f]", "4: jmp rbx"),
        // #UD whose handler returns to it.
        guest!("ud2"),
        guest!("mov rcx, -1", "xor esi, esi", "cld", "rep lodsb"),
    ];
    everywhere(|config| {
        for code in endless {
            let mut guest = Guest::new(config, code);
            guest.handler(6, guest!("iretq"));
            // The string instruction runs off the mapped memory in the end; begin again there.
            guest.handler(14, guest!("add rsp, 8", "xor esi, esi", "iretq"));
            kicked(&mut guest);
            kicked(&mut guest);
        }
    });
}

#[test]
fn a_kick_before_the_entry_counts_once() {
    let code = guest!("4: inc rax", "jmp 4b");
    everywhere(|config| {
        let mut guest = Guest::new(config, code);
        let kick = guest.engine.kick_handle();
        kick.kick();
        kick.kick();
        assert_eq!(guest.run(), Exit::Kicked);
        kicked(&mut guest);
        assert!(guest.rax() > 0);
    });
}
