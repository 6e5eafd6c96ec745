//! One TLB array: a direct-mapped table of [`Entry`], and beside it what compiled code need not see.
//!
//! Flushing costs by what was filled, not by the size: filled slots stand in one of two lists, so that CR3 loads
//! can leave global translations alone without looking at them.

use x86::{GuestPhys, GuestVirt, PAGE_MASK, PAGE_SHIFT};

use super::{ENTRY_SHIFT, Entry, INVALID, MAX_ENTRIES, MIN_ENTRIES, RECENT, RECENT_MADE, Recent};
use crate::walk::{Access, Translation};

/// The translation is global.
const GLOBAL: u64 = 1 << 0;
/// Stores are allowed and the dirty flag is set: only a code page's mark makes them slow.
const STORABLE: u64 = 1 << 1;
/// The slot is in [`Array::local`].
const IN_LOCAL: u64 = 1 << 2;
/// The slot is in [`Array::global`].
const IN_GLOBAL: u64 = 1 << 3;
/// The list bits.
const LISTED: u64 = IN_LOCAL | IN_GLOBAL;

/// Flushes over which the greatest use decides whether to shrink.
const SHRINK_WINDOW: u32 = 256;

/// A hit, or what a fill made.
#[derive(Clone, Copy, Debug)]
pub struct Hit {
    /// The 4 KiB page.
    pub page: GuestPhys,
    /// Host address minus linear address.
    pub addend: u64,
    /// For stores: the tag is not set because the page is marked (or was, when it was last looked at).
    pub slow_store: bool,
}

/// One array.
pub struct Array {
    /// `entries()` entries, in a boxed slice with the recent pages in front of them ([`FRONT`]); compiled code reads them, and
    /// makes recent pages, through a pointer of its own.
    table: *mut Entry,
    /// Byte mask, as [`x86::CpuState::tlb_mask`].
    mask: u64,
    /// A slot's guest-physical page, and in the low bits its flags.
    side: Vec<u64>,
    /// Slots that hold or held translations that are not global.
    local: Vec<u32>,
    /// Slots that hold or held global translations.
    global: Vec<u32>,
    /// Translations that displaced another one since the size was last looked at.
    conflicts: usize,
    /// Most filled slots seen in the shrink window.
    peak: usize,
    /// Flushes in the shrink window.
    flushes: u32,
}

// SAFETY: the table is owned like a box; nobody else writes to it.
unsafe impl Send for Array {}

impl Drop for Array {
    fn drop(&mut self) {
        // SAFETY: from `allocate`, with that number of entries.
        unsafe { free(self.table, self.entries()) };
    }
}

/// Entries' room in front of a table.
const FRONT: usize = RECENT + 1;

const _: () = assert!(RECENT_MADE == -((FRONT * size_of::<Entry>()) as i32));

/// A table of empty entries, behind empty recent pages.
fn allocate(entries: usize) -> *mut Entry {
    let all = Box::into_raw(vec![Entry::EMPTY; FRONT + entries].into_boxed_slice());
    // SAFETY: within the slice; a recent page has the size of an entry.
    unsafe {
        std::slice::from_raw_parts_mut(all.cast(), FRONT).fill(Recent::EMPTY);
        all.cast::<Entry>().add(FRONT)
    }
}

/// # Safety
/// `table` is what `allocate(entries)` gave, and is not used any more.
unsafe fn free(table: *mut Entry, entries: usize) {
    // SAFETY: the pointer and length of the boxed slice that `allocate` let go of.
    drop(unsafe { Box::from_raw(std::ptr::slice_from_raw_parts_mut(table.sub(FRONT), FRONT + entries)) });
}

impl Array {
    /// An empty array of the least size.
    pub fn new() -> Self {
        Self {
            table: allocate(MIN_ENTRIES),
            mask: ((MIN_ENTRIES - 1) << ENTRY_SHIFT) as u64,
            side: vec![0; MIN_ENTRIES],
            local: Vec::new(),
            global: Vec::new(),
            conflicts: 0,
            peak: 0,
            flushes: 0,
        }
    }

