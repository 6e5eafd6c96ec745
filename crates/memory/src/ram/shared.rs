//! Blocks of guest RAM that are shared memory, so that their pages can be mapped at a second host address.
//!
//! RAM is private memory with huge pages at first. A block becomes shared when somebody first asks for a page of it: its bytes move
//! to a file in memory, which is then mapped where the block has been. Host addresses stay what they are.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use x86::{GuestPhys, PAGE_SIZE};

use super::{HIGH_START, HOLE_START, Ram};

/// Pages of a block: as few as [`MAX_BLOCKS`] allow. Copying 2 MiB at a time cost gcc in a guest of 512 MiB 2.17 s of CPU instead of 2.09, xz 0.52 instead of 0.46.
const FEWEST: usize = 16;
/// The most.
const MOST: usize = 512;

/// A block lies in one region.
const _: () = {
    let bytes = MOST as u64 * PAGE_SIZE;
    assert!(HOLE_START.is_multiple_of(bytes) && HIGH_START.is_multiple_of(bytes));
};

/// The most blocks that are ever shared: each may cost the process two mappings more, of some 65,530.
const MAX_BLOCKS: usize = 8192;

/// Which blocks are shared, and by which file.
#[derive(Default)]
pub(super) struct Sharing {
    /// As large as RAM; a page lies at its [`Ram::page_index`].
    file: OnceLock<OwnedFd>,
    blocks: Mutex<Blocks>,
}

#[derive(Default)]
struct Blocks {
    /// One bit a block, as many words as were needed.
    bits: Vec<u64>,
    count: usize,
}

impl Blocks {
    fn contains(&self, block: usize) -> bool {
        self.bits.get(block / 64).is_some_and(|word| word & 1 << (block % 64) != 0)
    }

    fn insert(&mut self, block: usize) {
        if self.bits.len() <= block / 64 {
            self.bits.resize(block / 64 + 1, 0);
        }
        self.bits[block / 64] |= 1 << (block % 64);
        self.count += 1;
    }
}

impl Sharing {
    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The file, made for `size` bytes of RAM if there is none. Only with `blocks` locked.
    fn file(&self, size: u64) -> Option<&OwnedFd> {
        if self.file.get().is_none() {
            let _ = self.file.set(create(size)?);
        }
        self.file.get()
    }
}

impl Ram {
    /// A file and the offset in it that have the bytes of a page, for who maps it elsewhere too. Makes the block
    /// that it is in shared memory if it isn't yet. `None`: there is no RAM, or the host refused; then nothing has changed.
    ///
    /// Invariant: only while no other thread writes guest memory, as what it writes during the copy may be lost. There is one
    /// vCPU, and its thread does everything; the compiler's only reads.
    pub fn share(&self, page: GuestPhys) -> Option<(BorrowedFd<'_>, u64)> {
        let index = self.page_index(page)?;
        let host = self.host_page(page)?;
        let block_pages = self.block_pages();
        let block = index / block_pages;
        let sharing = &self.inner.sharing;
        let mut blocks = sharing.blocks();
        let file = sharing.file(self.size())?;
        if !blocks.contains(block) {
            if blocks.count == MAX_BLOCKS {
                return None;
            }
            let first = block * block_pages;
            let pages = (self.pages() - first).min(block_pages);
            let start = host.wrapping_sub((index - first) * PAGE_SIZE as usize);
            let offset = first as u64 * PAGE_SIZE;
            // SAFETY: the block's pages lie one after the other in the mapping of one region, which `inner` owns.
            if !unsafe { replace(file, offset, start, pages * PAGE_SIZE as usize) } {
                return None;
            }
            blocks.insert(block);
        }
        Some((file.as_fd(), index as u64 * PAGE_SIZE))
    }

    /// Number of the block that becomes shared with a page; in the file, its pages follow each other as their addresses do.
    pub(crate) fn block(&self, page: GuestPhys) -> Option<usize> {
        Some(self.page_index(page)? / self.block_pages())
    }

    /// Pages of a block, a power of two.
    pub(crate) fn block_pages(&self) -> usize {
        self.pages().div_ceil(MAX_BLOCKS).next_power_of_two().clamp(FEWEST, MOST)
    }

