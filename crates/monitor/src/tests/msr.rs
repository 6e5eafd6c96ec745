//! Model-specific registers, kvmclock and CPUID.

use iced_x86::CpuidFeature;
use semantics::native::is_offered;

use super::*;
use vcpu::{Answer, Exit};
use x86::msr::*;

impl Machine {
    fn rdmsr(&mut self, index: u32) -> Result<u64, Stop> {
        self.state.gpr[1] = u64::from(index);
        self.run(&[0x0f, 0x32])?;
        Ok(self.state.gpr[2] << 32 | self.state.gpr[0])
    }

    fn wrmsr(&mut self, index: u32, value: u64) -> Result<(), Stop> {
        (self.state.gpr[1], self.state.gpr[2], self.state.gpr[0]) =
            (u64::from(index), value >> 32, value & 0xffff_ffff);
        self.run(&[0x0f, 0x30])
    }
}

const FAULT: Stop = Stop::Exception(Exception::GP0);

#[test]
fn plain_registers_keep_what_is_written() {
    let mut m = Machine::long();
    for (index, value) in [
        (IA32_STAR, 0x1234_5678_9abc_def0),
        (IA32_LSTAR, 0xffff_8000_0000_0000),
        (IA32_FMASK, 0x4_7700),
        (IA32_FS_BASE, 0x7fff_ffff_f000),
        (IA32_GS_BASE, 0xffff_8000_0000_0000),
        (IA32_KERNEL_GS_BASE, 1),
        (IA32_SYSENTER_CS, 0x10),
        (IA32_SYSENTER_ESP, 0xffff_ffff_8000_0000),
        (IA32_PAT, 0x0407_0506_0100_0604),
        (IA32_TSC_AUX, 5),
        (IA32_SPEC_CTRL, 1 | 1 << 10),
    ] {
        m.wrmsr(index, value).unwrap();
        assert_eq!(m.rdmsr(index), Ok(value), "{index:#x}");
    }
    assert_eq!(m.state.segments[4].base, 0x7fff_ffff_f000);
}

#[test]
fn values_that_are_refused() {
    for (index, value) in [
        (IA32_LSTAR, 1 << 47),
        (IA32_GS_BASE, 1 << 63),
        (IA32_PAT, 2),
        (IA32_TSC_AUX, 1 << 32),
        (IA32_FMASK, 1 << 32),
        (IA32_SPEC_CTRL, 4),
        (IA32_PRED_CMD, 2),
        (IA32_EFER, efer::SCE),
        (IA32_EFER, efer::LME | 1 << 1),
        (IA32_ARCH_CAPABILITIES, 0),
        (IA32_DEBUGCTL, 1),
        (0x1234_5678, 0),
    ] {
        assert_eq!(Machine::long().wrmsr(index, value), Err(FAULT), "{index:#x}");
    }
    for index in [IA32_PRED_CMD, 0x1234_5678, IA32_MTRRCAP, 0, u32::MAX] {
        assert_eq!(Machine::long().rdmsr(index), Err(FAULT), "{index:#x}");
    }
    let mut m = Machine::long().user(USER_CODE64);
    assert_eq!(m.faults(&[0x0f, 0x32]), Exception::GP0);
    assert_eq!(m.faults(&[0x0f, 0x30]), Exception::GP0);
}

#[test]
fn the_boards_registers() {
    let mut m = Machine::long();
    for index in [IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_FIRST + 0x30, X2APIC_LAST] {
        let read = Exit::MsrRead { index };
        let write = Exit::MsrWrite { index, value: 0x1_0000_0002 };
        m.state.rip = CODE;
        assert_eq!(m.rdmsr(index), Err(Stop::Exit(read)));
        let insn = m.decode(&[0x0f, 0x32]);
        crate::complete(&mut m.context(), &insn, read, Answer::Value(0x3_0000_0004)).unwrap();
        assert_eq!((m.state.gpr[2], m.state.gpr[0], m.state.rip), (3, 4, CODE + 2));
        assert_eq!(m.wrmsr(index, 0x1_0000_0002), Err(Stop::Exit(write)));
        let insn = m.decode(&[0x0f, 0x30]);
        assert_eq!(crate::complete(&mut m.context(), &insn, write, Answer::Fault), Err(FAULT));
        assert_eq!(m.state.rip, CODE + 2);
        crate::complete(&mut m.context(), &insn, write, Answer::Done).unwrap();
        assert_eq!(m.state.rip, CODE + 4);
    }
}

