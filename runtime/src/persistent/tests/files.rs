//! Files: what is in them is found again, and what must not be used is not.

use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
};

use translator::{CodeBlock, TemplateTranslator, addresses::SLIDE};
use x86::{CpuState, Mode};

use super::{
    super::{Guest, Refusal, Saved, Translations, bytes::checksum, file::HEADER},
    PLACE, Part, blocks, decode, encode, ends, facts, instructions, mode64, record_of, state64,
};

/// A file in a directory of its own.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("transvisor-translations-{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir_all(&directory).unwrap();
        Self(directory)
    }

    fn file(&self) -> PathBuf {
        self.0.join("some.translations")
    }

    /// With some translations in it.
    fn filled(&self) -> Vec<u8> {
        let (translations, refusal) = Translations::open(&self.file());
        assert!(refusal.is_none());
        let translations = translations.unwrap();
        note_all(&translations);
        assert!(matches!(translations.save().unwrap(), Saved::Written(_)));
        fs::read(self.file()).unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn note_all(translations: &Translations) {
    let mut templates = TemplateTranslator::counting();
    for (n, parts) in blocks().iter().enumerate() {
        let rip = PLACE + 0x100 * n as u64;
        let bytes = encode(parts, rip, 0);
        let block = decode(&bytes, rip);
        if let Ok(code) = templates.translate(&block, None) {
            let guest = Guest { block: &block, bytes: &bytes, end: block.end, crosses: false };
            translations.note(&[guest], code, false);
        }
    }
}

/// How many of the blocks are found, if the image was moved by `by`.
fn found(translations: &Translations, by: u64) -> usize {
    let mut code = CodeBlock::default();
    let found = |(n, parts): (usize, &Vec<Part<'_>>)| {
        let rip = (PLACE + 0x100 * n as u64).wrapping_add(by);
        let bytes = encode(parts, rip, by);
        let found = translations.find(rip, mode64(), &mut code, |buffer, _| {
            let fits = buffer.len() == bytes.len();
            fits.then(|| buffer.copy_from_slice(&bytes))?;
            Some((0, ()))
        });
        usize::from(found.is_some())
    };
    blocks().iter().enumerate().map(found).sum()
}

fn refusal(path: &std::path::Path) -> Refusal {
    let (translations, refusal) = Translations::open(path);
    let refusal = refusal.expect("it is refused");
    assert_eq!(translations.is_some(), refusal.is_replaced());
    if let Some(translations) = translations {
        assert_eq!(found(&translations, 0), 0);
    }
    refusal
}

#[test]
fn what_was_kept_is_found() {
    let scratch = Scratch::new();
    let (translations, _) = Translations::open(&scratch.file());
    assert_eq!(found(&translations.unwrap(), 0), 0);
    scratch.filled();
    let (translations, _) = Translations::open(&scratch.file());
    let translations = translations.unwrap();
    let all = found(&translations, 0);
    assert!(all > 300, "{all}");
    assert!(found(&translations, 9 * SLIDE) >= all - 1);
    assert!(translations.usage().loaded as usize >= 2 * all - 1);
    assert_eq!(translations.save().unwrap(), Saved::Unchanged);
}

#[test]
fn code_that_will_be_elsewhere_is_not_wanted() {
    let scratch = Scratch::new();
    let (translations, _) = Translations::open(&scratch.file());
    let translations = translations.unwrap();
    let user = Mode::of(&CpuState { cpl: 3, ..state64() });
    assert!(translations.wants(0x40_1000, user), "a program at a fixed address");
    assert!(!translations.wants(0x5555_5555_5000, user));
    assert!(!translations.wants(0x7fff_f7dd_0000, user));
    assert!(translations.wants(0x5555_5555_5000, mode64()), "no process");
}

#[test]
fn files_of_others_are_not_used() {
    let scratch = Scratch::new();
    scratch.filled();
    // Root may give files away, everybody else finds some of root's.
    let path = match std::os::unix::fs::chown(scratch.file(), Some(12345), None) {
        Ok(()) => scratch.file(),
        Err(_) => "/etc/passwd".into(),
    };
    assert!(matches!(refusal(&path), Refusal::Owner(_)));
}

#[test]
fn files_that_others_may_write_are_not_used() {
    let scratch = Scratch::new();
    scratch.filled();
    let mode = fs::metadata(scratch.file()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    for mode in [0o602, 0o620, 0o666] {
        fs::set_permissions(scratch.file(), fs::Permissions::from_mode(mode)).unwrap();
        assert!(matches!(refusal(&scratch.file()), Refusal::Mode(_)));
    }
}

#[test]
fn what_is_no_file_is_not_used() {
    let scratch = Scratch::new();
    assert!(matches!(refusal(&scratch.0), Refusal::Kind));
    scratch.filled();
    let link = scratch.0.join("link");
    symlink(scratch.file(), &link).unwrap();
    assert!(matches!(refusal(&link), Refusal::Kind));
    assert!(matches!(refusal("/dev/null".as_ref()), Refusal::Kind));
}

#[test]
fn damaged_files_are_made_anew() {
    let scratch = Scratch::new();
    let whole = scratch.filled();
    for length in [0, 1, HEADER - 1, HEADER, whole.len() / 2, whole.len() - 1] {
        fs::write(scratch.file(), &whole[..length]).unwrap();
        assert!(matches!(refusal(&scratch.file()), Refusal::Damaged(_)), "cut off at {length}");
    }
    for byte in 0..HEADER {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x40;
        fs::write(scratch.file(), &damaged).unwrap();
        assert!(refusal(&scratch.file()).is_replaced(), "byte {byte}");
    }
    let (translations, _) = Translations::open(&scratch.file());
    let translations = translations.unwrap();
    note_all(&translations);
    translations.save().unwrap();
    assert_eq!(fs::read(scratch.file()).unwrap(), whole);
}

#[test]
fn those_of_another_build_or_processor_are_made_anew() {
    let scratch = Scratch::new();
    let whole = scratch.filled();
    // Format, build, processor; with a checksum that is right.
    for word in 1..4 {
        let mut other = whole.clone();
        other[8 * word] ^= 1;
        let sum = checksum(&other[..HEADER - 8]);
        other[HEADER - 8..HEADER].copy_from_slice(&sum.to_le_bytes());
        fs::write(scratch.file(), &other).unwrap();
        assert!(matches!(refusal(&scratch.file()), Refusal::Stale));
    }
}

#[test]
fn damaged_records_are_not_found_and_the_others_are() {
    let scratch = Scratch::new();
    let whole = scratch.filled();
    let (translations, _) = Translations::open(&scratch.file());
    let all = found(&translations.unwrap(), 0);
    for seed in 0..40_usize {
        let mut damaged = whole.clone();
        for n in 0..20 {
            let at = HEADER + (seed * 7919 + n * 104_729) % (whole.len() - HEADER);
            damaged[at] ^= 1 << (seed % 8);
        }
        fs::write(scratch.file(), &damaged).unwrap();
        let (translations, _) = Translations::open(&scratch.file());
        let left = found(&translations.unwrap(), 0);
        assert!(left < all && left + 60 > all, "{left} of {all}");
    }
}

#[test]
fn what_cannot_be_written_is_said() {
    let (translations, _) = Translations::open("/proc/self/nowhere/some.translations".as_ref());
    let translations = translations.expect("there is no such file, so none is refused");
    note_all(&translations);
    assert!(translations.save().is_err());
}

#[test]
fn a_directory_stays_bounded() {
    let scratch = Scratch::new();
    scratch.filled();
    // A file with a hole is as long, and takes no room.
    for n in 0..3 {
        let old = fs::File::create(scratch.0.join(format!("{n}.translations"))).unwrap();
        old.set_len(300 << 20).unwrap();
        let long_ago = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + n);
        old.set_modified(long_ago).unwrap();
        let unfinished = fs::File::create(scratch.0.join(format!("{n}.unfinished"))).unwrap();
        unfinished.set_modified(long_ago).unwrap();
    }
    fs::write(scratch.0.join("7.unfinished"), "another process").unwrap();
    Translations::bound(&scratch.0);
    let mut left: Vec<String> = fs::read_dir(&scratch.0)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["2.translations", "7.unfinished", "some.translations"]);
}

