//! [`Region`]: guest blocks that are translated into one function, and the [`Plan`] of how control flows between them.
//!
//! A region is entered at its first block. An exit of one of its blocks that leads to the start of another one becomes a
//! jump inside the function; all others stay exits. Where only one edge leads to a block, that block begins
//! with all that is known at the edge's end; where several do (a *merge*), registers come in as parameters, and flags
//! are in `CpuState` if anything can see them. The plan says beforehand which blocks are merges and what comes in there.

use hashbrown::HashMap;
use iced_x86::{
    Decoder, FlowControl, Instruction, InstructionInfoFactory, Mnemonic, OpAccess, OpKind, Register,
    RflagsBits,
};
use memory::window::{HIGH, LOW};
use semantics::{
    Insn, MemoryOperand, Operand,
    decode::{GuestBlock, options},
};
use x86::{CpuState, Mode, PAGE_MASK, SegmentRegister};

use crate::locality;

/// Return addresses that a region's RETs are compared with, at most.
const MOST_RETURNS: usize = 4;

/// A block of a region.
#[derive(Clone, Debug)]
pub struct RegionBlock {
    /// Its instructions.
    pub guest: GuestBlock,
    /// Host address minus linear address of its page, wrapping: where the TLB must still find it when control comes
    /// from another page.
    pub addend: u64,
    /// Where its last instruction led last, if that [is foreseeable](is_foreseeable): if the region has a block there, the target is
    /// compared with that.
    pub foreseen: Option<u64>,
    /// The same as `addend` of the next page, if the block is an instruction that goes on there: it is run only while that is so.
    pub second: Option<u64>,
    effects: Effects,
}

impl RegionBlock {
    /// Of a decoded block and the bytes that it was decoded from.
    pub fn new(
        guest: GuestBlock,
        bytes: &[u8],
        addend: u64,
        second: Option<u64>,
        foreseen: Option<u64>,
    ) -> Self {
        let mut effects = Effects::of(bytes, &guest);
        // It may leave before it has begun.
        effects.flags_observed |= second.is_some();
        Self { guest, addend, second, foreseen, effects }
    }
}

impl RegionBlock {
    /// Where its call leads, if it ends with one and that is known.
    fn called(&self) -> Option<u64> {
        let last = self.guest.insns.last()?;
        match last.code.flow_control() {
            FlowControl::Call if last.operand(0) == Operand::Near => Some(last.immediate),
            FlowControl::IndirectCall => self.foreseen,
            _ => None,
        }
    }
}

/// For whom a region by templates is made that may access memory in the window ([`memory::window`]). Others are the same for all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Versions {
    /// Only for the window; where that is off it leaves with [`crate::abi::Leave::WindowOff`] as soon as it is entered.
    Window,
    /// One version for the window, one for the TLB; a single one if nothing is accessed in the window.
    Both,
}

/// Guest blocks of one mode, each once.
#[derive(Clone, Debug)]
pub struct Region {
    /// The first is where the region is entered.
    pub blocks: Vec<RegionBlock>,
    /// Which [`Pointer`]s led to the low part of the window ([`memory::window`]) when it was formed: where their accesses are looked for first.
    pub low: u32,
}

/// Where the lowest pages of programs are: what linkers take for those that are not position-independent.
const LOWEST: u64 = 0x40_0000;

impl Region {
    /// Of blocks, with pointers as they are in a state that is about to enter it.
    pub fn new(blocks: Vec<RegionBlock>, state: &CpuState) -> Self {
        // A register that points nowhere now points to where code lies, if that is low: there are its data too.
        let code = blocks.first().map_or(0, |first| first.guest.rip);
        // To other code a number below all programs is no address.
        let is_low = |value: u64| {
            if LOW.contains(&code) { !HIGH.contains(&value) } else { (LOWEST..LOW.end).contains(&value) }
        };
        let bit = |pointer: Pointer, value: u64| if is_low(value) { pointer.bit() } else { 0 };
        let registers = (0..16).map(|n| bit(Pointer::Register(n), state.gpr[usize::from(n)]));
        let segments = [SegmentRegister::Fs, SegmentRegister::Gs];
        let segments =
            segments.map(|segment| bit(Pointer::Segment(segment), state.segments[segment as usize].base));
        Self { blocks, low: registers.chain(segments).fold(0, |low, bit| low | bit) }
    }
}

/// What an address is computed from, above all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pointer {
    /// The general register of that number.
    Register(u8),
    /// A segment's base.
    Segment(SegmentRegister),
}

