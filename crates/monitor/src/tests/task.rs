//! The hardware task switch.

use super::*;

const DEBUG_TRAP: u64 = TSS2 + 0x64;

/// A second task in TSS2: EIP, EFLAGS, registers that count up, user or kernel segments.
fn with_second_task() -> Machine {
    let mut m = Machine::protected();
    m.write(TSS2 + 0x20, &(HANDLER as u32).to_le_bytes());
    m.write(TSS2 + 0x24, &2u32.to_le_bytes());
    for n in 0..8u32 {
        m.write(TSS2 + 0x28 + 4 * u64::from(n), &(0x100 + n).to_le_bytes());
    }
    m.write(TSS2 + 0x38, &(KERNEL_STACK as u32).to_le_bytes());
    for (n, selector) in [DATA, CODE32, DATA, DATA, 0, DATA].into_iter().enumerate() {
        m.write(TSS2 + 0x48 + 4 * n as u64, &selector.to_le_bytes());
    }
    m
}

fn far(opcode: u8, selector: u16) -> [u8; 7] {
    let [low, high] = selector.to_le_bytes();
    [opcode, 0, 0, 0, 0, low, high]
}

fn is_busy(m: &Machine, selector: u16) -> bool {
    m.read64(GDT + u64::from(selector)) >> 41 & 1 != 0
}

#[test]
fn call_and_iret() {
    let mut m = with_second_task();
    m.state.gpr[0] = 0xaaaa;
    let old_rsp = m.rsp();
    m.run(&far(0x9a, TSS2_SELECTOR)).unwrap();
    assert_eq!((m.state.rip, m.state.gpr[0], m.state.gpr[7]), (HANDLER, 0x100, 0x107));
    assert_eq!((m.selector(4), m.selector(5), m.rsp()), (0, DATA, KERNEL_STACK));
    assert_eq!(m.state.rflags(), flags::NT | 2);
    assert_ne!(m.state.cr0 & cr0::TS, 0);
    assert_eq!((m.state.tr.selector, m.state.tr.base, m.state.tr.kind()), (TSS2_SELECTOR, TSS2, 11));
    assert!(is_busy(&m, TSS_SELECTOR) && is_busy(&m, TSS2_SELECTOR));
    assert_eq!(m.read16(TSS2), TSS_SELECTOR);
    assert_eq!((m.read32(TSS + 0x20), m.read32(TSS + 0x28)), (CODE as u32 + 7, 0xaaaa));

    m.run(&[0xcf]).unwrap();
    assert_eq!((m.state.rip, m.state.gpr[0], m.rsp()), (CODE + 7, 0xaaaa, old_rsp));
    assert_eq!((m.state.tr.selector, m.state.rflags()), (TSS_SELECTOR, 2));
    assert!(!is_busy(&m, TSS2_SELECTOR) && is_busy(&m, TSS_SELECTOR));
    assert_eq!(m.read32(TSS2 + 0x24) & flags::NT as u32, 0);
}

#[test]
fn jump_through_a_task_gate() {
    let mut m = with_second_task();
    m.run(&far(0xea, TASK_GATE)).unwrap();
    assert_eq!((m.state.rip, m.state.rflags()), (HANDLER, 2));
    assert!(!is_busy(&m, TSS_SELECTOR) && is_busy(&m, TSS2_SELECTOR));
}

#[test]
fn double_fault_task_gets_its_error_code() {
    let mut m = with_second_task();
    m.set_gate(8, TSS2_SELECTOR, 0, 0x85, 0);
    m.deliver(Event::Exception(Exception::GP0)).unwrap();
    assert_eq!((m.state.rip, m.rsp(), m.read32(m.rsp())), (HANDLER, KERNEL_STACK - 4, 0));
    assert_eq!(m.read32(TSS + 0x20), CODE as u32);
}

#[test]
fn errors_before_and_after_the_switch() {
    let mut m = with_second_task();
    assert_eq!(m.faults(&far(0xea, TSS_SELECTOR)), Exception::gp(TSS_SELECTOR), "busy");
    m.write64(GDT + u64::from(TSS2_SELECTOR), 0x66 | TSS2 << 16 | 0x89 << 40);
    assert_eq!(m.faults(&far(0xea, TSS2_SELECTOR)), Exception::ts(TSS2_SELECTOR), "too short");
    m.write64(GDT + u64::from(TSS2_SELECTOR), 0x67 | TSS2 << 16 | 0x09 << 40);
    assert_eq!(m.faults(&far(0xea, TSS2_SELECTOR)), Exception::np(TSS2_SELECTOR));

    // A bad DS in the new task is that task's fault.
    let mut m = with_second_task();
    m.write(TSS2 + 0x54, &BEYOND.to_le_bytes());
    assert_eq!(m.run(&far(0xea, TSS2_SELECTOR)), Err(Stop::Exception(Exception::ts(BEYOND))));
    assert_eq!((m.state.tr.selector, m.state.rip), (TSS2_SELECTOR, HANDLER));

    let mut m = with_second_task();
    m.write64(GDT + u64::from(CODE16), 0x0000_1b00_0000_ffff);
    m.write(TSS2 + 0x4c, &CODE16.to_le_bytes());
    assert_eq!(m.run(&far(0xea, TSS2_SELECTOR)), Err(Stop::Exception(Exception::np(CODE16))));
    let mut m = with_second_task();
    m.write(TSS2 + 0x4c, &DATA.to_le_bytes());
    assert_eq!(m.run(&far(0xea, TSS2_SELECTOR)), Err(Stop::Exception(Exception::ts(DATA))));
    let mut m = with_second_task();
    m.write(TSS2 + 0x4c, &CODE16.to_le_bytes());
    assert_eq!(m.run(&far(0xea, TSS2_SELECTOR)), Err(Stop::Exception(Exception::GP0)), "EIP beyond CS");
    assert_eq!(m.state.tr.selector, TSS2_SELECTOR);
    let mut m = with_second_task();
    m.write(TSS2 + 0x50, &USER_DATA.to_le_bytes());
    assert_eq!(m.run(&far(0xea, TSS2_SELECTOR)), Err(Stop::Exception(Exception::ts(USER_DATA))));

    let mut m = with_second_task();
    m.state.rflags |= flags::NT;
    m.write(TSS, &TSS2_SELECTOR.to_le_bytes());
    assert_eq!(m.faults(&[0xcf]), Exception::ts(TSS2_SELECTOR), "the link is not busy");

    let mut m = with_second_task();
    m.write(DEBUG_TRAP, &[1]);
    let Err(Stop::Exception(exception)) = m.run(&far(0xea, TSS2_SELECTOR)) else { panic!("no trap") };
    assert_eq!(exception.vector, Vector::Debug);
    assert_ne!(m.state.dr[6] & x86::control::debug::DR6_BT, 0);
}

