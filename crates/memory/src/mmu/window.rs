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
    /// if a TLB could have it for that access without a flag that is to be set or a fault, and returns whether it is there. Takes no lock
    /// that compiled code holds.
    pub fn window_fault(&mut self, state: &mut CpuState, linear: GuestVirt, write: bool) -> bool {
        if !self.note_window_fault(state) {
            return false;
        }
        if !Window::reaches(linear.page()) {
            return false;
        }
        let Some(page) = self.page_for(state, linear, write) else { return false };
        if self.shows(page) {
            return true;
        }
        let piece = self.with_neighbours(state, page);
        self.show(piece)
    }

    /// The page of an access as the TLB has it, or else as the structures have it now: other pages may displace it from the TLB's array
    /// each time before it faults again.
    fn page_for(&mut self, state: &CpuState, linear: GuestVirt, write: bool) -> Option<Piece> {
        let access = if write { Access::Write } else { Access::Read };
        let (physical, writable) = match self.spaces.array(View::User).look_up(linear, access) {
            Some(hit) => (hit.page, !hit.slow_store),
            None => {
                let (physical, writable) = self.peek(state, linear)?;
                (physical, writable && !self.code_pages.is_marked(physical))
            }
        };
        let page = Piece { linear: linear.page(), physical, pages: 1, writable };
        (writable || !write).then_some(page)
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
        let block = self.ram.block(page.physical);
        self.peek(state, other.linear) == Some((other.physical, other.writable))
            && block.is_some()
            && self.ram.block(other.physical) == block
            && !self.code_pages.is_marked(other.physical)
    }

    /// What the structures have for loads of user code now, if its accessed flags are set: the guest-physical page, and whether stores
    /// may be made without a walk.
    fn peek(&mut self, state: &CpuState, linear: GuestVirt) -> Option<(GuestPhys, bool)> {
        let now = walk::peek(&self.ram, state, View::User, linear.0)?;
        if now.size_shift != PAGE_SHIFT {
            // The TLB may never have had it.
            self.spaces.note_large(linear, now.size_shift);
        }
        Some((now.page, now.write && now.dirty))
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
