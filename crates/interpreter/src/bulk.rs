//! REP string instructions, many elements at once: within pages of RAM that the TLB gives host pointers to.
//!
//! The host's own string instructions do the work, so overlapping operands behave as the guest's do. What does not
//! fit (an element across pages, MMIO, a segment's end, faults) is left to the definition's single element; so are code pages, unless it
//! is the interpreter that asks.

use core::arch::asm;

use memory::{Mmu, host};
use semantics::{Bulk as Kind, Repetition};
use x86::{CpuState, GuestVirt, PAGE_SIZE, SegmentRegister, Width, flags};

use crate::segmentation;

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Pages that one call works through at most, so that interrupts wait for a bounded time.
const MAX_CHUNKS: usize = 16;

/// One of them, on the state it is about.
struct Bulk<'a> {
    state: &'a mut CpuState,
    mmu: &'a mut Mmu,
    repetition: Repetition,
    over_code: bool,
    /// RFLAGS.DF: from the highest element to the lowest.
    down: bool,
}

/// Does what it can of a repetition; see [`semantics::Machine::bulk`].
pub fn run(state: &mut CpuState, mmu: &mut Mmu, repetition: Repetition) {
    work(state, mmu, repetition, false);
}

/// The same, also over translated code: for who looks at [`Mmu::code_written`] before it goes on.
pub(crate) fn run_over_code(state: &mut CpuState, mmu: &mut Mmu, repetition: Repetition) {
    work(state, mmu, repetition, true);
}

fn work(state: &mut CpuState, mmu: &mut Mmu, repetition: Repetition, over_code: bool) {
    let down = state.rflags & flags::DF != 0;
    if down && repetition.kind.compares() || repetition.kind == Kind::Lods {
        return;
    }
    let mut bulk = Bulk { state, mmu, repetition, over_code, down };
    for _ in 0..MAX_CHUNKS {
        if bulk.register(RCX) < Repetition::FEWEST || bulk.chunk() != Some(Chunk::Whole) {
            break;
        }
    }
}

/// One end of the work: where its first element is and how many elements from there are within one page and one run of offsets.
struct Place {
    offset: u64,
    linear: u64,
    room: u64,
}

impl Place {
    /// The same of the lowest of `count` elements, if the first one is the highest.
    fn lowered(self, down: bool, count: u64, size: u64) -> Self {
        let distance = if down { (count - 1) * size } else { 0 };
        Self { offset: self.offset - distance, linear: self.linear - distance, ..self }
    }
}

/// How a piece of work ended.
#[derive(PartialEq, Eq)]
enum Chunk {
    /// Done.
    Whole,
    /// Before the element that ends a comparison.
    Stopped,
}

impl Bulk<'_> {
    /// A register at the address width.
    fn register(&self, index: usize) -> u64 {
        self.repetition.address_width.truncate(self.state.gpr[index])
    }

    fn add_to_register(&mut self, index: usize, value: u64) {
        let width = self.repetition.address_width;
        let old = self.state.gpr[index];
        let new = width.truncate(old.wrapping_add(value));
        let kept = if width == Width::Word { old & !0xffff } else { 0 };
        self.state.gpr[index] = kept | new;
    }

    fn segment(&self, index: usize) -> SegmentRegister {
        if index == RDI { SegmentRegister::Es } else { self.repetition.segment }
    }

    fn place(&self, index: usize, write: bool) -> Option<Place> {
        let offset = self.register(index);
        let linear = segmentation::linear(self.state, self.segment(index), offset, 1, write).ok()?;
        let size = self.repetition.width.bytes();
        let before = GuestVirt(linear).page_offset();
        let in_page = PAGE_SIZE - before;
        let in_offsets = self.repetition.address_width.mask() - offset;
        let room = match self.down {
            false => in_page.min(in_offsets) / size,
            true if in_page.min(in_offsets) < size => 0,
            true => before.min(offset) / size + 1,
        };
        Some(Place { offset, linear, room })
    }

    /// The host's pointer to `length` bytes, if they are plain RAM within the segment.
    fn host_pointer(&mut self, index: usize, place: &Place, length: u64, write: bool) -> Option<*mut u8> {
        segmentation::linear(self.state, self.segment(index), place.offset, length as u16, write).ok()?;
        let linear = GuestVirt(place.linear);
        match write && self.over_code {
            true => self.mmu.direct_over_code(self.state, linear, length).ok()?,
            false => self.mmu.direct(self.state, linear, length, write).ok()?,
        }
    }

    /// Works through one piece within pages. `None` if there is nothing to do this way.
    fn chunk(&mut self) -> Option<Chunk> {
        let Repetition { kind, width, stops_on_equal, .. } = self.repetition;
        let size = width.bytes();
        let writes = !kind.compares();

        let to = self.place(RDI, writes)?;
        let from = if kind.reads_source() { Some(self.place(RSI, false)?) } else { None };
        let room = from.as_ref().map_or(to.room, |from| from.room.min(to.room));
        // The element that ends a comparison is the definition's.
        let wanted = self.register(RCX) - u64::from(kind.compares());
        let count = wanted.min(room);
        if count == 0 {
            return None;
        }
        let length = count * size;
        let to = to.lowered(self.down, count, size);
        let from = from.map(|from| from.lowered(self.down, count, size));
        let source = match &from {
            Some(from) => Some(self.host_pointer(RSI, from, length, false)?),
            None => None,
        };
        let destination = self.host_pointer(RDI, &to, length, writes)?;
        let alignment_matters = self.state.mode.checks_alignment()
            && (to.linear | from.map_or(0, |f| f.linear)) & (size - 1) != 0;
        if alignment_matters {
            return None;
        }
        let accumulator = self.state.gpr[RAX];
        // SAFETY: `direct` vouches for `length` bytes of guest RAM behind both pointers, writable where written.
        let done = unsafe {
            match (kind, source) {
                (Kind::Movs, Some(source)) if self.down => {
                    let last = (length - size) as usize;
                    copy_down(source.add(last), destination.add(last), count, width);
                    count
                }
                (Kind::Movs, Some(source)) => {
                    copy(source, destination, count, width);
                    count
                }
                // The same in either direction.
                (Kind::Stos, _) => {
                    fill(destination, count, width, accumulator);
                    count
                }
                (Kind::Cmps, Some(source)) => compare(source, destination, count, width, stops_on_equal),
                _ => scan(destination, count, width, accumulator, stops_on_equal),
            }
        };
        let length = done * size;
        let moved = if self.down { length.wrapping_neg() } else { length };
        self.add_to_register(RDI, moved);
        if kind.reads_source() {
            self.add_to_register(RSI, moved);
        }
        self.add_to_register(RCX, done.wrapping_neg());
        Some(if done == count { Chunk::Whole } else { Chunk::Stopped })
    }
}

