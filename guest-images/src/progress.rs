//! What happens, for whoever waits for it.

use std::fmt;

use crate::Recipe;

/// Told what happens while a guest is fetched.
pub trait Progress {
    /// A step begins (or, for those in the past tense, is done). `Display` says it in a line.
    fn step(&mut self, step: &Step);

    /// Of the current step `done` bytes of `total` are there. May be called often.
    fn bytes(&mut self, done: u64, total: u64) {
        let _ = (done, total);
    }

    /// A line of the package manager's.
    fn detail(&mut self, line: &str) {
        let _ = line;
    }
}

/// Tells nobody.
pub struct Silent;

impl Progress for Silent {
    fn step(&mut self, _: &Step) {}
}

/// A step.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "Display says what the fields are")]
pub enum Step {
    Waiting,
    Cached { recipe: &'static Recipe, kernel: String },
    Damaged { recipe: &'static Recipe, reason: String },
    UpdatingLists,
    Downloading { packages: Vec<(String, String)>, size: u64 },
    Verified { package: String, size: u64, sha256: String },
    VerifiedAll { packages: usize, size: u64 },
    Unpacking { package: String },
    UnpackingAll { packages: usize },
    Built { initramfs: u64 },
    Stored { recipe: &'static Recipe, size: u64 },
}

/// "14.2 MB".
fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Waiting => write!(f, "waiting for another transvisor that is using the cache"),
            Self::Cached { recipe, kernel } => write!(f, "{}: {kernel} from the cache", recipe.name),
            Self::Damaged { recipe, reason } => {
                write!(f, "{}: the cached guest is unusable ({reason}); fetching it again", recipe.name)
            }
            Self::UpdatingLists => write!(f, "reading the package lists of this host's apt sources"),
            Self::Downloading { packages, size } => {
                if packages.len() > 4 {
                    return write!(f, "downloading {} packages ({})", packages.len(), megabytes(*size));
                }
                let names: Vec<_> =
                    packages.iter().map(|(name, version)| format!("{name} {version}")).collect();
                write!(f, "downloading {} ({})", names.join(", "), megabytes(*size))
            }
            Self::VerifiedAll { packages, size } => {
                write!(
                    f,
                    "{packages} packages: {}, each of the size and SHA-256 in the package list",
                    megabytes(*size)
                )
            }
            Self::Verified { package, size, sha256 } => {
                let start = sha256.get(..12).unwrap_or(sha256);
                write!(f, "{package}: {} and SHA-256 {start}… as in the package list", megabytes(*size))
            }
            Self::UnpackingAll { packages } => write!(f, "unpacking {packages} packages"),
            Self::Unpacking { package } => write!(f, "unpacking {package}"),
            Self::Built { initramfs } => write!(f, "built an initramfs of {}", megabytes(*initramfs)),
            Self::Stored { recipe, size } => {
                write!(f, "{}: {} stored in the cache", recipe.name, megabytes(*size))
            }
        }
    }
}
