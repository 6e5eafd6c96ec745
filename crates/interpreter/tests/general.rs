//! Instructions by hand, against the SDM: what the native comparison can't reach (memory forms, control transfer,
//! 16- and 32-bit modes, faults).

mod support;

use memory::Stop;
use support::{CODE, DATA, Guest};
use transvisor_interpreter::BlockExit;
use x86::{Exception, flags};

#[test]
fn a_loop_sums() {
    let mut g = Guest::new(64);
    // mov ecx,10; xor eax,eax; l: add eax,ecx; dec ecx; jnz l
    let code = [0xb9, 10, 0, 0, 0, 0x31, 0xc0, 0x01, 0xc8, 0xff, 0xc9, 0x75, 0xfa];
    assert_eq!(g.run_all(&code), BlockExit::Next);
    assert_eq!(g.state.gpr[0], 55);
    assert_eq!(g.state.instructions, 2 + 30);
    assert_eq!(g.state.rip, CODE + 13);
}

#[test]
fn push_call_ret() {
    let mut g = Guest::new(64);
    let top = g.state.gpr[4];
    // push 0x12; call +1; hlt; pop rbx; pop rax
    let code = [0x6a, 0x12, 0xe8, 1, 0, 0, 0, 0xf4, 0x5b, 0x58];
    assert_eq!(g.run_all(&code), BlockExit::Next);
    assert_eq!((g.state.gpr[3], g.state.gpr[0], g.state.gpr[4]), (CODE + 7, 0x12, top));
}

#[test]
fn a_callout_ends_the_block_and_is_named() {
    let mut g = Guest::new(64);
    // inc eax; hlt; inc eax
    assert_eq!(g.run(&[0xff, 0xc0, 0xf4, 0xff, 0xc0]), BlockExit::Callout);
    assert_eq!((g.state.gpr[0], g.state.rip), (1, CODE + 2));
}

#[test]
fn rep_movs_overlaps_as_elements_do() {
    let mut g = Guest::new(64);
    g.write(DATA, b"ab");
    g.state.gpr[6] = DATA;
    g.state.gpr[7] = DATA + 2;
    g.state.gpr[1] = 5000;
    // rep movsb
    assert_eq!(g.run_all(&[0xf3, 0xa4]), BlockExit::Next);
    assert_eq!(g.read(DATA, 5002), b"ab".repeat(2501));
    assert_eq!((g.state.gpr[6], g.state.gpr[7], g.state.gpr[1]), (DATA + 5000, DATA + 5002, 0));
}

#[test]
fn rep_scas_stops_after_the_match() {
    let mut g = Guest::new(64);
    g.write(DATA, &[7; 6000]);
    g.write(DATA + 4500, &[0]);
    g.state.gpr[7] = DATA;
    g.state.gpr[1] = u64::MAX;
    // repne scasb: strlen
    assert_eq!(g.run_all(&[0xf2, 0xae]), BlockExit::Next);
    assert_eq!(!g.state.gpr[1] - 1, 4500);
    assert_eq!(g.state.gpr[7], DATA + 4501);
    assert_ne!(g.state.rflags() & flags::ZF, 0);
}

#[test]
fn division_by_zero_changes_nothing() {
    let mut g = Guest::new(64);
    g.state.gpr[0] = 5;
    // inc ebx; div ecx
    let exit = g.run(&[0xff, 0xc3, 0xf7, 0xf1]);
    assert_eq!(exit, BlockExit::Stop(Stop::Exception(Exception::DE)));
    assert_eq!((g.state.rip, g.state.gpr[0], g.state.instructions), (CODE + 2, 5, 1));
}