impl From<u8> for Pointer {
    fn from(register: u8) -> Self {
        Self::Register(register)
    }
}

impl Pointer {
    /// Its bit in [`Region::low`].
    pub fn bit(self) -> u32 {
        match self {
            Self::Register(number) => 1 << (number & 15),
            Self::Segment(segment) => 0x1_0000 << segment as u32,
        }
    }
}

/// Sets of registers, by number.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Registers {
    pub gpr: u16,
    pub xmm: u16,
}

impl Registers {
    pub fn or(self, other: Self) -> Self {
        Self { gpr: self.gpr | other.gpr, xmm: self.xmm | other.xmm }
    }

    pub fn and(self, other: Self) -> Self {
        Self { gpr: self.gpr & other.gpr, xmm: self.xmm & other.xmm }
    }

    pub fn without(self, other: Self) -> Self {
        Self { gpr: self.gpr & !other.gpr, xmm: self.xmm & !other.xmm }
    }
}

/// What a block does to registers.
#[derive(Clone, Copy, Default, Debug)]
struct Effects {
    /// Read before they are overwritten.
    exposed: Registers,
    /// Overwritten as a whole, whatever happens.
    overwritten: Registers,
    /// Written, perhaps.
    written: Registers,
    /// Written after the last access to memory, which finds `CpuState` up to date.
    late: Registers,
    accesses: bool,
    /// The flags that come in could be seen: by an instruction, or by whatever a fault, a poll or an exit leads to.
    flags_observed: bool,
}

impl Effects {
    fn of(bytes: &[u8], guest: &GuestBlock) -> Self {
        let mut decoder = Decoder::with_ip(guest.mode.code_bits(), bytes, guest.rip, options());
        let mut factory = InstructionInfoFactory::new();
        let mut instruction = Instruction::default();
        let mut effects = Self::default();
        let mut undecided = STATUS;
        for _ in &guest.insns {
            decoder.decode_out(&mut instruction);
            if undecided != 0 {
                let reads = instruction.rflags_read() & undecided != 0;
                effects.flags_observed |= reads || !is_plain(&instruction);
                undecided &= !instruction.rflags_modified();
            }
            let info = factory.info(&instruction);
            if info.used_memory().iter().any(|memory| memory.access() != OpAccess::NoMemAccess) {
                effects.accesses = true;
                effects.late = Registers::default();
            }
            for used in info.used_registers() {
                effects.note_read(used.register(), used.access());
            }
            for used in info.used_registers() {
                effects.note_write(used.register(), used.access());
            }
        }
        effects.flags_observed |= undecided != 0;
        effects
    }

    fn note_read(&mut self, register: Register, access: OpAccess) {
        let set = set_of(register);
        // A write to a part of a register keeps the rest.
        let whole = access == OpAccess::Write && register.size() >= 4;
        if !whole {
            self.exposed = self.exposed.or(set.without(self.overwritten));
        }
    }

    fn note_write(&mut self, register: Register, access: OpAccess) {
        let set = set_of(register);
        match access {
            OpAccess::Write | OpAccess::ReadWrite => self.overwritten = self.overwritten.or(set),
            OpAccess::CondWrite | OpAccess::ReadCondWrite => {}
            _ => return,
        }
        self.written = self.written.or(set);
        self.late = self.late.or(set);
    }
}

/// The status flags as the decoder numbers them.
const STATUS: u32 =
    RflagsBits::CF | RflagsBits::PF | RflagsBits::AF | RflagsBits::ZF | RflagsBits::SF | RflagsBits::OF;

/// Whether an instruction always completes, and changes the flags that it changes whatever its operands are.
fn is_plain(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    let shifts =
        matches!(instruction.mnemonic(), Shl | Shr | Sar) && instruction.op1_kind() == OpKind::Immediate8;
    let plain = matches!(
        instruction.mnemonic(),
        Mov | Movzx
            | Movsx
            | Movsxd
            | Lea
            | Add
            | Sub
            | And
            | Or
            | Xor
            | Cmp
            | Test
            | Inc
            | Dec
            | Neg
            | Not
            | Cdq
            | Cdqe
            | Cqo
            | Cwde
            | Bswap
            | Nop
            | Endbr64
    );
    let touches_memory = instruction.op_kinds().any(|kind| kind == OpKind::Memory);
    let segment = (0..instruction.op_count()).any(|n| !is_general(instruction, n));
    (plain || shifts && instruction.immediate8() & 0x1f != 0)
        && (!touches_memory || matches!(instruction.mnemonic(), Lea | Nop))
        && !segment
}

