//! The files of Debian packages, put together as a system would have them, without what only a person at a desk needs.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use tar::EntryType;

use crate::initramfs::{Archive, Kind};
use crate::{Error, package};

/// Left out: documentation, translations, character sets, what only building sanitized or link-time-optimized programs
/// needs, and linkers besides the usual one.
const UNWANTED: &[&str] = &[
    "usr/share/doc/",
    "usr/share/info/",
    "usr/share/lintian/",
    "usr/share/locale/",
    "usr/share/man/",
    "usr/lib/x86_64-linux-gnu/gconv/",
    "usr/lib/x86_64-linux-gnu/gprofng/",
    "usr/lib/x86_64-linux-gnu/libasan",
    "usr/lib/x86_64-linux-gnu/libgprofng",
    "usr/lib/x86_64-linux-gnu/liblsan",
    "usr/lib/x86_64-linux-gnu/libtsan",
    "usr/lib/x86_64-linux-gnu/libubsan",
    "usr/bin/x86_64-linux-gnu-dwp",
    "usr/bin/x86_64-linux-gnu-gp-",
    "usr/bin/x86_64-linux-gnu-ld.gold",
    "usr/bin/x86_64-linux-gnu-lto-dump",
];
/// Static libraries are left out except those that dynamic programs are linked with too.
const STATIC_LIBRARIES: [&str; 2] = ["libc_nonshared.a", "libgcc.a"];
/// The compiler proper of link-time optimization, as large as the real one.
const LINK_TIME_OPTIMIZER: &str = "/lto1";
/// Folders that are links into /usr (Debian's merged-/usr scheme).
const MERGED: [&str; 4] = ["bin", "sbin", "lib", "lib64"];
/// Changes when this file makes another tree of the same packages.
pub(crate) const VERSION: u32 = 1;

/// A tree by path, without leading slashes.
#[derive(Default)]
pub(crate) struct Tree {
    nodes: BTreeMap<String, (u32, Node)>,
}

enum Node {
    Directory,
    File(Vec<u8>),
    Link(String),
}

impl Tree {
    /// Adds the files of a package.
    pub(crate) fn unpack(&mut self, deb: &Path, package: &str) -> Result<(), Error> {
        package::each(deb, package, |entry| {
            let name = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let Some(path) = merged(&name) else { return Ok(()) };
            let permissions = entry.header().mode()? & 0o7777;
            let target = entry.link_name_bytes().map(|name| String::from_utf8_lossy(&name).into_owned());
            let node = match (entry.header().entry_type(), target) {
                (EntryType::Directory, _) => Node::Directory,
                (EntryType::Symlink, Some(target)) => Node::Link(target),
                (EntryType::Link, Some(target)) => {
                    match merged(&target).and_then(|path| self.nodes.get(&path)) {
                        Some((_, Node::File(content))) => Node::File(content.clone()),
                        // The file itself was left out.
                        _ => return Ok(()),
                    }
                }
                (EntryType::Regular | EntryType::Continuous, _) if is_wanted(&path) => {
                    let mut content = Vec::with_capacity(entry.size().min(package::MOST) as usize);
                    entry.take(package::MOST).read_to_end(&mut content)?;
                    Node::File(content)
                }
                _ => return Ok(()),
            };
            self.nodes.insert(path, (permissions, node));
            Ok(())
        })
    }

    /// Writes it, with the links that the merged /usr needs; /bin is left as it is, it has the BusyBox.
    pub(crate) fn write(&self, archive: &mut Archive) {
        for folder in MERGED.iter().filter(|folder| **folder != "bin" && **folder != "sbin") {
            archive.add(folder, 0o777, Kind::Link(&format!("usr/{folder}")));
        }
        let mut missing = BTreeMap::new();
        for path in self.nodes.keys() {
            for (at, _) in path.match_indices('/') {
                if !self.nodes.contains_key(&path[..at]) {
                    missing.insert(path[..at].to_owned(), (0o755, Node::Directory));
                }
            }
        }
        // Both are sorted, and a folder sorts before what is in it; missing folders come first, they may hold others.
        for (path, (permissions, node)) in missing.iter().chain(&self.nodes) {
            let kind = match node {
                Node::Directory => Kind::Directory,
                Node::File(content) => Kind::File(content),
                Node::Link(target) => Kind::Link(target),
            };
            archive.add(path, *permissions, kind);
        }
    }
}

/// Where a package's path ends up; nothing for the root and for what leads out of it.
fn merged(name: &str) -> Option<String> {
    let path = name.trim_start_matches("./").trim_matches('/');
    if path.is_empty() || path.split('/').any(|part| part == "..") {
        return None;
    }
    let top = path.split('/').next().unwrap_or_default();
    Some(if MERGED.contains(&top) { format!("usr/{path}") } else { path.to_owned() })
}

fn is_wanted(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    let library = !name.ends_with(".a") || STATIC_LIBRARIES.contains(&name);
    library && !path.ends_with(LINK_TIME_OPTIMIZER) && !UNWANTED.iter().any(|start| path.starts_with(start))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_merged() {
        assert_eq!(merged("./lib/x86_64-linux-gnu/libc.so.6").unwrap(), "usr/lib/x86_64-linux-gnu/libc.so.6");
        assert_eq!(merged("./usr/lib/a").unwrap(), "usr/lib/a");
        assert_eq!(merged("./lib64/").unwrap(), "usr/lib64");
        assert_eq!(merged("./library/x").unwrap(), "library/x");
        assert!(merged("./").is_none() && merged("./usr/../../etc/passwd").is_none());
    }

    #[test]
    fn what_is_not_wanted() {
        assert!(is_wanted("usr/bin/gcc-12") && is_wanted("usr/lib/gcc/x86_64-linux-gnu/12/libgcc.a"));
        assert!(!is_wanted("usr/lib/gcc/x86_64-linux-gnu/12/lto1") && !is_wanted("usr/lib/libm.a"));
        assert!(!is_wanted("usr/share/locale/de/LC_MESSAGES/gcc.mo"));
    }
}
