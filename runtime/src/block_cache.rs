//! The block cache: every guest block, by [`BlockKey`], and the compiled code of those that have some.
//!
//! # Who owns what
//!
//! [`CodeCache`] is shared by all vCPUs of a machine (today there is one); everything in it is behind one lock, which
//! is a leaf: nobody calls memory, the monitor or the translator while holding it. Each vCPU owns its [`crate::lookup::Lookup`]
//! (hot lookups without the lock) and its registered [`JumpCache`], which compiled code reads. [`Block`]s are reference-counted: in
//! [page records](crate::page_record), in lookups.
//!
//! # Life of a block
//!
//! 1. The vCPU calls [`CodeCache::watch_page`], and if the page was not marked, takes write permission out of the
//!    TLBs ([`memory::Mmu::protect_page`]). Only then does it read and decode the bytes: later writes are noticed.
//! 2. [`CodeCache::insert`] enters it in the record of its page (both pages, if it crosses).
//! 3. It is translated ([`CodeCache::install`]) and others chain to it ([`CodeCache::link`]), or the interpreter runs it.
//! 4. It dies when a byte of it is about to be overwritten ([`crate::invalidate`]): `dead` is set, it leaves the page
//!    records, all slots that lead to it get the stub back, and jump caches forget it. Lookups see `dead`.
//!    The code bytes stay where they are: frames that are in it finish undisturbed.
//!
//! A write to a page with blocks never happens in compiled code: it has no TLB entry, so the frame is abandoned and
//! the interpreter does it. So the writer's own compiled block is never running when it dies, and
//! sees the new bytes from its next instruction on.
//!
//! # Eviction
//!
//! When code memory is full, [`CodeCache::evict`] takes the code from every block (they stay, and start to
//! count anew) and resets it. When there are too many blocks, [`CodeCache::clear`] drops them all. Both need that no
//! compiled code is on any host stack: the one vCPU calls them from its dispatcher. More vCPUs will need a
//! rendezvous here; and so will relinking a guarded exit that is linked, because its two words change one after the other, and
//! any change of a jump in code that another may be running.
//! [`CodeCache::generation`] tells those who keep slot addresses across a call whether they still mean anything.

use std::{
    mem::offset_of,
    ops::Range,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use memory::CodePages;
use semantics::decode::BlockEnd;
use translator::{CodeBlock, abi::ChainSlot};
use x86::GuestPhys;

use crate::{
    block::{Block, BlockId, BlockKey},
    code_memory::CodeMemory,
    enter,
    hash::Map,
    jump_cache::JumpCache,
    links::{Installation, Links},
    page_record::PageRecord,
};

/// More blocks than this are not kept: some 100 MB of host memory without their code, by their sizes, if a guest
/// runs that much.
pub const MAX_BLOCKS: usize = 1 << 19;

/// See the module's description.
pub struct CodeCache {
    pages: Arc<CodePages>,
    /// Code was written since [`CodeCache::take_written`].
    written: Arc<AtomicBool>,
    generation: AtomicU64,
    /// Where code memory lies, as compiled code sees it.
    code: Range<u64>,
    inner: Mutex<Inner>,
}

/// What the lock guards.
pub(crate) struct Inner {
    pub(crate) pages: Map<GuestPhys, PageRecord>,
    /// Living blocks in them.
    pub(crate) blocks: usize,
    pub(crate) links: Links,
    pub(crate) jump_caches: Vec<Arc<JumpCache>>,
    next_id: u64,
    pub(crate) counters: Counters,
}

/// Counters of a cache.
#[derive(Clone, Copy, Default, Debug)]
pub struct Counters {
    /// Blocks decoded.
    pub blocks: u64,
    /// Blocks compiled, by any tier.
    pub compiled: u64,
    /// Of those, by templates.
    pub templates: u64,
    /// Host code bytes produced.
    pub code_bytes: u64,
    /// Blocks killed by writes.
    pub invalidated: u64,
    /// Times that everything compiled was dropped.
    pub evictions: u64,
    /// Slots linked.
    pub links: u64,
}

/// The living block of a key.
fn find<'a>(pages: &'a Map<GuestPhys, PageRecord>, key: &BlockKey) -> Option<&'a Arc<Block>> {
    pages.get(&key.first.page())?.find(key)
}

