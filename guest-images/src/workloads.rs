//! Workloads for measurements: programs of our own that run as a guest's first process, and on the host the same files.
//!
//! The sources are in `guest-images/workloads` (`runner.h` has the protocol that they speak on the console). They are
//! compiled here, with the host's C compiler, statically and for any x86-64, and put on top of a recipe's initramfs as a
//! second archive.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::cache::{Lock, WorkDirectory};
use crate::initramfs::{Archive, Kind};
use crate::unpack;
use crate::{CacheDir, Error, Guest, Progress, Step, cache, fetch, files};

/// Where a guest has them.
const FOLDER: &str = "workloads";
const INITRAMFS: &str = "initramfs.cpio";
/// What the compiler writes. No folder of sources has this name.
const OUTPUT: &str = "a.out";

const FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-static",
    "-march=x86-64",
    "-mtune=generic",
    // What is scalar in the source stays so; the packed loop is written with intrinsics.
    "-fno-tree-vectorize",
    "-fno-math-errno",
];

macro_rules! sources {
    ($($name:literal),* $(,)?) => { &[$(($name, include_str!(concat!("../workloads/", $name)))),*] };
}

const NANOBENCH: &[(&str, &str)] = &[
    ("entry.S", include_str!("../nanobench/entry.S")),
    ("nanobench.c", include_str!("../nanobench/nanobench.c")),
];

/// A kernel of its own: no library, no position of its own choosing, nothing that needs SSE or a red zone.
const BARE_METAL_FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-march=x86-64",
    "-mtune=generic",
    "-static",
    "-nostdlib",
    "-ffreestanding",
    "-fno-pie",
    "-no-pie",
    "-mno-red-zone",
    "-mgeneral-regs-only",
    "-fno-stack-protector",
    "-fcf-protection=none",
    "-fno-asynchronous-unwind-tables",
    "-Wl,-Ttext-segment=0x200000,--build-id=none,-z,noexecstack,-e,start",
];

/// The kernel that measures what privileged operations cost (`guest-images/nanobench`): an ELF with a PVH note.
pub fn nanobench(cache: &CacheDir, progress: &mut dyn Progress) -> Result<PathBuf, Error> {
    const NAME: &str = "nanobench";
    let lock = Lock::take(cache, progress)?;
    let work = lock.work_directory(cache::NEEDED)?;
    let kernel = compile(NAME, NANOBENCH, BARE_METAL_FLAGS, &work)?;
    let entry = work.subdirectory("entry")?;
    files::write(&entry.join(NAME), &kernel)?;
    let target = lock.workloads(NAME);
    lock.install(&target, &entry, &work)?;
    Ok(target.join(NAME))
}

const LOOPS: &[(&str, &str)] = sources![
    "runner.h",
    "runner.c",
    "loops/loops.h",
    "loops/main.c",
    "loops/sieve.c",
    "loops/crc32.c",
    "loops/scalar_double.c",
    "loops/matrix_multiply.c",
    "loops/fib.c",
    "loops/pointer_chase.c",
    "loops/quicksort.c",
    "loops/getppid_calls.c",
    "loops/page_faults.c",
    "loops/memory_copy.c",
    "loops/fork_wait.c",
    "loops/pipe_ping_pong.c",
];

/// A guest that runs workloads and powers itself off.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Workloads {
    /// The guest.
    pub guest: Guest,
    /// The program that it runs, on the host.
    pub program: PathBuf,
}

const PROGRAMS: &[(&str, &str)] = sources!["runner.h", "runner.c", "programs/main.c"];

/// What the programs work on.
const PROGRAM_FILES: &[(&str, &str)] = &[
    ("plan", include_str!("../workloads/programs/plan")),
    ("benchmark.py", include_str!("../workloads/programs/benchmark.py")),
    ("benchmark.sql", include_str!("../workloads/programs/benchmark.sql")),
    ("subject.c", include_str!("../workloads/programs/subject.c")),
];

/// Programs of Debian, in the guest of `recipe`, which must have their packages. On the host they need the guest's files:
/// see [`Workloads::unpack`].
pub fn programs(recipe: &str, cache: &CacheDir, progress: &mut dyn Progress) -> Result<Workloads, Error> {
    let guest = fetch(recipe, cache, progress)?;
    let lock = Lock::take(cache, progress)?;
    let work = lock.work_directory(cache::NEEDED_WITH_PACKAGES)?;
    let program = compile("programs", PROGRAMS, FLAGS, &work)?;
    assemble("programs", &program, PROGRAM_FILES, guest, &lock, &work, progress)
}

impl Workloads {
    /// Writes the guest's files below `directory`, devices apart, so that it can be a root directory on the host.
    /// Returns the program's path there.
    pub fn unpack(&self, directory: &Path) -> Result<PathBuf, Error> {
        let path = &self.guest.initramfs;
        let bytes = fs::read(path).map_err(|error| Error::of_file(path, error))?;
        unpack::unpack(&bytes, directory)?;
        let name = self.program.file_name().unwrap_or_default();
        Ok(Path::new("/").join(FOLDER).join(name))
    }
}

/// The twelve loops, in the guest of `recipe`.
pub fn loops(recipe: &str, cache: &CacheDir, progress: &mut dyn Progress) -> Result<Workloads, Error> {
    loops_on(fetch(recipe, cache, progress)?, cache, progress)
}

