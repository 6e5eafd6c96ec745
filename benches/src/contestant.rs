//! Who takes part: a name and a command line that boots a guest with its serial console on standard output.

use std::{ffi::OsString, process::Command};

use anyhow::{Context, Result, ensure};
use guest_images::Guest;

/// First argument by which this program becomes the `transvisor` command.
pub const OURSELVES: &str = "transvisor";

/// One contestant.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// For the table.
    pub name: String,
    /// Program and arguments.
    pub command: Vec<OsString>,
}

impl Contestant {
    /// Our engines. From the same bzImage as QEMU, entered alike; and as `transvisor run` does it, unpacked on the host.
    pub fn ours(guest: &Guest) -> Result<Vec<Self>> {
        let program = std::env::current_exe().context("finding this program")?;
        let contestant = |engine: &str, boot: &str| {
            let mut command: Vec<OsString> = vec![program.clone().into(), OURSELVES.into(), "run".into()];
            command
                .extend(["-q", "--stats", "--json", "--engine", engine, "--boot", boot].map(OsString::from));
            command.extend(common(guest));
            Self { name: format!("{engine}, {boot}"), command }
        };
        Ok(vec![
            contestant("translate", "bzimage"),
            contestant("translate", "auto"),
            contestant("interpret", "bzimage"),
        ])
    }

    /// QEMU's TCG with the same kernel, initramfs, command line and memory.
    pub fn qemu(program: &str, guest: &Guest) -> Result<Self> {
        let output = Command::new(program).arg("--version").output().with_context(|| {
            format!("starting {program}; install it with `apt-get install qemu-system-x86`")
        })?;
        let text = String::from_utf8_lossy(&output.stdout);
        let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1).unwrap_or("?");
        ensure!(output.status.success(), "{program} --version ended with {}", output.status);
        let mut command: Vec<OsString> = vec![program.into()];
        command.extend(["-accel", "tcg", "-cpu", "max", "-nographic"].map(OsString::from));
        command.extend(common(guest));
        Ok(Self { name: format!("QEMU {version} TCG"), command })
    }
}

/// What both understand.
fn common(guest: &Guest) -> Vec<OsString> {
    vec![
        "-kernel".into(),
        guest.kernel.clone().into(),
        "-initrd".into(),
        guest.initramfs.clone().into(),
        "-append".into(),
        guest.cmdline.clone().into(),
        "-m".into(),
        "512".into(),
        "-no-reboot".into(),
    ]
}
