//! Whole fetches, with an apt that is a shell script.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use super::*;

const VMLINUZ: &[u8] = b"a kernel, as far as a cache is concerned";
const BUSYBOX: &[u8] = b"\x7fELF\0[\0sh\0mount\0";
const KERNEL_PACKAGE: &str = "linux-image-6.1.0-9-cloud-amd64";

/// A directory of its own for each test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("transvisor-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn compress(format: &str, data: &[u8]) -> Vec<u8> {
    use std::io::{Read, Write};
    match format {
        "" => data.to_vec(),
        ".gz" => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap()
        }
        ".zst" => ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest),
        _ => {
            let mut packed = Vec::new();
            liblzma::read::XzEncoder::new(data, 1).read_to_end(&mut packed).unwrap();
            packed
        }
    }
}

/// A package with one file in it.
fn deb(format: &str, path: &str, content: &[u8]) -> Vec<u8> {
    let mut tree = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o755);
    tree.append_data(&mut header, "./boot/", std::io::empty()).unwrap();
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    tree.append_data(&mut header, path, content).unwrap();
    let tree = compress(format, &tree.into_inner().unwrap());
    let mut archive = ar::Builder::new(Vec::new());
    for (name, bytes) in [
        ("debian-binary".to_owned(), &b"2.0\n"[..]),
        ("control.tar".to_owned(), b""),
        (format!("data.tar{format}"), &tree),
    ] {
        archive.append(&ar::Header::new(name.into_bytes(), bytes.len() as u64), bytes).unwrap();
    }
    archive.into_inner().unwrap()
}

/// A host whose apt-get and apt-cache know a kernel and a BusyBox.
struct Host {
    scratch: Scratch,
    apt: Apt,
    cache: CacheDir,
    recipe: &'static str,
}

impl Host {
    fn new() -> Self {
        let scratch = Scratch::new();
        let kernel = deb(".xz", "./boot/vmlinuz-6.1.0-9-cloud-amd64", VMLINUZ);
        let busybox = deb(".zst", "./bin/busybox", BUSYBOX);
        let record = |name: &str, deb: &[u8]| {
            let (size, hash) = (deb.len(), files::sha256(deb));
            format!("Package: {name}\nVersion: 1:2-3\nSize: {size}\nSHA256: {hash}\n")
        };
        let meta = format!("Package: meta\nVersion: 1\nDepends: x, {KERNEL_PACKAGE} (= 6)\n");
        let write = |name: &str, bytes: &[u8]| fs::write(scratch.path(name), bytes).unwrap();
        write("linux-image-cloud-amd64.record", meta.as_bytes());
        write(&format!("{KERNEL_PACKAGE}.record"), record(KERNEL_PACKAGE, &kernel).as_bytes());
        let hello = deb("", "./lib/hello.so", b"hello");
        write("hello.record", record("hello", &hello).as_bytes());
        write("hello_1%3a2-3_amd64.deb", &hello);
        write("busybox-static.record", record("busybox-static", &busybox).as_bytes());
        write(&format!("{KERNEL_PACKAGE}_1%3a2-3_amd64.deb"), &kernel);
        write("busybox-static_1%3a2-3_amd64.deb", &busybox);

        let apt = Apt::at(&scratch.0, Duration::from_millis(500));
        let cache = CacheDir::new(scratch.path("cache"));
        let host = Self { scratch, apt, cache, recipe: "debian" };
        let directory = host.scratch.0.display().to_string();
        host.script("apt-cache", &format!("for last; do :; done; cat {directory}/$last.record"));
        host.on_download(&format!("cp {directory}/*.deb ."));
        host
    }

