//! Where the initramfs goes: as high as the kernel accepts it in low RAM, out of the way of a kernel that moves.

use std::ops::Range;

use memory::Ram;
use vm_memory::{Bytes, GuestAddress};
use x86::{GuestPhys, PAGE_MASK};

use crate::config::Opened;
use crate::layout::MemoryMap;
use crate::{BootError, Source};

/// Loads it; `limit` is the highest address that its last byte may have.
pub(crate) fn load(
    ram: &Ram,
    map: &MemoryMap,
    source: &Source,
    kernel: &Range<u64>,
    limit: u64,
) -> Result<Range<u64>, BootError> {
    const WHAT: &str = "initramfs";
    let opened = source.open(WHAT)?;
    let length = opened.length();
    let top = map.low_end().min(limit.saturating_add(1));
    let start = top.checked_sub(length).map(|start| start & PAGE_MASK).filter(|&start| start >= kernel.end);
    let Some(start) = start else {
        return Err(BootError::InitramfsTooLarge {
            file: source.name(),
            length,
            available: top.saturating_sub(kernel.end) & PAGE_MASK,
            limit,
            needed: kernel.end.saturating_add(length),
        });
    };
    match opened {
        Opened::Bytes(bytes) => ram.write(GuestPhys(start), bytes)?,
        Opened::File(mut file, _) => {
            let failed = |error: vm_memory::GuestMemoryError| BootError::Read {
                what: WHAT,
                file: source.name(),
                source: std::io::Error::other(error),
            };
            ram.guest_memory()
                .read_exact_volatile_from(GuestAddress(start), &mut file, length as usize)
                .map_err(failed)?;
        }
    }
    Ok(start..start + length)
}
