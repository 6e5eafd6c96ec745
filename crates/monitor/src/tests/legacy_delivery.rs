//! Delivery in real, protected and virtual-8086 mode.

use super::*;

#[test]
fn real_mode_uses_the_vector_table() {
    let mut m = Machine::real();
    m.write(4 * 0x21, &[0x34, 0x12, 0x00, 0x20]);
    m.state.rflags |= flags::IF | flags::TF;
    m.run(&[0xcd, 0x21]).unwrap();
    assert_eq!((m.selector(1), m.state.rip, m.rsp()), (0x2000, 0x1234, 0xeffa));
    assert_eq!(m.read16(m.rsp()), CODE as u16 + 2);
    assert_eq!(m.read16(m.rsp() + 4), (flags::IF | flags::TF | 2) as u16);
    assert_eq!(m.state.rflags & (flags::IF | flags::TF), 0);
}

#[test]
fn real_mode_exceptions_have_no_error_code() {
    let mut m = Machine::real();
    m.write(4 * 13, &[0x34, 0x12, 0x00, 0x20]);
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    assert_eq!(m.rsp(), 0xeffa);
    m.state.idtr.limit = 4 * 13 + 3;
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    m.state.idtr.limit = 4 * 13 + 2;
    m.write(4 * 8, &[0x78, 0x56, 0x00, 0x20]);
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    assert_eq!(m.state.rip, 0x5678, "a double fault");
    m.state.idtr.limit = 4 * 8 + 2;
    assert_eq!(m.deliver(Event::Exception(Exception::GP0)), Err(TripleFault));
}

#[test]
fn protected_mode_same_level_and_inner_level() {
    let mut m = Machine::protected();
    m.set_gate(13, CODE32, HANDLER, 0x8f, 0);
    let rsp = m.rsp();
    m.deliver(Event::Exception(Exception::gp(0x58))).unwrap();
    assert_eq!((m.rsp(), m.read32(m.rsp()), m.read32(m.rsp() + 4)), (rsp - 16, 0x58, CODE as u32));

    let mut m = Machine::protected().user(USER_CODE32);
    m.set_gate(0x80, CODE32, HANDLER, 0xee, 0);
    m.run(&[0xcd, 0x80]).unwrap();
    assert_eq!((m.rsp(), m.state.cpl, m.selector(2)), (KERNEL_STACK - 20, 0, DATA));
    let frame: Vec<u32> = (0..5).map(|n| m.read32(m.rsp() + 4 * n)).collect();
    assert_eq!(frame, [CODE as u32 + 2, 0x23, 2, USER_STACK as u32, 0x2b]);
    assert_eq!(m.selector(3), USER_DATA, "data segments stay");
}

#[test]
fn software_interrupts_check_the_gates_dpl() {
    let mut m = Machine::protected().user(USER_CODE32);
    m.set_gate(0x80, CODE32, HANDLER, 0x8e, 0);
    assert_eq!(m.faults(&[0xcd, 0x80]), fault(GP, 0x80 * 8 + 2));
    m.deliver(Event::Interrupt(0x80)).unwrap();
    m.set_gate(0x80, CODE32, HANDLER, 0x0e, 0);
    assert_eq!(m.faults(&[0xcd, 0x80]), fault(Vector::SegmentNotPresent, 0x80 * 8 + 2));
}

#[test]
fn the_tss_must_reach_to_the_stack() {
    for (limit, selector, works) in [(9, TSS_SELECTOR, true), (8, TSS_SELECTOR, false)] {
        let mut m = Machine::protected().user(USER_CODE32);
        m.state.tr.limit = limit;
        m.set_gate(0x80, CODE32, HANDLER, 0xee, 0);
        if works {
            m.run(&[0xcd, 0x80]).unwrap();
        } else {
            assert_eq!(m.faults(&[0xcd, 0x80]), Exception::ts(selector));
        }
    }
    // A 16-bit TSS: SP0 at 2, SS0 at 4.
    let mut m = Machine::protected().user(USER_CODE32);
    m.state.tr.attributes = 0x83;
    m.state.tr.limit = 5;
    m.write(TSS + 2, &0xfff0u16.to_le_bytes());
    m.write(TSS + 4, &DATA16.to_le_bytes());
    m.set_gate(0x80, CODE32, HANDLER, 0xee, 0);
    m.state.gpr[RSP] = 0x5_0000;
    m.run(&[0xcd, 0x80]).unwrap();
    assert_eq!((m.rsp(), m.selector(2)), (0x5_0000 + 0xfff0 - 20, DATA16), "only SP is loaded");
}