    fn script(&self, name: &str, body: &str) {
        let path = self.scratch.path(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// What `apt-get download` does; `apt-get update` just says something.
    fn on_download(&self, body: &str) {
        let log = self.scratch.path("log").display().to_string();
        self.script(
            "apt-get",
            &format!(
                "case \"$*\" in\n*update) echo update >> {log}; echo 'Get:1 http://x';;\n*download*) {body};;\n*simulate*) echo 'Inst hello (1:2-3 x [amd64])';;\nesac"
            ),
        );
    }

    fn fetch(&self) -> (Result<Guest, Error>, Vec<String>) {
        self.obtain(false)
    }

    fn obtain(&self, refresh: bool) -> (Result<Guest, Error>, Vec<String>) {
        let mut steps = Steps(Vec::new());
        let recipe = Recipe::find(self.recipe).unwrap();
        let result = obtain(recipe, &self.cache, &self.apt, &mut steps, refresh);
        (result, steps.0)
    }

    /// How often apt-get update was run.
    fn updates(&self) -> usize {
        fs::read_to_string(self.scratch.path("log")).unwrap_or_default().lines().count()
    }

    /// Whether nothing but the lock is in the cache.
    fn nothing_is_stored(&self) -> bool {
        let names = fs::read_dir(self.cache.path()).unwrap().map(|entry| entry.unwrap().file_name());
        names.eq(["lock"])
    }
}

struct Steps(Vec<String>);

impl Progress for Steps {
    fn step(&mut self, step: &Step) {
        self.0.push(step.to_string());
    }
}

#[test]
fn a_guest_is_fetched_once() {
    let host = Host::new();
    let (guest, steps) = host.fetch();
    let guest = guest.unwrap();
    assert_eq!(fs::read(&guest.kernel).unwrap(), VMLINUZ);
    assert_eq!(fs::read(&guest.initramfs).unwrap(), initramfs::build(BUSYBOX));
    assert!(guest.cmdline.contains("console=ttyS0"));
    assert!(steps.iter().any(|step| step.contains("downloading") && step.contains("1:2-3")), "{steps:?}");
    assert!(!host.cache.path().join("work").exists());

    fs::remove_file(host.scratch.path("apt-get")).unwrap();
    let (again, mut steps) = host.fetch();
    assert_eq!(again.unwrap(), guest);
    // A child that another test of this process has just forked holds the first fetch's lock until it is another program.
    steps.retain(|step| !step.starts_with("waiting for another"));
    assert_eq!(steps, [format!("debian: {KERNEL_PACKAGE} from the cache")]);
}

#[test]
fn packages_are_unpacked_with_what_they_depend_on() {
    let host = Host { recipe: "debian-programs", ..Host::new() };
    let guest = host.fetch().0.unwrap();
    let root = host.scratch.path("root");
    unpack::unpack(&fs::read(&guest.initramfs).unwrap(), &root).unwrap();
    assert_eq!(fs::read(root.join("usr/lib/hello.so")).unwrap(), b"hello");
    // Through the link that the merged /usr needs.
    assert_eq!(fs::read(root.join("lib/hello.so")).unwrap(), b"hello");
    assert_eq!(fs::read(root.join("bin/sh")).unwrap(), BUSYBOX);
    assert_eq!(fs::metadata(root.join("init")).unwrap().permissions().mode() & 0o777, 0o755);
    assert!(!root.join("dev/console").exists());
    let (_, steps) = host.fetch();
    assert_eq!(steps, [format!("debian-programs: {KERNEL_PACKAGE} from the cache")]);
}

#[test]
fn damage_to_the_cache_is_found_and_mended() {
    let host = Host::new();
    let guest = host.fetch().0.unwrap();
    let entry = guest.kernel.parent().unwrap().to_owned();
    let damages: [&dyn Fn(); 5] = [
        &|| fs::write(&guest.kernel, b"short").unwrap(),
        &|| fs::write(&guest.kernel, VMLINUZ.to_ascii_uppercase()).unwrap(),
        &|| fs::remove_file(&guest.initramfs).unwrap(),
        &|| fs::write(entry.join(manifest::NAME), b"{").unwrap(),
        &|| fs::remove_file(entry.join(manifest::NAME)).unwrap(),
    ];
    for (number, damage) in damages.iter().enumerate() {
        damage();
        let (mended, steps) = host.fetch();
        assert_eq!(mended.unwrap(), guest);
        assert!(steps[0].contains("unusable"), "{steps:?}");
        assert_eq!(fs::read(&guest.kernel).unwrap(), VMLINUZ);
        assert_eq!(host.updates(), number + 2);
    }
}

#[test]
fn refresh_replaces_what_is_there() {
    let host = Host::new();
    host.fetch().0.unwrap();
    let kernel = deb("", "./boot/vmlinuz-7", b"newer");
    fs::write(host.scratch.path(&format!("{KERNEL_PACKAGE}_1%3a2-3_amd64.deb")), &kernel).unwrap();
    let record = format!("Version: 1:2-3\nSize: {}\nSHA256: {}\n", kernel.len(), files::sha256(&kernel));
    fs::write(host.scratch.path(&format!("{KERNEL_PACKAGE}.record")), record).unwrap();
    assert_eq!(fs::read(host.fetch().0.unwrap().kernel).unwrap(), VMLINUZ);
    assert_eq!(fs::read(host.obtain(true).0.unwrap().kernel).unwrap(), b"newer");
    assert_eq!(fs::read(host.fetch().0.unwrap().kernel).unwrap(), b"newer");
}

#[test]
fn what_the_package_list_does_not_promise_is_not_stored() {
    let host = Host::new();
    let deb = host.scratch.path(&format!("{KERNEL_PACKAGE}_1%3a2-3_amd64.deb"));
    let good = fs::read(&deb).unwrap();
    let mut bad = good.clone();
    bad[100] ^= 1;
    fs::write(&deb, &bad).unwrap();
    assert!(matches!(host.fetch().0, Err(Error::Mismatch { what: "SHA-256", .. })));
    fs::write(&deb, &good[1..]).unwrap();
    assert!(matches!(host.fetch().0, Err(Error::Mismatch { what: "size", .. })));
    assert!(host.nothing_is_stored());
}

#[test]
fn two_at_once_fetch_once() {
    let host = Host::new();
    std::thread::scope(|scope| {
        let runs: Vec<_> = (0..3).map(|_| scope.spawn(|| host.fetch().0.unwrap())).collect();
        runs.into_iter().for_each(|run| assert_eq!(fs::read(run.join().unwrap().kernel).unwrap(), VMLINUZ));
    });
    assert_eq!(host.updates(), 1);
}

#[test]
fn failures_of_apt_are_told_apart() {
    let host = Host::new();
    host.on_download("echo 'E: Failed to fetch http://x  Could not connect' >&2; exit 100");
    match host.fetch().0 {
        Err(Error::Network { message }) => {
            assert_eq!(message, "  E: Failed to fetch http://x  Could not connect")
        }
        other => panic!("{other:?}"),
    }
    host.on_download("echo 'E: write - write (28: No space left on device)' >&2; exit 100");
    assert!(matches!(host.fetch().0, Err(Error::DiskFull { .. })));
    host.on_download("echo 'E: something new' >&2; exit 100");
    match host.fetch().0 {
        Err(Error::Apt { message, .. }) => assert_eq!(message, "  E: something new"),
        other => panic!("{other:?}"),
    }
    host.on_download("exec sleep 60");
    assert!(matches!(host.fetch().0, Err(Error::Network { .. })));
    host.on_download(":");
    assert!(matches!(host.fetch().0, Err(Error::Apt { .. })));
    assert!(host.nothing_is_stored());
}

#[test]
fn missing_packages_are_not_the_networks_fault() {
    let host = Host::new();
    fs::remove_file(host.scratch.path("busybox-static.record")).unwrap();
    assert!(matches!(host.fetch().0, Err(Error::NoPackage { package, .. }) if package == "busybox-static"));
    // Unless apt complained.
    host.script("apt-get", "echo 'W: Failed to fetch http://x' >&2");
    assert!(matches!(host.fetch().0, Err(Error::Network { .. })));
    fs::write(host.scratch.path("linux-image-cloud-amd64.record"), "Depends: kmod\n").unwrap();
    assert!(matches!(host.fetch().0, Err(Error::NoKernelDependency { .. })));
}

#[test]
fn hosts_without_apt_are_told_so() {
    let host = Host::new();
    fs::remove_file(host.scratch.path("apt-get")).unwrap();
    assert!(matches!(host.fetch().0, Err(Error::NoApt { .. })));
    assert!(host.nothing_is_stored());
}

#[test]
fn caches_that_cannot_be() {
    let host = Host::new();
    let of = |path: &Path| {
        let recipe = Recipe::find("debian").unwrap();
        obtain(recipe, &CacheDir::new(path), &host.apt, &mut Silent, false).unwrap_err()
    };
    let file = host.scratch.path("busybox-static.record");
    for path in [file.as_path(), &file.join("below"), Path::new("/proc/transvisor")] {
        assert!(matches!(of(path), Error::CacheReadOnly { .. }), "{}", path.display());
    }
}

#[test]
fn unknown_recipes_name_the_known_ones() {
    let error = fetch("debain", &CacheDir::new("/nowhere"), &mut Silent).unwrap_err();
    assert!(error.to_string().contains("debian, debian-programs, debian-full"), "{error}");
}

#[test]
fn packages_of_every_compression_are_read() {
    let scratch = Scratch::new();
    let path = scratch.path("p.deb");
    for format in ["", ".gz", ".xz", ".zst"] {
        fs::write(&path, deb(format, "./boot/vmlinuz-1", VMLINUZ)).unwrap();
        assert_eq!(package::extract(&path, "boot/vmlinuz-", "p").unwrap(), VMLINUZ);
        assert!(matches!(package::extract(&path, "bin/busybox", "p"), Err(Error::MissingFile { .. })));
    }
    fs::write(&path, deb(".lz9", "./boot/vmlinuz-1", VMLINUZ)).unwrap();
    assert!(matches!(package::extract(&path, "boot/vmlinuz-", "p"), Err(Error::Unpack { .. })));
}

#[test]
fn damaged_packages_are_errors() {
    let scratch = Scratch::new();
    let path = scratch.path("p.deb");
    let good = deb(".xz", "./boot/vmlinuz-1", VMLINUZ);
    for length in 0..good.len() - 1 {
        fs::write(&path, &good[..length]).unwrap();
        // What is missing at the end may be padding that nothing reads.
        if let Ok(content) = package::extract(&path, "boot/vmlinuz-", "p") {
            assert_eq!(content, VMLINUZ);
        }
    }
    for length in [0, 1, 8, 60, 100, good.len() / 2] {
        fs::write(&path, &good[..length]).unwrap();
        assert!(package::extract(&path, "boot/vmlinuz-", "p").is_err(), "{length}");
    }
}

#[test]
fn debian_is_what_debian_ships() {
    let scratch = Scratch::new();
    let guest = fetch("debian", &CacheDir::new(scratch.path("cache")), &mut Silent).unwrap();
    let kernel = fs::read(guest.kernel).unwrap();
    assert_eq!(&kernel[0x202..0x206], b"HdrS");
    assert!(fs::read(guest.initramfs).unwrap().starts_with(b"070701"));
}
