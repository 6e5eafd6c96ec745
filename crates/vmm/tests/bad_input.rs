//! Whatever is wrong with what a user gives, the command says which file or option it is and what to do, ends with
//! status 2, and leaves nothing half-written.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

fn transvisor(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_transvisor"))
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("the binary starts")
}

/// A file of this test, gone with it.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, bytes: &[u8]) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()));
        fs::write(&path, bytes).expect("the scratch folder can be written");
        Self(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().expect("the path is UTF-8")
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // Nothing depends on it.
        let _ = fs::remove_file(&self.0);
    }
}

/// The command fails with status 2, and its complaint holds all of `words`.
fn refused(arguments: &[&str], words: &[&str]) {
    let output = transvisor(arguments);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {complaint}");
    assert!(output.stdout.is_empty(), "{arguments:?} wrote to standard output");
    assert!(!complaint.contains("panicked"), "{arguments:?}: {complaint}");
    for word in words {
        assert!(complaint.contains(word), "{arguments:?}: `{word}` is not in: {complaint}");
    }
}

#[test]
fn options() {
    refused(&["run", "debian", "--colour"], &["--colour"]);
    refused(&["run"], &["--kernel", "transvisor list"]);
    refused(&["run", "debian", "--engine", "magic"], &["--engine", "interpret"]);
    refused(&["run", "debian", "--memory", "lots"], &["--memory", "512M"]);
    refused(&["run", "--kernel", "/dev/null", "--cpus", "2"], &["--cpus", "1"]);
    refused(&["run", "--kernel", "/dev/null", "--compile-threshold", "0"], &["--compile-threshold"]);
    refused(&["run", "--kernel", "/dev/null", "--serial", "pigeon"], &["--serial", "stdio"]);
    refused(&["frobnicate"], &["frobnicate"]);
}

#[test]
fn no_kvm() {
    let kernel = Scratch::new("no-kvm", &hello_elf());
    let run = ["run", "--kernel", kernel.path(), "--memory", "16M", "--engine", "kvm", "--kvm-device"];
    refused(
        &[&run[..], &["/nonexistent/kvm"]].concat(),
        &["/nonexistent/kvm is not there", "--engine translate"],
    );
    refused(
        &[&run[..], &["/dev/kvm", "--profile", "never-made"]].concat(),
        &["--profile", "--engine translate"],
    );
    refused(&[&run[..], &["/dev/null"]].concat(), &["/dev/null is no KVM", "--engine translate"]);
}

#[test]
fn auto_translates_without_kvm_and_says_why() {
    let kernel = Scratch::new("auto", &hello_elf());
    let output = transvisor(&[
        "run",
        "-q",
        "--kernel",
        kernel.path(),
        "--memory",
        "16M",
        "--engine",
        "auto",
        "--kvm-device",
        "/nonexistent/kvm",
    ]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("engine: translate, because /nonexistent/kvm is not there"), "{said}");
    // The guest ran.
    assert_eq!(output.status.code(), Some(0x21), "{said}");
}

#[test]
fn comparisons() {
    let cache = Scratch::new("compare-cache", b"");
    let cache_dir = format!("{}.d", cache.path());
    let compare = ["compare", "nanobench", "--no-qemu", "--cache-dir", &cache_dir];
    refused(&[&compare[..], &["--rounds", "0"]].concat(), &["--rounds", "at least 1"]);
    refused(
        &[&compare[..], &["--html", "/nonexistent/page.html"]].concat(),
        &["--html", "/nonexistent/page.html"],
    );
    refused(
        &[&compare[..], &["--only", "nobody"]].concat(),
        &["--only", "translate, translate + paravirt, interpret"],
    );
    refused(&["compare", "weather"], &["nanobench", "compute"]);

    let output = transvisor(&[&compare[..], &["--only", "translate", "--rounds", "1", "--json"]].concat());
    let said = String::from_utf8_lossy(&output.stdout);
    let comparison: serde_json::Value = serde_json::from_str(&said).expect("JSON");
    let column = &comparison["sections"][0]["columns"][0];
    assert_eq!((column["name"].as_str(), column["emulated"].as_bool()), (Some("translate"), Some(false)));
    assert!(column["figures"]["cpuid"]["median"].as_f64().expect("a figure") > 0.0, "{said}");
    // The same guest by hypercalls is the next column: only what there is a hypercall for.
    let paravirt = &comparison["sections"][0]["columns"][1];
    assert_eq!(
        (paravirt["name"].as_str(), paravirt["technique"].as_str()),
        (Some("translate + paravirt"), Some("paravirtualization"))
    );
    assert!(paravirt["figures"]["hypercall"]["median"].as_f64().expect("a figure") > 0.0, "{said}");
    assert!(column["figures"]["hypercall"].is_null() && paravirt["figures"]["iret"].is_null(), "{said}");
    let techniques: Vec<_> =
        comparison["needs"].as_array().expect("a list").iter().map(|need| &need["technique"]).collect();
    assert_eq!(techniques, ["translation", "paravirtualization"]);
    fs::remove_dir_all(cache_dir).expect("the folder is ours");
}

#[test]
fn doctor_without_kvm() {
    let output = transvisor(&["doctor", "--json", "--kvm-device", "/nonexistent/kvm"]);
    assert_eq!(output.status.code(), Some(0));
    let said = String::from_utf8_lossy(&output.stdout);
    for words in ["\"present\": false", "\"automatic\": \"translate\"", "/nonexistent/kvm is not there"] {
        assert!(said.contains(words), "`{words}` is not in: {said}");
    }
}

