//! An address space of the guest, read without effects and without trust: by its page tables, in physical memory.
//!
//! 4-level paging only (SDM Vol. 3A 4.5), which is what 64-bit kernels run with here. What is not mapped can't be read; nothing
//! else can go wrong, whatever the tables hold.

use std::cell::Cell;

use crate::kallsyms::GuestMemory;

const PAGE: u64 = 4096;
const PRESENT: u64 = 1;
const LARGE: u64 = 1 << 7;
/// Bits 12 to 51 of an entry.
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;

/// An address space.
pub struct Space<'a> {
    memory: &'a dyn GuestMemory,
    root: u64,
    /// The page that was looked up last, and where it is.
    last: Cell<Option<(u64, u64)>>,
}

impl<'a> Space<'a> {
    /// The one whose tables a value of CR3 points at.
    pub fn new(memory: &'a dyn GuestMemory, cr3: u64) -> Self {
        Self { memory, root: cr3 & ADDRESS, last: Cell::new(None) }
    }

    /// The same process's view of the kernel, where user code runs on page tables of its own (page-table isolation: these are
    /// the second of a pair of pages).
    pub fn of_kernel(&self) -> Self {
        Self { memory: self.memory, root: self.root & !PAGE, last: Cell::new(None) }
    }

    /// The physical address of a linear one.
    pub fn translate(&self, address: u64) -> Option<u64> {
        let page = address & !(PAGE - 1);
        if let Some((known, physical)) = self.last.get()
            && known == page
        {
            return Some(physical | address & (PAGE - 1));
        }
        let physical = self.walk(page)?;
        self.last.set(Some((page, physical)));
        Some(physical | address & (PAGE - 1))
    }

    fn walk(&self, page: u64) -> Option<u64> {
        // Bits 47 to 63 are alike in canonical addresses.
        if !matches!(page >> 47, 0 | 0x1_ffff) {
            return None;
        }
        let mut table = self.root;
        for shift in [39, 30, 21, 12] {
            let mut bytes = [0; 8];
            let index = page >> shift & 511;
            if !self.memory.read(table + 8 * index, &mut bytes) {
                return None;
            }
            let entry = u64::from_le_bytes(bytes);
            if entry & PRESENT == 0 {
                return None;
            }
            if shift == 12 || (shift < 39 && entry & LARGE != 0) {
                let within = (1 << shift) - 1;
                return Some(entry & ADDRESS & !within | page & within);
            }
            table = entry & ADDRESS;
        }
        None
    }

    /// Reads; `None` unless all of it is there.
    pub fn read(&self, address: u64, bytes: &mut [u8]) -> Option<()> {
        let mut done = 0;
        while done < bytes.len() {
            let at = address.checked_add(done as u64)?;
            let length = (bytes.len() - done).min((PAGE - at % PAGE) as usize);
            let physical = self.translate(at)?;
            self.memory.read(physical, &mut bytes[done..done + length]).then_some(())?;
            done += length;
        }
        Some(())
    }

    /// Reads physical memory; false if it is not there.
    pub fn physical(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.memory.read(address, bytes)
    }

    /// Eight bytes.
    pub fn long(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)?;
        Some(u64::from_le_bytes(bytes))
    }

    /// Four bytes.
    pub fn word(&self, address: u64) -> Option<u32> {
        let mut bytes = [0; 4];
        self.read(address, &mut bytes)?;
        Some(u32::from_le_bytes(bytes))
    }

    /// Text up to a zero, which comes after `most` bytes at the latest. The guest may put anything there: what can't be printed
    /// is a question mark.
    pub fn text(&self, address: u64, most: usize) -> Option<String> {
        let mut bytes = Vec::new();
        while bytes.len() < most {
            let at = address.checked_add(bytes.len() as u64)?;
            let from = bytes.len();
            // To the end of an aligned piece, so that no further page is needed than the text is in.
            let length = ((64 - at % 64) as usize).min(most - from);
            bytes.resize(from + length, 0);
            self.read(at, &mut bytes[from..])?;
            if let Some(end) = bytes[from..].iter().position(|&byte| byte == 0) {
                bytes.truncate(from + end);
                break;
            }
        }
        Some(printable(&bytes))
    }
}

/// Text of the guest as it may be shown on a terminal or written in a line of a file.
pub(super) fn printable(bytes: &[u8]) -> String {
    let show = |letter: char| if letter.is_control() { '?' } else { letter };
    String::from_utf8_lossy(bytes).chars().map(show).collect()
}
