//! The address spaces whose translations are kept: one set of arrays for each recent PCID (SDM Vol. 3A 4.10.1).
//!
//! Without PCIDs there is one. A CR3 load with PCIDs only changes which set is current. What is dropped from a set is dropped from the
//! window ([`crate::window`]) too, if that shows its pages.

use x86::control::cr4;
use x86::{CpuState, GuestPhys, GuestVirt, paging};

use super::View;
use super::array::Array;
use crate::window::Window;

/// How many PCIDs are remembered; Linux uses six.
const MAX_SPACES: usize = 8;

/// Arrays for data in each address space.
const DATA_ARRAYS: usize = View::ALL.len();
/// All arrays of an address space.
const ARRAYS: usize = DATA_ARRAYS + 2;

/// The PCID in force: 0 while CR4.PCIDE is clear.
pub fn pcid_of(state: &CpuState) -> u16 {
    if state.cr4 & cr4::PCIDE != 0 { state.cr3 as u16 & 0xfff } else { 0 }
}

/// Where the paging structures begin.
fn root_of(state: &CpuState) -> u64 {
    state.cr3 & paging::ADDRESS
}

struct Space {
    /// `None`: empty, for anybody.
    pcid: Option<u16>,
    /// When it was last switched to.
    used: u64,
    /// Those for data by [`View`], then those for instruction fetches of supervisor and user code.
    arrays: [Array; ARRAYS],
}

impl Space {
    fn new() -> Self {
        Self { pcid: None, used: 0, arrays: std::array::from_fn(|_| Array::new()) }
    }
}

/// All arrays of a vCPU.
pub struct Spaces {
    spaces: Vec<Space>,
    current: usize,
    /// Counts switches.
    clock: u64,
    large: LargePages,
    /// The window on one of them.
    pub window: Option<Window>,
}

impl Spaces {
    /// One empty address space.
    pub fn new() -> Self {
        Self {
            spaces: vec![Space { pcid: Some(0), ..Space::new() }],
            current: 0,
            clock: 0,
            large: LargePages::new(),
            window: None,
        }
    }

    /// Number of the current address space.
    pub fn current(&self) -> usize {
        self.current
    }

    /// [`CpuState::window`] for the current address space, in a view.
    #[inline]
    pub fn window_switch(&mut self, view: View, state: &CpuState) -> u64 {
        let Some(window) = &mut self.window else { return 0 };
        if view == View::User && window.is_due(state.instructions) {
            window.review((self.current, root_of(state)), state.instructions);
        }
        window.switch(self.current)
    }

    /// After [`Spaces::switch`], with CR3 as it is now.
    pub fn note_switch(&mut self, state: &CpuState) {
        if let Some(window) = &mut self.window {
            window.switched((self.current, root_of(state)), state.instructions);
        }
    }

    /// A view of the current address space.
    #[inline]
    pub fn array(&self, view: View) -> &Array {
        &self.spaces[self.current].arrays[view as usize]
    }

    /// See [`Spaces::array`].
    #[inline]
    pub fn array_mut(&mut self, view: View) -> &mut Array {
        &mut self.spaces[self.current].arrays[view as usize]
    }

    /// The array for instruction fetches in a view: neither AC nor SMAP matters to them.
    #[inline]
    pub fn fetch_array(&self, view: View) -> &Array {
        &self.spaces[self.current].arrays[Self::fetch_index(view)]
    }

    /// See [`Spaces::fetch_array`].
    #[inline]
    pub fn fetch_array_mut(&mut self, view: View) -> &mut Array {
        &mut self.spaces[self.current].arrays[Self::fetch_index(view)]
    }

    #[inline]
    fn fetch_index(view: View) -> usize {
        DATA_ARRAYS + usize::from(view == View::User)
    }

    fn all_arrays(&mut self) -> impl Iterator<Item = &mut Array> {
        self.spaces.iter_mut().flat_map(|space| &mut space.arrays)
    }

    /// Makes the address space of `pcid` current. If it is not known, it takes the place of the one that has not
    /// been used for the longest time. Returns whether translations are kept from earlier.
    pub fn switch(&mut self, pcid: u16) -> bool {
        self.clock += 1;
        let known = self.spaces.iter().position(|space| space.pcid == Some(pcid));
        let free = || self.spaces.iter().position(|space| space.pcid.is_none());
        let number = match known.or_else(free) {
            Some(number) => number,
            None if self.spaces.len() < MAX_SPACES => {
                self.spaces.push(Space::new());
                self.spaces.len() - 1
            }
            None => self.oldest(),
        };
        let space = &mut self.spaces[number];
        if known.is_none() {
            space.arrays.iter_mut().for_each(Array::flush);
            space.pcid = Some(pcid);
            if let Some(window) = &mut self.window {
                window.recycled(number);
            }
        }
        space.used = self.clock;
        self.current = number;
        known.is_some()
    }

