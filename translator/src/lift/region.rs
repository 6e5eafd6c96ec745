//! Several guest blocks in one function: which is lifted when, and how edges between them carry registers and flags.
//!
//! A block to which one edge leads is lifted where that edge ends, with all that is known there. A merge has CLIF block
//! parameters for registers (see [`Plan`]); anything else is in `CpuState` there, so an edge stores what its end finds no
//! parameter for. Flags are among it: as lazy ones they are two or three stores, as parameters they would keep registers
//! busy that nothing asks for. Registers that the region only reads are loaded once, at its entry, if it has merges.
//!
//! Every cycle has a poll: on each edge to a merge that was lifted before the edge, hence on one edge at least of every
//! cycle. It is an atomic load, which is also what keeps Cranelift from carrying loads of guest memory round a loop.

use core::mem::offset_of;

use cranelift_codegen::ir::{Block, BlockArg, InstBuilder, Type, Value, condcodes::IntCC, types};
use x86::{CpuState, PAGE_MASK};

use super::{
    Lifter,
    count::Count,
    emit,
    registers::{RegisterFile, bits},
};
use crate::{
    TranslateError,
    abi::Leave,
    instrument::Event,
    locality,
    region::{Plan, Region, next_page, same_page},
};

/// A block of the region that is being lifted.
#[derive(Clone, Copy, Default)]
struct Node {
    /// Of a merge: its CLIF block, once there is an edge to it.
    merge: Option<Block>,
    /// An edge leads to it.
    reached: bool,
    /// It is lifted, or being lifted.
    lifted: bool,
}

/// A block that waits to be lifted.
struct Waiting {
    number: usize,
    at: Block,
    file: RegisterFile,
}

/// The region that is being lifted.
pub(super) struct Course {
    plan: Plan,
    nodes: Vec<Node>,
    waiting: Vec<Waiting>,
    /// The block that is being lifted.
    current: usize,
    /// What is known everywhere in the region: registers that it does not write.
    invariant: RegisterFile,
}

impl Course {
    /// Registers that point anywhere where a block begins.
    pub fn strange(&self, number: usize) -> locality::Set {
        self.plan.strange[number]
    }

    /// What to lift next: merges last, so that most edges to them come before, and in the order of their addresses.
    fn next(&mut self) -> Option<Waiting> {
        let single = self.waiting.iter().rposition(|waiting| !self.plan.merges[waiting.number]);
        let position = single.or_else(|| {
            let numbered = self.waiting.iter().enumerate();
            numbered.min_by_key(|(_, waiting)| self.plan.rips[waiting.number]).map(|(position, _)| position)
        })?;
        let waiting = self.waiting.swap_remove(position);
        self.nodes[waiting.number].lifted = true;
        self.current = waiting.number;
        Some(waiting)
    }
}