#[test]
fn to_a_user_task_and_to_virtual_8086_mode() {
    let mut m = with_second_task();
    for (n, selector) in [USER_DATA, USER_CODE32, USER_DATA, USER_DATA].into_iter().enumerate() {
        m.write(TSS2 + 0x48 + 4 * n as u64, &selector.to_le_bytes());
    }
    m.write(TSS2 + 0x5c, &0u16.to_le_bytes());
    m.run(&far(0xea, TSS2_SELECTOR)).unwrap();
    assert_eq!((m.state.cpl, m.state.mode.cpl()), (3, 3));

    let mut m = with_second_task();
    m.write(TSS2 + 0x24, &(flags::VM as u32 | 2).to_le_bytes());
    m.write(TSS2 + 0x20, &0x1234u32.to_le_bytes());
    m.run(&far(0xea, TSS2_SELECTOR)).unwrap();
    assert!(m.state.mode.is_virtual_8086());
    assert_eq!((m.state.segments[1].base, m.state.cpl), (u64::from(CODE32) << 4, 3));
}

#[test]
fn a_page_that_cannot_be_written_stops_the_switch_before_it_begins() {
    let paged = |address: u64| {
        let mut m = Machine::paged();
        let image = with_second_task();
        for offset in (0..0x68).step_by(8) {
            m.write64(TSS2 + offset, image.read64(TSS2 + offset));
        }
        m.write(TSS2 + 0x1c, &(TABLES as u32).to_le_bytes());
        m.protect(address);
        m
    };
    let call = far(0x9a, TSS2_SELECTOR);
    assert_eq!(paged(TSS).faults(&call), Exception::page_fault(TSS + 0x20, 3));
    assert_eq!(paged(TSS2).faults(&call), Exception::page_fault(TSS2, 3));
    let busy = GDT + u64::from(TSS2_SELECTOR) + 5;
    assert_eq!(paged(GDT).faults(&call), Exception::page_fault(busy, 3));
    let mut m = paged(0x9000);
    m.run(&call).unwrap();
    assert_eq!(m.state.cr3, TABLES);
}

#[test]
fn the_new_task_has_its_own_page_tables() {
    let mut m = Machine::paged();
    let image = with_second_task();
    for offset in (0..0x68).step_by(8) {
        m.write64(TSS2 + offset, image.read64(TSS2 + offset));
    }
    // Its directory maps the same pages through a table of its own, but for 0x9000.
    let directory = TABLES + 0x4000;
    m.write(directory, &(directory as u32 + 0x1003).to_le_bytes());
    for page in 0..1024u32 {
        let target = if page == 9 { 10 } else { page };
        m.write(directory + 0x1000 + 4 * u64::from(page), &(target << 12 | 3).to_le_bytes());
    }
    m.write(TSS2 + 0x1c, &(directory as u32).to_le_bytes());
    m.run(&far(0xea, TSS2_SELECTOR)).unwrap();
    assert_eq!(m.state.cr3, directory);
    m.write(0xa000, &[0x11, 0x11]);
    m.state.gpr[0] = 0x9000;
    m.state.rip = CODE;
    m.run(&[0x0f, 0x01, 0x10]).unwrap(); // LGDT [eax]
    assert_eq!(m.state.gdtr.limit, 0x1111);
}

#[test]
fn a_16_bit_task() {
    let mut m = Machine::protected();
    m.write64(GDT + u64::from(TSS2_SELECTOR), 0x2b | TSS2 << 16 | 0x81 << 40);
    let words = [0x1234, 2, 1, 2, 3, 4, 0x1000, 6, 7, 8, DATA16, CODE16, DATA16, DATA16, 0];
    for (n, word) in words.into_iter().enumerate() {
        m.write(TSS2 + 0x0e + 2 * n as u64, &u16::to_le_bytes(word));
    }
    m.state.gpr[0] = 0x5555_6666;
    m.run(&far(0x9a, TSS2_SELECTOR)).unwrap();
    assert_eq!((m.state.rip, m.state.mode.code_bits(), m.state.gpr[0]), (0x1234, 16, 0x5555_0001));
    assert_eq!((m.rsp() & 0xffff, m.selector(1)), (0x1000, CODE16));
    m.run(&[0xcf]).unwrap();
    assert_eq!((m.state.rip, m.state.mode.code_bits()), (CODE + 7, 32));
}

#[test]
fn none_in_long_mode() {
    let mut m = Machine::long();
    m.write64(0x9000, u64::from(TASK_GATE) << 32);
    m.state.gpr[0] = 0x9000;
    assert_eq!(m.faults(&[0xff, 0x28]), Exception::gp(TASK_GATE)); // JMP m16:32
}