/// Whether an operand is anything but a register that is not a general one.
fn is_general(instruction: &Instruction, n: u32) -> bool {
    instruction.op_kind(n) != OpKind::Register || instruction.op_register(n).is_gpr()
}

fn set_of(register: Register) -> Registers {
    let bit = 1_u16.wrapping_shl(register.full_register().number() as u32);
    if register.is_gpr() {
        Registers { gpr: bit, xmm: 0 }
    } else if register.is_xmm() {
        Registers { gpr: 0, xmm: bit }
    } else {
        Registers::default()
    }
}

/// What comes to a merge as parameters.
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct Carried {
    /// May be newer than in `CpuState`.
    pub dirty: Registers,
    /// As in `CpuState`, and worth keeping.
    pub clean: Registers,
    /// Flags must be in `CpuState`. Otherwise nothing can see them.
    pub flags: bool,
}

/// How control flows in a region.
pub(crate) struct Plan {
    blocks: HashMap<u64, usize>,
    /// Where each block begins.
    pub rips: Vec<u64>,
    /// See [`RegionBlock::foreseen`].
    pub foreseen: Vec<Option<u64>>,
    /// See [`RegionBlock::addend`].
    pub addends: Vec<u64>,
    /// More than one edge leads there.
    pub merges: Vec<bool>,
    /// At merges.
    pub carried: Vec<Carried>,
    /// Where calls inside the region return to, if that is in the region too.
    pub returns: Vec<u64>,
    /// Registers that are read somewhere and written nowhere.
    pub invariant: Registers,
    /// Registers that may be read, from the beginning of each block on, before they are overwritten.
    pub live: Vec<Registers>,
    /// Registers that may have been written when each block begins.
    pub written: Vec<Registers>,
    /// Registers that point anywhere where each block begins, whichever way one comes there inside the region.
    pub strange: Vec<locality::Set>,
}

impl Plan {
    pub fn of(region: &Region) -> Self {
        let numbered = region.blocks.iter().enumerate();
        let blocks: HashMap<u64, usize> = numbered.map(|(number, block)| (block.guest.rip, number)).collect();
        let mut returns: Vec<u64> = region
            .blocks
            .iter()
            .filter_map(|block| Some((block.guest.insns.last()?, block.called()?)))
            .filter(|(_, called)| blocks.contains_key(called))
            .map(|(last, _)| last.next_rip())
            .filter(|rip| blocks.contains_key(rip))
            .collect();
        returns.sort_unstable();
        returns.dedup();
        returns.truncate(MOST_RETURNS);

        let successors: Vec<Vec<usize>> =
            region.blocks.iter().map(|block| successors(block, &blocks, &returns)).collect();
        let mut edges = vec![0; region.blocks.len()];
        edges[0] = 1;
        for &successor in successors.iter().flatten() {
            edges[successor] += 1;
        }

        let effects: Vec<&Effects> = region.blocks.iter().map(|block| &block.effects).collect();
        let written = effects.iter().fold(Registers::default(), |all, effects| all.or(effects.written));
        let exposed = effects.iter().fold(Registers::default(), |all, effects| all.or(effects.exposed));
        let live = live(&effects, &successors);
        let mut carried = dirty(&effects, &successors);
        for (number, carried) in carried.iter_mut().enumerate() {
            carried.clean = live[number].and(written).without(carried.dirty);
            carried.flags = effects[number].flags_observed;
        }
        Self {
            blocks,
            rips: region.blocks.iter().map(|block| block.guest.rip).collect(),
            foreseen: region.blocks.iter().map(|block| block.foreseen).collect(),
            addends: region.blocks.iter().map(|block| block.addend).collect(),
            merges: edges.iter().map(|&edges| edges > 1).collect(),
            carried,
            returns,
            strange: strange(region, &successors),
            written: written_before(&effects, &successors),
            live,
            invariant: exposed.without(written),
        }
    }

    /// The block that begins at `rip`.
    pub fn find(&self, rip: u64) -> Option<usize> {
        self.blocks.get(&rip).copied()
    }
}

