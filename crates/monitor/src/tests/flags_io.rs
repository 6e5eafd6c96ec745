//! PUSHF POPF CLI STI CLAC STAC, ports, TSC, HLT, random numbers.

use super::*;
use memory::MmioAccess;
use vcpu::Exit;

#[test]
fn pushf_hides_rf_and_vm() {
    let mut m = Machine::long();
    m.state.rflags |= flags::RF | flags::IF;
    m.state.flags = x86::Flags::from_bits(flags::CF | flags::OF);
    m.run(&[0x9c]).unwrap();
    assert_eq!(m.read64(m.rsp()), flags::FIXED_ONE | flags::IF | flags::CF | flags::OF);
    let mut m = Machine::virtual_8086(3);
    m.run(&[0x9c]).unwrap();
    assert_eq!(m.read16(0x10000 + m.rsp()), (flags::IOPL | 2) as u16);
    assert_eq!(Machine::virtual_8086(2).faults(&[0x9c]), Exception::GP0);
}

#[test]
fn popf_by_privilege() {
    let all = 0x0037_7fd7;
    let changed = |mut m: Machine| {
        m.push_all(8, [all]);
        m.run(&[0x9d]).unwrap();
        m.state.rflags()
    };
    assert_eq!(changed(Machine::long()), all & !(flags::RF | flags::VM | flags::VIP));
    let user = all & !(flags::RF | flags::VM | flags::VIP | flags::IOPL);
    assert_eq!(changed(Machine::long().user(USER_CODE64)), user & !flags::IF);
    let mut m = Machine::long().user(USER_CODE64);
    m.state.rflags |= flags::IOPL;
    assert_eq!(changed(m), user | flags::IOPL);
    assert_eq!(Machine::virtual_8086(0).faults(&[0x9d]), Exception::GP0);
}

#[test]
fn popf_of_ac_changes_the_view() {
    let mut m = Machine::long();
    m.state.cr4 |= cr4::SMAP;
    m.settle();
    m.push_all(8, [flags::AC]);
    // All pages of the fixture are user pages: with SMAP, the pop itself needs AC.
    m.state.rflags |= flags::AC;
    m.settle();
    m.run(&[0x9d]).unwrap();
    m.run(&[0x0f, 0x01, 0xca]).unwrap();
    assert_eq!(m.state.rflags & flags::AC, 0);
    let exception = m.faults(&[0x9d]);
    assert_eq!(exception.vector, Vector::PageFault);
    m.run(&[0x0f, 0x01, 0xcb]).unwrap();
    m.run(&[0x9d]).unwrap();
}

#[test]
fn cli_and_sti_obey_iopl() {
    let mut m = Machine::long();
    m.run(&[0xfb]).unwrap();
    assert_eq!(m.state.interrupt_shadow, x86::state::shadow::STI);
    assert!(!m.state.interruptible());
    m.state.interrupt_shadow = 0;
    m.run(&[0xfb]).unwrap();
    assert_eq!(m.state.interrupt_shadow, 0, "no shadow where interrupts were on already");
    m.run(&[0xfa]).unwrap();
    assert_eq!(m.state.rflags & flags::IF, 0);

    let mut m = Machine::long().user(USER_CODE64);
    assert_eq!((m.faults(&[0xfa]), m.faults(&[0xfb])), (Exception::GP0, Exception::GP0));
    m.state.rflags |= flags::IOPL;
    m.run(&[0xfb]).unwrap();
    m.run(&[0xfa]).unwrap();
    assert_eq!(Machine::virtual_8086(0).faults(&[0xfa]), Exception::GP0);
    Machine::virtual_8086(3).run(&[0xfa]).unwrap();
}

#[test]
fn clac_is_undefined_for_users() {
    assert_eq!(Machine::long().user(USER_CODE64).faults(&[0x0f, 0x01, 0xca]), Exception::UD);
}

#[test]
fn in_and_out_ask_the_board_and_are_replayed() {
    let mut m = Machine::long();
    m.state.gpr[0] = 0xffff_ffff_1234_5678;
    m.state.gpr[2] = 0x3f8;
    assert_eq!(m.run(&[0xee]), Err(Stop::Board));
    assert_eq!(m.mmu.mmio.pending(), Some(MmioAccess::PortWrite { port: 0x3f8, size: 1, value: 0x78 }));
    assert_eq!(m.run(&[0xe5, 0x80]), Err(Stop::Board));
    assert_eq!(m.mmu.mmio.pending(), Some(MmioAccess::PortRead { port: 0x80, size: 4 }));
    m.mmu.mmio.answer(0xffff_ffff_9abc_def0);
    let insn = m.decode(&[0xe5, 0x80]);
    crate::execute(&mut m.context(), &insn).unwrap();
    assert_eq!((m.state.gpr[0], m.state.rip), (0x9abc_def0, CODE + 2));
    m.state.rip = CODE;
    let insn = m.decode(&[0xec]);
    m.mmu.mmio.clear();
    assert_eq!(crate::execute(&mut m.context(), &insn), Err(Stop::Board));
    m.mmu.mmio.answer(0xffff);
    crate::execute(&mut m.context(), &insn).unwrap();
    assert_eq!(m.state.gpr[0], 0x9abc_deff);
}

