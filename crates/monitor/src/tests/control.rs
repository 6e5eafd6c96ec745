//! Control and debug registers, translations.

use super::*;
use x86::control::debug;

/// MOV CRn, rax and MOV rax, CRn.
fn to(n: u8) -> [u8; 3] {
    [0x0f, 0x22, 0xc0 | n << 3]
}

fn from(n: u8) -> [u8; 3] {
    [0x0f, 0x20, 0xc0 | n << 3]
}

impl Machine {
    fn write_cr(&mut self, n: u8, value: u64) -> Result<(), Stop> {
        self.state.gpr[0] = value;
        self.run(&to(n))
    }

    fn cr_fault(&mut self, n: u8, value: u64) -> Exception {
        self.state.gpr[0] = value;
        self.faults(&to(n))
    }
}

#[test]
fn the_way_from_real_to_long_mode_and_back() {
    let mut m = Machine::real();
    m.write64(TABLES, (TABLES + 0x1000) | 3);
    m.write64(TABLES + 0x1000, 0x83);
    m.write_cr(0, cr0::PE | cr0::ET).unwrap();
    assert!(m.state.mode.is_protected());
    m.write_cr(4, cr4::PAE).unwrap();
    m.write_cr(3, TABLES).unwrap();
    (m.state.gpr[1], m.state.gpr[0], m.state.gpr[2]) = (u64::from(x86::msr::IA32_EFER), efer::LME, 0);
    m.run(&[0x0f, 0x30]).unwrap();
    assert_eq!(m.state.efer, efer::LME);
    m.write_cr(0, cr0::PG | cr0::PE).unwrap();
    assert_eq!(m.state.efer, efer::LME | efer::LMA);
    assert!(m.state.mode.is_long() && !m.state.mode.is_64bit());
    assert_eq!(m.cr_fault(4, 0), Exception::GP0, "PAE can't go in IA-32e mode");
    m.write_cr(0, cr0::PE).unwrap();
    assert_eq!(m.state.efer, efer::LME);
}

#[test]
fn cr0_rules() {
    let mut m = Machine::protected();
    assert_eq!(m.cr_fault(0, cr0::PG), Exception::GP0);
    assert_eq!(m.cr_fault(0, cr0::PE | cr0::NW), Exception::GP0);
    m.state.efer = efer::LME;
    assert_eq!(m.cr_fault(0, cr0::PE | cr0::PG), Exception::GP0, "long mode needs PAE");
    m.state.cr4 = cr4::PAE;
    m.state.segments[1].attributes |= x86::segment::attribute::LONG;
    assert_eq!(m.cr_fault(0, cr0::PE | cr0::PG), Exception::GP0, "not from a segment with L");
    let mut m = Machine::long();
    assert_eq!(m.cr_fault(0, cr0::PE), Exception::GP0, "paging stays in 64-bit mode");
    assert_eq!(m.cr_fault(0, 1 << 32 | m.state.cr0), Exception::GP0);
    m.write_cr(0, m.state.cr0 | cr0::TS).unwrap();
    assert!(m.state.mode.x87_traps());
    m.run(&[0x0f, 0x06]).unwrap(); // CLTS
    assert!(!m.state.mode.x87_traps());
    m.run(&from(0)).unwrap();
    assert_eq!(m.state.gpr[0], m.state.cr0);
    for bytes in [to(0), from(0), to(8), [0x0f, 0x06, 0x90]] {
        assert_eq!(Machine::long().user(USER_CODE64).faults(&bytes), Exception::GP0);
    }
}

#[test]
fn write_protection_takes_effect_at_once() {
    let mut m = Machine::long();
    m.write64(TABLES + 0x2008, 0x20_0085);
    m.settle();
    m.state.gpr[3] = 0x20_0000;
    let sgdt = [0x0f, 0x01, 0x03];
    assert_eq!(m.faults(&sgdt), Exception::page_fault(0x20_0000, 3));
    m.write_cr(0, m.state.cr0 & !cr0::WP).unwrap();
    m.run(&sgdt).unwrap();
    m.write_cr(0, m.state.cr0 | cr0::WP).unwrap();
    assert_eq!(m.faults(&sgdt), Exception::page_fault(0x20_0000, 3));
}

