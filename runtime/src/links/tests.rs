//! Who leads where, when blocks come and go.

use super::*;
use crate::block::{BlockKey, Extent};
use semantics::decode::BlockEnd;
use translator::DirectExit;
use x86::Mode;

const STUB: u64 = 0x5_70b0;

fn block(id: u64, first: u64) -> Arc<Block> {
    let key = BlockKey { first: GuestPhys(first), rip: first, mode: Mode::default(), extent: Extent::Full };
    Arc::new(Block::new(BlockId(id), key, 4, None, BlockEnd::Length, 0))
}

fn code(rip: u64, exits: &[(u64, bool)]) -> CodeBlock {
    CodeBlock {
        rip,
        code: vec![0xc3; 100],
        relocations: Vec::new(),
        exits: exits
            .iter()
            .map(|&(target, guarded)| DirectExit { target, page: rip & x86::PAGE_MASK, guarded, jump: None })
            .collect(),
        callouts: Vec::new(),
        addends: Vec::new(),
        window_accesses: Vec::new(),
        addresses: None,
        guest_instructions: 1,
        guest_bytes: 4,
        counts: false,
        instrumentation: None,
        text: None,
    }
}

fn install(links: &mut Links, members: &[&Arc<Block>], code: &CodeBlock) -> bool {
    let members: Vec<_> = members.iter().map(|&block| Arc::clone(block)).collect();
    links.install(&members, code, 0) != Installation::Full
}

struct Fixture {
    links: Links,
    a: Arc<Block>,
    b: Arc<Block>,
    /// Slots of a: to b, in its page; and to somewhere else, guarded.
    slots: [u64; 2],
}

fn fixture() -> Fixture {
    let mut links = Links::new(CodeMemory::new(64 << 10).unwrap(), STUB, Arc::default());
    let (a, b) = (block(1, 0x1000), block(2, 0x1100));
    assert!(install(&mut links, &[&a], &code(0x1000, &[(0x1100, false), (0x2000, true)])));
    assert!(install(&mut links, &[&b], &code(0x1100, &[])));
    let slots = [0, 1].map(|n: usize| links.slots[n].address.address(&links.memory));
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
    f.links.remove(&f.b);
    assert_eq!(f.leads_to(f.slots[0]), STUB);
    let target = f.slots[0] + offset_of!(ChainSlot, target) as u64;
    assert_eq!(f.leads_to(target), 0x1100, "the slot still knows where it leads");
}

#[test]
fn a_jump_leads_behind_the_beginning_and_back_to_its_own_cold_path() {
    let mut f = fixture();
    let c = block(3, 0x1200);
    let mut jumping = code(0x1200, &[(0x1100, false)]);
    jumping.exits[0].jump = Some(translator::ExitJump { displacement: 20, unlinked: 40, addend: None });
    assert!(install(&mut f.links, &[&c], &jumping));
    let (from, slot) = (c.code().unwrap() + 20, f.links.slots.last().unwrap().address);
    let leads_to = |links: &mut Links| {
        let bytes: [u8; 4] = links.memory.bytes(from, 4).try_into().unwrap();
        (from + 4).wrapping_add_signed(i32::from_le_bytes(bytes).into())
    };
    let slot = slot.address(&f.links.memory);
    f.links.link(slot, &f.b, 0);
    assert_eq!(leads_to(&mut f.links), f.b.code().unwrap() + carried::ENTRY);
    f.links.remove(&f.b);
    assert_eq!(leads_to(&mut f.links), c.code().unwrap() + 40);
}

#[test]
fn a_dead_owner_is_no_longer_linked() {
    let mut f = fixture();
    f.links.link(f.slots[0], &f.b, 0);
    f.links.remove(&f.a);
    assert_eq!(f.leads_to(f.slots[0]), STUB);
    f.links.link(f.slots[0], &f.b, 0);
    assert_eq!(f.leads_to(f.slots[0]), STUB, "the frame that left through it may ask once more");
    f.links.remove(&f.b);
}

#[test]
fn guarded_slots_move_between_targets() {
    let mut f = fixture();
    let (c, d) = (block(3, 0x9000), block(4, 0xa000));
    assert!(
        install(&mut f.links, &[&c], &code(0x2000, &[])) && install(&mut f.links, &[&d], &code(0x2000, &[]))
    );
    f.links.link(f.slots[1], &c, 0x77);
    f.links.link(f.slots[1], &d, 0x88);
    let addend = f.slots[1] + offset_of!(ChainSlot, addend) as u64;
    assert_eq!((f.leads_to(f.slots[1]), f.leads_to(addend)), (d.code().unwrap(), 0x88));
    f.links.remove(&c);
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
    let number = f.links.of(&f.a).unwrap().slots.start as usize;
    let slot = f.links.slots[number].address.address(&f.links.memory);
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
    f.links.remove(&f.b);
    assert_eq!(f.leads_to(f.slots[0]), STUB);
}

#[test]
fn a_block_knows_the_regions_that_it_is_part_of() {
    let mut f = fixture();
    assert!(install(&mut f.links, &[&f.b, &f.a], &code(0x1100, &[])));
    let heads = |links: &Links, block: &Block| -> Vec<u64> {
        links.regions_of(block).iter().map(|head| head.id.0).collect()
    };
    assert_eq!((heads(&f.links, &f.a), heads(&f.links, &f.b)), (vec![1, 2], vec![2]));
    f.links.remove(&f.b);
    assert_eq!((heads(&f.links, &f.a), heads(&f.links, &f.b)), (vec![1], vec![]));
}
