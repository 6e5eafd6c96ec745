//! What was already found to be as the manifest says, so that starting a guest need not hash a kernel and an initramfs.
//!
//! A hash is taken to be still right while the file is the same inode with the same size and the same times. The time of
//! the last change of status (ctime) is set by the kernel on every write and can't be set by anyone, so whatever changes
//! the file shows. Two changes within a tick of the kernel's clock can share a time: a file that has changed only just now
//! is not noted, and is hashed once more at the next start (git's index has the same rule).

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files;

/// Its file name in the entry.
const NAME: &str = "verified.json";
/// Coarser than any file system's times.
const SETTLED: i64 = 2;

/// The notes of a cache entry.
#[derive(Serialize, Deserialize, Default)]
pub(crate) struct Verified {
    files: Vec<Note>,
    #[serde(skip)]
    changed: bool,
}

/// A file as it was when its hash was this.
#[derive(Serialize, Deserialize, PartialEq, Eq, Clone)]
struct Note {
    name: String,
    sha256: String,
    device: u64,
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds.
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Verified {
    /// The notes in `entry`; none if they can't be read.
    pub(crate) fn read(entry: &Path) -> Self {
        let text = fs::read(entry.join(NAME)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Size and SHA-256 of file `name` in `entry`, which the notes may know to be `expected`.
    pub(crate) fn measure(
        &mut self,
        entry: &Path,
        name: &str,
        expected: &str,
    ) -> std::io::Result<(u64, String)> {
        let path = entry.join(name);
        let before = note(&path, name, expected)?;
        if self.files.contains(&before) {
            return Ok((before.size, expected.to_owned()));
        }
        let (size, sha256) = files::measure(&path)?;
        // Only if nothing happened to it meanwhile.
        if sha256 == expected && note(&path, name, expected)? == before && is_settled(&before) {
            self.files.retain(|note| note.name != name);
            self.files.push(before);
            self.changed = true;
        }
        Ok((size, sha256))
    }

    /// Writes the notes if there are new ones. A cache that can't be written is hashed each time.
    pub(crate) fn write(&self, entry: &Path) {
        if !self.changed {
            return;
        }
        let temporary = entry.join(format!("{NAME}.{}", std::process::id()));
        let written = serde_json::to_vec_pretty(self).map_err(std::io::Error::other);
        let written = written.and_then(|text| fs::write(&temporary, text));
        if written.and_then(|()| fs::rename(&temporary, entry.join(NAME))).is_err() {
            let _ = fs::remove_file(&temporary);
        }
    }
}

fn note(path: &Path, name: &str, sha256: &str) -> std::io::Result<Note> {
    let metadata = fs::metadata(path)?;
    Ok(Note {
        name: name.to_owned(),
        sha256: sha256.to_owned(),
        device: metadata.dev(),
        inode: metadata.ino(),
        size: metadata.size(),
        modified: (metadata.mtime(), metadata.mtime_nsec()),
        changed: (metadata.ctime(), metadata.ctime_nsec()),
    })
}

/// Whether its last change is past, by a clock that may have been set meanwhile.
fn is_settled(note: &Note) -> bool {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs() as i64);
    note.changed.0 + SETTLED < now
}

#[cfg(test)]
mod tests {
    use std::thread::sleep;
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_change_is_never_missed() {
        let entry = std::env::temp_dir().join(format!("transvisor-verified-{}", std::process::id()));
        fs::create_dir_all(&entry).unwrap();
        let path = entry.join("vmlinuz");
        fs::write(&path, b"kernel").unwrap();
        let good = files::sha256(b"kernel");
        let measure = |expected: &str| {
            let mut verified = Verified::read(&entry);
            let result = verified.measure(&entry, "vmlinuz", expected).unwrap();
            verified.write(&entry);
            (result, verified.changed)
        };
        // It has changed only just now: nothing is noted.
        assert_eq!(measure(&good), ((6, good.clone()), false));
        sleep(Duration::from_secs(SETTLED as u64 + 1));
        assert_eq!(measure(&good), ((6, good.clone()), true));
        assert_eq!(measure(&good), ((6, good.clone()), false));
        assert_eq!(Verified::read(&entry).files.len(), 1);

        // Same size, same time of modification, even the same inode: the hash is taken again.
        let times = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, b"KERNEL").unwrap();
        fs::File::options().write(true).open(&path).unwrap().set_modified(times).unwrap();
        assert_eq!(measure(&good).0, (6, files::sha256(b"KERNEL")));
        // A note for another hash says nothing.
        fs::write(&path, b"kernel").unwrap();
        sleep(Duration::from_secs(SETTLED as u64 + 1));
        assert!(measure(&good).1);
        assert_eq!(measure(&"0".repeat(64)).0, (6, good));
        fs::remove_dir_all(entry).unwrap();
    }
}
