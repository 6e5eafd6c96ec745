//! The bare-metal guests of `tests/system/*.asm`, on every engine. Each checks itself, prints what failed on its serial
//! port, and ends through the debug-exit port.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use kvm::{Backing, Host, KvmError};
use runtime::{EngineConfig, EngineMode, persistent::Translations};
use transvisor::{config::Config, harness::Machine, outcome::Outcome, size::Size};

/// The status when a guest writes 0x10 to the debug-exit port: all is well.
const PASSED: u8 = 0x10 << 1 | 1;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("system")
}

/// Assembles a guest; `cargo xtask test` sees to it that nasm is there.
fn assemble(name: &str) -> PathBuf {
    static IMAGES: AtomicUsize = AtomicUsize::new(0);
    let number = IMAGES.fetch_add(1, Ordering::Relaxed);
    let image =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}-{number}.elf", std::process::id()));
    let output = Command::new("nasm")
        .current_dir(folder())
        .args(["-w-all", "-f", "bin", "-o"])
        .arg(&image)
        .arg(format!("{name}.asm"))
        .output()
        .expect("nasm starts; run the tests by `cargo xtask test`, which brings it");
    assert!(output.status.success(), "{name}.asm: {}", String::from_utf8_lossy(&output.stderr));
    image
}

/// There is one window in a process: the guest that is about it has it.
fn engines(windows: bool) -> Vec<(&'static str, EngineConfig)> {
    let translate = EngineConfig {
        windows,
        window_patience: 0,
        mode: EngineMode::Translate,
        template_threshold: u32::MAX,
        patient: false,
        ..EngineConfig::default()
    };
    vec![
        ("interpret", EngineConfig { mode: EngineMode::Interpret, ..EngineConfig::default() }),
        ("translate", translate),
        ("translate, everything at once", EngineConfig { threshold: 1, background: false, ..translate }),
        ("translate, regions soon", EngineConfig { threshold: 4, background: false, ..translate }),
        ("translate, regions soon, in the background", EngineConfig { threshold: 4, ..translate }),
        ("translate, regions soon, profiled", EngineConfig { threshold: 4, profile: true, ..translate }),
        (
            "translate, under stress",
            EngineConfig { threshold: 2, background: false, stress: Some(7), ..translate },
        ),
        (
            "templates, everything at once",
            EngineConfig { template_threshold: 1, threshold: u32::MAX, hot_threshold: u32::MAX, ..translate },
        ),
        (
            "templates, regions soon",
            EngineConfig {
                template_threshold: 1,
                threshold: u32::MAX,
                hot_threshold: 3,
                background: false,
                ..translate
            },
        ),
        (
            "templates and regions, under stress",
            EngineConfig {
                template_threshold: 1,
                threshold: 3,
                hot_threshold: 2,
                background: false,
                stress: Some(11),
                ..translate
            },
        ),
    ]
}

/// What a guest's source says in a comment `; KEY: VALUE`.
fn note(name: &str, key: &str) -> Option<String> {
    let source =
        std::fs::read_to_string(folder().join(format!("{name}.asm"))).expect("the guest was just assembled");
    source.lines().find_map(|line| line.strip_prefix(&format!("; {key}: ")).map(str::to_owned))
}

/// The machine that a guest wants: the usual one, or as its comment `; options: no paravirt` says.
fn machine(name: &str, image: &Path) -> Config {
    let paravirt = match note(name, "options").as_deref() {
        None => true,
        Some("no paravirt") => false,
        Some(other) => panic!("{name}.asm wants unknown options: {other}"),
    };
    Config { memory: Size(64 << 20), paravirt, ..Config::new(image.into()) }
}

/// How a guest ends where all is well: through the debug-exit port, or as its comment `; ends: triple fault` says.
fn ends_well(name: &str, outcome: &Outcome) -> bool {
    match note(name, "ends").as_deref() {
        None => *outcome == Outcome::DebugExit(PASSED),
        Some("triple fault") => matches!(outcome, Outcome::TripleFault(_)),
        Some(other) => panic!("{name}.asm ends in an unknown way: {other}"),
    }
}

