//! `transvisor compare`: the same guests under every engine that this host has, and under QEMU where it is installed.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use compare::{
    boot::{self, Group},
    chart,
    comparison::{Comparison, Section, needs},
    contestant::{Contestant, Family, Technique, qemu_version},
    nanobench, workloads,
};
use guest_images::CacheDir;
use kvm::{Backing, Host};

use crate::{
    arguments::{CompareArguments, Contest},
    doctor,
    progress::TerminalProgress,
};

/// Version of `--json`.
const VERSION: u32 = 2;
/// The guest that boots, and whose kernel the loops run on.
const GUEST: &str = "debian";

/// For the reader of the figures.
const NOTES: [&str; 2] = [
    "\"+ paravirt\" has the features of docs/hypercalls.md announced (kvmclock, x2APIC, PV EOI, hypercalls), all other columns of ours have \
     --no-paravirt; nanobench then measures hypercalls, and only operations that have one",
    "nanobench's unit is nanoseconds by the guest's TSC, which is calibrated against the PIT; times the host's GHz they are cycles",
];

/// `transvisor compare`
pub fn run(arguments: &CompareArguments) -> Result<u8> {
    ensure!(arguments.rounds > 0, "--rounds 0: give at least 1");
    if let Some(html) = &arguments.html {
        // Before hours of measurement, not after.
        std::fs::write(html, "")
            .with_context(|| format!("--html {}: name a file that can be written", html.display()))?;
    }
    let cache = match &arguments.cache_dir {
        Some(path) => CacheDir::new(path),
        None => CacheDir::from_environment()?,
    };
    let mut field = Field::look(arguments)?;
    let mut sections = Vec::new();
    if arguments.wants(Contest::Nanobench) {
        sections.push(nanobench(arguments, &field, &cache)?);
    }
    if arguments.wants(Contest::Boot) {
        sections.push(boots(arguments, &field, &cache)?);
    }
    if arguments.wants(Contest::Compute) {
        sections.push(compute(arguments, &field, &cache)?);
    }
    if field.kvm == Some(Backing::Emulated) && sections.iter().any(|section| section.name != "nanobench") {
        field
            .left_out
            .push("boot and compute under KVM: it is an emulation, which tells nothing of hardware".into());
    }
    let comparison = Comparison {
        version: VERSION,
        host: describe_host(),
        rounds: arguments.rounds,
        needs: needs(&sections),
        notes: NOTES.map(str::to_owned).to_vec(),
        left_out: field.left_out,
        sections,
    };
    if let Some(html) = &arguments.html {
        std::fs::write(html, chart::page(&comparison))
            .with_context(|| format!("writing {}", html.display()))?;
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&comparison)?);
    } else {
        print!("{comparison}");
    }
    Ok(0)
}

/// What this host has to run guests with.
struct Field {
    this: PathBuf,
    kvm: Option<Backing>,
    /// Program and version.
    qemu: Option<(PathBuf, String)>,
    left_out: Vec<String>,
}

impl Field {
    fn look(arguments: &CompareArguments) -> Result<Self> {
        let this = std::env::current_exe().context("finding this program")?;
        let mut left_out = Vec::new();
        let kvm = match Host::open(&arguments.kvm_device).and_then(|host| host.backing()) {
            Ok(backing) => Some(backing),
            Err(error) => {
                left_out.push(format!("kvm: {error}"));
                None
            }
        };
        let qemu = match qemu_version(&arguments.qemu.to_string_lossy()) {
            _ if arguments.no_qemu => None,
            Ok(version) => Some((arguments.qemu.clone(), version)),
            Err(_) => {
                let program = arguments.qemu.display();
                left_out.push(format!(
                    "QEMU: {program} does not start; `apt-get install qemu-system-x86` brings it"
                ));
                None
            }
        };
        Ok(Self { this, kvm, qemu, left_out })
    }

    /// Everyone, with these arguments, which both spell alike.
    fn contestants(
        &self,
        arguments: &CompareArguments,
        common: &[OsString],
        rules: Rules,
    ) -> Result<Vec<Contestant>> {
        let mut all = self.ours(arguments, common, rules);
        all.extend(self.qemus(common, rules));
        chosen(arguments, all)
    }

    /// The KVM that takes part, if one does, and whether it is an emulation.
    fn kvm(&self, rules: Rules) -> Option<bool> {
        let kvm = self.kvm.filter(|backing| rules.emulated || *backing == Backing::Hardware);
        kvm.map(|backing| backing == Backing::Emulated)
    }

