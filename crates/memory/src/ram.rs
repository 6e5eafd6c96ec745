//! Guest RAM.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;
use x86::GuestPhys;

/// Where the 32-bit hole for MMIO begins; RAM beyond this size continues at 4 GiB.
pub const HOLE_START: u64 = 0xc000_0000;
/// Where RAM continues above the hole.
pub const HIGH_START: u64 = 1 << 32;

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
    inner: Arc<GuestMemoryMmap>,
}

impl Ram {
    /// RAM of `size` bytes, zeroed lazily by the host: [0, HOLE_START) and the rest from [`HIGH_START`].
    pub fn new(size: u64) -> Result<Self, RamError> {
        let _ = size;
        unimplemented!()
    }

    /// Total bytes.
    pub fn size(&self) -> u64 {
        unimplemented!()
    }

    /// The rust-vmm view, for loaders.
    pub fn guest_memory(&self) -> &GuestMemoryMmap {
        &self.inner
    }

    /// Host address of the 4 KiB page that holds `address`, or `None` where there is no RAM. Stays valid while any clone lives.
    #[inline]
    pub fn host_page(&self, address: GuestPhys) -> Option<*mut u8> {
        let _ = address;
        unimplemented!()
    }

    /// Copies bytes out of RAM.
    pub fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> Result<(), RamError> {
        let _ = (address, bytes);
        unimplemented!()
    }

    /// Copies bytes into RAM. For loaders and tests: does not invalidate translated code.
    pub fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), RamError> {
        let _ = (address, bytes);
        unimplemented!()
    }
}
