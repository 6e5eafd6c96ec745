//! Delivery in IA-32e mode, double and triple faults.

use super::*;

const INTERRUPT: u64 = 0x8e;
const TRAP: u64 = 0x8f;
const USER_INTERRUPT: u64 = 0xee;

#[test]
fn interrupt_from_user_switches_stacks_and_masks() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x40, CODE64, 0xffff_8000_0000_1234, INTERRUPT, 0);
    m.state.rflags |= flags::IF | flags::TF | flags::AC;
    m.state.halted = true;
    m.state.interrupt_shadow = 0;
    let rflags = m.state.rflags();
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!(m.rsp(), KERNEL_STACK - 40);
    let frame: Vec<u64> = (0..5).map(|n| m.read64(m.rsp() + 8 * n)).collect();
    assert_eq!(frame, [CODE, u64::from(USER_CODE64), rflags, USER_STACK, u64::from(USER_DATA)]);
    assert_eq!((m.state.rip, m.state.cpl), (0xffff_8000_0000_1234, 0));
    assert_eq!((m.selector(1), m.selector(2)), (CODE64, 0));
    assert_eq!(m.state.rflags & (flags::IF | flags::TF | flags::AC), flags::AC);
    assert!(!m.state.halted);
    assert_eq!(m.state.mode.cpl(), 0);
}

#[test]
fn fault_from_kernel_aligns_the_stack_pushes_a_code_and_sets_rf() {
    let mut m = Machine::long();
    m.set_gate(13, CODE64, HANDLER, TRAP, 0);
    m.state.gpr[RSP] = KERNEL_STACK - 3;
    m.state.rflags |= flags::IF;
    m.deliver(Event::Exception(Exception::gp(0x2b))).unwrap();
    let aligned = (KERNEL_STACK - 3) & !15;
    assert_eq!(m.rsp(), aligned - 48);
    assert_eq!(m.read64(m.rsp()), 0x28);
    assert_eq!(m.read64(m.rsp() + 24) & flags::RF, flags::RF);
    assert_eq!(m.read64(m.rsp() + 32), KERNEL_STACK - 3);
    assert_eq!(m.selector(2), DATA, "SS stays without a change of privilege");
    assert_ne!(m.state.rflags & flags::IF, 0, "a trap gate leaves IF");
}

#[test]
fn ist_is_used_also_without_a_change_of_privilege() {
    let mut m = Machine::long();
    m.set_gate(2, CODE64, HANDLER, INTERRUPT, 1);
    m.deliver(Event::Nmi).unwrap();
    assert_eq!(m.rsp(), IST_STACK - 40);
    assert!(m.state.nmi_blocked);
    assert_eq!(m.read64(m.rsp() + 32), u64::from(DATA));
}

#[test]
fn page_fault_sets_cr2() {
    let mut m = Machine::long();
    m.set_gate(14, CODE64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Exception(Exception::page_fault(0xdead_b000, 2))).unwrap();
    assert_eq!(m.state.cr2, 0xdead_b000);
    assert_eq!(m.read64(m.rsp()), 2);
}

#[test]
fn software_interrupt_checks_the_gates_dpl() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x80, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(0x81, CODE64, HANDLER, USER_INTERRUPT, 0);
    m.set_gate(0x82, CODE64, HANDLER, 0x6e, 0);
    assert_eq!(m.faults(&[0xcd, 0x80]), fault(GP, 0x80 * 8 + 2));
    assert_eq!(m.faults(&[0xcd, 0x82]), fault(Vector::SegmentNotPresent, 0x82 * 8 + 2));
    m.run(&[0xcd, 0x81]).unwrap();
    assert_eq!(m.read64(m.rsp()), CODE + 2);
    assert_eq!(m.state.rip, HANDLER);
}

#[test]
fn int1_needs_no_dpl_and_int3_does() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(1, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(3, CODE64, HANDLER, INTERRUPT, 0);
    assert_eq!(m.faults(&[0xcc]), fault(GP, 3 * 8 + 2));
    m.run(&[0xf1]).unwrap();
    assert_eq!(m.read64(m.rsp()), CODE + 1);
}

