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
    comparison::{Comparison, Section},
    contestant::{Contestant, Family, qemu_version},
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
const VERSION: u32 = 1;
/// The guest that boots, and whose kernel the loops run on.
const GUEST: &str = "debian";

/// What everything needs, for the reader of the columns.
const NEEDS: [&str; 4] = [
    "translate and interpret need nothing of the host but its processor, and nothing of the guest: it is unmodified",
    "kvm needs VT-x or AMD-V and access to /dev/kvm; the guest is unmodified",
    "Paravirtual features of the guest's boot, under translate, interpret and kvm alike: kvmclock and x2APIC; there is no column of \
     hypercalls",
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
        needs: NEEDS.map(str::to_owned).to_vec(),
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

    /// Everyone, with these arguments, which both spell alike. `emulated`: also a KVM that is one.
    fn contestants(
        &self,
        arguments: &CompareArguments,
        common: &[OsString],
        emulated: bool,
    ) -> Result<Vec<Contestant>> {
        let mut all = Vec::new();
        let kvm = self.kvm.filter(|backing| emulated || *backing == Backing::Hardware);
        let mut engines = vec![("translate", false), ("interpret", false)];
        engines.extend(kvm.map(|backing| ("kvm", backing == Backing::Emulated)));
        for (engine, emulated) in engines {
            let mut command: Vec<OsString> = vec![self.this.clone().into()];
            command.extend(
                ["run", "-q", "--boot", "bzimage", "--stats", "--json", "--engine", engine]
                    .map(OsString::from),
            );
            if engine == "kvm" {
                command.extend(["--kvm-device".into(), arguments.kvm_device.clone().into()]);
            }
            command.extend_from_slice(common);
            all.push(contestant(engine.to_owned(), Family::Ours, command, emulated));
        }
        if let Some((program, version)) = &self.qemu {
            let mut accelerators = vec![("TCG", ["-accel", "tcg", "-cpu", "max"], false)];
            accelerators.extend(
                kvm.map(|backing| ("KVM", ["-accel", "kvm", "-cpu", "host"], backing == Backing::Emulated)),
            );
            for (name, words, emulated) in accelerators {
                let mut command: Vec<OsString> = vec![program.clone().into()];
                command.extend(words.map(OsString::from));
                command.push("-nographic".into());
                command.extend_from_slice(common);
                all.push(contestant(format!("QEMU {version} {name}"), Family::Qemu, command, emulated));
            }
        }
        chosen(arguments, all)
    }
}

fn contestant(name: String, family: Family, command: Vec<OsString>, emulated: bool) -> Contestant {
    Contestant { name, family, command, root: None, emulated, warm_ups: 0 }
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

fn patience(arguments: &CompareArguments) -> Duration {
    Duration::from_secs(arguments.timeout)
}

fn progress() -> TerminalProgress {
    TerminalProgress::new(false)
}

fn nanobench(arguments: &CompareArguments, field: &Field, cache: &CacheDir) -> Result<Section> {
    let kernel = guest_images::workloads::nanobench(cache, &mut progress())?;
    let common = ["-kernel".into(), kernel.into(), "-m".into(), "64".into(), "-no-reboot".into()];
    let mut contestants = field.contestants(arguments, &common, true)?;
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
    let contestants = field.contestants(arguments, &guest.arguments(&guest.kernel), false)?;
    let group = Group { name: "boot from the bzImage", contestants };
    let results = boot::run(&group, guest.memory, arguments.rounds, patience(arguments))?;
    Ok(Section::of_boots(&results, &group.contestants))
}

fn compute(arguments: &CompareArguments, field: &Field, cache: &CacheDir) -> Result<Section> {
    let loops = guest_images::workloads::loops(GUEST, cache, &mut progress())?;
    let native = Contestant::native(Path::new(&loops.program), None);
    let mut contestants = vec![native.clone()];
    contestants.extend(field.contestants(arguments, &loops.guest.arguments(&loops.guest.kernel), false)?);
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
