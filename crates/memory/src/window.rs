//! The window: guest memory of user processes, where the host's own MMU finds it.
//!
//! It has two parts. Low linear addresses, where programs that are not position-independent lie, are the same on the host. For high ones, where
//! Linux puts everything else, linear address `t` is host address `t - 2^46`, so compiled code reaches it by a constant base ([`BASE`]). Pages of guest RAM are mapped there, with their like around them, when an access to one has hit nothing and
//! raised SIGSEGV ([`crate::Mmu::window_fault`]); if none can come in, the access is made through the TLB.
//!
//! What is reserved are the host addresses [64 KiB, 2^46 + 64 GiB): linear addresses [64 KiB, 4 GiB) and [2^46 + 1 TiB, 2^47) can be mapped. Compiled code
//! runs while [`x86::CpuState::window`] says so, looks at an address' upper bits first ([`LOW_SHIFT`], [`SHIFT`]), and then may add a displacement of up to
//! 2 GiB and eight times an index below 2^32: what lies unused behind each part is for those. Below host address 0 begins the kernel's half, which always faults.
//!
//! The window shows one address space, its *owner*. Invariant: it shows nothing that the owner's TLB array for user code could not hold. What
//! the guest has dropped from that is dropped here too (what is only displaced there may stay), and a page is writable only
//! if a store to it needs neither a walk nor the watch: its dirty flag is set and it holds no translated code.
//!
//! [`mapping`] has what is mapped, [`budget`] what it may cost; this file has whose it is.

mod budget;
mod mapping;

use std::ops::Range;
use std::os::fd::BorrowedFd;

use x86::{GuestPhys, GuestVirt};

use budget::Budget;
use mapping::Mapping;

/// What is added to a high linear address to give the host's.
pub const BASE: u64 = (1u64 << SHIFT).wrapping_neg();

/// The high part: linear addresses whose bits from this on are 1.
pub const SHIFT: u32 = 46;

/// The low part: linear addresses whose bits from this on are 0.
pub const LOW_SHIFT: u32 = 32;

/// Linear addresses in the low part that can be mapped.
pub const LOW: Range<u64> = 0x1_0000..1 << LOW_SHIFT;

/// The same of the high part. What would be at its beginning on the host is the low part, and what lies behind that.
pub const HIGH: Range<u64> = (1 << SHIFT) + (1 << 40)..2 << SHIFT;

/// The host address of a linear one.
pub const fn host_of(linear: u64) -> u64 {
    if linear < LOW.end { linear } else { linear.wrapping_add(BASE) }
}

/// The linear address that an access of compiled code at a host address is for.
pub const fn linear_of(host: u64) -> u64 {
    if host < HIGH.start.wrapping_add(BASE) - UNUSED || host >= 1 << 63 {
        host
    } else {
        host.wrapping_sub(BASE)
    }
}

/// Behind and before each part, as far as displacements and indices lead.
pub const UNUSED: u64 = 64 << 30;

/// Pages are mapped with those around them in naturally aligned pieces of this size (log2).
pub(crate) const CHUNK_SHIFT: u32 = 16;

/// For how many instructions an address space must have been current to take the window from another one: a few milliseconds, in
/// which the hundreds of pages that a program uses are mapped anew.
const PATIENCE: u64 = 8_000_000;

/// What a window has done.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct WindowStats {
    /// Accesses that raised a signal while it was on.
    pub faults: u64,
    /// Pages mapped.
    pub mapped: u64,
    /// Pages that were dropped again.
    pub dropped: u64,
    /// How often all of them were dropped at once.
    pub cleared: u64,
    /// How often it was emptied and switched off for a while because it cost too much.
    pub emptied: u64,
}

/// Consecutive pages to be mapped.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    /// Linear address of the first page.
    pub linear: GuestVirt,
    /// Its guest-physical page.
    pub physical: GuestPhys,
    /// How many.
    pub pages: u64,
    /// Whether stores are allowed.
    pub writable: bool,
}

impl Piece {
    /// Linear and guest-physical address of each page.
    pub fn each(self) -> impl Iterator<Item = (GuestVirt, GuestPhys)> {
        (0..self.pages)
            .map(|number| number << x86::PAGE_SHIFT)
            .map(move |offset| (self.linear.offset(offset), self.physical.offset(offset)))
    }
}

/// An address space: its number in [`crate::tlb::spaces::Spaces`], which others have had, and the root of its paging structures.
pub(crate) type Space = (usize, u64);

/// The window, and who has it.
pub(crate) struct Window {
    mapping: Mapping,
    /// For how many instructions an address space must have been current to take it from nobody.
    patience: u64,
    budget: Budget,
    /// It may be used.
    on: bool,
    /// Whose pages are mapped.
    owner: Option<Space>,
    /// The address space that is current.
    current: Space,
    /// The count of instructions when it became that.
    since: u64,
    /// The count of instructions at which [`Window::review`] may have something to change.
    due: u64,
    stats: WindowStats,
}

impl Window {
    /// An empty window, for who asks first: there is one in a process. `None` also if the host lacks the addresses.
    pub fn claim(patience: u64) -> Option<Self> {
        Some(Self {
            patience,
            mapping: Mapping::claim()?,
            budget: Budget::full(0),
            on: true,
            owner: None,
            current: (0, 0),
            since: 0,
            due: 0,
            stats: WindowStats::default(),
        })
    }

