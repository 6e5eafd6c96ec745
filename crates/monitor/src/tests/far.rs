//! JMP, CALL and RETF to other code segments, and call gates.

use super::*;

/// JMP or CALL ptr16:32.
fn direct(opcode: u8, selector: u16, offset: u32) -> Vec<u8> {
    let mut bytes = vec![opcode];
    bytes.extend(offset.to_le_bytes());
    bytes.extend(selector.to_le_bytes());
    bytes
}

const JMP: u8 = 0xea;
const CALL: u8 = 0x9a;
const RETF: &[u8] = &[0xcb];

#[test]
fn real_mode_jump_and_call() {
    let mut m = Machine::real();
    m.run(&[0xea, 0x34, 0x12, 0x00, 0x20]).unwrap();
    assert_eq!((m.selector(1), m.state.segments[1].base, m.state.rip), (0x2000, 0x20000, 0x1234));
    let mut m = Machine::real();
    m.run(&[0x9a, 0x34, 0x12, 0x00, 0x20]).unwrap();
    assert_eq!((m.read16(m.rsp()), m.read16(m.rsp() + 2)), (CODE as u16 + 5, 0));
    m.state.rip = 0;
    m.run(&[0xca, 4, 0]).unwrap();
    assert_eq!((m.selector(1), m.state.rip, m.rsp()), (0, CODE + 5, 0xf004));
}

#[test]
fn jump_into_protected_mode_and_long_mode() {
    let mut m = Machine::protected();
    m.run(&direct(JMP, CODE16, 0x100)).unwrap();
    assert_eq!((m.state.mode.code_bits(), m.selector(1)), (16, CODE16));

    let mut m = Machine::long();
    m.load_flat(CODE32, DATA);
    m.settle();
    assert_eq!(m.state.mode.code_bits(), 32);
    m.run(&direct(JMP, CODE64, 0x100)).unwrap();
    assert!(m.state.mode.is_64bit());
}

#[test]
fn returns_change_the_code_size() {
    let mut m = Machine::protected();
    m.push_all(4, [u64::from(CODE16), 0x100]);
    m.run(RETF).unwrap();
    assert_eq!((m.state.mode.code_bits(), m.state.rip), (16, 0x100));
    let mut m = Machine::long();
    m.push_all(4, [u64::from(DATA), 0x1234, u64::from(USER_CODE32), 0x100]);
    m.load_flat(CODE32, DATA);
    m.settle();
    assert_eq!(m.faults(RETF), Exception::gp(DATA));
}

#[test]
fn pushes_of_a_direct_call_can_fault() {
    let mut m = Machine::protected();
    m.state.segments[2].attributes |= x86::segment::attribute::EXPAND_DOWN;
    for (room, works) in [(0, false), (4, false), (8, true)] {
        m.state.rip = CODE;
        m.state.segments[2].limit = m.rsp() as u32 - 1 - room;
        if works {
            m.run(&direct(CALL, CODE32, 0x100)).unwrap();
        } else {
            assert_eq!(m.faults(&direct(CALL, CODE32, 0x100)), Exception::SS0);
        }
    }
}

#[test]
fn direct_errors() {
    let cases = [
        (0, Exception::GP0),
        (BEYOND, Exception::gp(BEYOND)),
        (DATA, Exception::gp(DATA)),
        (USER_CODE32, Exception::gp(USER_CODE32)),
        (CODE32 | 3, Exception::gp(CODE32)),
        (LDT_SELECTOR, Exception::gp(LDT_SELECTOR)),
        (CODE32 | 4, Exception::gp(CODE32 | 4)),
    ];
    for (selector, expected) in cases {
        let mut m = Machine::protected();
        assert_eq!(m.faults(&direct(JMP, selector, 0x100)), expected, "{selector:#x}");
        assert_eq!(m.faults(&direct(CALL, selector, 0x100)), expected, "{selector:#x}");
    }
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(CODE16), 0x0000_1b00_0000_ffff);
    assert_eq!(m.faults(&direct(JMP, CODE16, 0)), Exception::np(CODE16));
    m.write64(GDT + u64::from(CODE16), 0x0000_9b00_0000_ffff);
    assert_eq!(m.faults(&direct(JMP, CODE16, 0x10000)), Exception::GP0);
}

