//! The same guest under Transvisor's engines and under QEMU, in one run: alternating, medians and spreads, ratios.
//!
//! `cargo run --release -p transvisor-benches -- boot` (QEMU: `apt-get install qemu-system-x86`). Only ratios from
//! one run mean anything on a shared machine; user CPU time is steadier than wall time.

mod contestant;
mod race;
mod table;

use std::{ffi::OsString, path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::Parser;
use contestant::Contestant;

/// Races Transvisor against its peers.
#[derive(Parser, Debug)]
#[command(name = "side-by-side")]
enum Arguments {
    /// Boot to the shell, then power off
    Boot(BootArguments),
}

/// What to race, and how often.
#[derive(clap::Args, Debug)]
struct BootArguments {
    /// Guest by name (see `transvisor list`)
    #[arg(default_value = "debian")]
    guest: String,
    /// Rounds; everyone runs once in each
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// QEMU binaries to run against
    #[arg(long, value_name = "PROGRAM", default_values_t = ["qemu-system-x86_64".to_owned()])]
    qemu: Vec<String>,
    /// Only the contestants whose name contains this
    #[arg(long, value_name = "TEXT")]
    only: Option<String>,
    /// For programs
    #[arg(long)]
    json: bool,
    /// Where fetched guests are kept
    #[arg(long, value_name = "DIR")]
    cache_dir: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    // A contestant of ours is this very program, so that what is measured is what was just built.
    if arguments.get(1).is_some_and(|word| word == contestant::OURSELVES) {
        return transvisor::command::main(arguments[1..].to_vec());
    }
    let Arguments::Boot(arguments) = Arguments::parse_from(arguments);
    match boot(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("side-by-side: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn boot(arguments: &BootArguments) -> Result<()> {
    let cache = match &arguments.cache_dir {
        Some(path) => guest_images::CacheDir::new(path),
        None => guest_images::CacheDir::from_environment()?,
    };
    let mut progress = transvisor::progress::TerminalProgress::new(false);
    let guest = guest_images::fetch(&arguments.guest, &cache, &mut progress)?;
    let mut contestants = Contestant::ours(&guest)?;
    for qemu in &arguments.qemu {
        contestants.push(Contestant::qemu(qemu, &guest)?);
    }
    if let Some(text) = &arguments.only {
        contestants.retain(|contestant| contestant.name.contains(text));
    }
    let results = race::run(&contestants, arguments.rounds)?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&results)?);
    } else {
        table::print(&results);
    }
    Ok(())
}
