//! What tests that boot Debian have in common.

use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

/// What the recipes' shell shows when it waits for a command.
pub const PROMPT: &str = "root@debian:~# ";
/// Until that must have come: a boot takes seconds, but CI machines are slow and shared.
pub const BOOT: Duration = Duration::from_secs(180);
/// Until it must have come again after a command.
pub const COMMAND: Duration = Duration::from_secs(120);

/// A folder of a test's own in `base` (`CARGO_TARGET_TMPDIR`); it does not exist yet.
pub fn folder(base: &str, name: &str) -> PathBuf {
    let folder = Path::new(base).join(format!("{name}-{}", std::process::id()));
    let _ = fs::remove_dir_all(&folder);
    folder
}
