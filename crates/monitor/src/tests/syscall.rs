//! SYSCALL SYSRET SYSENTER SYSEXIT SWAPGS.

use super::*;

const SYSCALL: &[u8] = &[0x0f, 0x05];
const SYSRETQ: &[u8] = &[0x48, 0x0f, 0x07];
const SYSRETD: &[u8] = &[0x0f, 0x07];
const SYSENTER: &[u8] = &[0x0f, 0x34];
const SYSEXIT: &[u8] = &[0x0f, 0x35];
const SYSEXITQ: &[u8] = &[0x48, 0x0f, 0x35];

fn prepared() -> Machine {
    let mut m = Machine::long();
    m.state.msrs.star = 0x23_0010 << 32;
    m.state.msrs.lstar = 0xffff_8000_0000_1000;
    m.state.msrs.fmask = flags::IF | flags::AC | flags::CF;
    m.state.msrs.sysenter_cs = 0x10;
    m.state.msrs.sysenter_esp = 0xffff_8000_0000_2000;
    m.state.msrs.sysenter_eip = 0xffff_8000_0000_3000;
    m
}

#[test]
fn there_and_back() {
    let mut m = prepared().user(USER_CODE64);
    m.state.rflags |= flags::IF;
    m.state.flags = x86::Flags::from_bits(flags::CF | flags::ZF);
    m.run(SYSCALL).unwrap();
    assert_eq!((m.state.rip, m.state.cpl), (0xffff_8000_0000_1000, 0));
    assert_eq!((m.state.gpr[1], m.state.gpr[11]), (CODE + 2, flags::IF | flags::CF | flags::ZF | 2));
    assert_eq!(m.state.rflags(), flags::ZF | 2);
    assert_eq!((m.selector(1), m.selector(2), m.rsp()), (0x10, 0x18, USER_STACK));
    assert!(m.state.mode.is_64bit() && m.state.mode.cpl() == 0);

    m.state.rip = CODE;
    m.run(SYSRETQ).unwrap();
    assert_eq!((m.state.rip, m.state.cpl), (CODE + 2, 3));
    assert_eq!(m.state.rflags(), flags::IF | flags::CF | flags::ZF | 2);
    assert_eq!((m.selector(1), m.selector(2)), (0x33, 0x2b));
    assert_eq!(m.state.mode.cpl(), 3);
}

#[test]
fn sysret_to_compatibility_mode() {
    let mut m = prepared();
    m.state.gpr[1] = 0x1_0000_1234;
    m.state.gpr[11] = 0x3f_ffff;
    m.run(SYSRETD).unwrap();
    assert_eq!((m.state.rip, m.selector(1), m.state.mode.code_bits()), (0x1234, 0x23, 32));
    assert_eq!(m.state.rflags() & (flags::RF | flags::VM), 0);
}

#[test]
fn errors() {
    let mut m = prepared();
    m.state.gpr[1] = 1 << 47;
    assert_eq!(m.faults(SYSRETQ), Exception::GP0);
    assert_eq!(prepared().user(USER_CODE64).faults(SYSRETQ), Exception::GP0);
    let mut m = prepared();
    m.state.efer &= !efer::SCE;
    assert_eq!((m.faults(SYSCALL), m.faults(SYSRETQ)), (Exception::UD, Exception::UD));
    assert_eq!(prepared().user(USER_CODE32).faults(SYSCALL), Exception::UD);
    let mut m = prepared();
    m.state.msrs.sysenter_cs = 3;
    assert_eq!((m.faults(SYSENTER), m.faults(SYSEXIT)), (Exception::GP0, Exception::GP0));
    assert_eq!(prepared().user(USER_CODE64).faults(SYSEXIT), Exception::GP0);
}

#[test]
fn sysenter_and_sysexit() {
    let mut m = prepared().user(USER_CODE32);
    m.state.rflags |= flags::IF;
    m.run(SYSENTER).unwrap();
    assert_eq!((m.state.rip, m.rsp()), (0xffff_8000_0000_3000, 0xffff_8000_0000_2000));
    assert_eq!((m.selector(1), m.selector(2), m.state.cpl), (0x10, 0x18, 0));
    assert!(m.state.mode.is_64bit());
    assert_eq!(m.state.rflags & flags::IF, 0);

    (m.state.gpr[1], m.state.gpr[2], m.state.rip) = (0xf_0000_1000, 0xf_0000_2000, CODE);
    m.run(SYSEXIT).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (0x2000, 0x1000, 3));
    assert_eq!((m.selector(1), m.selector(2), m.state.mode.code_bits()), (0x23, 0x2b, 32));

    let mut m = prepared();
    (m.state.gpr[1], m.state.gpr[2]) = (0x1000, 0x2000);
    m.run(SYSEXITQ).unwrap();
    assert_eq!((m.selector(1), m.selector(2), m.state.mode.code_bits()), (0x33, 0x3b, 64));
    (m.state.gpr[1], m.state.rip) = (1 << 50, CODE);
    let mut m = prepared();
    m.state.gpr[1] = 1 << 50;
    assert_eq!(m.faults(SYSEXITQ), Exception::GP0);
}

#[test]
fn sysenter_in_protected_mode_is_32_bits() {
    let mut m = Machine::protected().user(USER_CODE32);
    m.state.msrs.sysenter_cs = u64::from(CODE32);
    m.state.msrs.sysenter_esp = KERNEL_STACK;
    m.state.msrs.sysenter_eip = HANDLER;
    m.run(SYSENTER).unwrap();
    assert_eq!((m.state.mode.code_bits(), m.state.rip, m.rsp()), (32, HANDLER, KERNEL_STACK));
    assert_eq!(Machine::real().faults(SYSENTER), Exception::GP0);
}

#[test]
fn swapgs() {
    let mut m = Machine::long();
    m.state.segments[5].base = 1;
    m.state.msrs.kernel_gs_base = 2;
    m.run(&[0x0f, 0x01, 0xf8]).unwrap();
    assert_eq!((m.state.segments[5].base, m.state.msrs.kernel_gs_base), (2, 1));
    assert_eq!(Machine::long().user(USER_CODE64).faults(&[0x0f, 0x01, 0xf8]), Exception::GP0);
}
