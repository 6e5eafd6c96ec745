//! A translation as it is in the file: a head of fixed size, tables, the guest's bytes, host code. Numbers are little-endian.
//!
//! Everything but the code itself is checked when a record is used ([`Record::parse`], [`Record::load`]): it lies within the
//! record, and what it refers to is there. The code is trusted as far as the file is ([`super::file`]); the checksum tells damage from it.

use semantics::decode::{self, BlockEnd, GuestBlock};
use translator::{
    AddendField, CodeBlock, DirectExit, ExitJump, Relocation, RelocationKind, RelocationTarget,
    addresses::{AddressKind, IMAGE},
};
use x86::{Mode, PAGE_MASK};

use super::{
    LONGEST_BLOCK,
    bytes::{checksum, u16_at, u32_at, u64_at},
    slide::{self, Plan, Source, Word, WordKind},
};

/// Bytes of the head.
pub(super) const HEAD: usize = 56;

/// Where the head says which other record is of the same page.
const PREVIOUS: usize = 48;

/// Where it says how many blocks there are besides the first.
const MEMBERS: usize = 52;

/// So many, at most.
const MOST_MEMBERS: usize = 255;

/// Records begin at multiples of this.
pub(super) const ALIGNMENT: usize = 8;

/// A record is no longer than this.
pub(super) const LONGEST: usize = 1 << OFFSET_BITS;

/// Bits of an offset in the code, where it shares a word with something else.
const OFFSET_BITS: u32 = 20;

/// Where the something else begins.
const REST: u32 = OFFSET_BITS;
/// Of an [`AddressKind`].
const KIND_BITS: u32 = 2;

const EXIT: usize = 32;
const RELOCATION: usize = 8;
const ADDEND: usize = 16;
const CALLOUT: usize = 4;
const WORD: usize = 4;
const ADDRESS: usize = 4;
const MEMBER: usize = 16;

/// An instruction crosses into the next page.
const CROSSES: u8 = 1 << 0;
/// The code can be moved.
const MOVES: u8 = 1 << 1;
/// It counts its executions.
const COUNTS: u8 = 1 << 2;

const GUARDED: u32 = 1 << 0;
const JUMPS: u32 = 1 << 1;
const ADDEND_IN_CODE: u32 = 1 << 2;

/// In the place of a word's number: it moves with the block.
const PLACE: u8 = u8::MAX;

/// A guest block: of code that is made from several, each.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Guest<'a> {
    pub block: &'a GuestBlock,
    pub bytes: &'a [u8],
    pub end: BlockEnd,
    pub crosses: bool,
}