/// What may be dirty where each block begins.
fn dirty(effects: &[&Effects], successors: &[Vec<usize>]) -> Vec<Carried> {
    let mut carried = vec![Carried::default(); effects.len()];
    let mut changed = true;
    while changed {
        changed = false;
        for (number, effects) in effects.iter().enumerate() {
            let before = carried[number];
            let kept = if effects.accesses { Registers::default() } else { before.dirty };
            let after = kept.or(effects.late);
            for &successor in &successors[number] {
                let known = &mut carried[successor];
                let joined = known.dirty.or(after);
                changed |= joined != known.dirty;
                known.dirty = joined;
            }
        }
    }
    carried
}

/// What the region may have written when each block begins.
fn written_before(effects: &[&Effects], successors: &[Vec<usize>]) -> Vec<Registers> {
    let mut before = vec![Registers::default(); effects.len()];
    let mut changed = true;
    while changed {
        changed = false;
        for (number, effects) in effects.iter().enumerate() {
            let after = before[number].or(effects.written);
            for &successor in &successors[number] {
                let joined = before[successor].or(after);
                changed |= joined != before[successor];
                before[successor] = joined;
            }
        }
    }
    before
}

/// What the region reads, from the beginning of each block on, before it overwrites it.
fn live(effects: &[&Effects], successors: &[Vec<usize>]) -> Vec<Registers> {
    let mut live: Vec<Registers> = effects.iter().map(|effects| effects.exposed).collect();
    let mut changed = true;
    while changed {
        changed = false;
        for (number, effects) in effects.iter().enumerate().rev() {
            let after = successors[number]
                .iter()
                .fold(Registers::default(), |all, &successor| all.or(live[successor]));
            let before = live[number].or(after.without(effects.overwritten));
            changed |= before != live[number];
            live[number] = before;
        }
    }
    live
}

/// See [`Plan::strange`]: the least solution, so that in a loop a register is strange only if the loop makes it so.
fn strange(region: &Region, successors: &[Vec<usize>]) -> Vec<locality::Set> {
    let mut begin = vec![locality::Set::default(); region.blocks.len()];
    let end = |block: &RegionBlock, begin| {
        block.guest.insns.iter().fold(begin, |set, insn| locality::after(insn, set))
    };
    let mut ends: Vec<locality::Set> = region.blocks.iter().map(|block| end(block, 0)).collect();
    let mut changed = true;
    while changed {
        changed = false;
        let mut met = vec![locality::Set::MAX; region.blocks.len()];
        for (end, successors) in ends.iter().zip(successors) {
            for &successor in successors {
                met[successor] &= end;
            }
        }
        for (number, block) in region.blocks.iter().enumerate() {
            let joined = begin[number] | met[number];
            if joined != begin[number] {
                changed = true;
                begin[number] = joined;
                ends[number] = end(block, joined);
            }
        }
    }
    begin
}

/// Whether an indirect transfer mostly leads to where it did last: a call, or the jump of a linkage table, but not that of a switch,
/// nor a return.
pub fn is_foreseeable(insn: &Insn) -> bool {
    match insn.code.flow_control() {
        FlowControl::IndirectCall => true,
        FlowControl::IndirectBranch => {
            insn.operand(0) == Operand::Memory && insn.memory.index == MemoryOperand::NONE
        }
        _ => false,
    }
}

/// Where control can go inside the region after a block.
fn successors(block: &RegionBlock, blocks: &HashMap<u64, usize>, returns: &[u64]) -> Vec<usize> {
    let Some(last) = block.guest.insns.last() else { return Vec::new() };
    let near = (last.operand(0) == Operand::Near).then_some(last.immediate);
    let targets: Vec<u64> = match last.code.flow_control() {
        FlowControl::Return => returns.to_vec(),
        FlowControl::ConditionalBranch => near.into_iter().chain([last.next_rip()]).collect(),
        FlowControl::UnconditionalBranch | FlowControl::Call => near.into_iter().collect(),
        FlowControl::IndirectBranch | FlowControl::IndirectCall => block.foreseen.into_iter().collect(),
        FlowControl::Next => vec![last.next_rip()],
        _ => Vec::new(),
    };
    targets.iter().filter_map(|target| blocks.get(target).copied()).collect()
}

/// Whether two addresses lie in the same page.
pub(crate) fn same_page(a: u64, b: u64) -> bool {
    (a ^ b) & PAGE_MASK == 0
}

/// The linear page after that of `rip`.
pub fn next_page(rip: u64, mode: Mode) -> u64 {
    let next = (rip | !PAGE_MASK).wrapping_add(1);
    if mode.is_64bit() { next } else { next & 0xffff_ffff }
}
