//! Profiles of whole machines: exact over bare-metal guests and a Debian boot, named as the guest names itself, written so
//! that nothing is lost, refused where they make no sense.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use guest_images::{CacheDir, Silent};
use profiler::{
    model::{End, Profile, Stack, Tier},
    store::{self, Directory},
    symbols::Symbols,
};
use runtime::EngineConfig;
use transvisor::{
    config::Config,
    harness::Machine,
    outcome::Outcome,
    profile::{ForPerf, ProfileConfig},
    size::Size,
};
use transvisor_tests::debian::{self, BOOT, COMMAND, PROMPT};

fn folder(name: &str) -> PathBuf {
    debian::folder(env!("CARGO_TARGET_TMPDIR"), &format!("profile-{name}"))
}

fn recorded(config: Config, folder: &Path) -> Config {
    let directory = Directory::create(folder).expect("a new directory");
    config.profiled(ProfileConfig { directory, symbols: None, for_perf: ForPerf::Nothing })
}

/// What holds for every profile of a run that has ended.
fn check(profile: &Profile, instructions: u64) {
    assert!(profile.complete);
    let totals = &profile.totals;
    assert_eq!((totals.counted, totals.instructions), (instructions, instructions));
    assert_eq!(profile.blocks.iter().map(|block| block.executed).sum::<u64>(), instructions);
    for pair in profile.blocks.windows(2) {
        assert!(pair[0].executed >= pair[1].executed, "hottest first");
    }
}

fn assemble(name: &str) -> PathBuf {
    let system = Path::new(env!("CARGO_MANIFEST_DIR")).join("system");
    let image =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("profile-{name}-{}.elf", std::process::id()));
    let status = Command::new("nasm")
        .current_dir(system)
        .args(["-w-all", "-f", "bin", "-o"])
        .arg(&image)
        .arg(format!("{name}.asm"))
        .status()
        .expect("nasm starts; run the tests by `cargo xtask test`, which brings it");
    assert!(status.success(), "{name}");
    image
}

#[test]
fn bare_metal_guests_are_counted_exactly() {
    let soon =
        EngineConfig { template_threshold: 2, threshold: 6, hot_threshold: 4, ..EngineConfig::default() };
    for name in ["chaining", "exceptions", "paging", "smc", "timers"] {
        let image = assemble(name);
        for engine in [EngineConfig::default(), soon, EngineConfig::interpret()] {
            let folder = folder(name);
            let config = Config { memory: Size(64 << 20), engine, ..Config::new(image.clone()) };
            let (ended, console) = Machine::launch(recorded(config, &folder)).wait_end(COMMAND);
            let (outcome, report) = ended.unwrap_or_else(|error| panic!("{name}: {error}\n{console}"));
            assert_eq!(outcome, Outcome::DebugExit(0x21), "{name}: {console}");
            let profile = store::load(&folder).unwrap();
            check(&profile, report.instructions);
            assert!(profile.exits.contains_key("callout: out"), "{:?}", profile.exits);
            fs::remove_dir_all(folder).unwrap();
        }
        fs::remove_file(image).unwrap();
    }
}

fn debian(entry: boot::Entry) -> Config {
    let cache = CacheDir::from_environment().expect("a place for the cache");
    let guest = guest_images::fetch("debian", &cache, &mut Silent).expect("the guest can be fetched");
    Config {
        initramfs: Some(guest.initramfs.clone()),
        cmdline: format!("{} LINES=50 COLUMNS=300", guest.cmdline),
        memory: Size(guest.memory),
        entry,
        ..Config::new(guest.kernel.clone())
    }
}

/// The kernel's own table as the guest prints it: address by name, every tenth symbol.
fn kallsyms(machine: &mut Machine) -> HashMap<String, u64> {
    machine.wait_for("BusyBox", BOOT);
    machine.wait_for(PROMPT, BOOT);
    let text = machine.command("awk 'NR % 10 == 1 || / _text$/' /proc/kallsyms", PROMPT, COMMAND);
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u64::from_str_radix(fields.next()?, 16).ok()?;
        fields.next()?;
        Some((fields.next()?.to_owned(), address))
    };
    text.lines().filter_map(line).collect()
}