#[test]
fn efer_keeps_lma() {
    let mut m = Machine::long();
    m.wrmsr(IA32_EFER, efer::LME | efer::NXE).unwrap();
    assert_eq!(m.rdmsr(IA32_EFER), Ok(efer::LME | efer::LMA | efer::NXE));
}

#[test]
fn no_execute_takes_effect_at_once() {
    let mut m = Machine::long();
    m.write64(TABLES + 0x2008, 0x20_0087 | 1 << 63);
    m.settle();
    let address = memory::GuestVirt(0x20_0000);
    let fetch = |m: &mut Machine| m.mmu.fetch(&m.state, address).is_ok();
    assert!(!fetch(&mut m));
    m.wrmsr(IA32_EFER, efer::LME).unwrap();
    // With NXE clear the bit is reserved.
    m.write64(TABLES + 0x2008, 0x20_0087);
    assert!(fetch(&mut m));
    m.write64(TABLES + 0x2008, 0x20_0087 | 1 << 63);
    m.wrmsr(IA32_EFER, efer::LME | efer::NXE).unwrap();
    assert!(!fetch(&mut m));
    m.wrmsr(IA32_MCG_STATUS, 0).unwrap();
    assert_eq!(m.wrmsr(IA32_MCG_STATUS, 1), Err(FAULT));
}

#[test]
fn tsc_and_its_adjustment_move_together() {
    let mut m = Machine::long();
    m.clock.advance(1000);
    m.wrmsr(IA32_TSC, 5000).unwrap();
    assert_eq!((m.rdmsr(IA32_TSC), m.rdmsr(IA32_TSC_ADJUST)), (Ok(5000), Ok(4000)));
    m.wrmsr(IA32_TSC_ADJUST, 0).unwrap();
    m.clock.advance(1);
    assert_eq!(m.rdmsr(IA32_TSC), Ok(1001));
}

#[test]
fn kvmclock_page() {
    let mut m = Machine::long();
    m.clock.advance(7_000_000_000);
    m.state.msrs.tsc_offset = 100;
    m.wrmsr(KVM_SYSTEM_TIME_NEW, 0x9000 | 1).unwrap();
    let version = m.read32(0x9000);
    assert_eq!(version & 1, 0);
    let (stamp, time) = (m.read64(0x9008), m.read64(0x9010));
    assert_eq!((stamp, time), (7_000_000_100, 7_000_000_000));
    let (multiplier, shift, stable) = (m.read32(0x9018), m.read16(0x901c) as u8, m.read16(0x901d) as u8);
    assert_eq!(stable, 1);
    // The guest's computation, one second later.
    let delta = 1_000_000_000u64;
    let product = (u128::from(delta) << shift) * u128::from(multiplier);
    assert_eq!((product >> 32) as u64, delta);

    m.wrmsr(IA32_TSC, 0).unwrap();
    assert_eq!((m.read64(0x9008), m.read32(0x9000)), (0, version + 2));
    m.wrmsr(KVM_SYSTEM_TIME_NEW, 0).unwrap();
    m.wrmsr(IA32_TSC, 55).unwrap();
    assert_eq!(m.read64(0x9008), 0, "switched off");
    m.wrmsr(KVM_SYSTEM_TIME_NEW, 0x7fff_f000_0001).unwrap();

    m.wrmsr(KVM_WALL_CLOCK_NEW, 0x9100).unwrap();
    assert!(m.read32(0x9104) > 1_700_000_000, "seconds since 1970");
    assert!(m.read32(0x9108) < 1_000_000_000);
}

