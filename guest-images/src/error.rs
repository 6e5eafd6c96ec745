//! What can go wrong, and what to do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No recipe of that name.
    #[error("there is no recipe called \"{name}\"; the recipes are: {known}")]
    UnknownRecipe {
        /// What was asked for.
        name: String,
        /// All names.
        known: String,
    },
    /// Neither of the variables that say where a cache goes is set.
    #[error("there is no place for a cache: HOME is not set; give --cache-dir or set TRANSVISOR_CACHE")]
    NoCacheDir,
    /// The cache can't be written.
    #[error(
        "cache directory {}: {reason}; make it writable or choose another with --cache-dir or TRANSVISOR_CACHE",
        path.display()
    )]
    CacheReadOnly {
        /// The directory, or the file in it.
        path: PathBuf,
        /// The host's reason.
        reason: String,
    },
    /// No room.
    #[error(
        "cache directory {}: the disk is full ({reason}); a recipe needs 200 to 500 MB while it is fetched. Make room, \
         or choose another disk with --cache-dir or TRANSVISOR_CACHE",
        path.display()
    )]
    DiskFull {
        /// What was written.
        path: PathBuf,
        /// The host's or apt's reason.
        reason: String,
    },
    /// Something else about a file in the cache.
    #[error("{}: {source}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The host's reason.
        source: io::Error,
    },
    /// The host has no apt.
    #[error(
        "{program} can't be run ({source}): recipes are fetched from Debian's repositories with apt. Use a Debian host \
         or container, or give a kernel of your own with --kernel and --initramfs"
    )]
    NoApt {
        /// apt-get or apt-cache.
        program: String,
        /// The host's reason.
        source: io::Error,
    },
    /// The host has no C compiler.
    #[error(
        "cc can't be run ({source}): workloads are compiled on the host; install it with `apt-get install gcc libc6-dev`"
    )]
    NoCompiler {
        /// The host's reason.
        source: io::Error,
    },
    /// The compiler refused.
    #[error(
        "compiling the workload {program} failed (it needs gcc and libc6-dev). The compiler said:\n{message}"
    )]
    Compiler {
        /// What was compiled.
        program: String,
        /// The compiler's own words.
        message: String,
    },
    /// The package lists could not be read.
    #[error(
        "apt could not reach its package sources; check the network (or the proxy that apt is to use). It said:\n{message}"
    )]
    Network {
        /// apt's own words.
        message: String,
    },
    /// The sources don't have it.
    #[error(
        "recipe {recipe}: this host's apt sources have no package {package} for amd64; the recipe needs a Debian \
         repository (see /etc/apt/sources.list and /etc/apt/sources.list.d)"
    )]
    NoPackage {
        /// The package.
        package: String,
        /// The recipe.
        recipe: &'static str,
    },
    /// The meta package is not what it used to be.
    #[error("recipe {recipe}: package {package} depends on no {prefix}…; is it the kernel's meta package?")]
    NoKernelDependency {
        /// The meta package.
        package: String,
        /// How kernels' packages are called.
        prefix: &'static str,
        /// The recipe.
        recipe: &'static str,
    },
    /// apt's data lacks something.
    #[error("package {package}: apt's metadata has no usable {field}")]
    Metadata {
        /// The package.
        package: String,
        /// The field.
        field: &'static str,
    },
    /// apt failed otherwise.
    #[error("{command} failed ({status}). It said:\n{message}")]
    Apt {
        /// The command.
        command: String,
        /// Exit status.
        status: String,
        /// apt's own words.
        message: String,
    },
    /// What came is not what the package list promised.
    #[error(
        "package {package}: its {what} is {actual} and the package list says {expected}: the download is damaged, or \
         a proxy has changed it. Nothing was stored; try again"
    )]
    Mismatch {
        /// The package.
        package: String,
        /// "size" or "SHA-256".
        what: &'static str,
        /// What came.
        actual: String,
        /// What was promised.
        expected: String,
    },
    /// The package can't be read.
    #[error("package {package}: it can't be unpacked: {reason}")]
    Unpack {
        /// The package.
        package: String,
        /// Why.
        reason: String,
    },
    /// The package lacks the file.
    #[error("package {package}: it contains no {path}")]
    MissingFile {
        /// The package.
        package: String,
        /// The path, or how it begins.
        path: String,
    },
}

impl Error {
    /// What an I/O error on a file of the cache means.
    pub(crate) fn of_file(path: &Path, source: io::Error) -> Self {
        let (path, reason) = (path.to_owned(), source.to_string());
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { path, reason },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::CacheReadOnly { path, reason }
            }
            io::ErrorKind::NotADirectory | io::ErrorKind::AlreadyExists => {
                Self::CacheReadOnly { path, reason: format!("{reason} (it is not a directory)") }
            }
            _ => Self::File { path, source },
        }
    }
}
