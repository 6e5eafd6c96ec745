//! Guest RAM: one or two host mappings, and the way from a guest-physical address to a host pointer.

mod shared;

use std::sync::{Arc, Mutex};

use vm_memory::mmap::MmapRegionBuilder;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap};
use x86::{GuestPhys, PAGE_SIZE};

use crate::host;

/// Where the 32-bit hole for MMIO begins; RAM beyond this size continues at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM continues above the hole.
pub const HIGH_START: u64 = 1 << 32;

/// Least and most RAM a guest can have.
const SIZES: std::ops::RangeInclusive<u64> = 1 << 20..=512 << 30;

/// Why guest RAM could not be had.
#[derive(Debug, thiserror::Error)]
pub enum RamError {
    /// The size is no positive multiple of 4 KiB, or beyond what a guest can address.
    #[error("guest memory of {0} bytes: give a multiple of 4K between 1M and 512G")]
    Size(u64),
    /// The host refused.
    #[error("the host refused {size} bytes of guest memory: {reason}; give the guest less memory")]
    Host {
        /// Bytes asked for.
        size: u64,
        /// What the host said.
        reason: String,
    },
    /// The host can't do what guests need atomically.
    #[error("the host processor lacks CMPXCHG16B, which guests' 16-byte atomics need; use another host")]
    Processor,
    /// An access from the host side (a loader) went outside RAM.
    #[error("{length} bytes at guest-physical {address} are not within guest memory")]
    OutOfRange {
        /// First byte.
        address: GuestPhys,
        /// Bytes.
        length: u64,
    },
}

/// Guest RAM; clones share it.
#[derive(Clone)]
pub struct Ram {
    inner: Arc<Inner>,
    /// Host address of guest-physical 0.
    low: *mut u8,
    /// Bytes below the hole.
    low_size: u64,
    /// Host address of [`HIGH_START`].
    high: *mut u8,
    /// Bytes from [`HIGH_START`].
    high_size: u64,
}

struct Inner {
    memory: GuestMemoryMmap,
    /// Held over read-modify-writes that no single host instruction does.
    split_lock: Mutex<()>,
    sharing: shared::Sharing,
}

// SAFETY: the pointers are into mappings that `inner` owns and that all threads may access; whoever dereferences them
// uses the accesses of `host`, which allow for other threads.
unsafe impl Send for Ram {}
// SAFETY: as for Send.
unsafe impl Sync for Ram {}

impl Ram {
    /// RAM of `size` bytes, zeroed lazily by the host: [0, [`HOLE_START`]) and the rest from [`HIGH_START`].
    pub fn new(size: u64) -> Result<Self, RamError> {
        if !SIZES.contains(&size) || !size.is_multiple_of(PAGE_SIZE) {
            return Err(RamError::Size(size));
        }
        if !std::arch::is_x86_feature_detected!("cmpxchg16b") {
            return Err(RamError::Processor);
        }
        let host_size = host_memory();
        if size > host_size {
            let reason = format!("it has {host_size} bytes, swap included");
            return Err(RamError::Host { size, reason });
        }
        let low_size = size.min(HOLE_START);
        let high_size = size - low_size;
        let low_region = map(0, low_size).map_err(|reason| RamError::Host { size, reason })?;
        let low = low_region.1;
        let mut regions = vec![low_region.0];
        let mut high = std::ptr::null_mut();
        if high_size != 0 {
            let (region, pointer) =
                map(HIGH_START, high_size).map_err(|reason| RamError::Host { size, reason })?;
            regions.push(region);
            high = pointer;
        }
        let memory = GuestMemoryMmap::from_regions(regions)
            .map_err(|error| RamError::Host { size, reason: error.to_string() })?;
        // TLB entries hold addresses, not pointers.
        low.expose_provenance();
        high.expose_provenance();
        Ok(Self {
            inner: Arc::new(Inner {
                memory,
                split_lock: Mutex::new(()),
                sharing: shared::Sharing::default(),
            }),
            low,
            low_size,
            high,
            high_size,
        })
    }

