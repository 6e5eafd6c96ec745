//! The cache directory: one directory per guest, put there by a rename, under a lock.
//!
//! ```text
//! CACHE/lock               held while a guest is looked up or fetched
//! CACHE/guests/RECIPE/     vmlinuz, initramfs.cpio, manifest.json, verified.json
//! CACHE/workloads/NAME/    a program and an initramfs with it, made anew whenever they are asked for
//! CACHE/work/              what is being fetched; anything found here belongs to a run that was killed
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use crate::{Error, Progress, Recipe, Step, files};

/// Where guests are kept.
#[derive(Clone, Debug)]
pub struct CacheDir {
    path: PathBuf,
}

impl CacheDir {
    /// This directory; it need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// $TRANSVISOR_CACHE, else $XDG_CACHE_HOME/transvisor, else ~/.cache/transvisor.
    pub fn from_environment() -> Result<Self, Error> {
        Self::choose(|name| std::env::var_os(name).map(PathBuf::from))
    }

    fn choose(variable: impl Fn(&str) -> Option<PathBuf>) -> Result<Self, Error> {
        let set = |name| variable(name).filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = set("TRANSVISOR_CACHE") {
            return Ok(Self::new(path));
        }
        // XDG base directory specification: a relative path is to be ignored.
        let base = set("XDG_CACHE_HOME")
            .filter(|path| path.is_absolute())
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .ok_or(Error::NoCacheDir)?;
        Ok(Self::new(base.join("transvisor")))
    }

    /// The directory itself.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the guest of `recipe` is, if it is.
    pub fn entry(&self, recipe: &Recipe) -> PathBuf {
        self.path.join("guests").join(recipe.name)
    }
}

/// The right to write the cache; released when dropped.
pub(crate) struct Lock<'a> {
    cache: &'a CacheDir,
    _file: File,
}

impl<'a> Lock<'a> {
    /// Waits for it. Creates the cache directory.
    pub(crate) fn take(cache: &'a CacheDir, progress: &mut dyn Progress) -> Result<Self, Error> {
        // Some file systems (/proc) say "not found" when nothing may be created.
        files::create_directory(&cache.path).map_err(|error| match error {
            Error::File { path, source } => Error::CacheReadOnly { path, reason: source.to_string() },
            error => error,
        })?;
        let path = cache.path.join("lock");
        let failed = |error| Error::of_file(&path, error);
        let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                progress.step(&Step::Waiting);
                file.lock().map_err(failed)?;
            }
            Err(TryLockError::Error(error)) => return Err(failed(error)),
        }
        Ok(Self { cache, _file: file })
    }

    /// An empty directory in the cache on a disk with `needed` bytes, so that what is made in it can be renamed into place.
    pub(crate) fn work_directory(&self, needed: u64) -> Result<WorkDirectory, Error> {
        let path = self.cache.path.join("work");
        remove(&path).map_err(|error| Error::of_file(&path, error))?;
        files::create_directory(&path)?;
        // Absolute, because apt is run in another directory.
        let path = path.canonicalize().map_err(|error| Error::of_file(&path, error))?;
        let work = WorkDirectory { path };
        match available(&work.path) {
            Some(free) if free < needed => Err(Error::DiskFull {
                path: self.cache.path.clone(),
                reason: format!("{} MB are free", free / 1_000_000),
            }),
            _ => Ok(work),
        }
    }

    /// Where the guest of `recipe` goes.
    pub(crate) fn guest(&self, recipe: &Recipe) -> PathBuf {
        self.cache.entry(recipe)
    }

    /// Where the workloads of that name go.
    pub(crate) fn workloads(&self, name: &str) -> PathBuf {
        self.cache.path.join("workloads").join(name)
    }

    /// Makes `entry`, a directory within `work`, the directory `target` of the cache; an older one gives way.
    pub(crate) fn install(&self, target: &Path, entry: &Path, work: &WorkDirectory) -> Result<(), Error> {
        files::sync_directory(entry)?;
        let parent = target.parent().unwrap_or(&self.cache.path);
        files::create_directory(parent)?;
        let failed = |error| Error::of_file(target, error);
        // A crash between the two renames leaves no entry: it is fetched again, and never found half-written.
        match fs::rename(target, work.path.join("old")) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        fs::rename(entry, target).map_err(failed)?;
        files::sync_directory(parent)
    }
}

/// Space that fetching takes at its height: about 100 MB of package lists (more with more sources), up to 80 MB of
/// packages, and what is made of them.
pub(crate) const NEEDED: u64 = 200_000_000;
/// The same with packages and all that they depend on.
pub(crate) const NEEDED_WITH_PACKAGES: u64 = 500_000_000;

/// Free bytes on the disk that holds `path`, where the host can say.
pub(crate) fn available(path: &Path) -> Option<u64> {
    let statistics = rustix::fs::statvfs(path).ok()?;
    statistics.f_bavail.checked_mul(statistics.f_frsize)
}

/// A directory that vanishes when dropped.
pub(crate) struct WorkDirectory {
    path: PathBuf,
}

impl WorkDirectory {
    /// A new directory in it.
    pub(crate) fn subdirectory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        files::create_directory(&path)?;
        Ok(path)
    }
}

impl Drop for WorkDirectory {
    fn drop(&mut self) {
        // What can't be removed now is removed by the next run.
        let _ = remove(&self.path);
    }
}

/// Removes a directory with all that is in it, or a file; nothing there is fine too.
fn remove(path: &Path) -> io::Result<()> {
    let result = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_where_the_environment_says() {
        let choose = |variables: &[(&str, &str)]| {
            CacheDir::choose(|name| variables.iter().find(|(n, _)| *n == name).map(|(_, value)| value.into()))
                .map(|cache| cache.path.display().to_string())
        };
        let all = [("TRANSVISOR_CACHE", "/t"), ("XDG_CACHE_HOME", "/x"), ("HOME", "/h")];
        assert_eq!(choose(&all).unwrap(), "/t");
        assert_eq!(choose(&all[1..]).unwrap(), "/x/transvisor");
        assert_eq!(choose(&all[2..]).unwrap(), "/h/.cache/transvisor");
        assert_eq!(choose(&[("XDG_CACHE_HOME", "x"), ("HOME", "/h")]).unwrap(), "/h/.cache/transvisor");
        assert_eq!(choose(&[("TRANSVISOR_CACHE", ""), ("HOME", "/h")]).unwrap(), "/h/.cache/transvisor");
        assert!(matches!(choose(&[]), Err(Error::NoCacheDir)));
    }
}