#[test]
fn cr3_and_translations() {
    let mut m = Machine::long();
    assert_eq!(m.cr_fault(3, 1 << 40), Exception::GP0);
    assert_eq!(m.cr_fault(3, 1 << 63), Exception::GP0, "no PCIDs, no bit 63");
    // A second address space in which 2 MiB is elsewhere.
    let other = TABLES + 0x4000;
    m.write64(other, (other + 0x1000) | 7);
    m.write64(other + 0x1000, (other + 0x2000) | 7);
    m.write64(other + 0x2000, 0x87);
    m.write64(other + 0x2008, 0x87);
    m.write64(0x20_0000 + CODE, 0x1111);
    m.state.gpr[3] = 0x20_0000 + CODE;
    let lgdt_limit = |m: &mut Machine| {
        m.run(&[0x0f, 0x01, 0x13]).unwrap();
        m.state.gdtr.limit
    };
    let gdtr = m.state.gdtr;
    assert_eq!(lgdt_limit(&mut m), 0x1111);
    m.write_cr(3, other).unwrap();
    assert_ne!(lgdt_limit(&mut m), 0x1111);
    m.state.gdtr = gdtr;

    // INVLPG of a page whose entry has changed.
    m.write64(other + 0x2008, 0x20_0087);
    m.run(&[0x0f, 0x01, 0x3b]).unwrap();
    assert_eq!(lgdt_limit(&mut m), 0x1111);
    m.state.gpr[3] = 1 << 50;
    m.run(&[0x0f, 0x01, 0x3b]).unwrap();
    assert_eq!(Machine::long().user(USER_CODE64).faults(&[0x0f, 0x01, 0x3b]), Exception::GP0);
}

#[test]
fn invlpg_through_a_segment() {
    let mut m = Machine::paged();
    m.state.segments[3].base = 0x8000;
    let read = |m: &mut Machine| {
        // SMSW [ebx] tells by its fault whether the page is writable.
        m.state.rip = CODE;
        m.run(&[0x0f, 0x01, 0x23])
    };
    m.state.gpr[3] = 0x1000;
    read(&mut m).unwrap();
    m.write(TABLES + 0x1000 + 9 * 4, &0x9001u32.to_le_bytes());
    read(&mut m).unwrap();
    m.run(&[0x0f, 0x01, 0x3b]).unwrap();
    assert_eq!(read(&mut m), Err(Stop::Exception(Exception::page_fault(0x9000, 3))));
}

#[test]
fn pcids() {
    let mut m = Machine::long();
    m.state.cr3 |= 0x18;
    assert_eq!(m.cr_fault(4, m.state.cr4 | cr4::PCIDE), Exception::GP0, "CR3 bits 11:0 must be zero");
    m.state.cr3 &= !0xfff;
    m.write_cr(4, m.state.cr4 | cr4::PCIDE).unwrap();
    m.write_cr(3, TABLES | 5 | 1 << 63).unwrap();
    assert_eq!(m.state.cr3, TABLES | 5);
    m.load_flat(CODE32, DATA);
    m.settle();
    assert_eq!(m.cr_fault(0, cr0::PE), Exception::GP0, "paging stays with PCIDs");
    let mut m = Machine::protected();
    assert_eq!(m.cr_fault(4, cr4::PCIDE), Exception::GP0);
}

