//! Installed code and how it is chained: code memory, chain slots, and who leads where.
//!
//! Invariants, all under the block cache's lock:
//! - A slot's `code` is either the unlinked stub or the code of the living block in [`SlotRecord::linked`], and then
//!   the slot is in that block's `incoming`.
//! - A block's slots stay allocated until [`Links::clear`], also after its death: compiled code that is just leaving
//!   through one finds the stub there.

use translator::{CodeBlock, abi::ChainSlot};

use x86::GuestPhys;

use crate::{
    block::{Block, BlockId},
    code_memory::CodeMemory,
    hash::{Map, Set},
};
use std::{mem::offset_of, ops::Range, sync::Arc};

/// What is known of a slot besides its contents.
struct SlotRecord {
    address: u64,
    owner: BlockId,
    /// Where the guest block lies that ends in the exit: in a region not always the head.
    page: GuestPhys,
    guarded: bool,
    linked: Option<BlockId>,
}

/// What is known of a block that has code.
struct Installed {
    block: Arc<Block>,
    /// All blocks that the code is made from.
    members: Vec<BlockId>,
    slots: Range<usize>,
    incoming: Set<usize>,
    countdown: Option<Countdown>,
}

/// The counter of code that counts its executions.
#[derive(Clone, Copy)]
struct Countdown {
    address: u64,
    /// What it was set to.
    from: u32,
}

/// Code of the same block that new code has taken the place of.
pub struct Replaced(pub Option<u64>);

/// See the module's description.
pub struct Links {
    memory: CodeMemory,
    /// Address of the unlinked stub.
    stub: u64,
    slots: Vec<SlotRecord>,
    /// Slot number by address.
    numbers: Map<u64, usize>,
    installed: Map<BlockId, Installed>,
    /// Heads of the regions that a block is part of.
    regions: Map<BlockId, Vec<BlockId>>,
}

impl Links {
    /// With empty code memory; `stub` is what unlinked slots lead to.
    pub fn new(memory: CodeMemory, stub: u64) -> Self {
        Self {
            memory,
            stub,
            slots: Vec::new(),
            numbers: Map::default(),
            installed: Map::default(),
            regions: Map::default(),
        }
    }

    /// Installs the code of a region that begins with the first of `members`, all exits unlinked. Slots that lead to older
    /// code of that block lead to the new one. Code that counts its executions counts down from `countdown`. `None`: the
    /// memory is full.
    pub fn install(
        &mut self,
        members: &[Arc<Block>],
        compiled: &CodeBlock,
        countdown: u32,
    ) -> Option<Replaced> {
        let block = members.first()?;
        let size = size_of::<ChainSlot>();
        let slot_bytes = compiled.exits.len() * size;
        let counter_bytes = if compiled.counts { size_of::<u64>() } else { 0 };
        let (code, slots) = self.memory.allocate(compiled.code.len(), slot_bytes + counter_bytes)?;
        let countdown =
            compiled.counts.then(|| Countdown { address: slots + slot_bytes as u64, from: countdown });
        let counter = match countdown {
            Some(countdown) => {
                self.memory.store(countdown.address, countdown.from.into());
                self.memory.writable_address(countdown.address)
            }
            None => 0,
        };
        let mut bytes = compiled.code.clone();
        if compiled.link(&mut bytes, code, slots, counter).is_err() {
            // Code memory is at most 1 GiB, so this can't be; not installing is right all the same.
            return Some(Replaced(None));
        }
        self.memory.write(code, &bytes);
        let first = self.slots.len();
        for (n, exit) in compiled.exits.iter().enumerate() {
            let address = slots + (n * size) as u64;
            self.memory.store(address + offset_of!(ChainSlot, code) as u64, self.stub);
            self.memory.store(address + offset_of!(ChainSlot, addend) as u64, 0);
            self.memory.store(address + offset_of!(ChainSlot, target) as u64, exit.target);
            self.memory.store(address + offset_of!(ChainSlot, owner) as u64, block.id.0);
            self.numbers.insert(address, self.slots.len());
            let from = members.iter().find(|member| member.key.rip & x86::PAGE_MASK == exit.page);
            let page = from.unwrap_or(block).key.first.page();
            let guarded = exit.guarded;
            self.slots.push(SlotRecord { address, owner: block.id, page, guarded, linked: None });
        }
        let slots = first..self.slots.len();
        let replaced = block.code();
        let incoming = self.take_out(block.id);
        for &number in &incoming {
            self.memory.store(self.slots[number].address + offset_of!(ChainSlot, code) as u64, code);
        }
        for member in members {
            self.regions.entry(member.id).or_default().push(block.id);
        }
        let members = members.iter().map(|member| member.id).collect();
        let installed = Installed { block: Arc::clone(block), members, slots, incoming, countdown };
        self.installed.insert(block.id, installed);
        block.set_code(code);
        Some(Replaced(replaced))
    }

