//! Debian's stock kernels boot to a shell; commands are typed at the console and their output compared; power-off.

use std::{path::Path, sync::Arc};

use guest_images::{CacheDir, Guest, Silent};
use iced_x86::CpuidFeature;
use runtime::{EngineConfig, EngineMode, persistent::Translations};
use semantics::native::is_offered;
use transvisor::{config::Config, harness::Machine, outcome::Outcome, size::Size};
use transvisor_tests::debian::{BOOT, COMMAND, PROMPT, folder};

/// The cache of the user who runs the tests, so that guests are fetched once.
fn guest(recipe: &str) -> Guest {
    let cache = CacheDir::from_environment().expect("a place for the cache");
    guest_images::fetch(recipe, &cache, &mut Silent).expect("the guest can be fetched")
}

fn config(guest: &Guest, mode: EngineMode) -> Config {
    Config {
        initramfs: Some(guest.initramfs.clone()),
        // A wide terminal: the shell would break the echo of long commands.
        cmdline: format!("{} LINES=50 COLUMNS=300", guest.cmdline),
        memory: Size(guest.memory),
        engine: EngineConfig { mode, ..EngineConfig::default() },
        ..Config::new(guest.kernel.clone())
    }
}

/// A machine at its prompt.
fn booted(config: Config) -> Machine {
    let mut machine = Machine::launch(config);
    machine.wait_for("BusyBox", BOOT);
    machine.wait_for(PROMPT, BOOT);
    machine
}

/// What a command prints. BusyBox's shell asks the terminal for its cursor after each prompt.
fn output(machine: &mut Machine, command: &str) -> String {
    machine.command(command, PROMPT, COMMAND).replace("\x1b[6n", "")
}

fn power_off(machine: Machine) {
    machine.type_text("poweroff -f\n");
    let (ended, console) = machine.wait_end(COMMAND);
    match ended {
        Ok((outcome, report)) => {
            assert_eq!(outcome, Outcome::PowerOff, "{console}");
            assert!(report.instructions > 100_000_000, "{report}");
        }
        Err(error) => panic!("{error}\n{console}"),
    }
}

/// The version that the kernel's own header tells.
fn version(kernel: &Path) -> String {
    let bytes = std::fs::read(kernel).expect("the kernel can be read");
    // Documentation/arch/x86/boot.rst: kernel_version is an offset from 0x200.
    let offset = 0x200 + usize::from(u16::from_le_bytes([bytes[0x20e], bytes[0x20f]]));
    let text: Vec<u8> = bytes[offset..].iter().copied().take_while(|&byte| byte != b' ').collect();
    String::from_utf8(text).expect("a version in ASCII")
}

#[test]
fn debian_boots_to_a_shell_by_translation() {
    let guest = guest("debian");
    let mut machine = booted(config(&guest, EngineMode::Translate));

    let uname = output(&mut machine, "uname -a");
    assert!(uname.contains(&version(&guest.kernel)) && uname.contains("x86_64"), "{uname}");

    let cpuinfo = output(&mut machine, "cat /proc/cpuinfo");
    assert!(cpuinfo.contains("model name\t: Transvisor Virtual Processor"), "{cpuinfo}");
    for flag in ["sse4_2", "cx16", "popcnt", "fsgsbase", "x2apic", "tsc_deadline_timer", "erms", "smap"] {
        assert!(cpuinfo.split_whitespace().any(|word| word == flag), "{flag}: {cpuinfo}");
    }
    // Those whose instructions become the host's are there if the host has them.
    for (flag, feature) in [
        ("bmi1", CpuidFeature::BMI1),
        ("bmi2", CpuidFeature::BMI2),
        ("adx", CpuidFeature::ADX),
        ("abm", CpuidFeature::LZCNT),
        ("movbe", CpuidFeature::MOVBE),
        ("aes", CpuidFeature::AES),
    ] {
        assert_eq!(
            cpuinfo.split_whitespace().any(|word| word == flag),
            is_offered(feature),
            "{flag}: {cpuinfo}"
        );
    }
    for flag in ["avx", "fma", "avx2"] {
        assert!(cpuinfo.split_whitespace().all(|word| word != flag), "{flag} is announced but not there");
    }

    // It found the hypervisor's interfaces.
    let dmesg = output(&mut machine, "dmesg");
    for words in
        ["Hypervisor detected: KVM", "kvm-clock: Using msrs", "Switched APIC routing to physical x2apic"]
    {
        assert!(dmesg.contains(words), "{words}: {dmesg}");
    }

    let sys = output(&mut machine, "ls /sys");
    assert!(sys.contains("devices") && sys.contains("kernel"), "{sys}");

    // A pipeline whose result is known: the sum of the first 10,000 numbers, the hash of a million zeros.
    let sum = output(&mut machine, "seq 1 10000 | awk '{s += $1} END {print s}'");
    assert_eq!(sum, "50005000\n");
    let hash = output(&mut machine, "dd if=/dev/zero bs=1000 count=1000 2>/dev/null | sha256sum");
    assert_eq!(hash, "d29751f2649b32ff572b5e0a9f541ea660a50f94ff0beedfb0b692b924cc8025  -\n");

    // Processes, signals, files, floating point.
    let jobs = "sh -c 'for i in 1 2 3; do (sleep 0.2; echo $i > /tmp/$i) & done; wait; cat /tmp/[123]'";
    assert_eq!(output(&mut machine, jobs), "1\n2\n3\n");
    assert_eq!(output(&mut machine, "awk 'BEGIN {printf \"%.10f\\n\", 2 / 3}'"), "0.6666666667\n");

    // A process that faults is killed, and the shell goes on.
    assert_eq!(output(&mut machine, "sh -c 'kill -SEGV $$'; echo $?"), "Segmentation fault\n139\n");

    // Time: the guest's clock and the host's agree, and sleep sleeps.
    let sleep = "a=$(date +%s); sleep 2; b=$(date +%s); echo $((b - a >= 2 && b - a < 20))";
    let slept = output(&mut machine, sleep);
    assert_eq!(slept, "1\n");

    // The kernel has nothing to complain of.
    let complaints = output(&mut machine, "dmesg | grep -c -E 'BUG:|WARNING:|Oops|unchecked MSR|Call Trace'");
    assert_eq!(complaints, "0\n", "{}", machine.console());
    power_off(machine);
}