#[test]
fn a_gate_fault_of_hardware_has_ext_and_is_delivered_in_its_place() {
    let mut m = Machine::long();
    m.set_gate(13, CODE64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Interrupt(0x50)).unwrap();
    assert_eq!(m.state.rip, HANDLER);
    assert_eq!(m.read64(m.rsp()), 0x50 * 8 + 2 + 1);
    assert_eq!(m.read64(m.rsp() + 8), CODE);
}

#[test]
fn gate_and_code_segment_errors() {
    let cases = [
        (0, INTERRUPT, 1),
        (DATA, INTERRUPT, u32::from(DATA) | 1),
        (BEYOND, INTERRUPT, u32::from(BEYOND) | 1),
        (CODE32, INTERRUPT, u32::from(CODE32) | 1),
        (USER_CODE64, INTERRUPT, 0x31),
        (CODE64, 0x8c, 0x50 * 8 + 3),
    ];
    for (selector, rights, code) in cases {
        let mut m = Machine::long();
        m.set_gate(0x50, selector, HANDLER, rights, 0);
        m.set_gate(13, CODE64, HANDLER, INTERRUPT, 0);
        m.deliver(Event::Interrupt(0x50)).unwrap();
        assert_eq!(m.read64(m.rsp()), u64::from(code), "selector {selector:#x} rights {rights:#x}");
    }
}

#[test]
fn conforming_handler_keeps_cpl_3() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x40, CONFORMING64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!((m.state.cpl, m.selector(1)), (3, CONFORMING64 | 3));
    assert_eq!(m.rsp(), USER_STACK - 40);
}

