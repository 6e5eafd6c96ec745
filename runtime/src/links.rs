//! Installed code and how it is chained: code memory, chain slots, and who leads where.
//!
//! Invariants, all under the block cache's lock:
//! - An exit leads, by its slot's `code` or by its [jump](SlotRecord::jump), either to what it does unlinked (the stub; the jump's own
//!   cold path, which goes through the slot to the stub) or to the code at [`SlotRecord::linked`], and then it is in that code's list of incoming ones.
//! - A block's slots stay allocated until [`Links::clear`], also after its death: compiled code that is just leaving
//!   through one finds the stub there. They have no owner any more.
//! - [`Block::installed`] is the place of the block's code in [`Links::installed`].
//!
//! Hundreds of thousands of blocks are installed while a guest starts its programs, so a block alone costs no allocation
//! here: lists are numbers in the records, and tables are indexed.

use std::{
    mem::offset_of,
    num::NonZeroU32,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use semantics::Insn;
use translator::{CodeBlock, abi::ChainSlot, carried};
use x86::GuestPhys;

use crate::{
    block::{Block, BlockId, NOT_INSTALLED},
    code_memory::CodeMemory,
    counters::{Counter, Counters},
    hash::Map,
};

/// The end of a list of slots; no place of code.
const NONE: u32 = u32::MAX;

const _: () = assert!(NONE == NOT_INSTALLED);

/// What is known of a slot besides its contents. Its number is in the slot ([`ChainSlot::number`]).
struct SlotRecord {
    address: CodeAddress,
    /// Where the guest block lies that ends in the exit: in a region not always the head.
    page: GuestPhys,
    /// Place in `installed` of the code that it is an exit of, while that is installed.
    owner: u32,
    /// Place in `installed` of the code that it leads to, or [`NONE`].
    linked: u32,
    /// Its neighbours among the slots that lead there.
    previous: u32,
    next: u32,
    guarded: bool,
    jump: Option<Jump>,
}

/// Addresses of an [`translator::ExitJump`]'s parts.
#[derive(Clone, Copy)]
struct Jump {
    displacement: CodeAddress,
    unlinked: CodeAddress,
    addend: Option<CodeAddress>,
}

/// An address in code memory, which is smaller than 4 GiB, as the distance from one byte before it: there are hundreds of
/// thousands of these.
#[derive(Clone, Copy, PartialEq, Eq)]
struct CodeAddress(NonZeroU32);

impl CodeAddress {
    fn of(address: u64, memory: &CodeMemory) -> Self {
        let distance = (address - memory.range().start) as u32;
        Self(NonZeroU32::MIN.saturating_add(distance))
    }

    fn address(self, memory: &CodeMemory) -> u64 {
        memory.range().start + u64::from(self.0.get()) - 1
    }
}

/// What is known of a block that has code.
struct Installed {
    block: Arc<Block>,
    /// The other blocks that the code is made from.
    others: Box<[BlockId]>,
    slots: Range<u32>,
    /// First of the slots that lead to it.
    incoming: u32,
    countdown: Option<Countdown>,
}

/// The counter of code that counts its executions.
#[derive(Clone, Copy)]
struct Countdown {
    counter: Counter,
    /// What it was set to.
    from: u32,
}

/// What became of code that was to be installed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Installation {
    /// It is installed, in the place of `replaced` if the block had code before.
    Done {
        /// Address of that code.
        replaced: Option<u64>,
    },
    /// Code memory is full.
    Full,
}

/// See the module's description.
pub struct Links {
    memory: CodeMemory,
    counters: Counters,
    /// Set whenever code is written. Whoever runs it then has the processor notice first: [`crate::enter::serialize`].
    written: Arc<AtomicBool>,
    /// Address of the unlinked stub.
    stub: u64,
    slots: Vec<SlotRecord>,
    installed: Vec<Option<Installed>>,
    /// Places in `installed` that are free.
    free: Vec<u32>,
    /// Places of the regions that a block is part of without being their head.
    regions: Map<BlockId, Vec<u32>>,
}

