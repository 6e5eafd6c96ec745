//! The bare-metal guest that measures (`guest-images/nanobench`) runs to its end on every engine, and measures everything.

use std::{path::Path, time::Duration};

use guest_images::{CacheDir, Silent};
use kvm::{Backing, Host, KvmError};
use runtime::{EngineConfig, EngineMode};
use transvisor::{config::Config, harness::Machine, outcome::Outcome, size::Size};

const OPERATIONS: [&str; 21] = [
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

/// Every operation took some time, and each was measured once.
fn measures_everything(console: &str) {
    for operation in OPERATIONS {
        let mut lines = console.lines().filter_map(|line| line.strip_prefix(&format!("@op {operation} ")));
        let line = lines.next().unwrap_or_else(|| panic!("no {operation}:\n{console}"));
        let picoseconds: u64 = line.split(' ').nth(1).and_then(|word| word.parse().ok()).expect("a number");
        // Even a call takes a cycle, and no operation takes a tenth of a second.
        assert!((100..100_000_000_000).contains(&picoseconds), "{operation}: {line}");
        assert!(lines.next().is_none(), "{operation} twice:\n{console}");
    }
    assert!(!console.contains("@skip"), "{console}");
}

#[test]
fn interpreted() {
    let engine = EngineConfig { mode: EngineMode::Interpret, ..EngineConfig::default() };
    measures_everything(&run("interpret", |config| config.engine = engine));
}

#[test]
fn translated() {
    measures_everything(&run("translate", |_| {}));
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
        Backing::Hardware => measures_everything(&console),
        Backing::Emulated => {
            for operation in OPERATIONS {
                let told = |kind: &str| console.contains(&format!("@{kind} {operation} "));
                assert!(told("op") != told("skip"), "{operation}:\n{console}");
            }
        }
    }
}
