//! Instrumented code, for profiles: it counts exactly what each guest block does, also inside a region.
//!
//! Off unless asked for ([`crate::Options::instrument`], [`crate::TemplateTranslator::instrumented`]); then the code is what it
//! would be if this module were not there. Code that is instrumented refers to one array of counters
//! ([`crate::RelocationTarget::Counters`]): first a [`BlockCounters`] for each guest block that was lifted, with words for
//! calls in between, at the offsets that [`Instrumentation`] tells. While it runs, `CpuState::profiled` has the address
//! of the [`BlockCounters`] of the block that was entered last.

use core::mem::offset_of;
use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use semantics::helper::Helper;

use crate::abi::{FIRST_HELPER, FIRST_RUNTIME_HELPER, RuntimeHelper, SlowPath};

/// What is counted of one guest block in one piece of code.
#[derive(Default, Debug)]
#[repr(C)]
pub struct BlockCounters {
    /// Times that it was entered, each of which counted all its instructions.
    pub executions: AtomicU64,
    /// Instructions that were counted at the entry and not executed here: from the one that was abandoned on.
    pub undone: AtomicU64,
    /// Left by a direct exit, linked or not.
    pub direct: AtomicU64,
    /// Left by an indirect exit whose target was in the jump cache.
    pub indirect: AtomicU64,
    /// Left after an instruction that may change the mode.
    pub anew: AtomicU64,
    /// Left on a cycle inside a region because something was asked for.
    pub polled: AtomicU64,
    /// Returns to the runtime after it, by [`crate::abi::Leave`]. Counted by the runtime.
    pub leaves: [AtomicU64; LEAVES],
    /// The runtime's number of this code and block.
    pub number: AtomicU64,
}

/// Ways to return to the runtime.
pub const LEAVES: usize = 6;

/// A counter of [`BlockCounters`] that compiled code adds to, by its offset.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u32)]
#[allow(missing_docs, reason = "named after the fields")]
pub(crate) enum Event {
    Executed = offset_of!(BlockCounters, executions) as u32,
    Undone = offset_of!(BlockCounters, undone) as u32,
    Direct = offset_of!(BlockCounters, direct) as u32,
    Indirect = offset_of!(BlockCounters, indirect) as u32,
    Anew = offset_of!(BlockCounters, anew) as u32,
    Polled = offset_of!(BlockCounters, polled) as u32,
}

/// The counters of one piece of code, which adds to them wherever it runs; they live as long as anyone holds them.
#[derive(Default, Debug)]
pub struct Counters(Box<[AtomicU64]>);

impl Counters {
    fn new(bytes: u32) -> Self {
        Self((0..bytes.div_ceil(8)).map(|_| AtomicU64::new(0)).collect())
    }

    /// Where they are.
    pub fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }

    /// The word at an offset.
    pub fn word(&self, offset: u32) -> u64 {
        self.0.get(offset as usize / 8).map_or(0, |word| word.load(Ordering::Relaxed))
    }

    /// The counters of a block, at their offset.
    pub fn block(&self, offset: u32) -> Option<&BlockCounters> {
        let first = offset as usize / 8;
        let words = self.0.get(first..first + size_of::<BlockCounters>() / 8)?;
        // SAFETY: the struct consists of as many `AtomicU64`s, one after the other.
        Some(unsafe { &*words.as_ptr().cast::<BlockCounters>() })
    }
}

/// What instrumented code counts, and where its parts come from.
#[derive(Clone, Default, Debug)]
pub struct Instrumentation {
    /// Bytes of the array of counters; a multiple of 8.
    pub bytes: u32,
    /// Guest blocks in the order in which they were lifted.
    pub blocks: Vec<CountedBlock>,
    /// Calls out of the code.
    pub calls: Vec<CountedCall>,
    /// Which guest instruction host code belongs to, in the order of host code.
    pub sources: Vec<SourceRange>,
    /// The counters themselves.
    pub counters: Arc<Counters>,
    /// CLIF, if that is what the code was made from; instructions begin with their source in hex, `@001f`.
    pub clif: Option<String>,
}

/// A guest block in instrumented code.
#[derive(Clone, Copy, Debug)]
pub struct CountedBlock {
    /// Its number in the region; 0 for a block alone.
    pub number: usize,
    /// Instructions that its entry counts.
    pub instructions: u16,
    /// Number of its first instruction among [`SourceRange::source`]s.
    pub source: u32,
    /// Offset of its [`BlockCounters`].
    pub counters: u32,
}

/// A call, with all places of one block that call the same counted together.
#[derive(Clone, Copy, Debug)]
pub struct CountedCall {
    /// Index in [`Instrumentation::blocks`].
    pub block: usize,
    /// What is called.
    pub callee: Callee,
    /// Offset of its counter.
    pub counter: u32,
}

