//! What CPUID announces (SDM Vol. 2 CPUID; KVM's leaves from Linux Documentation/virt/kvm/x86/cpuid.rst).
//!
//! An x86-64-v2 processor from GenuineIntel, because Linux reads the TSC frequency leaves only from that vendor. The
//! model is one that no list of errata or speculation bugs in Linux asks software mitigations for, given
//! [`crate::msr::arch_capabilities`]. Everything stands in [`TABLE`]; [`query`] adds the few bits that depend on state.

use iced_x86::CpuidFeature;
use semantics::{Insn, native::is_offered};
use vcpu::Clock;
use x86::{CpuState, control::cr4, hypercall::own, paging::PHYSICAL_BITS};

use crate::{Context, Result};

/// EAX of leaf 1: family 6, model 0x8f (Sapphire Rapids), stepping 8.
pub const SIGNATURE: u32 = 0x000806f8;
/// Highest basic leaf.
const MAX_BASIC: u32 = 0x16;
/// Highest of KVM's leaves.
const MAX_HYPERVISOR: u32 = 0x4000_0001;
/// First and last of Transvisor's own leaves, where hypervisors that offer several interfaces have the next one.
const OWN: u32 = 0x4000_0100;
const MAX_OWN: u32 = 0x4000_0101;
/// Highest extended leaf.
const MAX_EXTENDED: u32 = 0x8000_0008;
/// Local APIC id. One processor: 0.
const APIC_ID: u32 = 0;
/// Bytes of an XSAVE area for x87 and SSE: legacy region and header.
const XSAVE_BYTES: u32 = 576;

/// Leaf 1 ECX.
const FEATURES_1C: u32 = SSE3
    | PCLMULQDQ
    | SSSE3
    | CMPXCHG16B
    | PCID
    | SSE4_1
    | SSE4_2
    | X2APIC
    | MOVBE
    | POPCNT
    | TSC_DEADLINE
    | AES
    | XSAVE
    | RDRAND
    | HYPERVISOR;
const SSE3: u32 = 1 << 0;
const PCLMULQDQ: u32 = 1 << 1;
const SSSE3: u32 = 1 << 9;
const CMPXCHG16B: u32 = 1 << 13;
const PCID: u32 = 1 << 17;
const SSE4_1: u32 = 1 << 19;
const SSE4_2: u32 = 1 << 20;
const X2APIC: u32 = 1 << 21;
const MOVBE: u32 = 1 << 22;
const POPCNT: u32 = 1 << 23;
const TSC_DEADLINE: u32 = 1 << 24;
const AES: u32 = 1 << 25;
const XSAVE: u32 = 1 << 26;
/// Set while CR4.OSXSAVE is.
const OSXSAVE: u32 = 1 << 27;
const RDRAND: u32 = 1 << 30;
const HYPERVISOR: u32 = 1 << 31;

/// Leaf 1 EDX. No MTRRs (and so no rendezvous to set them up), no VME.
const FEATURES_1D: u32 = FPU
    | DE
    | PSE
    | TSC
    | MSR
    | PAE
    | MCE
    | CX8
    | APIC
    | SEP
    | PGE
    | MCA
    | CMOV
    | PAT
    | PSE36
    | CLFLUSH
    | MMX
    | FXSR
    | SSE
    | SSE2;
const FPU: u32 = 1 << 0;
const DE: u32 = 1 << 2;
const PSE: u32 = 1 << 3;
const TSC: u32 = 1 << 4;
const MSR: u32 = 1 << 5;
const PAE: u32 = 1 << 6;
const MCE: u32 = 1 << 7;
const CX8: u32 = 1 << 8;
/// Cleared by the board's APIC base MSR on real machines; the local APIC here is always enabled.
const APIC: u32 = 1 << 9;
const SEP: u32 = 1 << 11;
const PGE: u32 = 1 << 13;
const MCA: u32 = 1 << 14;
const CMOV: u32 = 1 << 15;
const PAT: u32 = 1 << 16;
const PSE36: u32 = 1 << 17;
const CLFLUSH: u32 = 1 << 19;
const MMX: u32 = 1 << 23;
const FXSR: u32 = 1 << 24;
const SSE: u32 = 1 << 25;
const SSE2: u32 = 1 << 26;

