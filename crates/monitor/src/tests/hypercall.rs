//! VMCALL and VMMCALL: who carries them out, what they refuse, and a machine that has none.

use memory::MmioAccess;
use vcpu::{Answer, Exit};
use x86::{
    hypercall::{KVM_HC_CLOCK_PAIRING, KVM_HC_SEND_IPI, error, own},
    msr::*,
};

use super::*;

const VMCALL: &[u8] = &[0x0f, 0x01, 0xc1];
const VMMCALL: &[u8] = &[0x0f, 0x01, 0xd9];
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const RBX: usize = 3;
const RSI: usize = 6;

fn load(m: &mut Machine, number: u64, arguments: [u64; 4]) {
    m.state.gpr[RAX] = number;
    for (register, value) in [RBX, RCX, RDX, RSI].into_iter().zip(arguments) {
        m.state.gpr[register] = value;
    }
}

/// Makes a call that needs no board; the result.
fn call(m: &mut Machine, number: u64, arguments: [u64; 4]) -> u64 {
    load(m, number, arguments);
    m.state.rip = CODE;
    m.run(VMCALL).unwrap();
    assert_eq!(m.state.rip, CODE + 3);
    m.state.gpr[RAX]
}

#[test]
fn kvms_calls_leave_to_the_board() {
    for bytes in [VMCALL, VMMCALL] {
        let mut m = Machine::long();
        load(&mut m, KVM_HC_SEND_IPI, [1, 2, 3, 4]);
        let exit = Exit::Hypercall { number: KVM_HC_SEND_IPI, arguments: [1, 2, 3, 4], wide: true };
        let insn = m.decode(bytes);
        assert_eq!(m.run(bytes), Err(Stop::Exit(exit)));
        crate::complete(&mut m.context(), &insn, exit, Answer::Value(5)).unwrap();
        assert_eq!((m.state.gpr[RAX], m.state.rip), (5, CODE + 3));
    }
    // Outside 64-bit mode there are 32 bits, and none of our own calls.
    let mut m = Machine::protected();
    load(&mut m, 0xf_0000_0000 | own::NOTHING, [u64::MAX; 4]);
    let exit = Exit::Hypercall { number: own::NOTHING, arguments: [0xffff_ffff; 4], wide: false };
    assert_eq!(m.run(VMCALL), Err(Stop::Exit(exit)));
}

#[test]
fn user_mode_is_refused() {
    for number in [KVM_HC_SEND_IPI, own::NOTHING, own::MSR_WRITE, own::PORT_WRITE, own::WAIT] {
        let mut m = Machine::long().user(USER_CODE64);
        load(&mut m, number, [0; 4]);
        m.run(VMMCALL).unwrap();
        assert_eq!((m.state.gpr[RAX], m.state.rip), (error::EPERM, CODE + 3));
    }
    let mut m = Machine::virtual_8086(3);
    m.run(VMCALL).unwrap();
    assert_eq!(m.state.gpr[RAX], error::EPERM);
}

#[test]
fn without_paravirtual_features_there_is_nothing() {
    let mut m = Machine::long();
    m.state.paravirt = false;
    assert_eq!(m.faults(VMCALL), Exception::UD);
    assert_eq!(m.faults(VMMCALL), Exception::UD);
    for leaf in [0x4000_0000, 0x4000_0001, 0x4000_0100, 0x4000_0101] {
        assert_eq!(crate::cpuid::query(&m.state, leaf, 0), [0; 4], "{leaf:#x}");
    }
    for index in [KVM_WALL_CLOCK_NEW, KVM_SYSTEM_TIME_NEW, KVM_PV_EOI_EN] {
        assert_eq!(crate::msr::read(&m.state, &m.clock, index), Err(Exception::GP0.into()));
        assert_eq!(crate::msr::store(&mut m.state, index, 0), Err(Exception::GP0.into()));
    }
    m.state.paravirt = true;
    let exit = Exit::MsrWrite { index: KVM_PV_EOI_EN, value: 0x9001 };
    assert_eq!(crate::msr::store(&mut m.state, KVM_PV_EOI_EN, 0x9001), Err(Stop::Exit(exit)));
}

#[test]
fn what_is_not_offered_is_enosys() {
    let mut m = Machine::long();
    let offered = (0..32).filter(|n| own::OFFERED >> n & 1 != 0).count() as u64;
    for number in own::BASE + offered..own::BASE + 32 {
        assert_eq!(call(&mut m, number, [0; 4]), error::ENOSYS);
    }
    assert_eq!(call(&mut m, own::NOTHING, [0; 4]), 0);
}