impl Lifter<'_> {
    /// Lifts a region; its first block must begin with something that is lifted.
    pub fn region(&mut self, region: &Region) -> Result<super::Lifted, TranslateError> {
        let first = &region.blocks[0].guest;
        if self.liftable(first) == 0 {
            return Err(TranslateError::FirstDeclined("not a lifted instruction"));
        }
        let plan = Plan::of(region);
        self.enter(first.rip);
        self.file = RegisterFile::default();
        self.file.count = self.begin_count();
        let mut invariant = RegisterFile::default();
        if plan.merges.contains(&true) {
            for index in bits(plan.invariant.gpr) {
                self.gpr_full(index);
            }
            for index in bits(plan.invariant.xmm) {
                self.read_xmm(index as u8);
            }
            invariant = self.file;
        }
        let nodes = vec![Node::default(); region.blocks.len()];
        self.course = Some(Course { plan, nodes, waiting: Vec::new(), current: 0, invariant });
        self.page = first.rip & PAGE_MASK;
        self.go_inside(0);
        let (mut instructions, mut bytes) = (0, 0);
        while let Some(waiting) = self.course.as_mut().and_then(Course::next) {
            let block = &region.blocks[waiting.number];
            self.b.switch_to_block(waiting.at);
            self.file = waiting.file;
            self.source = u32::from(instructions);
            if let Some(addend) = block.second {
                self.guard_second(block.guest.rip, addend);
            }
            let lifted = self.guest_block(&block.guest, waiting.number);
            if waiting.number == 0
                && let Some(reason) = lifted.first_declined
            {
                return Err(TranslateError::FirstDeclined(reason));
            }
            instructions += lifted.instructions;
            bytes += lifted.bytes;
        }
        Ok(self.lifted(instructions, bytes))
    }

    /// Whether an exit to `target` stays inside the region.
    pub(super) fn is_inside(&self, target: u64) -> bool {
        self.inside(target).is_some()
    }

    fn inside(&self, target: u64) -> Option<usize> {
        let course = self.course.as_ref()?;
        let number = course.plan.find(target)?;
        // A second edge to a block that the plan knows one edge to stays an exit.
        (course.plan.merges[number] || !course.nodes[number].reached).then_some(number)
    }

    /// Goes on at a constant target with the state in the file: inside the region, or through a chain slot.
    pub(super) fn go(&mut self, target: u64) {
        let Some(number) = self.inside(target) else {
            let file = self.file;
            self.write_back(&file);
            self.chain(target);
            return;
        };
        let Some(course) = &self.course else { return };
        if target & PAGE_MASK != self.page && !same_page(target, course.plan.rips[0]) {
            self.guard_inside(target, course.plan.addends[number]);
        }
        self.go_inside(number);
    }

    /// Leaves unless the page of `target` is where it was when the region was formed. The region's first page needs no
    /// such check: nothing inside a region changes a mapping.
    fn guard_inside(&mut self, target: u64, addend: u64) {
        let target_value = self.word(target);
        let addend = self.word(addend);
        let fails = self.guard(target_value, addend);
        self.leave_if(fails, |lifter, file| {
            lifter.write_back(file);
            lifter.chain(target);
        });
    }

    /// Ends a cold path by `leave` if a condition holds.
    fn leave_if(&mut self, condition: Value, leave: impl FnOnce(&mut Self, &RegisterFile)) {
        let failed = self.b.create_block();
        let passed = self.b.create_block();
        self.b.set_cold_block(failed);
        self.b.ins().brif(condition, failed, &[], passed, &[]);
        self.b.switch_to_block(failed);
        let file = self.file;
        leave(self, &file);
        self.file = file;
        self.b.switch_to_block(passed);
    }

    /// Leaves the instruction at `rip` to the interpreter unless the page that it goes on in is where it was.
    fn guard_second(&mut self, rip: u64, addend: u64) {
        self.cpu = emit::pinned(&mut self.b);
        let next_page = self.word(next_page(rip, self.mode));
        let addend = self.word(addend);
        let fails = self.guard(next_page, addend);
        self.leave_if(fails, |lifter, file| lifter.leave_step(file, rip, 0));
    }

    /// Ends the current CLIF block with an edge to a block of the region.
    fn go_inside(&mut self, number: usize) {
        let Some(course) = &mut self.course else { return };
        course.nodes[number].reached = true;
        if !course.plan.merges[number] {
            let at = self.b.create_block();
            self.b.ins().jump(at, &[]);
            let file = self.file;
            if let Some(course) = &mut self.course {
                course.waiting.push(Waiting { number, at, file });
            }
            return;
        }
        let node = course.nodes[number];
        let carried = course.plan.carried[number];
        if node.lifted {
            let rip = course.plan.rips[number];
            self.poll(rip);
        }
        let arguments = self.arguments(number);
        let merge = match node.merge {
            Some(merge) => merge,
            None => {
                let merge = self.b.create_block();
                let mut file = self.course.as_ref().map(|course| course.invariant).unwrap_or_default();
                let parameter = |l: &mut Self, ty: Type| l.b.append_block_param(merge, ty);
                file.count = Count::Value { base: parameter(self, types::I64), add: 0 };
                let registers = carried.dirty.or(carried.clean);
                for index in bits(registers.gpr) {
                    file.know_gpr(index, parameter(self, types::I64));
                }
                for index in bits(registers.xmm) {
                    file.know_xmm(index, parameter(self, types::I8X16));
                }
                file.dirty.gpr = carried.dirty.gpr;
                file.dirty.xmm = carried.dirty.xmm;
                if let Some(course) = &mut self.course {
                    course.nodes[number].merge = Some(merge);
                    course.waiting.push(Waiting { number, at: merge, file });
                }
                merge
            }
        };
        self.b.ins().jump(merge, &arguments);
    }

    /// What an edge from here gives to the parameters of a merge. Stores what there is no parameter for.
    fn arguments(&mut self, number: usize) -> Vec<BlockArg> {
        let carried = self.course.as_ref().map(|course| course.plan.carried[number]).unwrap_or_default();
        let mut arguments = vec![self.count_value().into()];
        let rest = self.file.without(carried.dirty, carried.flags);
        self.write_back_state(&rest);
        let registers = carried.dirty.or(carried.clean);
        for index in bits(registers.gpr) {
            arguments.push(self.gpr_full(index).into());
        }
        for index in bits(registers.xmm) {
            arguments.push(self.read_xmm(index as u8).into());
        }
        arguments
    }

    /// Leaves if something was asked for; then the guest is at `rip`, with the state in the file.
    fn poll(&mut self, rip: u64) {
        let address = self.b.ins().iadd_imm_s(self.cpu, offset_of!(CpuState, exit_request) as i64);
        let request = self.b.ins().atomic_load(types::I32, self.fields.state, address);
        let asked = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(asked);
        self.b.ins().brif(request, asked, &[], go, &[]);
        self.b.switch_to_block(asked);
        let file = self.file;
        self.write_back(&file);
        self.store_rip(rip);
        self.count_event(Event::Polled, 1);
        self.leave(Leave::Poll);
        self.file = file;
        self.b.switch_to_block(go);
    }

    /// A return: to where calls inside the region come back, if that is where it leads. Goes on where it is not.
    pub(super) fn return_inside(&mut self, target: Value) {
        let returns = self.course.as_ref().map(|course| course.plan.returns.clone()).unwrap_or_default();
        for rip in returns {
            self.inside_if(target, rip);
        }
    }

    /// An indirect call or jump: to where it led last, if that is in the region and where it leads. Goes on where it is not.
    pub(super) fn foreseen_inside(&mut self, target: Value) {
        if let Some(rip) = self.course.as_ref().and_then(|course| course.plan.foreseen[course.current]) {
            self.inside_if(target, rip);
        }
    }

    fn inside_if(&mut self, target: Value, rip: u64) {
        if !self.is_inside(rip) {
            return;
        }
        let expected = self.word(rip);
        let here = self.b.ins().icmp(IntCC::Equal, target, expected);
        let there = self.b.create_block();
        let elsewhere = self.b.create_block();
        self.b.ins().brif(here, there, &[], elsewhere, &[]);
        self.b.switch_to_block(there);
        let file = self.file;
        self.go(rip);
        self.file = file;
        self.b.switch_to_block(elsewhere);
    }
}
