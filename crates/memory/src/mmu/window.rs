//! How pages come into the window: [`crate::window`].

use x86::{CpuState, GuestPhys, GuestVirt, PAGE_SHIFT, PAGE_SIZE};

use super::Mmu;
use crate::tlb::View;
use crate::walk::{self, Access};
use crate::window::{CHUNK_SHIFT, Piece, Window, WindowStats};

impl Mmu {
    /// Claims the process's window, to be on from the next [`Mmu::select_view`] for user code. False: it is not to be had.
    pub fn open_window(&mut self, patience: u64) -> bool {
        if self.spaces.window.is_none() {
            self.spaces.window = Window::claim(patience);
        }
        self.spaces.window.is_some()
    }

    /// What the window has done; nothing while there is none.
    pub fn window_stats(&self) -> WindowStats {
        self.spaces.window.as_ref().map_or_else(WindowStats::default, Window::stats)
    }

    /// An access by the window, of compiled code that is suspended in the signal's handler, has faulted at `linear`. Maps the page
    /// if the TLB has it for that access, and returns whether it did. Otherwise the access is to be made through the TLB, which
    /// fills that, so the next fault finds it. Takes no lock that compiled code holds.
    pub fn window_fault(&mut self, state: &mut CpuState, linear: GuestVirt, write: bool) -> bool {
        if !self.note_window_fault(state) {
            return false;
        }
        if !Window::reaches(linear.page()) {
            return false;
        }
        let access = if write { Access::Write } else { Access::Read };
        let Some(hit) = self.spaces.array(View::User).look_up(linear, access) else { return false };
        if write && hit.slow_store {
            return false;
        }
        let single = Piece { linear: linear.page(), physical: hit.page, pages: 1, writable: !hit.slow_store };
        if self.shows(single) {
            return true;
        }
        let piece = self.with_neighbours(state, single);
        self.show(piece)
    }

    /// An access is not in the part of the window that compiled code expects, and has raised the signal too.
    pub fn window_missed(&mut self, state: &mut CpuState) {
        self.note_window_fault(state);
    }

    /// Has the window pay for a signal; returns whether anything may be mapped. If that was too much, it is off from now on.
    fn note_window_fault(&mut self, state: &mut CpuState) -> bool {
        let space = self.spaces.current();
        let Some(window) = &mut self.spaces.window else { return false };
        if self.view != View::User || !window.is_open_to(space) {
            return false;
        }
        let is_on = window.note_fault(state.instructions);
        if !is_on {
            state.window = 0;
        }
        is_on
    }

    /// Whether the window has it already.
    fn shows(&self, piece: Piece) -> bool {
        self.spaces.window.as_ref().is_some_and(|window| window.shows(piece))
    }

    /// A page, and those around it within a naturally aligned 64 KiB that lie around it in RAM too and may be accessed likewise, as the
    /// structures say now: a TLB may have them at any time (SDM Vol. 3A 4.10.2.3). Those that the window has already end the piece.
    /// Alone if the structures no longer say of it what the TLB does.
    fn with_neighbours(&mut self, state: &CpuState, page: Piece) -> Piece {
        if !self.fits(state, page, page) {
            return page;
        }
        let chunk = page.linear.0 >> CHUNK_SHIFT;
        // Of the page at a distance, in either direction.
        let mut joins = |distance: u64| {
            let (linear, physical) = (page.linear.offset(distance), page.physical.offset(distance));
            let other = Piece { linear, physical, ..page };
            linear.0 >> CHUNK_SHIFT == chunk && !self.shows(other) && self.fits(state, page, other)
        };
        let mut before = 0_u64;
        while joins((before + PAGE_SIZE).wrapping_neg()) {
            before += PAGE_SIZE;
        }
        let mut end = PAGE_SIZE;
        while joins(end) {
            end += PAGE_SIZE;
        }
        Piece {
            linear: GuestVirt(page.linear.0 - before),
            physical: GuestPhys(page.physical.0 - before),
            pages: (before + end) / PAGE_SIZE,
            ..page
        }
    }

    /// Whether another page can be mapped together with a page: both lie in a block of RAM, and user code may access it in the way
    /// that `other` says and in no more, without a walk and without the watch.
    fn fits(&mut self, state: &CpuState, page: Piece, other: Piece) -> bool {
        let Some(now) = walk::peek(&self.ram, state, View::User, other.linear.0) else { return false };
        let block = self.ram.block(page.physical);
        let fits = now.page == other.physical
            && (now.write && now.dirty) == other.writable
            && block.is_some()
            && self.ram.block(other.physical) == block
            && !self.code_pages.is_marked(other.physical);
        if fits && now.size_shift != PAGE_SHIFT {
            // The TLB may never have had it.
            self.spaces.note_large(other.linear, now.size_shift);
        }
        fits
    }

    fn show(&mut self, piece: Piece) -> bool {
        if piece.writable {
            // The TLB may have only one of them; `protect_page` must find them all.
            piece.each().for_each(|(linear, physical)| self.note_store(physical, linear));
        }
        let Some(window) = &mut self.spaces.window else { return false };
        let was_shared = self.ram.is_shared(piece.physical);
        let Some((file, offset)) = self.ram.share(piece.physical) else { return false };
        if !was_shared {
            window.note_shared(self.ram.block_pages());
        }
        window.map(piece, file, offset)
    }
}