impl Links {
    /// With empty code memory; `stub` is what unlinked slots lead to. `written` is set whenever code is written.
    pub fn new(memory: CodeMemory, stub: u64, written: Arc<AtomicBool>) -> Self {
        Self {
            memory,
            counters: Counters::default(),
            written,
            stub,
            slots: Vec::new(),
            installed: Vec::new(),
            free: Vec::new(),
            regions: Map::default(),
        }
    }

    /// Installs the code of a region that begins with the first of `members`, all exits unlinked. Slots that lead to older
    /// code of that block lead to the new one. Code that counts its executions counts down from `countdown`.
    pub fn install(&mut self, members: &[Arc<Block>], compiled: &CodeBlock, countdown: u32) -> Installation {
        let Some(block) = members.first() else { return Installation::Done { replaced: None } };
        let size = size_of::<ChainSlot>();
        let Some((code, slots)) = self.memory.allocate(compiled.code.len(), compiled.data_size()) else {
            return Installation::Full;
        };
        self.written.store(true, Ordering::Relaxed);
        let cells = self.memory.cells();
        let countdown = match compiled.counts.then(|| self.counters.take(cells, countdown)) {
            Some(None) => return Installation::Full,
            Some(Some(counter)) => Some(Countdown { counter, from: countdown }),
            None => None,
        };
        let counter = countdown.map_or(0, |countdown| countdown.counter.address(cells));
        let bytes = self.memory.bytes(code, compiled.code.len());
        bytes.copy_from_slice(&compiled.code);
        if compiled.link(bytes, code, slots, counter).is_err() {
            // Code memory is at most 1 GiB, so this can't be; not installing is right all the same.
            return Installation::Done { replaced: None };
        }
        let replaced = block.code();
        let (place, incoming) = match self.take_out(block) {
            Some(taken) => taken,
            None => (self.free.pop().unwrap_or(self.installed.len() as u32), NONE),
        };
        let first = self.slots.len() as u32;
        for (n, exit) in compiled.exits.iter().enumerate() {
            let address = slots + (n * size) as u64;
            self.memory.store(address + offset_of!(ChainSlot, code) as u64, self.stub);
            self.memory.store(address + offset_of!(ChainSlot, addend) as u64, 0);
            self.memory.store(address + offset_of!(ChainSlot, target) as u64, exit.target);
            self.memory.store(address + offset_of!(ChainSlot, number) as u64, self.slots.len() as u64);
            let from = members.iter().find(|member| member.key.rip & x86::PAGE_MASK == exit.page);
            let page = from.unwrap_or(block).key.first.page();
            let guarded = exit.guarded;
            let address_of = |offset: u32| CodeAddress::of(code + u64::from(offset), &self.memory);
            let jump = exit.jump.map(|jump| Jump {
                displacement: address_of(jump.displacement),
                unlinked: address_of(jump.unlinked),
                addend: jump.addend.map(address_of),
            });
            self.slots.push(SlotRecord {
                address: CodeAddress::of(address, &self.memory),
                page,
                owner: place,
                linked: NONE,
                previous: NONE,
                next: NONE,
                guarded,
                jump,
            });
        }
        for (n, &insn) in compiled.callouts.iter().enumerate() {
            let address = slots + (compiled.callouts_at() + n * size_of::<Insn>()) as u64;
            self.memory.write(address, insn);
        }
        let slots = first..self.slots.len() as u32;
        let mut number = incoming;
        while number != NONE {
            self.lead(number, code);
            number = self.slots[number as usize].next;
        }
        for other in &members[1..] {
            self.regions.entry(other.id).or_default().push(place);
        }
        let others = members[1..].iter().map(|member| member.id).collect();
        let installed = Installed { block: Arc::clone(block), others, slots, incoming, countdown };
        match self.installed.get_mut(place as usize) {
            Some(free) => *free = Some(installed),
            None => self.installed.push(Some(installed)),
        }
        block.installed.store(place, Ordering::Relaxed);
        block.set_code(code);
        Installation::Done { replaced }
    }

