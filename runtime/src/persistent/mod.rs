//! The persistent translation cache: code that the templates made is kept in a file, and the next guest that runs the same
//! bytes has it at their first execution, without decoding, interpreting or translating them.
//!
//! [`Translations`] is one file, used by one machine at a time and shared by its boots. The [`crate::finder`] asks it for a block
//! that the block cache does not know, before it decodes; the [`crate::compiler`] has it note what it translates. What comes
//! out is a block like any other: watched, linked, killed by writes. [`Translations::save`] writes a new file, if there is
//! something new that is worth it.
//!
//! What finds a translation is its *content*: rip, mode, and all bytes of the guest block, compared one by one with those in
//! guest memory. Where these lie physically does not matter, and KASLR may have moved the kernel's image ([`slide`]). What was kept by another build
//! of this program or on another processor is not used ([`file`], which says who is trusted with what, too).

mod file;
mod record;
mod slide;
#[cfg(test)]
mod tests;

use std::{
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use semantics::decode::GuestBlock;
use translator::{CodeBlock, addresses};
use x86::Mode;

use crate::hash::{Map, Set};
use file::{Contents, Index, Mapped, Origin};
use record::{ALIGNMENT, Record};

pub use file::Refusal;
pub(crate) use record::Guest;

/// New records are worth a new file if they have so many bytes, or the file has none.
const WORTH_IT: usize = 64 << 10;

/// Of code at the same place that keeps changing, so many versions are noted in a run.
const MOST_VERSIONS: u8 = 16;

/// New records are kept in pieces of this size.
const PIECE: usize = 1 << 20;

/// A file of translations.
pub struct Translations {
    path: PathBuf,
    origin: Origin,
    /// What it had when it was opened.
    kept: Option<Kept>,
    new: Mutex<New>,
    loaded: AtomicU64,
    loaded_bytes: AtomicU64,
    missed: AtomicU64,
}

impl std::fmt::Debug for Translations {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Translations").field("path", &self.path).finish_non_exhaustive()
    }
}

struct Kept {
    file: Mapped,
    /// Bit n: the record at the n-th multiple of [`ALIGNMENT`] was used.
    used: Box<[AtomicU64]>,
}

/// What was translated since.
#[derive(Default)]
struct New {
    pieces: Vec<Vec<u8>>,
    /// Hash of each record, and where it begins in the pieces put one after the other.
    places: Vec<(u64, usize)>,
    bytes: usize,
    seen: Set<u64>,
    /// How many there are of each hash.
    versions: Map<u64, u8>,
    /// How many there were too many of.
    crowded: u64,
}

/// What came of it.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Usage {
    /// Blocks whose code came from the file.
    pub loaded: u64,
    /// Host bytes of their code.
    pub loaded_bytes: u64,
    /// Blocks that were looked for and are not in it.
    pub missed: u64,
    /// Blocks that would be new in it.
    pub new: u64,
    /// Blocks that are not noted, because their code changes too often.
    pub crowded: u64,
    /// Bytes that it had.
    pub file_bytes: u64,
}

/// What became of a file at the end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Saved {
    /// There was little new.
    Unchanged,
    /// It has so many bytes now.
    Written(u64),
}

impl Translations {
    /// Those of a file, if it is there and may be used; else none, and it is made by [`Translations::save`]. The refusal says why it
    /// is not used, and by [`Refusal::is_replaced`] whether it will be replaced; if not, there are no `Translations` at all.
    pub fn open(path: &Path) -> (Option<Self>, Option<Refusal>) {
        let origin = Origin { build: BUILD, host: host() };
        let (file, refusal) = match Mapped::open(path, origin) {
            Ok(file) => (file, None),
            Err(refusal) => (None, Some(refusal)),
        };
        if refusal.as_ref().is_some_and(|refusal| !refusal.is_replaced()) {
            return (None, refusal);
        }
        let kept = file.map(|file| {
            let words = (file.records().len() / ALIGNMENT).div_ceil(64);
            Kept { file, used: (0..words).map(|_| AtomicU64::new(0)).collect() }
        });
        let new = Self {
            path: path.to_owned(),
            origin,
            kept,
            new: Mutex::default(),
            loaded: AtomicU64::new(0),
            loaded_bytes: AtomicU64::new(0),
            missed: AtomicU64::new(0),
        };
        (Some(new), refusal)
    }

