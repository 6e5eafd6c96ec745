//! What the host offers: is there a KVM, may we use it, and is it made of hardware.

use std::{
    io,
    path::{Path, PathBuf},
};

use kvm_ioctls::{Cap, Kvm};

use crate::{KvmError, speed};

/// Where KVM is, unless a configuration says otherwise.
pub const DEVICE: &str = "/dev/kvm";

/// The only API version there ever was.
const API_VERSION: i32 = 12;

/// What the engine can't do without.
const NEEDED: &[(Cap, &str)] = &[
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
    (Cap::X86UserSpaceMsr, "KVM_CAP_X86_USER_SPACE_MSR"),
    (Cap::X86MsrFilter, "KVM_CAP_X86_MSR_FILTER"),
    (Cap::UserNmi, "KVM_CAP_USER_NMI"),
    (Cap::VcpuEvents, "KVM_CAP_VCPU_EVENTS"),
    (Cap::Debugregs, "KVM_CAP_DEBUGREGS"),
    (Cap::Xcrs, "KVM_CAP_XCRS"),
];

/// An instruction takes a hardware-assisted guest as long as the host: a loop of two instructions a round runs at a
/// billion instructions a second. A software emulation of the processor reaches a hundredth of it.
const HARDWARE_SPEED: f64 = 100e6;

/// What executes a KVM guest's instructions.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Backing {
    /// The processor.
    Hardware,
    /// Software: KVM's own instruction emulator, or one that answers in its place. Correct at best, and slow.
    Emulated,
}

impl std::fmt::Display for Backing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Hardware => "hardware",
            Self::Emulated => "emulated",
        })
    }
}

/// An opened KVM that can do what the engine needs.
#[derive(Debug)]
pub struct Host {
    pub(crate) kvm: Kvm,
    path: PathBuf,
}

impl Host {
    /// Opens the device.
    pub fn open(path: &Path) -> Result<Self, KvmError> {
        use std::os::unix::ffi::OsStrExt;
        let name = std::ffi::CString::new(path.as_os_str().as_bytes())
            .map_err(|_| KvmError::Missing(path.to_owned()))?;
        let kvm = Kvm::new_with_path(&name).map_err(|error| {
            let source = io::Error::from(error);
            let path = path.to_owned();
            match source.kind() {
                io::ErrorKind::NotFound => KvmError::Missing(path),
                io::ErrorKind::PermissionDenied => KvmError::NotPermitted(path),
                _ => KvmError::Open { path, source },
            }
        })?;
        let version = kvm.get_api_version();
        if version != API_VERSION {
            return Err(KvmError::Version { path: path.to_owned(), version });
        }
        match NEEDED.iter().find(|(capability, _)| !kvm.check_extension(*capability)) {
            Some((_, name)) => Err(KvmError::Lacks(name)),
            None => Ok(Self { kvm, path: path.to_owned() }),
        }
    }

    /// The device.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Guest instructions a second, by a guest of a few bytes that counts down.
    pub fn speed(&self) -> Result<f64, KvmError> {
        speed::measure(self)
    }

    /// Whether the processor or a program executes guests. It is measured, because what a host says of itself (the
    /// processor's flags, the modules that are loaded) does not tell what answers behind the device.
    pub fn backing(&self) -> Result<Backing, KvmError> {
        Ok(backing_of(self.speed()?))
    }

    /// Whether the guest's TSC can have another frequency than the host's.
    pub fn scales_tsc(&self) -> bool {
        self.kvm.check_extension(Cap::TscControl)
    }

    /// Most virtual processors of a machine.
    pub fn most_processors(&self) -> usize {
        self.kvm.get_max_vcpus()
    }

    /// Most memory regions of a machine.
    pub fn memory_slots(&self) -> usize {
        self.kvm.get_nr_memslots()
    }

    /// CPUID features that the translating engine announces and this KVM can't give, as `leaf.subleaf.register:bit`.
    pub fn missing_features(&self) -> Result<Vec<String>, KvmError> {
        crate::cpuid::missing(&self.kvm)
    }
}

/// See [`Host::backing`].
pub fn backing_of(instructions_per_second: f64) -> Backing {
    if instructions_per_second < HARDWARE_SPEED { Backing::Emulated } else { Backing::Hardware }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_device_is_said_to_be_missing() {
        let error = Host::open(Path::new("/nonexistent/kvm")).unwrap_err();
        assert!(matches!(error, KvmError::Missing(_)));
        let text = error.to_string();
        assert!(
            text.contains("/nonexistent/kvm is not there") && text.contains("--engine translate"),
            "{text}"
        );
    }

    #[test]
    fn another_device_is_no_kvm() {
        let text = Host::open(Path::new("/dev/null")).unwrap_err().to_string();
        assert!(text.contains("no KVM that we know"), "{text}");
    }

    #[test]
    fn speed_tells_hardware_from_software() {
        assert_eq!(backing_of(1e6), Backing::Emulated);
        assert_eq!(backing_of(30e6), Backing::Emulated);
        assert_eq!(backing_of(1e9), Backing::Hardware);
    }
}
