//! The command line. Options have Cloud Hypervisor's and Firecracker's shapes; QEMU's commonest single-dash options
//! are accepted as aliases and rewritten before parsing.

use std::{ffi::OsString, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::size::Size;

/// Runs unmodified x86 guest kernels by dynamic binary translation: VT-x, AMD-V and /dev/kvm are not needed.
#[derive(Parser, Debug)]
#[command(name = "transvisor", version, about, max_term_width = 100)]
pub struct Arguments {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Boot a guest; this terminal becomes its serial console (Ctrl-A X quits)
    Run(Box<RunArguments>),
    /// List the guests that `run` and `fetch` know by name
    List,
    /// Fetch and prepare a guest without booting it
    Fetch(FetchArguments),
    /// Say what this host offers: KVM, processor, limits, and what to do about it
    Doctor(DoctorArguments),
    /// Run the same guests under every engine that this host has, and under QEMU, and compare
    Compare(CompareArguments),
    /// Look at what `run --profile` has recorded
    #[command(subcommand)]
    Profile(ProfileCommand),
    /// Watch a machine that runs with --profile
    Top(TopArguments),
}

/// `transvisor profile`
#[derive(Subcommand, Debug)]
pub enum ProfileCommand {
    /// Print the hottest blocks
    Show {
        /// A profile's directory, or a blocks.json
        profile: PathBuf,
        /// How many blocks
        #[arg(long, value_name = "N", default_value_t = 20)]
        top: usize,
        /// What is hot
        #[arg(long, value_enum, default_value_t = SortArgument::Instructions)]
        sort: SortArgument,
    },
    /// Compare two profiles: what got hotter, what got bigger
    Diff {
        /// The profile before
        before: PathBuf,
        /// The profile after
        after: PathBuf,
        /// How many blocks of each kind
        #[arg(long, value_name = "N", default_value_t = 20)]
        top: usize,
    },
    /// Make report.html, flamegraph.svg and the speedscope file again, for a machine that died before it could
    Report {
        /// A profile's directory
        profile: PathBuf,
    },
}

/// `--sort`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum SortArgument {
    /// Guest instructions executed
    Instructions,
    /// Host time, sampled
    Time,
    /// Times entered
    Executions,
}

/// `transvisor top`
#[derive(Args, Debug)]
pub struct TopArguments {
    /// The directory that the machine was given with --profile
    pub profile: PathBuf,
    /// How many blocks [default: what fits on the terminal]
    #[arg(long, value_name = "N")]
    pub top: Option<usize>,
    /// What is hot
    #[arg(long, value_enum, default_value_t = SortArgument::Instructions)]
    pub sort: SortArgument,
    /// Print once, and end
    #[arg(long)]
    pub once: bool,
}

/// `transvisor fetch`
#[derive(Args, Debug)]
pub struct FetchArguments {
    /// Name of the guest, see `transvisor list`
    pub guest: String,
    /// Where fetched guests are kept [default: $TRANSVISOR_CACHE, $XDG_CACHE_HOME/transvisor or ~/.cache/transvisor]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Say only what went wrong
    #[arg(short, long)]
    pub quiet: bool,
}

/// `transvisor compare`
#[derive(Args, Debug)]
pub struct CompareArguments {
    /// What is compared [default: all]
    #[arg(value_enum)]
    pub contests: Vec<Contest>,
    /// Rounds; everyone runs once in each, in turn
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub rounds: usize,
    /// Only the contestants whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub only: Vec<String>,
    /// Of compute, only the loops whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT")]
    pub workload: Vec<String>,
    /// The QEMU to compare with
    #[arg(long, value_name = "PROGRAM", default_value = "qemu-system-x86_64")]
    pub qemu: PathBuf,
    /// Leave QEMU out
    #[arg(long)]
    pub no_qemu: bool,
    /// Also write a page with charts
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// For programs: every run
    #[arg(long)]
    pub json: bool,
    /// Seconds after which a guest is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 300)]
    pub timeout: u64,
    /// Where fetched guests are kept [default: $TRANSVISOR_CACHE, $XDG_CACHE_HOME/transvisor or ~/.cache/transvisor]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// The device that the hardware-assisted engine opens
    #[arg(long, value_name = "PATH", default_value = kvm::DEVICE, hide = true)]
    pub kvm_device: PathBuf,
}

impl CompareArguments {
    /// Whether this contest was asked for.
    pub fn wants(&self, contest: Contest) -> bool {
        self.contests.is_empty() || self.contests.contains(&contest)
    }
}

