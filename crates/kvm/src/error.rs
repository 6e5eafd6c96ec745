//! Why there is no KVM, or none that will do. Every message says what to do about it.

use std::path::PathBuf;

/// Why this engine can't be had.
#[derive(Debug, thiserror::Error)]
pub enum KvmError {
    /// No such device.
    #[error(
        "{0} is not there: this host offers no KVM (no virtualization extensions, or kvm_intel/kvm_amd is not loaded, or a container without the device); use --engine translate, which needs none"
    )]
    Missing(PathBuf),
    /// The device is there, not for us.
    #[error(
        "{0} may not be opened by this user; join the group that owns it (often `usermod -aG kvm USER`, then log in again), or use --engine translate"
    )]
    NotPermitted(PathBuf),
    /// The device does not open for another reason.
    #[error("{path} does not open: {source}; use --engine translate")]
    Open {
        /// The device.
        path: PathBuf,
        /// What the host says.
        source: std::io::Error,
    },
    /// It is no KVM, or one that is too old.
    #[error("{path} is no KVM that we know (API version {version}, expected 12); use --engine translate")]
    Version {
        /// The device.
        path: PathBuf,
        /// What it says.
        version: i32,
    },
    /// A feature that the engine rests on.
    #[error("this host's KVM lacks {0}; a Linux 5.11 or newer has it, or use --engine translate")]
    Lacks(&'static str),
    /// A system call that should not fail.
    #[error(
        "KVM refused {what}: {source}; `transvisor doctor` shows what this host offers, --engine translate needs no KVM"
    )]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// What the host says.
        source: std::io::Error,
    },
}

impl KvmError {
    /// For `map_err`: KVM refused `what`.
    pub(crate) fn refused(what: &'static str) -> impl Fn(kvm_ioctls::Error) -> Self {
        move |error| Self::Refused { what, source: error.into() }
    }
}

impl From<KvmError> for vcpu::EngineError {
    fn from(error: KvmError) -> Self {
        Self { engine: "kvm", what: error.to_string() }
    }
}