/// Leaf 7 EBX.
const FEATURES_7B: u32 =
    FSGSBASE | TSC_ADJUST | BMI1 | SMEP | BMI2 | ERMS | INVPCID | NO_FCS_FDS | RDSEED | ADX | SMAP | SHA;
const FSGSBASE: u32 = 1 << 0;
const TSC_ADJUST: u32 = 1 << 1;
const BMI1: u32 = 1 << 3;
const SMEP: u32 = 1 << 7;
const BMI2: u32 = 1 << 8;
const ERMS: u32 = 1 << 9;
const INVPCID: u32 = 1 << 10;
/// The x87 unit does not save the selectors of its pointers: they read as 0.
const NO_FCS_FDS: u32 = 1 << 13;
const RDSEED: u32 = 1 << 18;
const ADX: u32 = 1 << 19;
const SMAP: u32 = 1 << 20;
const SHA: u32 = 1 << 29;

/// What is announced only if the host has it: leaf, register (of EAX EBX ECX EDX), bit, extension.
const HOST_DEPENDENT: &[(u32, usize, u32, CpuidFeature)] = &[
    (1, 2, AES, CpuidFeature::AES),
    (1, 2, PCLMULQDQ, CpuidFeature::PCLMULQDQ),
    (1, 2, MOVBE, CpuidFeature::MOVBE),
    (7, 1, SHA, CpuidFeature::SHA),
    (7, 1, BMI1, CpuidFeature::BMI1),
    (7, 1, BMI2, CpuidFeature::BMI2),
    (7, 1, ADX, CpuidFeature::ADX),
    (0x8000_0001, 2, LZCNT, CpuidFeature::LZCNT),
];

/// Leaf 7 ECX.
const FEATURES_7C: u32 = UMIP | RDPID;
const UMIP: u32 = 1 << 2;
const RDPID: u32 = 1 << 22;

/// Leaf 7 EDX.
const FEATURES_7D: u32 = FSRM | SPEC_CTRL | ARCH_CAPABILITIES;
const FSRM: u32 = 1 << 4;
const SPEC_CTRL: u32 = 1 << 26;
const ARCH_CAPABILITIES: u32 = 1 << 29;

/// Leaf 7 subleaf 2 EDX. Linux clears branch history by a loop at every system call of a processor with enhanced IBRS,
/// even if BHI_NO is set, unless it can set BHI_DIS_S in IA32_SPEC_CTRL once and for all.
const FEATURES_7_2D: u32 = BHI_CTRL;
const BHI_CTRL: u32 = 1 << 4;

/// Leaf 0x40000001 EAX.
const KVM_FEATURES: u32 = kvm::NOP_IO_DELAY
    | kvm::CLOCKSOURCE2
    | kvm::PV_EOI
    | kvm::PV_UNHALT
    | kvm::PV_SEND_IPI
    | kvm::PV_SCHED_YIELD
    | kvm::CLOCKSOURCE_STABLE;

/// KVM's paravirtual features (Documentation/virt/kvm/x86/cpuid.rst).
#[allow(missing_docs, reason = "the names are KVM's")]
pub mod kvm {
    pub const NOP_IO_DELAY: u32 = 1 << 1;
    pub const CLOCKSOURCE2: u32 = 1 << 3;
    pub const PV_EOI: u32 = 1 << 6;
    pub const PV_UNHALT: u32 = 1 << 7;
    pub const PV_SEND_IPI: u32 = 1 << 11;
    pub const PV_SCHED_YIELD: u32 = 1 << 13;
    pub const CLOCKSOURCE_STABLE: u32 = 1 << 24;
}

