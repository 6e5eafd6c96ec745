//! Segment registers, table registers, and questions about selectors.

use super::*;
use x86::{segment::attribute, state::shadow};

/// MOV Sreg, ax.
fn mov(register: u8) -> [u8; 2] {
    [0x8e, 0xc0 | register << 3]
}

const SS: u8 = 2;
const DS: u8 = 3;
const GS: u8 = 5;

#[test]
fn loading_data_segments() {
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(DATA16), 0x1200_9200_3456_ffff);
    m.state.gpr[0] = u64::from(DATA16);
    m.run(&mov(GS)).unwrap();
    let gs = m.state.segments[5];
    assert_eq!((gs.base, gs.limit, gs.selector), (0x1200_3456, 0xffff, DATA16));
    assert!(gs.has(attribute::ACCESSED));
    assert_eq!(m.read64(GDT + u64::from(DATA16)), 0x1200_9300_3456_ffff);
    m.state.gpr[0] = 3;
    m.run(&mov(DS)).unwrap();
    assert!(!m.state.segments[3].has(attribute::PRESENT));
    assert!(!m.state.mode.is_flat());
}

#[test]
fn data_segment_errors() {
    let user = [
        (BEYOND, Exception::gp(BEYOND)),
        (DATA, Exception::gp(DATA)),
        (EXECUTE_ONLY, Exception::gp(EXECUTE_ONLY)),
        (TSS_SELECTOR, Exception::gp(TSS_SELECTOR)),
    ];
    for (selector, expected) in user {
        let mut m = Machine::protected().user(USER_CODE32);
        m.state.gpr[0] = u64::from(selector);
        assert_eq!(m.faults(&mov(DS)), expected, "{selector:#x}");
    }
    let mut m = Machine::protected();
    m.state.gpr[0] = u64::from(DATA | 3);
    assert_eq!(m.faults(&mov(DS)), Exception::gp(DATA), "RPL counts too");
    m.write64(GDT + u64::from(ABSENT_DATA), 0x00cf_1300_0000_ffff);
    m.state.gpr[0] = u64::from(ABSENT_DATA);
    assert_eq!(m.faults(&mov(DS)), Exception::np(ABSENT_DATA));
    assert_eq!(m.faults(&mov(SS)), Exception::ss(ABSENT_DATA));
    let mut m = Machine::protected().user(USER_CODE32);
    m.state.gpr[0] = u64::from(CONFORMING32);
    m.run(&mov(DS)).unwrap();
}

#[test]
fn stack_segment_rules_and_shadow() {
    let mut m = Machine::protected();
    m.state.gpr[0] = u64::from(DATA16);
    m.run(&mov(SS)).unwrap();
    assert_eq!(m.state.interrupt_shadow, shadow::MOV_SS);
    assert_eq!(m.state.mode.stack_bits(), 16);
    for (selector, expected) in [
        (0, Exception::GP0),
        (DATA | 1, Exception::gp(DATA)),
        (USER_DATA, Exception::gp(USER_DATA)),
        (READ_ONLY, Exception::gp(READ_ONLY)),
        (CODE32, Exception::gp(CODE32)),
    ] {
        m.state.gpr[0] = u64::from(selector);
        assert_eq!(m.faults(&mov(SS)), expected, "{selector:#x}");
    }
    let mut m = Machine::long();
    m.state.gpr[0] = 0;
    m.run(&mov(SS)).unwrap();
    m.state.gpr[0] = 1;
    assert_eq!(m.faults(&mov(SS)), Exception::GP0, "a null SS has RPL = CPL");
    let mut m = Machine::long().user(USER_CODE64);
    m.state.gpr[0] = 3;
    assert_eq!(m.faults(&mov(SS)), Exception::GP0, "no null SS at CPL 3");
}

