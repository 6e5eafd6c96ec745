//! The same guests and workloads under Transvisor, under QEMU and on the host, in one run: alternating, medians and
//! spreads, ratios. See README.md beside this.
//!
//! Data flows one way: [`peers`] (command lines) -> `compare` (everyone runs, in turn) -> [`table`].

mod boot;
mod peers;
mod scratch;
mod table;

use std::{ffi::OsString, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Result, ensure};
use clap::{Parser, Subcommand};
use compare::{contestant::Contestant, failure::Failure, workloads};
use guest_images::{CacheDir, Guest};
use peers::Peers;
use scratch::Scratch;
use table::Mean;

/// Races Transvisor against its peers.
#[derive(Parser, Debug)]
#[command(name = "side-by-side")]
struct Arguments {
    #[command(subcommand)]
    race: Race,
    #[command(flatten)]
    peers: Peers,
    /// Rounds; everyone runs once in each
    #[arg(long, value_name = "N", default_value_t = 3, global = true)]
    rounds: usize,
    /// Only the contestants whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT", global = true)]
    only: Vec<String>,
    /// Only the workloads whose name contains this; may be repeated
    #[arg(long, value_name = "TEXT", global = true)]
    workload: Vec<String>,
    /// For programs
    #[arg(long, global = true)]
    json: bool,
    /// Seconds after which a boot or a workload is taken to hang
    #[arg(long, value_name = "SECONDS", default_value_t = 180, global = true)]
    timeout: u64,
    /// Where fetched guests are kept
    #[arg(long, value_name = "DIR", global = true)]
    cache_dir: Option<PathBuf>,
}

/// What is raced.
#[derive(Subcommand, Clone, Copy, PartialEq, Eq, Debug)]
enum Race {
    /// Boot to the shell, then power off
    Boot,
    /// Twelve loops
    Loops,
    /// Debian's programs: gzip, xz, sha256sum, openssl, python3, gcc, sqlite3
    Programs,
    /// All of it
    All,
}

/// The guest that boots and whose kernel the loops run on, and the one with the programs.
const GUEST: &str = "debian";
const GUEST_WITH_PROGRAMS: &str = "debian-programs";

const COMPUTE: [&str; 7] =
    ["sieve", "crc32", "scalar-double", "matrix-multiply", "fib", "pointer-chase", "quicksort"];
const LOOP_MEANS: &[Mean] = &[("mean of all", |_| true), ("mean of compute", |name| COMPUTE.contains(&name))];

const PROGRAM_MEANS: &[Mean] = &[("mean of all", |_| true)];

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // A contestant of ours is this very program, so that what is measured is what was just built.
    if arguments.get(1).is_some_and(|word| word == peers::OURSELVES) {
        return transvisor::command::main(arguments[1..].to_vec());
    }
    match race(&Arguments::parse_from(arguments)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn race(arguments: &Arguments) -> Result<()> {
    ensure!(arguments.rounds > 0, "--rounds must be at least 1");
    let cache = match &arguments.cache_dir {
        Some(path) => CacheDir::new(path),
        None => CacheDir::from_environment()?,
    };
    let scratch = Scratch::new()?;
    let mut report = serde_json::Map::new();
    let wants = |race| arguments.race == race || arguments.race == Race::All;
    if wants(Race::Boot) {
        report.insert("boot".into(), boots(arguments, &cache, &scratch)?);
    }
    if wants(Race::Loops) {
        report.insert("loops".into(), loops(arguments, &cache)?);
    }
    if wants(Race::Programs) {
        report.insert("programs".into(), programs(arguments, &cache, &scratch)?);
    }
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    }
    Ok(())
}

fn progress() -> transvisor::progress::TerminalProgress {
    transvisor::progress::TerminalProgress::new(false)
}

/// The contestants that `--only` names.
fn chosen(arguments: &Arguments, contestants: Vec<Contestant>) -> Result<Vec<Contestant>> {
    let wanted = |name: &str| arguments.only.iter().any(|text| name.contains(text.as_str()));
    let names: Vec<_> = contestants.iter().map(|contestant| contestant.name.clone()).collect();
    let chosen: Vec<_> = contestants
        .into_iter()
        .filter(|contestant| arguments.only.is_empty() || wanted(&contestant.name))
        .collect();
    ensure!(!chosen.is_empty(), "--only leaves nobody; there are: {}", names.join(", "));
    Ok(chosen)
}

/// A figure that is missing is an error here, once everyone has had their turn.
fn complain(failures: &[Failure]) -> Result<()> {
    let lines: Vec<_> = failures.iter().map(|failure| format!("{}: {}", failure.name, failure.why)).collect();
    ensure!(lines.is_empty(), "{}", lines.join("\n"));
    Ok(())
}

fn boots(arguments: &Arguments, cache: &CacheDir, scratch: &Scratch) -> Result<serde_json::Value> {
    let guest = guest_images::fetch(GUEST, cache, &mut progress())?;
    let mut results = Vec::new();
    for mut group in boot::groups(&arguments.peers, &guest, scratch)? {
        group.contestants = chosen(arguments, group.contestants)?;
        let patience = Duration::from_secs(arguments.timeout);
        let result = compare::boot::run(&group, guest.memory, arguments.rounds, patience);
        if !arguments.json {
            table::boots(&result);
        }
        complain(&result.failures)?;
        results.push(result);
    }
    Ok(serde_json::to_value(results)?)
}

fn loops(arguments: &Arguments, cache: &CacheDir) -> Result<serde_json::Value> {
    let loops = guest_images::workloads::loops(GUEST, cache, &mut progress())?;
    let native = Contestant::native(&loops.program, None);
    workloads(arguments, "loops", LOOP_MEANS, &loops.guest, native)
}

fn programs(arguments: &Arguments, cache: &CacheDir, scratch: &Scratch) -> Result<serde_json::Value> {
    let programs = guest_images::workloads::programs(GUEST_WITH_PROGRAMS, cache, &mut progress())?;
    let root = scratch.path("root");
    let native = Contestant::native(&programs.unpack(&root)?, Some(&root));
    workloads(arguments, "programs", PROGRAM_MEANS, &programs.guest, native)
}

fn workloads(
    arguments: &Arguments,
    title: &str,
    means: &[Mean],
    guest: &Guest,
    native: Contestant,
) -> Result<serde_json::Value> {
    let mut contestants = vec![native.clone()];
    contestants.extend(arguments.peers.ours(guest, "auto")?);
    contestants.extend(arguments.peers.qemus(guest, &guest.kernel)?);
    let rules = workloads::Rules {
        rounds: arguments.rounds,
        workloads: &arguments.workload,
        patience: Duration::from_secs(arguments.timeout),
    };
    let results = workloads::run(&native, &chosen(arguments, contestants)?, &rules)?;
    if !arguments.json {
        table::workloads(title, &results, means);
    }
    complain(&results.failures)?;
    Ok(serde_json::to_value(results)?)
}
