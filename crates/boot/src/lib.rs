//! From kernel files to a machine that can start: kernel image, initramfs, command line, boot parameters and ACPI
//! tables in guest RAM, and the state in which the first processor enters the kernel.
//!
//! Data flows one way: [`Source`] (a file or bytes) -> [`bzimage`] (the header and what it promises) or
//! [`vmlinux`] (ELF) -> [`payload`] (the vmlinux packed in a bzImage, unpacked on the host) -> guest RAM, laid out by
//! [`layout`] and described to the kernel by [`linux64`] (boot_params) or [`pvh`] (start info), both of which point to
//! the tables of [`acpi`] -> [`StartState`], which the engine's first processor takes over.
//!
//! Nothing here is trusted: whatever a file claims is checked against the file and against guest memory first, and
//! every complaint is a [`BootError`] that names the file.

pub mod acpi;
pub mod bzimage;
mod config;
mod error;
mod initramfs;
pub mod layout;
mod linux64;
pub mod payload;
mod pvh;
mod start;
pub mod vmlinux;

use std::ops::Range;

use memory::Ram;
use x86::GuestPhys;

use bzimage::BzImage;
pub use config::{BootConfig, Entry, Source};
pub use error::{BootError, KernelError};
use layout::MemoryMap;
pub use payload::Compression;
pub use start::{Protocol, StartState};
use vmlinux::Vmlinux;

/// What [`load`] put into guest RAM.
#[derive(Clone, Debug)]
pub struct Booted {
    /// How the first processor starts.
    pub start: StartState,
    /// The kernel's own version string, where the image has one.
    pub version: Option<String>,
    /// How the bzImage's payload was packed, if the host unpacked it.
    pub unpacked: Option<Compression>,
    /// Guest-physical range that the kernel occupies once it runs, BSS included.
    pub kernel: Range<u64>,
    /// Guest-physical range of the initramfs.
    pub initramfs: Option<Range<u64>>,
    /// The ACPI root pointer.
    pub rsdp: GuestPhys,
}

/// Loads a kernel and all it needs into `ram`, which must be fresh (all zero: BSS is not cleared here).
pub fn load(ram: &Ram, config: &BootConfig) -> Result<Booted, BootError> {
    let file = config.kernel.name();
    let bytes = config.kernel.read("kernel")?;
    let in_kernel = |error| BootError::Kernel { file: file.clone(), error };

    let map = MemoryMap::of(ram);
    let plan = Plan::choose(&bytes, config.entry, &map).map_err(in_kernel)?;
    let kernel = plan.load_kernel(ram, &map).map_err(in_kernel)?;
    let limit = plan.header.as_ref().map_or(bzimage::DEFAULT_INITRD_MAX, BzImage::initrd_addr_max);
    let initramfs = config
        .initramfs
        .as_ref()
        .map(|source| initramfs::load(ram, &map, source, &kernel, limit))
        .transpose()?;
    let cmdline = plan.header.as_ref().map_or(bzimage::DEFAULT_CMDLINE_SIZE, BzImage::cmdline_size);
    load_cmdline(ram, &config.cmdline, cmdline)?;
    let rsdp = acpi::load(ram, config.cpus)?;

    let parts = Parts { map: &map, initramfs: initramfs.clone(), cmdline_length: config.cmdline.len(), rsdp };
    let start = match plan.protocol() {
        Protocol::Pvh => pvh::prepare(ram, &parts, plan.entry_point)?,
        Protocol::Linux64 => {
            let header = plan.header.as_ref().map(BzImage::setup_header);
            linux64::prepare(ram, &parts, header, plan.load_address, plan.entry_point)?
        }
    };
    Ok(Booted {
        start,
        version: plan.header.as_ref().and_then(BzImage::version),
        unpacked: plan.compression,
        kernel,
        initramfs,
        rsdp,
    })
}

/// What both boot protocols tell the kernel.
struct Parts<'a> {
    map: &'a MemoryMap,
    initramfs: Option<Range<u64>>,
    cmdline_length: usize,
    rsdp: GuestPhys,
}