#[test]
fn pop_ss_and_fs() {
    let mut m = Machine::protected();
    m.push_all(4, [u64::from(DATA)]);
    let rsp = m.rsp();
    m.run(&[0x17]).unwrap();
    assert_eq!((m.selector(2), m.rsp(), m.state.interrupt_shadow), (DATA, rsp + 4, shadow::MOV_SS));
    let mut m = Machine::long();
    m.push_all(8, [u64::from(DATA)]);
    m.state.segments[4].base = 0x1234;
    m.run(&[0x0f, 0xa1]).unwrap();
    assert_eq!((m.selector(4), m.state.segments[4].base), (DATA, 0));
    assert_eq!(m.rsp(), KERNEL_STACK - 0x1000, "the slot has eight bytes");
}

#[test]
fn far_pointer_loads() {
    let mut m = Machine::protected();
    m.write(0x9000, &[0x78, 0x56, 0x34, 0x12]);
    m.write(0x9004, &DATA16.to_le_bytes());
    m.state.gpr[3] = 0x9000;
    // LSS ecx, [ebx]
    m.run(&[0x0f, 0xb2, 0x0b]).unwrap();
    assert_eq!((m.state.gpr[1], m.selector(2), m.state.interrupt_shadow), (0x1234_5678, DATA16, 0));
    m.write(0x9004, &BEYOND.to_le_bytes());
    // LES ecx, [ebx]
    assert_eq!(m.faults(&[0xc4, 0x0b]), Exception::gp(BEYOND));
    // The operand may end where its segment does: LES ecx, [ebx + 2 * eax + 4].
    m.write(0x9004, &DATA.to_le_bytes());
    (m.state.gpr[3], m.state.gpr[0]) = (0x8f00, 0x7e);
    m.state.segments[3].limit = 0x9005;
    m.run(&[0xc4, 0x4c, 0x43, 4]).unwrap();
    assert_eq!((m.state.gpr[1], m.selector(0)), (0x1234_5678, DATA));
    m.state.segments[3].limit = 0x9004;
    assert_eq!(m.faults(&[0xc4, 0x4c, 0x43, 4]), Exception::GP0);
}

#[test]
fn real_mode_keeps_limits() {
    let mut m = Machine::real();
    m.state.segments[3].limit = u32::MAX;
    m.state.gpr[0] = 0x1234;
    m.run(&mov(DS)).unwrap();
    let ds = m.state.segments[3];
    assert_eq!((ds.base, ds.limit), (0x12340, u32::MAX));
    let mut m = Machine::virtual_8086(0);
    m.state.segments[3].limit = u32::MAX;
    m.state.gpr[0] = 0x1234;
    m.run(&mov(DS)).unwrap();
    assert_eq!(m.state.segments[3].limit, 0xffff);
}

#[test]
fn table_registers() {
    let mut m = Machine::long();
    m.write(0x9000, &[0x7f, 0x01]);
    m.write64(0x9002, 0xffff_8000_0000_1000);
    m.state.gpr[3] = 0x9000;
    m.run(&[0x0f, 0x01, 0x13]).unwrap(); // LGDT [rbx]
    assert_eq!((m.state.gdtr.base, m.state.gdtr.limit), (0xffff_8000_0000_1000, 0x17f));
    m.run(&[0x0f, 0x01, 0x1b]).unwrap(); // LIDT [rbx]
    assert_eq!(m.state.idtr.limit, 0x17f);
    m.state.gpr[3] = 0x9100;
    m.run(&[0x0f, 0x01, 0x03]).unwrap(); // SGDT [rbx]
    assert_eq!((m.read16(0x9100), m.read64(0x9102)), (0x17f, 0xffff_8000_0000_1000));
    m.write64(0x9002, 1 << 47);
    m.state.gpr[3] = 0x9000;
    assert_eq!(m.faults(&[0x0f, 0x01, 0x13]), Exception::GP0);
    let mut m = Machine::long().user(USER_CODE64);
    m.state.gpr[3] = 0x9000;
    assert_eq!(m.faults(&[0x0f, 0x01, 0x13]), Exception::GP0);
    m.run(&[0x0f, 0x01, 0x0b]).unwrap(); // SIDT without UMIP
    m.state.cr4 |= cr4::UMIP;
    assert_eq!(m.faults(&[0x0f, 0x01, 0x0b]), Exception::GP0);
    assert_eq!(m.faults(&[0x0f, 0x00, 0xc8]), Exception::GP0, "STR");
    assert_eq!(m.faults(&[0x0f, 0x01, 0xe0]), Exception::GP0, "SMSW");

    let mut m = Machine::real();
    m.write(0x9000, &[0xff, 0x00, 0x78, 0x56, 0x34, 0x12]);
    m.state.gpr[3] = 0x9000;
    m.run(&[0x0f, 0x01, 0x17]).unwrap(); // LGDT [bx]
    assert_eq!(m.state.gdtr.base, 0x34_5678, "24 bits with 16-bit operands");
}