impl CodeCache {
    /// An empty cache over a code memory.
    pub fn new(pages: Arc<CodePages>, memory: CodeMemory) -> Arc<Self> {
        let code = memory.range();
        let stub = enter::unlinked as *const () as u64;
        let written = Arc::new(AtomicBool::new(false));
        Arc::new(Self {
            pages,
            written: Arc::clone(&written),
            generation: AtomicU64::new(0),
            code,
            inner: Mutex::new(Inner {
                pages: Map::default(),
                blocks: 0,
                links: Links::new(memory, stub, written),
                jump_caches: Vec::new(),
                next_id: 0,
                counters: Counters::default(),
            }),
        })
    }

    /// Makes a vCPU's jump cache known, so that dead blocks are taken out of it.
    pub fn register(&self, jump_cache: Arc<JumpCache>) {
        self.lock().jump_caches.push(jump_cache);
    }

    /// Marks a page as holding code. True if it was not: then its writes must be made slow
    /// ([`memory::Mmu::protect_page`]) before it is decoded.
    pub fn watch_page(&self, page: GuestPhys) -> bool {
        self.pages.mark(page)
    }

    /// The living block of that key.
    pub fn find(&self, key: &BlockKey) -> Option<Arc<Block>> {
        find(&self.lock().pages, key).cloned()
    }

    /// Whether there is one.
    pub fn has(&self, key: &BlockKey) -> bool {
        find(&self.lock().pages, key).is_some()
    }

    /// Enters a block of that many bytes. Its pages must be watched since before they were read.
    pub fn insert(&self, key: BlockKey, bytes: u16, second: Option<GuestPhys>, end: BlockEnd) -> Arc<Block> {
        let inner = &mut *self.lock();
        let id = BlockId(inner.next_id);
        inner.next_id += 1;
        inner.counters.blocks += 1;
        let record = inner.pages.entry(key.first.page()).or_default();
        let block = Arc::new(Block::new(id, key, bytes, second, end, record.invalidations));
        let old = record.insert(Arc::clone(&block));
        inner.blocks += 1;
        if let Some(second) = second {
            inner.pages.entry(second).or_default().reach(Arc::clone(&block), second);
        }
        if let Some(old) = old {
            // Two vCPUs decoded it at the same time; the later one stays.
            inner.blocks -= 1;
            inner.kill(&old);
        }
        block
    }

    /// Drops a block that no longer is what its key says.
    pub fn remove(&self, block: &Arc<Block>) {
        self.lock().kill(block);
    }