    /// Start of the table. Valid until the next [`Array::adjust`].
    pub fn table(&self) -> *mut Entry {
        self.table
    }

    /// See [`x86::CpuState::tlb_mask`].
    pub fn mask(&self) -> u64 {
        self.mask
    }

    /// Number of slots.
    pub fn entries(&self) -> usize {
        (self.mask >> ENTRY_SHIFT) as usize + 1
    }

    /// Slots filled since they were last flushed, at most.
    pub fn used(&self) -> usize {
        self.local.len() + self.global.len()
    }

    fn slot(&self, page: u64) -> usize {
        (page >> PAGE_SHIFT & self.mask >> ENTRY_SHIFT) as usize
    }

    fn entry(&self, slot: usize) -> Entry {
        debug_assert!(slot < self.entries());
        // SAFETY: slots are masked or come from the lists, which hold masked ones.
        unsafe { self.table.add(slot).read() }
    }

    fn set(&mut self, slot: usize, entry: Entry) {
        debug_assert!(slot < self.entries());
        // SAFETY: as for `entry`; `&mut` keeps others of this thread away, and no other thread reads.
        unsafe { self.table.add(slot).write(entry) }
    }

    fn recent(&mut self) -> &mut [Recent] {
        // SAFETY: `allocate` put them there; compiled code, which uses them too, does not run while this does.
        unsafe { std::slice::from_raw_parts_mut(self.table.sub(RECENT).cast(), RECENT) }
    }

    /// The word at [`RECENT_MADE`].
    fn made(&mut self) -> &mut u64 {
        // SAFETY: as in `recent`; the room is all zeros at first.
        unsafe { &mut *self.table.byte_offset(RECENT_MADE as isize).cast() }
    }

    fn drop_recent(&mut self) {
        if *self.made() != 0 {
            *self.made() = 0;
            self.recent().fill(Recent::EMPTY);
        }
    }

    /// The page whose translation the entry holds, or [`INVALID`].
    fn page_of(entry: &Entry) -> u64 {
        // An unset tag is all ones.
        entry.read & entry.write & entry.execute
    }

    /// Looks `address` up for an access. A store to a page that only its mark makes slow is a hit too.
    pub fn look_up(&self, address: GuestVirt, access: Access) -> Option<Hit> {
        let page = address.page().0;
        let slot = self.slot(page);
        let entry = self.entry(slot);
        let side = self.side[slot];
        let hit = match access {
            Access::Read => entry.read == page,
            Access::Write => entry.write == page || (side & STORABLE != 0 && Self::page_of(&entry) == page),
            Access::Execute => entry.execute == page,
        };
        hit.then_some(Hit {
            page: GuestPhys(side & PAGE_MASK),
            addend: entry.addend,
            slow_store: entry.write != page,
        })
    }

    /// The guest-physical page of the slot of `address`, which must have been hit.
    #[inline]
    pub fn physical(&self, address: GuestVirt) -> GuestPhys {
        GuestPhys(self.side[self.slot(address.0)] & PAGE_MASK)
    }

    /// Fills the slot of `address`; `marked`: its page holds translated code.
    pub fn insert(
        &mut self,
        address: GuestVirt,
        translation: &Translation,
        host_page: *mut u8,
        marked: bool,
    ) {
        let page = address.page().0;
        let slot = self.slot(page);
        let displaced = Self::page_of(&self.entry(slot));
        if displaced != INVALID && displaced != page {
            self.conflicts += 1;
        }
        let tag = |allowed: bool| if allowed { page } else { INVALID };
        let storable = translation.write && translation.dirty;
        self.set(
            slot,
            Entry {
                read: tag(translation.read),
                write: tag(storable && !marked),
                execute: tag(translation.execute),
                addend: (host_page as u64).wrapping_sub(page),
            },
        );
        let listed = self.side[slot] & LISTED;
        let mut side = translation.page.0 | listed;
        if storable {
            side |= STORABLE;
        }
        if translation.global {
            side |= GLOBAL | IN_GLOBAL;
            if listed & IN_GLOBAL == 0 {
                self.global.push(slot as u32);
            }
        } else {
            side |= IN_LOCAL;
            if listed & IN_LOCAL == 0 {
                self.local.push(slot as u32);
            }
        }
        self.side[slot] = side;
    }

