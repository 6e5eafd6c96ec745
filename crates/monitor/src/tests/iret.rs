//! IRET, in every mode.

use super::*;

const IRETQ: &[u8] = &[0x48, 0xcf];
const IRETD: &[u8] = &[0xcf];

#[test]
fn iretq_to_user() {
    let mut m = Machine::long();
    m.state.nmi_blocked = true;
    let rflags = flags::IF | flags::FIXED_ONE | flags::ZF | flags::ID | flags::IOPL;
    m.push_all(8, [u64::from(USER_DATA), USER_STACK, rflags, u64::from(USER_CODE64), 0x1234]);
    m.run(IRETQ).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (0x1234, USER_STACK, 3));
    assert_eq!(m.state.rflags(), rflags);
    assert_eq!((m.selector(1), m.selector(2)), (USER_CODE64, USER_DATA));
    assert!(!m.state.nmi_blocked);
    assert_eq!(m.state.mode.cpl(), 3);
    assert_eq!(m.selector(3), 0, "a kernel data segment is not left to the user");
}

#[test]
fn iretq_to_the_same_level_pops_the_stack_pointer_and_allows_a_null_ss() {
    let mut m = Machine::long();
    m.push_all(8, [0, 0x7777, flags::FIXED_ONE, u64::from(CODE64), 0x1234]);
    m.run(IRETQ).unwrap();
    assert_eq!((m.rsp(), m.selector(2), m.state.cpl), (0x7777, 0, 0));
}

#[test]
fn iretq_to_compatibility_mode() {
    let mut m = Machine::long();
    m.push_all(8, [u64::from(USER_DATA), USER_STACK, flags::FIXED_ONE, u64::from(USER_CODE32), 0x1234]);
    m.run(IRETQ).unwrap();
    assert_eq!((m.state.mode.code_bits(), m.state.mode.is_long(), m.state.cpl), (32, true, 3));
}

#[test]
fn iretq_errors() {
    let ss = u64::from(USER_DATA);
    let cs = u64::from(USER_CODE64);
    let cases = [
        // SS, CS, RIP => error
        (ss, 0, 0, Exception::GP0),
        (ss, u64::from(DATA), 0, Exception::gp(DATA)),
        (ss, u64::from(BEYOND), 0, Exception::gp(BEYOND)),
        (ss, u64::from(CODE64 | 3), 0, Exception::gp(CODE64)),
        (0, cs, 0, Exception::GP0),
        (0, u64::from(USER_CODE32), 0, Exception::GP0),
        (u64::from(DATA), cs, 0, Exception::gp(DATA)),
        (u64::from(BEYOND | 3), cs, 0, Exception::gp(BEYOND)),
        (ss, cs, 1 << 50, Exception::GP0),
        (ss, u64::from(USER_CODE32), 1 << 32, Exception::GP0),
    ];
    for (ss, cs, rip, expected) in cases {
        let mut m = Machine::long();
        m.push_all(8, [ss, USER_STACK, flags::FIXED_ONE, cs, rip]);
        assert_eq!(m.faults(IRETQ), expected, "ss {ss:#x} cs {cs:#x} rip {rip:#x}");
    }
    let mut m = Machine::long().user(USER_CODE64);
    m.push_all(8, [u64::from(DATA), USER_STACK, flags::FIXED_ONE, u64::from(CODE64), 0]);
    assert_eq!(m.faults(IRETQ), Exception::gp(CODE64), "no return to an inner level");
    let mut m = Machine::long();
    m.state.rflags |= flags::NT;
    assert_eq!(m.faults(IRETQ), Exception::GP0);
}

#[test]
fn more_errors_of_returns() {
    let mut m = Machine::long();
    m.write64(GDT + u64::from(CODE16), 0x0000_7b00_0000_ffff);
    m.push_all(8, [u64::from(USER_DATA), USER_STACK, 2, u64::from(CODE16 | 3), 0]);
    assert_eq!(m.faults(IRETQ), Exception::np(CODE16));
    // A null SS goes with 64-bit code only, at any level but 3.
    let mut m = Machine::long();
    m.push_all(8, [0, 0x7777, 2, u64::from(CODE32), 0]);
    assert_eq!(m.faults(IRETQ), Exception::GP0);
    // Virtual-8086 code lies within 64 KiB.
    let mut m = Machine::protected();
    m.push_all(4, [0, 0, 0, 0, 0x2000, 0x800, flags::VM, 0x1000, 0x1_0000]);
    assert_eq!(m.faults(IRETD), Exception::GP0);
}

