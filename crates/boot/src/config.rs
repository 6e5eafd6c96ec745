//! What the user asked to boot, and reading the files it names.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;

use crate::BootError;

/// A file, or bytes that somebody already has.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file to read.
    Path(PathBuf),
    /// Bytes, and the name that complaints should give them.
    Bytes {
        /// For messages.
        name: String,
        /// The content.
        bytes: Vec<u8>,
    },
}

/// Which of a kernel's entry points to take.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Entry {
    /// The fastest that works: a bzImage's payload is unpacked on the host; then PVH if the vmlinux has it, else its
    /// 64-bit entry. A bzImage packed in a way unknown to the host is left to unpack itself. No KASLR, except in
    /// the last case: the kernel's decompressor is what does KASLR.
    #[default]
    Auto,
    /// A bzImage's 64-bit entry: the guest unpacks its kernel itself, with KASLR unless `nokaslr`.
    Bzimage,
    /// The vmlinux's PVH entry (a bzImage is unpacked on the host).
    Pvh,
    /// The vmlinux's own 64-bit entry (a bzImage is unpacked on the host).
    Elf64,
}

/// What to boot, and on what.
#[derive(Clone, Debug)]
pub struct BootConfig {
    /// A bzImage or an ELF vmlinux for x86-64.
    pub kernel: Source,
    /// An initial RAM file system, in any form that the kernel knows.
    pub initramfs: Option<Source>,
    /// The kernel's command line.
    pub cmdline: String,
    /// Which entry point to take.
    pub entry: Entry,
    /// Processors that the ACPI tables announce, 1..=254; their APIC ids are 0, 1, 2, …
    pub cpus: u8,
}

impl BootConfig {
    /// Boots `kernel` on one processor, without initramfs, with an empty command line.
    pub fn new(kernel: Source) -> Self {
        Self { kernel, initramfs: None, cmdline: String::new(), entry: Entry::Auto, cpus: 1 }
    }
}

/// An opened [`Source`] of known length.
pub(crate) enum Opened<'a> {
    File(File, u64),
    Bytes(&'a [u8]),
}

impl Opened<'_> {
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::File(_, length) => *length,
            Self::Bytes(bytes) => bytes.len() as u64,
        }
    }
}

impl Source {
    /// How messages call it.
    pub fn name(&self) -> String {
        match self {
            Self::Path(path) => path.display().to_string(),
            Self::Bytes { name, .. } => name.clone(),
        }
    }

    /// Opens it; `what` ("kernel") is for messages.
    pub(crate) fn open(&self, what: &'static str) -> Result<Opened<'_>, BootError> {
        let opened = match self {
            Self::Path(path) => {
                let failed = |source| BootError::Read { what, file: self.name(), source };
                let file = File::open(path).map_err(failed)?;
                let metadata = file.metadata().map_err(failed)?;
                if metadata.is_dir() {
                    return Err(failed(io::ErrorKind::IsADirectory.into()));
                }
                if !metadata.is_file() {
                    return Err(BootError::NotAFile { what, file: self.name() });
                }
                Opened::File(file, metadata.len())
            }
            Self::Bytes { bytes, .. } => Opened::Bytes(bytes),
        };
        match opened.length() {
            0 => Err(BootError::Empty { what, file: self.name() }),
            _ => Ok(opened),
        }
    }

    /// All of it.
    pub(crate) fn read(&self, what: &'static str) -> Result<Cow<'_, [u8]>, BootError> {
        match self.open(what)? {
            Opened::Bytes(bytes) => Ok(Cow::Borrowed(bytes)),
            Opened::File(file, length) => {
                let failed = |source| BootError::Read { what, file: self.name(), source };
                // No kernel is near this size; a sparse or growing file must not take all of the host's memory.
                if length > MOST_KERNEL {
                    return Err(BootError::TooLarge { what, file: self.name(), length, most: MOST_KERNEL });
                }
                let mut bytes = Vec::with_capacity(length as usize);
                file.take(length).read_to_end(&mut bytes).map_err(failed)?;
                Ok(Cow::Owned(bytes))
            }
        }
    }
}

/// Largest kernel file that is read: an unstripped vmlinux with debug information is below 1 GiB.
const MOST_KERNEL: u64 = 2 << 30;
