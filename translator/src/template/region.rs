//! Several guest blocks in one piece of code: a [`Region`] by templates, in some tens of microseconds.
//!
//! What a block costs alone falls away inside: the poll, loading and storing registers, saving flags, the guards of chains and the
//! jump cache of returns. A block to which one edge leads is written where that edge is, with all that is known there. At
//! a merge ([`crate::region::Plan`]) registers are in the homes that the region's plan gives them, those that are live there or may have been written
//! loaded; flags are saved if anything can see them. Every cycle polls: on each edge to a merge that stands before it.
//!
//! Code goes on with the likelier way of a branch, which is the one that does not jump, unless only the other stays inside; other ways
//! [wait](Waiting) until that one has ended.
//!
//! Instructions are counted where something can look at the count ([`Template::pending`]).

use core::mem::offset_of;

use semantics::Insn;
use x86::{CpuState, PAGE_MASK};

use super::{
    Template,
    assembler::{Jump, Mem, Reg, condition, gpr_offset, xmm_offset},
    cold::ColdKind,
    effects,
    flags::Flags,
    float,
    known::KnownPages,
    registers::{Registers, numbers},
    vector,
};
use crate::{
    TranslateError,
    abi::Leave,
    carried, locality,
    region::{Plan, Region, Versions, same_page},
};

const REQUEST: usize = offset_of!(CpuState, exit_request);

/// Instructions that may be done and not counted when a block begins: with those of a block, a [`crate::misses::Miss`] can
/// still say how many.
const MOST_PENDING: i32 = 60;

/// What is known at a place in the code.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub registers: Registers,
    pub flags: Flags,
    pub known: KnownPages,
    pub pending: i32,
    /// Block and instruction.
    pub at: (usize, usize),
}

/// A way on that is written later.
struct Waiting {
    from: Jump,
    known: Known,
    way: Way,
}

#[derive(Clone, Copy)]
pub(super) enum Way {
    /// To a constant target.
    Direct(u64),
    /// By a RET that moves RSP by so much, to that target.
    Return(u64, i32),
    /// By a RET to the target in a register.
    ReturnExit(Reg, i32),
    /// By another indirect transfer.
    IndirectExit(Reg),
    /// On in the block of that number, with every access checked by itself.
    Careful(usize),
}

/// What is written next.
enum Next {
    /// The block of that number.
    Block(usize),
    /// What is left of it, once more: see [`Way::Careful`].
    Careful(usize),
}

/// A block of the region that is being written.
#[derive(Clone, Copy, Default)]
struct Node {
    /// An edge leads to it.
    reached: bool,
    /// Where it stands.
    written: Option<usize>,
}

/// The region that is being written.
pub(super) struct Course {
    plan: Plan,
    nodes: Vec<Node>,
    /// Homes at merges.
    homes: Registers,
    has_float: bool,
    waiting: Vec<Waiting>,
    /// What is written next, right here.
    next: Option<usize>,
    /// The number of the block that is being written.
    current: usize,
    /// [`Region::low`].
    low: u32,
    /// Address of its first instruction in memory.
    lowest: u64,
}

impl Course {
    /// How many ways wait.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Which pointers were low when the region was formed.
    pub fn low(&self) -> u32 {
        self.low
    }

    /// Address of the first of its instructions.
    pub fn lowest(&self) -> u64 {
        self.lowest
    }

    /// All blocks are to be written anew.
    pub fn begin_anew(&mut self) {
        self.nodes.fill(Node::default());
    }

    /// Has no more of them wait than so many.
    pub fn let_wait(&mut self, most: usize) {
        self.waiting.truncate(most);
    }
}