    /// Makes stores to the page of `address` fast: its mark is gone.
    pub fn allow_store(&mut self, address: GuestVirt) {
        let page = address.page().0;
        let slot = self.slot(page);
        let mut entry = self.entry(slot);
        if self.side[slot] & STORABLE != 0 && Self::page_of(&entry) == page {
            entry.write = page;
            self.set(slot, entry);
        }
    }

    /// Makes stores to a guest-physical page slow; see [`super::spaces::Spaces::protect`].
    pub fn protect(&mut self, page: GuestPhys, slot: Option<usize>) {
        if *self.made() != 0 {
            // Their physical pages are not known.
            self.recent().iter_mut().for_each(|recent| recent.write = 0);
        }
        match slot {
            Some(slot) => self.protect_slot(slot & (self.entries() - 1), page),
            None => (0..self.used()).for_each(|index| self.protect_slot(self.listed(index), page)),
        }
    }

    fn protect_slot(&mut self, slot: usize, page: GuestPhys) {
        if self.side[slot] & PAGE_MASK == page.0 {
            let entry = Entry { write: INVALID, ..self.entry(slot) };
            self.set(slot, entry);
        }
    }

    /// The slots of both lists, one after the other.
    fn listed(&self, index: usize) -> usize {
        match index.checked_sub(self.local.len()) {
            None => self.local[index] as usize,
            Some(index) => self.global[index] as usize,
        }
    }

    /// Drops the translation of one 4 KiB page.
    pub fn drop_page(&mut self, page: u64) {
        let slot = self.slot(page);
        if Self::page_of(&self.entry(slot)) == page {
            self.set(slot, Entry::EMPTY);
        }
        if *self.made() != 0 {
            for recent in self.recent().iter_mut().filter(|recent| recent.page == page) {
                *recent = Recent::EMPTY;
            }
        }
    }

    /// Drops all translations of the naturally aligned `1 << shift` bytes that hold `address`.
    pub fn drop_range(&mut self, address: u64, shift: u32) {
        self.drop_recent();
        let pages = 1_usize << (shift - PAGE_SHIFT);
        if pages < self.used() {
            let first = address >> shift << shift;
            for number in 0..pages as u64 {
                self.drop_page(first + (number << PAGE_SHIFT));
            }
            return;
        }
        for index in 0..self.used() {
            let slot = self.listed(index);
            let page = Self::page_of(&self.entry(slot));
            if page != INVALID && page >> shift == address >> shift {
                self.set(slot, Entry::EMPTY);
            }
        }
    }

    /// Drops all translations that are not global.
    pub fn flush_local(&mut self) {
        self.drop_recent();
        self.note_flush();
        let mut local = std::mem::take(&mut self.local);
        for slot in local.drain(..) {
            let slot = slot as usize;
            self.side[slot] &= !IN_LOCAL;
            if self.side[slot] & GLOBAL == 0 {
                self.set(slot, Entry::EMPTY);
            }
        }
        self.local = local;
    }

    /// Drops everything.
    pub fn flush(&mut self) {
        self.drop_recent();
        self.note_flush();
        for index in 0..self.used() {
            let slot = self.listed(index);
            self.set(slot, Entry::EMPTY);
            self.side[slot] = 0;
        }
        self.local.clear();
        self.global.clear();
    }

    fn note_flush(&mut self) {
        self.peak = self.peak.max(self.used());
        self.flushes += 1;
    }

    /// Whether translations displace each other so much that a larger table pays: it has its price once, two pages that take turns in
    /// a slot have theirs each time, however empty the others are.
    pub fn is_crowded(&self) -> bool {
        let entries = self.entries();
        entries < MAX_ENTRIES && self.conflicts >= entries / 2
    }

