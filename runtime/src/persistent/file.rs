//! The file: found, checked, mapped; written anew and renamed into place.
//!
//! ```text
//! header    64 bytes: magic, format, build, host, where the index is, checksum of all this
//! records   see `record`; each with a checksum of its own, which is looked at when it is used
//! index     a power of two of 32-bit words: where a record begins (in 8 bytes; 0: none), by the hash of rip and mode; and the last
//!           record of each page, by that of the page and the mode
//! ```
//!
//! The index needs no checksum: wherever it leads, what is there must be a sound record of the very bytes that are asked for.
//!
//! **Who is trusted.** Code in the file runs in this process. So the file must belong to the user, and nobody else may write
//! it; it is made so. Who can write it could as well replace this program. Damage that is nobody's intent (a crash while writing, a
//! full disk, a bad medium) is told by the checksums, and by the file being renamed only when it is complete.
//!
//! A file is never changed, so another process may replace it while it is mapped here. If its owner cuts it off meanwhile, the
//! host's kernel ends this process with SIGBUS, as it does with any program whose files are cut off while they run.

use std::{
    ffi::c_void,
    fs::{self, File},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    ptr::{NonNull, null_mut},
    sync::atomic::{AtomicU32, Ordering},
    time::SystemTime,
};

use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::bytes::{checksum, u32_at, u64_at};

const MAGIC: u64 = u64::from_le_bytes(*b"TVtransl");

/// Of the format that this program writes.
const FORMAT: u64 = 3;

/// Bytes before the records.
pub(super) const HEADER: usize = 64;

/// The largest file.
pub(super) const LARGEST: usize = 64 << 20;

/// All files of a directory together.
const LARGEST_TOTAL: u64 = 512 << 20;

/// Ends the names of files.
pub(super) const EXTENSION: &str = "translations";

/// Ends the names of what is being written.
const UNFINISHED: &str = "unfinished";

/// What is unfinished for so long belongs to a process that was killed.
const ABANDONED_AFTER: std::time::Duration = std::time::Duration::from_secs(3600);

/// Why a file is not used.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The host's file system.
    #[error("{0}")]
    Host(#[from] io::Error),
    /// A directory, a device, a symbolic link.
    #[error("it is no regular file; remove it or name another with --translation-cache")]
    Kind,
    /// Somebody else's.
    #[error(
        "it belongs to user {0}; what it contains would run as you, so only your own is used: name another with --translation-cache"
    )]
    Owner(u32),
    /// Others may write it.
    #[error(
        "others may write it (mode {0:o}), and what it contains would run as you; remove it, or `chmod 600` it if you trust it"
    )]
    Mode(u32),
    /// Another version or processor made it.
    #[error("another build of Transvisor or another processor made it; it is made anew")]
    Stale,
    /// It is none, or damaged.
    #[error("it is damaged or of another kind ({0}); it is made anew")]
    Damaged(&'static str),
}

impl Refusal {
    /// Whether a new file may be put in its place.
    pub fn is_replaced(&self) -> bool {
        matches!(self, Self::Stale | Self::Damaged(_))
    }
}

/// What code depends on besides the guest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Origin {
    /// Of this program.
    pub build: u64,
    /// Of this host's processor.
    pub host: u64,
}

/// A file, mapped.
pub(super) struct Mapped {
    start: NonNull<c_void>,
    length: usize,
    records_end: usize,
    index_mask: usize,
}

// SAFETY: a private read-only mapping of which nothing is ever changed through this process.
unsafe impl Send for Mapped {}
// SAFETY: as above.
unsafe impl Sync for Mapped {}

impl Mapped {
    /// Opens and checks it. `None`: there is none.
    pub fn open(path: &Path, origin: Origin) -> Result<Option<Self>, Refusal> {
        let flags = (rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK).bits() as i32;
        let file = match File::options().read(true).custom_flags(flags).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error()) => {
                return Err(Refusal::Kind);
            }
            Err(error) => return Err(error.into()),
        };
        let about = file.metadata()?;
        if !about.is_file() {
            return Err(Refusal::Kind);
        }
        if about.uid() != rustix::process::geteuid().as_raw() {
            return Err(Refusal::Owner(about.uid()));
        }
        if about.mode() & 0o022 != 0 {
            return Err(Refusal::Mode(about.mode() & 0o7777));
        }
        let length = usize::try_from(about.len()).unwrap_or(usize::MAX);
        if length < HEADER {
            return Err(Refusal::Damaged("it is too short"));
        }
        if length > 2 * LARGEST {
            return Err(Refusal::Damaged("it is too long"));
        }
        // SAFETY: at no address that is in use; the file stays as it is, see the module's description.
        let start = unsafe { mmap(null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, &file, 0) };
        let start = NonNull::new(start.map_err(io::Error::from)?).ok_or(Refusal::Damaged("it maps to 0"))?;
        let mut mapped = Self { start, length, records_end: HEADER, index_mask: 0 };
        (mapped.records_end, mapped.index_mask) = check_header(mapped.bytes(), origin)?;
        Ok(Some(mapped))
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: mapped and readable as long as `self`, and not written.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr().cast(), self.length) }
    }

    /// Gives the memory of pages that were read back. They are read again when they are looked at again.
    pub fn release(&self) {
        // SAFETY: a private mapping of a file that nothing was written to: what is read later is the same. It can't fail.
        let _ = unsafe { madvise(self.start.as_ptr(), self.length, Advice::LinuxDontNeed) };
    }

    /// Header and records.
    pub fn records(&self) -> &[u8] {
        self.bytes().get(..self.records_end).unwrap_or(&[])
    }

    /// Where records of a hash may begin.
    #[inline]
    pub fn find(&self, hash: u64) -> impl Iterator<Item = usize> {
        let index = self.bytes().get(self.records_end..).unwrap_or(&[]);
        let mask = self.index_mask;
        (0..=mask.min(MOST_PROBES))
            .map_while(move |n| u32_at(index, 4 * ((hash as usize).wrapping_add(n) & mask)))
            .take_while(|&place| place != 0)
            .map(|place| place as usize * 8)
    }
}

