//! REP string instructions, many elements at once: within pages of RAM that the TLB gives host pointers to.
//!
//! The host's own string instructions do the work, so overlapping operands behave as the guest's do. What does not
//! fit (an element across pages, MMIO, code pages, a segment's end, faults) is left to the definition's single element.

use core::arch::asm;

use memory::{Stop, host};
use semantics::{Bulk, Insn, Repeat};
use x86::{GuestVirt, PAGE_SIZE, SegmentRegister, Width, flags};

use crate::{Interpreter, segmentation};

const RAX: usize = 0;
const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

/// Pages that one call works through at most, so that interrupts wait for a bounded time.
const MAX_CHUNKS: usize = 16;

/// Below this many elements the single step is as good.
const MIN_COUNT: u64 = 4;

/// Does what it can of a repetition; see [`semantics::Machine::bulk`].
pub(crate) fn run(machine: &mut Interpreter<'_>, kind: Bulk, insn: &Insn) -> Result<(), Stop> {
    let down = machine.state.rflags & flags::DF != 0;
    if down || kind == Bulk::Lods || machine.mmu.mmio.is_replaying() {
        return Ok(());
    }
    for _ in 0..MAX_CHUNKS {
        if register(machine, insn, RCX) < MIN_COUNT || !chunk(machine, kind, insn) {
            break;
        }
    }
    Ok(())
}

/// A register at the address width.
fn register(machine: &Interpreter<'_>, insn: &Insn, index: usize) -> u64 {
    insn.address_width.truncate(machine.state.gpr[index])
}

fn add_to_register(machine: &mut Interpreter<'_>, insn: &Insn, index: usize, value: u64) {
    let width = insn.address_width;
    let old = machine.state.gpr[index];
    let new = width.truncate(old.wrapping_add(value));
    let kept = if width == Width::Word { old & !0xffff } else { 0 };
    machine.state.gpr[index] = kept | new;
}

/// One end of the work: where it is and how many bytes from there are within one page and one run of offsets.
struct Place {
    offset: u64,
    linear: u64,
    room: u64,
}

fn place(machine: &Interpreter<'_>, insn: &Insn, index: usize, write: bool) -> Option<Place> {
    let segment = if index == RDI { SegmentRegister::Es } else { insn.memory.segment };
    let offset = register(machine, insn, index);
    let linear = segmentation::linear(machine.state, segment, offset, 1, write).ok()?;
    let in_page = PAGE_SIZE - GuestVirt(linear).page_offset();
    let in_offsets = insn.address_width.mask() - offset;
    Some(Place { offset, linear, room: in_page.min(in_offsets) })
}

/// The host's pointer to `length` bytes, if they are plain RAM within the segment.
fn host_pointer(
    machine: &mut Interpreter<'_>,
    insn: &Insn,
    index: usize,
    place: &Place,
    length: u64,
    write: bool,
) -> Option<*mut u8> {
    let segment = if index == RDI { SegmentRegister::Es } else { insn.memory.segment };
    segmentation::linear(machine.state, segment, place.offset, length as u16, write).ok()?;
    machine.mmu.direct(machine.state, GuestVirt(place.linear), length, write).ok()?
}

/// Works through one piece within pages. False if there is nothing (more) to do this way.
fn chunk(machine: &mut Interpreter<'_>, kind: Bulk, insn: &Insn) -> bool {
    chunk_of(machine, kind, insn).is_some_and(|more| more)
}

fn chunk_of(machine: &mut Interpreter<'_>, kind: Bulk, insn: &Insn) -> Option<bool> {
    let size = insn.width.bytes();
    let writes = matches!(kind, Bulk::Movs | Bulk::Stos);
    let compares = !writes;
    let reads_source = matches!(kind, Bulk::Movs | Bulk::Cmps);

    let to = place(machine, insn, RDI, writes)?;
    let from = if reads_source { Some(place(machine, insn, RSI, false)?) } else { None };
    let room = from.as_ref().map_or(to.room, |from| from.room.min(to.room));
    // The element that ends a comparison is the definition's.
    let wanted = register(machine, insn, RCX) - u64::from(compares);
    let count = wanted.min(room / size);
    if count == 0 {
        return None;
    }
    let length = count * size;
    let source = match &from {
        Some(from) => Some(host_pointer(machine, insn, RSI, from, length, false)?),
        None => None,
    };
    let destination = host_pointer(machine, insn, RDI, &to, length, writes)?;
    let alignment_matters =
        machine.state.mode.checks_alignment() && (to.linear | from.map_or(0, |f| f.linear)) & (size - 1) != 0;
    if alignment_matters {
        return None;
    }
    let accumulator = machine.state.gpr[RAX];
    let stops_on_equal = insn.repeat == Repeat::NotEqual;
    // SAFETY: `direct` vouches for `length` bytes of guest RAM behind both pointers, writable where written.
    let done = unsafe {
        match (kind, source) {
            (Bulk::Movs, Some(source)) => {
                copy(source, destination, count, insn.width);
                count
            }
            (Bulk::Stos, _) => {
                fill(destination, count, insn.width, accumulator);
                count
            }
            (Bulk::Cmps, Some(source)) => compare(source, destination, count, insn.width, stops_on_equal),
            _ => scan(destination, count, insn.width, accumulator, stops_on_equal),
        }
    };
    let length = done * size;
    add_to_register(machine, insn, RDI, length);
    if reads_source {
        add_to_register(machine, insn, RSI, length);
    }
    add_to_register(machine, insn, RCX, done.wrapping_neg());
    Some(done == count)
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
