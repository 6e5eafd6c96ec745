//! From an instruction pointer to a block: fetch, look up, decode.
//!
//! [`Finder::find`] asks the TLB whether CS:RIP may be fetched and from where, and the vCPU's [`Lookup`] for the block
//! there. What either does not know is walked to, which gives the physical address that the key needs, asked of the shared
//! [`CodeCache`], and decoded if that does not know it either.

use std::sync::Arc;

use interpreter::DecodedBlock;
use memory::Mmu;
use semantics::{
    Insn,
    decode::{self, BlockEnd, DecodeError, GuestBlock, MAX_BLOCK, MAX_LENGTH},
};
use translator::CodeBlock;
use x86::{CpuState, Exception, GuestPhys, GuestVirt, Mode, PAGE_MASK, PAGE_SIZE};

use crate::{
    block::{Block, BlockId, BlockKey, Extent},
    block_cache::{CodeCache, MAX_BLOCKS},
    dispatch::Interruption,
    hash::Set,
    lookup::{Lookup, Place, Tag},
    persistent::{Found, Translations},
    region,
    tier::Policy,
};

/// Finds blocks for one vCPU.
pub struct Finder {
    lookup: Lookup,
    cache: Arc<CodeCache>,
    /// Instructions that a block has at most.
    longest: usize,
    /// Whose blocks go on behind branches, by their mode: those that are translated by templates at once.
    extends: Option<Policy>,
    fresh: Fresh,
    saved: Option<Saved>,
}

/// Translations of earlier runs.
struct Saved {
    translations: Arc<Translations>,
    policy: Policy,
    /// What was found last; what it allocated serves the next one.
    code: CodeBlock,
    /// Pages, at their linear places and in their modes, all of whose blocks were looked for.
    pages: Set<(GuestPhys, u64, Mode)>,
}

/// Instructions of blocks, which do not keep theirs: those of the last one that was made, and of those that the
/// interpreter ran last.
pub(crate) struct Fresh {
    last: Option<(BlockId, GuestBlock)>,
    /// A power of two, by the number's low bits. Numbers are never used twice, so what is here for a number is right as
    /// long as the block lives.
    ready: Box<[Option<(BlockId, DecodedBlock)>]>,
}

/// Blocks that are kept ready for the interpreter where what is warm is translated. Debian's boot interprets 84,000, a few
/// times each: kept for good they took 20 MiB.
pub const READY: usize = 1 << 12;

/// The same where everything is interpreted: with as few as above, the boot took a third longer.
pub const READY_FOR_GOOD: usize = 1 << 17;

impl Fresh {
    fn new(ready: usize) -> Self {
        Self { last: None, ready: (0..ready).map(|_| None).collect() }
    }

    /// Those of `block`, decoded again if it is not the last one that was made. `None` if it has died.
    pub fn of(&mut self, block: &Block, mmu: &Mmu) -> Option<GuestBlock> {
        match self.last.take() {
            Some((id, guest)) if id == block.id && !block.is_dead() => Some(guest),
            _ => decode_again(block, mmu),
        }
    }

    /// Gives them back, for whoever wants them next.
    pub fn keep(&mut self, block: &Block, guest: GuestBlock) {
        self.last = Some((block.id, guest));
    }

    /// The same, ready for the interpreter. Nothing if it has died.
    #[inline]
    pub fn decoded(&mut self, block: &Block, mmu: &Mmu) -> &DecodedBlock {
        let place = block.id.0 as usize & (self.ready.len() - 1);
        if self.ready[place].as_ref().is_none_or(|(id, _)| *id != block.id) {
            self.decode(block, place, mmu);
        }
        match &self.ready[place] {
            Some((_, decoded)) => decoded,
            None => unreachable!("it was put there"),
        }
    }