#[test]
fn page_fault_while_pushing_a_page_fault_is_a_double_fault() {
    let mut m = Machine::long();
    m.set_gate(14, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(8, CODE64, HANDLER + 8, INTERRUPT, 1);
    m.state.gpr[RSP] = 0x8000_0000;
    m.deliver(Event::Exception(Exception::page_fault(0x1234_5000, 0))).unwrap();
    assert_eq!(m.state.rip, HANDLER + 8);
    assert_eq!(m.read64(m.rsp()), 0, "#DF has an error code of zero");
    // The address of the second fault is in CR2, as real processors leave it.
    assert_eq!(m.read64(m.rsp() + 8), CODE);
}

#[test]
fn page_fault_after_a_contributory_fault_is_delivered_itself() {
    let mut m = Machine::long();
    m.set_gate(13, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(14, CODE64, HANDLER + 8, INTERRUPT, 1);
    m.state.gpr[RSP] = 0x8000_0000;
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    assert_eq!(m.state.rip, HANDLER + 8);
    assert_eq!(m.state.cr2, 0x8000_0000 - 8);
    assert_eq!(m.read64(m.rsp()), 2);
}

#[test]
fn contributory_fault_twice_is_a_double_fault_and_thrice_a_shutdown() {
    let mut m = Machine::long();
    m.set_gate(8, CODE64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    assert_eq!(m.state.rip, HANDLER);

    let mut m = Machine::long();
    assert_eq!(m.deliver(Event::Exception(Exception::GP0)), Err(TripleFault));
    let mut m = Machine::long();
    m.state.idtr.limit = 0;
    assert_eq!(m.deliver(Event::Interrupt(0x20)), Err(TripleFault));
}

#[test]
fn benign_fault_that_faults_is_replaced() {
    let mut m = Machine::long();
    m.set_gate(11, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(6, CODE64, HANDLER + 8, 0x0e, 0);
    m.deliver(Event::Exception(Exception::UD)).unwrap();
    assert_eq!(m.state.rip, HANDLER);
    assert_eq!(m.read64(m.rsp()), 6 * 8 + 3);
}

#[test]
fn non_canonical_stack_and_entry() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x40, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(12, CODE64, HANDLER + 8, INTERRUPT, 1);
    m.write64(TSS + 4, 0x8000_0000_0000_0000);
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!((m.state.rip, m.read64(m.rsp())), (HANDLER + 8, 1));

    let mut m = Machine::long();
    m.set_gate(0x40, CODE64, 1 << 60, INTERRUPT, 0);
    m.set_gate(13, CODE64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!((m.state.rip, m.read64(m.rsp())), (HANDLER, 1));
}

#[test]
fn short_tss_is_an_invalid_tss() {
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x40, CODE64, HANDLER, INTERRUPT, 0);
    m.set_gate(10, CODE64, HANDLER + 8, INTERRUPT, 1);
    m.state.tr.limit = 10;
    // The handler of #TS needs a stack too: IST1 is beyond the limit as well.
    assert_eq!(m.deliver(Event::Interrupt(0x40)), Err(TripleFault));
    m.set_gate(10, CONFORMING64, HANDLER + 8, INTERRUPT, 0);
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!(m.read64(m.rsp()), u64::from(TSS_SELECTOR) | 1);
    let mut m = Machine::long().user(USER_CODE64);
    m.set_gate(0x40, CODE64, HANDLER, INTERRUPT, 0);
    m.state.tr.limit = 11;
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!(m.state.rip, HANDLER);
}

#[test]
fn every_push_can_fault() {
    // Frames start on a multiple of 16, so the first page below the edge of the mapping is met at an even slot.
    for slots in [0, 2, 4, 6] {
        let mut m = Machine::long().user(USER_CODE64);
        m.write64(TABLES + 0x2000 + 3 * 8, 0x20_0087);
        m.settle();
        let edge = 3 << 21;
        m.write64(TSS + 4, edge + 8 * slots);
        m.set_gate(13, CODE64, HANDLER, INTERRUPT, 0);
        m.set_gate(14, CODE64, HANDLER + 8, INTERRUPT, 1);
        m.deliver(Event::Exception(Exception::GP0)).unwrap();
        if slots < 6 {
            assert_eq!((m.state.rip, m.state.cr2), (HANDLER + 8, edge - 8), "room for {slots}");
        } else {
            assert_eq!(m.state.rip, HANDLER);
        }
    }
}

#[test]
fn the_idt_must_hold_the_whole_gate() {
    let mut m = Machine::long();
    m.set_gate(14, CODE64, HANDLER, INTERRUPT, 0);
    m.state.idtr.limit = 14 * 16 + 15;
    m.deliver(Event::Exception(Exception::page_fault(0, 0))).unwrap();
    m.state.idtr.limit -= 1;
    assert_eq!(m.faults(&[0xcd, 14]), fault(GP, 14 * 8 + 2));
}

#[test]
fn debug_trap_sets_dr6_and_clears_general_detect() {
    let mut m = Machine::long();
    m.set_gate(1, CODE64, HANDLER, INTERRUPT, 0);
    m.state.dr[7] |= x86::control::debug::DR7_GD;
    m.state.dr[6] |= 0xf;
    crate::debug_trap(&mut m.context(), x86::control::debug::DR6_BS).unwrap();
    assert_eq!(m.state.dr[6], 0xffff_4ff0);
    assert_eq!(m.state.dr[7] & x86::control::debug::DR7_GD, 0);
    assert_eq!(m.read64(m.rsp() + 16) & flags::RF, 0);
}

#[test]
fn from_compatibility_mode_the_frame_is_64_bits_wide() {
    let mut m = Machine::long().user(USER_CODE32);
    m.set_gate(0x80, CODE64, HANDLER, USER_INTERRUPT, 0);
    m.run(&[0xcd, 0x80]).unwrap();
    assert_eq!(m.rsp(), KERNEL_STACK - 40);
    assert_eq!(m.read64(m.rsp() + 8), u64::from(USER_CODE32));
    assert!(m.state.mode.is_64bit());
}

#[test]
fn loading_a_handlers_segment_marks_it_accessed() {
    let mut m = Machine::long();
    m.write64(GDT + u64::from(CODE64), 0x00af_9a00_0000_ffff);
    m.set_gate(0x40, CODE64, HANDLER, INTERRUPT, 0);
    m.deliver(Event::Interrupt(0x40)).unwrap();
    assert_eq!(m.read64(GDT + u64::from(CODE64)), 0x00af_9b00_0000_ffff);
}