#[test]
fn task_register_and_ldt() {
    let mut m = Machine::long();
    m.write64(GDT + 0x88, 0x67 | TSS2 << 16 | 0x89 << 40);
    m.write64(GDT + 0x90, 0xffff_8000);
    m.state.gpr[0] = 0x88;
    m.run(&[0x0f, 0x00, 0xd8]).unwrap(); // LTR ax
    assert_eq!((m.state.tr.base, m.state.tr.selector), (0xffff_8000_0000_4000, 0x88));
    assert_eq!(m.state.tr.kind(), 11);
    assert_eq!(m.read64(GDT + 0x88) >> 40 & 0xff, 0x8b);
    assert_eq!(m.faults(&[0x0f, 0x00, 0xd8]), Exception::gp(0x88), "busy now");
    for upper in [1 << 15, 1 << 40] {
        m.write64(GDT + 0x88, 0x67 | TSS2 << 16 | 0x89 << 40);
        m.write64(GDT + 0x90, upper);
        assert_eq!(m.faults(&[0x0f, 0x00, 0xd8]), Exception::gp(0x88), "base or type of the upper half");
    }
    m.write64(GDT + 0x88, 0x67 | TSS2 << 16 | 0x89 << 40);
    m.write64(GDT + 0x90, 0);
    m.state.gdtr.limit = 0x96;
    assert_eq!(m.faults(&[0x0f, 0x00, 0xd8]), Exception::gp(0x88), "sixteen bytes");
    m.state.gdtr.limit = 0x97;
    m.run(&[0x0f, 0x00, 0xd8]).unwrap();
    m.write64(GDT + 0x88, 0x67 | TSS2 << 16 | 0x81 << 40);
    assert_eq!(m.faults(&[0x0f, 0x00, 0xd8]), Exception::gp(0x88), "no 16-bit TSS in IA-32e mode");
    let mut legacy = Machine::protected();
    legacy.write64(GDT + 0x88, 0x2b | TSS2 << 16 | 0x81 << 40);
    legacy.state.gpr[0] = 0x88;
    legacy.run(&[0x0f, 0x00, 0xd8]).unwrap();
    assert_eq!(legacy.state.tr.kind(), 3);
    m.state.gdtr.limit = u32::from(BEYOND) - 1;
    m.state.gpr[0] = 0;
    assert_eq!(m.faults(&[0x0f, 0x00, 0xd8]), Exception::GP0);
    m.run(&[0x0f, 0x00, 0xd0]).unwrap(); // LLDT ax
    assert!(!m.state.ldtr.has(attribute::PRESENT));
    m.state.gpr[0] = u64::from(LDT_SELECTOR);
    m.run(&[0x0f, 0x00, 0xd0]).unwrap();
    assert_eq!((m.state.ldtr.base, m.state.ldtr.limit), (LDT, 0xf));
    m.run(&[0x0f, 0x00, 0xc0]).unwrap(); // SLDT eax
    assert_eq!(m.state.gpr[0], u64::from(LDT_SELECTOR));

    // A segment from the LDT.
    m.write64(LDT + 8, 0x00cf_9300_0000_ffff);
    m.state.gpr[0] = 0xc;
    m.run(&mov(DS)).unwrap();
    assert_eq!(m.selector(3), 0xc);
    m.state.gpr[0] = 0x14;
    assert_eq!(m.faults(&mov(DS)), Exception::gp(0x14));
    m.state.gpr[0] = u64::from(DATA);
    assert_eq!(m.faults(&[0x0f, 0x00, 0xd0]), Exception::gp(DATA));
    assert_eq!(Machine::real().faults(&[0x0f, 0x00, 0xd0]), Exception::UD);
}

