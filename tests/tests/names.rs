//! Names of modules, processes and files in a profile, against what the guest says of itself and what is in its files.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::Command,
};

use cpio::{NewcBuilder, NewcReader, newc::ModeFileType, newc::trailer};
use guest_images::{CacheDir, Recipe, Silent, apt::Apt, package};
use object::{Object, ObjectSymbol};
use profiler::{
    model::{Block, Profile},
    store::{self, Directory},
    text,
};
use transvisor::{
    config::Config,
    harness::Machine,
    outcome::Outcome,
    profile::{ForPerf, ProfileConfig},
    size::Size,
};
use transvisor_tests::debian::{self, BOOT, COMMAND, PROMPT};

fn folder(name: &str) -> PathBuf {
    debian::folder(env!("CARGO_TARGET_TMPDIR"), &format!("names-{name}"))
}

const MODULE: &str = "raid6_pq.ko";

/// A kernel and a module of it, out of one package; kept for the next run of the tests.
fn kernel_with_module() -> (PathBuf, Vec<u8>) {
    let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("kernel-with-module");
    let (kernel, module) = (kept.join("vmlinuz"), kept.join(MODULE));
    if !module.exists() {
        let work = folder("package");
        fs::create_dir_all(&kept).unwrap();
        fs::create_dir_all(work.join("packages")).unwrap();
        let (apt, recipe) = (Apt::default(), Recipe::find("debian").unwrap());
        let mut session = apt.session(&work).unwrap();
        session.update(&mut Silent).unwrap();
        let name = session.resolve_kernel(recipe).unwrap();
        let files =
            session.download(std::slice::from_ref(&name), &work.join("packages"), &mut Silent).unwrap();
        let version = name.name.strip_prefix(recipe.kernel_package_prefix).unwrap();
        let path = format!("lib/modules/{version}/kernel/lib/raid6/{MODULE}");
        fs::write(&kernel, package::extract(&files[0], "boot/vmlinuz-", &name.name).unwrap()).unwrap();
        fs::write(&module, package::extract(&files[0], &path, &name.name).unwrap()).unwrap();
        fs::remove_dir_all(work).unwrap();
    }
    (kernel, fs::read(module).unwrap())
}

/// The initramfs with more files, and what is in its BusyBox.
fn initramfs(base: &Path, files: &[(&str, &[u8])]) -> (Vec<u8>, Vec<u8>) {
    let mut bytes = fs::read(base).unwrap();
    let mut busybox = Vec::new();
    let mut rest = bytes.as_slice();
    loop {
        let mut reader = NewcReader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            break;
        }
        if reader.entry().name() == "bin/busybox" {
            reader.read_to_end(&mut busybox).unwrap();
        }
        rest = reader.finish().unwrap();
    }
    for &(name, content) in files {
        let entry = NewcBuilder::new(name).mode(0o755).set_mode_file_type(ModeFileType::Regular);
        let mut writer = entry.write(&mut bytes, content.len() as u32);
        writer.write_all(content).unwrap();
        writer.finish().unwrap();
    }
    (trailer(bytes).unwrap(), busybox)
}

const PROGRAM: &str = "collatz";
/// Calls of the program's one function.
const CALLS: u64 = 3000;

/// A program with symbols, of which the guest has nothing but the file.
fn program(folder: &Path) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("lines/collatz.c");
    let output = folder.join(PROGRAM);
    let status = Command::new("cc").args(["-static", "-O1", "-o"]).arg(&output).arg(source).status();
    assert!(status.expect("cc starts").success());
    fs::read(output).unwrap()
}

/// What the guest says of itself.
struct Told {
    /// Addresses of the module's symbols.
    symbols: HashMap<String, u64>,
    awk: u32,
    console: String,
}

fn run(config: Config) -> Told {
    let mut machine = Machine::launch(config);
    machine.wait_for("BusyBox", BOOT);
    machine.wait_for(PROMPT, BOOT);
    machine.command(&format!("insmod /{MODULE}"), PROMPT, COMMAND);
    let table = machine.command("grep 'raid6_pq.$' /proc/kallsyms", PROMPT, COMMAND);
    let line = |line: &str| {
        let mut fields = line.split_whitespace();
        let address = u64::from_str_radix(fields.next()?, 16).ok()?;
        Some((fields.nth(1)?.to_owned(), address))
    };
    let count =
        "sh -c 'echo number $$; exec awk \"BEGIN {for (i = 0; i < 20000; i++) s += i * i % 7; print s}\"'";
    let text = machine.command(count, PROMPT, COMMAND);
    let awk = text.lines().find_map(|line| line.strip_prefix("number ")?.trim().parse().ok());
    assert!(machine.command("/collatz", PROMPT, COMMAND).contains("215063"), "its sum");
    machine.type_text("poweroff -f\n");
    let (ended, console) = machine.wait_end(COMMAND);
    assert_eq!(ended.expect("the machine runs").0, Outcome::PowerOff, "{console}");
    Told {
        symbols: table.lines().filter_map(line).collect(),
        awk: awk.unwrap_or_else(|| panic!("no number in {text}")),
        console,
    }
}

fn hexadecimal(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|n| u8::from_str_radix(&text[2 * n..2 * n + 2], 16).unwrap()).collect()
}

fn user(profile: &Profile) -> impl Iterator<Item = &Block> {
    profile.blocks.iter().filter(|block| block.user)
}