#[test]
fn real_mode_limits_fault() {
    let mut g = Guest::new(16);
    g.state.gpr[3] = 0xffff;
    // mov ax,[bx]
    assert_eq!(g.run(&[0x8b, 0x07]), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    // mov ax,[bp+si] with BP = 0xffff
    g.state.gpr[5] = 0xffff;
    assert_eq!(g.run(&[0x8b, 0x02]), BlockExit::Stop(Stop::Exception(Exception::SS0)));
}

#[test]
fn returns_to_nowhere_fault_before_they_pop() {
    let mut g = Guest::new(64);
    let top = g.state.gpr[4];
    g.write(top, &(1u64 << 63).to_le_bytes());
    assert_eq!(g.run(&[0xc3]), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    assert_eq!((g.state.gpr[4], g.state.rip), (top, CODE));
    // call rax: nothing is pushed.
    g.state.gpr[0] = 1 << 47;
    assert_eq!(g.run(&[0xff, 0xd0]), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    assert_eq!(g.state.gpr[4], top);
}

#[test]
fn addresses_that_are_not_canonical() {
    let mut g = Guest::new(64);
    g.state.gpr[3] = 1 << 47;
    g.state.gpr[4] = 1 << 47;
    assert_eq!(g.run(&[0x8b, 0x03]), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    assert_eq!(g.run(&[0x58]), BlockExit::Stop(Stop::Exception(Exception::SS0)));
}

#[test]
fn ret_releases_bytes() {
    let mut g = Guest::new(64);
    let top = g.state.gpr[4];
    g.write(top, &0x1234u64.to_le_bytes());
    assert_eq!(g.run(&[0xc2, 0x10, 0]), BlockExit::Next);
    assert_eq!((g.state.rip, g.state.gpr[4]), (0x1234, top + 0x18));
}

#[test]
fn loops_count_at_the_address_size() {
    let mut g = Guest::new(64);
    g.state.gpr[1] = 0x1_0000_0001;
    // With ECX it ends after one round, with RCX it goes on.
    assert_eq!(g.run(&[0x67, 0xe2, 0xf0]), BlockExit::Next);
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 3, 0));
    g.state.gpr[1] = 0x1_0000_0001;
    assert_eq!(g.run(&[0xe2, 0xf0]), BlockExit::Next);
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 2 - 16, 0x1_0000_0000));
    // loopne ends by ZF
    g.state.set_rflags(flags::ZF);
    assert_eq!(g.run(&[0xe0, 0xf0]), BlockExit::Next);
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 2, 0xffff_ffff));
}

#[test]
fn fs_and_gs_bases() {
    let mut g = Guest::new(64);
    g.state.gpr[0] = DATA;
    g.write(DATA + 8, &77u64.to_le_bytes());
    // wrgsbase rax; mov rbx,gs:[8]; rdgsbase rcx
    let code = [
        0xf3, 0x48, 0x0f, 0xae, 0xd8, 0x65, 0x48, 0x8b, 0x1c, 0x25, 8, 0, 0, 0, 0xf3, 0x48, 0x0f, 0xae, 0xc9,
    ];
    assert_eq!(g.run(&code), BlockExit::Next);
    assert_eq!((g.state.gpr[3], g.state.gpr[1]), (77, DATA));
    g.state.gpr[0] = 1 << 47;
    assert_eq!(g.run(&code), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    g.state.cr4 = 0;
    assert_eq!(g.run(&code), BlockExit::Stop(Stop::Exception(Exception::UD)));
}

#[test]
fn locked_instructions_are_the_same_and_xchg_is_atomic_anyway() {
    let mut g = Guest::new(64);
    g.write(DATA, &5u64.to_le_bytes());
    g.state.gpr[6] = DATA;
    g.state.gpr[0] = 5;
    g.state.gpr[1] = 9;
    // lock cmpxchg [rsi],rcx; lock neg qword [rsi]; lock xadd [rsi],rax; xchg [rsi],rax
    let code = [
        0xf0, 0x48, 0x0f, 0xb1, 0x0e, 0xf0, 0x48, 0xf7, 0x1e, 0xf0, 0x48, 0x0f, 0xc1, 0x06, 0x48, 0x87, 0x06,
    ];
    assert_eq!(g.run(&code), BlockExit::Next);
    // 9, -9, -9 + 5 with RAX = -9, exchanged
    assert_eq!(g.state.gpr[0], 4u64.wrapping_neg());
    assert_eq!(g.read(DATA, 8), 9u64.wrapping_neg().to_le_bytes());
    // cmpxchg16b must be aligned
    g.state.gpr[6] = DATA + 8;
    let code = [0xf0, 0x48, 0x0f, 0xc7, 0x0e];
    assert_eq!(g.run(&code), BlockExit::Stop(Stop::Exception(Exception::GP0)));
    g.state.gpr[6] = DATA;
    (g.state.gpr[0], g.state.gpr[2], g.state.gpr[3], g.state.gpr[1]) = (9u64.wrapping_neg(), 0, 1, 2);
    assert_eq!(g.run(&code), BlockExit::Next);
    assert_ne!(g.state.rflags() & flags::ZF, 0);
    assert_eq!(g.read(DATA, 16), [1u64.to_le_bytes(), 2u64.to_le_bytes()].concat());
}

#[test]
fn a_repetition_can_be_interrupted() {
    let mut g = Guest::new(64);
    g.state.exit_request.store(1, std::sync::atomic::Ordering::Relaxed);
    g.state.gpr[7] = DATA;
    g.state.gpr[1] = 3;
    // Below the bulk path's minimum: one element a time. nop; rep stosb
    assert_eq!(g.run(&[0x90, 0xf3, 0xaa]), BlockExit::Next);
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 1, 2));
}