/// Code of more than one block, as far as the file is concerned: it is that of the first alone, which only the file does not know.
#[test]
fn code_of_several_blocks_is_found_if_all_of_them_are_as_they_were() {
    let scratch = Scratch::new();
    let head = |rip: u64, by: u64| encode(&[instructions()[0].as_slice(), &ends()[10]].concat(), rip, by);
    let member = |rip: u64, by: u64| encode(&[instructions()[12].as_slice(), &ends()[4]].concat(), rip, by);
    let far = 0x5010;
    let (translations, _) = Translations::open(&scratch.file());
    let translations = translations.unwrap();
    let bytes = [head(PLACE, 0), member(PLACE + far, 0)];
    let blocks = [decode(&bytes[0], PLACE), decode(&bytes[1], PLACE + far)];
    let guests =
        [0, 1].map(|n| Guest { block: &blocks[n], bytes: &bytes[n], end: blocks[n].end, crosses: false });
    let mut templates = TemplateTranslator::counting();
    translations.note(&guests, templates.translate(&blocks[0], None).unwrap(), false);
    translations.save().unwrap();

    let (translations, _) = Translations::open(&scratch.file());
    let translations = translations.unwrap();
    let mut code = CodeBlock::default();
    let alone = translations.find(PLACE, mode64(), &mut code, |_, _| Some((0, ())));
    assert!(alone.is_none(), "it is no block");
    for by in [0, 3 * SLIDE, ((-2_i64) as u64).wrapping_mul(SLIDE)] {
        let rip = PLACE.wrapping_add(by);
        let mut find = |bytes: [Vec<u8>; 2]| {
            translations.find_region(
                rip,
                mode64(),
                &mut code,
                |members| {
                    let rips: Vec<u64> = members.iter().map(|member| member.rip).collect();
                    assert_eq!(rips, [rip, rip + far]);
                    Some((bytes.concat(), ()))
                },
                |_, ()| None,
            )
        };
        let (first, second) = (head(rip, by), member(rip + far, by));
        let mut other = second.clone();
        other[0] ^= 1;
        assert!(find([first.clone(), other]).is_none(), "another second block");
        assert!(find([first.clone(), second]).is_some());
        let (_, expected) = record_of(&decode(&first, rip), &first, None).unwrap();
        assert_eq!(facts(&code), expected);
        assert_eq!(code.callouts.len(), 1);
    }
}
