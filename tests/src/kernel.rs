//! The kernel in `tests/lines`: a guest of known lines, with DWARF and a build ID, which runs elsewhere than it was linked for.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

/// How far above where it was linked it runs.
pub const SLIDE: u64 = 0x0ae0_0000;

const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-g",
    "-O1",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fPIE",
    "-no-pie",
    "-fvisibility=hidden",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-Wl,-T,kernel.ld,--build-id=sha1,-z,noexecstack,--no-warn-rwx-segments",
];

/// Compiles it; another variant is another kernel, with symbols of the same names.
pub fn compile(output: &Path, variant: u32) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("lines");
    let status = Command::new("cc")
        .current_dir(&source)
        .args(FLAGS)
        .args([format!("-DSLIDE={SLIDE:#x}"), format!("-DVARIANT={variant}")])
        .arg("-o")
        .arg(output)
        .args(["entry.S", "kernel.c"])
        .status()
        .expect("cc starts");
    assert!(status.success(), "{}", source.display());
    output.to_owned()
}

/// The line of `kernel.c` that a comment marks.
pub fn line(mark: &str) -> String {
    let source = include_str!("../lines/kernel.c");
    let number = source.lines().position(|line| line.ends_with(&format!("/* {mark} */"))).expect("a mark");
    format!("kernel.c:{}", number + 1)
}
