//! What can be wrong with what the user gave, each with the file and what to do about it.

use std::io;

use memory::RamError;

/// Why a guest could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// The host would not give the file.
    #[error("{what} {file}: {source}")]
    Read {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// Its path.
        file: String,
        /// The host's reason.
        source: io::Error,
    },
    /// A device, a pipe, a socket.
    #[error("{what} {file}: not a regular file; give the path of the image itself")]
    NotAFile {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// Its path.
        file: String,
    },
    /// A file of no bytes.
    #[error("{what} {file}: the file is empty; was its download or copy interrupted?")]
    Empty {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// Its path.
        file: String,
    },
    /// A file that nobody could have meant.
    #[error("{what} {file}: {length} bytes; no {what} is larger than {most} bytes. Is it a disk image?")]
    TooLarge {
        /// "kernel" or "initramfs".
        what: &'static str,
        /// Its path.
        file: String,
        /// Its size.
        length: u64,
        /// The largest accepted.
        most: u64,
    },
    /// The kernel file is no kernel, or not one that fits.
    #[error("kernel {file}: {error}")]
    Kernel {
        /// Its path.
        file: String,
        /// What is wrong with it.
        #[source]
        error: KernelError,
    },
    /// There is no room for the initramfs beside the kernel.
    #[error(
        "initramfs {file}: {length} bytes do not fit into guest memory: {available} bytes are free above the kernel \
         (and below the address that it accepts, {limit:#x}). Give the guest more memory (at least {} MiB) or a \
         smaller initramfs",
        needed.div_ceil(1 << 20)
    )]
    InitramfsTooLarge {
        /// Its path.
        file: String,
        /// Its size.
        length: u64,
        /// What is free.
        available: u64,
        /// Highest address that the kernel accepts for its last byte.
        limit: u64,
        /// Guest memory with which it would fit.
        needed: u64,
    },
    /// The kernel would cut it off.
    #[error("kernel command line: {length} bytes, and this kernel takes {most}; shorten it")]
    CmdlineTooLong {
        /// Its length.
        length: usize,
        /// The longest the kernel takes.
        most: u64,
    },
    /// A NUL would end it early.
    #[error("kernel command line: it contains a NUL character; remove it")]
    CmdlineNul,
    /// An APIC id has eight bits and 255 means all.
    #[error("{0} processors: give 1 to 254")]
    Cpus(u8),
    /// The host's view of guest RAM refused.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// What is wrong with a kernel image.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// Neither a bzImage nor an ELF file.
    #[error(
        "not a Linux kernel: neither a bzImage (no \"HdrS\" at offset 0x202) nor an ELF file. Give the vmlinuz or \
         vmlinux of an x86-64 kernel"
    )]
    NotAKernel,
    /// The ELF file was to be entered as a bzImage.
    #[error(
        "an ELF file, and the bzImage entry was asked for; use the PVH or ELF entry, or give the vmlinuz"
    )]
    NotBzImage,
    /// The file ends before what its header promises.
    #[error(
        "the file is truncated: {part} needs {needed} bytes and the file has {length}; copy or download it again"
    )]
    Truncated {
        /// What is missing.
        part: &'static str,
        /// Bytes the file would need.
        needed: u64,
        /// Bytes it has.
        length: u64,
    },
    /// A field makes no sense.
    #[error("damaged: {field} is {value:#x}; copy or download it again")]
    Field {
        /// The field, as its specification names it.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The boot protocol is older than what is needed for a 64-bit entry.
    #[error(
        "boot protocol {}.{:02}: too old; Transvisor boots Linux 3.8 and newer (protocol 2.12)",
        version >> 8, version & 0xff
    )]
    OldProtocol {
        /// Major in the high byte.
        version: u16,
    },
    /// A zImage loads below 1 MiB.
    #[error("a zImage (it loads below 1 MiB); build the kernel as a bzImage")]
    ZImage,
    /// No XLF_KERNEL_64.
    #[error("a 32-bit kernel; give an x86-64 one (Debian: the amd64 package)")]
    Bits32,
    /// An ELF file for something else.
    #[error("an ELF file for another machine (e_machine {machine}, {class}-bit); give an x86-64 kernel")]
    OtherMachine {
        /// e_machine.
        machine: u16,
        /// 32 or 64.
        class: u8,
    },
    /// An ELF file that is no executable.
    #[error(
        "an ELF file, but no executable (e_type {0}): is it a kernel module or a library? Give the vmlinux"
    )]
    NotExecutable(u16),
    /// The ELF reader's complaint.
    #[error("a damaged ELF file: {0}; copy or build it again")]
    Elf(String),
    /// PVH was asked for.
    #[error(
        "no PVH entry (XEN_ELFNOTE_PHYS32_ENTRY; the kernel lacks CONFIG_PVH); use the ELF or bzImage entry"
    )]
    NoPvhEntry,
    /// The payload's first bytes say nothing.
    #[error(
        "its payload is packed in an unknown way (it begins with {magic:02x?}); use the bzImage entry, so that the \
         kernel unpacks itself"
    )]
    UnknownCompression {
        /// The first bytes.
        magic: [u8; 6],
    },
    /// A decompressor gave up.
    #[error("its {format} payload is damaged: {reason}; copy or download it again")]
    Payload {
        /// gzip, xz, …
        format: crate::Compression,
        /// What the decompressor said.
        reason: String,
    },
    /// The payload is not what the header promised.
    #[error(
        "its {format} payload unpacks to {actual} bytes and should give {expected}; copy or download it again"
    )]
    PayloadSize {
        /// gzip, xz, …
        format: crate::Compression,
        /// Bytes it gave (at least).
        actual: u64,
        /// Bytes it should give (at most).
        expected: u64,
    },
    /// It would not fit.
    #[error(
        "it needs the guest memory from {:#x} to {:#x}, and the guest's low memory ends at {available:#x}; give the \
         guest at least {} MiB",
        start, end, end.div_ceil(1 << 20)
    )]
    MemoryTooSmall {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
        /// Where low RAM ends.
        available: u64,
    },
    /// It would overlap the boot structures, or never fit below the 32-bit hole.
    #[error(
        "it wants to be loaded at {start:#x} to {end:#x}; a kernel can have the memory from {:#x} to {:#x}",
        crate::layout::HIGH_MEMORY,
        memory::ram::HOLE_START
    )]
    Address {
        /// First byte.
        start: u64,
        /// One past the last.
        end: u64,
    },
    /// The host's view of guest RAM refused.
    #[error(transparent)]
    Ram(#[from] RamError),
}
