//! Instructions that only ring 0 may use: with operands that ring 0 would get away with.

use super::*;

const GP0: Exception = Exception::GP0;

/// Registers for which every instruction below is fine in ring 0: RAX, RCX, RDX, RBX.
fn prepare(m: &mut Machine, registers: [u64; 4]) {
    let [rax, rcx, rdx, rbx] = registers;
    (m.state.gpr[0], m.state.gpr[1], m.state.gpr[2], m.state.gpr[3]) = (rax, rcx, rdx, rbx);
    m.write(0x9000, &[0xff, 0x0f]);
    m.write64(0x9002, GDT);
    m.write64(0x9100, 0);
    m.write64(0x9108, 0);
    m.write64(GDT + 0x90, 0);
    m.state.msrs.sysenter_cs = 0x10;
}

#[test]
fn ring_3_is_refused_what_ring_0_may_do() {
    let star = u64::from(x86::msr::IA32_STAR);
    let cases: &[(&str, &[u8], [u64; 4])] = &[
        ("mov cr0, rax", &[0x0f, 0x22, 0xc0], [0x8001_0031, 0, 0, 0]),
        ("mov rax, cr0", &[0x0f, 0x20, 0xc0], [0; 4]),
        ("mov cr2, rax", &[0x0f, 0x22, 0xd0], [0; 4]),
        ("mov cr3, rax", &[0x0f, 0x22, 0xd8], [TABLES, 0, 0, 0]),
        ("mov cr4, rax", &[0x0f, 0x22, 0xe0], [0x620, 0, 0, 0]),
        ("mov cr8, rax", &[0x44, 0x0f, 0x22, 0xc0], [1, 0, 0, 0]),
        ("mov dr0, rax", &[0x0f, 0x23, 0xc0], [0; 4]),
        ("mov rax, dr7", &[0x0f, 0x21, 0xf8], [0; 4]),
        ("lmsw ax", &[0x0f, 0x01, 0xf0], [1, 0, 0, 0]),
        ("clts", &[0x0f, 0x06], [0; 4]),
        ("xsetbv", &[0x0f, 0x01, 0xd1], [3, 0, 0, 0]),
        ("rdmsr", &[0x0f, 0x32], [0, star, 0, 0]),
        ("wrmsr", &[0x0f, 0x30], [0, star, 0, 0]),
        ("lgdt", &[0x0f, 0x01, 0x13], [0, 0, 0, 0x9000]),
        ("lidt", &[0x0f, 0x01, 0x1b], [0, 0, 0, 0x9000]),
        ("lldt ax", &[0x0f, 0x00, 0xd0], [0; 4]),
        ("ltr ax", &[0x0f, 0x00, 0xd8], [u64::from(TSS2_SELECTOR), 0, 0, 0]),
        ("invlpg", &[0x0f, 0x01, 0x3b], [0, 0, 0, 0x9000]),
        ("invpcid", &[0x66, 0x0f, 0x38, 0x82, 0x03], [2, 0, 0, 0x9100]),
        ("invd", &[0x0f, 0x08], [0; 4]),
        ("wbinvd", &[0x0f, 0x09], [0; 4]),
        ("swapgs", &[0x0f, 0x01, 0xf8], [0; 4]),
        ("sysret", &[0x48, 0x0f, 0x07], [0, CODE, 0, 0]),
        ("sysexit", &[0x48, 0x0f, 0x35], [0, CODE, CODE, 0]),
    ];
    for &(name, bytes, registers) in cases {
        let mut m = Machine::long();
        m.state.cr4 |= cr4::OSXSAVE;
        prepare(&mut m, registers);
        assert_eq!(m.run(bytes), Ok(()), "{name} in ring 0");
        let mut m = Machine::long().user(USER_CODE64);
        m.state.cr4 |= cr4::OSXSAVE;
        prepare(&mut m, registers);
        assert_eq!(m.faults(bytes), GP0, "{name} in ring 3");
    }
}

#[test]
fn umip_is_for_ring_3_only() {
    let cases: [(&str, &[u8]); 5] = [
        ("sgdt", &[0x0f, 0x01, 0x03]),
        ("sidt", &[0x0f, 0x01, 0x0b]),
        ("sldt", &[0x0f, 0x00, 0xc0]),
        ("str", &[0x0f, 0x00, 0xc8]),
        ("smsw", &[0x0f, 0x01, 0xe0]),
    ];
    for (name, bytes) in cases {
        let mut m = Machine::long();
        m.state.cr4 |= cr4::UMIP;
        m.state.gpr[3] = 0x9000;
        m.run(bytes).unwrap();
        let mut m = Machine::long().user(USER_CODE64);
        m.state.gpr[3] = 0x9000;
        m.run(bytes).unwrap();
        m.state.cr4 |= cr4::UMIP;
        assert_eq!(m.faults(bytes), GP0, "{name}");
    }
}

#[test]
fn osxsave_comes_before_privilege() {
    let mut m = Machine::long().user(USER_CODE64);
    assert_eq!(m.faults(&[0x0f, 0x01, 0xd1]), Exception::UD);
    let mut m = Machine::long();
    m.state.gpr[0] = 3;
    assert_eq!(m.faults(&[0x0f, 0x01, 0xd1]), Exception::UD);
}