/// What is compared.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum Contest {
    /// What privileged operations cost, by a bare-metal guest
    Nanobench,
    /// Debian from power-on to the shell
    Boot,
    /// Twelve loops in the guest and on the host
    Compute,
}

/// `transvisor doctor`
#[derive(Args, Debug)]
pub struct DoctorArguments {
    /// For programs
    #[arg(long)]
    pub json: bool,
    /// The device that is looked at
    #[arg(long, value_name = "PATH", default_value = kvm::DEVICE, hide = true)]
    pub kvm_device: PathBuf,
}

/// `transvisor run`
#[derive(Args, Debug)]
pub struct RunArguments {
    /// A guest by name (see `transvisor list`); it is fetched if it is not there yet
    #[arg(conflicts_with = "kernel")]
    pub guest: Option<String>,
    /// Kernel to boot: a bzImage, or an ELF vmlinux with a PVH note (QEMU: -kernel)
    #[arg(long, value_name = "FILE")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM file system (QEMU: -initrd)
    #[arg(long, value_name = "FILE", alias = "initrd")]
    pub initramfs: Option<PathBuf>,
    /// Kernel command line; replaces that of a named guest (QEMU: -append)
    #[arg(long, value_name = "TEXT")]
    pub cmdline: Option<String>,
    /// Added to the command line
    #[arg(long, value_name = "TEXT")]
    pub cmdline_add: Option<String>,
    /// Guest memory, for example 512M or 2G (QEMU: -m) [default: 512M]
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Size>,
    /// Number of virtual processors; only 1 so far (QEMU: -smp)
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub cpus: u32,
    /// What executes guest code
    #[arg(long, value_enum, default_value_t = EngineArgument::Translate)]
    pub engine: EngineArgument,
    /// The device that `--engine kvm` and `auto` open
    #[arg(long, value_name = "PATH", default_value = kvm::DEVICE, hide = true)]
    pub kvm_device: PathBuf,
    /// Announce no paravirtual features: the guest finds no hypervisor's clock, EOI or hypercalls
    #[arg(long)]
    pub no_paravirt: bool,
    /// How the kernel is entered
    #[arg(long, value_enum, default_value_t = BootArgument::Auto)]
    pub boot: BootArgument,
    /// Where the serial console goes: `stdio`, `null` or `file=PATH`
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub serial: SerialArgument,
    /// End with status 3 where the guest asks for a reboot, rather than booting it again (QEMU: -no-reboot)
    #[arg(long)]
    pub no_reboot: bool,
    /// Where fetched guests are kept [default: $TRANSVISOR_CACHE, $XDG_CACHE_HOME/transvisor or ~/.cache/transvisor]
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Executions of a block before it is translated by templates, the quick way (a third for code of processes); 1 translates everything at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub template_threshold: Option<u32>,
    /// Executions of a block of 8 instructions before it is joined with others in a region, or compiled if it has no template; 1 compiles everything at once
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub compile_threshold: Option<u32>,
    /// Memory for compiled code
    #[arg(long, value_name = "SIZE")]
    pub code_memory: Option<Size>,
    /// Never access guest memory by the host's own MMU, which hot code of processes does where it can; debuggers see SIGSEGV from that
    #[arg(long)]
    pub no_window: bool,
    /// Keep translated code from run to run: `auto` (in the cache directory), `off`, or a file
    #[arg(long, value_name = "WHERE", default_value = "auto", overrides_with = "translation_cache")]
    pub translation_cache: TranslationCacheArgument,
    /// Record a profile of the guest in this directory, which must be new or empty; open its report.html
    #[arg(long, value_name = "DIR")]
    pub profile: Option<PathBuf>,
    /// Names for the profile, from a System.map or vmlinux [default: the running kernel's own kallsyms]
    #[arg(long, value_name = "FILE", requires = "profile")]
    pub symbols: Option<PathBuf>,
    /// Also write /tmp/perf-PID.map, so that Linux `perf` names translated code
    #[arg(long, requires = "profile")]
    pub perf_map: bool,
    /// Write jit-PID.dump into the profile's directory, for `perf record -k 1` and `perf inject --jit`: also code that was thrown
    /// away is named then
    #[arg(long, requires = "profile", conflicts_with = "perf_map")]
    pub jitdump: bool,
    /// Flush, unchain and evict compiled code at random, from this seed: a test of the engine
    #[arg(long, value_name = "SEED", hide = true)]
    pub stress: Option<u64>,
    /// Print what the engine did when the guest has ended
    #[arg(long)]
    pub stats: bool,
    /// Print it as JSON
    #[arg(long)]
    pub json: bool,
    /// Say only what went wrong
    #[arg(short, long)]
    pub quiet: bool,
}