#[test]
fn conforming_code_keeps_cpl() {
    let mut m = Machine::protected().user(USER_CODE32);
    m.run(&direct(CALL, CONFORMING32, 0x100)).unwrap();
    assert_eq!((m.selector(1), m.state.cpl), (CONFORMING32 | 3, 3));
    assert_eq!(m.read32(m.rsp() + 4), u32::from(USER_CODE32));
    m.run(RETF).unwrap();
    assert_eq!((m.selector(1), m.state.rip, m.rsp()), (USER_CODE32, CODE + 7, USER_STACK));
}

#[test]
fn call_gate_switches_stacks_and_copies_parameters() {
    let mut m = Machine::protected().user(USER_CODE32);
    // 32-bit gate, DPL 3, two parameters.
    m.write64(
        GDT + u64::from(CALL_GATE),
        HANDLER & 0xffff | u64::from(CODE32) << 16 | 2 << 32 | 0xec << 40 | HANDLER >> 16 << 48,
    );
    m.push_all(4, [0x2222, 0x1111]);
    m.run(&direct(CALL, CALL_GATE, 0xdead)).unwrap();
    assert_eq!((m.state.rip, m.state.cpl, m.selector(1), m.selector(2)), (HANDLER, 0, CODE32, DATA));
    let frame: Vec<u32> = (0..6).map(|n| m.read32(m.rsp() + 4 * n)).collect();
    let expected = [
        CODE as u32 + 7,
        u32::from(USER_CODE32),
        0x1111,
        0x2222,
        USER_STACK as u32 - 8,
        u32::from(USER_DATA),
    ];
    assert_eq!(frame, expected);
    assert_eq!(m.rsp(), KERNEL_STACK - 24);

    // RETF 8 gives the parameters of both stacks back.
    m.state.segments[4] = m.state.segments[2];
    m.run(&[0xca, 8, 0]).unwrap();
    assert_eq!((m.state.rip, m.state.cpl, m.rsp()), (CODE + 7, 3, USER_STACK));
    assert_eq!((m.selector(4), m.selector(3)), (0, USER_DATA), "FS was a kernel segment");
}

#[test]
fn call_gate_errors() {
    let gate = |dpl: u64, selector: u16| u64::from(selector) << 16 | (0x8c | dpl << 5) << 40;
    let cases = [
        (gate(0, CODE32), Exception::gp(CALL_GATE)),
        (gate(3, 0), Exception::GP0),
        (gate(3, DATA), Exception::gp(DATA)),
        (gate(3, BEYOND), Exception::gp(BEYOND)),
        (gate(3, CODE32) & !(1 << 47), Exception::np(CALL_GATE)),
    ];
    for (bits, expected) in cases {
        let mut m = Machine::protected().user(USER_CODE32);
        m.write64(GDT + u64::from(CALL_GATE), bits);
        assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), expected, "{bits:#x}");
    }
    // JMP can't change privilege; the TSS's stack segment is checked.
    let mut m = Machine::protected().user(USER_CODE32);
    m.write64(GDT + u64::from(CALL_GATE), gate(3, CODE32));
    assert_eq!(m.faults(&direct(JMP, CALL_GATE, 0)), Exception::gp(CODE32));
    for (ss, expected) in [
        (0, Exception::ts(0)),
        (USER_DATA, Exception::ts(USER_DATA)),
        (READ_ONLY, Exception::ts(READ_ONLY)),
        (ABSENT_DATA, Exception::ts(ABSENT_DATA)),
        (BEYOND, Exception::ts(BEYOND)),
    ] {
        m.write(TSS + 8, &ss.to_le_bytes());
        assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), expected, "{ss:#x}");
    }
    m.write64(GDT + u64::from(ABSENT_DATA), 0x00cf_1300_0000_ffff);
    m.write(TSS + 8, &ABSENT_DATA.to_le_bytes());
    assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), Exception::ss(ABSENT_DATA));
    m.state.tr.limit = 8;
    assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), Exception::ts(TSS_SELECTOR));
}