impl<'a> Template<'a> {
    /// Writes a region; gives how many instructions and bytes it was made from.
    pub(super) fn region(
        &mut self,
        region: &'a Region,
        versions: Versions,
    ) -> Result<(u16, u16), TranslateError> {
        let insns = || region.blocks.iter().flat_map(|block| &block.guest.insns);
        let first = &region.blocks[0];
        let plan = Plan::of(region);
        let versions = self.may_use_windows(region, &plan).then_some(versions);
        self.registers = Registers::plan(insns());
        self.load_carried();
        self.poll();
        let check = (versions == Some(Versions::Window)).then(|| self.leave_without_window());
        self.enter(first.guest.rip, false, first.second);
        self.take_over();
        let has_float = !self.mode.float_traps() && !self.mode.sse_traps() && insns().any(uses_mxcsr);
        self.insns = &first.guest.insns;
        let jumped = insns().filter(|insn| !locality::is_step(insn)).map(effects::written);
        self.steady = !jumped.fold(0, |all, written| all | written);
        if has_float {
            self.need_mxcsr();
        }
        self.course = Some(Course {
            plan,
            nodes: vec![Node::default(); region.blocks.len()],
            homes: self.registers,
            has_float,
            waiting: Vec::new(),
            next: None,
            current: 0,
            low: region.low,
            lowest: region.blocks.iter().map(|block| block.guest.rip).min().unwrap_or(first.guest.rip),
        });
        self.page = first.guest.rip & PAGE_MASK;
        let made = match versions {
            None => return self.version(region),
            Some(Versions::Window) => {
                self.begin_window();
                let made = self.version(region)?;
                self.end_window();
                made
            }
            Some(Versions::Both) => {
                let (check, off) = self.unless_window();
                let made = self.version(region)?;
                if !self.has_accesses() {
                    self.end_window();
                    self.skip(check);
                    return Ok(made);
                }
                self.without_window(off);
                self.version(region)?
            }
        };
        if let Some(check) = check.filter(|_| !self.has_accesses()) {
            self.skip(check);
        }
        Ok(made)
    }

    /// Writes the blocks of a region that can be reached from its first one; gives how many instructions and bytes they are.
    fn version(&mut self, region: &'a Region) -> Result<(u16, u16), TranslateError> {
        self.go_inside(region.blocks[0].guest.rip);
        self.ways(region)
    }

    /// Writes what waits.
    fn ways(&mut self, region: &'a Region) -> Result<(u16, u16), TranslateError> {
        let (mut instructions, mut bytes) = (0, 0);
        while let Some(next) = self.next_block() {
            let number = match next {
                Next::Block(number) => number,
                Next::Careful(number) => {
                    (self.careful, self.strange, self.recent) = (true, None, None);
                    self.block_from(&region.blocks[number].guest, self.index)?;
                    self.careful = false;
                    continue;
                }
            };
            let block = &region.blocks[number];
            // The first one's was guarded where the region was entered.
            self.begin_block(&block.guest, number, block.second.filter(|_| number != 0));
            self.strange = self.course.as_ref().map(|course| course.plan.strange[number]);
            self.small = 0;
            let (of_block, length) = self.block(&block.guest)?;
            (instructions, bytes) = (instructions + of_block, bytes + length);
        }
        Ok((instructions, bytes))
    }

    /// What is written next; ways on that lead nowhere in the region are written first.
    fn next_block(&mut self) -> Option<Next> {
        loop {
            let course = self.course.as_mut()?;
            if let Some(number) = course.next.take() {
                course.nodes[number].written = Some(self.asm.code.len());
                course.current = number;
                return Some(Next::Block(number));
            }
            let Waiting { from, known, way } = course.waiting.pop()?;
            if let Way::Careful(number) = way {
                course.current = number;
            }
            self.asm.bind(from);
            self.know(known);
            match way {
                Way::Careful(number) => return Some(Next::Careful(number)),
                _ => self.go(way),
            }
        }
    }

    pub(super) fn known(&self) -> Known {
        let (registers, flags, known, pending) = (self.registers, self.flags, self.known, self.pending);
        Known { registers, flags, known, pending, at: (self.at, self.index) }
    }

