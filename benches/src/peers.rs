//! Who takes part: every build of Transvisor, and every QEMU.

use std::{ffi::OsString, path::Path, path::PathBuf};

use anyhow::{Context, Result, ensure};
use compare::contestant::{Contestant, Family, Technique, qemu_version};
use guest_images::Guest;

/// First argument by which this program becomes the `transvisor` command.
pub const OURSELVES: &str = "transvisor";

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
    ///
    /// They keep no translations, so that the last round is like the first.
    pub fn ours(&self, guest: &Guest, boot: &str) -> Result<Vec<Contestant>> {
        let all = self.transvisors()?.into_iter().map(|transvisor| {
            let Transvisor { name, program: mut command, arguments, warm_ups } = transvisor;
            let keeps = keeps_translations(&command);
            command.extend(["run", "-q", "--stats", "--json", "--boot", boot].map(OsString::from));
            if keeps {
                command.extend(["--translation-cache", "off"].map(OsString::from));
            }
            command.extend(arguments);
            command.extend(guest.arguments(&guest.kernel));
            let technique = Technique::Translation;
            Contestant {
                name,
                family: Family::Ours,
                technique,
                command,
                root: None,
                emulated: false,
                warm_ups,
            }
        });
        Ok(all.collect())
    }

    /// This program, taking its translations from `file`, which its unmeasured first boot has made: the second boot.
    pub fn second(&self, guest: &Guest, boot: &str, file: &Path) -> Result<Contestant> {
        let first = self.ours(guest, boot)?.into_iter().next().context("this program takes part")?;
        let mut command = first.command;
        command.extend(["--translation-cache".into(), file.into()]);
        Ok(Contestant { name: "translate, second boot".to_owned(), command, warm_ups: 1, ..first })
    }

    /// Every QEMU, with `kernel` in the place of the guest's.
    pub fn qemus(&self, guest: &Guest, kernel: &Path) -> Result<Vec<Contestant>> {
        let mut all = Vec::new();
        for program in self.qemu.iter().filter(|_| !self.no_qemu) {
            let version = qemu_version(program)?;
            for model in &self.qemu_cpu {
                let mut command: Vec<OsString> = vec![program.into()];
                command.extend(["-accel", "tcg", "-cpu", model, "-nographic"].map(OsString::from));
                command.extend(guest.arguments(kernel));
                let name = format!("QEMU {version} {model}");
                all.push(Contestant {
                    name,
                    family: Family::Qemu,
                    technique: Technique::Translation,
                    command,
                    root: None,
                    emulated: false,
                    warm_ups: 0,
                });
            }
        }
        Ok(all)
    }
}

/// Whether a Transvisor can be told to keep no translations; older builds never do.
fn keeps_translations(program: &[OsString]) -> bool {
    let Some((program, words)) = program.split_first() else { return false };
    let help = std::process::Command::new(program).args(words).args(["run", "--help"]).output();
    help.is_ok_and(|help| String::from_utf8_lossy(&help.stdout).contains("--translation-cache"))
}
