//! Hypercalls: numbers and errors. KVM's are those of Linux Documentation/virt/kvm/x86/hypercalls.rst and
//! include/uapi/linux/kvm_para.h; ours are described in docs/hypercalls.md.
#![allow(missing_docs, reason = "the names are the sources'")]

pub const KVM_HC_VAPIC_POLL_IRQ: u64 = 1;
pub const KVM_HC_KICK_CPU: u64 = 5;
pub const KVM_HC_CLOCK_PAIRING: u64 = 9;
pub const KVM_HC_SEND_IPI: u64 = 10;
pub const KVM_HC_SCHED_YIELD: u64 = 11;

/// Results that are no success, as RAX has them.
pub mod error {
    pub const EPERM: u64 = 1u64.wrapping_neg();
    pub const EFAULT: u64 = 14u64.wrapping_neg();
    pub const EINVAL: u64 = 22u64.wrapping_neg();
    pub const EOPNOTSUPP: u64 = 95u64.wrapping_neg();
    pub const ENOSYS: u64 = 1000u64.wrapping_neg();
}

/// Transvisor's own, announced by CPUID leaf 0x40000101. All are of 64-bit mode only.
pub mod own {
    /// The first number: "TV".
    pub const BASE: u64 = 0x5456_0000;
    pub const NOTHING: u64 = BASE;
    pub const PORT_READ: u64 = BASE + 1;
    pub const PORT_WRITE: u64 = BASE + 2;
    pub const MMIO_READ: u64 = BASE + 3;
    pub const MMIO_WRITE: u64 = BASE + 4;
    pub const MSR_READ: u64 = BASE + 5;
    pub const MSR_WRITE: u64 = BASE + 6;
    pub const SET_CR3: u64 = BASE + 7;
    pub const SET_CR8: u64 = BASE + 8;
    pub const FLUSH_PAGE: u64 = BASE + 9;
    pub const SET_PTE: u64 = BASE + 10;
    pub const CPUID: u64 = BASE + 11;
    pub const WAIT: u64 = BASE + 12;
    /// One bit for each that there is, counted from [`BASE`].
    pub const OFFERED: u32 = (1 << 13) - 1;
}
