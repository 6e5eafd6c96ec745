//! Cold paths: noted where the block jumps to them, written behind it.

use core::mem::offset_of;

use memory::tlb::recent_offset;
use x86::{CpuState, PAGE_MASK};

use super::{
    Template,
    assembler::{Jump, Mem, RAX, RCX, RDI, RSI, Reg, STATE, gpr_offset, xmm_offset},
    count::INSTRUCTIONS,
    flags::Flags,
    known::{FAR, KnownPages},
    memory::{Access, Address},
    region::Course,
    registers::{Registers, numbers},
};
use crate::{
    Part,
    abi::{FIRST_RUNTIME_HELPER, Leave, RuntimeHelper, SlowPath},
    carried,
    instrument::Event,
    misses::{self, Miss},
};

const RIP: usize = offset_of!(CpuState, rip);
const SCRATCH: usize = offset_of!(CpuState, scratch);

/// A cold path.
#[derive(Clone, Copy)]
pub(super) struct Cold {
    /// The jump that leads there, unless the host's fault does.
    pub from: Option<Jump>,
    /// Where it goes on, if it does.
    pub resume: usize,
    /// The block that it belongs to, and the instruction in that.
    pub block: usize,
    pub index: usize,
    /// As they are there.
    pub registers: Registers,
    pub flags: Flags,
    /// See [`Template::pending`].
    pub pending: i32,
    pub kind: ColdKind,
}

/// What it does.
#[derive(Clone, Copy)]
pub(super) enum ColdKind {
    /// Fills the TLB for an access and has it looked up again, or abandons the instruction.
    Miss { address: Address, access: Access, temporaries: [Reg; 2] },
    /// Finds the page of an access, or abandons the instruction. The pair has then what [`super::known`] says; `forgets`: only that
    /// the page can be read is known then, though more was known before. If there is a recent page for the access, it becomes that.
    Near {
        base: Reg,
        displacement: i32,
        access: Access,
        pair: [Reg; 2],
        recent: Option<usize>,
        forgets: bool,
    },
    /// Makes the recent page of that number that of an access, or abandons the instruction. The second temporary gets its addend.
    Recent { page: usize, address: Address, access: Access, temporaries: [Reg; 2] },
    /// Leaves with a reason, at the start of the block, or of the region.
    AtEntry(Leave),
    /// Leaves with a reason, at the start of another block of the region.
    Before(Leave, u64),
    /// Leaves the region by a direct exit.
    Exit(u64),
    /// Leaves the block by the current instruction, a branch that is taken.
    Taken(u64),
    /// Leaves by a guarded slot.
    Guard(u32),
    /// Jumps through a slot.
    Unlinked(u32),
    /// Abandons the instruction.
    Abandon,
    /// The same, for an address that is not in the part of the window that was guessed: by a fault of the host, so that it is noticed.
    Outside(Part),
    /// The same, where the host faults at the access at that offset.
    Fault(u32),
    /// Leaves to the target in RAX, for which the jump cache has no code; abandons the instruction, which has moved RSP by so much, if it is not canonical.
    Missed(i32),
    /// Leaves to the target in RAX, which is canonical.
    Indirect,
    /// Calls what an entry of the function table has, and goes on. It keeps all registers.
    Call(usize),
    /// Does the instruction once more, through a chain slot, and so with a poll. The state is settled.
    Again,
}

impl Cold {
    /// What the state is made from there.
    fn place(&self) -> (usize, usize, Registers, Flags, i32) {
        (self.block, self.index, self.registers, self.flags, self.pending)
    }
}

/// A call of what misses have in common.
#[derive(Clone, Copy)]
struct Tail {
    call: Jump,
    place: TailPlace,
    /// What is newer than in the state.
    newer: Newer,
}

/// All of them.
#[derive(Default)]
pub(super) struct Tails {
    noted: Vec<Tail>,
    /// While those of one place are written: what the ones to come store, and what is written, with its place.
    sets: Vec<Newer>,
    written: Vec<(Newer, usize)>,
}

/// What a tail depends on besides what it stores.
#[derive(Clone, Copy, PartialEq, Eq)]
struct TailPlace {
    /// What the instructions' addresses are counted from.
    base: u64,
    helper: RuntimeHelper,
    /// Which recent page it is to make.
    page: usize,
    temporaries: [Reg; 2],
    homes: [Reg; 16],
}

/// What has to be stored before the state can be looked at: bits of registers, XMM registers, and flags.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Newer(u64);