/// Appends a record of code that is made from blocks and entered at the first; `previous` is where a record of the same page begins, or
/// 0. False, and nothing appended: this code can't be kept.
pub(super) fn write(to: &mut Vec<u8>, guests: &[Guest<'_>], code: &CodeBlock, previous: usize) -> bool {
    let (Some(addresses), Some((head, members))) = (&code.addresses, guests.split_first()) else {
        return false;
    };
    let is_too_much = |guest: &Guest<'_>| guest.bytes.len() > LONGEST_BLOCK;
    if code.instrumentation.is_some()
        || code.code.len() >= LONGEST
        || guests.iter().any(is_too_much)
        || members.len() > MOST_MEMBERS
        || members.iter().any(|member| member.crosses)
    {
        return false;
    }
    let Guest { block, crosses, .. } = *head;
    let joined;
    let bytes = if members.is_empty() {
        head.bytes
    } else {
        joined = guests.iter().flat_map(|guest| guest.bytes).copied().collect::<Vec<u8>>();
        &joined
    };
    let plan = IMAGE.contains(&block.rip).then(|| Plan::of(guests, bytes, addresses)).flatten();
    let moves = plan.is_some();
    let plan = plan.unwrap_or_default();
    let addresses = if moves { addresses.as_slice() } else { &[] };

    let start = to.len();
    to.resize(start + 8, 0);
    put(to, block.rip.to_le_bytes());
    put(to, block.mode.0.to_le_bytes());
    put(to, 0u32.to_le_bytes());
    put(to, (code.code.len() as u32).to_le_bytes());
    put(to, (head.bytes.len() as u16).to_le_bytes());
    put(to, code.guest_bytes.to_le_bytes());
    put(to, code.guest_instructions.to_le_bytes());
    let flag = |set: bool, bit: u8| if set { bit } else { 0 };
    let flags = flag(crosses, CROSSES) | flag(moves, MOVES) | flag(code.counts, COUNTS);
    put(to, [head.end as u8, flags]);
    for count in [
        code.exits.len(),
        code.relocations.len(),
        code.callouts.len(),
        code.addends.len(),
        plan.words.len(),
        addresses.len(),
    ] {
        put(to, (count as u16).to_le_bytes());
    }
    put(to, (previous as u32).to_le_bytes());
    put(to, (members.len() as u32).to_le_bytes());
    debug_assert_eq!(to.len(), start + HEAD);
    for exit in &code.exits {
        put(to, exit.target.to_le_bytes());
        put(to, exit.page.to_le_bytes());
        let jump = exit.jump.unwrap_or(ExitJump { displacement: 0, unlinked: 0, addend: None });
        put(to, jump.displacement.to_le_bytes());
        put(to, jump.unlinked.to_le_bytes());
        put(to, jump.addend.unwrap_or(0).to_le_bytes());
        let flag = |set: bool, bit: u32| if set { bit } else { 0 };
        let flags = flag(exit.guarded, GUARDED)
            | flag(exit.jump.is_some(), JUMPS)
            | flag(jump.addend.is_some(), ADDEND_IN_CODE);
        put(to, flags.to_le_bytes());
    }
    for relocation in &code.relocations {
        let (target, number) = match relocation.target {
            RelocationTarget::Slot(number) => (0, number),
            RelocationTarget::Callout(number) => (1, number),
            RelocationTarget::Counter => (2, 0),
            RelocationTarget::Counters => {
                to.truncate(start);
                return false;
            }
        };
        let (Ok(number), Ok(addend)) = (u16::try_from(number), i8::try_from(relocation.addend)) else {
            to.truncate(start);
            return false;
        };
        let kind = u32::from(relocation.kind == RelocationKind::Abs64);
        put(to, (relocation.offset | (kind | target << 1) << REST).to_le_bytes());
        put(to, number.to_le_bytes());
        put(to, [addend as u8, 0]);
    }
    for addend in &code.addends {
        put(to, addend.page.to_le_bytes());
        put(to, u64::from(addend.offset).to_le_bytes());
    }
    for callout in &code.callouts {
        let Some(offset) = offset_of(guests, callout.rip) else {
            to.truncate(start);
            return false;
        };
        put(to, (offset as u32).to_le_bytes());
    }
    for member in members {
        put(to, member.block.rip.to_le_bytes());
        put(to, (member.bytes.len() as u16).to_le_bytes());
        put(to, [member.end as u8, 0, 0, 0, 0, 0]);
    }
    for word in &plan.words {
        put(to, word.position.to_le_bytes());
        put(to, [word.kind as u8, 0]);
    }
    for (field, source) in addresses.iter().zip(&plan.sources) {
        let source = match source {
            Source::Place => PLACE,
            Source::Word(number) => *number,
        };
        let kind = field.kind as u32;
        put(to, (field.offset | (kind | u32::from(source) << KIND_BITS) << REST).to_le_bytes());
    }
    to.extend_from_slice(bytes);
    to.extend_from_slice(&code.code);
    to.resize(to.len().next_multiple_of(ALIGNMENT), 0);
    let length = to.len() - start;
    if length > LONGEST {
        to.truncate(start);
        return false;
    }
    to[start + 20..start + 24].copy_from_slice(&(length as u32).to_le_bytes());
    seal(&mut to[start..]);
    true
}

/// Appends a record of another file.
pub(super) fn copy(to: &mut Vec<u8>, record: Record<'_>, previous: usize) {
    let start = to.len();
    to.extend_from_slice(record.bytes);
    to[start + PREVIOUS..start + PREVIOUS + 4].copy_from_slice(&(previous as u32).to_le_bytes());
    seal(&mut to[start..]);
}

fn seal(record: &mut [u8]) {
    let sum = checksum(&record[8..]);
    record[..8].copy_from_slice(&sum.to_le_bytes());
}

/// Where the instruction at `rip` begins in the bytes of all blocks.
fn offset_of(guests: &[Guest<'_>], rip: u64) -> Option<usize> {
    let mut before = 0;
    for guest in guests {
        let offset = rip.wrapping_sub(guest.block.rip);
        if offset < guest.bytes.len() as u64 {
            return Some(before + offset as usize);
        }
        before += guest.bytes.len();
    }
    None
}

fn put<const N: usize>(to: &mut Vec<u8>, bytes: [u8; N]) {
    to.extend_from_slice(&bytes);
}

/// A record in the file.
#[derive(Clone, Copy)]
pub(super) struct Record<'a> {
    /// All of it.
    bytes: &'a [u8],
    pub rip: u64,
    pub mode: Mode,
    flags: u8,
    pub end: BlockEnd,
    guest: &'a [u8],
    code: &'a [u8],
    exits: &'a [u8],
    relocations: &'a [u8],
    addends: &'a [u8],
    callouts: &'a [u8],
    words: &'a [u8],
    addresses: &'a [u8],
    members: &'a [u8],
}

/// A block that code is made from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Member {
    pub rip: u64,
    pub bytes: u16,
    pub end: BlockEnd,
}