fn run(name: &str) {
    let image = assemble(name);
    let mut failures = Vec::new();
    for (engine, config) in engines(name == "window") {
        let machine = Machine::launch(Config { engine: config, ..machine(name, &image) });
        let (outcome, console) = machine.wait_end(Duration::from_secs(60));
        match outcome {
            Ok((outcome, _)) if ends_well(name, &outcome) => {}
            Ok((outcome, _)) => failures.push(format!("{name} ({engine}): {outcome}\n{console}")),
            Err(error) => failures.push(format!("{name} ({engine}): {error}\n{console}")),
        }
    }
    failures.extend(run_twice(name, &image));
    std::fs::remove_file(&image).expect("the image is ours");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// With translations kept from one run to the next: the same again, and nothing that the first run kept is translated.
fn run_twice(name: &str, image: &Path) -> Vec<String> {
    let file = image.with_extension("translations");
    let engine = EngineConfig {
        template_threshold: 1,
        threshold: u32::MAX,
        hot_threshold: u32::MAX,
        patient: false,
        windows: false,
        ..EngineConfig::default()
    };
    let mut failures = Vec::new();
    let mut kept = 0;
    for run in ["kept", "from what was kept"] {
        let (translations, refusal) = Translations::open(&file);
        assert!(refusal.is_none(), "{refusal:?}");
        let translations = translations.map(Arc::new);
        let machine = Machine::launch(Config { engine, translations, ..machine(name, image) });
        let (outcome, console) = machine.wait_end(Duration::from_secs(60));
        match outcome {
            Ok((outcome, report)) if ends_well(name, &outcome) => {
                let report = report.translations.expect("they were asked for");
                if run == "kept" {
                    kept = report.new;
                } else if report.loaded < kept || report.new * 20 > kept {
                    // When interrupts come is not the same twice.
                    failures.push(format!("{name} ({run}): {report}, {kept} were kept"));
                }
            }
            Ok((outcome, _)) => failures.push(format!("{name} ({run}): {outcome}\n{console}")),
            Err(error) => failures.push(format!("{name} ({run}): {error}\n{console}")),
        }
    }
    // There is none if nothing was translated.
    let _ = std::fs::remove_file(file);
    failures
}

/// What a KVM that is itself an emulation is known not to do: the guest, what its failure shows, and why. On KVM in hardware every
/// guest passes; a failure that shows something else fails the test on either.
const BEYOND_EMULATED_KVM: &[(&str, &str, &str)] = &[
    ("descriptors", "cannot emulate the guest's instruction", "far jumps through memory"),
    ("exceptions", "cannot emulate the guest's instruction", "INT3"),
    ("gates", "cannot emulate the guest's instruction", "INT n"),
    (
        "interrupts",
        "FAILED: check 2:",
        "windows for interrupts open late: it emulates several instructions at a time",
    ),
    ("modes", "cannot emulate the guest's instruction", "INT n"),
    ("msr", "unexpected vector 000000000000000d", "no RDTSCP, so no IA32_TSC_AUX"),
    ("nested_faults", "FAILED: check 1:", "an absent gate is a double fault at once"),
    ("nmi", "FAILED: check 3:", "NMIs are not blocked in their handler"),
    ("nmi", "cannot emulate the guest's instruction", "INT3 (CC) in 64-bit code, now and then"),
    ("paging", "FAILED: check 30:", "INT n in ring 3"),
    ("tasks", "cannot emulate the guest's instruction", "far jumps to a task"),
    ("window", "FAILED: check 1:", "INT n in ring 3"),
];

/// On the hardware-assisted engine, wherever there is a KVM that may be opened.
fn run_on_kvm(name: &str) {
    let device = Path::new(kvm::DEVICE);
    let host = match Host::open(device) {
        Ok(host) => host,
        Err(error @ (KvmError::Missing(_) | KvmError::NotPermitted(_))) => {
            println!("{name} does not run on KVM: {error}");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let image = assemble(name);
    let config = Config { kvm: Some(device.into()), ..machine(name, &image) };
    let (outcome, console) = Machine::launch(config).wait_end(Duration::from_secs(120));
    std::fs::remove_file(&image).expect("the image is ours");
    let failure = match outcome {
        Ok((outcome, _)) if ends_well(name, &outcome) => return,
        Ok((outcome, _)) => format!("{name} (kvm): {outcome}\n{console}"),
        Err(error) => format!("{name} (kvm): {error}\n{console}"),
    };
    let known =
        BEYOND_EMULATED_KVM.iter().find(|(guest, shows, _)| *guest == name && failure.contains(shows));
    match (known, host.backing().expect("a guest of a few bytes runs")) {
        (Some((_, _, why)), Backing::Emulated) => println!("{name}: beyond this host's emulated KVM: {why}"),
        (_, backing) => panic!("KVM ({backing}): {failure}"),
    }
}

macro_rules! guests {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        mod on_kvm {
            $(#[test] fn $name() { super::run_on_kvm(stringify!($name)); })*
        }

        #[test]
        fn every_guest_has_its_test() {
            let mut guests: Vec<String> = std::fs::read_dir(folder())
                .expect("the folder of guests")
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_suffix(".asm").map(str::to_owned))
                .collect();
            guests.sort();
            let mut tested = [$(stringify!($name)),*];
            tested.sort_unstable();
            assert_eq!(guests, tested);
        }
    };
}

guests! {
    chaining descriptors exceptions gates interrupts modes msr nested_faults nmi no_paravirt paging paravirt pcid smc tasks timers
    triple window
}