#[test]
fn invpcid() {
    let invpcid = [0x66, 0x0f, 0x38, 0x82, 0x03]; // INVPCID rax, [rbx]
    let mut m = Machine::long();
    m.state.gpr[3] = 0x9000;
    for kind in 0..4 {
        m.state.gpr[0] = kind;
        m.run(&invpcid).unwrap();
    }
    m.state.gpr[0] = 4;
    assert_eq!(m.faults(&invpcid), Exception::GP0);
    m.state.gpr[0] = 0;
    m.write64(0x9008, 1 << 50);
    assert_eq!(m.faults(&invpcid), Exception::GP0, "not canonical");
    m.write64(0x9000, 1);
    m.state.gpr[0] = 1;
    assert_eq!(m.faults(&invpcid), Exception::GP0, "a PCID without PCIDs");
    m.write64(0x9000, 1 << 12);
    m.state.gpr[0] = 2;
    assert_eq!(m.faults(&invpcid), Exception::GP0, "reserved bits");
    assert_eq!(Machine::long().user(USER_CODE64).faults(&invpcid), Exception::GP0);
}

#[test]
fn cr4_and_cr8_rules() {
    let mut m = Machine::long();
    for bit in [cr4::VME, cr4::LA57, cr4::VMXE, cr4::PKE, 1 << 63] {
        assert_eq!(m.cr_fault(4, m.state.cr4 | bit), Exception::GP0);
    }
    m.write_cr(4, m.state.cr4 | cr4::SMEP | cr4::SMAP | cr4::UMIP | cr4::FSGSBASE | cr4::OSXSAVE).unwrap();
    m.write_cr(4, m.state.cr4 & !cr4::OSFXSR).unwrap();
    assert!(m.state.mode.sse_traps());
    // CR8 takes a REX prefix.
    m.state.gpr[0] = 0xf;
    m.run(&[0x44, 0x0f, 0x22, 0xc0]).unwrap();
    assert_eq!(m.state.cr8, 0xf);
    // An interrupt may have waited for a lower priority, which the board then has to hear of.
    let kicked = |m: &Machine| m.state.exit_request.load(std::sync::atomic::Ordering::Relaxed) != 0;
    assert!(!kicked(&m));
    m.state.gpr[0] = 0xe;
    m.run(&[0x44, 0x0f, 0x22, 0xc0]).unwrap();
    assert!(m.state.cr8 == 0xe && kicked(&m));
    m.state.gpr[0] = 0x10;
    assert_eq!(m.faults(&[0x44, 0x0f, 0x22, 0xc0]), Exception::GP0);
}

#[test]
fn pae_paging_loads_pdptes() {
    let mut m = Machine::protected();
    m.write64(TABLES, 0x20_0001);
    m.write64(TABLES + 8, 0x30_0001 | 1 << 52);
    m.state.cr3 = TABLES;
    m.write_cr(4, cr4::PAE).unwrap();
    assert_eq!(m.cr_fault(0, cr0::PG | cr0::PE), Exception::GP0, "reserved bit in a PDPTE");
    m.write64(TABLES + 8, 0);
    // The page directory maps the first 2 MiB to themselves.
    m.write64(0x20_0000, 0x83);
    m.write_cr(0, cr0::PG | cr0::PE).unwrap();
    assert_eq!(m.state.pdptes, [0x20_0001, 0, 0, 0]);
    m.write64(TABLES, 0x20_0001 | 2);
    assert_eq!(m.cr_fault(3, TABLES), Exception::GP0);
}

#[test]
fn machine_status_word() {
    let mut m = Machine::real();
    m.state.gpr[0] = 0xffff_fff1;
    m.run(&[0x0f, 0x01, 0xf0]).unwrap(); // LMSW ax
    assert_eq!(m.state.cr0 & 0xffff, cr0::PE | cr0::ET);
    assert!(m.state.mode.is_protected());
    m.state.gpr[0] = 0;
    m.run(&[0x0f, 0x01, 0xf0]).unwrap();
    assert_ne!(m.state.cr0 & cr0::PE, 0, "LMSW can't leave protected mode");
    let mut m = Machine::long();
    m.run(&[0x48, 0x0f, 0x01, 0xe0]).unwrap(); // SMSW rax
    assert_eq!(m.state.gpr[0], m.state.cr0);
}

