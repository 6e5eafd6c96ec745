//! From what was recorded to a [`Profile`].

use std::{borrow::Cow, collections::BTreeMap, sync::atomic::Ordering};

use profiler::{
    listing::{self, GuestPart},
    model::{
        Block, Code, Counts, End, FORMAT, Listing, Member, Profile, Stack, Timeline, VERSION, VersionOf,
    },
};
use translator::{
    abi::Leave,
    instrument::{BlockCounters, CountedBlock},
};

use super::{
    Recorder, Way,
    book::{Book, Version},
    sampler::Phase,
    sizes::Sizes,
};
use crate::{block::BlockKey, hash::Map};

/// Pieces of code that get a listing: those with the most samples and the most instructions, so many of each, as long as their
/// host code together is not larger.
const LISTED: usize = 150;
const LISTED_BYTES: usize = 400_000;

/// Finds blocks in the profile by what identifies them there: the mode's other bits don't show.
type Index = Map<(u64, u64, u32, u8), usize>;

fn identity(key: &BlockKey) -> (u64, u64, u32, u8) {
    (key.rip, key.first.0, key.mode.code_bits(), key.mode.cpl())
}

impl Recorder {
    /// Everything so far; with listings of the code that matters most, if wanted. Exact while the vCPU is not in its
    /// engine. What ran, names and the frames of stacks are left to the caller.
    pub fn snapshot(&self, listings: bool) -> Profile {
        let book = &mut *self.book_elsewhere();
        for (at, phase) in self.shared.take_outside() {
            book.timeline.sample(at, phase);
        }
        let now = self.shared.elapsed();
        let mut profile = Profile { format: FORMAT.into(), version: VERSION, ..Profile::default() };
        profile.run.wall_ns = now;
        let index = blocks(book, &mut profile);
        self.code(book, &index, &mut profile);
        if listings {
            list(book, &mut profile);
        }
        finish(book, &mut profile);
        profile.totals.instructions = self.instructions.load(Ordering::Relaxed);
        profile.totals.lost = self.shared.lost();
        profile
    }

    fn code(&self, book: &Book, index: &Index, profile: &mut Profile) {
        let generation = self.cache.generation();
        for (number, version) in book.versions.iter().enumerate() {
            let sizes = version.sizes.get_or_init(|| Sizes::of(version));
            let mut code = piece(version, sizes);
            code.end = end(version, generation);
            for (position, counted) in version.instrumentation.blocks.iter().enumerate() {
                let mut member = member(version, position, counted);
                let size = sizes.members[position];
                (member.host_bytes, member.host_instructions) = (size.bytes, size.instructions);
                let key = version.members.get(counted.number).map(|block| &block.key);
                member.block = key.and_then(|key| index.get(&identity(key)).copied());
                if let Some(at) = member.block {
                    let block = &mut profile.blocks[at];
                    block.executed = block.executed.wrapping_add(member.executed());
                    block.executions += member.executions;
                    block.samples += member.samples;
                    block.versions.push(VersionOf { code: number, member: position });
                    add(&mut block.exits, &member.exits);
                    match code.end {
                        End::Invalidated => {
                            *block.exits.entry("invalidated by a write".into()).or_default() += 1
                        }
                        End::Evicted => *block.exits.entry("evicted".into()).or_default() += 1,
                        End::Live | End::Replaced => {}
                    }
                }
                code.members.push(member);
            }
            profile.totals.compile_ns += code.compile_ns;
            profile.code.push(code);
        }
    }
}

