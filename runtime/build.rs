//! Tells the runtime what it was built from: a hash of everything that decides what code the translator emits and what that
//! code relies on. Translations that were saved by another build are not used (`src/persistent`).

use std::{
    env, fs,
    hash::{DefaultHasher, Hash, Hasher},
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
    // Its keys are constants; it may change with the toolchain, which counts too.
    let mut hash = DefaultHasher::new();
    for file in files {
        file.hash(&mut hash);
        fs::read(&file).unwrap_or_default().hash(&mut hash);
    }
    for variable in ["TARGET", "PROFILE", "DEBUG", "CARGO_ENCODED_RUSTFLAGS"] {
        println!("cargo::rerun-if-env-changed={variable}");
        env::var(variable).unwrap_or_default().hash(&mut hash);
    }
    let compiler = env::var_os("RUSTC").and_then(|rustc| Command::new(rustc).arg("-vV").output().ok());
    compiler.map(|output| output.stdout).hash(&mut hash);
    println!("cargo::rustc-env=TRANSVISOR_BUILD={}", hash.finish());
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    match fs::read_dir(path) {
        Ok(entries) => entries.flatten().for_each(|entry| collect(&entry.path(), files)),
        Err(_) => files.push(path.to_owned()),
    }
}
