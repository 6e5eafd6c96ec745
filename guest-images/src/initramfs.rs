//! The initramfs: BusyBox, links to it for its applets, and an /init.
//!
//! A newc archive (Documentation/driver-api/early-userspace/buffer-format.rst), not compressed: unpacking would cost
//! the guest more than the host saves. Times are zero, so that the same packages give the same bytes.
//!
//! There is no /sbin: the kernel runs /sbin/modprobe for every module that it would like to have, and there are none.

use std::collections::BTreeSet;
use std::io::{Cursor, Write};

use cpio::NewcBuilder;
use cpio::newc::{ModeFileType, trailer};

use crate::tree::{self, Tree};
use crate::{Recipe, files};

const INIT: &str = include_str!("../guest/init");
const PASSWD: &str = include_str!("../guest/passwd");
const GROUP: &str = include_str!("../guest/group");
/// Names under which BusyBox is to be found, as far as the BusyBox at hand knows them.
const APPLETS: &str = include_str!("../guest/applets");

/// The search path of /init, and what it becomes where there are packages.
const PATH: &str = "export PATH=/bin ";
const PATH_WITH_PACKAGES: &str = "export PATH=/usr/bin:/bin ";

const DIRECTORIES: [&str; 8] = ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp"];
/// Changes when this file writes something else for the same input.
const VERSION: u32 = 1;

/// What kind of thing an entry is.
pub(crate) enum Kind<'a> {
    Directory,
    File(&'a [u8]),
    Link(&'a str),
    /// A character device.
    Device(u32, u32),
}

/// SHA-256 of all that decides what is made, except what is in the packages.
pub(crate) fn recipe_hash(recipe: &Recipe) -> String {
    let version = VERSION.to_string();
    let mut parts = vec![INIT, PASSWD, GROUP, APPLETS, &version];
    let tree = tree::VERSION.to_string();
    if !recipe.packages.is_empty() {
        parts.extend([&tree, PATH_WITH_PACKAGES]);
        parts.extend(recipe.packages);
    }
    files::sha256(parts.join("\0").as_bytes())
}

/// The archive around the given BusyBox alone.
pub fn build(busybox: &[u8]) -> Vec<u8> {
    start(busybox, INIT).finish()
}

/// The archive around the given BusyBox with the files of packages, whose programs come first in the shell.
pub(crate) fn build_with(busybox: &[u8], packages: &Tree) -> Vec<u8> {
    let mut archive = start(busybox, &INIT.replacen(PATH, PATH_WITH_PACKAGES, 1));
    packages.write(&mut archive);
    archive.finish()
}

fn start(busybox: &[u8], init: &str) -> Archive {
    let mut archive = Archive::after(Vec::with_capacity(busybox.len() + (256 << 10)));
    archive.add(".", 0o755, Kind::Directory);
    for directory in DIRECTORIES {
        archive.add(directory, if directory == "tmp" { 0o1777 } else { 0o755 }, Kind::Directory);
    }
    // The kernel opens it for /init before anything is mounted.
    archive.add("dev/console", 0o600, Kind::Device(5, 1));
    archive.add("dev/null", 0o666, Kind::Device(1, 3));
    archive.add("init", 0o755, Kind::File(init.as_bytes()));
    archive.add("etc/passwd", 0o644, Kind::File(PASSWD.as_bytes()));
    archive.add("etc/group", 0o644, Kind::File(GROUP.as_bytes()));
    archive.add("bin/busybox", 0o755, Kind::File(busybox));
    for applet in applets(busybox) {
        archive.add(&format!("bin/{applet}"), 0o777, Kind::Link("busybox"));
    }
    archive
}

/// Those of [`APPLETS`] that this BusyBox has: its table of names is NUL-separated text in its data.
fn applets(busybox: &[u8]) -> BTreeSet<&'static str> {
    let is_text = |byte: &u8| byte.is_ascii_graphic();
    let strings: BTreeSet<&[u8]> = busybox
        .split(|&byte| byte == 0)
        .filter(|string| string.len() < 32 && string.iter().all(is_text))
        .collect();
    APPLETS.split_whitespace().filter(|applet| strings.contains(applet.as_bytes())).collect()
}