/// An ELF with a PVH note whose code writes 0x10 to the debug-exit port.
fn hello_elf() -> Vec<u8> {
    const LOAD: u32 = 0x10_0000;
    let note_at = 64 + 2 * 56;
    let code_at = note_at + 20;
    let code = [0xb0, 0x10, 0xe6, 0xf4, 0xf4];
    let total = code_at + code.len();
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0];
    elf.extend([0; 8]);
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend(u64::from(LOAD + code_at as u32).to_le_bytes());
    elf.extend(64u64.to_le_bytes());
    elf.extend([0; 12]);
    elf.extend([64, 0, 56, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
    let mut header = |kind: u32, flags: u32, at: usize, size: usize, align: u64| {
        elf.extend(kind.to_le_bytes());
        elf.extend(flags.to_le_bytes());
        elf.extend((at as u64).to_le_bytes());
        let address = u64::from(LOAD) + at as u64;
        for value in [address, address, size as u64, size as u64, align] {
            elf.extend(value.to_le_bytes());
        }
    };
    header(1, 7, 0, total, 0x1000);
    header(4, 4, note_at, 20, 4);
    for word in [4u32, 4, 18, u32::from_le_bytes(*b"Xen\0"), LOAD + code_at as u32] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

#[test]
fn a_translation_cache_that_can_not_be_used_is_said_and_the_guest_runs() {
    let kernel = Scratch::new("cache-kernel", &hello_elf());
    let damaged = Scratch::new("damaged.translations", &[b'x'; 100]);
    let others = Scratch::new("writable.translations", &[0; 100]);
    fs::set_permissions(&others.0, fs::Permissions::from_mode(0o666)).expect("it is ours");
    for (file, word) in [("/", "no regular file"), (damaged.path(), "damaged"), (others.path(), "chmod 600")]
    {
        let run = ["run", "-q", "--kernel", kernel.path(), "--memory", "16M", "--translation-cache", file];
        let output = transvisor(&run);
        let said = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = said.lines().filter(|line| line.contains("translation cache")).collect();
        assert_eq!(lines.len(), 1, "{said}");
        assert!(lines[0].contains(file) && lines[0].contains(word), "{said}");
        // The guest ran.
        assert_eq!(output.status.code(), Some(0x21), "{said}");
    }
    refused(&["run", "--kernel", kernel.path(), "--translation-cache", ""], &["--translation-cache", "off"]);
}

#[test]
fn memory() {
    let kernel = Scratch::new("memory", b"no kernel, but it is not reached");
    refused(&["run", "--kernel", kernel.path(), "--memory", "0"], &["--memory", "at least"]);
    refused(&["run", "--kernel", kernel.path(), "--memory", "8388609"], &["--memory", "multiple of 4K"]);
    refused(&["run", "--kernel", kernel.path(), "--memory", "900T"], &["--memory", "this host has"]);
}

#[test]
fn kernels() {
    refused(&["run", "--kernel", "/nonexistent/vmlinuz"], &["/nonexistent/vmlinuz", "kernel"]);
    refused(&["run", "--kernel", "/"], &["kernel", "directory"]);
    let empty = Scratch::new("empty", b"");
    refused(&["run", "--kernel", empty.path()], &[empty.path(), "empty"]);
    let text = Scratch::new("text", b"This is no kernel at all.\n".repeat(100).as_slice());
    refused(&["run", "--kernel", text.path()], &[text.path()]);
    // An ELF of another machine: a 64-byte header that says AArch64.
    let mut elf = vec![0; 4096];
    elf[..20].copy_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\xb7\0");
    let foreign = Scratch::new("foreign", &elf);
    refused(&["run", "--kernel", foreign.path()], &[foreign.path()]);
    // A bzImage that ends in its header.
    let mut header = vec![0; 0x220];
    header[0x1f1] = 4;
    header[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    header[0x202..0x206].copy_from_slice(b"HdrS");
    header[0x206..0x208].copy_from_slice(&[0x0f, 0x02]);
    let truncated = Scratch::new("truncated", &header);
    refused(&["run", "--kernel", truncated.path()], &[truncated.path()]);
}

#[test]
fn unknown_guests() {
    refused(&["run", "windows95"], &["windows95", "debian"]);
    refused(&["fetch", "windows95"], &["windows95", "debian"]);
}

#[test]
fn a_cache_that_cannot_be_written() {
    // A file where a folder is needed: even root can't create folders below it.
    let file = Scratch::new("cache", b"");
    let folder = format!("{}/below", file.path());
    refused(&["fetch", "debian", "--cache-dir", &folder], &[&folder]);
}

#[test]
fn a_serial_file_that_cannot_be_written() {
    let guest = Scratch::new("serial", b"");
    let place = format!("file={}/below/log", guest.path());
    refused(&["run", "--kernel", guest.path(), "--serial", &place], &["--serial", "below/log"]);
}

#[test]
fn help_and_lists_are_no_errors() {
    for arguments in [&["--help"][..], &["run", "--help"], &["--version"], &["list"]] {
        let output = transvisor(arguments);
        assert!(output.status.success(), "{arguments:?}");
        assert!(!output.stdout.is_empty(), "{arguments:?}");
    }
    let list = String::from_utf8(transvisor(&["list"]).stdout).expect("UTF-8");
    assert!(list.contains("debian") && list.contains("debian-full"), "{list}");
}