#[test]
fn ports_and_device_memory_go_to_the_board() {
    let mut m = Machine::long();
    let cases: [(u64, [u64; 3], MmioAccess, u64); 4] = [
        (own::PORT_READ, [0x3fd, 1, 0], MmioAccess::PortRead { port: 0x3fd, size: 1 }, 0x34),
        (
            own::PORT_WRITE,
            [0x80, 2, 0x1_2345],
            MmioAccess::PortWrite { port: 0x80, size: 2, value: 0x2345 },
            0x80,
        ),
        (
            own::MMIO_READ,
            [0xfee0_0030, 4, 0],
            MmioAccess::Read { address: GuestPhys(0xfee0_0030), size: 4 },
            0x7856_1234,
        ),
        (
            own::MMIO_WRITE,
            [0xfee0_00b0, 4, 0xf_0000_0001],
            MmioAccess::Write { address: GuestPhys(0xfee0_00b0), size: 4, value: 1 },
            0xfee0_00b0,
        ),
    ];
    for (number, [a, b, c], access, rbx) in cases {
        load(&mut m, number, [a, b, c, 0]);
        let insn = m.decode(VMCALL);
        assert_eq!(crate::execute(&mut m.context(), &insn), Err(Stop::Board));
        assert_eq!((m.mmu.mmio.pending(), m.state.gpr[RAX]), (Some(access), number));
        m.mmu.mmio.answer(0xffff_ffff_7856_1234);
        crate::execute(&mut m.context(), &insn).unwrap();
        m.mmu.mmio.clear();
        let expected = if number == own::PORT_READ { 0x34 } else { rbx };
        assert_eq!((m.state.gpr[RAX], m.state.gpr[RBX]), (0, expected));
    }
    for (number, a, b, expected) in [
        (own::PORT_READ, 0x1_0000, 1, error::EINVAL),
        (own::PORT_READ, 0x3f8, 8, error::EINVAL),
        (own::PORT_WRITE, u64::MAX, 1, error::EINVAL),
        (own::PORT_WRITE, 0x3f8, 3, error::EINVAL),
        (own::MMIO_READ, 0x9000, 4, error::EFAULT),
        (own::MMIO_READ, 0xfee0_0031, 4, error::EINVAL),
        (own::MMIO_READ, 0xfee0_0030, 16, error::EINVAL),
        (own::MMIO_READ, 1 << 40, 4, error::EINVAL),
        (own::MMIO_WRITE, 0x3f_fff8, 8, error::EFAULT),
        (own::MMIO_WRITE, u64::MAX - 7, 8, error::EINVAL),
    ] {
        assert_eq!(call(&mut m, number, [a, b, 0, 0]), expected, "{number:#x} {a:#x} {b}");
    }
}

#[test]
fn registers_by_hypercall() {
    let mut m = Machine::long();
    assert_eq!(call(&mut m, own::MSR_WRITE, [IA32_KERNEL_GS_BASE.into(), 0xffff_8000_1234_5678, 0, 0]), 0);
    assert_eq!(m.state.msrs.kernel_gs_base, 0xffff_8000_1234_5678);
    assert_eq!(call(&mut m, own::MSR_READ, [IA32_KERNEL_GS_BASE.into(), 0, 0, 0]), 0);
    assert_eq!(m.state.gpr[RBX], 0xffff_8000_1234_5678);
    // What the instructions raise #GP for.
    assert_eq!(call(&mut m, own::MSR_WRITE, [IA32_KERNEL_GS_BASE.into(), 1 << 63, 0, 0]), error::EINVAL);
    assert_eq!(call(&mut m, own::MSR_READ, [0xdead, 0, 0, 0]), error::EINVAL);
    assert_eq!(call(&mut m, own::MSR_READ, [1 << 32 | u64::from(IA32_EFER), 0, 0, 0]), error::EINVAL);
    assert_eq!(call(&mut m, own::SET_CR3, [1 << 60, 0, 0, 0]), error::EINVAL);
    assert_eq!(call(&mut m, own::SET_CR8, [16, 0, 0, 0]), error::EINVAL);
    assert_eq!(call(&mut m, own::SET_CR8, [15, 0, 0, 0]), 0);
    assert_eq!((m.state.cr8, m.state.cr3), (15, TABLES));
    // One of the board's.
    load(&mut m, own::MSR_READ, [IA32_APIC_BASE.into(), 0, 0, 0]);
    let insn = m.decode(VMCALL);
    let exit = Exit::MsrRead { index: IA32_APIC_BASE };
    assert_eq!(m.run(VMCALL), Err(Stop::Exit(exit)));
    crate::complete(&mut m.context(), &insn, exit, Answer::Value(0xfee0_0900)).unwrap();
    assert_eq!((m.state.gpr[RAX], m.state.gpr[RBX]), (0, 0xfee0_0900));
    crate::complete(&mut m.context(), &insn, exit, Answer::Fault).unwrap();
    assert_eq!(m.state.gpr[RAX], error::EINVAL);
    // CPUID, without its clobbers of RAX.
    assert_eq!(call(&mut m, own::CPUID, [1, 0, 0, 0]), 0);
    let expected = crate::cpuid::query(&m.state, 1, 0).map(u64::from);
    assert_eq!([RBX, RCX, RDX, RSI].map(|n| m.state.gpr[n]), expected);
}