#[test]
fn extended_control_register() {
    let mut m = Machine::long();
    assert_eq!(m.faults(&[0x0f, 0x01, 0xd0]), Exception::UD);
    m.state.cr4 |= cr4::OSXSAVE;
    m.run(&[0x0f, 0x01, 0xd0]).unwrap();
    assert_eq!(m.state.gpr[0], 1);
    m.state.gpr[0] = 3;
    m.run(&[0x0f, 0x01, 0xd1]).unwrap();
    assert_eq!(m.state.xcr0, 3);
    m.state.gpr[1] = 1;
    assert_eq!(m.faults(&[0x0f, 0x01, 0xd0]), Exception::GP0);
    for (eax, ecx) in [(2, 0), (7, 0), (3, 1)] {
        (m.state.gpr[0], m.state.gpr[1]) = (eax, ecx);
        assert_eq!(m.faults(&[0x0f, 0x01, 0xd1]), Exception::GP0);
    }
}

#[test]
fn debug_registers() {
    let read = |n: u8| [0x0f, 0x21, 0xc0 | n << 3];
    let write = |n: u8| [0x0f, 0x23, 0xc0 | n << 3];
    let mut m = Machine::long();
    m.state.gpr[0] = u64::from(u32::MAX);
    m.run(&write(6)).unwrap();
    assert_eq!(m.state.dr[6], 0xffff_eff0 | 0xf);
    m.state.gpr[0] = 0xd800;
    m.run(&write(7)).unwrap();
    m.run(&read(5)).unwrap();
    assert_eq!(m.state.gpr[0], debug::DR7_FIXED, "DR5 is DR7 without CR4.DE");
    m.state.gpr[0] = 1 << 32;
    assert_eq!(m.faults(&write(7)), Exception::GP0);
    m.state.cr4 |= cr4::DE;
    assert_eq!(m.faults(&read(4)), Exception::UD);
    m.state.dr[7] |= debug::DR7_GD;
    assert_eq!(m.faults(&read(0)).vector, Vector::Debug);
    assert_ne!(m.state.dr[6] & debug::DR6_BD, 0);
    assert_eq!(Machine::long().user(USER_CODE64).faults(&read(0)), Exception::GP0);
}

#[test]
fn breakpoint_conditions() {
    use crate::debug::{breakpoints_armed, data_breakpoints, instruction_breakpoint, io_breakpoints};
    use memory::GuestVirt;
    let mut s = CpuState::new();
    assert!(!breakpoints_armed(&s));
    s.dr[0] = 0x1000;
    s.dr[1] = 0x2004;
    s.dr[2] = 0x3000;
    s.dr[3] = 0x60;
    // 0: execute; 1: write, 4 bytes; 2: read or write, 8 bytes; 3: I/O, 2 bytes.
    s.dr[7] = 0xaa | 0b0110 << 28 | 0b1011 << 24 | 0b1101 << 20;
    assert!(breakpoints_armed(&s));
    assert_eq!(instruction_breakpoint(&s, GuestVirt(0x1000)), 1);
    assert_eq!(instruction_breakpoint(&s, GuestVirt(0x1001)), 0);
    assert_eq!(data_breakpoints(&s, GuestVirt(0x2007), 1, true), 2);
    assert_eq!(data_breakpoints(&s, GuestVirt(0x2000), 4, true), 0);
    assert_eq!(data_breakpoints(&s, GuestVirt(0x2001), 4, true), 2);
    assert_eq!(data_breakpoints(&s, GuestVirt(0x2004), 4, false), 0);
    assert_eq!(data_breakpoints(&s, GuestVirt(0x3007), 2, false), 4);
    assert_eq!(io_breakpoints(&s, 0x61, 1), 0);
    s.cr4 = cr4::DE;
    assert_eq!(io_breakpoints(&s, 0x61, 1), 8);
    s.rflags |= flags::RF;
    assert_eq!(instruction_breakpoint(&s, GuestVirt(0x1000)), 0);
}
