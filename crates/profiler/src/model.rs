//! The data model, which is also the format of `blocks.json`; docs/profile-format.md describes it for its readers.
//!
//! Addresses are hexadecimal strings, because JavaScript's numbers end at 2^53.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use serde::{Deserialize, Serialize};

/// What the first member of a file says.
pub const FORMAT: &str = "transvisor-profile";
/// What is written. Version 1 lacked names of modules, processes and files, and source lines.
pub const VERSION: u32 = 2;
/// The oldest that is read. Newer than [`VERSION`] is refused.
pub const OLDEST: u32 = 1;

/// How often something happened, by its name.
pub type Counts = BTreeMap<Cow<'static, str>, u64>;

/// A whole profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// [`FORMAT`].
    pub format: String,
    /// [`VERSION`].
    pub version: u32,
    /// The run has ended. Else this was written while it went on, and counters are of slightly different moments.
    pub complete: bool,
    /// What ran.
    pub run: Run,
    /// Sums.
    pub totals: Totals,
    /// How addresses got their names.
    pub symbols: SymbolInfo,
    /// Where host time went, over time.
    pub timeline: Timeline,
    /// How often blocks were left, by reason, over all blocks.
    pub exits: Counts,
    /// Guest blocks that were executed, those with the most instructions first.
    pub blocks: Vec<Block>,
    /// Installed host code, in the order of its making.
    pub code: Vec<Code>,
    /// Guest call stacks.
    pub stacks: Stacks,
}

/// What ran.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Run {
    /// Version of Transvisor.
    pub transvisor: String,
    /// What was booted, as given.
    pub kernel: String,
    /// The kernel's own banner, if it was found in memory.
    pub banner: Option<String>,
    /// Which engine.
    pub engine: String,
    /// How the run ended.
    pub outcome: Option<String>,
    /// Seconds since 1970 when it began.
    pub began: u64,
    /// Nanoseconds from then on.
    pub wall_ns: u64,
}

/// Sums over the run.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Guest instructions that the vCPU has retired.
    pub instructions: u64,
    /// The sum of [`Block::executed`]. Equal to `instructions` in a complete profile.
    pub counted: u64,
    /// Of these, interpreted.
    pub interpreted: u64,
    /// Samples of the vCPU's thread.
    pub samples: u64,
    /// Samples that there was no room for.
    pub lost: u64,
    /// Nanoseconds of compiling, on all threads.
    pub compile_ns: u64,
    /// Blocks decoded, those included that were never finished.
    pub decoded: u64,
    /// Exceptions delivered.
    pub exceptions: u64,
}

/// Where names come from.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct SymbolInfo {
    /// A file, or `kallsyms in guest memory`; empty if there are none.
    pub source: String,
    /// How many.
    pub count: usize,
    /// What is worth knowing about them.
    pub note: Option<String>,
    /// How modules and processes got theirs; empty if the guest has none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub structures: String,
    /// Where source lines are from; empty if there are none.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub lines: String,
}

/// Samples by time and phase.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Timeline {
    /// Width of a bin.
    pub bin_ns: u64,
    /// Names of the columns.
    pub phases: Vec<String>,
    /// Samples of each phase, bin after bin.
    pub bins: Vec<Vec<u32>>,
    /// Nanoseconds of compiling in the background, bin after bin.
    pub background_ns: Vec<u64>,
}

/// Executions, and the instructions that they executed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Times entered.
    pub executions: u64,
    /// Instructions.
    pub instructions: u64,
}

impl Tally {
    fn is_zero(&self) -> bool {
        *self == Self::default()
    }
}

/// A guest block: the code at one place in one mode.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Block {
    /// Instruction pointer (linear in flat code).
    #[serde(with = "hex")]
    pub rip: u64,
    /// Guest-physical address of its first byte.
    #[serde(with = "hex")]
    pub physical: u64,
    /// Ring 3.
    pub user: bool,
    /// 16, 32 or 64.
    pub bits: u32,
    /// CR3 when it was executed first; kernel code is shared by all.
    #[serde(with = "hex")]
    pub address_space: u64,
    /// `name+0xoffset`, in a module `name+0xoffset [module]`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbol: Option<String>,
    /// The process that ran it first. Of user code only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub process: Option<Process>,
    /// The file that was mapped there then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FilePlace>,
    /// Source file and line of its first instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Guest instructions.
    pub instructions: u32,
    /// Its bytes, as hexadecimal text, as they were last.
    pub bytes: String,
    /// Guest instructions executed in it: the two tallies and those of all its versions.
    pub executed: u64,
    /// Times that it was entered, or an instruction of it was stepped.
    pub executions: u64,
    /// By the interpreter.
    #[serde(default, skip_serializing_if = "Tally::is_zero")]
    pub interpreted: Tally,
    /// Instructions that compiled code left to the interpreter or the monitor.
    #[serde(default, skip_serializing_if = "Tally::is_zero")]
    pub stepped: Tally,
    /// Samples of host time in it, whatever it was doing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub samples: u64,
    /// How it was left, all versions together.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub exits: Counts,
    /// Every translation that it was part of.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub versions: Vec<VersionOf>,
    /// Times that it was decoded: more than once where its bytes, or its page's mapping, changed.
    pub decoded: u32,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// A process of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// What the guest calls it (`comm`).
    pub name: String,
    /// Its number (that of the thread group).
    pub id: u32,
}