#[test]
fn backward_strings() {
    let mut g = Guest::new(64);
    g.write(DATA, &[1, 2, 3, 4, 5, 6]);
    g.state.gpr[6] = DATA + 4;
    g.state.gpr[7] = DATA + 5;
    g.state.gpr[1] = 5;
    // std; rep movsb: memmove
    assert_eq!(g.run_all(&[0xfd, 0xf3, 0xa4]), BlockExit::Next);
    assert_eq!(g.read(DATA, 6), [1, 1, 2, 3, 4, 5]);
    assert_eq!(g.state.gpr[6], DATA - 1);
}

#[test]
fn comparisons_of_strings_end_at_the_difference() {
    let mut g = Guest::new(64);
    g.write(DATA, &[8; 3000]);
    g.write(DATA + 0x4000, &[8; 3000]);
    g.write(DATA + 0x4000 + 2000, &[9]);
    g.state.gpr[6] = DATA;
    g.state.gpr[7] = DATA + 0x4000;
    g.state.gpr[1] = 3000;
    assert_eq!(g.run_all(&[0xf3, 0xa6]), BlockExit::Next); // repe cmpsb
    assert_eq!((g.state.gpr[1], g.state.gpr[6]), (999, DATA + 2001));
    assert_eq!(g.state.rflags() & (flags::ZF | flags::CF), flags::CF);
    // Equal to the end: the count decides.
    g.state.gpr[6] = DATA;
    g.state.gpr[7] = DATA + 0x4000;
    g.state.gpr[1] = 2000;
    g.run_all(&[0xf3, 0xa6]);
    assert_eq!(g.state.gpr[1], 0);
    assert_ne!(g.state.rflags() & flags::ZF, 0);
    // A count of zero changes no flag.
    g.state.set_rflags(flags::CF);
    g.run_all(&[0xf3, 0xa6]);
    assert_eq!(g.state.rflags() & flags::STATUS, flags::CF);
}

