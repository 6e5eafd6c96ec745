//! The code that was installed, for who keeps a record of it elsewhere.

use std::collections::BTreeMap;

use profiler::listing;

use super::{
    Recorder,
    book::{Book, Version},
};

/// A piece of code as it was installed.
#[derive(Clone, Debug)]
pub struct Installed {
    /// Where it lies, or lay.
    pub address: u64,
    /// When it came there, by CLOCK_MONOTONIC.
    pub at_ns: u64,
    /// As it was compiled; addresses of the engine are filled in where it lies.
    pub code: Vec<u8>,
    /// Offsets from which on it belongs to an instruction of a member: index in [`profiler::model::Code::members`], and the
    /// instruction's address.
    pub instructions: Vec<(u32, usize, u64)>,
}

impl Recorder {
    /// From the `first` piece on; numbers are those of [`profiler::model::Profile::code`].
    pub fn installed_since(&self, first: usize) -> Vec<Installed> {
        let book = self.book_elsewhere();
        book.versions.iter().skip(first).map(|version| installed(&book, version)).collect()
    }
}

fn installed(book: &Book, version: &Version) -> Installed {
    let mut of_source: BTreeMap<u32, (usize, u64)> = BTreeMap::new();
    for (position, counted) in version.instrumentation.blocks.iter().enumerate() {
        let block = version.members.get(counted.number);
        let Some((block, bytes)) = block.and_then(|block| Some((block, book.known(block.id)?))) else {
            continue;
        };
        let addresses = listing::addresses(block.key.mode.code_bits(), bytes, block.key.rip);
        for (n, rip) in addresses.into_iter().take(counted.instructions.into()).enumerate() {
            of_source.insert(counted.source + n as u32, (position, rip));
        }
    }
    let sources = version.instrumentation.sources.iter();
    let instructions = sources.filter_map(|range| {
        let &(position, rip) = of_source.get(&range.source)?;
        Some((range.start, position, rip))
    });
    Installed {
        address: version.address,
        at_ns: version.at_ns,
        code: version.host.clone(),
        instructions: instructions.collect(),
    }
}