    /// Total bytes.
    pub fn size(&self) -> u64 {
        self.low_size + self.high_size
    }

    /// First address and bytes of each range of guest-physical addresses that is RAM.
    pub fn regions(&self) -> impl Iterator<Item = (GuestPhys, u64)> {
        [(0, self.low_size), (HIGH_START, self.high_size)]
            .into_iter()
            .filter(|(_, size)| *size != 0)
            .map(|(start, size)| (GuestPhys(start), size))
    }

    /// The rust-vmm view, for loaders and devices.
    pub fn guest_memory(&self) -> &GuestMemoryMmap {
        &self.inner.memory
    }

    /// Host address of the byte at `address`, or `None` where there is no RAM; the rest of its 4 KiB page follows.
    #[inline]
    pub fn host(&self, address: GuestPhys) -> Option<*mut u8> {
        if address.0 < self.low_size {
            // SAFETY: within the low mapping.
            Some(unsafe { self.low.add(address.0 as usize) })
        } else if address.0.wrapping_sub(HIGH_START) < self.high_size {
            // SAFETY: within the high mapping.
            Some(unsafe { self.high.add((address.0 - HIGH_START) as usize) })
        } else {
            None
        }
    }

    /// Host address of the 4 KiB page that holds `address`, or `None` where there is no RAM. Stays valid while any
    /// clone lives.
    #[inline]
    pub fn host_page(&self, address: GuestPhys) -> Option<*mut u8> {
        self.host(address.page())
    }

    /// Number of the page that holds `address` among the pages of RAM, for tables with a row a page.
    #[inline]
    pub fn page_index(&self, address: GuestPhys) -> Option<usize> {
        if address.0 < self.low_size {
            Some((address.0 / PAGE_SIZE) as usize)
        } else if address.0.wrapping_sub(HIGH_START) < self.high_size {
            Some(((address.0 - HIGH_START + self.low_size) / PAGE_SIZE) as usize)
        } else {
            None
        }
    }

    /// How many pages there are: one more than the greatest [`Ram::page_index`].
    pub fn pages(&self) -> usize {
        (self.size() / PAGE_SIZE) as usize
    }

    /// Copies bytes out of RAM.
    pub fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> Result<(), RamError> {
        let host = self.range(address, bytes.len())?;
        // SAFETY: `range` found that many bytes of RAM there.
        unsafe { host::copy_out(host, bytes) };
        Ok(())
    }

    /// Copies bytes into RAM. For loaders and tests: does not invalidate translated code.
    pub fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), RamError> {
        let host = self.range(address, bytes.len())?;
        // SAFETY: `range` found that many bytes of RAM there.
        unsafe { host::copy_in(host, bytes) };
        Ok(())
    }

    /// Held over read-modify-writes that no single host instruction does.
    pub(crate) fn split_lock(&self) -> &Mutex<()> {
        &self.inner.split_lock
    }

    /// Start of `length` bytes that lie in one region.
    fn range(&self, address: GuestPhys, length: usize) -> Result<*mut u8, RamError> {
        let length = length as u64;
        let outside = RamError::OutOfRange { address, length };
        let (start, size, base) = if address.0 < HIGH_START {
            (0, self.low_size, self.low)
        } else {
            (HIGH_START, self.high_size, self.high)
        };
        let offset = address.0 - start;
        if offset > size || length > size - offset {
            return Err(outside);
        }
        Ok(base.wrapping_add(offset as usize))
    }
}