#[test]
fn translations_by_hypercall() {
    let mut m = Machine::long();
    let address = memory::GuestVirt(0x20_1000);
    let load = |m: &mut Machine| m.mmu.load(&m.state, address, x86::Width::Qword);
    m.write64(0x1000, 0x1111);
    m.write64(0x20_1000, 0x2222);
    assert_eq!(load(&mut m), Ok(0x2222));
    // The second 2 MiB now show the first.
    assert_eq!(call(&mut m, own::SET_PTE, [TABLES + 0x2008, 0x87, address.0, 0]), 0);
    assert_eq!(load(&mut m), Ok(0x1111));
    m.write64(TABLES + 0x2008, 0x20_0087);
    assert_eq!(load(&mut m), Ok(0x1111), "the TLB does not know");
    assert_eq!(call(&mut m, own::FLUSH_PAGE, [address.0, 0, 0, 0]), 0);
    assert_eq!(load(&mut m), Ok(0x2222));
    for (a, c, expected) in [
        (TABLES + 0x2004, 0, error::EINVAL),
        (TABLES, 1 << 63, error::EINVAL),
        (0x40_0000, 0, error::EFAULT),
        (0xfee0_0000, 0, error::EFAULT),
        (!7, 0, error::EFAULT),
    ] {
        assert_eq!(call(&mut m, own::SET_PTE, [a, 0, c, 0]), expected, "{a:#x}");
    }
    assert_eq!(m.read64(TABLES) & !x86::paging::ACCESSED, (TABLES + 0x1000) | 7);
    assert_eq!(call(&mut m, own::FLUSH_PAGE, [1 << 63, 0, 0, 0]), error::EINVAL);
    // Writing over code tells whoever keeps what was made from it.
    m.mmu.code_pages().mark(GuestPhys(0x9000));
    let told = std::sync::Arc::new(Told::default());
    m.mmu.set_watch(told.clone());
    assert_eq!(call(&mut m, own::SET_PTE, [0x9010, 0, 0, 0]), 0);
    assert_eq!(told.0.load(std::sync::atomic::Ordering::Relaxed), 0x9010);
}

#[derive(Default)]
struct Told(std::sync::atomic::AtomicU64);

impl memory::CodeWatch for Told {
    fn code_written(&self, first: GuestPhys, _: u64) -> bool {
        self.0.store(first.0, std::sync::atomic::Ordering::Relaxed);
        false
    }
}

#[test]
fn the_real_time_is_paired_with_the_tsc() {
    let mut m = Machine::long();
    m.clock.advance(5_000);
    m.state.msrs.tsc_offset = 77;
    assert_eq!(call(&mut m, KVM_HC_CLOCK_PAIRING, [0x9004, 0, 0, 0]), 0);
    assert!(m.read64(0x9004) > 1_700_000_000, "seconds since 1970");
    assert!(m.read64(0x900c) < 1_000_000_000);
    assert_eq!((m.read64(0x9014), m.read64(0x901c)), (5_077, 0));
    assert_eq!(call(&mut m, KVM_HC_CLOCK_PAIRING, [0x9004, 1, 0, 0]), error::EOPNOTSUPP);
    for address in [0x40_0000 - 63, 0xfee0_0000, u64::MAX] {
        assert_eq!(call(&mut m, KVM_HC_CLOCK_PAIRING, [address, 0, 0, 0]), error::EFAULT, "{address:#x}");
    }
}

#[test]
fn waiting_enables_interrupts() {
    let mut m = Machine::long();
    load(&mut m, own::WAIT, [0; 4]);
    assert_eq!(m.run(VMCALL), Err(Stop::Exit(Exit::Halt)));
    assert!(m.state.halted && m.state.interruptible());
    assert_eq!((m.state.gpr[RAX], m.state.rip), (0, CODE + 3));
}
