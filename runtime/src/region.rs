//! Which blocks are compiled together: from a hot block along the ways that control has gone.
//!
//! [`form`] follows direct jumps, branches, calls and returns, and indirect calls to where they led last, from a block to others that are decoded and warm, also into
//! other pages, until the region is large enough. The vCPU's thread does it, so it sees guest memory and the address
//! space as they are; what comes out can be compiled anywhere.

use std::{collections::VecDeque, sync::Arc};

use iced_x86::FlowControl;
use memory::Mmu;
use semantics::{Insn, Operand};
use translator::{
    CodeBlock,
    region::{Region, RegionBlock, is_foreseeable},
};
use x86::{CpuState, GuestPhys};

use crate::{
    block::{Block, BlockKey, Extent},
    block_cache::CodeCache,
    finder,
    hash::Set,
    persistent::{Member, Translations},
};

/// How large a region is, at most.
#[derive(Clone, Copy)]
pub(crate) struct Most {
    blocks: usize,
    /// Guest instructions; the first block counts whatever its size.
    instructions: usize,
}

impl Most {
    /// By templates, and where only Cranelift translates at all.
    pub const WHOLE: Self = Self { blocks: 32, instructions: 256 };
    /// By Cranelift for an instruction that has no template. What is around it has some, and that code is as good and made a hundred times as fast.
    pub const AROUND: Self = Self { blocks: 4, instructions: 32 };
}

/// A region and the blocks that it is made of.
pub(crate) struct Formed {
    /// The first is its head. All that its code is made from lies in them; a block that goes on behind branches has several of the region's.
    pub members: Vec<Arc<Block>>,
    pub region: Region,
    /// Of each of the region's blocks, in its order.
    pub bytes: Vec<Vec<u8>>,
}

/// A block of a region that is being formed: that at `rip`, which lies in `block`.
struct Part {
    block: Arc<Block>,
    rip: u64,
}

/// Forms a region that is entered at `head`, which is about to run, of blocks that have run `warm` times. `None` if
/// the head has died.
pub(crate) fn form(
    head: &Arc<Block>,
    warm: u32,
    most: Most,
    cache: &CodeCache,
    state: &CpuState,
    mmu: &Mmu,
) -> Option<Formed> {
    let mut formed =
        Formed { members: Vec::new(), region: Region::new(Vec::new(), state), bytes: Vec::new() };
    let mut seen = Set::default();
    seen.insert(head.key.rip);
    let mut waiting = VecDeque::from([Part { block: Arc::clone(head), rip: head.key.rip }]);
    let mut instructions = 0;
    while let Some(part) = waiting.pop_front() {
        let is_head = formed.members.is_empty();
        let Some((decoded, bytes)) = region_block(&part, state, mmu) else {
            if is_head {
                return None;
            }
            continue;
        };
        let count = decoded.guest.insns.len();
        if !is_head && (instructions + count > most.instructions || formed.region.blocks.len() == most.blocks)
        {
            continue;
        }
        instructions += count;
        let end = part.rip.wrapping_add(bytes.len() as u64);
        for rip in successors(decoded.guest.insns.last()).chain(decoded.foreseen) {
            if !seen.insert(rip) {
                continue;
            }
            match find(head, rip, cache, state, mmu) {
                Some(block) if cache.executions(&block) >= warm => waiting.push_back(Part { block, rip }),
                // Behind a branch nothing counts.
                _ if rip == end && part.block.reaches(rip) => {
                    waiting.push_back(Part { block: Arc::clone(&part.block), rip });
                }
                _ => {}
            }
        }
        formed.region.blocks.push(decoded);
        if !formed.members.iter().any(|member| Arc::ptr_eq(member, &part.block)) {
            formed.members.push(part.block);
        }
        formed.bytes.push(bytes);
    }
    formed.region = Region::new(formed.region.blocks, state);
    Some(formed)
}

