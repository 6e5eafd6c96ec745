//! Installed code and how it is chained: code memory, chain slots, and who leads where.
//!
//! Invariants, all under the block cache's lock:
//! - A slot's `code` is either the unlinked stub or the code of the living block in [`SlotRecord::linked`], and then
//!   the slot is in that block's `incoming`.
//! - A block's slots stay allocated until [`Links::clear`], also after its death: compiled code that is just leaving
//!   through one finds the stub there.
//! - A slot lies at `base of slots + 32 * number`; numbers count from 0 after each [`Links::clear`].

use translator::{CodeBlock, abi::ChainSlot};

use crate::{
    block::{Block, BlockId},
    code_memory::CodeMemory,
    hash::{Map, Set},
};
use std::{mem::offset_of, ops::Range, sync::Arc};

/// What is known of a slot besides its contents.
struct SlotRecord {
    address: u64,
    guarded: bool,
    target: u64,
    linked: Option<BlockId>,
}

/// What is known of a block that has code.
struct Installed {
    block: Arc<Block>,
    slots: Range<usize>,
    incoming: Set<usize>,
}

/// See the module's description.
pub struct Links {
    memory: CodeMemory,
    /// Address of the unlinked stub.
    stub: u64,
    slots: Vec<SlotRecord>,
    /// Slot number by address.
    numbers: Map<u64, usize>,
    installed: Map<BlockId, Installed>,
}

/// Where a slot leads, as the dispatcher wants to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Target {
    /// Guest rip.
    pub rip: u64,
    /// Whether it lies in another page.
    pub guarded: bool,
}

impl Links {
    /// With empty code memory; `stub` is what unlinked slots lead to.
    pub fn new(memory: CodeMemory, stub: u64) -> Self {
        Self { memory, stub, slots: Vec::new(), numbers: Map::default(), installed: Map::default() }
    }

    /// Installs a block's code, all exits unlinked. `false`: the memory is full.
    pub fn install(&mut self, block: &Arc<Block>, compiled: &CodeBlock) -> bool {
        let size = size_of::<ChainSlot>();
        let Some((code, slots)) =
            self.memory.allocate(compiled.code.len(), compiled.exits.len() * size)
        else {
            return false;
        };
        let mut bytes = compiled.code.clone();
        if compiled.link(&mut bytes, code, slots).is_err() {
            // Code memory is at most 1 GiB, so this can't be; not installing is right all the same.
            return false;
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
            self.slots.push(SlotRecord {
                address,
                guarded: exit.guarded,
                target: exit.target,
                linked: None,
            });
        }
        let slots = first..self.slots.len();
        self.installed
            .insert(block.id, Installed { block: Arc::clone(block), slots, incoming: Set::default() });
        block.set_code(code);
        true
    }

    /// Where the slot at an address leads; `None` if there is no such slot (any more).
    pub fn target(&self, slot: u64) -> Option<Target> {
        let record = &self.slots[*self.numbers.get(&slot)?];
        Some(Target { rip: record.target, guarded: record.guarded })
    }

    /// Makes the slot at an address jump to `block`, which must be installed; guarded slots under `addend`.
    pub fn link(&mut self, slot: u64, block: &Block, addend: u64) {
        let (Some(&number), Some(code)) = (self.numbers.get(&slot), block.code()) else { return };
        self.unlink(number);
        let Some(target) = self.installed.get_mut(&block.id) else { return };
        target.incoming.insert(number);
        self.slots[number].linked = Some(block.id);
        self.memory.store(slot + offset_of!(ChainSlot, addend) as u64, addend);
        self.memory.store(slot + offset_of!(ChainSlot, code) as u64, code);
    }

    /// Takes a block out of every chain. Its bytes and slots stay where they are.
    pub fn remove(&mut self, id: BlockId) {
        let Some(installed) = self.installed.remove(&id) else { return };
        for number in installed.incoming {
            self.reset_slot(number);
        }
        for number in installed.slots {
            self.unlink(number);
        }
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
