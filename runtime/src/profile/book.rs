//! What the recorder has written down: blocks by number, code by number, samples, stacks.

use std::{collections::BTreeMap, sync::Arc};

use memory::Mmu;
use profiler::{
    guest::Place,
    model::{Frame, Tally, Tier},
    orc::RawStack,
};
use translator::{CodeBlock, RelocationTarget, instrument::Instrumentation};
use x86::CpuState;

use super::{
    Way,
    sampler::{PHASES, Phase, Sample},
    sizes::Sizes,
};
use crate::{
    block::{Block, BlockId, Extent},
    finder,
    hash::Map,
};

/// What is known of a block besides what its code counts.
pub(super) struct BlockRecord {
    pub block: Arc<Block>,
    /// As they were when it was first run.
    pub bytes: Vec<u8>,
    pub address_space: u64,
    /// Whose it was then.
    pub place: Option<Place>,
    pub interpreted: Tally,
    pub stepped: Tally,
    pub samples: u64,
    /// Few, so searched one by one.
    pub ways: Vec<(Way, u64)>,
}

impl BlockRecord {
    pub fn count(&mut self, way: Way) {
        match self.ways.iter_mut().find(|(known, _)| *known == way) {
            Some((_, count)) => *count += 1,
            None => self.ways.push((way, 1)),
        }
    }
}

/// A piece of installed code.
pub(super) struct Version {
    pub members: Vec<Arc<Block>>,
    pub address: u64,
    /// When it was installed, by CLOCK_MONOTONIC.
    pub at_ns: u64,
    pub generation: u64,
    pub host: Vec<u8>,
    /// Offsets of the fields that refer to counters.
    pub counting: Vec<u32>,
    pub tier: Tier,
    pub nanoseconds: u64,
    pub guest_instructions: u32,
    pub guest_bytes: u32,
    pub instrumentation: Instrumentation,
    /// Found out when first asked for.
    pub sizes: std::cell::OnceCell<Sizes>,
    /// Samples by offset in the code.
    pub hits: BTreeMap<u32, u64>,
    /// Samples by index in the instrumentation's blocks.
    pub samples: Vec<u64>,
}

/// Time by phase.
#[derive(Default)]
pub(super) struct Timeline {
    pub bin_ns: u64,
    pub bins: Vec<[u32; PHASES]>,
    pub background_ns: Vec<u64>,
}

/// Bins of a timeline at most; beyond that they become twice as wide.
const MOST_BINS: usize = 2048;
const FIRST_BIN_NS: u64 = 10_000_000;

impl Timeline {
    fn bin(&mut self, at_ns: u64) -> usize {
        while at_ns / self.bin_ns >= MOST_BINS as u64 {
            self.bin_ns *= 2;
            let joined =
                |pair: &[[u32; PHASES]]| std::array::from_fn(|phase| pair.iter().map(|bin| bin[phase]).sum());
            self.bins = self.bins.chunks(2).map(joined).collect();
            self.background_ns = self.background_ns.chunks(2).map(|pair| pair.iter().sum()).collect();
        }
        let bin = (at_ns / self.bin_ns) as usize;
        if self.bins.len() <= bin {
            self.bins.resize(bin + 1, [0; PHASES]);
            self.background_ns.resize(bin + 1, 0);
        }
        bin
    }

    pub fn sample(&mut self, at_ns: u64, phase: Phase) {
        let bin = self.bin(at_ns);
        self.bins[bin][phase as usize] += 1;
    }

    /// Compiling that ended at a moment; it goes to the bins before, as far as there is room in them.
    pub fn background(&mut self, at_ns: u64, nanoseconds: u64) {
        let mut bin = self.bin(at_ns);
        let mut left = nanoseconds;
        loop {
            let room = self.bin_ns.saturating_sub(self.background_ns[bin]);
            let taken = if bin == 0 { left } else { left.min(room) };
            self.background_ns[bin] += taken;
            left -= taken;
            if left == 0 {
                return;
            }
            bin -= 1;
        }
    }
}

/// Call stacks by their process and frames, innermost first, and how they were found.
#[derive(Clone, Default)]
pub(super) struct StackCounts {
    pub stacks: Map<(Option<Arc<str>>, Vec<Frame>), u64>,
    pub by_tables: u64,
    pub by_frames: u64,
    pub leaf_only: u64,
}