#[test]
fn cpuid() {
    let mut m = Machine::long();
    let mut ask = |leaf: u32, subleaf: u32| {
        (m.state.gpr[0], m.state.gpr[1]) = (u64::from(leaf) | 5 << 32, u64::from(subleaf));
        m.run(&[0x0f, 0xa2]).unwrap();
        [0, 3, 1, 2].map(|n| u32::try_from(m.state.gpr[n]).expect("upper halves are cleared"))
    };
    let [max, b, c, d] = ask(0, 0);
    let vendor: Vec<u8> = [b, d, c].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!((max, vendor.as_slice()), (0x16, b"GenuineIntel".as_slice()));
    let [_, signature, ecx, edx] = {
        let [a, b, c, d] = ask(1, 0);
        [b, a, c, d]
    };
    assert_eq!(signature, 0x806f8);
    for (leaf, register, bits, feature) in [
        (1, 2, 1 << 22, CpuidFeature::MOVBE),
        (7, 1, 1 << 3, CpuidFeature::BMI1),
        (7, 1, 1 << 8, CpuidFeature::BMI2),
        (7, 1, 1 << 19, CpuidFeature::ADX),
        (0x8000_0001, 2, 1 << 5, CpuidFeature::LZCNT),
    ] {
        assert_eq!(ask(leaf, 0)[register] & bits != 0, is_offered(feature), "{feature:?}");
    }
    // x86-64-v2: SSE3 SSSE3 CX16 SSE4.1 SSE4.2 POPCNT; no AVX, F16C, FMA.
    assert_eq!(ecx & (1 | 1 << 9 | 1 << 13 | 1 << 19 | 1 << 20 | 1 << 23), 0x98_2201 | 1 << 9);
    assert_eq!(ecx & (1 << 12 | 1 << 28 | 1 << 29 | 1 << 27), 0);
    assert_ne!(ecx & 1 << 31, 0);
    assert_eq!(edx & (1 << 12 | 1 << 1), 0, "no MTRR, no VME");
    assert_eq!(ask(0x15, 0), [1, 1, 1_000_000_000, 0]);
    assert_eq!(ask(7, 0)[0], 2);
    assert_eq!((ask(7, 1), ask(7, 2)), ([0; 4], [0, 0, 0, 1 << 4]));
    assert_eq!(ask(0x0d, 0), [3, 576, 576, 0]);
    assert_eq!(ask(0x0b, 1), [0, 1, 0x201, 0]);
    assert_eq!(ask(0x0b, 7), [0, 0, 7, 0]);
    assert_eq!(ask(4, 4), [0; 4]);
    assert_eq!(ask(0x8000_0008, 0)[0], 40 | 48 << 8);
    assert_ne!(ask(0x8000_0007, 0)[3] & 1 << 8, 0);
    assert_eq!(ask(0x4000_0000, 0), [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]);
    assert_eq!(ask(0x4000_0001, 0)[0], 1 << 1 | 1 << 3 | 1 << 6 | 1 << 7 | 1 << 11 | 1 << 13 | 1 << 24);
    let [max, b, c, d] = ask(0x4000_0100, 0);
    let name: Vec<u8> = [b, c, d].iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!((max, name.as_slice()), (0x4000_0101, b"Transvisor\0\0".as_slice()));
    assert_eq!(ask(0x4000_0101, 0), [0x5456_0000, 0x1fff, 0, 0]);
    assert_eq!(ask(0x17, 0), ask(0x16, 0), "beyond the last leaf the last one answers");
    assert_eq!(ask(0x9000_0000, 0), ask(0x16, 0));
    m.state.cr4 |= cr4::OSXSAVE;
    assert_ne!(crate::cpuid::query(&m.state, 1, 0)[2] & 1 << 27, 0);
}
