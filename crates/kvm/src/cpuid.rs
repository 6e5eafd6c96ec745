//! CPUID of the guest: the monitor's table, so that the machine is the same as under translation, less what this KVM
//! does not support.

use kvm_bindings::{CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, kvm_cpuid_entry2};
use kvm_ioctls::Kvm;
use monitor::cpuid::{is_own, kvm, leaves, query};
use x86::CpuState;

use crate::KvmError;

const EAX: usize = 0;
const EBX: usize = 1;
const ECX: usize = 2;
const EDX: usize = 3;

/// Registers that are sets of features: leaf, subleaf, register, and the bits that hold whatever KVM says, because the
/// board has them (x2APIC, TSC deadline, local APIC) or they tell that there is a hypervisor.
const FEATURES: &[(u32, u32, usize, u32)] = &[
    (0x1, 0, ECX, 1 << 21 | 1 << 24 | 1 << 31),
    (0x1, 0, EDX, 1 << 9),
    (0x7, 0, EBX, 0),
    (0x7, 0, ECX, 0),
    (0x7, 0, EDX, 0),
    (0x7, 2, EDX, 0),
    (0xd, 0, EAX, 0),
    (0xd, 1, EAX, 0),
    (PARAVIRT_LEAF, 0, EAX, kvm::PV_EOI),
    (0x8000_0001, 0, ECX, 0),
    (0x8000_0001, 0, EDX, 0),
    (0x8000_0007, 0, EDX, 0),
];

/// KVM's paravirtual features that it has without a local APIC of its own: the clock. The paravirtual EOI is the board's.
const PARAVIRT_LEAF: u32 = 0x4000_0001;
const PARAVIRT: u32 = kvm::NOP_IO_DELAY | kvm::CLOCKSOURCE2 | kvm::CLOCKSOURCE_STABLE | kvm::PV_EOI;

const CRYSTAL_LEAF: u32 = 0x15;
const FREQUENCY_LEAF: u32 = 0x16;
const ADDRESS_SIZES_LEAF: u32 = 0x8000_0008;
/// The crystal is the APIC timer's clock, which is the board's.
const CRYSTAL_KHZ: u32 = (vcpu::Clock::TSC_HZ / 1000) as u32;

type Registers = [u32; 4];

/// The table for a processor whose TSC has this frequency.
pub(crate) fn build(kvm: &Kvm, tsc_khz: u32, paravirt: bool) -> Result<CpuId, KvmError> {
    let supported = supported(kvm)?;
    // Leaves that are not announced are there all the same, as zeros: for one that is not, KVM answers with the highest basic leaf.
    let state = CpuState { paravirt, ..CpuState::new() };
    let entries: Vec<_> = leaves()
        .map(|(leaf, subleaf)| {
            let mut registers = if is_own(leaf) { [0; 4] } else { query(&state, leaf, subleaf.unwrap_or(0)) };
            restrict(leaf, subleaf.unwrap_or(0), &mut registers, &supported);
            tell_frequency(leaf, &mut registers, tsc_khz);
            entry(leaf, subleaf, registers)
        })
        .collect();
    CpuId::from_entries(&entries).map_err(|error| KvmError::Refused {
        what: "a CPUID table",
        source: std::io::Error::other(format!("{error:?}")),
    })
}

/// Features of the monitor's table that this KVM lacks.
pub(crate) fn missing(kvm: &Kvm) -> Result<Vec<String>, KvmError> {
    let supported = supported(kvm)?;
    let state = CpuState::new();
    let mut missing = Vec::new();
    for &(leaf, subleaf, register, _) in FEATURES {
        let wanted = query(&state, leaf, subleaf);
        let mut given = wanted;
        restrict(leaf, subleaf, &mut given, &supported);
        let ours = if leaf == PARAVIRT_LEAF { PARAVIRT } else { u32::MAX };
        let lost = wanted[register] & ours & !given[register];
        let name = ["eax", "ebx", "ecx", "edx"][register];
        missing.extend(
            (0..32).filter(|bit| lost >> bit & 1 != 0).map(|bit| format!("{leaf:x}.{subleaf}.{name}:{bit}")),
        );
    }
    Ok(missing)
}

fn supported(kvm: &Kvm) -> Result<CpuId, KvmError> {
    kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(KvmError::refused("its CPUID table"))
}

fn find(table: &CpuId, leaf: u32, subleaf: u32) -> Registers {
    let matches = |entry: &&kvm_cpuid_entry2| {
        entry.function == leaf
            && (entry.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX == 0 || entry.index == subleaf)
    };
    table.as_slice().iter().find(matches).map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
}

