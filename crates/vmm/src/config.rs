//! What a machine consists of and what it boots: the arguments, resolved.

use std::{path::PathBuf, sync::Arc};

use runtime::{EngineConfig, EngineMode, persistent::Translations};

use crate::{
    arguments::{BootArgument, EngineArgument, RunArguments, SerialArgument},
    choice::choose,
    profile::ProfileConfig,
    size::Size,
};

/// Guest memory where nothing else is said.
pub const DEFAULT_MEMORY: Size = Size(512 << 20);

/// A machine to be built.
#[derive(Clone, Debug)]
pub struct Config {
    /// Kernel image.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub initramfs: Option<PathBuf>,
    /// Kernel command line.
    pub cmdline: String,
    /// Bytes of guest memory.
    pub memory: Size,
    /// How the kernel is entered.
    pub entry: boot::Entry,
    /// How it is executed by software.
    pub engine: EngineConfig,
    /// The KVM device, where that executes it instead.
    pub kvm: Option<PathBuf>,
    /// Why this engine, where `--engine auto` left it to us.
    pub chosen: Option<String>,
    /// Paravirtual features are announced, as far as the engine has them.
    pub paravirt: bool,
    /// Where the serial console goes.
    pub serial: SerialArgument,
    /// A reboot ends the run.
    pub no_reboot: bool,
    /// What is recorded of the run, if anything.
    pub profile: Option<ProfileConfig>,
    /// Where translated code is kept from run to run, if it is.
    pub translations: Option<Arc<Translations>>,
}

impl Config {
    /// Boots `kernel` with the defaults of `transvisor run`.
    pub fn new(kernel: PathBuf) -> Self {
        Self {
            kernel,
            initramfs: None,
            cmdline: String::new(),
            memory: DEFAULT_MEMORY,
            entry: boot::Entry::Auto,
            engine: EngineConfig::default(),
            kvm: None,
            chosen: None,
            paravirt: true,
            serial: SerialArgument::Stdio,
            no_reboot: false,
            profile: None,
            translations: None,
        }
    }

    /// Records a profile of the run.
    pub fn profiled(mut self, profile: ProfileConfig) -> Self {
        self.engine.profile = true;
        self.profile = Some(profile);
        self
    }

    /// From the command line, but for the profile; `guest` is what it names, already fetched. Errors name the option.
    pub fn resolve(arguments: &RunArguments, guest: Option<&guest_images::Guest>) -> Result<Self, String> {
        let kernel = match (&arguments.kernel, guest) {
            (Some(kernel), _) => kernel.clone(),
            (None, Some(guest)) => guest.kernel.clone(),
            (None, None) => return Err("name a guest (see `transvisor list`) or give --kernel".into()),
        };
        if arguments.cpus != 1 {
            return Err(format!("--cpus {}: only 1 virtual processor is supported so far", arguments.cpus));
        }
        let mut cmdline = match (&arguments.cmdline, guest) {
            (Some(cmdline), _) => cmdline.clone(),
            (None, Some(guest)) => guest.cmdline.clone(),
            (None, None) => "console=ttyS0".into(),
        };
        if let Some(more) = &arguments.cmdline_add {
            cmdline = format!("{cmdline} {more}").trim().to_owned();
        }
        let memory =
            arguments.memory.or_else(|| guest.map(|guest| Size(guest.memory))).unwrap_or(DEFAULT_MEMORY);
        check_memory(memory)?;
        let mut engine = EngineConfig {
            mode: match arguments.engine {
                EngineArgument::Interpret => EngineMode::Interpret,
                EngineArgument::Translate | EngineArgument::Kvm | EngineArgument::Auto => {
                    EngineMode::Translate
                }
            },
            stress: arguments.stress,
            ..EngineConfig::default()
        };
        engine.windows &= !arguments.no_window;
        if let Some(threshold) = arguments.template_threshold {
            engine.template_threshold = threshold;
        }
        if let Some(threshold) = arguments.compile_threshold {
            (engine.threshold, engine.hot_threshold) = (threshold, threshold);
        }
        if let Some(Size(bytes)) = arguments.code_memory {
            engine.code_memory = usize::try_from(bytes).map_err(|_| "--code-memory: too large".to_owned())?;
        }
        let (kvm, chosen) = match arguments.engine {
            EngineArgument::Translate | EngineArgument::Interpret => (None, None),
            EngineArgument::Kvm if arguments.profile.is_some() => {
                return Err("--profile counts what translation executes, KVM tells nothing of that; use --engine translate".into());
            }
            EngineArgument::Auto if arguments.profile.is_some() => {
                (None, Some("engine: translate, because of --profile".into()))
            }
            EngineArgument::Kvm => (Some(arguments.kvm_device.clone()), None),
            EngineArgument::Auto => {
                let choice = choose(&arguments.kvm_device);
                (choice.kvm.then(|| arguments.kvm_device.clone()), Some(choice.why))
            }
        };
        Ok(Self {
            kernel,
            initramfs: arguments.initramfs.clone().or_else(|| guest.map(|guest| guest.initramfs.clone())),
            cmdline,
            memory,
            entry: match arguments.boot {
                BootArgument::Auto => boot::Entry::Auto,
                BootArgument::Bzimage => boot::Entry::Bzimage,
                BootArgument::Pvh => boot::Entry::Pvh,
            },
            engine,
            kvm,
            chosen,
            paravirt: !arguments.no_paravirt,
            serial: arguments.serial.clone(),
            no_reboot: arguments.no_reboot,
            profile: None,
            translations: None,
        })
    }
}

/// Least memory for which starting makes sense; kernels have their own, larger minimum.
const LEAST_MEMORY: Size = Size(4 << 20);

fn check_memory(memory: Size) -> Result<(), String> {
    if memory < LEAST_MEMORY {
        return Err(format!(
            "--memory {memory}: a guest needs at least {LEAST_MEMORY}; write for example 512M"
        ));
    }
    if !memory.0.is_multiple_of(x86::PAGE_SIZE) {
        return Err(format!("--memory {memory}: give a multiple of 4K"));
    }
    if let Some(host) = host_memory()
        && memory > host
    {
        return Err(format!("--memory {memory}: this host has {host}; give the guest less"));
    }
    Ok(())
}

/// Physical memory of the host, from /proc/meminfo.
fn host_memory() -> Option<Size> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(Size(kib << 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_cannot_be() {
        assert!(check_memory(Size(0)).unwrap_err().contains("--memory"));
        assert!(check_memory(Size((64 << 20) + 1)).unwrap_err().contains("multiple"));
        assert!(check_memory(Size(1 << 50)).unwrap_err().contains("this host has"));
        assert_eq!(check_memory(Size(64 << 20)), Ok(()));
    }
}
