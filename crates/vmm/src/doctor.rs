//! `transvisor doctor`: what this host offers to each engine, and what to do about what it does not.

use std::{fmt, path::Path};

use kvm::{Backing, Host, KvmError};
use serde::Serialize;

use crate::{arguments::DoctorArguments, size::Size};

/// Everything that was found.
#[derive(Debug, Serialize)]
pub struct Findings {
    /// The processor.
    pub processor: Processor,
    /// The engine that needs no help.
    pub translation: Translation,
    /// The hardware-assisted engine.
    pub kvm: Kvm,
    /// What bounds a guest here.
    pub limits: Limits,
    /// What `--engine auto` takes.
    pub automatic: &'static str,
    /// What to do, most important first.
    pub advice: Vec<String>,
}

/// The processor, as /proc/cpuinfo has it.
#[derive(Debug, Default, Serialize)]
pub struct Processor {
    /// Model name.
    pub model: String,
    /// Virtualization extensions: `vmx`, `svm` or none.
    pub extensions: Option<String>,
    /// This host is itself a guest.
    pub virtualized: bool,
    /// Number of processors.
    pub processors: usize,
}

/// Whether translation works.
#[derive(Debug, Serialize)]
pub struct Translation {
    /// It does.
    pub works: bool,
    /// Why not.
    pub problem: Option<String>,
}

/// What is behind the device.
#[derive(Debug, Default, Serialize)]
pub struct Kvm {
    /// The device.
    pub device: String,
    /// The device is there.
    pub present: bool,
    /// It opens.
    pub permitted: bool,
    /// A guest runs.
    pub works: bool,
    /// `hardware` or `emulated`, as its speed tells.
    pub backing: Option<String>,
    /// Millions of guest instructions a second.
    pub speed: Option<f64>,
    /// Kernel modules that are loaded.
    pub modules: Vec<String>,
    /// A guest's TSC can have the frequency that translation gives it.
    pub scales_tsc: Option<bool>,
    /// CPUID features that translation announces and this KVM can't: `leaf.subleaf.register:bit`.
    pub missing_features: Vec<String>,
    /// Most virtual processors.
    pub most_processors: Option<usize>,
    /// Most memory regions.
    pub memory_slots: Option<usize>,
    /// What is wrong.
    pub problem: Option<String>,
}

/// What bounds a guest.
#[derive(Debug, Serialize)]
pub struct Limits {
    /// Memory, bytes.
    pub memory: Option<u64>,
    /// Memory that is available now, bytes.
    pub available: Option<u64>,
    /// Most bytes of address space for this process; `None`: unlimited.
    pub address_space: Option<u64>,
}

/// `transvisor doctor`: 0 if some engine works.
pub fn run(arguments: &DoctorArguments) -> anyhow::Result<u8> {
    let findings = examine(&arguments.kvm_device);
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&findings)?);
    } else {
        println!("{findings}");
    }
    Ok(u8::from(!(findings.translation.works || findings.kvm.works)))
}

/// Looks at everything.
pub fn examine(device: &Path) -> Findings {
    let processor = processor(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default());
    let translation = translation();
    let kvm = kvm(device);
    let hardware = kvm.backing.as_deref() == Some("hardware");
    let advice = advise(&processor, &translation, &kvm);
    let automatic = if hardware { "kvm" } else { "translate" };
    Findings { processor, translation, kvm, limits: limits(), automatic, advice }
}

/// What /proc/cpuinfo says.
pub fn processor(cpuinfo: &str) -> Processor {
    let field = |name: &str| {
        cpuinfo.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            (key.trim() == name).then(|| value.trim().to_owned())
        })
    };
    let flags = field("flags").unwrap_or_default();
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    Processor {
        model: field("model name").unwrap_or_else(|| "unknown".into()),
        extensions: ["vmx", "svm"].into_iter().find(|flag| has(flag)).map(str::to_owned),
        virtualized: has("hypervisor"),
        processors: std::thread::available_parallelism().map_or(1, usize::from),
    }
}

/// Makes an engine, which checks the processor's features, the memory for code and the compiler.
fn translation() -> Translation {
    let result = memory::Ram::new(1 << 20).map_err(|error| error.to_string()).and_then(|ram| {
        let engine = runtime::Engine::new(runtime::EngineConfig::default(), ram, vcpu::Clock::host());
        engine.map(drop).map_err(|error| error.to_string())
    });
    Translation { works: result.is_ok(), problem: result.err() }
}

fn kvm(device: &Path) -> Kvm {
    let modules = ["kvm_intel", "kvm_amd", "kvm_pvm", "kvm"];
    let loaded = |module: &&str| Path::new("/sys/module").join(module).is_dir();
    let mut found = Kvm {
        device: device.display().to_string(),
        modules: modules.iter().filter(|module| loaded(module)).map(|module| (*module).to_owned()).collect(),
        ..Kvm::default()
    };
    let host = match Host::open(device) {
        Ok(host) => host,
        Err(error) => {
            found.present = !matches!(error, KvmError::Missing(_));
            found.permitted = matches!(error, KvmError::Version { .. } | KvmError::Lacks(_));
            found.problem = Some(error.to_string());
            return found;
        }
    };
    (found.present, found.permitted) = (true, true);
    found.scales_tsc = Some(host.scales_tsc());
    found.most_processors = Some(host.most_processors());
    found.memory_slots = Some(host.memory_slots());
    let measured = host.speed().and_then(|speed| {
        found.speed = Some(speed / 1e6);
        found.backing = Some(kvm::host::backing_of(speed).to_string());
        found.missing_features = host.missing_features()?;
        Ok(())
    });
    found.works = measured.is_ok();
    found.problem = measured.err().map(|error| error.to_string());
    found
}

