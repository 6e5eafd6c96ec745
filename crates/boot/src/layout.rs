//! Where things are in guest-physical memory, and what the kernel is told about it.
//!
//! ```text
//!      0x1000  GDT                      0x20000  command line
//!      0x2000  PVH start info           0x9fc00  end of conventional memory
//!      0x7000  boot_params              0xe0000  ACPI tables, RSDP first
//!      0x9000  page tables             0x100000  kernel … initramfs, ending with low RAM
//! ```

use std::ops::Range;

use memory::Ram;
use memory::ram::{HIGH_START, HOLE_START};
use x86::GuestPhys;

use crate::KernelError;

/// The start-up GDT.
pub const GDT: GuestPhys = GuestPhys(0x1000);
/// hvm_start_info, and behind it the module list and the memory map.
pub const PVH_INFO: GuestPhys = GuestPhys(0x2000);
/// struct boot_params, the "zero page".
pub const BOOT_PARAMS: GuestPhys = GuestPhys(0x7000);
/// Top of a small stack, which ends below here.
pub const STACK_TOP: GuestPhys = GuestPhys(0x8ff0);
/// PML4, PDPT and four page directories: 4 GiB, identity-mapped.
pub const PAGE_TABLES: GuestPhys = GuestPhys(0x9000);
/// The command line.
pub const CMDLINE: GuestPhys = GuestPhys(0x2_0000);
/// Room for it, with its NUL.
pub const CMDLINE_SIZE: u64 = 0x1_0000;
/// End of conventional memory; a BIOS would have its EBDA from here.
pub const CONVENTIONAL_END: u64 = 0x9_fc00;
/// ACPI tables. An RSDP at a multiple of 16 in 0xe0000..0x100000 is found without being told (ACPI 5.2.5.1).
pub const ACPI: GuestPhys = GuestPhys(0xe_0000);
/// Room for them.
pub const ACPI_SIZE: u64 = 0x2_0000;
/// Where memory for kernels begins.
pub const HIGH_MEMORY: u64 = 0x10_0000;

/// What a range of guest-physical addresses is; the values are those of E820 and of PVH alike (ACPI table 15.3).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
pub enum Kind {
    /// Usable RAM.
    Ram = 1,
    /// Not to be used.
    Reserved = 2,
}

/// One row of the map.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Region {
    /// Guest-physical addresses.
    pub range: Range<u64>,
    /// What it is.
    pub kind: Kind,
}

/// The memory map as the kernel will see it.
#[derive(Clone, Debug)]
pub struct MemoryMap {
    low_end: u64,
    size: u64,
}

impl MemoryMap {
    /// The map of this RAM.
    pub fn of(ram: &Ram) -> Self {
        Self { low_end: ram.size().min(HOLE_START), size: ram.size() }
    }

    /// Where RAM below 4 GiB ends.
    pub fn low_end(&self) -> u64 {
        self.low_end
    }

    /// All rows, in order of address; what is not in it is a hole.
    pub fn regions(&self) -> Vec<Region> {
        let region = |range, kind| Region { range, kind };
        let mut regions = vec![
            region(0..CONVENTIONAL_END, Kind::Ram),
            region(CONVENTIONAL_END..0xa_0000, Kind::Reserved),
            region(ACPI.0..HIGH_MEMORY, Kind::Reserved),
        ];
        if self.low_end > HIGH_MEMORY {
            regions.push(region(HIGH_MEMORY..self.low_end, Kind::Ram));
        }
        if self.size > self.low_end {
            regions.push(region(HIGH_START..HIGH_START + (self.size - self.low_end), Kind::Ram));
        }
        regions
    }

    /// Whether a kernel can have `range`.
    pub(crate) fn check_kernel(&self, range: &Range<u64>) -> Result<(), KernelError> {
        let (start, end) = (range.start, range.end);
        if start < HIGH_MEMORY || end <= start || end > HOLE_START {
            return Err(KernelError::Address { start, end });
        }
        if end > self.low_end {
            return Err(KernelError::MemoryTooSmall { start, end, available: self.low_end });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn ram(size: u64) -> Vec<Range<u64>> {
        let map = MemoryMap { low_end: size.min(HOLE_START), size };
        let usable = map.regions().into_iter().filter(|region| region.kind == Kind::Ram);
        usable.map(|region| region.range).collect()
    }

    #[test]
    fn ram_beyond_the_hole_continues_at_4_gib() {
        assert_eq!(ram(HIGH_MEMORY + 4096), [0..CONVENTIONAL_END, HIGH_MEMORY..HIGH_MEMORY + 4096]);
        assert_eq!(ram(3 * GIB), [0..CONVENTIONAL_END, HIGH_MEMORY..3 * GIB]);
        assert_eq!(ram(8 * GIB), [0..CONVENTIONAL_END, HIGH_MEMORY..3 * GIB, 4 * GIB..9 * GIB]);
    }

    #[test]
    fn kernels_go_between_1_mib_and_the_end_of_low_memory() {
        let map = MemoryMap { low_end: 64 << 20, size: 64 << 20 };
        assert!(map.check_kernel(&(HIGH_MEMORY..64 << 20)).is_ok());
        assert!(matches!(
            map.check_kernel(&(HIGH_MEMORY..(64 << 20) + 1)),
            Err(KernelError::MemoryTooSmall { .. })
        ));
        // No amount of memory would help these.
        for range in [HIGH_MEMORY - 1..2 * HIGH_MEMORY, HIGH_MEMORY..HOLE_START + 1, 5 * GIB..6 * GIB] {
            assert!(matches!(map.check_kernel(&range), Err(KernelError::Address { .. })), "{range:x?}");
        }
    }
}