impl<'a> Record<'a> {
    /// Rip and mode of the record that begins at a place.
    #[inline]
    pub fn key(file: &[u8], start: usize) -> Option<(u64, u32)> {
        Some((u64_at(file, start.checked_add(8)?)?, u32_at(file, start.checked_add(16)?)?))
    }

    /// The whole record that begins at a place.
    pub fn parse(file: &'a [u8], start: usize) -> Option<Self> {
        let bytes = file.get(start..)?;
        let length = u32_at(bytes, 20)? as usize;
        if !(HEAD..=LONGEST).contains(&length) {
            return None;
        }
        let bytes = bytes.get(..length)?;
        let count = |n: usize| Some(usize::from(u16_at(bytes, 36 + 2 * n)?));
        let mut rest = &bytes[HEAD..];
        let mut take = |length: usize| {
            let (taken, after) = rest.split_at_checked(length)?;
            rest = after;
            Some(taken)
        };
        let member_count = u32_at(bytes, MEMBERS)? as usize;
        let head_bytes = usize::from(u16_at(bytes, 28)?);
        let exits = take(count(0)? * EXIT)?;
        let relocations = take(count(1)? * RELOCATION)?;
        let addends = take(count(3)? * ADDEND)?;
        let callouts = take(count(2)? * CALLOUT)?;
        let members = take(member_count.checked_mul(MEMBER)?)?;
        let of_members = members.chunks_exact(MEMBER).filter_map(|bytes| u16_at(bytes, 8)).map(usize::from);
        let guest_bytes = head_bytes + of_members.sum::<usize>();
        Some(Self {
            bytes,
            members,
            exits,
            relocations,
            addends,
            callouts,
            rip: u64_at(bytes, 8)?,
            mode: Mode(u32_at(bytes, 16)?),
            flags: bytes[35],
            end: block_end(bytes[34])?,
            words: take(count(4)? * WORD)?,
            addresses: take(count(5)? * ADDRESS)?,
            guest: take(guest_bytes)?,
            code: take(u32_at(bytes, 24)? as usize)?,
        })
    }