#[test]
fn mmio_stops_the_instruction_and_its_answer_completes_it() {
    let mut g = Guest::new(64);
    g.state.gpr[3] = 0xfee0_0000;
    g.state.gpr[0] = 1;
    // inc ecx; add [rbx],eax; inc ecx
    let code = [0xff, 0xc1, 0x01, 0x03, 0xff, 0xc1];
    assert_eq!(g.run(&code), BlockExit::Stop(Stop::Board));
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 2, 1));
    let read = memory::MmioAccess::Read { address: memory::GuestPhys(0xfee0_0000), size: 4 };
    assert_eq!(g.mmu.mmio.pending(), Some(read));
    g.mmu.mmio.answer(41);
    assert_eq!(g.run_at(&code, CODE + 2), BlockExit::Stop(Stop::Board));
    let write = memory::MmioAccess::Write { address: memory::GuestPhys(0xfee0_0000), size: 4, value: 42 };
    assert_eq!(g.mmu.mmio.pending(), Some(write));
    g.mmu.mmio.answer(0);
    assert_eq!(g.run_at(&code, CODE + 2), BlockExit::Next);
    assert_eq!((g.state.gpr[1], g.state.instructions), (2, 3));
    assert!(!g.mmu.mmio.is_replaying());
}

#[test]
fn a_write_to_code_ends_the_block() {
    let mut g = Guest::new(64);
    g.mmu.code_pages().mark(memory::GuestPhys(DATA));
    g.state.gpr[3] = DATA;
    // mov [rbx],eax; inc ecx
    assert_eq!(g.run(&[0x89, 0x03, 0xff, 0xc1]), BlockExit::CodeWritten);
    assert_eq!((g.state.rip, g.state.gpr[1]), (CODE + 2, 0));
}

#[test]
fn crc32_of_the_check_string() {
    let mut g = Guest::new(64);
    g.write(DATA, b"123456789");
    g.state.gpr[6] = DATA;
    g.state.gpr[0] = 0xffff_ffff;
    // crc32 rax,qword [rsi]; crc32 eax,byte [rsi+8]; not eax
    let code = [0xf2, 0x48, 0x0f, 0x38, 0xf1, 0x06, 0xf2, 0x0f, 0x38, 0xf0, 0x46, 0x08, 0xf7, 0xd0];
    assert_eq!(g.run(&code), BlockExit::Next);
    assert_eq!(g.state.gpr[0], 0xe306_9283);
}

#[test]
fn every_condition_for_every_combination_of_flags() {
    let mut g = Guest::new(64);
    for combination in 0..64u64 {
        let names = [flags::CF, flags::PF, flags::AF, flags::ZF, flags::SF, flags::OF];
        let value = (0..6).filter(|n| combination >> n & 1 != 0).map(|n| names[n]).sum::<u64>();
        let set = |flag: u64| value & flag != 0;
        let less = set(flags::SF) != set(flags::OF);
        // In the order of the encoding, each followed by its negation (SDM Vol. 1 appendix B).
        let even = [
            set(flags::OF),
            set(flags::CF),
            set(flags::ZF),
            set(flags::CF) || set(flags::ZF),
            set(flags::SF),
            set(flags::PF),
            less,
            less || set(flags::ZF),
        ];
        for code in 0..16u8 {
            let holds = even[usize::from(code / 2)] != (code & 1 != 0);
            g.state.set_rflags(value);
            assert_eq!(g.run(&[0x70 | code, 0x10]), BlockExit::Next);
            assert_eq!(g.state.rip, if holds { CODE + 0x12 } else { CODE + 2 }, "j {code} with {value:#x}");
            // setcc al
            g.run(&[0x0f, 0x90 | code, 0xc0]);
            assert_eq!(g.state.gpr[0] & 1 != 0, holds, "set {code} with {value:#x}");
            assert_eq!(g.state.rflags() & flags::STATUS, value);
        }
    }
}

#[test]
fn undefined_instructions_raise_ud_where_they_are() {
    let mut g = Guest::new(64);
    for code in [&[0x0f, 0x0b][..], &[0x0f, 0xb9, 0xc0], &[0x0f, 0xff, 0xc0]] {
        assert_eq!(g.run(code), BlockExit::Stop(Stop::Exception(Exception::UD)), "{code:02x?}");
        assert_eq!(g.state.rip, CODE);
    }
}