    /// Number of blocks that are kept.
    pub fn len(&self) -> usize {
        self.lock().blocks
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Puts the code of a region, entered at the first of its blocks, into code memory. False if that is full:
    /// [`CodeCache::evict`] and try again. If it counts its executions, it counts them down from `countdown`.
    pub fn install(&self, members: &[Arc<Block>], code: &CodeBlock, countdown: u32) -> bool {
        let inner = &mut *self.lock();
        if members.iter().any(|block| block.is_dead()) {
            // The head may be alive and warm: it is asked about again.
            if let Some(head) = members.first() {
                head.cool_down();
            }
            return true;
        }
        let Installation::Done { replaced } = inner.links.install(members, code, countdown) else {
            return false;
        };
        if let (Some(head), Some(replaced)) = (members.first(), replaced) {
            for cache in &inner.jump_caches {
                cache.forget(head.key.rip, replaced);
            }
        }
        inner.counters.compiled += 1;
        inner.counters.templates += u64::from(code.counts);
        inner.counters.code_bytes += code.code.len() as u64;
        true
    }

    /// Executions of a block so far.
    pub fn executions(&self, block: &Block) -> u32 {
        block.executions().saturating_add(self.lock().links.counted(block))
    }

    /// Has the code of a block, if it counts executions, leave after that many more.
    pub fn recount(&self, block: &Block, countdown: u32) {
        self.lock().links.recount(block, countdown);
    }

    /// Guest rip that the slot leads to which compiled code has just left through; `None` if that is none. Takes no
    /// lock: blocks that end before a callout leave so every time.
    #[inline]
    pub fn target(&self, slot: u64) -> Option<u64> {
        let size = size_of::<ChainSlot>() as u64;
        if !self.code.contains(&slot) || !slot.is_multiple_of(8) || self.code.end - slot < size {
            return None;
        }
        let address = slot + offset_of!(ChainSlot, target) as u64;
        // SAFETY: within code memory, which stays mapped and readable as long as the cache; aligned. The runtime
        // writes targets only before compiled code can leave through them.
        Some(unsafe { (address as *const u64).read() })
    }

    /// Chains a slot to a block, if both still stand as they did in `generation`.
    pub fn link(&self, slot: u64, block: &Block, addend: u64, generation: u64) {
        let inner = &mut *self.lock();
        if self.generation() == generation && !block.is_dead() {
            inner.links.link(slot, block, addend);
            inner.counters.links += 1;
        }
    }

    /// Chains the exits of blocks of one page, all of one mode, to each other, as far as they stay in it.
    pub fn link_within_page(&self, blocks: &[Arc<Block>]) {
        let inner = &mut *self.lock();
        let mut exits = Vec::new();
        for block in blocks.iter().filter(|block| !block.is_dead()) {
            exits.clear();
            exits.extend(inner.links.exits_within_page(block));
            for &(slot, rip) in &exits {
                let first = GuestPhys(block.key.first.page().0 | rip & !x86::PAGE_MASK);
                let key = BlockKey { first, rip, ..block.key };
                if let Some(target) = find(&inner.pages, &key) {
                    inner.links.link(slot, target, 0);
                    inner.counters.links += 1;
                }
            }
        }
    }

    /// Whether code was written since this was asked last: then the processor must be made to see it before it runs.
    #[inline]
    pub fn take_written(&self) -> bool {
        self.written.load(Ordering::Relaxed) && self.written.swap(false, Ordering::Relaxed)
    }

    /// What that asks, to be looked at without taking it.
    pub(crate) fn written(&self) -> &Arc<AtomicBool> {
        &self.written
    }

    /// Changes whenever slots lose their meaning.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Takes the code from every block and empties code memory. No compiled code may be on a host stack.
    pub fn evict(&self) {
        self.drop_code(&mut self.lock());
    }

    /// Drops every block. No compiled code may be on a host stack.
    pub fn clear(&self) {
        let inner = &mut *self.lock();
        self.drop_code(inner);
        inner.blocks = 0;
        // Marks stay: the next write to such a page finds no block there and takes the mark away.
        inner.pages.values_mut().for_each(PageRecord::clear);
    }

    /// Unlinks all exits of one block with code, the `choice`-th modulo their number. For stress tests.
    pub fn unlink_some(&self, choice: u64) {
        let inner = &mut *self.lock();
        let blocks = inner.links.blocks().count() as u64;
        let chosen = choice.checked_rem(blocks).and_then(|n| inner.links.blocks().nth(n as usize));
        if let Some(block) = chosen.cloned() {
            inner.links.unlink_exits(&block);
        }
    }

    /// Host bytes of code memory in use.
    pub fn code_memory_used(&self) -> usize {
        self.lock().links.used()
    }

    /// Counters so far.
    pub fn counters(&self) -> Counters {
        self.lock().counters
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic under the lock would have been a bug in here; the tables are consistent between statements that
        // can panic, and the other vCPUs have to stop anyway.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn drop_code(&self, inner: &mut Inner) {
        if inner.links.blocks().next().is_some() {
            inner.counters.evictions += 1;
        }
        inner.links.clear();
        for cache in &inner.jump_caches {
            cache.clear();
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
    }
}