    /// Whether its block crosses into the next page.
    pub fn crosses(&self) -> bool {
        self.flags & CROSSES != 0
    }

    /// Whether it is made from more than one block.
    pub fn is_region(&self) -> bool {
        !self.members.is_empty()
    }

    /// The blocks that it is made from, moved by `by`.
    pub fn members(&self, by: u64) -> Option<Vec<Member>> {
        let head = Member { rip: self.rip.wrapping_add(by), bytes: u16_at(self.bytes, 28)?, end: self.end };
        let mut all = vec![head];
        for bytes in self.members.chunks_exact(MEMBER) {
            let rip = u64_at(bytes, 0)?;
            let is_moved = by == 0 || IMAGE.contains(&rip) && IMAGE.contains(&rip.wrapping_add(by));
            let rip = is_moved.then(|| rip.wrapping_add(by))?;
            all.push(Member { rip, bytes: u16_at(bytes, 8)?, end: block_end(bytes[10])? });
        }
        Some(all)
    }

    /// Bytes that its blocks have.
    pub fn guest_bytes(&self) -> usize {
        self.guest.len()
    }

    /// Where another record of the same page begins, or 0.
    pub fn previous(&self) -> usize {
        u32_at(self.bytes, PREVIOUS).unwrap_or(0) as usize
    }

    /// All that the record takes.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether it is intact.
    pub fn is_sound(&self) -> bool {
        u64_at(self.bytes, 0) == Some(checksum(&self.bytes[8..]))
    }

    /// Whether it is that of these bytes, if they lie at `rip`; if so, how it is to be [loaded](Record::load).
    pub fn matches(&self, rip: u64, here: &[u8]) -> Option<Moved> {
        let by = slide::distance(self.rip, rip)?;
        if by == 0 {
            return (self.guest == here).then_some(Moved { by, words: 0 });
        }
        if self.flags & MOVES == 0 {
            return None;
        }
        let words = slide::moved(self.guest, here, self.words()?, by)?;
        Some(Moved { by, words })
    }

