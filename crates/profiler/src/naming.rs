//! Gives the blocks and stacks of a profile their names and source lines.

use std::collections::{BTreeMap, HashMap};

use crate::{
    lines::Lines,
    model::{Block, Frame, Profile, Stack, SymbolInfo},
    symbols::{OfGuest, Symbols},
};

/// What is known of a guest's names.
pub struct Naming<'a> {
    /// Symbols of its kernel.
    pub found: &'a OfGuest,
    /// Names in modules: of the function that an address is in.
    pub modules: &'a dyn Fn(u64) -> Option<String>,
    /// What the reader should know.
    pub note: Option<String>,
    /// How modules and processes got their names.
    pub structures: String,
}

/// How addresses of this run become those that the linker gave.
pub struct Link<'a> {
    found: &'a OfGuest,
    /// What to take away, where all that is known is a linear address.
    moved: u64,
}

impl<'a> Link<'a> {
    /// For the kernel of these blocks.
    pub fn new(found: &'a OfGuest, blocks: &[Block]) -> Self {
        let mut link = Self { found, moved: found.symbols.moved_by };
        if found.displaced.is_some() {
            // Kernels may run at several places, such as where they are loaded until they have page tables.
            let mut counts: HashMap<u64, u64> = HashMap::new();
            for block in blocks.iter().filter(|block| !block.user) {
                if let Some(linked) = link.linked(block) {
                    *counts.entry(block.rip.wrapping_sub(linked)).or_default() += block.executed.max(1);
                }
            }
            link.moved = counts.into_iter().max_by_key(|&(_, count)| count).map_or(0, |(moved, _)| moved);
        }
        link
    }

    /// The address that a block of the kernel has in the file of its symbols.
    pub fn linked(&self, block: &Block) -> Option<u64> {
        match (self.found.displaced, &self.found.symbols.elf) {
            (Some(displaced), Some(elf)) => elf.linked(block.physical.wrapping_sub(displaced)),
            _ => Some(block.rip.wrapping_sub(self.moved)),
        }
    }

    fn find(&self, linked: u64) -> Option<(&'a str, u64)> {
        // Symbols were moved by what `linked` was moved back.
        let symbols: &'a Symbols = &self.found.symbols;
        symbols.find(linked.wrapping_add(symbols.moved_by))
    }
}

/// Names everything, and adds source lines from what `lines` has.
pub fn apply(profile: &mut Profile, naming: &Naming<'_>, lines: &mut Lines) {
    let symbols = &naming.found.symbols;
    profile.symbols = SymbolInfo {
        source: symbols.source.clone(),
        count: symbols.len(),
        note: naming.note.clone(),
        structures: naming.structures.clone(),
        lines: String::new(),
    };
    let link = Link::new(naming.found, &profile.blocks);
    for block in profile.blocks.iter_mut().filter(|block| !block.user && block.symbol.is_none()) {
        let symbol = link.linked(block).and_then(|linked| link.find(linked));
        block.symbol = symbol.map(|(name, offset)| match offset {
            0 => name.to_owned(),
            _ => format!("{name}+{offset:#x}"),
        });
    }
    if let Some(elf) = &symbols.elf {
        add_lines(profile, &link, &elf.path, lines);
    }
    name_stacks(profile, naming, &link);
}

fn add_lines(profile: &mut Profile, link: &Link<'_>, path: &std::path::Path, lines: &mut Lines) {
    // Of a block that has a name, so that it is of the kernel's image; in a listing, of instructions beside it.
    let mut wanted: Vec<(usize, u64)> = Vec::new();
    for (n, block) in profile.blocks.iter().enumerate() {
        let of_image = !block.user && block.symbol.as_ref().is_some_and(|symbol| !symbol.ends_with(']'));
        if let Some(linked) = link.linked(block).filter(|_| of_image) {
            wanted.push((n, linked));
        }
    }
    let linked: HashMap<usize, u64> = wanted.iter().copied().collect();
    let mut rows: Vec<(usize, usize, u64)> = Vec::new();
    for (n, code) in profile.code.iter().enumerate() {
        let Some(listing) = &code.listing else { continue };
        for (at, row) in listing.rows.iter().enumerate() {
            let block = row.member.and_then(|member| code.members.get(member)?.block);
            if let Some((block, linked)) = block.and_then(|block| Some((block, linked.get(&block)?))) {
                rows.push((n, at, linked.wrapping_add(row.rip.wrapping_sub(profile.blocks[block].rip))));
            }
        }
    }
    let addresses =
        wanted.iter().map(|&(_, address)| address).chain(rows.iter().map(|&(.., address)| address));
    profile.symbols.lines = lines.look_up(path, addresses);
    for (block, address) in wanted {
        profile.blocks[block].line = lines.of(address);
    }
    for (code, row, address) in rows {
        if let Some(listing) = &mut profile.code[code].listing {
            listing.rows[row].line = lines.of(address);
        }
    }
}

/// What ran before there were processes.
const EARLIER: &str = "(before the first process)";

fn name_stacks(profile: &mut Profile, naming: &Naming<'_>, link: &Link<'_>) {
    let mut numbers = HashMap::new();
    let frames = &mut profile.stacks.frames;
    let has_processes = profile.stacks.stacks.iter().any(|stack| stack.process.is_some());
    for stack in profile.stacks.stacks.iter_mut().filter(|stack| !stack.raw.is_empty()) {
        let process = stack.process.as_deref().or_else(|| has_processes.then_some(EARLIER));
        let callers = stack.raw.iter().rev().map(|frame| match frame {
            // Before there were processes, what ran at low addresses was the kernel, on its way to its own.
            Frame::At(address) => frame_name(naming, link, *address, process != Some(EARLIER)),
            Frame::Named(name) => name.to_string(),
        });
        stack.frames = process
            .map(str::to_owned)
            .into_iter()
            .chain(callers)
            .map(|name| {
                *numbers.entry(name.clone()).or_insert_with(|| {
                    frames.push(name);
                    frames.len() - 1
                })
            })
            .collect();
    }
    merge_stacks(profile);
}

/// Kernel code by its function, user code of no file by its page; `users`: there may be some.
fn frame_name(naming: &Naming<'_>, link: &Link<'_>, address: u64, users: bool) -> String {
    match link.find(address.wrapping_sub(link.moved)) {
        Some((name, _)) => name.to_owned(),
        None if address >> 63 == 0 && users => format!("user {:#x}", address & !0xfff),
        None => (naming.modules)(address).unwrap_or_else(|| format!("{:#x}", address & !0xfff)),
    }
}

fn merge_stacks(profile: &mut Profile) {
    let mut merged: BTreeMap<Vec<usize>, u64> = BTreeMap::new();
    for stack in profile.stacks.stacks.drain(..) {
        *merged.entry(stack.frames).or_default() += stack.count;
    }
    profile.stacks.stacks =
        merged.into_iter().map(|(frames, count)| Stack { frames, count, ..Stack::default() }).collect();
}