    pub fn stats(&self) -> WindowStats {
        self.stats
    }

    /// Whether code of an address space may use it.
    #[inline]
    pub fn is_open_to(&self, space: usize) -> bool {
        self.on && self.is_owner(space)
    }

    #[inline]
    fn is_owner(&self, space: usize) -> bool {
        self.owner.is_some_and(|(owner, _)| owner == space)
    }

    /// [`x86::CpuState::window`] while an address space is current.
    #[inline]
    pub fn switch(&self, space: usize) -> u64 {
        self.is_open_to(space).into()
    }

    /// Whether [`Window::review`] is to be called before user code of the current address space runs.
    #[inline]
    pub fn is_due(&self, instructions: u64) -> bool {
        instructions >= self.due
    }

    /// Gives it to the current address space when it is time, switches it off if it costs too much, and on when it no longer does.
    #[cold]
    pub fn review(&mut self, current: Space, instructions: u64) {
        self.budget.refill(instructions);
        let offered = self.offer(current, instructions);
        if self.on && self.budget.is_exhausted() {
            self.exhaust();
        } else if self.budget.is_full() {
            self.on = true;
        }
        self.due = if self.on { offered } else { offered.min(self.budget.full_at()) };
    }

    /// Gives it to the current address space if it may have it; else says when it may.
    fn offer(&mut self, current: Space, instructions: u64) -> u64 {
        if self.owner == Some(current) {
            return u64::MAX;
        }
        let patience = if self.owner.is_some() { PATIENCE.max(self.patience) } else { self.patience };
        let patient = self.since.saturating_add(patience);
        if instructions < patient {
            return patient;
        }
        self.forget_all();
        self.owner = Some(current);
        self.budget.restock();
        u64::MAX
    }

    /// Empties it and switches it off.
    fn exhaust(&mut self) {
        self.on = false;
        self.stats.emptied += 1;
        self.forget_all();
    }

    /// An access of the owner raised a signal. Returns whether anything may be mapped for it.
    pub fn note_fault(&mut self, instructions: u64) -> bool {
        self.stats.faults += 1;
        self.budget.refill(instructions);
        self.charge(budget::FAULT);
        if self.budget.is_exhausted() {
            self.exhaust();
            self.due = self.budget.full_at();
        }
        self.on
    }

    fn charge(&mut self, cost: u64) {
        self.budget.charge(cost);
        if self.budget.is_exhausted() {
            self.due = 0;
        }
    }

    /// A block of RAM has become shared memory for it.
    pub fn note_shared(&mut self, pages: usize) {
        self.charge(budget::share(pages as u64));
    }

    /// Whether a page can be in it.
    pub fn reaches(page: GuestVirt) -> bool {
        Mapping::reaches(page.0)
    }

    /// Whether all pages are mapped like that already.
    pub fn shows(&self, piece: Piece) -> bool {
        piece.each().all(|(linear, physical)| self.mapping.shows(linear.0, physical, piece.writable))
    }

    /// Maps pages that lie at an offset of a file. Returns whether it was done.
    pub fn map(&mut self, piece: Piece, file: BorrowedFd<'_>, offset: u64) -> bool {
        if !self.mapping.has_room(piece.pages) {
            self.forget_all();
        }
        self.charge(budget::pages(piece.pages));
        let mapped = self.mapping.map(piece, file, offset);
        if mapped {
            self.stats.mapped += piece.pages;
        }
        mapped
    }

    fn forget_all(&mut self) {
        self.stats.dropped += self.mapping.forget_all();
        self.stats.cleared += 1;
    }

    /// Takes it from its owner.
    fn vacate(&mut self) {
        self.forget_all();
        self.owner = None;
        self.due = 0;
    }

    /// Another address space may be current.
    pub fn switched(&mut self, current: Space, instructions: u64) {
        if self.current != current {
            self.current = current;
            self.since = instructions;
        }
        if self.is_owner(current.0) && self.owner != Some(current) {
            // The owner has ended, or has lost its number.
            self.vacate();
        }
        self.due = 0;
    }

    /// The number of an address space is given to another one.
    pub fn recycled(&mut self, space: usize) {
        if self.is_owner(space) {
            self.vacate();
        }
    }

    /// All translations are dropped; only the current address space stays.
    pub fn flush(&mut self, current: usize) {
        self.forget_all();
        self.owner = self.owner.filter(|(owner, _)| *owner == current);
        self.due = 0;
    }

    /// Translations of some address spaces are dropped.
    pub fn flush_spaces(&mut self, is_flushed: impl Fn(usize) -> bool) {
        if self.owner.is_some_and(|(owner, _)| is_flushed(owner)) {
            self.forget_all();
        }
    }

    /// One page is dropped.
    pub fn flush_page(&mut self, page: GuestVirt) {
        if self.mapping.forget_page(page.0) {
            self.stats.dropped += 1;
            // Not paid with its mapping if others were mapped with it.
            self.charge(budget::DROP);
        }
    }

    /// The naturally aligned `1 << shift` bytes that hold `address` are dropped.
    pub fn flush_range(&mut self, address: GuestVirt, shift: u32) {
        self.stats.dropped += self.mapping.forget_range(address.0, shift);
    }

    /// Stores to a guest-physical page are no longer allowed.
    pub fn protect(&mut self, page: GuestPhys) {
        self.stats.dropped += self.mapping.protect(page);
    }
}
