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

/// One contestant.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// For the table.
    pub name: String,
    /// What it is.
    pub family: Family,
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
    /// A program on the host.
    pub fn native(program: &Path, root: Option<&Path>) -> Self {
        Self {
            name: "native".to_owned(),
            family: Family::Native,
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
