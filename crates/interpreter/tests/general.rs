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