    /// Whether [`Ram::share`] has nothing to do for the page but to answer.
    pub fn is_shared(&self, page: GuestPhys) -> bool {
        self.block(page).is_some_and(|block| self.inner.sharing.blocks().contains(block))
    }
}

/// A file in memory, all holes.
fn create(size: u64) -> Option<OwnedFd> {
    // SAFETY: the name is a C string.
    let number = unsafe { libc::memfd_create(c"guest memory".as_ptr(), libc::MFD_CLOEXEC) };
    if number < 0 {
        return None;
    }
    // SAFETY: a descriptor that was just opened, for nobody else.
    let file = unsafe { OwnedFd::from_raw_fd(number) };
    // SAFETY: a system call on a descriptor of ours.
    (unsafe { libc::ftruncate(file.as_raw_fd(), i64::try_from(size).ok()?) } == 0).then_some(file)
}

/// Copies `length` bytes of guest RAM to the file and maps them from there. Returns whether it was done.
///
/// # Safety
/// They must be whole pages of guest RAM's mapping.
unsafe fn replace(file: &OwnedFd, offset: u64, start: *mut u8, length: usize) -> bool {
    let mut done = 0;
    while done < length {
        // SAFETY: the kernel reads what the caller vouches for.
        let written = unsafe {
            let rest = start.wrapping_add(done).cast();
            libc::pwrite(file.as_raw_fd(), rest, length - done, (offset + done as u64) as i64)
        };
        match usize::try_from(written) {
            Ok(bytes) if bytes != 0 => done += bytes,
            _ => return false,
        }
    }
    // SAFETY: the same bytes take the place of the caller's mapping; who accesses them by raw pointers notices nothing.
    let address = unsafe {
        libc::mmap(
            start.cast(),
            length,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED | libc::MAP_POPULATE,
            file.as_raw_fd(),
            offset as i64,
        )
    };
    if address != libc::MAP_FAILED {
        return true;
    }
    if !is_mapped(start, length) {
        eprintln!(
            "transvisor: the host has taken guest memory away and refused to map it again; free some of its memory, or raise vm.max_map_count"
        );
        // Going on would crash at any time, or let the guest write to what is mapped there next.
        std::process::abort();
    }
    false
}