    fn ours(&self, arguments: &CompareArguments, common: &[OsString], rules: Rules) -> Vec<Contestant> {
        let mut engines = vec![
            ("translate", Technique::Translation, false),
            ("translate", Technique::Paravirtualization, false),
            ("interpret", Technique::Interpretation, false),
        ];
        if let Some(emulated) = self.kvm(rules) {
            engines.push(("kvm", Technique::Hardware, emulated));
            if rules.kvm_features {
                engines.push(("kvm", Technique::Paravirtualization, emulated));
            }
        }
        let contestant = |(engine, technique, emulated)| {
            let mut command: Vec<OsString> = vec![self.this.clone().into()];
            command.extend(
                [
                    "run",
                    "-q",
                    "--boot",
                    "bzimage",
                    "--stats",
                    "--json",
                    "--translation-cache",
                    "off",
                    "--engine",
                    engine,
                ]
                .map(OsString::from),
            );
            if engine == "kvm" {
                command.extend(["--kvm-device".into(), arguments.kvm_device.clone().into()]);
            }
            if technique != Technique::Paravirtualization {
                command.push("--no-paravirt".into());
            }
            command.extend_from_slice(common);
            contestant(engine.to_owned(), Family::Ours, technique, command, emulated)
        };
        engines.into_iter().map(contestant).collect()
    }

    fn qemus(&self, common: &[OsString], rules: Rules) -> Vec<Contestant> {
        let Some((program, version)) = &self.qemu else { return vec![] };
        let mut accelerators = vec![("TCG", Technique::Translation, ["tcg", "max"], false)];
        if let Some(emulated) = self.kvm(rules) {
            accelerators.push(("KVM", Technique::Hardware, ["kvm", "host,kvm=off"], emulated));
            if rules.kvm_features {
                accelerators.push(("KVM", Technique::Paravirtualization, ["kvm", "host"], emulated));
            }
        }
        let contestant = |(name, technique, [accelerator, processor], emulated): (&str, _, [&str; 2], _)| {
            let mut command: Vec<OsString> = vec![program.clone().into()];
            command.extend(["-accel", accelerator, "-cpu", processor, "-nographic"].map(OsString::from));
            command.extend_from_slice(common);
            contestant(format!("QEMU {version} {name}"), Family::Qemu, technique, command, emulated)
        };
        accelerators.into_iter().map(contestant).collect()
    }
}

/// Who takes part in a contest.
#[derive(Clone, Copy)]
struct Rules {
    /// Also a KVM that is an emulation.
    emulated: bool,
    /// The guest makes use of KVM's paravirtual features.
    kvm_features: bool,
}

fn contestant(
    mut name: String,
    family: Family,
    technique: Technique,
    command: Vec<OsString>,
    emulated: bool,
) -> Contestant {
    if technique == Technique::Paravirtualization {
        name.push_str(" + paravirt");
    }
    Contestant { name, family, technique, command, root: None, emulated, warm_ups: 0 }
}

/// Those that `--only` names.
fn chosen(arguments: &CompareArguments, all: Vec<Contestant>) -> Result<Vec<Contestant>> {
    let names: Vec<_> = all.iter().map(|contestant| contestant.name.clone()).collect();
    let wanted = |name: &str| {
        arguments.only.is_empty() || arguments.only.iter().any(|text| name.contains(text.as_str()))
    };
    let chosen: Vec<_> = all.into_iter().filter(|contestant| wanted(&contestant.name)).collect();
    ensure!(!chosen.is_empty(), "--only leaves nobody; there are: {}", names.join(", "));
    Ok(chosen)
}

/// For guests with a Linux kernel.
const LINUX: Rules = Rules { emulated: false, kvm_features: true };

fn patience(arguments: &CompareArguments) -> Duration {
    Duration::from_secs(arguments.timeout)
}

fn progress() -> TerminalProgress {
    TerminalProgress::new(false)
}

fn nanobench(arguments: &CompareArguments, field: &Field, cache: &CacheDir) -> Result<Section> {
    let kernel = guest_images::workloads::nanobench(cache, &mut progress())?;
    let common = ["-kernel".into(), kernel.into(), "-m".into(), "64".into(), "-no-reboot".into()];
    // Of hypercalls it knows our own, which KVM has not.
    let rules = Rules { emulated: true, kvm_features: false };
    let mut contestants = field.contestants(arguments, &common, rules)?;
    for contestant in &mut contestants {
        // It is no bzImage.
        if let Some(word) = contestant.command.iter_mut().find(|word| *word == "bzimage") {
            *word = "auto".into();
        }
    }
    Ok(nanobench::race(&contestants, arguments.rounds, patience(arguments)))
}