    pub(super) fn know(&mut self, known: Known) {
        self.return_to(known.at.0, known.at.1);
        (self.registers, self.flags) = (known.registers, known.flags);
        (self.known, self.pending) = (known.known, known.pending);
    }

    fn later(&mut self, from: Jump, way: Way) {
        let known = self.known();
        if let Some(course) = &mut self.course {
            course.waiting.push(Waiting { from, known, way });
        }
    }

    /// A jump to a second version of what is left of the block from the current instruction on, none of which is done.
    pub(super) fn later_careful(&mut self, from: Jump) {
        let known = Known { known: KnownPages::default(), ..self.known() };
        if let Some(course) = &mut self.course {
            course.waiting.push(Waiting { from, known, way: Way::Careful(course.current) });
        }
    }

    fn go(&mut self, way: Way) {
        match way {
            Way::Direct(target) => self.direct_exit(target),
            Way::Return(target, by) => {
                let top = self.registers.home(super::RSP);
                self.asm.lea(top, Mem::new(top, by));
                self.write_moved(super::RSP, by);
                self.complete();
                self.direct_exit(target);
            }
            Way::ReturnExit(target, by) => self.return_exit(target, by),
            Way::IndirectExit(target) => self.indirect_exit(target, 0),
            // `next_block` has it written.
            Way::Careful(_) => {}
        }
    }

    /// The block at `target`, if an edge can lead there from here.
    fn inside(&self, target: u64) -> Option<usize> {
        let course = self.course.as_ref()?;
        let number = course.plan.find(target)?;
        // A second edge to a block that the plan knows one edge to stays an exit.
        (course.plan.merges[number] || !course.nodes[number].reached).then_some(number)
    }

    /// Goes on at a constant target if that is inside the region.
    pub(super) fn go_inside(&mut self, target: u64) -> bool {
        let Some(number) = self.inside(target) else { return false };
        let Some(course) = &self.course else { return false };
        // Nothing inside a region changes a mapping, so its first page is where it was when it was entered.
        if target & PAGE_MASK != self.page && !same_page(target, course.plan.rips[0]) {
            let addend = course.plan.addends[number];
            self.keep_flags();
            self.guard(target, addend, ColdKind::Exit(target));
        }
        let Some(course) = &mut self.course else { return false };
        course.nodes[number].reached = true;
        let Node { written, .. } = course.nodes[number];
        if course.plan.merges[number] {
            let seen = course.plan.carried[number].flags;
            if seen && self.registers.keeps_flags() {
                self.bring_flags_to_rax();
            } else if seen {
                self.save_flags();
            } else if written.is_some() {
                self.keep_flags();
            } else {
                // Nothing can see them.
                self.drop_flags();
            }
            self.lose_host_flags();
            self.count_pending();
            if written.is_some() {
                self.asm.compare_immediate32(Mem::state(REQUEST), 0);
                let from = self.asm.jump_if(condition::NOT_EQUAL);
                self.note(from, 0, ColdKind::Before(Leave::Poll, target));
            }
            self.merge(number);
        } else if self.pending > MOST_PENDING {
            self.keep_flags();
            self.lose_host_flags();
            self.count_pending();
        }
        match written {
            Some(written) => self.asm.jump_back(written),
            None => {
                if let Some(course) = &mut self.course {
                    course.next = Some(number);
                }
            }
        }
        true
    }