/// Leaf 0x80000001.
const FEATURES_EXTENDED_C: u32 = LAHF_SAHF | LZCNT | PREFETCHW;
const LAHF_SAHF: u32 = 1 << 0;
const LZCNT: u32 = 1 << 5;
const PREFETCHW: u32 = 1 << 8;
const FEATURES_EXTENDED_D: u32 = SYSCALL | NX | PAGES_1GIB | RDTSCP | LONG_MODE;
const SYSCALL: u32 = 1 << 11;
const NX: u32 = 1 << 20;
const PAGES_1GIB: u32 = 1 << 26;
const RDTSCP: u32 = 1 << 27;
const LONG_MODE: u32 = 1 << 29;

/// Leaf 0x80000007 EDX.
const INVARIANT_TSC: u32 = 1 << 8;

/// Leaf 4: a cache of `sets` sets of `ways` lines of 64 bytes. `kind`: 1 data, 2 instruction, 3 unified.
const fn cache(kind: u32, level: u32, ways: u32, sets: u32) -> [u32; 4] {
    [kind | level << 5 | 1 << 8, (ways - 1) << 22 | 63, sets - 1, 0]
}

/// Four characters as a register.
const fn text(from: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([from[at], from[at + 1], from[at + 2], from[at + 3]])
}

/// Sixteen characters as EAX to EDX.
const fn text16(from: &[u8], at: usize) -> [u32; 4] {
    [text(from, at), text(from, at + 4), text(from, at + 8), text(from, at + 12)]
}

const VENDOR: &[u8; 12] = b"GenuineIntel";
const KVM_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";
const OWN_SIGNATURE: &[u8; 12] = b"Transvisor\0\0";
const BRAND: &[u8; 48] = b"Transvisor Virtual Processor\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0";

/// One row: leaf, subleaf (`None`: ECX is ignored), EAX EBX ECX EDX.
type Row = (u32, Option<u32>, [u32; 4]);

/// What is announced. A leaf or subleaf that is missing reads as zeros.
#[rustfmt::skip]
const TABLE: &[Row] = &[
    (0x00, None, [MAX_BASIC, text(VENDOR, 0), text(VENDOR, 8), text(VENDOR, 4)]),
    // EBX: APIC id, one logical processor, CLFLUSH line of 8 quadwords.
    (0x01, None, [SIGNATURE, APIC_ID << 24 | 1 << 16 | 8 << 8, FEATURES_1C, FEATURES_1D]),
    // Caches: see leaf 4 (descriptor 0xff).
    (0x02, None, [0x00fe_ff01, 0, 0, 0]),
    (0x04, Some(0), cache(1, 1, 12, 64)),      // 48 KiB
    (0x04, Some(1), cache(2, 1, 8, 64)),       // 32 KiB
    (0x04, Some(2), cache(3, 2, 16, 2048)),    // 2 MiB
    (0x04, Some(3), cache(3, 3, 16, 16384)),   // 16 MiB
    // ARAT: the APIC timer never stops.
    (0x06, None, [1 << 2, 0, 0, 0]),
    // EAX: the highest subleaf.
    (0x07, Some(0), [2, FEATURES_7B, FEATURES_7C, FEATURES_7D]),
    (0x07, Some(2), [0, 0, 0, FEATURES_7_2D]),
    // Topology: one thread in one core. ECX is level type and subleaf.
    (0x0b, Some(0), [0, 1, 1 << 8, APIC_ID]),
    (0x0b, Some(1), [0, 1, 2 << 8 | 1, APIC_ID]),
    (0x0b, Some(2), [0, 0, 2, APIC_ID]),
    // XSAVE of x87 and SSE; no compaction, no supervisor states, XSAVEOPT.
    (0x0d, Some(0), [3, XSAVE_BYTES, XSAVE_BYTES, 0]),
    (0x0d, Some(1), [1, 0, 0, 0]),
    // TSC = crystal * 1 / 1. The crystal is the APIC timer's clock too.
    (0x15, None, [1, 1, Clock::TSC_HZ as u32, 0]),
    // Base, maximum and bus MHz.
    (0x16, None, [(Clock::TSC_HZ / 1_000_000) as u32, (Clock::TSC_HZ / 1_000_000) as u32, 100, 0]),

    (0x4000_0000, None, [MAX_HYPERVISOR, text(KVM_SIGNATURE, 0), text(KVM_SIGNATURE, 4), text(KVM_SIGNATURE, 8)]),
    (0x4000_0001, None, [KVM_FEATURES, 0, 0, 0]),
    (OWN, None, [MAX_OWN, text(OWN_SIGNATURE, 0), text(OWN_SIGNATURE, 4), text(OWN_SIGNATURE, 8)]),
    // Where its hypercalls begin, and which there are.
    (MAX_OWN, None, [own::BASE as u32, own::OFFERED, 0, 0]),

    (0x8000_0000, None, [MAX_EXTENDED, 0, 0, 0]),
    (0x8000_0001, None, [0, 0, FEATURES_EXTENDED_C, FEATURES_EXTENDED_D]),
    (0x8000_0002, None, text16(BRAND, 0)),
    (0x8000_0003, None, text16(BRAND, 16)),
    (0x8000_0004, None, text16(BRAND, 32)),
    // L2: 2 MiB, 16 ways, lines of 64 bytes.
    (0x8000_0006, None, [0, 0, 2048 << 16 | 8 << 12 | 64, 0]),
    (0x8000_0007, None, [0, 0, 0, INVARIANT_TSC]),
    // Physical and linear address bits.
    (0x8000_0008, None, [PHYSICAL_BITS | 48 << 8, 0, 0, 0]),
];