/// Maps `size` bytes for the guest-physical addresses from `start`.
fn map(start: u64, size: u64) -> Result<(GuestRegionMmap, *mut u8), String> {
    let mapping = MmapRegionBuilder::new(size as usize)
        .with_mmap_prot(libc::PROT_READ | libc::PROT_WRITE)
        .with_mmap_flags(libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_PRIVATE)
        .build()
        .map_err(|error| error.to_string())?;
    let pointer = mapping.as_ptr();
    // Guests touch most of their memory, and translated code has nothing but the host's TLB to reach it by. Only an advice.
    // SAFETY: the range is the mapping just made; the advice changes no contents.
    let _ = unsafe { libc::madvise(pointer.cast(), size as usize, libc::MADV_HUGEPAGE) };
    let region = GuestRegionMmap::new(mapping, GuestAddress(start))
        .ok_or_else(|| format!("{size} bytes from {start:#x} go beyond the address space"))?;
    Ok((region, pointer))
}

/// Bytes of memory and swap that the host has; everything if it doesn't say.
fn host_memory() -> u64 {
    // SAFETY: sysinfo is plain integers, for which zero is a value.
    let mut info: libc::sysinfo = unsafe { std::mem::zeroed() };
    // SAFETY: the kernel fills the structure that it is given.
    if unsafe { libc::sysinfo(&raw mut info) } != 0 {
        return u64::MAX;
    }
    (info.totalram.saturating_add(info.totalswap)).saturating_mul(info.mem_unit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_checked() {
        for size in [0, 4096, (1 << 20) - 4096, (1 << 20) + 1, (512 << 30) + 4096, u64::MAX] {
            assert!(matches!(Ram::new(size), Err(RamError::Size(refused)) if refused == size));
        }
        assert_eq!(Ram::new((1 << 20) + 4096).unwrap().size(), (1 << 20) + 4096);
    }

    #[test]
    fn more_than_the_host_has_is_refused_with_its_size() {
        if host_memory() < 512 << 30 {
            let error = Ram::new(512 << 30).err().unwrap().to_string();
            assert!(error.contains("the host refused 549755813888 bytes"), "{error}");
        }
    }

    #[test]
    fn ram_lies_around_the_hole() {
        let size = HOLE_START + (1 << 20);
        if size > host_memory() {
            return;
        }
        let ram = Ram::new(size).unwrap();
        let last_low = GuestPhys(HOLE_START - 1);
        let first_high = GuestPhys(HIGH_START);
        let last_high = GuestPhys(HIGH_START + (1 << 20) - 1);
        for (address, index) in [
            (GuestPhys(0), Some(0)),
            (last_low, Some(0xbffff)),
            (GuestPhys(HOLE_START), None),
            (GuestPhys(HIGH_START - 1), None),
            (first_high, Some(0xc0000)),
            (last_high, Some(0xc00ff)),
            (last_high.offset(1), None),
            (GuestPhys(u64::MAX), None),
        ] {
            assert_eq!(ram.page_index(address), index, "{address}");
            assert_eq!(ram.host_page(address).is_some(), index.is_some(), "{address}");
        }
        assert_eq!(ram.pages(), 0xc0100);
        let regions: Vec<_> = ram.regions().collect();
        assert_eq!(regions, [(GuestPhys(0), HOLE_START), (first_high, 1 << 20)]);
        ram.write(first_high, b"high").unwrap();
        ram.write(last_low, b"!").unwrap();
        let mut bytes = [0; 4];
        ram.read(first_high, &mut bytes).unwrap();
        assert_eq!(&bytes, b"high");
        assert!(ram.read(last_low, &mut bytes).is_err());
        assert!(ram.write(last_high, &[1, 2]).is_err());
        assert!(ram.read(GuestPhys(HOLE_START + 4), &mut bytes).is_err());
        assert!(ram.write(GuestPhys(u64::MAX), &[1]).is_err());
        ram.write(last_high.offset(1), &[]).unwrap();
        use vm_memory::{Bytes, GuestAddress};
        let byte: u8 = ram.guest_memory().read_obj(GuestAddress(last_low.0)).unwrap();
        assert_eq!(byte, b'!');
    }
}