fn limits() -> Limits {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let field = |name: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
        Some(kib << 10)
    };
    Limits {
        memory: field("MemTotal:"),
        available: field("MemAvailable:"),
        address_space: rustix::process::getrlimit(rustix::process::Resource::As).current,
    }
}

fn advise(processor: &Processor, translation: &Translation, kvm: &Kvm) -> Vec<String> {
    let mut advice = Vec::new();
    let emulated = Backing::Emulated.to_string();
    if kvm.backing.as_deref() == Some(&emulated) {
        advice.push(format!(
            "{} answers, but its guests run in software at {:.1} M instructions/s: use --engine translate, and publish no \
             measurement of this KVM",
            kvm.device,
            kvm.speed.unwrap_or_default()
        ));
    }
    if let Some(problem) = &kvm.problem {
        advice.push(problem.clone());
    }
    if kvm.backing.as_deref() != Some("hardware") {
        advice.push(match (&processor.extensions, processor.virtualized) {
            (Some(extensions), _) => format!(
                "the processor has {extensions}: load {} (`modprobe`) to have KVM in hardware",
                if extensions == "vmx" { "kvm_intel" } else { "kvm_amd" }
            ),
            (None, true) => "this host is a guest without nested virtualization: hardware KVM needs another machine type, \
                             or nesting switched on in its hypervisor"
                .into(),
            (None, false) => "the processor shows no vmx or svm: look for VT-x or SVM in the firmware's setup".into(),
        });
    }
    if let Some(problem) = &translation.problem {
        advice.push(problem.clone());
    }
    advice
}

impl fmt::Display for Findings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let yes = |yes: bool| if yes { "yes" } else { "no" };
        let size = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unlimited".into(), |bytes| Size(bytes >> 20 << 20).to_string())
        };
        let Self { processor, translation, kvm, limits, .. } = self;
        let extensions = processor.extensions.as_deref().unwrap_or("no vmx, no svm");
        let guest = if processor.virtualized { ", itself a guest" } else { "" };
        writeln!(f, "processor    {} x {}, {extensions}{guest}", processor.processors, processor.model)?;
        writeln!(f, "translation  {}", translation.problem.as_deref().unwrap_or("works"))?;
        writeln!(
            f,
            "KVM          {}: present {}, permitted {}, works {}",
            kvm.device,
            yes(kvm.present),
            yes(kvm.permitted),
            yes(kvm.works)
        )?;
        if let (Some(backing), Some(speed)) = (&kvm.backing, kvm.speed) {
            writeln!(
                f,
                "             {backing}: {speed:.1} M guest instructions/s; modules {}",
                kvm.modules.join(" ")
            )?;
        }
        if let (Some(scales), Some(processors), Some(slots)) =
            (kvm.scales_tsc, kvm.most_processors, kvm.memory_slots)
        {
            writeln!(
                f,
                "             TSC scaling {}, up to {processors} processors and {slots} memory regions",
                yes(scales)
            )?;
        }
        if !kvm.missing_features.is_empty() {
            writeln!(f, "             lacks CPUID features {}", kvm.missing_features.join(" "))?;
        }
        writeln!(
            f,
            "limits       {} of memory, {} available; address space {}",
            size(limits.memory),
            size(limits.available),
            size(limits.address_space)
        )?;
        write!(f, "--engine auto takes {}", self.automatic)?;
        for advice in &self.advice {
            write!(f, "\n- {advice}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_read() {
        let text = "processor\t: 0\nmodel name\t: A processor\nflags\t\t: fpu svm_lock vmx hypervisor\n";
        let found = processor(text);
        assert_eq!(found.model, "A processor");
        assert_eq!((found.extensions.as_deref(), found.virtualized), (Some("vmx"), true));
        assert_eq!(processor("flags : svm_lock").extensions, None);
    }

    #[test]
    fn a_missing_device_is_told_with_what_to_do() {
        let findings = examine(Path::new("/nonexistent/kvm"));
        assert!(!findings.kvm.present && !findings.kvm.permitted && !findings.kvm.works);
        assert_eq!(findings.automatic, "translate");
        assert!(findings.translation.works);
        let text = findings.to_string();
        assert!(text.contains("/nonexistent/kvm is not there"), "{text}");
        assert!(serde_json::to_string(&findings).unwrap().contains("\"present\":false"));
    }

    #[test]
    fn an_emulation_is_called_one() {
        let kvm = Kvm { backing: Some("emulated".into()), speed: Some(1.0), works: true, ..Kvm::default() };
        let translation = Translation { works: true, problem: None };
        let advice = advise(&Processor { virtualized: true, ..Processor::default() }, &translation, &kvm);
        assert!(advice[0].contains("publish no measurement") && advice[1].contains("nested"), "{advice:?}");
    }
}