/// Stacks that wait to be counted: 4 KiB each.
const MOST_RAW: usize = 8192;

impl StackCounts {
    fn count(&mut self, raw: &RawStack, by_tables: Option<Vec<u64>>) {
        let named = |(n, &address): (usize, &u64)| match raw.callers.frames.get(n).cloned().flatten() {
            Some(name) => Frame::Named(name),
            None => Frame::At(address),
        };
        let by_frames = || raw.by_frames.iter().enumerate().map(named);
        let (frames, found) = match by_tables.filter(|stack| stack.len() > 1) {
            Some(stack) => (stack.into_iter().map(Frame::At).collect(), &mut self.by_tables),
            None if raw.by_frames.len() > 1 => (by_frames().collect(), &mut self.by_frames),
            None => (by_frames().take(1).collect(), &mut self.leaf_only),
        };
        *found += raw.count;
        *self.stacks.entry((raw.callers.process.clone(), frames)).or_default() += raw.count;
    }
}

/// See the module's description.
pub(super) struct Book {
    blocks: Vec<Option<Box<BlockRecord>>>,
    pub versions: Vec<Version>,
    /// Version and index in its instrumentation's blocks, by [`translator::instrument::BlockCounters::number`].
    members: Vec<(usize, usize)>,
    /// Version by address, in the current generation of code memory.
    places: BTreeMap<u64, usize>,
    generation: u64,
    pub timeline: Timeline,
    pub samples: u64,
    pub stacks: StackCounts,
    /// Not counted yet: perhaps somebody can see more in them.
    raw: Vec<RawStack>,
    pub exceptions: u64,
}

impl Book {
    pub fn new() -> Self {
        Self {
            blocks: Vec::new(),
            versions: Vec::new(),
            members: Vec::new(),
            places: BTreeMap::new(),
            generation: 0,
            timeline: Timeline { bin_ns: FIRST_BIN_NS, ..Timeline::default() },
            samples: 0,
            stacks: StackCounts::default(),
            raw: Vec::new(),
            exceptions: 0,
        }
    }

    /// Whether there is a record of a block.
    pub fn knows(&self, id: BlockId) -> bool {
        self.blocks.get(id.0 as usize).is_some_and(Option::is_some)
    }

    /// Opens a record of a block that has none yet.
    pub fn open(&mut self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu, place: Option<Place>) {
        let index = block.id.0 as usize;
        if self.blocks.len() <= index {
            self.blocks.resize_with(index + 1, || None);
        }
        self.blocks[index] = Some(Box::new(BlockRecord {
            block: Arc::clone(block),
            bytes: finder::bytes_of(block, mmu),
            address_space: state.cr3,
            place,
            interpreted: Tally::default(),
            stepped: Tally::default(),
            samples: 0,
            ways: Vec::new(),
        }));
    }

    pub fn record(&mut self, id: BlockId) -> Option<&mut BlockRecord> {
        self.blocks.get_mut(id.0 as usize)?.as_deref_mut()
    }

    pub fn records(&self) -> impl Iterator<Item = &BlockRecord> {
        self.blocks.iter().flatten().map(|record| &**record)
    }

    /// A block's bytes, as they were when it was first run.
    pub fn known(&self, id: BlockId) -> Option<&Vec<u8>> {
        let record = self.blocks.get(id.0 as usize)?.as_deref()?;
        Some(&record.bytes)
    }

    /// Whether the instruction of `single` is one of a block's.
    pub fn contains(&self, id: BlockId, single: &Block) -> bool {
        let Some(Some(record)) = self.blocks.get(id.0 as usize) else { return false };
        let block = &record.block;
        let offset = single.key.rip.wrapping_sub(block.key.rip);
        block.key.extent == Extent::Full
            && block.key.mode == single.key.mode
            && offset < u64::from(block.bytes)
            && single.key.first.0.wrapping_sub(block.key.first.0) == offset
    }

    /// The block whose counters have that number.
    pub fn block_of(&self, number: usize) -> Option<BlockId> {
        let &(version, index) = self.members.get(number)?;
        let version = &self.versions[version];
        let counted = version.instrumentation.blocks.get(index)?;
        Some(version.members.get(counted.number)?.id)
    }