fn restrict(leaf: u32, subleaf: u32, registers: &mut Registers, supported: &CpuId) {
    let theirs = find(supported, leaf, subleaf);
    for &(_, _, register, always) in FEATURES.iter().filter(|row| (row.0, row.1) == (leaf, subleaf)) {
        registers[register] &= theirs[register] | always;
    }
    if leaf == PARAVIRT_LEAF {
        registers[EAX] &= PARAVIRT;
    }
    if leaf == ADDRESS_SIZES_LEAF && theirs[EAX] & 0xff != 0 {
        // A physical address that the processor lacks can't be mapped.
        let bits = (registers[EAX] & 0xff).min(theirs[EAX] & 0xff);
        registers[EAX] = registers[EAX] & !0xff | bits;
    }
}

fn tell_frequency(leaf: u32, registers: &mut Registers, tsc_khz: u32) {
    match leaf {
        CRYSTAL_LEAF => {
            // Linux multiplies the crystal's kHz by the numerator in 32 bits.
            let divisor = gcd(tsc_khz, CRYSTAL_KHZ).max(1);
            let (numerator, denominator) = (tsc_khz / divisor, CRYSTAL_KHZ / divisor);
            (registers[EAX], registers[EBX]) = if numerator.checked_mul(CRYSTAL_KHZ).is_some() {
                (denominator, numerator)
            } else {
                (1000, (tsc_khz + 500) / 1000)
            };
        }
        FREQUENCY_LEAF => {
            let mhz = (tsc_khz + 500) / 1000;
            (registers[EAX], registers[EBX]) = (mhz, mhz);
        }
        _ => {}
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

fn entry(leaf: u32, subleaf: Option<u32>, [eax, ebx, ecx, edx]: Registers) -> kvm_cpuid_entry2 {
    kvm_cpuid_entry2 {
        function: leaf,
        index: subleaf.unwrap_or(0),
        flags: if subleaf.is_some() { KVM_CPUID_FLAG_SIGNIFCANT_INDEX } else { 0 },
        eax,
        ebx,
        ecx,
        edx,
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_are_those_that_both_have() {
        let theirs = CpuId::from_entries(&[entry(1, None, [0, 0, 1 << 0 | 1 << 5, 1 << 25])]).unwrap();
        let mut ours = [7, 8, 1 << 0 | 1 << 1 | 1 << 21 | 1 << 31, 1 << 25 | 1 << 26 | 1 << 9];
        restrict(1, 0, &mut ours, &theirs);
        // The hypervisor bit, x2APIC and the APIC are not KVM's to grant; VMX (5) is not ours to offer.
        assert_eq!(ours, [7, 8, 1 << 0 | 1 << 21 | 1 << 31, 1 << 25 | 1 << 9]);
    }

    #[test]
    fn of_paravirtual_features_those_remain_that_need_no_apic_of_kvms() {
        let theirs = CpuId::from_entries(&[entry(PARAVIRT_LEAF, None, [!kvm::PV_EOI, 0, 0, 0])]).unwrap();
        let mut ours = query(&CpuState::new(), PARAVIRT_LEAF, 0);
        restrict(PARAVIRT_LEAF, 0, &mut ours, &theirs);
        assert_eq!(ours, [1 << 1 | 1 << 3 | 1 << 6 | 1 << 24, 0, 0, 0]);
    }

    #[test]
    fn subleaves_are_told_apart() {
        let theirs =
            CpuId::from_entries(&[entry(7, Some(0), [2, 1, 0, 0]), entry(7, Some(2), [0, 0, 0, 4])]).unwrap();
        assert_eq!(find(&theirs, 7, 2), [0, 0, 0, 4]);
        assert_eq!(find(&theirs, 7, 1), [0; 4]);
    }

    #[test]
    fn addresses_are_no_wider_than_the_host_has() {
        let theirs =
            CpuId::from_entries(&[entry(ADDRESS_SIZES_LEAF, None, [39 | 48 << 8, 0, 0, 0])]).unwrap();
        let mut ours = [40 | 48 << 8, 0, 0, 0];
        restrict(ADDRESS_SIZES_LEAF, 0, &mut ours, &theirs);
        assert_eq!(ours[EAX], 39 | 48 << 8);
    }

    #[test]
    fn the_frequency_is_told_within_32_bits() {
        for khz in [1_000_000, 2_500_000, 2_499_998, 3_187_201] {
            let mut registers = [1, 1, 1_000_000_000, 0];
            tell_frequency(CRYSTAL_LEAF, &mut registers, khz);
            let [denominator, numerator, crystal, _] = registers;
            let told = u64::from(crystal / 1000 * numerator / denominator);
            assert!(told.abs_diff(khz.into()) <= 500, "{khz}: {told}");
            assert!((crystal / 1000).checked_mul(numerator).is_some());
        }
    }
}