#[test]
fn a_16_bit_gate_pushes_words() {
    let mut m = Machine::protected();
    m.set_gate(0x21, CODE32, 0xffff_1234, 0x86, 0);
    let rsp = m.rsp();
    m.state.rflags |= flags::IF;
    m.run(&[0xcd, 0x21]).unwrap();
    assert_eq!((m.rsp(), m.state.rip), (rsp - 6, 0x1234));
    assert_eq!(m.read16(m.rsp() + 2), CODE32);
    assert_eq!(m.state.rflags & flags::IF, 0);
}

#[test]
fn stack_limit_during_delivery() {
    let mut m = Machine::protected();
    m.set_gate(0x21, CODE32, HANDLER, 0x8e, 0);
    m.state.segments[2].limit = 0x100;
    assert_eq!(m.faults(&[0xcd, 0x21]), fault(Vector::StackFault, 0));
    let mut m = Machine::protected().user(USER_CODE32);
    m.set_gate(0x21, CODE32, HANDLER, 0xee, 0);
    m.write(TSS + 8, &EXPAND_DOWN.to_le_bytes());
    m.write64(GDT + u64::from(EXPAND_DOWN), 0x00cf_9700_000f_ffff);
    assert_eq!(m.faults(&[0xcd, 0x21]), fault(Vector::StackFault, u32::from(EXPAND_DOWN)));
}

#[test]
fn every_push_of_a_delivery_can_fault() {
    let cases: [(fn() -> Machine, u32); 2] =
        [(|| Machine::protected().user(USER_CODE32), 6), (|| Machine::virtual_8086(0), 10)];
    for (machine, slots) in cases {
        for room in 0..=slots {
            let mut m = machine();
            m.write64(GDT + u64::from(EXPAND_DOWN), 0x0042_9700_0000_ffff);
            m.write(TSS + 4, &(0x3_0000 + 4 * room).to_le_bytes());
            m.write(TSS + 8, &EXPAND_DOWN.to_le_bytes());
            m.set_gate(13, CODE32, HANDLER, 0x8e, 0);
            // #SS through a task that always works.
            m.set_gate(12, TSS2_SELECTOR, 0, 0x85, 0);
            m.write(TSS2 + 0x38, &(KERNEL_STACK as u32).to_le_bytes());
            m.write(TSS2 + 0x20, &(HANDLER as u32 + 8).to_le_bytes());
            for (n, selector) in [DATA, CODE32, DATA, DATA].into_iter().enumerate() {
                m.write(TSS2 + 0x48 + 4 * n as u64, &selector.to_le_bytes());
            }
            // #SS while #GP is delivered is a double fault.
            m.set_gate(8, TSS2_SELECTOR, 0, 0x85, 0);
            m.deliver(Event::Exception(Exception::GP0)).unwrap();
            let entry = if room < slots { HANDLER + 8 } else { HANDLER };
            assert_eq!(m.state.rip, entry, "{room} of {slots}");
        }
    }
}

#[test]
fn entry_beyond_the_segment() {
    let mut m = Machine::protected();
    m.set_gate(0x21, CODE16, 0x1_0000, 0x8e, 0);
    assert_eq!(m.faults(&[0xcd, 0x21]), Exception::GP0);
}

#[test]
fn virtual_8086_software_interrupts() {
    let mut m = Machine::virtual_8086(0);
    m.set_gate(0x21, CODE32, HANDLER, 0xee, 0);
    m.set_gate(3, CODE32, HANDLER, 0xee, 0);
    assert_eq!(m.faults(&[0xcd, 0x21]), Exception::GP0);
    m.run(&[0xcc]).unwrap();
    assert_eq!((m.state.cpl, m.rsp()), (0, KERNEL_STACK - 36));
    assert_eq!(m.read32(m.rsp() + 8) & flags::VM as u32, flags::VM as u32);

    let mut m = Machine::virtual_8086(3);
    m.set_gate(0x21, CONFORMING32, HANDLER, 0xee, 0);
    assert_eq!(m.faults(&[0xcd, 0x21]), Exception::gp(CONFORMING32), "only to ring 0 proper");
}

#[test]
fn into_interrupts_on_overflow_only() {
    let mut m = Machine::protected();
    m.set_gate(4, CODE32, HANDLER, 0x8f, 0);
    m.run(&[0xce]).unwrap();
    assert_eq!(m.state.rip, CODE + 1);
    m.state.flags = x86::Flags::from_bits(flags::OF);
    m.run(&[0xce]).unwrap();
    assert_eq!(m.state.rip, HANDLER);
}
