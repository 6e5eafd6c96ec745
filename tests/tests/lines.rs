//! `--symbols` with an ELF kernel: names and source lines of a kernel that was moved and has no symbol table of its own in
//! memory; files that are of another kernel or have no DWARF.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use profiler::{
    model::{Block, Profile},
    store::{self, Directory},
    symbols::Symbols,
    text::{self, Order},
};
use transvisor::{
    config::Config,
    harness::Machine,
    outcome::Outcome,
    profile::{ForPerf, ProfileConfig},
    size::Size,
};
use transvisor_tests::kernel::{self, SLIDE};

/// A folder of this test's own.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("lines-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn objcopy(arguments: &[&str], from: &Path, to: &Path) {
    let status = Command::new("objcopy").args(arguments).arg(from).arg(to).status().expect("objcopy starts");
    assert!(status.success());
}

fn profile(folder: &Folder, image: &Path, symbols: &Path) -> Profile {
    let directory = folder.path("profile");
    let _ = fs::remove_dir_all(&directory);
    let symbols = Some(Arc::new(Symbols::read(symbols).unwrap()));
    let profile = ProfileConfig {
        directory: Directory::create(&directory).unwrap(),
        symbols,
        for_perf: ForPerf::Nothing,
    };
    let config = Config { memory: Size(64 << 20), ..Config::new(image.to_owned()) }.profiled(profile);
    let (ended, console) = Machine::launch(config).wait_end(Duration::from_secs(60));
    assert_eq!(ended.unwrap_or_else(|error| panic!("{error}\n{console}")).0, Outcome::DebugExit(0x21));
    store::load(&directory).unwrap()
}

fn of_line(profile: &Profile, mark: &str) -> Block {
    let line = kernel::line(mark);
    let mut blocks = profile.blocks.iter().filter(|block| block.line.as_deref() == Some(&line));
    let block = blocks.next().unwrap_or_else(|| panic!("nothing of {line}")).clone();
    assert!(blocks.next().is_none(), "one block of {line}");
    block
}

#[test]
fn a_moved_kernel_has_its_lines() {
    let folder = Folder::new("moved");
    let image = kernel::compile(&folder.path("kernel.elf"), 1);
    let whole = profile(&folder, &image, &image);
    assert_eq!(whole.symbols.lines, format!("DWARF of {}", image.display()));
    assert_eq!(whole.symbols.note, None);
    // Before it moves and after.
    assert!(whole.blocks.iter().all(|block| block.symbol.is_some() && block.line.is_some()));
    let (add, body) = (of_line(&whole, "add"), of_line(&whole, "loop"));
    assert_eq!((add.symbol.as_deref(), add.executions), (Some("add"), 200_000));
    assert!(body.symbol.unwrap().starts_with("work+0x"));
    let file = Symbols::read(&image).unwrap();
    assert_eq!(add.rip, file.address_of("add").unwrap() + SLIDE);
    let start = whole.blocks.iter().find(|block| block.symbol.as_deref() == Some("start")).unwrap();
    assert!(start.rip < 1 << 32 && start.line.as_ref().unwrap().starts_with("entry.S:"), "{start:?}");
    // Lines stand beside the instructions, and on a terminal.
    let rows = whole.code.iter().filter_map(|code| code.listing.as_ref()).flat_map(|listing| &listing.rows);
    let lines: Vec<&str> = rows.filter_map(|row| row.line.as_deref()).collect();
    assert!(lines.contains(&kernel::line("loop").as_str()), "{lines:?}");
    let table = text::table(&whole, 5, Order::Instructions);
    assert!(table.contains(&format!("  add  {}\n", kernel::line("add"))), "{table}");

    // Packed as compilers pack it.
    let packed = folder.path("packed.elf");
    objcopy(&["--compress-debug-sections=zlib"], &image, &packed);
    let again = profile(&folder, &image, &packed);
    assert_eq!(of_line(&again, "add").symbol, add.symbol);
}

#[test]
fn a_kernel_without_dwarf_has_names_only() {
    let folder = Folder::new("bare");
    let image = kernel::compile(&folder.path("kernel.elf"), 1);
    let bare = folder.path("bare.elf");
    objcopy(&["--strip-debug"], &image, &bare);
    let named = profile(&folder, &image, &bare);
    assert!(named.symbols.lines.contains("no .debug_line"), "{}", named.symbols.lines);
    assert!(named.blocks.iter().all(|block| block.symbol.is_some() && block.line.is_none()));
    // Damaged DWARF is no worse.
    let mut bytes = fs::read(&image).unwrap();
    let name =
        bytes.windows(11).position(|part| part == b"kernel.c\0\0\0" || part.starts_with(b"kernel.c\0"));
    let at = name.expect("the file's name is in it");
    for round in 0..400 {
        let byte = (at + 7 * round) % bytes.len();
        // What is loaded, and the headers, stay.
        if byte > 0x1200 {
            bytes[byte] ^= 0xa5;
        }
    }
    let damaged = folder.path("damaged.elf");
    fs::write(&damaged, bytes).unwrap();
    if Symbols::read(&damaged).is_ok() {
        profile(&folder, &image, &damaged);
    }
}

#[test]
fn symbols_of_another_build_are_refused() {
    let folder = Folder::new("other");
    let image = kernel::compile(&folder.path("kernel.elf"), 1);
    let other = kernel::compile(&folder.path("other.elf"), 2);
    let nameless = profile(&folder, &image, &other);
    let note = nameless.symbols.note.unwrap();
    assert!(note.contains("other.elf: symbols of another kernel: their build ID"), "{note}");
    let nobody = |block: &Block| block.symbol.is_none() && block.line.is_none();
    assert!(nameless.blocks.iter().all(nobody));
}
