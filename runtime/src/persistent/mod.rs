//! The persistent translation cache: code that the templates made is kept in a file, and the next guest that runs the same
//! bytes has it at their first execution, without decoding, interpreting or translating them.
//!
//! [`Translations`] is one file, used by one machine at a time and shared by its boots. The [`crate::finder`] asks it for a block
//! that the block cache does not know, before it decodes; the [`crate::compiler`] has it note what it translates. What comes
//! out is a block like any other: watched, linked, killed by writes. [`Translations::save`] writes a new file, if there is
//! something new that is worth it.
//!
//! What finds a translation is its *content*: rip, mode, and all bytes of the guest block, compared one by one with those in
//! guest memory. Where these lie physically does not matter, and KASLR may have moved the kernel's image ([`slide`]). Position-independent
//! code of processes is not kept. What was kept by another build
//! of this program or on another processor is not used ([`file`], which says who is trusted with what, too).

mod bytes;
mod file;
mod record;
mod slide;
#[cfg(test)]
mod tests;

use std::{
    hash::Hasher,
    path::{Path, PathBuf},
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use translator::{CodeBlock, addresses};
use twox_hash::XxHash64;
use x86::{Mode, PAGE_MASK};

use crate::hash::{Map, Mix, Set};
use bytes::checksum;
use file::{Index, Mapped, Origin, Unfinished};
use record::{ALIGNMENT, Record};

pub use file::Refusal;
pub(crate) use record::{Guest, Member};

/// New records are worth a new file if they have so many bytes, or the file has none.
const WORTH_IT: usize = 64 << 10;

/// Of code at the same place that keeps changing, so many versions are noted in a run.
const MOST_VERSIONS: u8 = 16;

/// So many records are expected.
const TYPICAL: usize = 1 << 16;

/// New records are written in pieces of about this size.
const PIECE: usize = 256 << 10;

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
    /// When the file's pages were given back last.
    released: Mutex<Instant>,
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
    /// Records that are not yet in the file that is being made.
    piece: Vec<u8>,
    /// That file, once there is something in it.
    unfinished: Option<Unfinished>,
    /// It is complete.
    is_saved: bool,
    /// Why there can be none.
    failed: Option<std::io::Error>,
    /// Hash of each record, and where it begins.
    places: Vec<(u64, usize)>,
    bytes: usize,
    /// The last record of each page, by [`page_of`].
    pages: Map<(u64, u32), usize>,
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

/// How long the file's pages stay after a guest has been idle.
const RESIDENT: Duration = Duration::from_millis(250);

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
            released: Mutex::new(Instant::now()),
            missed: AtomicU64::new(0),
        };
        (Some(new), refusal)
    }

    /// The name of a file for a guest of this name (of its kernel), in the directory of all such files.
    pub fn path_in(directory: &Path, guest: &str) -> PathBuf {
        let hash = checksum(guest.as_bytes());
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
        let kept = self.kept.as_ref().filter(|_| self.wants(rip, mode))?;
        let records = kept.file.records();
        for start in kept.file.find(hash(rip, mode)) {
            match Record::key(records, start) {
                Some((there, of)) if of == mode.0 && slide::distance(there, rip).is_some() => {}
                _ => continue,
            }
            let Some(record) = Record::parse(records, start) else { continue };
            let mut buffer = [0; LONGEST_BLOCK];
            let Some(here) = buffer.get_mut(..record.guest_bytes()) else { continue };
            if record.is_region() {
                continue;
            }
            let Some((addend, context)) = read(here, record.crosses()) else { continue };
            let Some(moved) = record.matches(rip, here) else { continue };
            let addend_of = |_| record.crosses().then_some(addend);
            if record.is_sound() && record.load(code, here, moved, addend_of).is_some() {
                self.count(kept, start, code);
                let found = Found { rip, mode, bytes: here.len() as u16, end: record.end, by: moved.by };
                return Some((found, context));
            }
        }
        self.missed.fetch_add(1, Ordering::Relaxed);
        None
    }

    /// Looks for code of all blocks of the page of one that was found, but for those that cross into the next one. `wanted` says of a rip
    /// whether there is none yet, `read` gives the bytes there, and `install` gets the block and its code. `has_region`: that of a region that begins there.
    pub(crate) fn find_page(
        &self,
        found: Found,
        code: &mut CodeBlock,
        wanted: impl Fn(u64) -> bool,
        read: impl Fn(u64, &mut [u8]) -> Option<()>,
        mut install: impl FnMut(Found, &CodeBlock),
        mut has_region: impl FnMut(u64),
    ) {
        let Some(kept) = &self.kept else { return };
        let records = kept.file.records();
        let mode = found.mode;
        let page = page_of(found.rip.wrapping_sub(found.by), mode);
        let is_of_page = |&start: &usize| {
            Record::key(records, start).is_some_and(|(rip, mode)| page_of(rip, Mode(mode)) == page)
        };
        let mut start = kept.file.find(page_hash(page.0, mode)).find(is_of_page).unwrap_or(0);
        for _ in 0..MOST_OF_PAGE {
            let Some(record) = Some(start).filter(is_of_page).and_then(|start| Record::parse(records, start))
            else {
                return;
            };
            let rip = record.rip.wrapping_add(found.by);
            let mut buffer = [0; LONGEST_BLOCK];
            if record.is_region() {
                has_region(rip);
            } else if !record.crosses()
                && wanted(rip)
                && let Some(here) = buffer.get_mut(..record.guest_bytes())
                && read(rip, here).is_some()
                && let Some(moved) = record.matches(rip, here)
                && record.is_sound()
                && record.load(code, here, moved, |_| None).is_some()
            {
                self.count(kept, start, code);
                install(Found { rip, bytes: here.len() as u16, end: record.end, ..found }, code);
            }
            start = record.previous();
        }
    }

    /// Looks for code of a region that begins at `rip`. `read` gives the bytes of its blocks, one after the other, if they are all there;
    /// `addend_of` as the TLB has it for a page.
    pub(crate) fn find_region<C>(
        &self,
        rip: u64,
        mode: Mode,
        code: &mut CodeBlock,
        mut read: impl FnMut(&[Member]) -> Option<(Vec<u8>, C)>,
        addend_of: impl Fn(u64, &C) -> Option<u64>,
    ) -> Option<C> {
        let kept = self.kept.as_ref()?;
        let records = kept.file.records();
        for start in kept.file.find(hash(rip, mode)) {
            let Some(record) = Record::parse(records, start) else { continue };
            if record.mode != mode || !record.is_region() {
                continue;
            }
            let Some(by) = slide::distance(record.rip, rip) else { continue };
            let Some((here, context)) = record.members(by).and_then(|members| read(&members)) else {
                continue;
            };
            let Some(moved) = record.matches(rip, &here) else { continue };
            let addend_of = |page| addend_of(page, &context);
            if record.is_sound() && record.load(code, &here, moved, addend_of).is_some() {
                self.count(kept, start, code);
                return Some(context);
            }
        }
        None
    }

    /// The guest is idle: gives the file's pages back now and then. What was loaded is mostly not looked at again.
    pub(crate) fn rest(&self) {
        if let (Some(kept), Ok(mut released)) = (&self.kept, self.released.try_lock())
            && released.elapsed() > RESIDENT
        {
            *released = Instant::now();
            kept.file.release();
        }
    }

    fn count(&self, kept: &Kept, start: usize, code: &CodeBlock) {
        let bit = start / ALIGNMENT;
        kept.used[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
        self.loaded.fetch_add(1, Ordering::Relaxed);
        let bytes = code.code.len() as u64;
        self.loaded_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether code at `rip` may be there in another run. That of processes above 4 GiB is position-independent, and randomized address spaces have it
    /// elsewhere each time: kept, it would crowd out what is found again. Whoever [notes](Self::note) code asks before.
    pub(crate) fn wants(&self, rip: u64, mode: Mode) -> bool {
        mode.cpl() != 3 || rip < 1 << 32
    }

    /// Notes a translation of blocks, which is entered at the first; `changes` says whether code near it has changed before.
    pub(crate) fn note(&self, guests: &[Guest<'_>], code: &CodeBlock, changes: bool) {
        let Some(Guest { block, .. }) = guests.first() else { return };
        let new = &mut *self.lock();
        if new.bytes >= file::LARGEST || new.failed.is_some() || new.is_saved {
            return;
        }
        if new.places.capacity() == 0 {
            // Of a kernel's boot.
            new.places.reserve(TYPICAL);
            new.seen.reserve(TYPICAL);
        }
        let hash = hash(block.rip, block.mode);
        let mut content = XxHash64::with_seed(hash);
        for guest in guests {
            content.write_u64(guest.block.rip);
            content.write(guest.bytes);
        }
        if !new.seen.insert(content.finish()) {
            return;
        }
        if changes {
            let versions = new.versions.entry(hash).or_default();
            if *versions == MOST_VERSIONS {
                new.crowded += 1;
                return;
            }
            *versions += 1;
        }
        let before = new.piece.len();
        let place = file::HEADER + new.bytes;
        let last = new.pages.entry(page_of(block.rip, block.mode)).or_insert(0);
        if record::write(&mut new.piece, guests, code, *last) {
            *last = place;
            new.places.push((hash, place));
            new.bytes += new.piece.len() - before;
        }
        if new.piece.len() >= PIECE {
            new.failed = new.flush(&self.path).err();
        }
    }

    /// Completes the new file, if there is enough that the old one does not have. Where all of it would be too much, what was not used
    /// since it was opened is left out. Afterwards nothing is noted any more.
    pub fn save(&self) -> std::io::Result<Saved> {
        let new = &mut *self.lock();
        // What follows makes it of no more use.
        new.is_saved = true;
        if let Some(error) = new.failed.take() {
            return Err(error);
        }
        let old_bytes = self.kept.as_ref().map_or(0, |kept| kept.file.records().len() - file::HEADER);
        if new.bytes == 0 || old_bytes != 0 && new.bytes < WORTH_IT.max(old_bytes / 64) {
            return Ok(Saved::Unchanged);
        }
        new.flush(&self.path)?;
        let Some(mut unfinished) = new.unfinished.take() else { return Ok(Saved::Unchanged) };
        let kept = self.kept.iter().flat_map(Kept::records);
        // Pages are fewer than records.
        let mut index = Index::for_records(2 * (new.places.len() + kept.clone().count()));
        for &(hash, place) in &new.places {
            index.add(hash, place);
        }
        let mut end = file::HEADER + new.bytes;
        let all_fit = new.bytes + old_bytes <= file::LARGEST;
        for (start, record) in kept {
            let is_used = self.kept.as_ref().is_some_and(|kept| kept.is_used(start));
            if (all_fit || is_used)
                && end + record.bytes().len() <= file::LARGEST
                && index.add(hash(record.rip, record.mode), end)
            {
                let last = new.pages.entry(page_of(record.rip, record.mode)).or_insert(0);
                record::copy(&mut new.piece, record, std::mem::replace(last, end));
                end += record.bytes().len();
                if new.piece.len() >= PIECE {
                    unfinished.append(&new.piece)?;
                    new.piece.clear();
                }
            }
        }
        for (&(page, mode), &last) in &new.pages {
            index.add(page_hash(page, Mode(mode)), last);
        }
        unfinished.append(&new.piece)?;
        unfinished.put(&self.path, self.origin, &index)?;
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

impl New {
    fn flush(&mut self, target: &Path) -> std::io::Result<()> {
        let unfinished = match &mut self.unfinished {
            Some(unfinished) => unfinished,
            none => none.insert(Unfinished::new(target)?),
        };
        unfinished.append(&self.piece)?;
        self.piece.clear();
        Ok(())
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
    pub rip: u64,
    mode: Mode,
    pub bytes: u16,
    pub end: semantics::decode::BlockEnd,
    /// How far it has been moved since it was kept.
    by: u64,
}

const LONGEST_BLOCK: usize = semantics::decode::MAX_BLOCK * semantics::decode::MAX_LENGTH;

/// Records of a page that are looked at.
const MOST_OF_PAGE: usize = 1024;

/// The page of a record, as it was when it was kept.
fn page_of(rip: u64, mode: Mode) -> (u64, u32) {
    (rip & PAGE_MASK, mode.0)
}

/// What the last record of a page is found by.
fn page_hash(page: u64, mode: Mode) -> u64 {
    !hash(page, mode)
}

/// What a record is found by: the same wherever KASLR has moved the image.
fn hash(rip: u64, mode: Mode) -> u64 {
    let place = if addresses::IMAGE.contains(&rip) { rip % addresses::SLIDE } else { rip };
    let mut hash = Mix::default();
    hash.write_u64(place);
    hash.write_u32(mode.0);
    hash.finish()
}

/// Of this program: see `build.rs`.
const BUILD: u64 = match u64::from_str_radix(env!("TRANSVISOR_BUILD"), 10) {
    Ok(build) => build,
    Err(_) => panic!("build.rs gives a number"),
};

/// Of this host's processor: who made it, which it is, and all features that it announces.
fn host() -> u64 {
    use std::arch::x86_64::__cpuid_count;
    let mut sum = Mix::default();
    for (leaf, subleaf) in [(0, 0), (1, 0), (7, 0), (7, 1), (0x8000_0001, 0)] {
        let result = __cpuid_count(leaf, subleaf);
        // Leaf 1, EBX: the number of the processor that this runs on. ECX bit 27 and leaf 7: as the host's kernel has set it up.
        let ebx = if leaf == 1 { 0 } else { result.ebx };
        for word in [result.eax, ebx, result.ecx, result.edx] {
            sum.write_u32(word);
        }
    }
    sum.finish()
}