fn loops_on(guest: Guest, cache: &CacheDir, progress: &mut dyn Progress) -> Result<Workloads, Error> {
    let lock = Lock::take(cache, progress)?;
    let work = lock.work_directory(cache::NEEDED)?;
    let program = compile("loops", LOOPS, FLAGS, &work)?;
    assemble("loops", &program, &[], guest, &lock, &work, progress)
}

/// Puts program and initramfs into the cache.
fn assemble(
    name: &str,
    program: &[u8],
    others: &[(&str, &str)],
    mut guest: Guest,
    lock: &Lock<'_>,
    work: &WorkDirectory,
    progress: &mut dyn Progress,
) -> Result<Workloads, Error> {
    let mut bytes = fs::read(&guest.initramfs).map_err(|error| Error::of_file(&guest.initramfs, error))?;
    // Each archive begins at a multiple of four.
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    let mut archive = Archive::after(bytes);
    archive.add(FOLDER, 0o755, Kind::Directory);
    archive.add(&format!("{FOLDER}/{name}"), 0o755, Kind::File(program));
    for (name, content) in others {
        archive.add(&format!("{FOLDER}/{name}"), 0o644, Kind::File(content.as_bytes()));
    }
    let initramfs = archive.finish();
    progress.step(&Step::Built { initramfs: initramfs.len() as u64 });

    let entry = work.subdirectory("entry")?;
    files::write(&entry.join(INITRAMFS), &initramfs)?;
    files::write(&entry.join(name), program)?;
    files::make_executable(&entry.join(name))?;
    let target = lock.workloads(name);
    lock.install(&target, &entry, work)?;
    guest.initramfs = target.join(INITRAMFS);
    guest.cmdline = format!("{} quiet rdinit=/{FOLDER}/{name}", guest.cmdline);
    Ok(Workloads { guest, program: target.join(name) })
}

/// The program `name`, made of all .c and .S files of `sources`.
fn compile(
    name: &str,
    sources: &[(&str, &str)],
    flags: &[&str],
    work: &WorkDirectory,
) -> Result<Vec<u8>, Error> {
    let folder = work.subdirectory("sources")?;
    let mut command = Command::new("cc");
    command.current_dir(&folder).args(flags).args(["-o", OUTPUT]);
    for (path, text) in sources {
        let file = folder.join(path);
        files::create_directory(file.parent().unwrap_or(&folder))?;
        fs::write(&file, text).map_err(|error| Error::of_file(&file, error))?;
        if Path::new(path).extension().is_some_and(|extension| extension == "c" || extension == "S") {
            command.arg(path);
        }
    }
    let output = command.output().map_err(|source| Error::NoCompiler { source })?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        return Err(Error::Compiler { program: name.to_owned(), message });
    }
    let path = folder.join(OUTPUT);
    fs::read(&path).map_err(|error| Error::of_file(&path, error))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::Silent;

    /// What `program` says to these answers.
    fn converse(program: &Path, answers: &str) -> String {
        let mut child = Command::new(program).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(answers.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }

    #[test]
    fn loops_are_the_same_file_for_host_and_guest() {
        let folder = std::env::temp_dir().join(format!("transvisor-workloads-{}", std::process::id()));
        let cache = CacheDir::new(&folder);
        let initramfs = folder.join("base.cpio");
        files::create_directory(&folder).unwrap();
        fs::write(&initramfs, crate::initramfs::build(b"\x7fELF\0sh\0")).unwrap();
        let guest = Guest { kernel: "vmlinuz".into(), initramfs, cmdline: "console=ttyS0".into(), memory: 1 };
        let loops = loops_on(guest, &cache, &mut Silent).unwrap();

        let initramfs = fs::read(&loops.guest.initramfs).unwrap();
        let program = fs::read(&loops.program).unwrap();
        assert!(program.starts_with(b"\x7fELF"));
        assert!(initramfs.windows(program.len()).any(|window| window == program));
        assert!(loops.guest.cmdline.ends_with(" rdinit=/workloads/loops"));
        let said = converse(&loops.program, "skip\nskip\nskip\nskip\ngo\n".repeat(3).as_str());
        assert_eq!(said.lines().filter(|line| line.starts_with("@ready ")).count(), 12, "{said}");
        // Fibonacci's 36th number.
        assert!(said.contains("@result fib 0000000000e3d1b0\n"), "{said}");
        assert!(said.ends_with("@end\n"), "{said}");
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn nanobench_is_a_kernel_with_a_pvh_note() {
        let folder = std::env::temp_dir().join(format!("transvisor-nanobench-{}", std::process::id()));
        let kernel = fs::read(nanobench(&CacheDir::new(&folder), &mut Silent).unwrap()).unwrap();
        assert!(kernel.starts_with(b"\x7fELF"));
        assert!(kernel.windows(16).any(|window| window == b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_compiler_is_quoted() {
        let folder = std::env::temp_dir().join(format!("transvisor-compiler-{}", std::process::id()));
        let cache = CacheDir::new(&folder);
        let lock = Lock::take(&cache, &mut Silent).unwrap();
        let work = lock.work_directory(0).unwrap();
        match compile("loops", &[("loops.c", "int main(void) { return nonsense; }")], FLAGS, &work) {
            Err(Error::Compiler { program, message }) => {
                assert!(program == "loops" && message.contains("nonsense"), "{message}")
            }
            other => panic!("{other:?}"),
        }
        drop(work);
        fs::remove_dir_all(folder).unwrap();
    }
}