    /// Executions that a block's code has counted.
    pub fn counted(&self, id: BlockId) -> u32 {
        let countdown = self.installed.get(&id).and_then(|installed| installed.countdown);
        countdown.map_or(0, |countdown| self.executions(countdown))
    }

    /// Has a block's code, if it counts, count down from another number; what it has counted is added to the block's.
    pub fn recount(&mut self, id: BlockId, from: u32) {
        let Some(installed) = self.installed.get(&id) else { return };
        let Some(countdown) = installed.countdown else { return };
        installed.block.add_executions(self.executions(countdown));
        self.memory.store(countdown.address, from.into());
        if let Some(installed) = self.installed.get_mut(&id) {
            installed.countdown = Some(Countdown { from, ..countdown });
        }
    }

    fn executions(&self, countdown: Countdown) -> u32 {
        let left = self.memory.load(countdown.address) as i32;
        (i64::from(countdown.from) - i64::from(left)) as u32
    }

    /// The blocks whose code a block is part of.
    pub fn regions_of(&self, id: BlockId) -> Vec<Arc<Block>> {
        let heads = self.regions.get(&id).into_iter().flatten();
        heads
            .filter_map(|head| self.installed.get(head))
            .map(|installed| Arc::clone(&installed.block))
            .collect()
    }

    /// Makes the slot at an address jump to `block`, which must be installed; guarded slots under `addend`. An exit to
    /// the same linear page has no guard, so it is only linked within the same physical page: if that page's mapping was
    /// changed and not yet flushed, the lookup may have seen more than the running block.
    pub fn link(&mut self, slot: u64, block: &Block, addend: u64) {
        let (Some(&number), Some(code)) = (self.numbers.get(&slot), block.code()) else { return };
        let record = &self.slots[number];
        let Some(owner) = self.installed.get(&record.owner) else { return };
        let to = &block.key;
        if owner.block.key.mode != to.mode || !record.guarded && record.page != to.first.page() {
            return;
        }
        self.unlink(number);
        let Some(target) = self.installed.get_mut(&block.id) else { return };
        target.incoming.insert(number);
        self.slots[number].linked = Some(block.id);
        self.memory.store(slot + offset_of!(ChainSlot, addend) as u64, addend);
        self.memory.store(slot + offset_of!(ChainSlot, code) as u64, code);
    }

    /// Takes a block's code out of every chain. Its bytes and slots stay where they are.
    pub fn remove(&mut self, id: BlockId) {
        for number in self.take_out(id) {
            self.reset_slot(number);
        }
    }

    /// Forgets a block's code and unlinks its exits; gives the slots that lead to it, which are the caller's to see to.
    fn take_out(&mut self, id: BlockId) -> Set<usize> {
        let Some(installed) = self.installed.get_mut(&id) else { return Set::default() };
        let slots = installed.slots.clone();
        for number in slots {
            self.unlink(number);
        }
        let Some(installed) = self.installed.remove(&id) else { return Set::default() };
        if let Some(countdown) = installed.countdown {
            installed.block.add_executions(self.executions(countdown));
        }
        for member in installed.members {
            if let Some(heads) = self.regions.get_mut(&member) {
                heads.retain(|&head| head != id);
                if heads.is_empty() {
                    self.regions.remove(&member);
                }
            }
        }
        installed.incoming
    }

