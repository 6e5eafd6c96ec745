//! A profile's directory: made once, written file by file so that each is whole at every moment, read with distrust.

use std::{
    fs,
    io::{self, BufWriter, ErrorKind, Write},
    path::{Path, PathBuf},
};

use crate::model::{FORMAT, OLDEST, Profile, VERSION};

/// The whole profile.
pub const BLOCKS: &str = "blocks.json";
/// The blocks that matter most, refreshed while the guest runs; of the same format.
pub const LIVE: &str = "live.json";
/// For a browser.
pub const REPORT: &str = "report.html";
/// Guest call stacks.
pub const FLAMEGRAPH: &str = "flamegraph.svg";
/// The same for speedscope.app.
pub const SPEEDSCOPE: &str = "profile.speedscope.json";

/// What is wrong with a profile's directory.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is something at its place.
    #[error("--profile {0}: exists and is not an empty directory; name a new one, or remove it first")]
    Exists(String),
    /// It can't be made or written.
    #[error("--profile {path}: {source}; name a directory that can be written")]
    Write {
        /// The file or directory.
        path: String,
        /// What the host says.
        source: io::Error,
    },
    /// It can't be read.
    #[error("{path}: {source}; is this a directory that `transvisor run --profile` has written?")]
    Read {
        /// The file.
        path: String,
        /// What the host says.
        source: io::Error,
    },
    /// It ends too early.
    #[error("{0}: cut off: the end is missing, so this is no whole profile")]
    Truncated(String),
    /// It is something else.
    #[error("{path}: not a profile of Transvisor ({why})")]
    Foreign {
        /// The file.
        path: String,
        /// Why not.
        why: String,
    },
    /// It is of another time.
    #[error(
        "{path}: a profile of format version {found}, this program reads versions {OLDEST} to {VERSION}; use the program that wrote it"
    )]
    Version {
        /// The file.
        path: String,
        /// What it says.
        found: u64,
    },
}

/// A directory that profiles are written to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Directory(PathBuf);