    pub fn install(
        &mut self,
        members: &[Arc<Block>],
        (code, tier): (&CodeBlock, Tier),
        (address, at_ns): (u64, u64),
        nanoseconds: u64,
        generation: u64,
    ) {
        let Some(instrumentation) = code.instrumentation.as_deref() else { return };
        let version = self.versions.len();
        for (index, block) in instrumentation.blocks.iter().enumerate() {
            if let Some(counters) = instrumentation.counters.block(block.counters) {
                counters.number.store(self.members.len() as u64, std::sync::atomic::Ordering::Relaxed);
            }
            self.members.push((version, index));
        }
        self.forget_places(generation);
        self.places.insert(address, version);
        let counting =
            code.relocations.iter().filter(|relocation| relocation.target == RelocationTarget::Counters);
        self.versions.push(Version {
            members: members.to_vec(),
            address,
            at_ns,
            generation,
            host: code.code.clone(),
            counting: counting.map(|relocation| relocation.offset).collect(),
            tier,
            nanoseconds,
            guest_instructions: code.guest_instructions.into(),
            guest_bytes: code.guest_bytes.into(),
            samples: vec![0; instrumentation.blocks.len()],
            instrumentation: instrumentation.clone(),
            sizes: std::cell::OnceCell::new(),
            hits: BTreeMap::new(),
        });
    }

    fn forget_places(&mut self, generation: u64) {
        if self.generation != generation {
            self.generation = generation;
            self.places.clear();
        }
    }

    /// Version and offset of a host address in code memory.
    fn place(&self, address: u64) -> Option<(usize, u32)> {
        let (&start, &version) = self.places.range(..=address).next_back()?;
        let offset = address - start;
        (offset < self.versions[version].host.len() as u64).then_some((version, offset as u32))
    }

    /// Takes in a sample.
    pub fn sample(&mut self, sample: &Sample, generation: u64) {
        self.samples += 1;
        let mut phase = sample.phase;
        if phase == Phase::Compiled {
            self.forget_places(generation);
            let place = self.place(sample.host);
            // SAFETY: see `Recorder::left`.
            let counters = (sample.profiled != 0)
                .then(|| unsafe { &*(sample.profiled as *const translator::instrument::BlockCounters) });
            let known = counters.and_then(|counters| {
                self.members.get(counters.number.load(std::sync::atomic::Ordering::Relaxed) as usize)
            });
            // Up to the counting of a block's entry, `profiled` is about the block before.
            let of = match (place, known) {
                (Some((version, _)), Some(&(last, index))) if version == last => Some((version, index)),
                (Some((version, _)), _) => Some((version, 0)),
                (None, Some(&known)) => Some(known),
                (None, None) => None,
            };
            if let Some((version, offset)) = place {
                *self.versions[version].hits.entry(offset).or_default() += 1;
            } else {
                phase = Phase::Helper;
            }
            if let Some((version, index)) = of
                && let Some(count) = self.versions[version].samples.get_mut(index)
            {
                *count += 1;
            }
        } else if let Some(current) = sample.current
            && matches!(phase, Phase::Interpreting | Phase::Stepping)
            && let Some(record) = self.record(current)
        {
            record.samples += 1;
        }
        self.timeline.sample(sample.at_ns, phase);
    }

    /// Takes in the guest's stack, as it was after some samples.
    pub fn stack(&mut self, stack: RawStack) {
        self.raw.push(stack);
        if self.raw.len() > MOST_RAW {
            self.settle_stacks(&|_| None);
        }
    }

    /// Counts all stacks for good, by `unwind` or else by frame pointers.
    pub fn settle_stacks(&mut self, unwind: &dyn Fn(&RawStack) -> Option<Vec<u64>>) {
        for raw in std::mem::take(&mut self.raw) {
            self.stacks.count(&raw, unwind(&raw));
        }
    }

    /// All stacks as they would be counted now.
    pub fn all_stacks(&self) -> StackCounts {
        let mut all = self.stacks.clone();
        for raw in &self.raw {
            all.count(raw, None);
        }
        all
    }
}
