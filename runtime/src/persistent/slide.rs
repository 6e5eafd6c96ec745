//! The same code elsewhere: which bytes of a guest block and of its translation hold addresses that move with the kernel's
//! image ([`translator::addresses`]), found when the block is recorded and checked when it is looked for.
//!
//! A block that was recorded at one place is that of other bytes at another place if these differ in such a way only: 32-bit words
//! that are addresses in the image have moved as far as the block has, and distances to what does not move have become shorter by
//! that. Words that look like addresses and have not changed are constants, and stay in the translation too.

use semantics::{Insn, MemoryOperand, Operand};
use translator::addresses::{AddressField, IMAGE, SLIDE, is_low_half};
use x86::PAGE_MASK;

use super::Guest;

/// Words of a block that may differ, at most.
pub(super) const MOST_WORDS: usize = 32;

/// An access reaches this far beyond the address that an instruction has, at most; code has the address of its last byte, too.
const REACH: u32 = 16;

/// A 32-bit word of a guest block that may differ elsewhere.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Word {
    /// Offset in the block.
    pub position: u16,
    pub kind: WordKind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub(super) enum WordKind {
    /// An address that moves, or a constant that looks like one.
    Perhaps = 0,
    /// The same, but something else has the address, too: if it does not move, this is other code.
    Address = 1,
    /// A distance to something that does not move.
    Distance = 2,
}

impl WordKind {
    pub fn of(number: u8) -> Option<Self> {
        [Self::Perhaps, Self::Address, Self::Distance].into_iter().find(|kind| *kind as u8 == number)
    }
}

/// What decides whether a constant in the translation moves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Source {
    /// It does.
    Place,
    /// If the guest's word of that number does.
    Word(u8),
}

/// How a block and its translation move.
#[derive(Default, Debug)]
pub(super) struct Plan {
    pub words: Vec<Word>,
    /// One for each address of the translation.
    pub sources: Vec<Source>,
}

