//! The bare-metal guest that measures (`guest-images/nanobench`) runs to its end on every engine, and measures everything.

use std::{path::Path, time::Duration};

use guest_images::{CacheDir, Silent};
use kvm::{Backing, Host, KvmError};
use runtime::{EngineConfig, EngineMode};
use transvisor::{config::Config, harness::Machine, outcome::Outcome, size::Size};

/// By privileged instructions.
const OPERATIONS: [&str; 22] = [
    "eoi",
    "syscall",
    "in",
    "out",
    "cr8wr",
    "call_ret",
    "indirect_call_same",
    "indirect_call_four",
    "pgfault",
    "divzero",
    "ptemod",
    "iret",
    "cpuid",
    "rdmsr",
    "wrmsr",
    "invlpg",
    "cr3wr",
    "cr3wr_pcid",
    "mmio_read",
    "self_ipi",
    "hlt_to_interrupt",
    "smc",
];

/// By hypercalls.
const HYPERCALLS: [&str; 15] = [
    "hypercall",
    "in",
    "out",
    "cr8wr",
    "ptemod",
    "cpuid",
    "rdmsr",
    "wrmsr",
    "invlpg",
    "cr3wr",
    "cr3wr_pcid",
    "mmio_read",
    "self_ipi",
    "hlt_to_interrupt",
    "eoi",
];

/// What the guest wrote, having powered itself off.
fn run(name: &str, change: impl FnOnce(&mut Config)) -> String {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("nanobench-{name}-{}", std::process::id()));
    let kernel =
        guest_images::workloads::nanobench(&CacheDir::new(&folder), &mut Silent).expect("it compiles");
    let mut config = Config { memory: Size(64 << 20), ..Config::new(kernel) };
    change(&mut config);
    let (outcome, console) = Machine::launch(config).wait_end(Duration::from_secs(120));
    std::fs::remove_dir_all(&folder).expect("the folder is ours");
    let (outcome, _) = outcome.expect("the host is fine");
    assert_eq!(outcome, Outcome::PowerOff, "{console}");
    assert!(console.trim_end().ends_with("@end"), "{console}");
    console
}

/// Each of these took some time and was measured once, and nothing else was.
fn measures(operations: &[&str], console: &str) {
    assert_eq!(console.matches("@op ").count(), operations.len(), "{console}");
    for operation in operations {
        let mut lines = console.lines().filter_map(|line| line.strip_prefix(&format!("@op {operation} ")));
        let line = lines.next().unwrap_or_else(|| panic!("no {operation}:\n{console}"));
        let picoseconds: u64 = line.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number");
        // Even a call takes a cycle, and no operation takes a tenth of a second. What is within an interrupt's handler
        // may be too short for the clock.
        let least = if *operation == "eoi" { 0 } else { 100 };
        assert!((least..100_000_000_000).contains(&picoseconds), "{operation}: {line}");
        assert!(lines.next().is_none(), "{operation} twice:\n{console}");
    }
    assert!(!console.contains("@skip"), "{console}");
}

const INTERPRET: EngineMode = EngineMode::Interpret;
const TRANSLATE: EngineMode = EngineMode::Translate;

fn by_software(name: &str, mode: EngineMode, paravirt: bool) -> String {
    run(name, |config| {
        config.engine = EngineConfig { mode, ..EngineConfig::default() };
        config.paravirt = paravirt;
    })
}

#[test]
fn interpreted() {
    measures(&OPERATIONS, &by_software("interpret", INTERPRET, false));
}

#[test]
fn translated() {
    measures(&OPERATIONS, &by_software("translate", TRANSLATE, false));
}

#[test]
fn interpreted_with_hypercalls() {
    measures(&HYPERCALLS, &by_software("interpret-paravirt", INTERPRET, true));
}

#[test]
fn translated_with_hypercalls() {
    measures(&HYPERCALLS, &by_software("translate-paravirt", TRANSLATE, true));
}

/// On a KVM that is an emulation some operations may be missing; each is then named with its reason.
#[test]
fn on_kvm() {
    let device = Path::new(kvm::DEVICE);
    let host = match Host::open(device) {
        Ok(host) => host,
        Err(error @ (KvmError::Missing(_) | KvmError::NotPermitted(_))) => {
            println!("nanobench does not run on KVM: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let console = run("kvm", |config| config.kvm = Some(device.into()));
    match host.backing().expect("a guest of a few bytes runs") {
        Backing::Hardware => measures(&OPERATIONS, &console),
        Backing::Emulated => {
            for operation in OPERATIONS {
                let told = |kind: &str| console.contains(&format!("@{kind} {operation} "));
                assert!(told("op") != told("skip"), "{operation}:\n{console}");
            }
        }
    }
}