/// Every leaf, and subleaf where ECX counts, that is not all zeros.
pub fn leaves() -> impl Iterator<Item = (u32, Option<u32>)> {
    TABLE.iter().map(|row| (row.0, row.1))
}

/// Leaves for paravirtualization, KVM's and ours.
const PARAVIRTUAL: std::ops::RangeInclusive<u32> = 0x4000_0000..=0x4fff_ffff;

/// Whether a leaf tells of hypercalls that only the monitor carries out.
pub fn is_own(leaf: u32) -> bool {
    (OWN..=MAX_OWN).contains(&leaf)
}

/// EAX, EBX, ECX and EDX for a leaf and subleaf. Beyond the highest leaf of the basic or extended range the highest
/// basic leaf answers, as on Intel's processors.
pub fn query(state: &CpuState, leaf: u32, subleaf: u32) -> [u32; 4] {
    let leaf = match leaf {
        _ if PARAVIRTUAL.contains(&leaf) && !state.paravirt => return [0; 4],
        0..=MAX_BASIC | 0x8000_0000..=MAX_EXTENDED | 0x4000_0000..=0x4fff_ffff => leaf,
        _ => MAX_BASIC,
    };
    let row = TABLE.iter().find(|row| row.0 == leaf && row.1.is_none_or(|n| n == subleaf));
    let mut registers = match row {
        Some(row) => row.2,
        // Past the last topology level ECX still counts and EDX still identifies.
        None if leaf == 0x0b => [0, 0, subleaf & 0xff, APIC_ID],
        None => [0; 4],
    };
    if leaf == 1 && state.cr4 & cr4::OSXSAVE != 0 {
        registers[2] |= OSXSAVE;
    }
    for &(of_leaf, register, bit, feature) in HOST_DEPENDENT {
        if leaf == of_leaf && (leaf != 7 || subleaf == 0) && !is_offered(feature) {
            registers[register] &= !bit;
        }
    }
    registers
}

/// CPUID.
pub(crate) fn execute(cx: &mut Context<'_>, insn: &Insn) -> Result {
    let gpr = &cx.state.gpr;
    let [eax, ebx, ecx, edx] = query(cx.state, gpr[0] as u32, gpr[1] as u32).map(u64::from);
    let gpr = &mut cx.state.gpr;
    (gpr[0], gpr[3], gpr[1], gpr[2]) = (eax, ebx, ecx, edx);
    cx.advance(insn);
    Ok(())
}
