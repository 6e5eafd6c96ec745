//! A guest block as the runtime keeps it.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use semantics::decode::BlockEnd;
use x86::{GuestPhys, Mode};

/// What identifies a block: the same bytes, run at the same address in the same mode, mean the same.
///
/// The rip is part of it because translations contain addresses; so code that is mapped at several linear
/// addresses is translated once for each.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockKey {
    /// Where the first byte lies.
    pub first: GuestPhys,
    /// Offset within CS of the first byte.
    pub rip: u64,
    /// Mode bits.
    pub mode: Mode,
    /// How much is in the block.
    pub extent: Extent,
}

/// How much a block holds.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Extent {
    /// As much as fits: up to a terminal, but perhaps for a branch that it goes on behind ([`semantics::decode::decode_extended`]), or the page's end.
    Full,
    /// One instruction, to be stepped: it was abandoned by compiled code, or traps are armed. Never compiled.
    Single,
}

/// Number of a block, never used twice.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct BlockId(pub u64);

/// A guest block. Immutable but for its counters and its life: it is made by [`crate::CodeCache::insert`] and
/// dies when its bytes are overwritten; whoever still holds it then must not start it again.
///
/// It does not keep its instructions, which are in guest memory: there are hundreds of thousands of blocks, and most are
/// translated after a few executions.
#[repr(C)]
pub struct Block {
    // What every search and every run looks at comes first: 64 bytes with the counts of references before it.
    executions: AtomicU32,
    /// Executions before which there is no point in asking the tier policy again.
    ask_at: AtomicU32,
    code: AtomicU64,
    /// Its key.
    pub key: BlockKey,
    /// Guest bytes from `key.first` on. Those beyond the page's end lie in `second`.
    pub bytes: u16,
    dead: AtomicBool,
    /// Why it ends.
    pub end: BlockEnd,
    /// Where [`crate::links::Links`] has its code; theirs.
    pub(crate) installed: AtomicU32,
    /// The page that the one instruction of this block reaches into, if it crosses a page's end. Such a block
    /// is run only after a look at where its second page is mapped now, which compiled code takes itself.
    pub second: Option<GuestPhys>,
    /// How often translated code of its page had been overwritten when it was made.
    pub changes: u32,
    /// Its number.
    pub id: BlockId,
}

const _: () = assert!(size_of::<[usize; 2]>() + std::mem::offset_of!(Block, second) == 64);

/// [`Block::installed`] of a block without code.
pub(crate) const NOT_INSTALLED: u32 = u32::MAX;

impl Block {
    pub(crate) fn new(
        id: BlockId,
        key: BlockKey,
        bytes: u16,
        second: Option<GuestPhys>,
        end: BlockEnd,
        changes: u32,
    ) -> Self {
        Self {
            id,
            key,
            bytes,
            second,
            end,
            changes,
            installed: AtomicU32::new(NOT_INSTALLED),
            executions: AtomicU32::new(0),
            ask_at: AtomicU32::new(0),
            code: AtomicU64::new(0),
            dead: AtomicBool::new(false),
        }
    }

    /// Address of its compiled code, if it is alive and installed.
    #[inline]
    pub fn code(&self) -> Option<u64> {
        match self.code.load(Ordering::Acquire) {
            0 => None,
            code => Some(code),
        }
    }

    /// Whether its bytes have changed.
    #[inline]
    pub fn is_dead(&self) -> bool {
        self.dead.load(Ordering::Acquire)
    }

    /// Counts an interpreted execution that is about to begin. Gives the number so far, this one included, if the
    /// tier policy wants to know.
    #[inline]
    pub fn count(&self) -> Option<u32> {
        // Not an atomic increment: losing a count among vCPUs is harmless and this is the interpreter's hot path.
        let executions = self.executions.load(Ordering::Relaxed).saturating_add(1);
        self.executions.store(executions, Ordering::Relaxed);
        (executions >= self.ask_at.load(Ordering::Relaxed)).then_some(executions)
    }

    /// Executions so far, but for those that its code still counts ([`crate::CodeCache::executions`]).
    pub(crate) fn executions(&self) -> u32 {
        self.executions.load(Ordering::Relaxed)
    }

    /// Counts executions by code that counted them itself.
    pub(crate) fn add_executions(&self, executions: u32) {
        self.executions.store(self.executions().saturating_add(executions), Ordering::Relaxed);
    }

    /// The policy is not to be asked before that many executions.
    pub fn ask_at(&self, executions: u32) {
        self.ask_at.store(executions, Ordering::Relaxed);
    }

    /// The translator refuses it: it is interpreted for good.
    pub fn give_up(&self) {
        self.ask_at(u32::MAX);
    }

    /// Whether a byte of `first .. first + length` (within one page) belongs to it.
    pub fn overlaps(&self, first: GuestPhys, length: u64) -> bool {
        let in_page = PAGE - self.key.first.page_offset();
        let meets = |start: u64, bytes: u64| first.0 < start + bytes && start < first.0 + length;
        let bytes = u64::from(self.bytes);
        meets(self.key.first.0, bytes.min(in_page))
            || self.second.is_some_and(|page| meets(page.0, bytes.saturating_sub(in_page)))
    }

    /// Whether it has an instruction at `rip`, given that one ends there that it has.
    pub fn reaches(&self, rip: u64) -> bool {
        rip.wrapping_sub(self.key.rip) < self.bytes.into()
    }

    /// Why a part of it ends that begins at `rip` and has so many bytes; `None` if it has no such part.
    pub fn end_at(&self, rip: u64, bytes: u16) -> Option<BlockEnd> {
        let end = rip.wrapping_sub(self.key.rip).checked_add(bytes.into())?;
        match end.cmp(&self.bytes.into()) {
            core::cmp::Ordering::Less => Some(BlockEnd::Terminal),
            core::cmp::Ordering::Equal => Some(self.end),
            core::cmp::Ordering::Greater => None,
        }
    }

    pub(crate) fn set_code(&self, code: u64) {
        self.code.store(code, Ordering::Release);
    }

    pub(crate) fn cool_down(&self) {
        self.executions.store(0, Ordering::Relaxed);
        self.ask_at.store(0, Ordering::Relaxed);
    }

    pub(crate) fn die(&self) {
        self.dead.store(true, Ordering::Release);
    }
}

const PAGE: u64 = x86::PAGE_SIZE;