/// Something that compiled code calls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Callee {
    /// The thunk of a slow path.
    SlowPath(SlowPath),
    /// A function of the runtime.
    Runtime(RuntimeHelper),
    /// A helper of the semantics.
    Helper(Helper),
}

/// Host code that belongs to one guest instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct SourceRange {
    /// Offset of the first byte.
    pub start: u32,
    /// Offset after the last byte.
    pub end: u32,
    /// Number of the instruction: its block's [`CountedBlock::source`] plus its index there.
    pub source: u32,
}

impl Instrumentation {
    /// Begins a guest block.
    pub(crate) fn begin(&mut self, number: usize, instructions: u16, source: u32) {
        let counters = self.bytes;
        self.bytes += size_of::<BlockCounters>() as u32;
        self.blocks.push(CountedBlock { number, instructions, source, counters });
    }

    /// Where an event of the current block is counted.
    pub(crate) fn event(&self, event: Event) -> u32 {
        self.event_of(self.blocks.len().saturating_sub(1), event)
    }

    /// The same of the block that was begun as that number.
    pub(crate) fn event_of(&self, block: usize, event: Event) -> u32 {
        self.blocks.get(block).map_or(0, |block| block.counters) + event as u32
    }

    /// Where calls of the current block through an entry of the function table are counted.
    pub(crate) fn call(&mut self, index: usize) -> Option<u32> {
        self.call_of(self.blocks.len().checked_sub(1)?, index)
    }

    /// The same of the block that was begun as that number.
    pub(crate) fn call_of(&mut self, block: usize, index: usize) -> Option<u32> {
        let callee = Callee::at(index)?;
        let known = self.calls.iter().find(|call| call.block == block && call.callee == callee);
        Some(known.map(|call| call.counter).unwrap_or_else(|| {
            let counter = self.bytes;
            self.bytes += size_of::<u64>() as u32;
            self.calls.push(CountedCall { block, callee, counter });
            counter
        }))
    }

    /// Makes the counters, when it is known how many there are.
    pub(crate) fn finished(mut self) -> Self {
        self.counters = Arc::new(Counters::new(self.bytes));
        self
    }

    /// Adds host code to the end of what is known.
    pub(crate) fn source(&mut self, start: u32, end: u32, source: u32) {
        match self.sources.last_mut() {
            _ if start == end => {}
            Some(last) if last.source == source && last.end == start => last.end = end,
            _ => self.sources.push(SourceRange { start, end, source }),
        }
    }
}

impl Callee {
    /// What an entry of the table at `CpuState::helpers` is.
    fn at(index: usize) -> Option<Self> {
        if index >= FIRST_HELPER {
            Helper::ALL.get(index - FIRST_HELPER).copied().map(Self::Helper)
        } else if index >= FIRST_RUNTIME_HELPER {
            RuntimeHelper::ALL.get(index - FIRST_RUNTIME_HELPER).copied().map(Self::Runtime)
        } else {
            SlowPath::ALL.get(index).copied().map(Self::SlowPath)
        }
    }

    /// Whether it is an access to memory that the TLB did not answer.
    pub fn is_access(self) -> bool {
        !matches!(
            self,
            Self::Runtime(_) | Self::Helper(_) | Self::SlowPath(SlowPath::SettleFlags | SlowPath::PackFlags)
        )
    }
}

impl core::fmt::Display for Callee {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::SlowPath(path) => write!(f, "{path:?}"),
            Self::Runtime(helper) => write!(f, "{helper:?}"),
            Self::Helper(helper) => write!(f, "{helper:?}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_have_their_places() {
        let mut all = Instrumentation::default();
        all.begin(0, 3, 0);
        let first = all.call(SlowPath::Load8 as usize);
        assert_eq!(all.call(SlowPath::Load8 as usize), first);
        all.begin(4, 2, 3);
        assert_ne!(all.call(SlowPath::Load8 as usize), first, "another block's");
        assert_eq!(all.event(Event::Executed), size_of::<BlockCounters>() as u32 + 8);
        assert_eq!(all.bytes, 2 * (size_of::<BlockCounters>() as u32 + 8));
        assert_eq!(all.call(usize::MAX), None);
    }

    #[test]
    fn source_ranges_join() {
        let mut all = Instrumentation::default();
        for (start, end, source) in [(0, 4, 1), (4, 6, 1), (6, 6, 2), (6, 9, 2), (12, 13, 2)] {
            all.source(start, end, source);
        }
        let range = |start, end, source| SourceRange { start, end, source };
        assert_eq!(all.sources, [range(0, 6, 1), range(6, 9, 2), range(12, 13, 2)]);
    }
}