    /// Executions that a block's code has counted.
    pub fn counted(&self, block: &Block) -> u32 {
        let countdown = self.of(block).and_then(|installed| installed.countdown);
        countdown.map_or(0, |countdown| self.executions(countdown))
    }

    /// Has a block's code, if it counts, count down from another number; what it has counted is added to the block's.
    pub fn recount(&mut self, block: &Block, from: u32) {
        let Some(countdown) = self.of(block).and_then(|installed| installed.countdown) else { return };
        block.add_executions(self.executions(countdown));
        countdown.counter.set(self.memory.cells(), from);
        if let Some(installed) = self.at(block.installed.load(Ordering::Relaxed)) {
            installed.countdown = Some(Countdown { from, ..countdown });
        }
    }

    fn executions(&self, countdown: Countdown) -> u32 {
        let left = countdown.counter.left(self.memory.cells());
        (i64::from(countdown.from) - i64::from(left)) as u32
    }

    /// Whether a block has code or is part of a region.
    pub fn is_translated(&self, block: &Block) -> bool {
        block.code().is_some() || self.regions.contains_key(&block.id)
    }

    /// The blocks whose code a block is part of.
    pub fn regions_of(&self, block: &Block) -> Vec<Arc<Block>> {
        let heads = self.regions.get(&block.id).into_iter().flatten();
        let heads = heads.filter_map(|&place| self.installed.get(place as usize)?.as_ref());
        self.of(block).into_iter().chain(heads).map(|installed| Arc::clone(&installed.block)).collect()
    }

    /// Makes the slot at an address jump to `block`, which must be installed; guarded slots under `addend`. An exit to
    /// the same linear page has no guard, so it is only linked within the same physical page: if that page's mapping was
    /// changed and not yet flushed, the lookup may have seen more than the running block.
    pub fn link(&mut self, slot: u64, block: &Block, addend: u64) {
        let number = self.memory.load(slot + offset_of!(ChainSlot, number) as u64) as u32;
        let address = CodeAddress::of(slot, &self.memory);
        let Some(record) = self.slots.get(number as usize).filter(|record| record.address == address) else {
            return;
        };
        let owner = self.installed.get(record.owner as usize).and_then(Option::as_ref);
        let (Some(owner), Some(code)) = (owner, block.code()) else { return };
        let to = &block.key;
        if owner.block.key.mode != to.mode || !record.guarded && record.page != to.first.page() {
            return;
        }
        self.unlink(number);
        let place = block.installed.load(Ordering::Relaxed);
        let Some(target) = self.installed.get_mut(place as usize).and_then(Option::as_mut) else { return };
        let next = core::mem::replace(&mut target.incoming, number);
        if let Some(next) = self.slots.get_mut(next as usize) {
            next.previous = number;
        }
        let record = &mut self.slots[number as usize];
        (record.linked, record.previous, record.next) = (place, NONE, next);
        match record.jump {
            None => self.memory.store(slot + offset_of!(ChainSlot, addend) as u64, addend),
            Some(Jump { addend: Some(at), .. }) => {
                self.memory.bytes(at.address(&self.memory), 8).copy_from_slice(&addend.to_le_bytes());
            }
            Some(_) => {}
        }
        self.lead(number, code);
    }

    /// Slots of a block's exits that stay in its page, and the rips that they lead to.
    pub fn exits_within_page(&self, block: &Block) -> impl Iterator<Item = (u64, u64)> {
        let slots = self.of(block).map_or(0..0, |installed| installed.slots.clone());
        slots.filter_map(|number| {
            let record = self.slots.get(number as usize).filter(|record| !record.guarded)?;
            let address = record.address.address(&self.memory);
            Some((address, self.memory.load(address + offset_of!(ChainSlot, target) as u64)))
        })
    }

    /// Makes an exit lead to the code of a block: through its slot to the beginning, by a jump to where registers are handed over.
    fn lead(&mut self, number: u32, code: u64) {
        let handed_over = self.slots[number as usize].jump.is_some();
        self.point(number, if handed_over { code + carried::ENTRY } else { code });
    }