#[test]
fn io_permission_bitmap() {
    let mut m = Machine::long().user(USER_CODE64);
    m.state.gpr[2] = 0x12;
    m.write(TSS + 0x66, &0x68u16.to_le_bytes());
    assert_eq!(m.faults(&[0xec]), Exception::GP0, "no bitmap within the limit");
    m.state.tr.limit = 0x68 + 3;
    m.write(TSS + 0x68, &[0xff, 0xff, 0b1110_1011, 0xff]);
    assert_eq!(m.run(&[0xec]), Err(Stop::Board));
    assert_eq!(m.faults(&[0x66, 0xed]), Exception::GP0, "port 0x13 is closed");
    assert_eq!(m.faults(&[0x66, 0xef]), Exception::GP0);
    assert_eq!((m.faults(&[0x6d]), m.faults(&[0x6f])), (Exception::GP0, Exception::GP0));
    m.state.tr.attributes = 0x83;
    assert_eq!(m.faults(&[0xec]), Exception::GP0, "a 16-bit TSS has no bitmap");
    m.state.tr.attributes = 0x8b;
    m.state.gpr[2] = 0x14;
    assert_eq!(m.run(&[0xec]), Err(Stop::Board));
    m.state.gpr[2] = 0x18;
    assert_eq!(m.faults(&[0xec]), Exception::GP0, "its second byte is beyond the limit");
    m.state.rflags |= flags::IOPL;
    assert_eq!(m.run(&[0xec]), Err(Stop::Board));
    assert_eq!(Machine::virtual_8086(3).faults(&[0xec]), Exception::GP0, "IOPL does not help V86 mode");
}

#[test]
fn rep_insb_does_one_element_at_a_time() {
    let mut m = Machine::long();
    (m.state.gpr[1], m.state.gpr[2], m.state.gpr[7]) = (2, 0x1f0, 0x9000);
    let insn = m.decode(&[0xf3, 0x6c]);
    for value in [0xaa, 0xbb] {
        assert_eq!(m.state.rip, CODE);
        assert_eq!(crate::execute(&mut m.context(), &insn), Err(Stop::Board));
        m.mmu.mmio.answer(value);
        crate::execute(&mut m.context(), &insn).unwrap();
        m.mmu.mmio.clear();
    }
    assert_eq!((m.read16(0x9000), m.state.gpr[1], m.state.gpr[7]), (0xbbaa, 0, 0x9002));
    assert_eq!(m.state.rip, CODE + 2);
    m.state.rip = CODE;
    crate::execute(&mut m.context(), &insn).unwrap();
    assert_eq!(m.state.rip, CODE + 2, "a count of zero does nothing");

    // The port is not read if the store would fault.
    m.state.gpr[1] = 1;
    m.state.gpr[7] = 0x80_0000;
    m.state.rip = CODE;
    assert_eq!(m.faults(&[0xf3, 0x6c]).vector, Vector::PageFault);
}

#[test]
fn outsw_goes_down_with_df() {
    let mut m = Machine::long();
    (m.state.gpr[2], m.state.gpr[6]) = (0x1f0, 0x9000);
    m.state.rflags |= flags::DF;
    m.write(0x9000, &[0x34, 0x12]);
    assert_eq!(m.run(&[0x66, 0x6f]), Err(Stop::Board));
    assert_eq!(m.mmu.mmio.pending(), Some(MmioAccess::PortWrite { port: 0x1f0, size: 2, value: 0x1234 }));
    m.mmu.mmio.answer(0);
    let insn = m.decode(&[0x66, 0x6f]);
    crate::execute(&mut m.context(), &insn).unwrap();
    assert_eq!(m.state.gpr[6], 0x8ffe);
}

#[test]
fn tsc_is_clock_plus_offset() {
    let mut m = Machine::long();
    m.clock.advance(0x1_2345_6789);
    m.state.msrs.tsc_offset = 1;
    m.run(&[0x0f, 0x31]).unwrap();
    assert_eq!((m.state.gpr[2], m.state.gpr[0]), (1, 0x2345_678a));
    m.state.msrs.tsc_aux = 7;
    m.run(&[0x0f, 0x01, 0xf9]).unwrap();
    assert_eq!(m.state.gpr[1], 7);
    let mut m = Machine::long().user(USER_CODE64);
    m.run(&[0x0f, 0x31]).unwrap();
    m.state.cr4 |= cr4::TSD;
    assert_eq!(m.faults(&[0x0f, 0x31]), Exception::GP0);
    assert_eq!(m.faults(&[0x0f, 0x01, 0xf9]), Exception::GP0);
}

#[test]
fn hlt_is_complete_when_it_stops() {
    let mut m = Machine::long();
    assert_eq!(m.run(&[0xf4]), Err(Stop::Exit(Exit::Halt)));
    assert_eq!((m.state.rip, m.state.halted), (CODE + 1, true));
    assert_eq!(Machine::long().user(USER_CODE64).faults(&[0xf4]), Exception::GP0);
}

#[test]
fn rdrand_gives_numbers_and_carry() {
    let mut m = Machine::long();
    m.run(&[0x48, 0x0f, 0xc7, 0xf0]).unwrap();
    let first = m.state.gpr[0];
    assert_eq!(m.state.flags.to_bits() & (flags::CF | flags::ZF), flags::CF);
    m.run(&[0x48, 0x0f, 0xc7, 0xf8]).unwrap();
    assert_ne!(m.state.gpr[0], first);
}

#[test]
fn what_is_not_announced_is_undefined() {
    for bytes in [[0x0f, 0x01, 0xc8], [0x0f, 0x01, 0xc9]] {
        assert_eq!(Machine::long().faults(&bytes), Exception::UD);
    }
    assert_eq!(Machine::long().faults(&[0x0f, 0x33]), Exception::GP0);
}