#[test]
fn a_16_bit_stack_gets_only_sp() {
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(DATA16), 0x0000_f300_0000_ffff);
    m.push_all(4, [u64::from(DATA16 | 3), 0x1234_5678, 2, u64::from(USER_CODE32), 0]);
    let upper = m.rsp() & !0xffff;
    m.run(IRETD).unwrap();
    assert_eq!(m.rsp(), upper | 0x5678);
}

#[test]
fn user_cannot_change_iopl_or_if() {
    let mut m = Machine::long().user(USER_CODE64);
    m.state.rflags |= flags::IF;
    m.push_all(
        8,
        [u64::from(USER_DATA), USER_STACK, flags::IOPL | flags::CF, u64::from(USER_CODE64), 0x1234],
    );
    m.run(IRETQ).unwrap();
    assert_eq!(m.state.rflags(), flags::FIXED_ONE | flags::IF | flags::CF);
}

#[test]
fn rf_lasts_only_while_breakpoints_are_armed() {
    for (dr7, expected) in [(0x400, 0), (0x401, flags::RF)] {
        let mut m = Machine::long();
        m.state.dr[7] = dr7;
        m.push_all(8, [0, 0x7777, flags::RF, u64::from(CODE64), 0x1234]);
        m.run(IRETQ).unwrap();
        assert_eq!(m.state.rflags & flags::RF, expected);
    }
}

#[test]
fn iretd_in_protected_mode() {
    let mut m = Machine::protected();
    let before = m.rsp();
    m.push_all(4, [flags::CF, u64::from(CODE32), 0x1234]);
    m.run(IRETD).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (0x1234, before, 0));
    m.push_all(4, [u64::from(USER_DATA), USER_STACK, flags::IF, u64::from(USER_CODE32), 0x1234]);
    m.run(IRETD).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (0x1234, USER_STACK, 3));
}

#[test]
fn iretd_to_virtual_8086_mode_and_back_by_an_interrupt() {
    let mut m = Machine::protected();
    let rflags = flags::VM | flags::IF | flags::IOPL | flags::FIXED_ONE;
    // GS FS DS ES SS ESP EFLAGS CS EIP
    m.push_all(4, [0x60, 0x50, 0x40, 0x30, 0x2000, 0x800, rflags, 0x1000, 0x10]);
    m.run(IRETD).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (0x10, 0x800, 3));
    assert!(m.state.mode.is_virtual_8086());
    assert_eq!([0, 1, 2, 3, 4, 5].map(|n| m.selector(n)), [0x30, 0x1000, 0x2000, 0x40, 0x50, 0x60]);
    assert_eq!(m.state.segments[1].base, 0x10000);

    m.set_gate(0x20, CODE32, HANDLER, 0x8e, 0);
    m.deliver(Event::Interrupt(0x20)).unwrap();
    assert_eq!((m.rsp(), m.state.cpl), (KERNEL_STACK - 36, 0));
    let frame: Vec<u32> = (0..9).map(|n| m.read32(m.rsp() + 4 * n)).collect();
    assert_eq!(frame, [0x10, 0x1000, rflags as u32, 0x800, 0x2000, 0x30, 0x40, 0x50, 0x60]);
    assert!(!m.state.mode.is_virtual_8086());
    assert_eq!(m.selector(3), 0);
    m.run(IRETD).unwrap();
    assert!(m.state.mode.is_virtual_8086());
}

#[test]
fn iret_in_real_mode() {
    let mut m = Machine::real();
    m.push_all(2, [0x0202 | flags::CF, 0x1000, 0x22]);
    m.run(IRETD).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.segments[1].base), (0x22, 0xf000, 0x10000));
    assert_eq!(m.state.rflags(), 0x203);
}

#[test]
fn iret_in_virtual_8086_mode_needs_iopl_3() {
    let mut m = Machine::virtual_8086(0);
    assert_eq!(m.faults(IRETD), Exception::GP0);
    let mut m = Machine::virtual_8086(3);
    m.push_all(2, [flags::CF, 0x1100, 0x22]);
    m.run(IRETD).unwrap();
    assert_eq!((m.state.rip, m.selector(1)), (0x22, 0x1100));
    assert_eq!(m.state.rflags() & (flags::IOPL | flags::VM | flags::CF), flags::IOPL | flags::VM | flags::CF);
}