    #[cold]
    fn decode(&mut self, block: &Block, place: usize, mmu: &Mmu) {
        let nothing =
            GuestBlock { rip: block.key.rip, mode: block.key.mode, insns: Vec::new(), end: BlockEnd::Length };
        let guest = self.of(block, mmu).unwrap_or(nothing);
        self.ready[place] = Some((block.id, DecodedBlock::new(&guest)));
    }
}

impl Finder {
    /// Over a shared cache. Blocks end after `longest` instructions (at least one); `ready` are kept for the interpreter.
    pub fn new(cache: Arc<CodeCache>, longest: usize, ready: usize) -> Self {
        Self {
            lookup: Lookup::new(),
            cache,
            longest: longest.max(1),
            extends: None,
            fresh: Fresh::new(ready.next_power_of_two()),
            saved: None,
        }
    }

    /// Blocks that are translated before they run go on behind branches.
    pub fn extend_blocks(&mut self, policy: Policy) {
        self.extends = Some(policy);
    }

    /// Has it look there before it decodes. Blocks have the length that they have by default.
    pub fn use_translations(&mut self, translations: Arc<Translations>, policy: Policy) {
        self.saved = Some(Saved { translations, policy, code: CodeBlock::default(), pages: Set::default() });
    }

    /// The block at the state's CS:RIP, decoded if need be. The exception is the fetch's or the decoder's.
    #[inline]
    pub fn find(
        &mut self,
        state: &CpuState,
        mmu: &mut Mmu,
        extent: Extent,
    ) -> Result<(&Arc<Block>, &mut Fresh), Interruption> {
        let linear = state.linear_rip(state.rip);
        check_limit(state, state.rip)?;
        // A page that the TLB does not know is walked to, which is what `fill` begins with.
        let known = mmu
            .fetch_addend(linear)
            .and_then(|addend| self.lookup.find(&Tag::new(state, linear, addend, extent)))
            .filter(|&place| stands(state, mmu, linear, self.lookup.block(place)));
        let place = match known {
            Some(place) => place,
            None => self.fill(state, mmu, linear, extent)?,
        };
        Ok((self.lookup.block(place), &mut self.fresh))
    }

    #[cold]
    fn fill(
        &mut self,
        state: &CpuState,
        mmu: &mut Mmu,
        linear: GuestVirt,
        extent: Extent,
    ) -> Result<Place, Interruption> {
        let first = fetch(state, mmu, linear, state.rip)?;
        let key = BlockKey { first, rip: state.rip, mode: state.mode, extent };
        let block = self.load(state, mmu, linear, key)?;
        // The fetch has just filled the entry; an instruction that crosses pages may have taken it for its second one.
        if mmu.fetch_addend(linear).is_none() {
            fetch(state, mmu, linear, state.rip)?;
        }
        let Some(addend) = mmu.fetch_addend(linear) else {
            return Err(Interruption::failed(format!("the TLB lost {:#x} while it was fetched", linear.0)));
        };
        Ok(self.lookup.insert(Tag::new(state, linear, addend, extent), block))
    }