    fn point(&mut self, number: u32, address: u64) {
        let record = &self.slots[number as usize];
        match record.jump {
            None => {
                let slot = record.address.address(&self.memory);
                self.memory.store(slot + offset_of!(ChainSlot, code) as u64, address);
            }
            Some(Jump { displacement, .. }) => {
                let at = displacement.address(&self.memory);
                // Code memory is smaller than what 32 bits reach.
                let displacement = address.wrapping_sub(at + 4) as i32;
                self.memory.bytes(at, 4).copy_from_slice(&displacement.to_le_bytes());
                self.written.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Takes a block's code out of every chain. Its bytes and slots stay where they are.
    pub fn remove(&mut self, block: &Block) {
        let Some((place, mut number)) = self.take_out(block) else { return };
        self.free.push(place);
        while number != NONE {
            let next = self.slots[number as usize].next;
            self.reset_slot(number);
            number = next;
        }
    }

    /// Forgets a block's code and unlinks its exits; gives its place, and the first of the slots that lead to it, which
    /// are the caller's to see to.
    fn take_out(&mut self, block: &Block) -> Option<(u32, u32)> {
        let place = block.installed.swap(NOT_INSTALLED, Ordering::Relaxed);
        let slots = self.at(place)?.slots.clone();
        for number in slots {
            self.unlink(number);
            self.slots[number as usize].owner = NONE;
        }
        let installed = self.installed.get_mut(place as usize)?.take()?;
        if let Some(countdown) = installed.countdown {
            installed.block.add_executions(self.executions(countdown));
            self.counters.give_back(countdown.counter);
        }
        for other in installed.others {
            if let Some(places) = self.regions.get_mut(&other) {
                places.retain(|&other| other != place);
                if places.is_empty() {
                    self.regions.remove(&other);
                }
            }
        }
        Some((place, installed.incoming))
    }

    /// Unlinks every slot of the given block, so that its exits are looked up anew.
    pub fn unlink_exits(&mut self, block: &Block) {
        let Some(slots) = self.of(block).map(|installed| installed.slots.clone()) else { return };
        for number in slots {
            self.unlink(number);
        }
    }

    /// Takes the code from every block and forgets it. Nothing may run in it.
    pub fn clear(&mut self) {
        for installed in self.installed.drain(..).flatten() {
            installed.block.installed.store(NOT_INSTALLED, Ordering::Relaxed);
            installed.block.set_code(0);
            installed.block.cool_down();
        }
        self.free.clear();
        self.regions.clear();
        self.slots.clear();
        self.counters = Counters::default();
        self.memory.reset();
    }

    /// Blocks that have code, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.installed.iter().flatten().map(|installed| &installed.block)
    }

    /// Bytes of code memory in use.
    pub fn used(&self) -> usize {
        self.memory.used()
    }

    fn of(&self, block: &Block) -> Option<&Installed> {
        self.installed.get(block.installed.load(Ordering::Relaxed) as usize)?.as_ref()
    }

    fn at(&mut self, place: u32) -> Option<&mut Installed> {
        self.installed.get_mut(place as usize)?.as_mut()
    }

    fn unlink(&mut self, number: u32) {
        let &SlotRecord { linked, previous, next, .. } = &self.slots[number as usize];
        if linked == NONE {
            return;
        }
        if let Some(next) = self.slots.get_mut(next as usize) {
            next.previous = previous;
        }
        match self.slots.get_mut(previous as usize) {
            Some(previous) => previous.next = next,
            None => {
                if let Some(target) = self.at(linked) {
                    target.incoming = next;
                }
            }
        }
        self.reset_slot(number);
    }

    fn reset_slot(&mut self, number: u32) {
        let record = &mut self.slots[number as usize];
        (record.linked, record.previous, record.next) = (NONE, NONE, NONE);
        let address = record.jump.map_or(self.stub, |jump| jump.unlinked.address(&self.memory));
        self.point(number, address);
    }
}

#[cfg(test)]
mod tests;