/// What is to be loaded, and how it will be entered.
struct Plan<'a> {
    /// The bzImage that was given, if it was one.
    header: Option<BzImage<'a>>,
    /// Its payload, or the ELF file that was given; `None` if the guest unpacks the bzImage itself.
    vmlinux: Option<Vmlinux<'a>>,
    compression: Option<Compression>,
    pvh: bool,
    load_address: u64,
    entry_point: u64,
}

impl<'a> Plan<'a> {
    fn choose(bytes: &'a [u8], entry: Entry, map: &MemoryMap) -> Result<Self, KernelError> {
        if Vmlinux::recognises(bytes) {
            if entry == Entry::Bzimage {
                return Err(KernelError::NotBzImage);
            }
            return Self::of_vmlinux(None, None, Vmlinux::parse(bytes.into())?, entry);
        }
        let image = BzImage::parse(bytes)?;
        // First of all: a damaged size must not make the host unpack gigabytes.
        map.check_kernel(&image.runtime_range())?;
        if entry == Entry::Bzimage {
            return Ok(Self::of_bzimage(image));
        }
        let (compression, vmlinux) = match payload::unpack(image.payload()?, image.init_size()) {
            // The guest's own decompressor may know what the host does not.
            Err(KernelError::UnknownCompression { .. }) if entry == Entry::Auto => {
                return Ok(Self::of_bzimage(image));
            }
            result => result?,
        };
        Self::of_vmlinux(Some(image), Some(compression), Vmlinux::parse(vmlinux.into())?, entry)
    }

    fn of_bzimage(image: BzImage<'a>) -> Self {
        let load_address = image.load_address();
        Self {
            entry_point: load_address + bzimage::ENTRY_64,
            load_address,
            header: Some(image),
            vmlinux: None,
            compression: None,
            pvh: false,
        }
    }

    fn of_vmlinux(
        header: Option<BzImage<'a>>,
        compression: Option<Compression>,
        vmlinux: Vmlinux<'a>,
        entry: Entry,
    ) -> Result<Self, KernelError> {
        let pvh = match (entry, vmlinux.pvh_entry()?) {
            (Entry::Elf64, _) | (Entry::Auto, None) => None,
            (Entry::Pvh, None) => return Err(KernelError::NoPvhEntry),
            (_, entry) => entry,
        };
        Ok(Self {
            header,
            compression,
            pvh: pvh.is_some(),
            load_address: vmlinux.range().start,
            entry_point: match pvh {
                Some(entry) => vmlinux.check_entry("PVH entry", entry.into())?,
                None => vmlinux.check_entry("e_entry", vmlinux.entry())?,
            },
            vmlinux: Some(vmlinux),
        })
    }

    fn protocol(&self) -> Protocol {
        if self.pvh { Protocol::Pvh } else { Protocol::Linux64 }
    }

    /// Puts the kernel into RAM; returns what it occupies once it runs.
    fn load_kernel(&self, ram: &Ram, map: &MemoryMap) -> Result<Range<u64>, KernelError> {
        let mut range = match &self.header {
            Some(image) => image.runtime_range(),
            None => self.load_address..self.load_address,
        };
        if let Some(vmlinux) = &self.vmlinux {
            range.start = range.start.min(vmlinux.range().start);
            range.end = range.end.max(vmlinux.range().end);
        }
        map.check_kernel(&range)?;
        match (&self.vmlinux, &self.header) {
            (Some(vmlinux), _) => vmlinux.load(ram)?,
            (None, Some(image)) => ram.write(GuestPhys(self.load_address), image.protected_mode_code())?,
            (None, None) => {}
        }
        Ok(range)
    }
}

/// Writes the command line and its NUL. `most` is the longest the kernel takes, without the NUL.
fn load_cmdline(ram: &Ram, cmdline: &str, most: u64) -> Result<(), BootError> {
    let most = most.min(layout::CMDLINE_SIZE - 1);
    if cmdline.len() as u64 > most {
        return Err(BootError::CmdlineTooLong { length: cmdline.len(), most });
    }
    if cmdline.contains('\0') {
        return Err(BootError::CmdlineNul);
    }
    let mut bytes = cmdline.as_bytes().to_vec();
    bytes.push(0);
    Ok(ram.write(layout::CMDLINE, &bytes)?)
}

#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