#[test]
fn questions_about_selectors() {
    let mut m = Machine::protected().user(USER_CODE32);
    let mut ask = |bytes: &[u8], selector: u16| {
        (m.state.gpr[0], m.state.gpr[1], m.state.rip) = (0x55, u64::from(selector), CODE);
        m.run(bytes).unwrap();
        (m.state.flags.to_bits() & flags::ZF != 0).then_some(m.state.gpr[0])
    };
    let lar = [0x0f, 0x02, 0xc1];
    let lsl = [0x0f, 0x03, 0xc1];
    let verr = [0x0f, 0x00, 0xe1];
    let verw = [0x0f, 0x00, 0xe9];
    assert_eq!(ask(&lar, USER_DATA), Some(0x00c0_f300));
    assert_eq!(ask(&lar, DATA), None);
    assert_eq!(ask(&lar, CONFORMING32), Some(0x00c0_9f00));
    assert_eq!(ask(&lar, 0), None);
    assert_eq!(ask(&lar, BEYOND), None);
    assert_eq!(ask(&lar, TASK_GATE | 3), Some(0xe500));
    assert_eq!(ask(&lsl, TASK_GATE | 3), None);
    assert_eq!(ask(&lsl, USER_DATA), Some(0xffff_ffff));
    assert_eq!(ask(&lsl, USER_TSS), Some(0x67));
    assert_eq!(ask(&verr, USER_TSS), None);
    assert_eq!(ask(&verr, USER_CODE32), Some(0x55));
    assert_eq!(ask(&verw, USER_CODE32), None);
    assert_eq!(ask(&verw, USER_DATA), Some(0x55));
    assert_eq!(ask(&verr, DATA), None);
    assert_eq!(ask(&verr, TSS_SELECTOR), None);
    assert_eq!(Machine::real().faults(&lar), Exception::UD);
}

#[test]
fn task_gate_is_unknown_to_lar_in_long_mode() {
    let mut m = Machine::long();
    m.state.gpr[1] = u64::from(TASK_GATE);
    m.run(&[0x0f, 0x02, 0xc1]).unwrap();
    assert_eq!(m.state.flags.to_bits() & flags::ZF, 0);
}

#[test]
fn arpl() {
    let mut m = Machine::protected();
    (m.state.gpr[0], m.state.gpr[1]) = (0x1_0011, 0x23);
    m.run(&[0x63, 0xc8]).unwrap(); // ARPL ax, cx
    assert_eq!((m.state.gpr[0], m.state.flags.to_bits() & flags::ZF), (0x1_0013, flags::ZF));
    (m.state.gpr[0], m.state.gpr[1]) = (0x12, 0x1);
    m.run(&[0x63, 0xc8]).unwrap();
    assert_eq!(m.state.gpr[0], 0x12);
    m.state.gpr[1] = 2;
    m.run(&[0x63, 0xc8]).unwrap();
    assert_eq!(m.state.flags.to_bits() & flags::ZF, 0, "equal is not raised");
    m.state.gpr[1] = 0x13;
    m.run(&[0x63, 0xc8]).unwrap();
    assert_eq!(m.state.gpr[0], 0x13);
    m.state.gpr[1] = 0;
    m.run(&[0x63, 0xc8]).unwrap();
    assert_eq!(m.state.flags.to_bits() & flags::ZF, 0);
}
