//! Dependencies between our packages point one way. This is the table of the edges that may exist; anything else
//! (a device named by an engine, the monitor named by the translator) fails.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// package -> our packages that it may name. A package that is not listed may not exist.
const ALLOWED: &[(&str, &[&str])] = &[
    ("transvisor-x86", &[]),
    ("transvisor-vcpu", &["transvisor-x86"]),
    ("transvisor-memory", &["transvisor-x86"]),
    ("transvisor-semantics", &["transvisor-x86", "transvisor-memory"]),
    ("transvisor-interpreter", &["transvisor-x86", "transvisor-memory", "transvisor-semantics"]),
    (
        "transvisor-monitor",
        &["transvisor-x86", "transvisor-memory", "transvisor-vcpu", "transvisor-semantics"],
    ),
    ("transvisor-devices", &["transvisor-x86", "transvisor-memory", "transvisor-vcpu"]),
    ("transvisor-boot", &["transvisor-x86", "transvisor-memory"]),
    ("transvisor-guest-images", &[]),
    ("transvisor-profiler", &[]),
    ("transvisor-translator", &["transvisor-x86", "transvisor-memory", "transvisor-semantics"]),
    (
        "transvisor-runtime",
        &[
            "transvisor-x86",
            "transvisor-memory",
            "transvisor-vcpu",
            "transvisor-semantics",
            "transvisor-interpreter",
            "transvisor-monitor",
            "transvisor-translator",
            "transvisor-profiler",
        ],
    ),
    ("transvisor-compare", &[]),
    ("transvisor-kvm", &["transvisor-x86", "transvisor-memory", "transvisor-vcpu", "transvisor-monitor"]),
    (
        "transvisor",
        &[
            "transvisor-x86",
            "transvisor-memory",
            "transvisor-vcpu",
            "transvisor-devices",
            "transvisor-boot",
            "transvisor-guest-images",
            "transvisor-kvm",
            "transvisor-compare",
            "transvisor-profiler",
            "transvisor-runtime",
        ],
    ),
    ("xtask", &[]),
];

/// Packages at the edge, which may name every other: tests, benches, tools over engines.
const EDGE: &[&str] = &["transvisor-tests", "transvisor-benches", "lockstep"];

/// The only package that may name Cranelift.
const CODE_GENERATOR: &str = "transvisor-translator";

/// Fails on the first edge that is not allowed. Dev-dependencies are free.
pub fn check() -> Result<()> {
    let metadata = crate::output(Command::new(env!("CARGO")).args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--offline",
    ]))?;
    let metadata: Value = serde_json::from_slice(&metadata).context("cargo metadata")?;
    let packages = metadata["packages"].as_array().context("cargo metadata without packages")?;
    let names: Vec<&str> = packages.iter().filter_map(|package| package["name"].as_str()).collect();
    let mut edges = 0;
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let allowed = ALLOWED.iter().find(|(package, _)| *package == name).map(|(_, allowed)| *allowed);
        ensure!(
            allowed.is_some() || EDGE.contains(&name),
            "package {name} has no row in tools/xtask/src/layers.rs: which packages may it depend on?"
        );
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            if dependency["kind"].as_str() == Some("dev") {
                continue;
            }
            let target = dependency["name"].as_str().unwrap_or_default();
            ensure!(
                !target.starts_with("cranelift") || name == CODE_GENERATOR,
                "{name} names {target}: only {CODE_GENERATOR} may"
            );
            if names.contains(&target) {
                edges += 1;
                ensure!(
                    allowed.is_none_or(|allowed| allowed.contains(&target)),
                    "{name} depends on {target}: dependencies do not point that way (see ARCHITECTURE.md)"
                );
            }
        }
    }
    eprintln!("xtask: {edges} dependencies between {} packages, all in the allowed direction", names.len());
    Ok(())
}
