//! A KVM virtual machine around guest RAM: memory regions, MSR exits, and what Intel's KVM needs to know.

use kvm_bindings::{KVM_CAP_X86_USER_SPACE_MSR, kvm_enable_cap, kvm_userspace_memory_region};
use kvm_ioctls::{MsrExitReason, VmFd};
use memory::Ram;

use crate::{Host, KvmError, msr};

/// Four pages below the end of the 32-bit hole, where no RAM and no device is: Intel's KVM runs real mode with them on
/// processors that can't do so themselves.
const IDENTITY_MAP: u64 = 0xfffb_c000;
const TSS: usize = 0xfffb_d000;

/// A machine whose MSR accesses leave as [`msr`] says; `paravirt`: with KVM's clock.
pub(crate) fn create(host: &Host, ram: &Ram, paravirt: bool) -> Result<VmFd, KvmError> {
    let vm = host.kvm.create_vm().map_err(KvmError::refused("a virtual machine"))?;
    attach(&vm, ram)?;
    let reasons = MsrExitReason::Unknown | MsrExitReason::Inval | MsrExitReason::Filter;
    let exits = kvm_enable_cap {
        cap: KVM_CAP_X86_USER_SPACE_MSR,
        args: [reasons.bits().into(), 0, 0, 0],
        ..Default::default()
    };
    vm.enable_cap(&exits).map_err(KvmError::refused("exits for MSRs"))?;
    msr::set_filter(&vm, paravirt)?;
    Ok(vm)
}

/// Gives a machine its RAM, which must live longer.
pub(crate) fn attach(vm: &VmFd, ram: &Ram) -> Result<(), KvmError> {
    vm.set_identity_map_address(IDENTITY_MAP).map_err(KvmError::refused("an identity map"))?;
    vm.set_tss_address(TSS).map_err(KvmError::refused("a TSS"))?;
    for (slot, (start, size)) in ram.regions().enumerate() {
        let Some(host) = ram.host(start) else { continue };
        let region = kvm_userspace_memory_region {
            slot: slot as u32,
            flags: 0,
            guest_phys_addr: start.0,
            memory_size: size,
            userspace_addr: host as u64,
        };
        // SAFETY: the region is a mapping of `ram`, which the caller keeps until the machine is gone; guest memory holds
        // no Rust objects, so the guest may write it at any time.
        unsafe { vm.set_user_memory_region(region) }.map_err(KvmError::refused("guest memory"))?;
    }
    Ok(())
}