/// Words of the index that are looked at.
const MOST_PROBES: usize = 64;

impl Drop for Mapped {
    fn drop(&mut self) {
        // SAFETY: the mapping is this one's, and nobody has references into it any more. It can't fail.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}

fn header(origin: Origin, records_end: usize, index: usize) -> [u8; HEADER] {
    let words = [MAGIC, FORMAT, origin.build, origin.host, records_end as u64, index as u64, 0];
    let mut header = [0; HEADER];
    for (place, word) in header.as_chunks_mut::<8>().0.iter_mut().zip(words) {
        *place = word.to_le_bytes();
    }
    let sum = checksum(&header[..HEADER - 8]);
    header[HEADER - 8..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Where the records end, and the mask of the index.
fn check_header(file: &[u8], origin: Origin) -> Result<(usize, usize), Refusal> {
    let word = |n: usize| u64_at(file, 8 * n).unwrap_or(0);
    if word(0) != MAGIC {
        return Err(Refusal::Damaged("it does not begin as such a file"));
    }
    if word(1) != FORMAT || word(2) != origin.build || word(3) != origin.host {
        return Err(Refusal::Stale);
    }
    if word(7) != checksum(&file[..HEADER - 8]) {
        return Err(Refusal::Damaged("checksum of the header"));
    }
    let (records_end, index) = (word(4), word(5));
    let length = index.checked_mul(4).and_then(|index| records_end.checked_add(index));
    if length != Some(file.len() as u64) || !index.is_power_of_two() || records_end < HEADER as u64 {
        return Err(Refusal::Damaged("its size"));
    }
    Ok((records_end as usize, index as usize - 1))
}

/// A file in the making, with rights for its owner alone: removed, unless it is put into place.
pub(super) struct Unfinished {
    file: File,
    path: PathBuf,
    /// Bytes of its records.
    length: usize,
    is_put: bool,
}

impl Unfinished {
    /// For the place of `target`, without records.
    pub fn new(target: &Path) -> io::Result<Self> {
        let directory = target.parent().filter(|directory| !directory.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mut path = target.as_os_str().to_owned();
        path.push(format!(".{}-{number}.{UNFINISHED}", std::process::id()));
        let path = PathBuf::from(path);
        // Of a process of the same number that was killed.
        let _ = fs::remove_file(&path);
        let file = File::options().write(true).create_new(true).mode(0o600).open(&path)?;
        let new = Self { file, path, length: 0, is_put: false };
        // Until there is a header, it is damaged.
        (&new.file).write_all(&[0; HEADER])?;
        Ok(new)
    }

    /// Appends records.
    pub fn append(&mut self, records: &[u8]) -> io::Result<()> {
        self.length += records.len();
        self.file.write_all(records)
    }

    /// Completes it and puts it in the place of whatever there is.
    pub fn put(mut self, target: &Path, origin: Origin, index: &Index) -> io::Result<()> {
        self.file.write_all(&index.words)?;
        let header = header(origin, HEADER + self.length, index.words.len() / 4);
        self.file.write_all_at(&header, 0)?;
        fs::rename(&self.path, target)?;
        self.is_put = true;
        Ok(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        if !self.is_put {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// The index in the making.
pub(super) struct Index {
    words: Vec<u8>,
}

impl Index {
    /// With room for so many records.
    pub fn for_records(count: usize) -> Self {
        Self { words: vec![0; 4 * (2 * count).next_power_of_two()] }
    }

    /// Notes where a record of a hash begins. False: there are too many of it, and it would not be found.
    pub fn add(&mut self, hash: u64, place: usize) -> bool {
        let mask = self.words.len() / 4 - 1;
        let free = (0..=MOST_PROBES)
            .map(|n| 4 * ((hash as usize).wrapping_add(n) & mask))
            .find(|&at| u32_at(&self.words, at) == Some(0));
        if let Some(at) = free {
            self.words[at..at + 4].copy_from_slice(&((place / 8) as u32).to_le_bytes());
        }
        free.is_some()
    }
}

/// Removes the oldest files of a directory until the rest is small enough, and what killed processes left.
pub(super) fn bound(directory: &Path) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    let mut files = Vec::new();
    for entry in entries.flatten() {
        let path = entry.path();
        let Ok(about) = entry.metadata() else { continue };
        let age = about.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        match path.extension().and_then(|extension| extension.to_str()) {
            Some(UNFINISHED) if age.elapsed().is_ok_and(|age| age > ABANDONED_AFTER) => {
                let _ = fs::remove_file(path);
            }
            Some(EXTENSION) => files.push((age, about.len(), path)),
            _ => {}
        }
    }
    files.sort();
    let mut total: u64 = files.iter().map(|(_, length, _)| length).sum();
    for (_, length, path) in files {
        if total <= LARGEST_TOTAL {
            break;
        }
        if fs::remove_file(path).is_ok() {
            total -= length;
        }
    }
}