/// `--engine`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineArgument {
    /// Interpret cold code, compile warm code
    Translate,
    /// Interpret everything
    Interpret,
    /// Hardware-assisted, by /dev/kvm
    Kvm,
    /// KVM where this host has it in hardware, else translate; says which and why
    Auto,
}

/// `--boot`
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum BootArgument {
    /// Unpack the kernel on the host and enter it by PVH where it can; else the Linux 64-bit protocol
    Auto,
    /// Linux 64-bit boot protocol from the bzImage as it is: the guest unpacks itself
    Bzimage,
    /// PVH entry of the (unpacked) vmlinux, or an error
    Pvh,
}

/// `--translation-cache`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum TranslationCacheArgument {
    /// A file for each kernel, in the cache directory.
    Auto,
    /// None.
    Off,
    /// This file.
    File(PathBuf),
}

impl std::str::FromStr for TranslationCacheArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            "" => Err("give auto, off, or the path of a file".into()),
            path => Ok(Self::File(path.into())),
        }
    }
}

/// `--serial`
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SerialArgument {
    /// This terminal.
    Stdio,
    /// Output is dropped, there is no input.
    Null,
    /// Output goes to a file, there is no input.
    File(PathBuf),
}

impl std::str::FromStr for SerialArgument {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "stdio" | "mon:stdio" | "tty" => Ok(Self::Stdio),
            "null" | "none" | "off" => Ok(Self::Null),
            _ => match text.strip_prefix("file=").or_else(|| text.strip_prefix("file:")) {
                Some("") => Err("`file=` needs a path".into()),
                Some(path) => Ok(Self::File(path.into())),
                None => Err(format!("`{text}` is none of stdio, null, file=PATH")),
            },
        }
    }
}

/// QEMU's options with an argument, and ours.
const QEMU_WITH_VALUE: &[(&str, &str)] = &[
    ("-kernel", "--kernel"),
    ("-initrd", "--initramfs"),
    ("-append", "--cmdline"),
    ("-m", "--memory"),
    ("-smp", "--cpus"),
    ("-serial", "--serial"),
];

/// Rewrites QEMU's options to ours. `-m 512` counts MiB, as QEMU does. `-nographic` is what we always do.
pub fn rewrite_qemu_options(arguments: Vec<OsString>) -> Vec<OsString> {
    let mut rewritten = Vec::with_capacity(arguments.len());
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        let text = argument.to_str().unwrap_or("");
        if text == "--" {
            rewritten.push(argument);
            rewritten.extend(arguments);
            break;
        }
        if let Some((_, ours)) = QEMU_WITH_VALUE.iter().find(|(theirs, _)| *theirs == text) {
            rewritten.push((*ours).into());
            if let Some(value) = arguments.next() {
                rewritten.push(match value.to_str() {
                    Some(n) if text == "-m" && !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()) => {
                        format!("{n}M").into()
                    }
                    _ => value,
                });
            }
        } else if text == "-no-reboot" {
            rewritten.push("--no-reboot".into());
        } else if text != "-nographic" {
            rewritten.push(argument);
        }
    }
    rewritten
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(rewrite_qemu_options(line.split_whitespace().map(OsString::from).collect()))
    }

    fn run(line: &str) -> RunArguments {
        match parse(line).unwrap().command {
            Command::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn qemu_options_are_ours() {
        let theirs =
            run("transvisor run -kernel k -initrd i -append quiet -m 512 -nographic -no-reboot -smp 1");
        assert_eq!(theirs.kernel, Some("k".into()));
        assert_eq!(theirs.initramfs, Some("i".into()));
        assert_eq!(theirs.cmdline.as_deref(), Some("quiet"));
        assert_eq!(theirs.memory, Some(Size(512 << 20)));
        assert!(theirs.no_reboot);
        assert_eq!(run("transvisor run -kernel k -m 2G").memory, Some(Size(2 << 30)));
    }

    #[test]
    fn a_guest_or_a_kernel_but_not_both() {
        assert!(parse("transvisor run debian --kernel k").is_err());
        assert_eq!(run("transvisor run debian").guest.as_deref(), Some("debian"));
    }

    #[test]
    fn the_definition_is_sound() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