impl Plan {
    /// Of blocks in the image, whose bytes are `bytes`, one after the other. `None`: something in the translation has no explanation,
    /// so it stays where it is.
    pub fn of(guests: &[Guest<'_>], bytes: &[u8], addresses: &[AddressField]) -> Option<Self> {
        let mut plan = Self::default();
        let mut start = 0;
        for insn in guests.iter().flat_map(|guest| &guest.block.insns) {
            let end = start + usize::from(insn.length);
            plan.add_distances(insn, bytes.get(start..end)?, start);
            start = end;
        }
        let in_bytes: Vec<(usize, u32)> = words(bytes).filter(|&(_, word)| is_low_half(word)).collect();
        let mut known: Option<(u32, Source)> = None;
        for field in addresses {
            // Most blocks have their own address many times.
            let source = match known {
                Some((address, source)) if address == field.address => source,
                _ => plan.source(guests, &in_bytes, field.address)?,
            };
            known = Some((field.address, source));
            plan.sources.push(source);
        }
        (plan.words.len() <= MOST_WORDS).then_some(plan)
    }

    /// Distances from an instruction to what lies outside the image: per-CPU variables, modules.
    fn add_distances(&mut self, insn: &Insn, bytes: &[u8], start: usize) {
        let near = (insn.operand(0) == Operand::Near).then_some(insn.immediate);
        let is_constant = insn.memory.base == MemoryOperand::NONE && insn.memory.index == MemoryOperand::NONE;
        let memory =
            (is_constant && insn.operands.contains(&Operand::Memory)).then_some(insn.memory.displacement);
        for target in near.into_iter().chain(memory) {
            if IMAGE.contains(&target) {
                continue;
            }
            let distance = target.wrapping_sub(insn.next_rip()) as u32;
            // An address that is not relative is not found, or is a constant that has to be as it was.
            for (position, _) in words(bytes).filter(|&(_, word)| word == distance) {
                self.words.push(Word { position: (start + position) as u16, kind: WordKind::Distance });
            }
        }
    }

    /// What has an address: the block's place, or one of the words of its bytes that look like one.
    fn source(&mut self, guests: &[Guest<'_>], in_bytes: &[(usize, u32)], address: u32) -> Option<Source> {
        let page = PAGE_MASK as u32;
        let is = |known: u32| address.wrapping_sub(known) < REACH || address == known & page;
        let of_place = guests.iter().flat_map(|guest| &guest.block.insns).any(|insn| {
            let displacement = insn.memory.displacement as u32;
            let relative = insn.memory.base == MemoryOperand::NONE
                && insn.memory.index == MemoryOperand::NONE
                && insn.operands.contains(&Operand::Memory)
                && is(displacement);
            let near = insn.operand(0) == Operand::Near && is(insn.immediate as u32);
            relative || near || is(insn.rip as u32) || is(insn.next_rip() as u32)
        });
        let found = || in_bytes.iter().filter(|&&(_, word)| is(word));
        let count = found().count();
        // Where one word decides for itself, it may be a constant. Otherwise all have to move.
        let kind = if count == 1 && !of_place { WordKind::Perhaps } else { WordKind::Address };
        let mut source = of_place.then_some(Source::Place);
        for &(position, _) in found() {
            let word = Word { position: position as u16, kind };
            let known = self.words.iter().position(|known| *known == word);
            let number = known.unwrap_or(self.words.len());
            if known.is_none() {
                self.words.push(word);
            }
            source = match kind {
                WordKind::Perhaps => Some(Source::Word(u8::try_from(number).ok()?)),
                _ => Some(Source::Place),
            };
        }
        source
    }
}

/// All 32-bit words, wherever they begin, and where.
fn words(bytes: &[u8]) -> impl Iterator<Item = (usize, u32)> {
    let words = bytes.windows(4).map(|bytes| u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
    words.enumerate()
}

/// How far code at `there` was moved to be at `here`, if the kernel's image can have been moved so.
pub(super) fn distance(there: u64, here: u64) -> Option<u64> {
    let by = here.wrapping_sub(there);
    let can = by == 0 || by.is_multiple_of(SLIDE) && IMAGE.contains(&there) && IMAGE.contains(&here);
    can.then_some(by)
}

/// Whether `here` is `there`, moved: then which words have moved, by their numbers.
pub(super) fn moved(there: &[u8], here: &[u8], words: impl Iterator<Item = Word>, by: u64) -> Option<u32> {
    if there.len() != here.len() {
        return None;
    }
    let by = by as u32;
    let mut moved = 0;
    let mut same_from = 0;
    // Words are compared as such, and what lies between them, in whatever order they come.
    let mut gaps: [(usize, usize); MOST_WORDS] = [(0, 0); MOST_WORDS];
    let mut count = 0;
    for (number, word) in words.enumerate().take(MOST_WORDS) {
        let range = usize::from(word.position)..usize::from(word.position) + 4;
        let (was, is) = (word_at(there, range.start)?, word_at(here, range.start)?);
        match word.kind {
            WordKind::Distance if is == was.wrapping_sub(by) => {}
            WordKind::Perhaps | WordKind::Address if is == was.wrapping_add(by) && is_low_half(is) => {
                moved |= 1 << number;
            }
            WordKind::Perhaps if is == was => {}
            _ => return None,
        }
        gaps[count] = (range.start, range.end);
        count += 1;
    }
    gaps[..count].sort_unstable();
    for (n, &(start, end)) in gaps[..count].iter().enumerate() {
        if n > 0 && gaps[n - 1] == (start, end) {
            // Two kinds of the same word.
            continue;
        }
        if start < same_from || there[same_from..start] != here[same_from..start] {
            return None;
        }
        same_from = end;
    }
    (there[same_from..] == here[same_from..]).then_some(moved)
}

fn word_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