impl Directory {
    /// Makes it; an empty one may be there already. Whether it can be written is tried out now, not when the guest has
    /// ended.
    pub fn create(path: &Path) -> Result<Self, StoreError> {
        let failed = |source| StoreError::Write { path: path.display().to_string(), source };
        match fs::read_dir(path) {
            Ok(mut entries) => {
                if entries.next().is_some() {
                    return Err(StoreError::Exists(path.display().to_string()));
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => fs::create_dir_all(path).map_err(failed)?,
            Err(error) if error.kind() == ErrorKind::NotADirectory => {
                return Err(StoreError::Exists(path.display().to_string()));
            }
            Err(error) => return Err(failed(error)),
        }
        let probe = path.join(".probe");
        fs::write(&probe, b"").and_then(|()| fs::remove_file(&probe)).map_err(failed)?;
        Ok(Self(path.to_owned()))
    }

    /// One that exists, to write more into it.
    pub fn open(path: &Path) -> Self {
        Self(path.to_owned())
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// One in it, for the `number`-th boot of a machine, which is counted from 1; the first has none of its own.
    pub fn of_boot(&self, number: u32) -> Result<Self, StoreError> {
        if number <= 1 { Ok(self.clone()) } else { Self::create(&self.0.join(format!("boot-{number}"))) }
    }

    /// Writes a file: whoever reads it finds the old or the new one, never a part.
    pub fn write(&self, name: &str, contents: &[u8]) -> Result<(), StoreError> {
        self.exchange(name, |file| file.write_all(contents))
    }

    fn exchange(
        &self,
        name: &str,
        fill: impl FnOnce(&mut BufWriter<fs::File>) -> io::Result<()>,
    ) -> Result<(), StoreError> {
        let path = self.0.join(name);
        let new = self.0.join(format!("{name}.new"));
        fs::File::create(&new)
            .and_then(|file| {
                let mut file = BufWriter::with_capacity(1 << 20, file);
                fill(&mut file)?;
                file.flush()
            })
            .and_then(|()| fs::rename(&new, &path))
            .map_err(|source| StoreError::Write { path: path.display().to_string(), source })
    }

    /// Writes a profile.
    pub fn write_profile(&self, name: &str, profile: &Profile) -> Result<(), StoreError> {
        // A profile is tens of megabytes: not all at once.
        self.exchange(name, |file| serde_json::to_writer(file, profile).map_err(io::Error::from))
    }
}

/// Reads the profile in a directory, or in a file.
pub fn load(path: &Path) -> Result<Profile, StoreError> {
    if path.is_dir() { load_file(&path.join(BLOCKS)) } else { load_file(path) }
}

/// Reads a file.
pub fn load_file(path: &Path) -> Result<Profile, StoreError> {
    let name = path.display().to_string();
    let bytes = fs::read(path).map_err(|source| StoreError::Read { path: name.clone(), source })?;
    parse(&bytes, name)
}

fn parse(bytes: &[u8], path: String) -> Result<Profile, StoreError> {
    let foreign = |why: String| StoreError::Foreign { path: path.clone(), why };
    // What it says that it is comes first: of another version, nothing else need be as we know it.
    #[derive(serde::Deserialize)]
    struct Head {
        format: String,
        version: u64,
    }
    match serde_json::from_slice::<Head>(bytes) {
        Ok(head) if head.format != FORMAT => return Err(foreign(format!("it says `{}`", head.format))),
        Ok(head) if !(u64::from(OLDEST)..=u64::from(VERSION)).contains(&head.version) => {
            return Err(StoreError::Version { path, found: head.version });
        }
        Ok(_) => {}
        Err(error) if error.is_eof() => return Err(StoreError::Truncated(path)),
        Err(error) => return Err(foreign(error.to_string())),
    }
    let profile: Profile = serde_json::from_slice(bytes).map_err(|error| foreign(error.to_string()))?;
    check(&profile).map_err(|why| foreign(why.into()))?;
    Ok(profile)
}

/// Indices lead somewhere, so that nobody who reads it has to ask again.
fn check(profile: &Profile) -> Result<(), &'static str> {
    let members = profile.code.iter().flat_map(|code| &code.members);
    if members.filter_map(|member| member.block).any(|block| block >= profile.blocks.len()) {
        return Err("code of a block that is not there");
    }
    let has = |version: &crate::model::VersionOf| {
        profile.code.get(version.code).is_some_and(|code| version.member < code.members.len())
    };
    if !profile.blocks.iter().flat_map(|block| &block.versions).all(has) {
        return Err("a block with code that is not there");
    }
    let frames = profile.stacks.stacks.iter().flat_map(|stack| &stack.frames);
    if frames.into_iter().any(|&frame| frame >= profile.stacks.frames.len()) {
        return Err("a stack of frames that are not there");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::VersionOf;

    fn folder(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("transvisor-store-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        path
    }

    fn profile() -> Profile {
        let mut profile = Profile { format: FORMAT.into(), version: VERSION, ..Profile::default() };
        profile.blocks.push(crate::model::Block { rip: 0xffff_ffff_8100_0000, ..Default::default() });
        profile
    }

    #[test]
    fn what_was_written_is_read() {
        let path = folder("round");
        let directory = Directory::create(&path).unwrap();
        directory.write_profile(BLOCKS, &profile()).unwrap();
        assert_eq!(load(&path).unwrap(), profile());
        assert_eq!(load(&path.join(BLOCKS)).unwrap(), profile());
        assert!(matches!(Directory::create(&path), Err(StoreError::Exists(_))), "it is in use");
        let second = directory.of_boot(2).unwrap();
        assert_eq!(second.path(), path.join("boot-2"));
        fs::remove_dir_all(path).unwrap();
    }

    #[test]
    fn places_that_can_t_be_written_are_found_out_at_once() {
        let path = folder("file");
        fs::write(&path, b"").unwrap();
        assert!(matches!(Directory::create(&path), Err(StoreError::Exists(_))));
        assert!(matches!(
            Directory::create(&path.join("below")),
            Err(StoreError::Write { .. } | StoreError::Exists(_))
        ));
        assert!(matches!(Directory::create(Path::new("/proc/transvisor")), Err(StoreError::Write { .. })));
        fs::remove_file(path).unwrap();
    }

    #[test]
    fn bad_files_are_told_apart() {
        let whole = serde_json::to_vec(&profile()).unwrap();
        let read = |bytes: &[u8]| parse(bytes, "f".into());
        assert!(read(&whole).is_ok());
        for length in [0, 1, 30, whole.len() / 2, whole.len() - 1] {
            assert!(matches!(read(&whole[..length]), Err(StoreError::Truncated(_))), "{length}");
        }
        for foreign in ["[]", "{}", "hello", r#"{"format":"other","version":1}"#] {
            assert!(matches!(read(foreign.as_bytes()), Err(StoreError::Foreign { .. })), "{foreign}");
        }
        let later = br#"{"format":"transvisor-profile","version":77,"news":true}"#;
        assert!(matches!(read(later), Err(StoreError::Version { found: 77, .. })));
        let earlier = Profile { version: OLDEST, ..profile() };
        assert_eq!(read(&serde_json::to_vec(&earlier).unwrap()).unwrap().version, 1);
        let mut wrong = profile();
        wrong.blocks[0].versions.push(VersionOf { code: 0, member: 0 });
        let wrong = serde_json::to_vec(&wrong).unwrap();
        assert!(matches!(read(&wrong), Err(StoreError::Foreign { .. })));
        assert!(matches!(load(Path::new("/nonexistent")), Err(StoreError::Read { .. })));
    }
}
