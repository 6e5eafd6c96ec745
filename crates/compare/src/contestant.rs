//! Who takes part: a name and a command line. A guest's serial console is on standard input and output.

use std::{ffi::OsString, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use serde::Serialize;

/// What kind of contestant.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Family {
    /// Transvisor.
    Ours,
    /// QEMU: what the ratios are to.
    Qemu,
    /// No guest: the program on the host.
    Native,
}

/// How a guest is run, as the literature tells techniques apart.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Technique {
    /// Full virtualization by translation.
    Translation,
    /// Every instruction interpreted.
    Interpretation,
    /// The processor's own virtualization.
    Hardware,
    /// The guest knows, and asks the monitor.
    Paravirtualization,
    /// No virtualization.
    Native,
}

impl Technique {
    /// What people call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Translation => "translation",
            Self::Interpretation => "interpretation",
            Self::Hardware => "hardware assistance",
            Self::Paravirtualization => "paravirtualization",
            Self::Native => "native",
        }
    }

    /// What it needs of the host.
    pub fn needs_of_host(self) -> &'static str {
        match self {
            Self::Translation | Self::Interpretation => "nothing but its processor",
            Self::Hardware => "VT-x or AMD-V, and access to /dev/kvm",
            Self::Paravirtualization => {
                "as much as what it is added to: translation nothing, hardware assistance VT-x or AMD-V"
            }
            Self::Native => "to be trusted with the program",
        }
    }

    /// What it needs of the guest.
    pub fn needs_of_guest(self) -> &'static str {
        match self {
            Self::Translation | Self::Interpretation | Self::Hardware => {
                "nothing: it is unmodified, and told of no features of a hypervisor"
            }
            Self::Paravirtualization => {
                "to be changed: hypercalls in the place of privileged operations (nanobench), a kernel that knows KVM's \
                 features (Debian's does)"
            }
            Self::Native => "to be a program for the host's kernel",
        }
    }
}

/// One contestant.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// For the table.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// How it runs its guest.
    pub technique: Technique,
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// The directory that it sees as its root, if not the host's.
    pub root: Option<PathBuf>,
    /// By a KVM that is an emulation.
    pub emulated: bool,
    /// Runs that are not measured, before the first that is: for what learns from run to run.
    pub warm_ups: usize,
}

impl Contestant {
    /// For tests: a shell's script in the place of a monitor.
    #[cfg(test)]
    pub(crate) fn script(name: &str, script: &str) -> Self {
        let mut contestant = Self::native("/bin/sh".as_ref(), None);
        contestant.command.extend(["-c".into(), script.into()]);
        Self { name: name.into(), family: Family::Ours, ..contestant }
    }

    /// A program on the host.
    pub fn native(program: &Path, root: Option<&Path>) -> Self {
        Self {
            name: "native".to_owned(),
            family: Family::Native,
            technique: Technique::Native,
            command: vec![program.into()],
            root: root.map(Path::to_owned),
            emulated: false,
            warm_ups: 0,
        }
    }
}

/// The version of a QEMU binary.
pub fn qemu_version(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output().with_context(|| {
        format!("starting {program}; install it with `apt-get install qemu-system-x86`, or say --no-qemu")
    })?;
    ensure!(output.status.success(), "{program} --version ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(version.with_context(|| format!("{program} --version says no version"))?.to_owned())
}