    /// Finds a block in the shared cache, or decodes it and enters it there.
    fn load(
        &mut self,
        state: &CpuState,
        mmu: &mut Mmu,
        linear: GuestVirt,
        key: BlockKey,
    ) -> Result<Arc<Block>, Exception> {
        let cache = &self.cache;
        if let Some(block) = cache.find(&key) {
            if stands(state, mmu, linear, &block) {
                return Ok(block);
            }
            cache.remove(&block);
        }
        if cache.len() >= MAX_BLOCKS {
            cache.clear();
        }
        if let Some(saved) = &mut self.saved
            && key.extent == Extent::Full
            && let Some(block) = saved.restore(cache, state, mmu, linear, key)
        {
            return Ok(block);
        }
        // Watch first, read then: a write in between is noticed.
        watch(cache, mmu, key.first);
        let mut buffer = [0; MAX_BLOCK * MAX_LENGTH];
        let bytes = read(state, mmu, key.first, &mut buffer);
        let mut decoded = match key.extent {
            Extent::Full if self.extends.is_some_and(|policy| policy.translates_at_once(key.mode)) => {
                decode::decode_extended(bytes, key.rip, key.mode, |rip| {
                    let first = key.first.offset(rip.wrapping_sub(key.rip));
                    !cache.has(&BlockKey { first, rip, ..key })
                })
            }
            Extent::Full => decode::decode_block(bytes, key.rip, key.mode),
            Extent::Single => {
                let insns = decode::decode_one(bytes, key.rip, key.mode).into_iter().collect();
                GuestBlock { rip: key.rip, mode: key.mode, insns, end: BlockEnd::Length }
            }
        };
        if decoded.insns.len() > self.longest {
            decoded.insns.truncate(self.longest);
            decoded.end = BlockEnd::Length;
        }
        let mut second = None;
        if decoded.insns.is_empty() {
            let insn = match decode::decode_one(bytes, key.rip, key.mode) {
                Err(DecodeError::Truncated) => {
                    let (page, insn) = crossing(cache, state, mmu, linear, key, bytes)?;
                    second = Some(page);
                    insn
                }
                Err(error) => return Err(error.exception().unwrap_or(Exception::UD)),
                // Not reached: the block would have had that instruction.
                Ok(insn) => insn,
            };
            decoded = GuestBlock { insns: vec![insn], end: BlockEnd::Length, ..decoded };
        }
        // At most [`MAX_BLOCK`] times [`MAX_LENGTH`].
        let block = cache.insert(key, decoded.length() as u16, second, decoded.end);
        self.fresh.keep(&block, decoded);
        Ok(block)
    }

    /// Instructions of blocks.
    pub(crate) fn fresh(&mut self) -> &mut Fresh {
        &mut self.fresh
    }

    /// Forgets which blocks this vCPU has met. Their instructions may stay: they are found by number.
    pub fn clear(&mut self) {
        self.lookup.clear();
    }
}

impl Saved {
    /// A block with its code, if an earlier run has kept that.
    fn restore(
        &mut self,
        cache: &CodeCache,
        state: &CpuState,
        mmu: &mut Mmu,
        linear: GuestVirt,
        key: BlockKey,
    ) -> Option<Arc<Block>> {
        // As for decoding: watch first, read then.
        watch(cache, mmu, key.first);
        let in_page = (PAGE_SIZE - key.first.page_offset()) as usize;
        let read = |bytes: &mut [u8], crosses: bool| {
            if crosses != (bytes.len() > in_page) {
                return None;
            }
            let (first, rest) = bytes.split_at_mut(in_page.min(bytes.len()));
            mmu.ram().read(key.first, first).ok()?;
            if !crosses {
                return Some((0, None));
            }
            let (next, rip) = advance(state, linear, in_page as u64);
            let second = fetch(state, mmu, next, rip).ok()?;
            watch(cache, mmu, second);
            mmu.ram().read(second, rest).ok()?;
            Some((region::addend(mmu, second, next.0)?, Some(second)))
        };
        let (found, second) = self.translations.find(key.rip, key.mode, &mut self.code, read)?;
        let block = cache.insert(key, found.bytes, second, found.end);
        // If code memory is full, it is translated as if it had not been found, which makes room.
        cache.install(core::slice::from_ref(&block), &self.code, self.policy.countdown(found.bytes));
        if self.pages.insert((key.first.page(), key.rip & PAGE_MASK, key.mode)) {
            self.restore_page(cache, mmu, key, found, Arc::clone(&block));
        }
        Some(block)
    }