    /// Makes what is known that which is known at a merge.
    fn merge(&mut self, number: usize) {
        let Some(course) = &self.course else { return };
        let (homes, has_float) = (course.homes, course.has_float);
        let housed = homes.housed();
        let course_flags = course.plan.carried[number].flags;
        // Those that are carried are newer than in the state from the start.
        let mut written = course.plan.written[number];
        written.gpr |= carried::ALL;
        let loaded = written.or(course.plan.live[number]);
        let moved = self.registers.displaced(&homes);
        for guest in numbers(self.registers.dirty & (moved | !housed | !written.gpr)) {
            self.asm.store(Mem::state(gpr_offset(guest)), self.registers.home(guest));
        }
        for index in numbers(self.registers.dirty_xmm & !written.xmm) {
            self.asm.store_xmm(Mem::state(xmm_offset(index)), index);
        }
        self.registers.rehouse(&homes);
        for guest in numbers(loaded.gpr & housed & !self.registers.loaded) {
            self.asm.load(self.registers.home(guest), Mem::state(gpr_offset(guest)));
        }
        for index in numbers(loaded.xmm & !self.registers.loaded_xmm) {
            self.asm.load_xmm(index, Mem::state(xmm_offset(index)));
        }
        self.registers.loaded = loaded.gpr & housed;
        self.registers.dirty = written.gpr & housed;
        (self.registers.loaded_xmm, self.registers.dirty_xmm) = (loaded.xmm, written.xmm);
        let kept = course_flags && self.registers.keeps_flags();
        self.flags = if kept { Flags::kept() } else { Flags::default() };
        self.known = KnownPages::default();
        self.mxcsr_loaded = has_float;
    }

    /// Both ways of a conditional branch whose condition the host's flags have.
    pub(super) fn branch_inside(&mut self, condition: u8, target: u64, next: u64) {
        let is_behind = |template: &Self, rip: u64| {
            let number = template.inside(rip);
            let course = template.course.as_ref();
            number.zip(course).is_some_and(|(number, course)| course.nodes[number].written.is_some())
        };
        let taken_first =
            is_behind(self, target) || self.inside(next).is_none() && self.inside(target).is_some();
        let (condition, first, second) =
            if taken_first { (condition ^ 1, target, next) } else { (condition, next, target) };
        let other = self.asm.jump_if(condition);
        self.later(other, Way::Direct(second));
        self.direct_exit(first);
    }

    /// A return to the target in the last temporary: to where calls inside the region come back, if there is such a place. Flags are saved.
    pub(super) fn return_inside(&mut self, target: Reg, by: i32) -> bool {
        let Some(course) = &self.course else { return false };
        let returns: Vec<u64> =
            course.plan.returns.iter().copied().filter(|&rip| self.inside(rip).is_some()).collect();
        let Some((&last, others)) = returns.split_last() else { return false };
        for &rip in others {
            self.compare_target(target, rip);
            let here = self.asm.jump_if(condition::EQUAL);
            self.later(here, Way::Return(rip, by));
        }
        self.compare_target(target, last);
        let elsewhere = self.asm.jump_if(condition::NOT_EQUAL);
        self.later(elsewhere, Way::ReturnExit(target, by));
        self.go(Way::Return(last, by));
        true
    }

    /// An indirect call or jump to the target in a register: to where it led last, if that is in the region. Flags are saved.
    pub(super) fn foreseen_inside(&mut self, target: Reg) -> bool {
        let Some(course) = &self.course else { return false };
        let Some(rip) = course.plan.foreseen[course.current].filter(|&rip| self.inside(rip).is_some()) else {
            return false;
        };
        self.compare_target(target, rip);
        let elsewhere = self.asm.jump_if(condition::NOT_EQUAL);
        self.later(elsewhere, Way::IndirectExit(target));
        self.complete();
        self.direct_exit(rip);
        true
    }

    fn compare_target(&mut self, target: Reg, rip: u64) {
        self.lose_host_flags();
        if let Ok(rip) = i32::try_from(rip as i64) {
            self.asm.compare_constant(target, rip);
        } else {
            let spare = self.registers.temporaries[0];
            self.known.forget_shared();
            self.asm.constant(spare, rip);
            self.asm.compare_registers(target, spare);
        }
    }
}

fn uses_mxcsr(insn: &Insn) -> bool {
    vector::of(insn).or_else(|| float::of(insn)).is_some_and(|effects| effects.float)
}