#[test]
fn modules_processes_and_files_are_named() {
    let (kernel, module) = kernel_with_module();
    let cache = CacheDir::from_environment().expect("a place for the cache");
    let guest = guest_images::fetch("debian", &cache, &mut Silent).expect("the guest can be fetched");
    let folder = folder("debian");
    fs::create_dir_all(&folder).unwrap();
    let program = program(&folder);
    let (archive, busybox) = initramfs(&guest.initramfs, &[(MODULE, &module), (PROGRAM, &program)]);
    fs::write(folder.join("initramfs"), archive).unwrap();
    let directory = Directory::create(&folder.join("profile")).unwrap();
    // It unpacks itself, so KASLR moves kernel and modules.
    let config = Config {
        initramfs: Some(folder.join("initramfs")),
        cmdline: format!("{} LINES=50 COLUMNS=300", guest.cmdline),
        memory: Size(guest.memory),
        entry: boot::Entry::Bzimage,
        ..Config::new(kernel)
    };
    let told = run(config.profiled(ProfileConfig { directory, symbols: None, for_perf: ForPerf::Nothing }));
    let profile = store::load(&folder.join("profile")).unwrap();
    assert!(profile.symbols.structures.contains("modules, processes and files"), "{:?}", profile.symbols);

    // Code of the module begins where the guest says.
    let ending = format!(" [{}]", MODULE.trim_end_matches(".ko"));
    let of_module = |block: &&Block| block.symbol.as_ref().is_some_and(|symbol| symbol.ends_with(&ending));
    let named: Vec<&Block> = profile.blocks.iter().filter(of_module).collect();
    assert!(named.len() > 30, "{}: {}", named.len(), told.console);
    let mut compared = 0;
    for block in &named {
        let symbol = block.symbol.as_ref().unwrap().trim_end_matches(&ending);
        let (name, offset) = symbol.split_once("+0x").unwrap_or((symbol, "0"));
        // Start-up code is gone when the guest is asked.
        if let Some(start) = told.symbols.get(name) {
            assert_eq!(block.rip, start + u64::from_str_radix(offset, 16).unwrap(), "{symbol}");
            compared += 1;
        }
    }
    assert!(compared > 15 && named.len() > compared, "{compared} of {}", named.len());
    let space = |block: &&Block| !block.user && block.rip >= 0xffff_ffff_c000_0000 && block.bits == 64;
    let nameless = profile.blocks.iter().filter(space).filter(|block| block.symbol.is_none()).count();
    assert!(nameless * 10 < named.len(), "{nameless}");

    // All user code has a process; what is of a file is in that file, byte by byte.
    assert!(user(&profile).all(|block| block.process.is_some()));
    let mut files: BTreeMap<&str, usize> = BTreeMap::new();
    for block in user(&profile) {
        let Some(file) = &block.file else { continue };
        *files.entry(&file.path).or_default() += 1;
        if file.path == "/bin/busybox" {
            let bytes = hexadecimal(&block.bytes);
            let from = file.offset as usize;
            assert_eq!(busybox.get(from..from + bytes.len()), Some(bytes.as_slice()), "{block:?}");
        }
    }
    let all = user(&profile).count();
    assert!(
        files["/bin/busybox"] > 3000 && files.values().sum::<usize>() * 50 > all * 49,
        "{files:?} of {all}"
    );

    // Its own code was run by awk first, and it had that number.
    let awk: Vec<&Block> =
        user(&profile).filter(|block| block.process.as_ref().unwrap().name == "awk").collect();
    assert!(awk.len() > 200 && awk.iter().map(|block| block.executed).sum::<u64>() > 100_000);
    assert!(awk.iter().all(|block| block.process.as_ref().unwrap().id == told.awk), "{}", told.awk);
    let first = user(&profile).filter(|block| block.process.as_ref().unwrap().id == 1).count();
    assert!(first > 200, "{first}");

    // Where a file has symbols, functions have names: those that are at these places in the file.
    let functions = functions(&program);
    let of_program = |block: &&Block| block.file.as_ref().is_some_and(|file| file.path == "/collatz");
    let mut named = 0;
    for block in user(&profile).filter(of_program) {
        let Some(symbol) = &block.symbol else { continue };
        let (name, offset) = symbol
            .strip_suffix(" [collatz]")
            .unwrap()
            .split_once("+0x")
            .unwrap_or((symbol.strip_suffix(" [collatz]").unwrap(), "0"));
        let start = block.rip - u64::from_str_radix(offset, 16).unwrap();
        assert!(functions.contains(&(start, name.to_owned())), "{symbol} at {:#x}", block.rip);
        named += 1;
    }
    let all = user(&profile).filter(of_program).count();
    assert!(all > 100 && named * 10 > all * 9, "{named} of {all}");
    let entry = profile.blocks.iter().find(|block| block.symbol.as_deref() == Some("steps [collatz]"));
    assert_eq!(entry.unwrap().executions, CALLS);
    assert_eq!(text::name(entry.unwrap()), "collatz: steps [collatz]");
    fs::remove_dir_all(folder).unwrap();
}

/// Addresses and names of functions. The program is linked for where it runs.
fn functions(elf: &[u8]) -> HashSet<(u64, String)> {
    let file = object::File::parse(elf).unwrap();
    let symbols = file.symbols().filter(|symbol| symbol.kind() == object::SymbolKind::Text);
    symbols.map(|symbol| (symbol.address(), symbol.name().unwrap().to_owned())).collect()
}
