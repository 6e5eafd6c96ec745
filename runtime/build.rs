//! Tells the runtime what it was built from: a hash of everything that decides what code the translator emits and what that
//! code relies on. Translations that were saved by another build are not used (`src/persistent`).

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Sources that count, from this package's directory on.
const SOURCES: [&str; 9] = [
    "build.rs",
    "src",
    "../translator/src",
    "../crates/x86/src",
    "../crates/memory/src",
    "../crates/semantics/src",
    "../crates/monitor/src",
    "../Cargo.toml",
    "../Cargo.lock",
];

fn main() {
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        collect(Path::new(source), &mut files);
    }
    files.sort();
    let mut hash = Fnv::default();
    for file in files {
        hash.add(file.to_string_lossy().as_bytes());
        hash.add(&fs::read(&file).unwrap_or_default());
    }
    for variable in ["TARGET", "PROFILE", "DEBUG", "CARGO_ENCODED_RUSTFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
        hash.add(env::var(variable).unwrap_or_default().as_bytes());
    }
    let compiler = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("-vV").output().ok());
    hash.add(&compiler.map(|output| output.stdout).unwrap_or_default());
    println!("cargo::rustc-env=TRANSVISOR_BUILD={}", hash.0);
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) => files.push(path.to_owned()),
    }
}

/// FNV-1a.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Fnv {
    fn add(&mut self, bytes: &[u8]) {
        for &byte in (bytes.len() as u64).to_le_bytes().iter().chain(bytes) {
            self.0 = (self.0 ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        }
    }
}