fn boots(arguments: &CompareArguments, field: &Field, cache: &CacheDir) -> Result<Section> {
    let guest = guest_images::fetch(GUEST, cache, &mut progress())?;
    let contestants = field.contestants(arguments, &guest.arguments(&guest.kernel), LINUX)?;
    let group = Group { name: "boot from the bzImage", contestants };
    let results = boot::run(&group, guest.memory, arguments.rounds, patience(arguments));
    Ok(Section::of_boots(&results, &group.contestants))
}

fn compute(arguments: &CompareArguments, field: &Field, cache: &CacheDir) -> Result<Section> {
    let loops = guest_images::workloads::loops(GUEST, cache, &mut progress())?;
    let native = Contestant::native(Path::new(&loops.program), None);
    let mut contestants = vec![native.clone()];
    contestants.extend(field.contestants(arguments, &loops.guest.arguments(&loops.guest.kernel), LINUX)?);
    let rules = workloads::Rules {
        rounds: arguments.rounds,
        workloads: &arguments.workload,
        patience: patience(arguments),
    };
    let results = workloads::run(&native, &contestants, &rules)?;
    Ok(Section::of_workloads(&results, &contestants))
}

/// The host, named by its features.
fn describe_host() -> String {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let processor = doctor::processor(&cpuinfo);
    let extensions = processor.extensions.as_deref().unwrap_or("no vmx, no svm");
    let guest = if processor.virtualized { ", itself a guest" } else { "" };
    let mhz =
        cpuinfo.lines().find_map(|line| line.strip_prefix("cpu MHz")).and_then(|rest| rest.split(':').nth(1));
    let mhz = mhz.map_or(String::new(), |mhz| format!(" at {} MHz", mhz.trim()));
    format!("{} x {}{mhz}, {extensions}{guest}", processor.processors, processor.model)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Arguments, Command};

    fn contestants(kvm: Option<Backing>, rules: Rules) -> Vec<Contestant> {
        let Command::Compare(arguments) =
            Arguments::parse_from(["transvisor", "compare", "--kvm-device", "/dev/other"]).command
        else {
            panic!("it says compare");
        };
        let qemu = Some(("qemu".into(), "9".to_owned()));
        let field = Field { this: "transvisor".into(), kvm, qemu, left_out: vec![] };
        field.contestants(&arguments, &["-m".into(), "64".into()], rules).unwrap()
    }

    fn line(contestants: &[Contestant], name: &str) -> (Technique, bool, String) {
        let contestant = contestants.iter().find(|contestant| contestant.name == name).unwrap();
        let words: Vec<_> = contestant.command.iter().map(|word| word.to_string_lossy()).collect();
        (contestant.technique, contestant.emulated, words.join(" "))
    }

    #[test]
    fn with_kvm_in_hardware_each_technique_takes_part() {
        let all = contestants(Some(Backing::Hardware), LINUX);
        let names: Vec<_> = all.iter().map(|contestant| contestant.name.as_str()).collect();
        assert_eq!(
            names,
            [
                "translate",
                "translate + paravirt",
                "interpret",
                "kvm",
                "kvm + paravirt",
                "QEMU 9 TCG",
                "QEMU 9 KVM",
                "QEMU 9 KVM + paravirt"
            ]
        );
        let ours = "transvisor run -q --boot bzimage --stats --json --translation-cache off --engine";
        let expected = (Technique::Translation, false, format!("{ours} translate --no-paravirt -m 64"));
        assert_eq!(line(&all, "translate"), expected);
        let expected = (Technique::Paravirtualization, false, format!("{ours} translate -m 64"));
        assert_eq!(line(&all, "translate + paravirt"), expected);
        let (technique, _, words) = line(&all, "kvm");
        assert_eq!(technique, Technique::Hardware);
        assert_eq!(words, format!("{ours} kvm --kvm-device /dev/other --no-paravirt -m 64"));
        let (_, _, words) = line(&all, "kvm + paravirt");
        assert!(!words.contains("--no-paravirt"), "{words}");
        let (technique, _, words) = line(&all, "QEMU 9 KVM");
        assert!(technique == Technique::Hardware && words.contains("-cpu host,kvm=off "), "{words}");
        assert!(line(&all, "QEMU 9 KVM + paravirt").2.contains("-cpu host "));
    }

    #[test]
    fn an_emulation_takes_part_only_where_it_is_labelled() {
        assert!(contestants(Some(Backing::Emulated), LINUX).iter().all(|one| !one.name.contains("kvm")));
        let rules = Rules { emulated: true, kvm_features: false };
        let all = contestants(Some(Backing::Emulated), rules);
        assert!(line(&all, "kvm").1 && line(&all, "QEMU 9 KVM").1 && !line(&all, "translate").1);
        assert!(all.iter().all(|one| one.name != "kvm + paravirt"));
        assert_eq!(contestants(None, rules).len(), 4);
    }
}
