//! Development tasks: `cargo xtask ci | test | bless | callgrind | layers`.

mod callgrind;
mod layers;
mod tools;

use std::process::{Command, ExitCode};

use anyhow::{Context, Result, bail, ensure};

const USAGE: &str = "\
usage: cargo xtask TASK

  test [ARG ...]   all tests, after installing what they need; ARGs go to cargo test
  ci               fmt, clippy, dependency directions, then all tests
  bless [ARG ...]  all tests, rewriting golden files and filling in results of .ins cases from the host processor
  callgrind [--bless]
                   host instructions of a fixed workload against benches/callgrind.txt (needs valgrind)
  layers           only the check of dependency directions";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rest = arguments.get(1..).unwrap_or_default();
    let result = match arguments.first().map(String::as_str) {
        Some("test") => test(rest, false),
        Some("bless") => test(rest, true),
        Some("ci") => ci(),
        Some("callgrind") => callgrind::run(rest.iter().any(|argument| argument == "--bless")),
        Some("layers") => layers::check(),
        _ => {
            eprintln!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn ci() -> Result<()> {
    cargo(&["fmt", "--all", "--check"])?;
    layers::check()?;
    cargo(&["clippy", "--workspace", "--all-targets", "--profile", "checked", "--", "-D", "warnings"])?;
    test(&[], false)
}

/// One profile for all: optimized, so that guests boot in reasonable time, and with every check on.
fn test(arguments: &[String], bless: bool) -> Result<()> {
    let path = tools::install()?;
    let mut command = Command::new(env!("CARGO"));
    command.args(["test", "--workspace", "--profile", "checked"]).args(arguments).env("PATH", path);
    if bless {
        command.env("BLESS", "1");
    }
    run(&mut command)
}

fn cargo(arguments: &[&str]) -> Result<()> {
    run(Command::new(env!("CARGO")).args(arguments))
}

fn run(command: &mut Command) -> Result<()> {
    eprintln!("xtask: {command:?}");
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

/// Output of a command that must succeed.
fn output(command: &mut Command) -> Result<Vec<u8>> {
    let output = command.output().with_context(|| format!("starting {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} ended with {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(output.stdout)
}