    /// Doubles a crowded table, halves one that was mostly empty for long. The table may move.
    pub fn adjust(&mut self) {
        let entries = self.entries();
        if self.is_crowded() {
            self.resize(entries * 2);
        } else if self.flushes >= SHRINK_WINDOW {
            let idle = self.peak < entries / 8 && self.used() < entries / 8;
            (self.flushes, self.peak, self.conflicts) = (0, 0, 0);
            if idle && entries > MIN_ENTRIES {
                self.resize(entries / 2);
            }
        }
    }

    /// Moves to a table of another size; translations that collide there are lost, which is allowed at any time.
    fn resize(&mut self, entries: usize) {
        let mut other = Self::new();
        // SAFETY: the table that `new` has allocated.
        unsafe { free(other.table, other.entries()) };
        other.table = allocate(entries);
        other.mask = ((entries - 1) << ENTRY_SHIFT) as u64;
        other.side = vec![0; entries];
        for index in 0..self.used() {
            let from = self.listed(index);
            let entry = self.entry(from);
            let page = Self::page_of(&entry);
            if page == INVALID {
                continue;
            }
            let side = self.side[from] & !LISTED;
            let to = other.slot(page);
            let listed = other.side[to] & LISTED;
            let (list, bit) = if side & GLOBAL != 0 {
                (&mut other.global, IN_GLOBAL)
            } else {
                (&mut other.local, IN_LOCAL)
            };
            if listed & bit == 0 {
                list.push(to as u32);
            }
            other.side[to] = side | listed | bit;
            other.set(to, entry);
        }
        *self = other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: u64 = 0x7000_1234_5000;
    const PHYSICAL: GuestPhys = GuestPhys(0x3000);

    /// An array with a page, and that page in every recent place.
    fn array() -> Array {
        let mut array = Array::new();
        let translation = Translation {
            page: PHYSICAL,
            read: true,
            write: true,
            execute: false,
            dirty: true,
            global: false,
            size_shift: PAGE_SHIFT,
        };
        array.insert(GuestVirt(PAGE), &translation, std::ptr::null_mut(), false);
        *array.made() = 1;
        array.recent().fill(Recent { page: PAGE, read: Recent::LIMIT, write: Recent::LIMIT, addend: 0 });
        array
    }

    fn rights(array: &mut Array) -> (bool, bool) {
        let all = |field: fn(&Recent) -> u64, recent: &[Recent]| {
            let set = recent.iter().filter(|recent| field(recent) != 0).count();
            assert!(set == 0 || set == RECENT, "{set} of {RECENT}");
            set != 0
        };
        let recent = array.recent();
        (all(|recent| recent.read, recent), all(|recent| recent.write, recent))
    }

    #[test]
    fn recent_pages_go_with_what_they_were_made_from() {
        type Flush = fn(&mut Array);
        let flushes: [(&str, Flush); 5] = [
            ("everything", Array::flush),
            ("what is not global", Array::flush_local),
            ("the page", |array| array.drop_page(PAGE)),
            ("the large page around it", |array| array.drop_range(PAGE, 21)),
            ("another size", |array| array.resize(2 * MIN_ENTRIES)),
        ];
        for (what, flush) in flushes {
            let mut array = array();
            assert_eq!(rights(&mut array), (true, true));
            flush(&mut array);
            assert_eq!(rights(&mut array), (false, false), "{what}");
        }
        let at = (PAGE >> PAGE_SHIFT) as usize & (MAX_ENTRIES - 1);
        for slot in [None, Some(at)] {
            let mut array = array();
            array.protect(PHYSICAL, slot);
            assert_eq!(array.entry(array.slot(PAGE)).write, INVALID);
            assert_eq!(rights(&mut array), (true, false));
            array.drop_page(PAGE + 0x1000);
            assert_eq!(rights(&mut array), (true, false), "another page");
        }
    }
}
