//! Which MSRs are KVM's own. All others leave to the engine: the board has the local APIC's, and the monitor's table
//! the rest, so that a guest finds the same registers as under translation.

use kvm_ioctls::{MsrFilterDefaultAction, MsrFilterRange, MsrFilterRangeFlags, VmFd};
use x86::msr::*;

use crate::KvmError;

/// First and last of each range of registers that the processor (or KVM for it) has.
///
/// IA32_ARCH_CAPABILITIES is among them: which speculation bugs there are is for the host to say, since here the guest's
/// code runs on the host's processor as it is.
const NATIVE: &[(u32, u32)] = &[
    (IA32_TSC, IA32_TSC),
    (IA32_TSC_ADJUST, IA32_TSC_ADJUST),
    (IA32_SPEC_CTRL, IA32_PRED_CMD),
    (IA32_ARCH_CAPABILITIES, IA32_ARCH_CAPABILITIES),
    (IA32_SYSENTER_CS, IA32_SYSENTER_CS),
    (IA32_EFER, IA32_CSTAR),
    (IA32_FS_BASE, IA32_TSC_AUX),
];

/// The clock's registers, on a machine with paravirtual features.
const PARAVIRTUAL: (u32, u32) = (KVM_WALL_CLOCK_NEW, KVM_SYSTEM_TIME_NEW);

/// Registers that KVM has, but lets be written with what Intel's processors refuse (addresses that are
/// not canonical, reserved bits): reads are KVM's, writes leave, so that the monitor's table checks the value.
const CHECKED: &[(u32, u32)] =
    &[(IA32_SYSENTER_ESP, IA32_SYSENTER_EIP), (IA32_FMASK, IA32_FMASK), (IA32_PAT, IA32_PAT)];

/// Most registers of a range above.
const LONGEST: usize = 8;

/// Whether KVM carries out accesses itself; one that leaves all the same was refused by it.
pub(crate) fn is_native(index: u32) -> bool {
    contains(NATIVE, index) || contains(&[PARAVIRTUAL], index)
}

fn contains(ranges: &[(u32, u32)], index: u32) -> bool {
    ranges.iter().any(|&(first, last)| (first..=last).contains(&index))
}

/// Whether KVM has the register and the engine checks what is written to it.
pub(crate) fn is_checked(index: u32) -> bool {
    contains(CHECKED, index)
}

/// Lets KVM do [`NATIVE`], with `paravirt` [`PARAVIRTUAL`], and nothing else. (The x2APIC's can't be filtered; without a local APIC in the kernel KVM
/// knows none of them, which comes to the same.)
pub(crate) fn set_filter(vm: &VmFd, paravirt: bool) -> Result<(), KvmError> {
    let all = [0xff; LONGEST / 8];
    let both = MsrFilterRangeFlags::READ | MsrFilterRangeFlags::WRITE;
    let range = |(first, last), flags| MsrFilterRange {
        flags,
        base: first,
        msr_count: last - first + 1,
        bitmap: &all,
    };
    let clock = paravirt.then_some(&PARAVIRTUAL);
    let mut ranges: Vec<_> = NATIVE.iter().chain(clock).map(|&native| range(native, both)).collect();
    ranges.extend(CHECKED.iter().map(|&checked| range(checked, MsrFilterRangeFlags::READ)));
    vm.set_msr_filter(MsrFilterDefaultAction::DENY, &ranges).map_err(KvmError::refused("a filter for MSRs"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boards_registers_are_not_kvms() {
        for index in [IA32_APIC_BASE, IA32_TSC_DEADLINE, X2APIC_FIRST, X2APIC_LAST, IA32_MISC_ENABLE] {
            assert!(!is_native(index), "{index:#x}");
        }
        assert!(is_native(IA32_LSTAR) && is_native(IA32_KERNEL_GS_BASE));
    }

    #[test]
    fn ranges_fit_their_bitmap_and_the_filter() {
        assert!(NATIVE.iter().all(|&(first, last)| first <= last && last - first < LONGEST as u32));
        assert!(NATIVE.len() + 1 + CHECKED.len() <= 16);
        assert!(
            CHECKED.iter().all(|&(first, last)| !is_native(first) && !is_native(last) && is_checked(last))
        );
    }
}