/// Copies elements upwards, one after the other, as overlapping operands need it.
///
/// # Safety
/// Both pointers must be to `count` elements of mapped guest memory.
unsafe fn copy(source: *const u8, destination: *mut u8, count: u64, width: Width) {
    macro_rules! copy {
        ($instruction:literal) => {
            // SAFETY: the caller vouches for the bytes, which hold no Rust objects; the ABI keeps DF clear.
            unsafe {
                asm!($instruction, inout("rcx") count => _, inout("rsi") source => _, inout("rdi") destination => _,
                    options(nostack, preserves_flags))
            }
        };
    }
    match width {
        Width::Byte => copy!("rep movsb"),
        Width::Word => copy!("rep movsw"),
        Width::Dword => copy!("rep movsd"),
        Width::Qword => copy!("rep movsq"),
    }
}

/// The same downwards, from the highest elements.
///
/// # Safety
/// Both pointers must be to the highest of `count` elements of mapped guest memory.
unsafe fn copy_down(source: *const u8, destination: *mut u8, count: u64, width: Width) {
    macro_rules! copy {
        ($instruction:literal) => {
            // SAFETY: as in `copy`; DF is clear again behind it.
            unsafe {
                asm!("std", $instruction, "cld",
                    inout("rcx") count => _, inout("rsi") source => _, inout("rdi") destination => _, options(nostack))
            }
        };
    }
    match width {
        Width::Byte => copy!("rep movsb"),
        Width::Word => copy!("rep movsw"),
        Width::Dword => copy!("rep movsd"),
        Width::Qword => copy!("rep movsq"),
    }
}

/// Stores the low part of `value` to each element.
///
/// # Safety
/// The pointer must be to `count` elements of mapped guest memory.
unsafe fn fill(destination: *mut u8, count: u64, width: Width, value: u64) {
    macro_rules! fill {
        ($instruction:literal) => {
            // SAFETY: as in `copy`.
            unsafe {
                asm!($instruction, inout("rcx") count => _, inout("rdi") destination => _, in("rax") value,
                    options(nostack, preserves_flags))
            }
        };
    }
    match width {
        Width::Byte => fill!("rep stosb"),
        Width::Word => fill!("rep stosw"),
        Width::Dword => fill!("rep stosd"),
        Width::Qword => fill!("rep stosq"),
    }
}

/// How many leading pairs of elements let a comparison go on.
///
/// # Safety
/// Both pointers must be to `count` elements of mapped guest memory.
unsafe fn compare(a: *const u8, b: *const u8, count: u64, width: Width, stops_on_equal: bool) -> u64 {
    (0..count)
        .take_while(|n| {
            let at = (n * width.bytes()) as usize;
            // SAFETY: within `count` elements.
            unsafe { (host::load(a.add(at), width) == host::load(b.add(at), width)) != stops_on_equal }
        })
        .count() as u64
}

/// How many leading elements let a scan for `value` go on.
///
/// # Safety
/// The pointer must be to `count` elements of mapped guest memory.
unsafe fn scan(bytes: *const u8, count: u64, width: Width, value: u64, stops_on_equal: bool) -> u64 {
    let value = width.truncate(value);
    (0..count)
        .take_while(|n| {
            let at = (n * width.bytes()) as usize;
            // SAFETY: within `count` elements.
            unsafe { (host::load(bytes.add(at), width) == value) != stops_on_equal }
        })
        .count() as u64
}