    /// The name of a file for a guest of this name (of its kernel), in the directory of all such files.
    pub fn path_in(directory: &Path, guest: &str) -> PathBuf {
        let hash = guest.bytes().fold(0, |hash, byte| mix(hash, u64::from(byte)));
        let readable: String = Path::new(guest).file_name().unwrap_or_default().to_string_lossy().into();
        let readable: String = readable.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        directory.join(format!("{readable}-{hash:016x}.{}", file::EXTENSION))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What came of it so far.
    pub fn usage(&self) -> Usage {
        let new = self.lock();
        Usage {
            loaded: self.loaded.load(Ordering::Relaxed),
            loaded_bytes: self.loaded_bytes.load(Ordering::Relaxed),
            missed: self.missed.load(Ordering::Relaxed),
            new: new.places.len() as u64,
            crowded: new.crowded,
            file_bytes: self.kept.as_ref().map_or(0, |kept| kept.file.records().len() as u64),
        }
    }

    /// Looks for code of the block at `rip`, whose bytes `read` gives: so many of them, and those beyond the page's end, with the
    /// TLB's addend for that page, if the block crosses. `code` becomes that of the block.
    pub(crate) fn find<C>(
        &self,
        rip: u64,
        mode: Mode,
        code: &mut CodeBlock,
        mut read: impl FnMut(&mut [u8], bool) -> Option<(u64, C)>,
    ) -> Option<(Found, C)> {
        let kept = self.kept.as_ref()?;
        let records = kept.file.records();
        for start in kept.file.find(hash(rip, mode)) {
            match Record::key(records, start) {
                Some((there, of)) if of == mode.0 && slide::distance(there, rip).is_some() => {}
                _ => continue,
            }
            let Some(record) = Record::parse(records, start) else { continue };
            let mut buffer = [0; LONGEST_BLOCK];
            let Some(here) = buffer.get_mut(..record.guest_bytes()) else { continue };
            let Some((addend, context)) = read(here, record.crosses()) else { continue };
            let Some(moved) = record.matches(rip, here) else { continue };
            if record.is_sound() && record.load(code, here, moved, addend).is_some() {
                let bit = start / ALIGNMENT;
                kept.used[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
                self.loaded.fetch_add(1, Ordering::Relaxed);
                self.loaded_bytes.fetch_add(code.code.len() as u64, Ordering::Relaxed);
                return Some((Found { bytes: here.len() as u16, end: record.end }, context));
            }
        }
        self.missed.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Notes a translation of a block.
    pub(crate) fn note(&self, block: &GuestBlock, guest: Guest<'_>, code: &CodeBlock) {
        let new = &mut *self.lock();
        if new.bytes >= file::LARGEST {
            return;
        }
        let hash = hash(block.rip, block.mode);
        let words = guest
            .bytes
            .chunks(8)
            .map(|bytes| bytes.iter().fold(0, |word, &byte| word << 8 | u64::from(byte)));
        if !new.seen.insert(words.fold(mix(hash, block.rip), mix)) {
            return;
        }
        let versions = new.versions.entry(hash).or_default();
        if *versions == MOST_VERSIONS {
            new.crowded += 1;
            return;
        }
        *versions += 1;
        if new.pieces.last().is_none_or(|piece| piece.capacity() - piece.len() < PIECE / 16) {
            new.pieces.push(Vec::with_capacity(PIECE));
        }
        let Some(piece) = new.pieces.last_mut() else { return };
        let before = piece.len();
        if record::write(piece, block, guest, code) {
            new.places.push((hash, new.bytes));
            new.bytes += piece.len() - before;
        }
    }

    /// Writes the file anew, if there is enough that it does not have. Where all of it would be too much, what was not used since
    /// it was opened is left out.
    pub fn save(&self) -> std::io::Result<Saved> {
        let new = self.lock();
        let old_bytes = self.kept.as_ref().map_or(0, |kept| kept.file.records().len() - file::HEADER);
        if new.bytes == 0 || old_bytes != 0 && new.bytes < WORTH_IT.max(old_bytes / 64) {
            return Ok(Saved::Unchanged);
        }
        let mut records: Vec<&[u8]> = new.pieces.iter().map(Vec::as_slice).collect();
        let kept = self.kept.iter().flat_map(Kept::records);
        let mut index = Index::for_records(new.places.len() + kept.clone().count());
        let mut end = file::HEADER;
        for &(hash, place) in &new.places {
            index.add(hash, end + place);
        }
        end += new.bytes;
        let all_fit = new.bytes + old_bytes <= file::LARGEST;
        for (start, record) in kept {
            let is_used = self.kept.as_ref().is_some_and(|kept| kept.is_used(start));
            if (all_fit || is_used)
                && end + record.bytes().len() <= file::LARGEST
                && index.add(hash(record.rip, record.mode), end)
            {
                records.push(record.bytes());
                end += record.bytes().len();
            }
        }
        file::write(&self.path, &Contents { origin: self.origin, records: &records, index })?;
        Ok(Saved::Written(end as u64))
    }

    /// Keeps all files of a directory together in bounds, by removing the oldest.
    pub fn bound(directory: &Path) {
        file::bound(directory);
    }

    fn lock(&self) -> MutexGuard<'_, New> {
        // Records are appended whole, so what is there is right.
        self.new.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// All sound records, in order, as far as their lengths lead from one to the next.
    fn records(&self) -> impl Iterator<Item = (usize, Record<'_>)> + Clone {
        let first = Record::parse(self.file.records(), file::HEADER).map(|record| (file::HEADER, record));
        let next = |&(start, record): &(usize, Record<'_>)| {
            let start = start + record.bytes().len();
            Some((start, Record::parse(self.file.records(), start)?))
        };
        std::iter::successors(first, next).filter(|(_, record)| record.is_sound())
    }

    fn is_used(&self, start: usize) -> bool {
        let bit = start / ALIGNMENT;
        self.used.get(bit / 64).is_some_and(|word| word.load(Ordering::Relaxed) >> (bit % 64) & 1 != 0)
    }
}

/// What is known of a block that was found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Found {
    pub bytes: u16,
    pub end: semantics::decode::BlockEnd,
}

const LONGEST_BLOCK: usize = semantics::decode::MAX_BLOCK * semantics::decode::MAX_LENGTH;

/// What a record is found by: the same wherever KASLR has moved the image.
fn hash(rip: u64, mode: Mode) -> u64 {
    let place = if addresses::IMAGE.contains(&rip) { rip % addresses::SLIDE } else { rip };
    let hash = mix(mix(0, place), u64::from(mode.0));
    hash ^ hash >> 32
}

fn mix(hash: u64, word: u64) -> u64 {
    (hash ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

/// Of this program: see `build.rs`.
const BUILD: u64 = match u64::from_str_radix(env!("TRANSVISOR_BUILD"), 10) {
    Ok(build) => build,
    Err(_) => panic!("build.rs gives a number"),
};

/// Of this host's processor: who made it, which it is, and all features that it announces.
fn host() -> u64 {
    use std::arch::x86_64::__cpuid_count;
    let mut sum = 0;
    for (leaf, subleaf) in [(0, 0), (1, 0), (7, 0), (7, 1), (0x8000_0001, 0)] {
        let result = __cpuid_count(leaf, subleaf);
        // Leaf 1, EBX: the number of the processor that this runs on. ECX bit 27 and leaf 7: as the host's kernel has set it up.
        let ebx = if leaf == 1 { 0 } else { result.ebx };
        for word in [result.eax, ebx, result.ecx, result.edx] {
            sum = mix(sum, u64::from(word));
        }
    }
    sum
}