/// A place in a file of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilePlace {
    /// Its path, or `[vdso]`.
    pub path: String,
    /// Bytes from its beginning.
    #[serde(with = "hex")]
    pub offset: u64,
}

impl FilePlace {
    /// The last part of its path.
    pub fn name(&self) -> &str {
        self.path.rsplit('/').next().unwrap_or_default()
    }
}

/// A place in [`Profile::code`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionOf {
    /// Index in [`Profile::code`].
    pub code: usize,
    /// Index in [`Code::members`].
    pub member: usize,
}

/// What made a piece of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// The template translator, from one block.
    #[default]
    Templates,
    /// The template translator, from blocks that run into each other.
    Region,
    /// Cranelift, from one or more blocks.
    Compiled,
}

/// What became of a piece of code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// It is installed.
    #[default]
    Live,
    /// Better code of its block took its place.
    Replaced,
    /// Guest bytes that it was made from were overwritten.
    Invalidated,
    /// Code memory was emptied.
    Evicted,
}

/// A piece of host code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Code {
    /// What made it.
    pub tier: Tier,
    /// Where it lies in host memory, or lay.
    #[serde(with = "hex")]
    pub host_address: u64,
    /// Nanoseconds of the compiling thread.
    pub compile_ns: u64,
    /// Bytes in host memory, with the counting for this profile.
    pub installed_bytes: u32,
    /// Bytes without it.
    pub host_bytes: u32,
    /// Host instructions without it.
    pub host_instructions: u32,
    /// Guest instructions in it.
    pub guest_instructions: u32,
    /// Guest bytes in it.
    pub guest_bytes: u32,
    /// What became of it.
    pub end: End,
    /// Samples in it.
    pub samples: u64,
    /// The guest blocks in it; the first is where it is entered.
    pub members: Vec<Member>,
    /// Line by line, for the code that matters most.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub listing: Option<Listing>,
}

/// A guest block in a piece of host code.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Member {
    /// Index in [`Profile::blocks`]; `null` if that block was never executed.
    pub block: Option<usize>,
    /// Guest instructions that an execution counts: fewer than the block has where the rest is left to others.
    pub instructions: u32,
    /// Times entered.
    pub executions: u64,
    /// Instructions that were counted and not executed here.
    pub undone: u64,
    /// Bytes of host code that belong to its instructions.
    pub host_bytes: u32,
    /// Host instructions that belong to its instructions.
    pub host_instructions: u32,
    /// Samples while it was the block entered last, in this code.
    pub samples: u64,
    /// How it was left, and what it called.
    pub exits: Counts,
}

impl Member {
    /// Guest instructions executed.
    pub fn executed(&self) -> u64 {
        (self.executions * u64::from(self.instructions)).wrapping_sub(self.undone)
    }
}

/// Guest assembly, CLIF and host assembly side by side.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    /// One for each guest instruction, and for what belongs to none.
    pub rows: Vec<Row>,
}

/// What belongs together in a listing.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// Index in [`Code::members`]; `null` for what belongs to no guest instruction.
    pub member: Option<usize>,
    /// The guest instruction with its address.
    pub guest: String,
    /// The address.
    #[serde(skip)]
    pub rip: u64,
    /// Source file and line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<String>,
    /// Times that its block was entered.
    pub executions: u64,
    /// Lines of CLIF.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub clif: Vec<String>,
    /// Host instructions.
    pub host: Vec<HostLine>,
}

/// A host instruction.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HostLine {
    /// Offset in the code.
    pub offset: u32,
    /// Assembly.
    pub text: String,
    /// Samples at it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub samples: u64,
}

/// Guest call stacks, sampled.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stacks {
    /// Names of frames.
    pub frames: Vec<String>,
    /// Each with the indices of its frames, outermost first, and how often it was seen.
    pub stacks: Vec<Stack>,
    /// Samples whose callers were found by the kernel's own tables ([`crate::orc`]).
    pub by_tables: u64,
    /// Samples whose callers were found by frame pointers.
    pub by_frames: u64,
    /// Samples that are the innermost function alone.
    pub leaf_only: u64,
}

/// A frame of a call stack before all names are known.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Frame {
    /// Code at an address.
    At(u64),
    /// Something that was given a name when it was seen.
    Named(Arc<str>),
}

/// One call stack.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Stack {
    /// Whose it is. Only where names are still to be found.
    #[serde(skip)]
    pub process: Option<Arc<str>>,
    /// Likewise: innermost first.
    #[serde(skip)]
    pub raw: Vec<Frame>,
    /// Indices in [`Stacks::frames`], outermost first.
    pub frames: Vec<usize>,
    /// Samples.
    pub count: u64,
}

/// Numbers as hexadecimal strings.
mod hex {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(number: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{number:#x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
        let digits = text.strip_prefix("0x").ok_or_else(|| D::Error::custom("an address begins with 0x"))?;
        u64::from_str_radix(digits, 16).map_err(D::Error::custom)
    }
}