impl Newer {
    const XMM: u32 = 16;
    const FLAGS: u64 = 1 << 32;
    /// Their kind too.
    const KIND: u64 = 1 << 33;
    /// All carried registers, in place.
    const CARRIED: u64 = 1 << 34;

    fn of(registers: &Registers, flags: &Flags) -> Self {
        let (image, kind) = flags.unsaved();
        let (gpr, carried) = registers.newer();
        let bit = |set: bool, bit: u64| if set { bit } else { 0 };
        let others = bit(image, Self::FLAGS) | bit(kind, Self::KIND) | bit(carried, Self::CARRIED);
        Self(u64::from(gpr) | u64::from(registers.dirty_xmm) << Self::XMM | others)
    }

    fn includes(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl Template<'_> {
    /// Notes a cold path of the current instruction.
    pub(super) fn note(&mut self, from: Jump, resume: usize, kind: ColdKind) {
        let (block, index) = (self.at, self.index);
        let (registers, flags, pending) = (self.registers, self.flags, self.pending);
        let from = Some(from);
        self.cold.push(Cold { from, resume, block, index, registers, flags, pending, kind });
    }

    /// Writes all cold paths.
    pub(super) fn finish(&mut self) {
        let mut done = 0;
        let mut missed = None;
        let mut refused = None;
        // What all that leaves at the entry ends with.
        let mut at_entry = None;
        // There are more of them while they are written.
        while let Some(&cold) = self.cold.get(done) {
            done += 1;
            // Four checks of an exit lead to the same.
            if let ColdKind::Missed(_) | ColdKind::Indirect = cold.kind {
                let place = (cold.block, cold.index, cold.pending);
                match missed {
                    Some((of, at)) if of == place => {
                        cold.from.into_iter().for_each(|from| self.asm.bind_at(from, at));
                        continue;
                    }
                    _ => missed = Some((place, self.asm.code.len())),
                }
            }
            let block = self.blocks[cold.block];
            self.return_to(cold.block, cold.index);
            (self.registers, self.flags, self.pending) = (cold.registers, cold.flags, cold.pending);
            cold.from.into_iter().for_each(|from| self.asm.bind(from));
            self.begin_source(cold.index);
            let rip = block.insns[cold.index].rip;
            match cold.kind {
                ColdKind::Miss { address, access, temporaries } => {
                    self.linear(address, temporaries[0]);
                    self.miss(access, RuntimeHelper::FillMiss, 0, temporaries);
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Recent { page, address, access, temporaries } => {
                    self.linear(address, temporaries[0]);
                    self.miss(access, RuntimeHelper::RecentMiss, page, temporaries);
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Near { base, displacement, access, pair, recent, forgets } => {
                    let [first, _] = pair;
                    self.linear(Address::Based { base, displacement }, first);
                    let helper =
                        if recent.is_some() { RuntimeHelper::RecentMiss } else { RuntimeHelper::NearMiss };
                    self.miss(access, helper, recent.unwrap_or(0), pair);
                    if forgets {
                        self.asm.constant(first, FAR);
                    }
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Call(entry) => {
                    // Which registers are free is not known here.
                    self.call_keeping_all(entry);
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Again => {
                    self.hand_over();
                    self.uncount(1);
                    self.chain(rip);
                }
                ColdKind::AtEntry(leave) => {
                    self.asm.constant(RAX, leave as u64);
                    match at_entry {
                        Some(rest) => self.asm.jump_back(rest),
                        None => {
                            at_entry = Some(self.asm.code.len());
                            self.asm.call(Mem::state(carried::STORE));
                            self.asm.store_constant(Mem::state(RIP), self.blocks[0].insns[0].rip, RCX);
                            self.asm.ret();
                        }
                    }
                }
                ColdKind::Before(leave, rip) => {
                    self.settle();
                    self.count_pending();
                    if leave == Leave::Poll {
                        self.count_event(Event::Polled, 1, RCX);
                    }
                    self.asm.store_constant(Mem::state(RIP), rip, RCX);
                    self.leave(leave);
                }
                ColdKind::Exit(target) => {
                    self.hand_over();
                    self.count_pending();
                    self.chain(target);
                }
                ColdKind::Taken(target) => {
                    self.hand_over();
                    self.uncount(1);
                    self.chain(target);
                }
                ColdKind::Unlinked(slot) => {
                    let here = self.asm.code.len() as u32;
                    if let Some(jump) = &mut self.exits[slot as usize].jump {
                        jump.unlinked = here;
                    }
                    self.slot_address(slot);
                    self.asm.jump_to(Mem::state(carried::EXIT));
                }
                ColdKind::Guard(slot) => {
                    self.slot_address(slot);
                    self.asm.jump_to(Mem::state(carried::GUARD));
                }
                ColdKind::Abandon => self.abandon(rip),
                ColdKind::Outside(part) => {
                    let halt = self.asm.code.len() as u32;
                    self.asm.halt();
                    self.note_refused(halt, halt + 1, Some(part));
                    refused = Some((cold.place(), halt + 1));
                    self.abandon(rip);
                }
                ColdKind::Fault(access) => {
                    let here = self.asm.code.len() as u32;
                    let same = refused.filter(|(place, _)| *place == cold.place());
                    let (_, at) = *refused.insert(same.unwrap_or((cold.place(), here)));
                    self.note_refused(access, at, None);
                    if at == here {
                        self.abandon(rip);
                    }
                }
                ColdKind::Missed(by) => {
                    self.asm.call(Mem::state(carried::MISSED));
                    if by != 0 {
                        let top = self.registers.home(super::RSP);
                        self.asm.lea(top, Mem::new(top, -by));
                    }
                    self.abandon(rip);
                }
                ColdKind::Indirect => {
                    self.settle();
                    self.asm.store(Mem::state(RIP), RAX);
                    self.leave(Leave::Indirect);
                }
            }
        }
        self.write_tails();
        self.end_source();
    }

    fn abandon(&mut self, rip: u64) {
        self.settle();
        self.uncount(0);
        self.store_rip(rip);
        self.leave(Leave::Step);
    }

    /// Corrects the count of instructions where only `done` are done of those from the current one on.
    fn uncount(&mut self, done: i32) {
        let uncounted = self.uncounted() - done;
        if uncounted != 0 {
            self.asm.add_immediate(Mem::state(INSTRUCTIONS), -uncounted);
        }
        self.count_event(Event::Undone, self.undone() - done, self.registers.temporaries[0]);
    }

    /// Calls what sees to a miss of the current instruction's access, whose address is in the first temporary.
    fn miss(&mut self, access: Access, helper: RuntimeHelper, page: usize, temporaries: [Reg; 2]) {
        let loose = self.flags.are_loose();
        // Where it goes on, RAX has what flags are computed from. Twice, so that the stack is as aligned as before.
        let kept = loose && self.flags.source.is_some_and(|source| source.loaded);
        if kept {
            self.asm.push(RAX);
            self.asm.push(RAX);
        }
        if loose {
            self.save_flags();
        }
        let second = temporaries[1];
        let rip = self.insns[self.index].rip;
        let base = self.tail_base(rip);
        let miss = Miss {
            bytes: access.bytes,
            write: access.write,
            aligned: access.aligned,
            uncounted: self.uncounted() as i8,
            distance: rip.wrapping_sub(base) as u16,
        };
        self.count_call(FIRST_RUNTIME_HELPER + helper as usize, second);
        // What is called does not come back from an access that is abandoned.
        self.count_event(Event::Undone, self.undone(), second);
        self.asm.number(second, miss.packed());
        let call = self.asm.call_forward();
        let newer = Newer::of(&self.registers, &self.flags);
        let place = TailPlace { base, helper, page, temporaries, homes: self.registers.homes() };
        self.tails.noted.push(Tail { call, place, newer });
        if kept {
            self.asm.pop(RAX);
            self.asm.pop(RAX);
        }
        self.count_event(Event::Undone, -self.undone(), second);
        if helper != RuntimeHelper::FillMiss {
            self.asm.load(second, Mem::state(SCRATCH));
        }
    }

    /// Where the distance to an instruction is counted from: in a region the same for all blocks, if it can be.
    fn tail_base(&self, rip: u64) -> u64 {
        let lowest = self.course.as_ref().map(Course::lowest);
        lowest.filter(|lowest| rip - lowest <= Miss::MOST_DISTANCE).unwrap_or(self.insns[0].rip)
    }

    /// What misses have in common: storing what is newer than in the state, and the call. What stores more goes on into what stores a
    /// part of it.
    fn write_tails(&mut self) {
        let mut tails = core::mem::take(&mut self.tails);
        let Tails { noted, sets, written } = &mut tails;
        while let Some(&Tail { place, .. }) = noted.first() {
            sets.clear();
            written.clear();
            sets.push(Newer(0));
            for tail in noted.iter().filter(|tail| tail.place == place) {
                if !sets.contains(&tail.newer) {
                    sets.push(tail.newer);
                }
            }
            sets.sort_by_key(|newer| newer.0.count_ones());
            while let Some(mut newer) = sets.pop() {
                loop {
                    written.push((newer, self.asm.code.len()));
                    // The smallest, which stores nothing, is part of all.
                    let known = written.iter().filter(|(other, _)| *other != newer && newer.includes(*other));
                    let known = known.copied().max_by_key(|(other, _)| other.0.count_ones());
                    let part = sets.iter().rposition(|other| newer.includes(*other));
                    match (part, known) {
                        (Some(part), known)
                            if known.is_none_or(|(known, _)| {
                                known.0.count_ones() <= sets[part].0.count_ones()
                            }) =>
                        {
                            let next = sets.remove(part);
                            self.store_newer(Newer(newer.0 & !next.0), &place);
                            newer = next;
                        }
                        (_, Some((known, at))) => {
                            self.store_newer(Newer(newer.0 & !known.0), &place);
                            self.asm.jump_back(at);
                            break;
                        }
                        _ => {
                            self.call_fill(&place);
                            break;
                        }
                    }
                }
            }
            noted.retain(|tail| {
                let same = tail.place == place;
                if let Some((_, at)) = written.iter().find(|(newer, _)| same && *newer == tail.newer) {
                    self.asm.bind_at(tail.call, *at);
                }
                !same
            });
        }
        self.tails = tails;
    }

    fn store_newer(&mut self, newer: Newer, place: &TailPlace) {
        if newer.0 & Newer::CARRIED != 0 {
            self.asm.call(Mem::state(carried::STORE));
        }
        for guest in numbers(newer.0 as u16) {
            self.asm.store(Mem::state(gpr_offset(guest)), place.homes[usize::from(guest)]);
        }
        for index in numbers((newer.0 >> Newer::XMM) as u16) {
            self.asm.store_xmm(Mem::state(xmm_offset(index)), index);
        }
        self.store_kept_flags(newer.0 & Newer::FLAGS != 0, newer.0 & Newer::KIND != 0);
    }

    fn call_fill(&mut self, place: &TailPlace) {
        let [first, second] = place.temporaries;
        self.asm.store(Mem::state(SCRATCH + 8), second);
        if let Some(common) = misses::common(place.helper, place.page, place.temporaries) {
            self.asm.constant(second, place.base);
            self.asm.jump_to(Mem::state(common));
            return;
        }
        self.asm.store(Mem::state(SlowPath::argument(0)), first);
        if place.helper == RuntimeHelper::RecentMiss {
            self.asm.store_immediate(Mem::state(SlowPath::argument(1)), recent_offset(place.page));
        }
        self.asm.store_constant(Mem::state(RIP), place.base, second);
        self.asm.load(second, Mem::state(offset_of!(CpuState, helpers)));
        // Jumped to, it would find the stack out of alignment.
        self.asm.call(Mem::new(second, 8 * (FIRST_RUNTIME_HELPER + place.helper as usize) as i32));
        if place.helper != RuntimeHelper::FillMiss {
            self.asm.and_immediate(first, !PAGE_MASK as i32);
        }
        self.asm.ret();
    }

    /// Returns to the runtime.
    pub(super) fn leave(&mut self, how: Leave) {
        self.asm.constant(RAX, how as u64);
        self.asm.ret();
    }

    pub(super) fn store_rip(&mut self, rip: u64) {
        self.asm.store_constant(Mem::state(RIP), rip, RCX);
    }

    fn call_keeping_all(&mut self, entry: usize) {
        self.asm.push(RAX);
        self.count_call(entry, RAX);
        self.asm.load(RAX, Mem::state(offset_of!(CpuState, helpers)));
        self.asm.call(Mem::new(RAX, 8 * entry as i32));
        self.asm.pop(RAX);
    }

    /// Calls a function of the runtime with the state and perhaps a constant; gives its result in RAX. The state is
    /// settled, and host flags are lost; no guest register is in a host register afterwards.
    pub(super) fn call_runtime(&mut self, helper: RuntimeHelper, argument: Option<u64>) {
        let entry = FIRST_RUNTIME_HELPER + helper as usize;
        self.count_call(entry, RAX);
        self.asm.push(RAX);
        self.asm.mov(RDI, STATE);
        if let Some(argument) = argument {
            self.asm.constant(RSI, argument);
        }
        self.asm.load(RAX, Mem::state(offset_of!(CpuState, helpers)));
        self.asm.call(Mem::new(RAX, 8 * entry as i32));
        self.asm.pop(RCX);
        (self.registers.loaded, self.registers.loaded_xmm) = (0, 0);
        self.known = KnownPages::default();
        self.lose_kept_flags();
    }
}