#[test]
fn call_gate_to_the_same_level_of_16_bits() {
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(CALL_GATE), 0x1234 | u64::from(CODE32) << 16 | 0x84 << 40 | 0xffff << 48);
    let rsp = m.rsp();
    m.run(&direct(CALL, CALL_GATE, 0)).unwrap();
    assert_eq!((m.state.rip, m.rsp()), (0x1234, rsp - 4));
    assert_eq!((m.read16(rsp - 2), m.read16(rsp - 4)), (CODE32, CODE as u16 + 7));
}

#[test]
fn call_gate_in_64_bit_mode() {
    let mut m = Machine::long().user(USER_CODE64);
    let address = GDT + u64::from(CALL_GATE);
    m.write64(address, 0x1234 | u64::from(CODE64) << 16 | 0xec << 40 | 0x8000 << 48);
    m.write64(address + 8, 0xffff_8000);
    // CALL m16:64 at [rip + 0]: REX.W FF /3.
    let pointer = 0x9000;
    m.write64(pointer, 0);
    m.write(pointer + 8, &CALL_GATE.to_le_bytes());
    m.state.gpr[0] = pointer;
    m.run(&[0x48, 0xff, 0x18]).unwrap();
    assert_eq!((m.state.rip, m.state.cpl, m.selector(2)), (0xffff_8000_8000_1234, 0, 0));
    let frame: Vec<u64> = (0..4).map(|n| m.read64(m.rsp() + 8 * n)).collect();
    assert_eq!(frame, [CODE + 3, u64::from(USER_CODE64), USER_STACK, u64::from(USER_DATA)]);
    assert_eq!(m.rsp(), KERNEL_STACK - 32);

    m.state.rip = CODE;
    m.run(&[0x48, 0xcb]).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.state.cpl), (CODE + 3, USER_STACK, 3));

    m.write64(address + 8, 1 << 40 | 0xffff_8000);
    assert_eq!(m.faults(&[0x48, 0xff, 0x18]), Exception::gp(CALL_GATE), "type of the upper half");
    m.write64(address + 8, 0x1_0000);
    assert_eq!(m.faults(&[0x48, 0xff, 0x18]), Exception::GP0, "entry not canonical");
}

#[test]
fn conforming_code_of_the_same_level_and_the_accessed_bit() {
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(CONFORMING32), 0x00cf_9e00_0000_ffff);
    m.run(&direct(JMP, CONFORMING32, CODE as u32)).unwrap();
    assert_eq!((m.selector(1), m.state.cpl), (CONFORMING32, 0));
    assert_eq!(m.read64(GDT + u64::from(CONFORMING32)), 0x00cf_9f00_0000_ffff);

    // A GDT that can't be written: the bit can't be set, and that is a fault.
    let mut m = Machine::paged();
    m.write64(GDT + u64::from(CODE16), 0x0000_9a00_0000_ffff);
    m.protect(GDT);
    let expected = Exception::page_fault(GDT + u64::from(CODE16) + 5, 3);
    assert_eq!(m.faults(&direct(JMP, CODE16, 0)), expected);
    m.state.gpr[0] = u64::from(DATA16);
    m.run(&[0x8e, 0xe8]).unwrap();
    // Through a gate, as the stack of an inner level, and by a return.
    m.write64(GDT + u64::from(CALL_GATE), 0x1234 | u64::from(CODE16) << 16 | 0x84 << 40);
    assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), expected);
    m.push_all(4, [u64::from(CODE16), 0]);
    assert_eq!(m.faults(RETF), expected);
    let mut m = Machine::paged();
    m.write64(GDT + u64::from(DATA16), 0x00cf_9200_0000_ffff);
    m.write64(GDT + u64::from(CALL_GATE), 0x1234 | u64::from(CODE32) << 16 | 0xec << 40);
    m.write(TSS + 8, &DATA16.to_le_bytes());
    m.protect(GDT);
    for page in [CODE, USER_STACK - 1, GDT, TSS] {
        let at = TABLES + 0x1000 + (page >> 12) * 4;
        let entry = m.read32(at) | 4;
        m.write(at, &entry.to_le_bytes());
    }
    let directory = m.read32(TABLES) | 4;
    m.write(TABLES, &directory.to_le_bytes());
    let mut m = m.user(USER_CODE32);
    let expected = Exception::page_fault(GDT + u64::from(DATA16) + 5, 3);
    assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), expected);
}