    fn words(&self) -> Option<impl Iterator<Item = Word> + use<'a>> {
        let word = |bytes: &[u8]| Some(Word { position: u16_at(bytes, 0)?, kind: WordKind::of(bytes[2])? });
        if self.words.len() / WORD > slide::MOST_WORDS
            || !self.words.chunks_exact(WORD).all(|bytes| word(bytes).is_some())
        {
            return None;
        }
        Some(self.words.chunks_exact(WORD).filter_map(word))
    }

    /// Makes it code of the blocks whose bytes are `here`; `addend_of` gives the TLB's addend for a page.
    pub fn load(
        &self,
        to: &mut CodeBlock,
        here: &[u8],
        moved: Moved,
        addend_of: impl Fn(u64) -> Option<u64>,
    ) -> Option<()> {
        let Moved { by, words } = moved;
        let members = self.members(by)?;
        to.rip = self.rip.wrapping_add(by);
        to.guest_bytes = u16_at(self.bytes, 30)?;
        to.guest_instructions = u16_at(self.bytes, 32)?;
        to.counts = self.flags & COUNTS != 0;
        to.code.clear();
        to.code.extend_from_slice(self.code);
        let length = self.code.len();
        let fits = |offset: u32, size: usize| {
            let end = (offset as usize).checked_add(size)?;
            (end <= length).then_some(offset)
        };
        let move_address = |address: u64| {
            if by == 0 || !IMAGE.contains(&address) {
                return Some(address);
            }
            Some(address.wrapping_add(by)).filter(|moved| IMAGE.contains(moved))
        };

        to.exits.clear();
        for bytes in self.exits.chunks_exact(EXIT) {
            let flags = u32_at(bytes, 28)?;
            let jump = ExitJump {
                displacement: fits(u32_at(bytes, 16)?, 4)?,
                unlinked: fits(u32_at(bytes, 20)?, 1)?,
                addend: match flags & ADDEND_IN_CODE {
                    0 => None,
                    _ => Some(fits(u32_at(bytes, 24)?, 8)?),
                },
            };
            let exit = DirectExit {
                target: move_address(u64_at(bytes, 0)?)?,
                page: move_address(u64_at(bytes, 8)?)?,
                guarded: flags & GUARDED != 0,
                jump: (flags & JUMPS != 0).then_some(jump),
            };
            // It is of one of the blocks; without a guard, it stays in that one's page.
            let is_of_one = members.iter().any(|member| member.rip & PAGE_MASK == exit.page);
            if !is_of_one || !exit.guarded && exit.target & PAGE_MASK != exit.page {
                return None;
            }
            to.exits.push(exit);
        }

        to.callouts.clear();
        for bytes in self.callouts.chunks_exact(CALLOUT) {
            let offset = u32_at(bytes, 0)? as usize;
            let mut before = 0;
            let member = members.iter().find(|member| {
                before += usize::from(member.bytes);
                offset < before
            })?;
            let insn = here.get(offset..before)?;
            let end = member.rip.wrapping_add(member.bytes.into());
            let rip = end.wrapping_sub((before - offset) as u64);
            to.callouts.push(decode::decode_one(insn, rip, self.mode).ok()?);
        }

        to.relocations.clear();
        for bytes in self.relocations.chunks_exact(RELOCATION) {
            let (offset, rest) = split(u32_at(bytes, 0)?);
            let number = u32::from(u16_at(bytes, 4)?);
            let target = match rest >> 1 {
                0 if (number as usize) < to.exits.len() => RelocationTarget::Slot(number),
                1 if (number as usize) < to.callouts.len() => RelocationTarget::Callout(number),
                2 if to.counts => RelocationTarget::Counter,
                _ => return None,
            };
            let (kind, size) = match rest & 1 {
                0 => (RelocationKind::Pc32, 4),
                _ => (RelocationKind::Abs64, 8),
            };
            let offset = fits(offset, size)?;
            let addend = i64::from(bytes[6] as i8);
            if !(-8..=8).contains(&addend) {
                return None;
            }
            to.relocations.push(Relocation { offset, kind, target, addend });
        }

        to.addends.clear();
        for bytes in self.addends.chunks_exact(ADDEND) {
            let field =
                AddendField { page: move_address(u64_at(bytes, 0)?)?, offset: fits(u32_at(bytes, 8)?, 8)? };
            let offset = field.offset as usize;
            to.code[offset..offset + 8].copy_from_slice(&addend_of(field.page)?.to_le_bytes());
            to.addends.push(field);
        }

        if by != 0 {
            for bytes in self.addresses.chunks_exact(ADDRESS) {
                let (offset, rest) = split(u32_at(bytes, 0)?);
                let moves = match (rest >> KIND_BITS) as u8 {
                    PLACE => true,
                    number => words.checked_shr(number.into()).unwrap_or(0) & 1 != 0,
                };
                if !moves {
                    continue;
                }
                let offset = fits(offset, 4)? as usize;
                let kind = AddressKind::of(rest & ((1 << KIND_BITS) - 1))?;
                let value = kind.moved(u32_at(&to.code, offset)?, by);
                if kind == AddressKind::Value && !translator::addresses::is_low_half(value) {
                    return None;
                }
                to.code[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
            }
        }
        Some(())
    }
}

/// An offset, and what shares its word.
fn split(word: u32) -> (u32, u32) {
    (word & ((1 << OFFSET_BITS) - 1), word >> REST)
}

/// How a record's block lies elsewhere than when it was recorded.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Moved {
    pub by: u64,
    /// Bit n: the n-th word of the guest's bytes has moved too.
    words: u32,
}

fn block_end(number: u8) -> Option<BlockEnd> {
    [BlockEnd::Terminal, BlockEnd::Length, BlockEnd::PageEnd, BlockEnd::Invalid]
        .into_iter()
        .find(|end| *end as u8 == number)
}
