//! `--profile`, `transvisor profile` and `transvisor top`: what can be wrong with a directory or a file, and a machine that dies half-way.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

fn command(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_transvisor"));
    command.args(arguments).stdin(Stdio::null());
    command
}

fn transvisor(arguments: &[&str]) -> Output {
    command(arguments).output().expect("the binary starts")
}

/// A folder of this test, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("profile-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).expect("the scratch folder can be written");
        Self(path)
    }

    fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("the path is UTF-8").to_owned()
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> String {
        let path = self.path(name);
        fs::write(&path, contents).expect("the scratch folder can be written");
        path
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The command fails with status 2, and its complaint holds all of `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = transvisor(arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
    assert!(!complaint.contains("panicked"), "{arguments:?}: {complaint}");
    for word in words {
        assert!(complaint.contains(word), "{arguments:?}: `{word}` is not in: {complaint}");
    }
}

/// A kernel with a PVH entry that does nothing but loop.
fn looping_kernel() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
    let word = |elf: &mut Vec<u8>, value: u64| elf.extend(value.to_le_bytes());
    for value in [LOAD + 0x200, 64, 0] {
        word(&mut elf, value);
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    // A segment to load, and a note.
    for (kind, offset, size) in [(1u32, 0u64, 0x300u64), (4, 0x100, 20)] {
        elf.extend(kind.to_le_bytes());
        elf.extend(7u32.to_le_bytes());
        for value in [offset, LOAD + offset, LOAD + offset, size, size, 4] {
            word(&mut elf, value);
        }
    }
    elf.resize(0x100, 0);
    for value in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD as u32 + 0x200] {
        elf.extend(value.to_le_bytes());
    }
    elf.resize(0x200, 0);
    // l: inc eax; jmp l
    elf.extend([0x40, 0xeb, 0xfd]);
    elf.resize(0x300, 0);
    elf
}

#[test]
fn directories_that_can_t_be_used() {
    let scratch = Scratch::new("directories");
    let kernel = scratch.file("kernel", looping_kernel());
    let run =
        |profile: &str, words: &[&str]| refused(&["run", "--kernel", &kernel, "--profile", profile], words);
    let file = scratch.file("file", "something");
    run(&file, &["--profile", &file, "name a new one"]);
    run(scratch.0.to_str().unwrap(), &["--profile", "exists"]);
    run("/proc/transvisor", &["--profile", "/proc/transvisor", "can be written"]);
    refused(&["run", "--kernel", &kernel, "--symbols", &file], &["--profile"]);
    refused(&["run", "--kernel", &kernel, "--jitdump"], &["--profile"]);
    let both = ["--profile", "/nonexistent/p", "--jitdump", "--perf-map"];
    refused(
        &[&["run", "--kernel", &kernel], both.as_slice()].concat(),
        &["--perf-map", "cannot be used with"],
    );
}

#[test]
fn symbols_that_are_none() {
    let scratch = Scratch::new("symbols");
    let kernel = scratch.file("kernel", looping_kernel());
    let run = |symbols: &str, words: &[&str]| {
        let profile = scratch.path("new");
        refused(&["run", "--kernel", &kernel, "--profile", &profile, "--symbols", symbols], words);
        assert!(!Path::new(&profile).exists(), "nothing is left behind");
    };
    run("/nonexistent/System.map", &["--symbols /nonexistent/System.map"]);
    run(&scratch.file("text", "What is this?\n"), &["line 1", "System.map"]);
    run(&kernel, &["no symbol table"]);
    let stub = "ffffffffffffffff B The real System.map is in the linux-image-<version>-dbg package\n";
    run(&scratch.file("stub", stub), &["placeholder", "-dbg"]);
}

#[test]
fn files_that_are_no_profiles() {
    let scratch = Scratch::new("files");
    let nothing = scratch.path("nothing");
    refused(&["profile", "show", &nothing], &[&nothing, "--profile"]);
    let directory = scratch.path("empty");
    fs::create_dir(&directory).unwrap();
    refused(&["profile", "show", &directory], &["blocks.json"]);
    refused(&["top", &directory], &["nothing was written yet"]);
    let other = scratch.file("other", r#"{"format":"pprof","version":3}"#);
    refused(&["profile", "show", &other], &[&other, "not a profile"]);
    refused(&["profile", "diff", &other, &other], &["not a profile"]);
    let later = scratch.file("later", r#"{"format":"transvisor-profile","version":9}"#);
    refused(&["profile", "report", &later], &["version 9"]);
    let cut = scratch.file("cut", r#"{"format":"transvisor-profile","version":1,"complete":tr"#);
    refused(&["profile", "show", &cut], &["cut off"]);
}

#[test]
fn a_machine_that_is_killed_leaves_what_was_gathered() {
    let scratch = Scratch::new("killed");
    let kernel = scratch.file("kernel", looping_kernel());
    let profile = scratch.path("profile");
    let mut machine = command(&[
        "run",
        "--kernel",
        &kernel,
        "--memory",
        "32M",
        "--serial",
        "null",
        "--profile",
        &profile,
        "--perf-map",
    ])
    .stdout(Stdio::null())
    .stderr(Stdio::null())
    .spawn()
    .expect("the binary starts");
    let blocks = Path::new(&profile).join("blocks.json");
    let deadline = Instant::now() + Duration::from_secs(120);
    while !blocks.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(50));
    }
    let live = transvisor(&["top", &profile, "--once", "--top", "3"]);
    let map = PathBuf::from(format!("/tmp/perf-{}.map", machine.id()));
    machine.kill().expect("it runs");
    machine.wait().expect("it was started");

    // What perf reads: start, size, name.
    let names = fs::read_to_string(&map).unwrap();
    fs::remove_file(&map).unwrap();
    assert!(names.lines().any(|line| line.ends_with(" guest_compiled:0x100200")), "{names}");

    let text = String::from_utf8_lossy(&live.stdout).into_owned();
    assert!(text.contains("0x100200") && text.contains("had not ended"), "{text}{live:?}");
    let show = transvisor(&["profile", "show", &profile, "--sort", "executions"]);
    let text = String::from_utf8_lossy(&show.stdout).into_owned();
    assert!(
        show.status.success() && text.contains("0x100200") && text.contains("M guest instructions"),
        "{text}"
    );
    let report = transvisor(&["profile", "report", &profile]);
    assert!(report.status.success(), "{report:?}");
    let page = fs::read_to_string(Path::new(&profile).join("report.html")).unwrap();
    assert!(page.contains("0x100200"));
    let diff = transvisor(&["profile", "diff", &profile, &profile]);
    assert!(diff.status.success() && String::from_utf8_lossy(&diff.stdout).contains("hotter"));
}

/// `perf`, if this host lets anybody record.
fn perf(arguments: &[&str]) -> Output {
    let mut command = Command::new("perf");
    command.args(arguments).stdin(Stdio::null()).env("LC_ALL", "C");
    command.output().expect("perf starts; run the tests by `cargo xtask test`, which brings it")
}

#[test]
fn perf_names_translated_code_by_the_jitdump() {
    let scratch = Scratch::new("jitdump");
    let (data, injected) = (scratch.path("perf.data"), scratch.path("perf.jit.data"));
    let record = ["record", "-k", "1", "-e", "cpu-clock", "-F", "1000", "-o", &data];
    let probe = perf(&[record.as_slice(), &["true"]].concat());
    if !probe.status.success() {
        // What is in the file is tested in any case (tests/tests/jitdump.rs).
        let complaint = String::from_utf8_lossy(&probe.stderr);
        let is_host =
            ["perf_event", "ermission", "not permitted"].iter().any(|word| complaint.contains(word));
        assert!(is_host, "{complaint}");
        eprintln!("this host lets nobody record: {complaint}");
        return;
    }
    let (kernel, profile) = (scratch.file("kernel", looping_kernel()), scratch.path("profile"));
    let run = ["run", "--kernel", &kernel, "--memory", "32M", "--serial", "null"];
    let machine =
        [&["timeout", "-s", "TERM", "3", env!("CARGO_BIN_EXE_transvisor")], run.as_slice()].concat();
    let all = [record.as_slice(), &machine, &["--profile", &profile, "--jitdump"]].concat();
    let output = perf(&all);
    assert!(Path::new(&profile).join("report.html").exists(), "{output:?}");
    let inject = perf(&["inject", "--jit", "-i", &data, "-o", &injected]);
    assert!(inject.status.success(), "{inject:?}");
    let report = perf(&["report", "--stdio", "-s", "symbol", "-i", &injected]);
    let text = String::from_utf8_lossy(&report.stdout).into_owned();
    // The loop is all that the guest does, and it is compiled by then.
    let line = text.lines().find(|line| line.contains("guest_compiled:0x100200"));
    let share = line.and_then(|line| line.trim().split_once('%')?.0.parse::<f64>().ok());
    assert!(share.is_some_and(|share| share > 50.0), "{text}");
}