/// Every block that there is a record of, with what it did outside compiled code.
fn blocks(book: &Book, profile: &mut Profile) -> Index {
    let mut index = Index::default();
    for record in book.records() {
        let key = &record.block.key;
        let at = *index.entry(identity(key)).or_insert_with(|| {
            profile.blocks.push(Block {
                rip: key.rip,
                physical: key.first.0,
                user: key.mode.cpl() == 3,
                bits: key.mode.code_bits(),
                address_space: record.address_space,
                ..Block::default()
            });
            profile.blocks.len() - 1
        });
        let block = &mut profile.blocks[at];
        if record.bytes.len() * 2 >= block.bytes.len() {
            block.bytes = hexadecimal(&record.bytes);
            block.instructions =
                listing::count_instructions(record.block.key.mode.code_bits(), &record.bytes);
        }
        if let Some(place) = &record.place
            && block.process.is_none()
            && block.symbol.is_none()
        {
            let place = place.clone();
            (block.symbol, block.process, block.file) = (place.symbol, place.process, place.file);
        }
        block.decoded += 1;
        for (sum, part) in
            [(&mut block.interpreted, &record.interpreted), (&mut block.stepped, &record.stepped)]
        {
            sum.executions += part.executions;
            sum.instructions += part.instructions;
            block.executed += part.instructions;
        }
        block.executions += record.interpreted.executions;
        block.samples += record.samples;
        for &(way, count) in &record.ways {
            *block.exits.entry(name(way)).or_default() += count;
        }
        profile.totals.interpreted += record.interpreted.instructions + record.stepped.instructions;
        profile.totals.decoded += 1;
    }
    index
}

fn hexadecimal(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digit = |value: u8| char::from(DIGITS[usize::from(value & 0xf)]);
    bytes.iter().flat_map(|&byte| [digit(byte >> 4), digit(byte)]).collect()
}

fn piece(version: &Version, sizes: &Sizes) -> Code {
    Code {
        tier: version.tier,
        host_address: version.address,
        compile_ns: version.nanoseconds,
        installed_bytes: version.host.len() as u32,
        host_bytes: sizes.all.bytes,
        host_instructions: sizes.all.instructions,
        guest_instructions: version.guest_instructions,
        guest_bytes: version.guest_bytes,
        samples: version.samples.iter().sum(),
        ..Code::default()
    }
}

fn end(version: &Version, generation: u64) -> End {
    let head = version.members.first();
    if version.members.iter().any(|block| block.is_dead()) && version.generation == generation {
        End::Invalidated
    } else if version.generation != generation {
        End::Evicted
    } else if head.and_then(|head| head.code()) == Some(version.address) {
        End::Live
    } else {
        End::Replaced
    }
}

fn member(version: &Version, position: usize, counted: &CountedBlock) -> Member {
    let all = &version.instrumentation;
    let Some(counters) = all.counters.block(counted.counters) else { return Member::default() };
    let mut member = Member {
        instructions: counted.instructions.into(),
        executions: counters.executions.load(Ordering::Relaxed),
        undone: counters.undone.load(Ordering::Relaxed),
        samples: version.samples[position],
        exits: exits(counters),
        ..Member::default()
    };
    for call in all.calls.iter().filter(|call| call.block == position) {
        let number = all.counters.word(call.counter);
        if number == 0 {
            continue;
        }
        let kind = if call.callee.is_access() { "TLB miss" } else { "helper" };
        let name = format!("{kind}: {}", call.callee);
        count(&mut member.exits, name.into(), number);
    }
    member
}

/// How compiled code left a block. What is left of its executions went on inside the region.
fn exits(counters: &BlockCounters) -> Counts {
    let load = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    let left = |leave: Leave| load(&counters.leaves[leave as usize]);
    let (direct, indirect) = (load(&counters.direct), load(&counters.indirect));
    let (anew, polled) = (load(&counters.anew), load(&counters.polled));
    let misses = left(Leave::Indirect).saturating_sub(anew);
    let outside = direct + indirect + misses + anew + polled + left(Leave::Step);
    let mut exits = Counts::new();
    for (name, number) in [
        ("chained", direct.saturating_sub(left(Leave::Unlinked) + left(Leave::Guard))),
        ("not chained yet", left(Leave::Unlinked)),
        ("chain guard failed", left(Leave::Guard)),
        ("indirect hit", indirect),
        ("indirect miss", misses),
        ("mode may have changed", anew),
        ("left to be stepped", left(Leave::Step)),
        ("asked to leave", left(Leave::Poll)),
        ("hot", left(Leave::Hot)),
        ("on in the region", load(&counters.executions).saturating_sub(outside)),
    ] {
        count(&mut exits, name.into(), number);
    }
    exits
}