/// Boots Debian with a profile, and compares the names in it with what the guest says.
fn debian_is_named_as_it_names_itself(
    entry: boot::Entry,
    symbols: Option<Symbols>,
    name: &str,
    source: &str,
) -> (Profile, HashMap<String, u64>) {
    let folder = folder(name);
    let directory = Directory::create(&folder).expect("a new directory");
    let symbols = symbols.map(Arc::new);
    let config = debian(entry).profiled(ProfileConfig { directory, symbols, for_perf: ForPerf::Nothing });
    let mut machine = Machine::launch(config);
    let printed = kallsyms(&mut machine);
    assert!(printed.len() > 5000, "{}", printed.len());
    // Names that several functions have say nothing.
    machine.type_text("poweroff -f\n");
    let (ended, console) = machine.wait_end(COMMAND);
    let (outcome, report) = ended.unwrap_or_else(|error| panic!("{error}\n{console}"));
    assert_eq!(outcome, Outcome::PowerOff, "{console}");
    let profile = store::load(&folder).unwrap();
    check(&profile, report.instructions);
    assert_eq!(profile.symbols.source, source, "{:?}", profile.symbols.note);
    assert!(
        profile
            .run
            .banner
            .as_deref()
            .is_some_and(|banner| console.contains(banner.split(" (").next().unwrap()))
    );

    let starts: HashMap<&str, u64> = profile
        .blocks
        .iter()
        .filter_map(|block| Some((block.symbol.as_deref().filter(|name| !name.contains('+'))?, block.rip)))
        .collect();
    let compared: Vec<_> =
        printed.iter().filter_map(|(name, at)| Some((name, at, starts.get(name.as_str())?))).collect();
    let wrong: Vec<_> = compared.iter().filter(|(_, printed, found)| printed != found).collect();
    // Some static functions share their names.
    assert!(
        compared.len() > 200 && wrong.len() * 20 < compared.len(),
        "{} of {}: {wrong:x?}",
        wrong.len(),
        compared.len()
    );
    // Nearly all kernel code that runs has a name.
    let kernel =
        profile.blocks.iter().filter(|block| !block.user && block.bits == 64 && block.rip >> 63 == 1);
    let (named, unnamed): (Vec<_>, Vec<_>) = kernel.partition(|block| block.symbol.is_some());
    assert!(unnamed.len() * 50 < named.len(), "{} of {}", unnamed.len(), named.len());
    for file in [store::REPORT, store::FLAMEGRAPH, store::SPEEDSCOPE, store::LIVE] {
        assert!(fs::metadata(folder.join(file)).unwrap().len() > 1000, "{file}");
    }
    fs::remove_dir_all(folder).unwrap();
    (profile, printed)
}

const OWN: &str = "kallsyms in guest memory";

#[test]
fn a_debian_boot_is_counted_and_named() {
    let (profile, printed) = debian_is_named_as_it_names_itself(boot::Entry::Auto, None, "debian", OWN);
    assert!(profile.code.iter().any(|code| code.tier == Tier::Region && code.listing.is_some()));
    assert!(profile.code.iter().any(|code| code.end == End::Invalidated), "the kernel patches itself");
    assert!(profile.blocks.iter().any(|block| block.user && block.symbol.is_none()));
    assert!(profile.totals.samples > 100 && profile.timeline.bins.len() > 10);
    // Debian's kernels have no frame pointers, but tables.
    let stacks = &profile.stacks;
    let frames = |stack: &Stack| stack.frames.iter().map(|&n| stacks.frames[n].as_str()).collect::<Vec<_>>();
    // Outermost is the process, then user code by its file.
    let is_user = |frame: &str| frame.starts_with("user ") || frame.starts_with("busybox+");
    let alone = |stack: &&Stack| stack.frames.len() == 2 && !is_user(frames(stack)[1]);
    let alone: u64 = stacks.stacks.iter().filter(alone).map(|stack| stack.count).sum();
    assert!(stacks.by_tables > 100 && stacks.by_tables > 5 * alone, "{alone} alone, {}", stacks.by_tables);
    let begins =
        |stack: &Stack| matches!(frames(stack)[1], "ret_from_fork" | "secondary_startup_64_no_verify");
    let (whole, cut): (Vec<_>, Vec<_>) = stacks.stacks.iter().partition(|stack| begins(stack));
    assert!(whole.len() > cut.len(), "{} of {}", cut.len(), whole.len() + cut.len());
    assert!(whole.iter().any(|stack| frames(stack).contains(&"start_kernel")));
    let early = |stack: &&Stack| frames(stack)[0] == "(before the first process)";
    assert!(stacks.stacks.iter().filter(early).all(|stack| !is_user(frames(stack)[1])));
    let of = |process: &str| stacks.stacks.iter().filter(|stack| frames(stack)[0] == process).count();
    // Each runs for some milliseconds, so samples may miss one.
    let met = ["swapper/0", "init", "sh", "awk", "mount"].iter().filter(|process| of(process) > 0).count();
    assert!(met >= 3, "{:?}", stacks.frames);

    // A System.map tells the same, also of a kernel that was moved.
    let map = printed.iter().fold(String::new(), |map, (name, at)| format!("{map}{at:016x} T {name}\n"));
    let path = folder("System.map");
    fs::write(&path, map).unwrap();
    let symbols = Symbols::read(&path).unwrap();
    let source = path.to_str().unwrap();
    let (moved, _) = debian_is_named_as_it_names_itself(boot::Entry::Bzimage, Some(symbols), "moved", source);
    assert_eq!(moved.symbols.note, None);
    fs::remove_file(&path).unwrap();
}

#[test]
fn a_kernel_at_a_random_address_is_named_too() {
    // Symbols of another kernel are noticed, and the guest's own taken.
    let text = 0xffff_ffff_8100_0000;
    let other = (1..5000).map(|n| (text + 16 * n, format!("function_{n}")));
    let other = other.chain([(text, "_text".to_owned())]).collect();
    let other = Symbols::new(other, "other.map".into());
    let (profile, _) = debian_is_named_as_it_names_itself(boot::Entry::Bzimage, Some(other), "kaslr", OWN);
    let note = profile.symbols.note.unwrap();
    assert!(note.contains("other.map") && note.contains("another kernel"), "{note}");
}