#[test]
fn a_gate_to_conforming_code_keeps_cpl_and_refuses_by_its_own_dpl() {
    let mut m = Machine::protected().user(USER_CODE32);
    m.write64(GDT + u64::from(CALL_GATE), 0x1234 | u64::from(CONFORMING32) << 16 | 0xec << 40);
    m.run(&direct(CALL, CALL_GATE, 0)).unwrap();
    assert_eq!((m.selector(1), m.state.cpl, m.rsp()), (CONFORMING32 | 3, 3, USER_STACK - 8));
    // A TSS of ring 0.
    let mut m = Machine::protected().user(USER_CODE32);
    assert_eq!(m.faults(&direct(JMP, TSS2_SELECTOR, 0)), Exception::gp(TSS2_SELECTOR));
}

#[test]
fn every_push_of_a_call_gate_can_fault() {
    // 64-bit: the frame of four quadwords ends where the mapping does.
    for (room, completes) in [(0, false), (1, false), (2, false), (3, false), (4, true)] {
        let mut m = Machine::long().user(USER_CODE64);
        let address = GDT + u64::from(CALL_GATE);
        m.write64(address, 0x1234 | u64::from(CODE64) << 16 | 0xec << 40);
        m.write64(address + 8, 0);
        // The second 2 MiB is elsewhere; nothing is below it.
        m.write64(TABLES + 0x2000 + 3 * 8, 0x20_0087);
        m.settle();
        m.write64(TSS + 4, (3 << 21) + 8 * room);
        m.write(0x9008, &CALL_GATE.to_le_bytes());
        m.state.gpr[0] = 0x9000;
        if completes {
            m.run(&[0x48, 0xff, 0x18]).unwrap();
        } else {
            assert_eq!(m.faults(&[0x48, 0xff, 0x18]), Exception::page_fault((3 << 21) - 8, 2));
        }
    }
    // 32-bit, one parameter: five slots above the limit of an expand-down segment.
    for room in 0..6 {
        let mut m = Machine::protected().user(USER_CODE32);
        m.write64(
            GDT + u64::from(CALL_GATE),
            HANDLER & 0xffff | u64::from(CODE32) << 16 | 0xec01 << 32 | HANDLER >> 16 << 48,
        );
        m.write64(GDT + u64::from(EXPAND_DOWN), 0x0042_9700_0000_ffff);
        m.write(TSS + 4, &(0x3_0000 + 4 * room as u32).to_le_bytes());
        m.write(TSS + 8, &EXPAND_DOWN.to_le_bytes());
        if room < 5 {
            assert_eq!(m.faults(&direct(CALL, CALL_GATE, 0)), Exception::ss(EXPAND_DOWN), "{room}");
        } else {
            m.run(&direct(CALL, CALL_GATE, 0)).unwrap();
        }
    }
}

#[test]
fn retf_errors() {
    let cases = [
        (0u64, Exception::GP0),
        (u64::from(DATA), Exception::gp(DATA)),
        (u64::from(BEYOND), Exception::gp(BEYOND)),
        (u64::from(CODE32 | 3), Exception::gp(CODE32)),
    ];
    for (selector, expected) in cases {
        let mut m = Machine::protected();
        m.push_all(4, [u64::from(USER_DATA), USER_STACK, selector, 0x100]);
        assert_eq!(m.faults(RETF), expected, "{selector:#x}");
    }
    let mut m = Machine::protected();
    m.push_all(4, [u64::from(DATA), USER_STACK, u64::from(USER_CODE32), 0x100]);
    assert_eq!(m.faults(RETF), Exception::gp(DATA));
    let mut m = Machine::protected();
    m.state.segments[2].limit = m.rsp() as u32 + 2;
    assert_eq!(m.faults(RETF), Exception::SS0);
}