fn name(way: Way) -> Cow<'static, str> {
    match way {
        Way::Callout(mnemonic) => format!("callout: {mnemonic:?}").to_lowercase().into(),
        Way::Interpreter(mnemonic) => format!("interpreter: {mnemonic:?}").to_lowercase().into(),
        Way::Exception(vector) => format!("exception: {vector}").into(),
        Way::Interrupt => "interrupt".into(),
        Way::Device => "access to a device's memory".into(),
    }
}

fn count(counts: &mut Counts, name: Cow<'static, str>, number: u64) {
    if number != 0 {
        *counts.entry(name).or_default() += number;
    }
}

fn add(to: &mut Counts, more: &Counts) {
    for (name, number) in more {
        *to.entry(name.clone()).or_default() += number;
    }
}

/// Adds listings to the code that matters most.
fn list(book: &Book, profile: &mut Profile) {
    let mut wanted: Vec<usize> = Vec::new();
    for weight in [(|code: &Code| code.samples) as fn(&Code) -> u64, |code: &Code| {
        code.members.iter().map(Member::executed).sum()
    }] {
        let mut order: Vec<usize> = (0..profile.code.len()).collect();
        order.sort_by_cached_key(|&number| std::cmp::Reverse(weight(&profile.code[number])));
        wanted.extend(order.into_iter().take(LISTED));
    }
    let mut bytes = 0;
    // One of each in turn.
    let (by_samples, by_instructions) = wanted.split_at(wanted.len() / 2);
    for number in by_samples.iter().zip(by_instructions).flat_map(|(&a, &b)| [a, b]) {
        let version = &book.versions[number];
        bytes += if profile.code[number].listing.is_none() { version.host.len() } else { 0 };
        if bytes > LISTED_BYTES {
            break;
        }
        let listing = listing_of(book, version, &profile.code[number]);
        profile.code[number].listing = Some(listing);
    }
}

fn listing_of(book: &Book, version: &Version, code: &Code) -> Listing {
    let all = &version.instrumentation;
    let bytes: BTreeMap<u64, &Vec<u8>> =
        version.members.iter().filter_map(|member| Some((member.id.0, book.known(member.id)?))).collect();
    let parts: Vec<GuestPart> = all
        .blocks
        .iter()
        .enumerate()
        .filter_map(|(position, counted)| {
            let block = version.members.get(counted.number)?;
            Some(GuestPart {
                member: position,
                bytes: bytes.get(&block.id.0)?.to_vec(),
                rip: block.key.rip,
                bits: block.key.mode.code_bits(),
                source: counted.source,
                instructions: counted.instructions.into(),
                executions: code.members.get(position).map_or(0, |member| member.executions),
            })
        })
        .collect();
    let sources: Vec<listing::Source> =
        all.sources.iter().map(|range| (range.start, range.end, range.source)).collect();
    listing::align(&parts, &version.host, &sources, all.clif.as_deref(), &version.hits)
}

/// What takes all blocks together.
fn finish(book: &Book, profile: &mut Profile) {
    for block in &profile.blocks {
        profile.totals.counted = profile.totals.counted.wrapping_add(block.executed);
        add(&mut profile.exits, &block.exits);
    }
    profile.totals.samples = book.samples;
    profile.totals.exceptions = book.exceptions;
    profile.timeline = Timeline {
        bin_ns: book.timeline.bin_ns,
        phases: Phase::ALL.iter().map(|(_, name)| (*name).to_owned()).collect(),
        bins: book.timeline.bins.iter().map(|bin| bin.to_vec()).collect(),
        background_ns: book.timeline.background_ns.clone(),
    };
    let all = book.all_stacks();
    let stacks = all.stacks.iter().map(|((process, raw), &count)| Stack {
        process: process.clone(),
        raw: raw.clone(),
        frames: Vec::new(),
        count,
    });
    profile.stacks.stacks = stacks.collect();
    profile.stacks.by_tables = all.by_tables;
    profile.stacks.by_frames = all.by_frames;
    profile.stacks.leaf_only = all.leaf_only;
}
