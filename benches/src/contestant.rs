//! Who takes part: a name and a command line. A guest's serial console is on standard input and output.

use std::{ffi::OsString, path::Path, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use guest_images::Guest;
use serde::Serialize;

/// First argument by which this program becomes the `transvisor` command.
pub const OURSELVES: &str = "transvisor";

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
    /// Runs that are not measured, before the first that is: for what learns from run to run.
    pub warm_ups: usize,
}

/// A Transvisor: a program with words that make it one, and arguments to add.
struct Transvisor {
    name: String,
    program: Vec<OsString>,
    arguments: Vec<OsString>,
    warm_ups: usize,
}

/// Which contestants there are besides the engine itself.
#[derive(clap::Args, Clone, Debug)]
pub struct Peers {
    /// QEMU binary to run against; may be repeated
    #[arg(long, global = true, value_name = "PROGRAM", default_values_t = ["qemu-system-x86_64".to_owned()])]
    pub qemu: Vec<String>,
    /// Processor model for QEMU; each is a contestant, and the best of them is what ratios are to
    #[arg(long, global = true, value_name = "MODEL", default_values_t = ["max".to_owned(), "qemu64".to_owned()])]
    pub qemu_cpu: Vec<String>,
    /// Leave QEMU out
    #[arg(long, global = true)]
    pub no_qemu: bool,
    /// Another build of Transvisor to run against; may be repeated
    #[arg(long, global = true, value_name = "PROGRAM")]
    pub transvisor: Vec<PathBuf>,
    /// Transvisor once more with these arguments added, separated by spaces; may be repeated
    #[arg(long, global = true, value_name = "ARGUMENTS", allow_hyphen_values = true)]
    pub with: Vec<String>,
    /// Runs before the measured ones for contestants that `--with` adds
    #[arg(long, global = true, value_name = "N", default_value_t = 0)]
    pub warm_ups: usize,
    /// Also the interpreter alone
    #[arg(long, global = true)]
    pub interpret: bool,
}

impl Peers {
    /// Everything that is Transvisor.
    fn transvisors(&self) -> Result<Vec<Transvisor>> {
        let this = std::env::current_exe().context("finding this program")?;
        // This very program, so that what is measured is what was just built.
        let this: Vec<OsString> = vec![this.into(), OURSELVES.into()];
        let one = |name: String, program: &[OsString], arguments: Vec<OsString>, warm_ups| Transvisor {
            name,
            program: program.to_vec(),
            arguments,
            warm_ups,
        };
        let mut all = vec![one("translate".to_owned(), &this, vec![], 0)];
        for arguments in &self.with {
            let words = arguments.split_whitespace().map(OsString::from).collect();
            all.push(one(format!("translate {arguments}"), &this, words, self.warm_ups));
        }
        for program in &self.transvisor {
            ensure!(program.is_file(), "{} is not there", program.display());
            let name = format!("{} translate", program.display());
            all.push(one(name, &[program.clone().into()], vec![], 0));
        }
        if self.interpret {
            let words = ["--engine", "interpret"].map(OsString::from).to_vec();
            all.push(one("interpret".to_owned(), &this, words, 0));
        }
        Ok(all)
    }

    /// Everything that is Transvisor, with `guest` entered in the given way (`--boot`).
    pub fn ours(&self, guest: &Guest, boot: &str) -> Result<Vec<Contestant>> {
        let all = self.transvisors()?.into_iter().map(|transvisor| {
            let Transvisor { name, program: mut command, arguments, warm_ups } = transvisor;
            command.extend(["run", "-q", "--stats", "--json", "--boot", boot].map(OsString::from));
            command.extend(arguments);
            command.extend(common(guest, &guest.kernel));
            Contestant { name, family: Family::Ours, command, root: None, warm_ups }
        });
        Ok(all.collect())
    }

    /// Every QEMU, with `kernel` in the place of the guest's.
    pub fn qemus(&self, guest: &Guest, kernel: &Path) -> Result<Vec<Contestant>> {
        let mut all = Vec::new();
        for program in self.qemu.iter().filter(|_| !self.no_qemu) {
            let version = qemu_version(program)?;
            for model in &self.qemu_cpu {
                let mut command: Vec<OsString> = vec![program.into()];
                command.extend(["-accel", "tcg", "-cpu", model, "-nographic"].map(OsString::from));
                command.extend(common(guest, kernel));
                let name = format!("QEMU {version} {model}");
                all.push(Contestant { name, family: Family::Qemu, command, root: None, warm_ups: 0 });
            }
        }
        Ok(all)
    }
}

impl Contestant {
    /// A program on the host.
    pub fn native(program: &Path, root: Option<&Path>) -> Self {
        Self {
            name: "native".to_owned(),
            family: Family::Native,
            command: vec![program.into()],
            root: root.map(Path::to_owned),
            warm_ups: 0,
        }
    }
}

fn qemu_version(program: &str) -> Result<String> {
    let output = Command::new(program).arg("--version").output().with_context(|| {
        format!("starting {program}; install it with `apt-get install qemu-system-x86`, or say --no-qemu")
    })?;
    ensure!(output.status.success(), "{program} --version ended with {}", output.status);
    let text = String::from_utf8_lossy(&output.stdout);
    let version = text.split_whitespace().skip_while(|word| *word != "version").nth(1);
    Ok(version.with_context(|| format!("{program} --version says no version"))?.to_owned())
}

/// What both understand: one processor, and all else the same.
fn common(guest: &Guest, kernel: &Path) -> Vec<OsString> {
    vec![
        "-kernel".into(),
        kernel.into(),
        "-initrd".into(),
        guest.initramfs.clone().into(),
        "-append".into(),
        guest.cmdline.clone().into(),
        "-m".into(),
        (guest.memory >> 20).to_string().into(),
        "-no-reboot".into(),
    ]
}
