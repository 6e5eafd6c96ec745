//! A directory for what a race needs on disk, gone when it is over.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A new one where temporary files go ($TMPDIR).
    pub fn new() -> Result<Self> {
        let path = std::env::temp_dir().join(format!("side-by-side-{}", std::process::id()));
        std::fs::create_dir(&path).with_context(|| format!("creating {}", path.display()))?;
        Ok(Self(path))
    }

    /// A name in it.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What can't be removed is left where temporary files are.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