#[test]
fn debian_boots_without_paravirtual_features() {
    let guest = guest("debian");
    let mut machine = booted(Config { paravirt: false, ..config(&guest, EngineMode::Translate) });
    let dmesg = output(&mut machine, "dmesg");
    for words in ["kvm", "KVM", "Hypervisor detected", "paravirtualized kernel on KVM"] {
        assert!(!dmesg.contains(words), "{words}: {dmesg}");
    }
    let sources =
        output(&mut machine, "cat /sys/devices/system/clocksource/clocksource0/available_clocksource");
    assert!(sources.contains("tsc") && !sources.contains("kvm"), "{sources}");
    let slept =
        output(&mut machine, "a=$(date +%s); sleep 2; b=$(date +%s); echo $((b - a >= 2 && b - a < 20))");
    assert_eq!(slept, "1\n");
    let complaints = output(&mut machine, "dmesg | grep -c -E 'BUG:|WARNING:|Oops|unchecked MSR|Call Trace'");
    assert_eq!(complaints, "0\n", "{}", machine.console());
    power_off(machine);
}

#[test]
fn debian_boots_to_a_shell_by_interpretation() {
    let guest = guest("debian");
    let mut machine = booted(config(&guest, EngineMode::Interpret));
    let uname = output(&mut machine, "uname -r");
    assert_eq!(uname.trim(), version(&guest.kernel));
    power_off(machine);
}

#[test]
fn debian_boots_while_code_is_thrown_away_at_random() {
    let guest = guest("debian");
    let mut machine = booted(Config {
        engine: EngineConfig { stress: Some(42), background: false, ..EngineConfig::default() },
        ..config(&guest, EngineMode::Translate)
    });
    assert_eq!(output(&mut machine, "seq 1 100 | awk '{ sum += $1 } END { print sum }'"), "5050\n");
    power_off(machine);
}

#[test]
fn the_general_kernel_boots_too() {
    let guest = guest("debian-full");
    let mut machine = booted(config(&guest, EngineMode::Translate));
    assert_eq!(output(&mut machine, "uname -r").trim(), version(&guest.kernel));
    power_off(machine);
}

#[test]
fn a_bzimage_unpacks_itself() {
    let guest = guest("debian");
    let config = Config { entry: boot::Entry::Bzimage, ..config(&guest, EngineMode::Translate) };
    let mut machine = booted(config);
    assert_eq!(output(&mut machine, "echo $((6 * 7))"), "42\n");
    power_off(machine);
}

/// Wherever KASLR puts the kernel: it is 1 of 500 places.
#[test]
fn the_second_boot_takes_its_code_from_the_first() {
    let guest = guest("debian");
    let file = folder(env!("CARGO_TARGET_TMPDIR"), "boot.translations");
    let mut kept = 0;
    for boot in ["first", "second", "second under stress"] {
        let (translations, refusal) = Translations::open(&file);
        assert!(refusal.is_none(), "{refusal:?}");
        let stress = boot.contains("stress").then_some(43);
        let engine = EngineConfig { stress, ..EngineConfig::default() };
        let mut machine = booted(Config {
            entry: boot::Entry::Bzimage,
            engine,
            translations: translations.map(Arc::new),
            ..config(&guest, EngineMode::Translate)
        });
        let sum = output(&mut machine, "seq 1 10000 | awk '{s += $1} END {print s}'");
        assert_eq!(sum, "50005000\n");
        let complaints =
            output(&mut machine, "dmesg | grep -c -E 'BUG:|WARNING:|Oops|unchecked MSR|Call Trace'");
        assert_eq!(complaints, "0\n", "{}", machine.console());
        machine.type_text("poweroff -f\n");
        let (ended, console) = machine.wait_end(COMMAND);
        let (outcome, report) = ended.expect("no error of the engine");
        assert_eq!(outcome, Outcome::PowerOff, "{console}");
        let translations = report.translations.expect("they were asked for");
        match boot {
            "first" => {
                kept = translations.new;
                assert!(kept > 20_000 && translations.written.is_some(), "{translations}");
            }
            "second" => {
                assert!(translations.loaded * 100 > kept * 95, "{translations}, {kept} were kept");
                assert!(translations.new * 20 < kept, "{translations}, {kept} were kept");
            }
            _ => assert!(translations.loaded > kept / 2, "{translations}, {kept} were kept"),
        }
    }
    std::fs::remove_file(file).expect("it was written");
}

#[test]
fn a_kernel_panic_is_told_from_a_reboot() {
    let guest = guest("debian");
    // No initramfs and no root: the kernel panics, and `panic=-1` resets.
    let rootless = Config { initramfs: None, ..config(&guest, EngineMode::Translate) };
    let (ended, console) = Machine::launch(rootless).wait_end(BOOT);
    assert_eq!(ended.expect("the machine runs").0, Outcome::Panic, "{console}");

    let machine = booted(Config { no_reboot: true, ..config(&guest, EngineMode::Translate) });
    machine.type_text("reboot -f\n");
    let (ended, console) = machine.wait_end(COMMAND);
    assert_eq!(ended.expect("the machine runs").0, Outcome::Reboot, "{console}");
}