    fn oldest(&self) -> usize {
        let numbered = self.spaces.iter().enumerate();
        numbered.min_by_key(|(_, space)| space.used).map_or(0, |(number, _)| number)
    }

    /// Drops everything; `pcid` is current from now on.
    pub fn flush(&mut self, pcid: u16) {
        self.all_arrays().for_each(Array::flush);
        for space in &mut self.spaces {
            space.pcid = None;
        }
        self.spaces[self.current].pcid = Some(pcid);
        self.large.clear();
        if let Some(window) = &mut self.window {
            window.flush(self.current);
        }
    }

    /// Drops what is not global, of one PCID or of all.
    pub fn flush_local(&mut self, pcid: Option<u16>) {
        for space in &mut self.spaces {
            if pcid.is_none() || space.pcid == pcid {
                space.arrays.iter_mut().for_each(Array::flush_local);
            }
        }
        if let Some(window) = &mut self.window {
            window.flush_spaces(|number| pcid.is_none() || self.spaces[number].pcid == pcid);
        }
    }

    /// Drops the page that holds `address`, of whatever size, from all address spaces (INVLPG must drop it from the
    /// current one, and global ones from all).
    pub fn flush_page(&mut self, address: GuestVirt) {
        for shift in LargePages::SHIFTS {
            if self.large.may_contain(address.0, shift) {
                self.all_arrays().for_each(|array| array.drop_range(address.0, shift));
                if let Some(window) = &mut self.window {
                    window.flush_range(address, shift);
                }
            }
        }
        let page = address.page();
        self.all_arrays().for_each(|array| array.drop_page(page.0));
        if let Some(window) = &mut self.window {
            window.flush_page(page);
        }
    }

    /// Remembers that the page of `address` is part of a large one.
    pub fn note_large(&mut self, address: GuestVirt, shift: u32) {
        self.large.insert(address.0, shift);
    }

    /// Makes stores to a guest-physical page slow everywhere. Its store entries are at the slot of an array of [`MAX_ENTRIES`], if that
    /// is given, or at the same one of a smaller array.
    pub fn protect(&mut self, page: GuestPhys, slot: Option<usize>) {
        for space in &mut self.spaces {
            space.arrays[..DATA_ARRAYS].iter_mut().for_each(|array| array.protect(page, slot));
        }
        if let Some(window) = &mut self.window {
            window.protect(page);
        }
    }

    /// Gives the arrays of the current address space the sizes that suit them. They may move.
    pub fn adjust(&mut self) {
        self.spaces[self.current].arrays.iter_mut().for_each(Array::adjust);
    }
}

/// Which large pages have been split into entries of 4 KiB, so that INVLPG of any of their addresses drops all
/// pieces. A Bloom filter with one function: it may say yes too often, never no.
struct LargePages {
    bits: Vec<u64>,
    any: bool,
}

impl LargePages {
    /// Sizes of large pages.
    const SHIFTS: [u32; 3] = [21, 22, 30];
    /// log2 of the number of bits.
    const BITS: u32 = 15;

    fn new() -> Self {
        Self { bits: vec![0; 1 << (Self::BITS - 6)], any: false }
    }

    /// Word and bit of a page: multiplicative hashing by 2^64 divided by the golden ratio.
    fn place(address: u64, shift: u32) -> (usize, u64) {
        let key = (address >> shift) << 5 | u64::from(shift);
        let hash = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (64 - Self::BITS);
        ((hash >> 6) as usize, 1 << (hash & 63))
    }

    fn insert(&mut self, address: u64, shift: u32) {
        let (word, bit) = Self::place(address, shift);
        self.bits[word] |= bit;
        self.any = true;
    }

    fn may_contain(&self, address: u64, shift: u32) -> bool {
        let (word, bit) = Self::place(address, shift);
        self.any && self.bits[word] & bit != 0
    }

    fn clear(&mut self) {
        if self.any {
            self.bits.fill(0);
            self.any = false;
        }
    }
}