/// Whether something is mapped at all of these addresses, whole pages of at most one block: older kernels unmap what a mapping is to
/// replace before they know that they can make it.
fn is_mapped(start: *mut u8, length: usize) -> bool {
    let mut resident = [0; MOST];
    assert!(length <= resident.len() * PAGE_SIZE as usize);
    loop {
        // SAFETY: accesses nothing but the array, which has a byte a page.
        if unsafe { libc::mincore(start.cast(), length, resident.as_mut_ptr()) } == 0 {
            return true;
        }
        if std::io::Error::last_os_error().raw_os_error() != Some(libc::EAGAIN) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::host_memory;
    use super::*;

    /// Of so little RAM.
    const BLOCK: u64 = FEWEST as u64 * PAGE_SIZE;

    #[test]
    fn there_are_not_too_many_blocks() {
        for (megabytes, pages) in [(1, 16), (512, 16), (513, 32), (4096, 128), (16384, 512)] {
            let ram = Ram::new(megabytes << 20);
            if megabytes << 20 <= host_memory() {
                assert_eq!(ram.unwrap().block_pages(), pages, "{megabytes}M");
            }
        }
    }

    /// What the file has at the place that `share` gives.
    fn read_file(ram: &Ram, address: GuestPhys) -> [u8; 4] {
        let (file, offset) = ram.share(address).unwrap();
        let mut bytes = [0; 4];
        let at = (offset + address.page_offset()) as i64;
        // SAFETY: four bytes of ours.
        let read = unsafe { libc::pread(file.as_raw_fd(), bytes.as_mut_ptr().cast(), 4, at) };
        assert_eq!(read, 4);
        bytes
    }

    fn write_file(ram: &Ram, address: GuestPhys, bytes: &[u8; 4]) {
        let (file, offset) = ram.share(address).unwrap();
        let at = (offset + address.page_offset()) as i64;
        // SAFETY: four bytes of ours.
        let written = unsafe { libc::pwrite(file.as_raw_fd(), bytes.as_ptr().cast(), 4, at) };
        assert_eq!(written, 4);
    }

    fn read(ram: &Ram, address: GuestPhys) -> [u8; 4] {
        let mut bytes = [0; 4];
        ram.read(address, &mut bytes).unwrap();
        bytes
    }

    /// Every fourth word of each of these addresses keeps its bytes, and both ways see what the other one writes.
    fn check(ram: &Ram, addresses: &[GuestPhys]) {
        for (number, address) in addresses.iter().enumerate() {
            ram.write(*address, &[number as u8 + 1; 4]).unwrap();
        }
        let hosts: Vec<_> = addresses.iter().map(|address| ram.host(*address)).collect();
        for (number, address) in addresses.iter().enumerate() {
            let written = [number as u8 + 1; 4];
            assert_eq!(read_file(ram, *address), written, "{address}: kept");
            assert!(ram.is_shared(*address));
            assert_eq!(ram.host(*address), hosts[number]);
            assert_eq!(read(ram, *address), written, "{address}: kept");
            ram.write(*address, b"mmap").unwrap();
            assert_eq!(read_file(ram, *address), *b"mmap", "{address}: a later write");
            write_file(ram, *address, b"file");
            assert_eq!(read(ram, *address), *b"file", "{address}: a later write to the file");
            ram.write(*address, &written).unwrap();
        }
        for (number, address) in addresses.iter().enumerate() {
            assert_eq!(read(ram, *address), [number as u8 + 1; 4], "{address}: others left it alone");
        }
    }

    #[test]
    fn shared_blocks_keep_their_bytes() {
        // The last block is one page, and not a whole one.
        for size in [1 << 20, (1 << 20) + PAGE_SIZE, (1 << 20) + 0x5000] {
            let ram = Ram::new(size).unwrap();
            let addresses =
                [0, 0x1000, BLOCK - 4, BLOCK, BLOCK + 0x123, size - 0x1000, size - 4].map(GuestPhys);
            check(&ram, &addresses);
        }
    }

    #[test]
    fn only_the_block_asked_for_is_shared() {
        let size = 1 << 20;
        let ram = Ram::new(size).unwrap();
        ram.share(GuestPhys(BLOCK + 0x5000)).unwrap();
        let shared = [0, BLOCK - 1, BLOCK, 2 * BLOCK - 1, 2 * BLOCK, size]
            .map(|address| ram.is_shared(GuestPhys(address)));
        assert_eq!(shared, [false, false, true, true, false, false]);
        assert_eq!(ram.inner.sharing.blocks().count, 1);
        let offsets = [BLOCK, BLOCK + 0x5fff].map(|address| ram.share(GuestPhys(address)).unwrap().1);
        assert_eq!(offsets, [BLOCK, BLOCK + 0x5000]);
        assert!(ram.share(GuestPhys(size)).is_none(), "no RAM");
        assert!(ram.share(GuestPhys(u64::MAX)).is_none(), "no RAM");
    }

    #[test]
    fn what_is_not_mapped_is_seen() {
        let ram = Ram::new(1 << 20).unwrap();
        let host = ram.host(GuestPhys(0)).unwrap();
        assert!(is_mapped(host, BLOCK as usize), "private and never touched");
        ram.share(GuestPhys(0)).unwrap();
        assert!(is_mapped(host, BLOCK as usize));
        // Where nobody maps anything: below the least address that the host gives.
        let low = std::ptr::without_provenance_mut(0x1000);
        assert!(!is_mapped(low, 0x1000));
        assert!(!is_mapped(low, 0x2000));
    }

    #[test]
    fn high_blocks_follow_low_ones_in_the_file() {
        let size = HOLE_START + BLOCK + 0x3000;
        if size > host_memory() {
            return;
        }
        let ram = Ram::new(size).unwrap();
        let addresses = [
            HOLE_START - 4,
            HOLE_START - BLOCK,
            HIGH_START,
            HIGH_START + BLOCK - 4,
            HIGH_START + BLOCK,
            HIGH_START + BLOCK + 0x2ffc,
        ];
        check(&ram, &addresses.map(GuestPhys));
        assert_eq!(ram.share(GuestPhys(HIGH_START + 0x1000)).unwrap().1, HOLE_START + 0x1000);
        assert!(ram.share(GuestPhys(HOLE_START)).is_none(), "no RAM");
        assert!(!ram.is_shared(GuestPhys(0)));
    }
}