    /// The other blocks of its page, too, and linked to each other: they will be wanted.
    fn restore_page(&mut self, cache: &CodeCache, mmu: &Mmu, key: BlockKey, found: Found, block: Arc<Block>) {
        let key_of = |rip: u64| {
            let first = GuestPhys(key.first.page().0 | rip & !PAGE_MASK);
            BlockKey { first, rip, ..key }
        };
        let (mut blocks, mut regions) = (vec![block], Vec::new());
        self.translations.find_page(
            found,
            &mut self.code,
            |rip| cache.find(&key_of(rip)).is_none(),
            |rip, bytes| {
                let in_page = bytes.len() as u64 <= PAGE_SIZE - (rip & !PAGE_MASK);
                in_page.then(|| mmu.ram().read(key_of(rip).first, bytes).ok())?
            },
            |found, code| {
                let block = cache.insert(key_of(found.rip), found.bytes, None, found.end);
                let countdown = self.policy.countdown(found.bytes);
                cache.install(core::slice::from_ref(&block), code, countdown);
                blocks.push(block);
            },
            |rip| regions.push(rip),
        );
        for rip in regions {
            if let Some(head) = cache.find(&key_of(rip)) {
                cache.recount(&head, self.policy.kept_region_at());
            }
        }
        cache.link_within_page(&blocks);
    }
}

/// Whether a block is still what its key says: an instruction that crosses into another page needs that page where it
/// was when it was decoded.
#[inline]
fn stands(state: &CpuState, mmu: &mut Mmu, linear: GuestVirt, block: &Block) -> bool {
    // Whether it crosses is known without a look at where the rest of the block is.
    let crosses = block.key.first.page_offset() + u64::from(block.bytes) > PAGE_SIZE;
    !crosses
        || block.second.is_none_or(|second| {
            let (linear, rip) = advance(state, linear, PAGE_SIZE - linear.page_offset());
            fetch(state, mmu, linear, rip) == Ok(second)
        })
}

/// #GP(0) beyond the limit of CS.
#[inline]
fn check_limit(state: &CpuState, rip: u64) -> Result<(), Exception> {
    if !state.mode.is_64bit() && rip > u64::from(state.segments[1].limit) {
        return Err(Exception::GP0);
    }
    Ok(())
}

/// Translates an instruction fetch at an offset within CS.
#[inline]
fn fetch(state: &CpuState, mmu: &mut Mmu, linear: GuestVirt, rip: u64) -> Result<GuestPhys, Exception> {
    check_limit(state, rip)?;
    match mmu.fetch(state, linear) {
        Ok(physical) => Ok(physical),
        Err(memory::Stop::Exception(exception)) => Err(exception),
        // The contract of `fetch` excludes it; code that nothing answers can't be run.
        Err(memory::Stop::Board) => Err(Exception::GP0),
    }
}

/// Linear address and offset of the byte `bytes` further on.
fn advance(state: &CpuState, linear: GuestVirt, bytes: u64) -> (GuestVirt, u64) {
    if state.mode.is_64bit() {
        (linear.offset(bytes), state.rip.wrapping_add(bytes))
    } else {
        (GuestVirt(linear.offset(bytes).0 & 0xffff_ffff), state.rip.wrapping_add(bytes) & 0xffff_ffff)
    }
}

/// An instruction that goes on in the next page, and where that is; or the #GP(0) of one beyond CS's limit.
fn crossing(
    cache: &CodeCache,
    state: &CpuState,
    mmu: &mut Mmu,
    linear: GuestVirt,
    key: BlockKey,
    bytes: &[u8],
) -> Result<(GuestPhys, Insn), Exception> {
    let in_page = PAGE_SIZE - linear.page_offset();
    let (next_linear, next_rip) = advance(state, linear, in_page);
    // Also the #GP(0) of an instruction that reaches over the limit: then the limit lies before `next_rip`.
    let second = fetch(state, mmu, next_linear, next_rip)?;
    watch(cache, mmu, second);
    let mut buffer = [0; 2 * MAX_LENGTH];
    let length = bytes.len().min(MAX_LENGTH);
    buffer[..length].copy_from_slice(&bytes[..length]);
    let mut rest = [0; MAX_LENGTH];
    let rest = read_at(state, mmu, second, next_rip, &mut rest);
    buffer[length..length + rest.len()].copy_from_slice(rest);
    match decode::decode_one(&buffer[..length + rest.len()], key.rip, key.mode) {
        Ok(insn) => Ok((second, insn)),
        // Cut by the limit.
        Err(DecodeError::Truncated) => Err(Exception::GP0),
        Err(error) => Err(error.exception().unwrap_or(Exception::UD)),
    }
}

