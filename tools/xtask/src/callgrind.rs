//! Host instructions of a fixed workload, counted by valgrind and compared with a golden file: a regression of the
//! interpreter, the decoder or a translator shows without a quiet machine.

use std::{fmt::Write, fs, path::PathBuf, process::Command};

use anyhow::{Context, Result, bail, ensure};

/// What `fixed_workload` of `transvisor-benches` can do.
const WORKLOADS: [&str; 4] = ["interpret", "decode", "translate", "templates"];
/// A count may differ from the golden one by this part of it.
const TOLERANCE: f64 = 0.03;

/// Counts and compares, or writes the counts.
pub fn run(bless: bool) -> Result<()> {
    let profile = ["--release", "-p", "transvisor-benches", "--example", "fixed_workload"];
    crate::run(Command::new(env!("CARGO")).arg("build").args(profile))?;
    let program = crate::tools::target_folder()?.join("release/examples/fixed_workload");
    let golden = PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../../benches/callgrind.txt"));
    let mut counts = Vec::new();
    for workload in WORKLOADS {
        counts.push((workload, count(&program, workload)?));
    }
    if bless {
        let mut text = String::from("# Host instructions, by `cargo xtask callgrind --bless`.\n");
        for (workload, count) in counts {
            writeln!(text, "{workload} {count}")?;
        }
        return fs::write(&golden, text).with_context(|| format!("writing {}", golden.display()));
    }
    let text = fs::read_to_string(&golden).with_context(|| format!("reading {}", golden.display()))?;
    let mut off = Vec::new();
    for (workload, count) in counts {
        let expected =
            find(&text, workload).with_context(|| format!("{} has no {workload}", golden.display()))?;
        let change = count as f64 / expected as f64 - 1.0;
        eprintln!("xtask: {workload}: {count} host instructions, {:+.2}% of {expected}", 100.0 * change);
        if change.abs() > TOLERANCE {
            off.push(format!("{workload} {:+.1}%", 100.0 * change));
        }
    }
    ensure!(
        off.is_empty(),
        "{} (more than {:.0}%); if that is meant, or the Rust toolchain has changed: cargo xtask callgrind --bless",
        off.join(", "),
        100.0 * TOLERANCE
    );
    Ok(())
}

fn find(text: &str, workload: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(workload)?.trim().parse().ok())
}

fn count(program: &PathBuf, workload: &str) -> Result<u64> {
    let mut command = Command::new("valgrind");
    command.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(program).arg(workload);
    let output = command.output().context("starting valgrind; install it with `apt-get install valgrind`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        bail!("{command:?} ended with {}: {said}", output.status);
    }
    // "==123== Collected : 456"
    let line = said.lines().find_map(|line| line.split_once("Collected :"));
    line.and_then(|(_, count)| count.trim().parse().ok())
        .with_context(|| format!("valgrind says no count: {said}"))
}