    /// Unlinks every slot of the given block, so that its exits are looked up anew.
    pub fn unlink_exits(&mut self, id: BlockId) {
        let Some(installed) = self.installed.get(&id) else { return };
        for number in installed.slots.clone() {
            self.unlink(number);
        }
    }

    /// Takes the code from every block and forgets it. Nothing may run in it.
    pub fn clear(&mut self) {
        for (_, installed) in self.installed.drain() {
            installed.block.set_code(0);
            installed.block.cool_down();
        }
        self.regions.clear();
        self.slots.clear();
        self.numbers.clear();
        self.memory.reset();
    }

    /// Blocks that have code, in no order.
    pub fn blocks(&self) -> impl Iterator<Item = &Arc<Block>> {
        self.installed.values().map(|installed| &installed.block)
    }

    /// Bytes of code memory in use.
    pub fn used(&self) -> usize {
        self.memory.used()
    }

    fn unlink(&mut self, number: usize) {
        let Some(old) = self.slots[number].linked else { return };
        if let Some(target) = self.installed.get_mut(&old) {
            target.incoming.remove(&number);
        }
        self.reset_slot(number);
    }

    fn reset_slot(&mut self, number: usize) {
        let record = &mut self.slots[number];
        record.linked = None;
        let address = record.address;
        self.memory.store(address + offset_of!(ChainSlot, code) as u64, self.stub);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::block::{BlockKey, Extent};
    use interpreter::DecodedBlock;
    use semantics::decode::{BlockEnd, GuestBlock};
    use translator::DirectExit;
    use x86::Mode;

    const STUB: u64 = 0x5_70b0;

    fn block(id: u64, first: u64) -> Arc<Block> {
        let key =
            BlockKey { first: GuestPhys(first), rip: first, mode: Mode::default(), extent: Extent::Full };
        let guest = GuestBlock { rip: first, mode: key.mode, insns: Vec::new(), end: BlockEnd::Length };
        Arc::new(Block::new(BlockId(id), key, 4, None, BlockEnd::Length, DecodedBlock::new(&guest)))
    }

    fn code(rip: u64, exits: &[(u64, bool)]) -> CodeBlock {
        CodeBlock {
            rip,
            code: vec![0xc3; 100],
            relocations: Vec::new(),
            exits: exits
                .iter()
                .map(|&(target, guarded)| DirectExit { target, page: rip & x86::PAGE_MASK, guarded })
                .collect(),
            guest_instructions: 1,
            guest_bytes: 4,
            counts: false,
            instrumentation: None,
            text: None,
        }
    }

    fn install(links: &mut Links, members: &[&Arc<Block>], code: &CodeBlock) -> bool {
        let members: Vec<_> = members.iter().map(|&block| Arc::clone(block)).collect();
        links.install(&members, code, 0).is_some()
    }

    struct Fixture {
        links: Links,
        a: Arc<Block>,
        b: Arc<Block>,
        /// Slots of a: to b, in its page; and to somewhere else, guarded.
        slots: [u64; 2],
    }

    fn fixture() -> Fixture {
        let mut links = Links::new(CodeMemory::new(64 << 10).unwrap(), STUB);
        let (a, b) = (block(1, 0x1000), block(2, 0x1100));
        assert!(install(&mut links, &[&a], &code(0x1000, &[(0x1100, false), (0x2000, true)])));
        assert!(install(&mut links, &[&b], &code(0x1100, &[])));
        let slots = [links.slots[0].address, links.slots[1].address];
        Fixture { links, a, b, slots }
    }

    impl Fixture {
        fn leads_to(&self, slot: u64) -> u64 {
            self.links.memory.load(slot)
        }
    }

    #[test]
    fn a_dead_target_leaves_the_stub_behind() {
        let mut f = fixture();
        assert_eq!(f.leads_to(f.slots[0]), STUB);
        f.links.link(f.slots[0], &f.b, 0);
        assert_eq!(f.leads_to(f.slots[0]), f.b.code().unwrap());
        f.links.remove(f.b.id);
        assert_eq!(f.leads_to(f.slots[0]), STUB);
        let target = f.slots[0] + offset_of!(ChainSlot, target) as u64;
        assert_eq!(f.leads_to(target), 0x1100, "the slot still knows where it leads");
    }

    #[test]
    fn a_dead_owner_is_no_longer_linked() {
        let mut f = fixture();
        f.links.link(f.slots[0], &f.b, 0);
        f.links.remove(f.a.id);
        assert_eq!(f.leads_to(f.slots[0]), STUB);
        f.links.link(f.slots[0], &f.b, 0);
        assert_eq!(f.leads_to(f.slots[0]), STUB, "the frame that left through it may ask once more");
        f.links.remove(f.b.id);
    }

    #[test]
    fn guarded_slots_move_between_targets() {
        let mut f = fixture();
        let (c, d) = (block(3, 0x9000), block(4, 0xa000));
        assert!(
            install(&mut f.links, &[&c], &code(0x2000, &[]))
                && install(&mut f.links, &[&d], &code(0x2000, &[]))
        );
        f.links.link(f.slots[1], &c, 0x77);
        f.links.link(f.slots[1], &d, 0x88);
        let addend = f.slots[1] + offset_of!(ChainSlot, addend) as u64;
        assert_eq!((f.leads_to(f.slots[1]), f.leads_to(addend)), (d.code().unwrap(), 0x88));
        f.links.remove(c.id);
        assert_eq!(f.leads_to(f.slots[1]), d.code().unwrap(), "c is no longer its target");
    }

    #[test]
    fn unguarded_slots_stay_in_their_physical_page() {
        let mut f = fixture();
        let elsewhere = block(3, 0x9100);
        assert!(install(&mut f.links, &[&elsewhere], &code(0x1100, &[])));
        f.links.link(f.slots[0], &elsewhere, 0);
        assert_eq!(f.leads_to(f.slots[0]), STUB);
    }

    #[test]
    fn exits_of_a_region_are_linked_in_the_page_of_the_block_that_ends_in_them() {
        let mut f = fixture();
        let (member, there) = (block(3, 0x2000), block(4, 0x2100));
        let mut region = code(0x1000, &[(0x2100, false)]);
        region.exits[0].page = 0x2000;
        assert!(install(&mut f.links, &[&f.a, &member], &region));
        assert!(install(&mut f.links, &[&there], &code(0x2100, &[])));
        let slot = f.links.slots[f.links.installed[&f.a.id].slots.start].address;
        f.links.link(slot, &f.b, 0);
        assert_eq!(f.leads_to(slot), STUB, "the head's page, not the member's");
        f.links.link(slot, &there, 0);
        assert_eq!(f.leads_to(slot), there.code().unwrap());
    }

    #[test]
    fn full_memory_is_emptied() {
        let mut f = fixture();
        let mut n = 10;
        while install(&mut f.links, &[&block(n, 0x1000 + n)], &code(0, &[(0, false)])) {
            n += 1;
        }
        assert!(n > 200);
        f.links.clear();
        assert_eq!((f.a.code(), f.b.code(), f.links.used()), (None, None, 0));
        assert!(install(&mut f.links, &[&f.a], &code(0x1000, &[])));
    }

    #[test]
    fn new_code_takes_over_what_led_to_the_old() {
        let mut f = fixture();
        f.links.link(f.slots[0], &f.b, 0);
        let old = f.b.code().unwrap();
        assert!(install(&mut f.links, &[&f.b, &f.a], &code(0x1100, &[(0x1000, false)])));
        let new = f.b.code().unwrap();
        assert_ne!(old, new);
        assert_eq!(f.leads_to(f.slots[0]), new);
        f.links.remove(f.b.id);
        assert_eq!(f.leads_to(f.slots[0]), STUB);
    }

    #[test]
    fn a_block_knows_the_regions_that_it_is_part_of() {
        let mut f = fixture();
        assert!(install(&mut f.links, &[&f.b, &f.a], &code(0x1100, &[])));
        let heads = |links: &Links, block: &Block| -> Vec<u64> {
            links.regions_of(block.id).iter().map(|head| head.id.0).collect()
        };
        assert_eq!((heads(&f.links, &f.a), heads(&f.links, &f.b)), (vec![1, 2], vec![2]));
        f.links.remove(f.b.id);
        assert_eq!((heads(&f.links, &f.a), heads(&f.links, &f.b)), (vec![1], vec![]));
    }
}