fn watch(cache: &CodeCache, mmu: &mut Mmu, address: GuestPhys) {
    if cache.watch_page(address.page()) {
        mmu.protect_page(address.page());
    }
}

/// The bytes from `first` on, as far as page, CS limit and buffer go.
fn read<'a>(state: &CpuState, mmu: &Mmu, first: GuestPhys, buffer: &'a mut [u8]) -> &'a [u8] {
    read_at(state, mmu, first, state.rip, buffer)
}

fn read_at<'a>(state: &CpuState, mmu: &Mmu, first: GuestPhys, rip: u64, buffer: &'a mut [u8]) -> &'a [u8] {
    let mut length = (PAGE_SIZE - first.page_offset()).min(buffer.len() as u64);
    if !state.mode.is_64bit() {
        length = length.min(u64::from(state.segments[1].limit).saturating_sub(rip).saturating_add(1));
    }
    let bytes = &mut buffer[..length as usize];
    // The fetch found RAM there. If it were not so, zeros decode to something harmless.
    if mmu.ram().read(first, bytes).is_err() {
        bytes.fill(0);
    }
    bytes
}

/// Decodes a living block again, for the translator, behind its branches too. `None` if it has died.
pub fn decode_again(block: &Block, mmu: &Mmu) -> Option<GuestBlock> {
    decode_from(block, block.key.rip, true, mmu).map(|(guest, _)| guest)
}

/// The same of the part of a block that begins at `rip` and ends at a branch, with its bytes.
pub fn decode_within(block: &Block, rip: u64, mmu: &Mmu) -> Option<(GuestBlock, Vec<u8>)> {
    decode_from(block, rip, false, mmu)
}

fn decode_from(block: &Block, rip: u64, goes_on: bool, mmu: &Mmu) -> Option<(GuestBlock, Vec<u8>)> {
    let mut bytes = bytes_of(block, mmu).split_off(rip.wrapping_sub(block.key.rip) as usize);
    let mode: Mode = block.key.mode;
    let mut decoded = if block.second.is_some() {
        let insns = decode::decode_one(&bytes, rip, mode).into_iter().collect();
        GuestBlock { rip, mode, insns, end: block.end }
    } else {
        decode::decode_extended(&bytes, rip, mode, |_| goes_on)
    };
    let length = decoded.length() as usize;
    if length == bytes.len() {
        // The bytes end where the block does, which is all that this decoding knows.
        decoded.end = block.end;
    }
    bytes.truncate(length);
    (!block.is_dead() && !decoded.insns.is_empty()).then_some((decoded, bytes))
}

/// The bytes of a block as they are in memory now.
pub fn bytes_of(block: &Block, mmu: &Mmu) -> Vec<u8> {
    let mut bytes = vec![0; block.bytes as usize];
    read_block(block, mmu, &mut bytes);
    bytes
}

/// The same, to where there is room for as many.
pub fn read_block(block: &Block, mmu: &Mmu, bytes: &mut [u8]) {
    let in_page = (PAGE_SIZE - block.key.first.page_offset()).min(block.bytes.into()) as usize;
    let (first, rest) = bytes.split_at_mut(in_page);
    // Both pages were RAM when they were decoded, and RAM does not go away.
    let _ = mmu.ram().read(block.key.first, first);
    if let Some(second) = block.second {
        let _ = mmu.ram().read(second, rest);
    }
}