/// An archive being written.
pub(crate) struct Archive {
    bytes: Cursor<Vec<u8>>,
    next: u32,
}

impl Archive {
    /// One that follows others; what it has under the same names replaces what they have.
    pub(crate) fn after(others: Vec<u8>) -> Self {
        let mut bytes = Cursor::new(others);
        bytes.set_position(bytes.get_ref().len() as u64);
        Self { bytes, next: 1 }
    }

    pub(crate) fn add(&mut self, name: &str, permissions: u32, kind: Kind<'_>) {
        let mut builder = NewcBuilder::new(name).ino(self.next).mode(permissions);
        self.next += 1;
        let content: &[u8] = match kind {
            Kind::Directory => {
                builder = builder.nlink(2).set_mode_file_type(ModeFileType::Directory);
                &[]
            }
            Kind::File(content) => {
                builder = builder.set_mode_file_type(ModeFileType::Regular);
                content
            }
            Kind::Link(target) => {
                builder = builder.set_mode_file_type(ModeFileType::Symlink);
                target.as_bytes()
            }
            Kind::Device(major, minor) => {
                builder = builder.set_mode_file_type(ModeFileType::Char).rdev_major(major).rdev_minor(minor);
                &[]
            }
        };
        let mut writer = builder.write(&mut self.bytes, content.len() as u32);
        writer
            .write_all(content)
            .and_then(|()| writer.finish().map(drop))
            .expect("a vector takes all that is written");
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        trailer(self.bytes).expect("a vector takes all that is written").into_inner()
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    /// (mode, rdev minor, content) by name, as a kernel would unpack it.
    fn unpack(bytes: &[u8]) -> std::collections::BTreeMap<String, (u32, u32, Vec<u8>)> {
        let mut entries = std::collections::BTreeMap::new();
        let mut input = bytes;
        loop {
            let mut reader = cpio::NewcReader::new(input).unwrap();
            if reader.entry().is_trailer() {
                return entries;
            }
            let (name, mode) = (reader.entry().name().to_owned(), reader.entry().mode());
            let minor = reader.entry().rdev_minor();
            let mut content = Vec::new();
            reader.read_to_end(&mut content).unwrap();
            input = reader.finish().unwrap();
            assert!(entries.insert(name, (mode, minor, content)).is_none());
        }
    }

    #[test]
    fn has_all_that_a_boot_needs() {
        let entries = unpack(&build(b"\x7fELF...\0[\0sh\0mount\0nosuchapplet\0"));
        assert_eq!(entries["init"].0, 0o100_755);
        assert_eq!(entries["bin/busybox"].0, 0o100_755);
        assert_eq!((entries["dev/console"].0, entries["dev/console"].1), (0o020_600, 1));
        assert_eq!(entries["proc"].0, 0o040_755);
        assert_eq!(entries["bin/sh"], (0o120_777, 0, b"busybox".to_vec()));
        // Only what this BusyBox has is linked.
        assert!(entries.contains_key("bin/mount") && entries.contains_key("bin/["));
        assert!(!entries.contains_key("bin/ls") && !entries.contains_key("bin/nosuchapplet"));
    }

    #[test]
    fn init_runs_only_applets_of_the_list() {
        for command in ["mount", "hostname", "setsid", "cttyhack", "sh", "poweroff"] {
            assert!(INIT.contains(command) && APPLETS.split_whitespace().any(|applet| applet == command));
        }
    }

    #[test]
    fn init_finds_the_programs_of_packages() {
        assert_eq!(INIT.matches(PATH).count(), 1);
        let entries = unpack(&build_with(b"busybox", &Tree::default()));
        assert!(String::from_utf8_lossy(&entries["init"].2).contains(PATH_WITH_PACKAGES));
        assert_eq!(entries["lib64"], (0o120_777, 0, b"usr/lib64".to_vec()));
    }

    #[test]
    fn the_same_input_gives_the_same_bytes() {
        assert!(build(b"busybox") == build(b"busybox"));
    }
}