/// `None` if the block has died.
fn region_block(Part { block, rip }: &Part, state: &CpuState, mmu: &Mmu) -> Option<(RegionBlock, Vec<u8>)> {
    let (guest, bytes) = finder::decode_within(block, *rip, mmu)?;
    let addend = addend(mmu, block.key.first, rip & x86::PAGE_MASK)?;
    let last = guest.insns.last().filter(|last| is_foreseeable(last));
    let foreseen = last.map(|last| state.last_targets[CpuState::target_index(last.rip)]);
    Some((RegionBlock::new(guest, &bytes, addend, second_addend(block, mmu)?, foreseen), bytes))
}

/// The blocks of a region that is entered at `head`, if an earlier run has kept it and all are there; then `code` is the region's.
pub(crate) fn kept(
    head: &Arc<Block>,
    translations: &Translations,
    code: &mut CodeBlock,
    cache: &CodeCache,
    state: &CpuState,
    mmu: &Mmu,
) -> Option<Vec<Arc<Block>>> {
    let blocks = |members: &[Member]| {
        let (mut bytes, mut blocks) = (Vec::new(), vec![Arc::clone(head)]);
        for member in members {
            let has = |block: &&Arc<Block>| block.end_at(member.rip, member.bytes) == Some(member.end);
            let block = match blocks.iter().find(has) {
                Some(block) => Arc::clone(block),
                None => find(head, member.rip, cache, state, mmu)?,
            };
            if block.is_dead() || !has(&&block) {
                return None;
            }
            let start = member.rip.wrapping_sub(block.key.rip) as usize;
            bytes.extend_from_slice(&finder::bytes_of(&block, mmu)[start..][..member.bytes.into()]);
            if !blocks.iter().any(|other| Arc::ptr_eq(other, &block)) {
                blocks.push(block);
            }
        }
        Some((bytes, blocks))
    };
    let addend_of = |page: u64, blocks: &Vec<Arc<Block>>| {
        let block = blocks.iter().find(|block| block.key.rip & x86::PAGE_MASK == page)?;
        addend(mmu, block.key.first, page)
    };
    translations.find_region(head.key.rip, head.key.mode, code, blocks, addend_of)
}

/// Where control can go directly after a block.
fn successors(last: Option<&Insn>) -> impl Iterator<Item = u64> {
    let (near, next) = match last {
        Some(last) => {
            let near = (last.operand(0) == Operand::Near).then_some(last.immediate);
            let flow = last.code.flow_control();
            let goes_on = matches!(
                flow,
                FlowControl::Next
                    | FlowControl::ConditionalBranch
                    | FlowControl::Call
                    | FlowControl::IndirectCall
            );
            (near, goes_on.then(|| last.next_rip()))
        }
        None => (None, None),
    };
    next.into_iter().chain(near)
}

/// The living block at `rip`, in the mode and address space of `head`.
fn find(head: &Block, rip: u64, cache: &CodeCache, state: &CpuState, mmu: &Mmu) -> Option<Arc<Block>> {
    let first = if (rip ^ head.key.rip) & x86::PAGE_MASK == 0 {
        GuestPhys(head.key.first.page().0 | rip & !x86::PAGE_MASK)
    } else {
        // Rights are checked where control goes there: the guard wants a TLB entry that allows fetches.
        mmu.look_up(state, state.linear_rip(rip))?
    };
    let key = BlockKey { first, rip, mode: head.key.mode, extent: Extent::Full };
    cache.find(&key)
}

/// [`RegionBlock::second`] of a block; `None` if that page is no RAM.
pub(crate) fn second_addend(block: &Block, mmu: &Mmu) -> Option<Option<u64>> {
    let Some(second) = block.second else { return Some(None) };
    let next = translator::region::next_page(block.key.rip, block.key.mode);
    addend(mmu, second, next).map(Some)
}

/// What the TLB would add to an address in a linear page that is mapped to where `first` lies.
pub(crate) fn addend(mmu: &Mmu, first: GuestPhys, linear_page: u64) -> Option<u64> {
    mmu.ram().host_page(first).map(|host| (host as u64).wrapping_sub(linear_page))
}
