//! Cold paths: noted where the block jumps to them, written behind it.

use core::mem::offset_of;

use x86::{CpuState, PAGE_MASK};

use super::{
    Template,
    assembler::{Jump, Mem, RAX, RCX, RDI, RSI, Reg, STATE},
    memory::{Access, Address, FAR},
};
use crate::{
    abi::{ChainSlot, FIRST_RUNTIME_HELPER, Leave, RuntimeHelper, SlowPath},
    instrument::Event,
    misses::Miss,
};

const RIP: usize = offset_of!(CpuState, rip);
const INSTRUCTIONS: usize = offset_of!(CpuState, instructions);
const SCRATCH: usize = offset_of!(CpuState, scratch);

/// A cold path.
#[derive(Clone, Copy)]
pub(super) struct Cold {
    /// The jump that leads there.
    pub from: Jump,
    /// Where it goes on, if it does.
    pub resume: usize,
    /// The instruction that it belongs to.
    pub index: usize,
    pub kind: ColdKind,
}

/// What it does.
#[derive(Clone, Copy)]
pub(super) enum ColdKind {
    /// Fills the TLB for an access and has it looked up again, or abandons the instruction.
    Miss { address: Address, access: Access, temporaries: [Reg; 2] },
    /// Makes the recent page of RSP that of an access, or abandons the instruction. The temporaries are what
    /// [`super::memory::StackPage`] says; `forgets`: only that the page can be read is known then, though more was known before.
    Stack { base: Reg, displacement: i32, access: Access, temporaries: [Reg; 2], forgets: bool },
    /// Leaves with a reason, at the block's start.
    AtEntry(Leave),
    /// Leaves by a guarded slot.
    Guard(u32),
    /// Jumps through a slot.
    Unlinked(u32),
    /// Abandons the instruction.
    Abandon,
    /// Calls what an entry of the function table has, and goes on. It keeps all registers.
    Call(usize),
    /// Does the instruction once more, through a chain slot, and so with a poll. The state is settled.
    Again,
}

/// A call of what the misses of a block have in common.
#[derive(Clone, Copy)]
pub(super) struct Tail {
    call: Jump,
    helper: RuntimeHelper,
    temporaries: [Reg; 2],
}

impl Template<'_> {
    /// Writes all cold paths, and the number of instructions at the entry.
    pub(super) fn finish(&mut self, counted: u16) {
        self.asm.patch32(self.counted_at, counted.into());
        self.know_counted(counted);
        let mut done = 0;
        // There are more of them while they are written.
        while let Some(&cold) = self.cold.get(done) {
            done += 1;
            self.index = cold.index;
            self.asm.bind(cold.from);
            self.begin_source(cold.index);
            let rip = self.insns[cold.index].rip;
            let uncounted = i32::from(counted) - cold.index as i32;
            match cold.kind {
                ColdKind::Miss { address, access, temporaries } => {
                    self.linear(address, temporaries[0]);
                    self.miss(cold.index, access, RuntimeHelper::FillMiss, temporaries, uncounted);
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Stack { base, displacement, access, temporaries, forgets } => {
                    let [first, second] = temporaries;
                    self.linear(Address::Based { base, displacement }, first);
                    self.miss(cold.index, access, RuntimeHelper::StackMiss, temporaries, uncounted);
                    self.asm.load(second, Mem::state(SCRATCH));
                    if forgets {
                        self.asm.constant(first, FAR);
                    } else {
                        self.asm.and_immediate(first, !PAGE_MASK as i32);
                    }
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Call(entry) => {
                    // Which registers are free is not known here.
                    self.call_keeping_all(entry);
                    self.asm.jump_back(cold.resume);
                }
                ColdKind::Again => {
                    let rest = uncounted - 1;
                    if rest > 0 {
                        self.asm.subtract_immediate(Mem::state(INSTRUCTIONS), rest);
                        self.count_event(Event::Undone, rest, RCX);
                    }
                    self.chain(rip);
                }
                ColdKind::AtEntry(leave) => {
                    self.asm.store_constant(Mem::state(RIP), rip, RCX);
                    self.leave(leave);
                }
                ColdKind::Unlinked(slot) => {
                    let here = self.asm.code.len() as u32;
                    if let Some(jump) = &mut self.exits[slot as usize].jump {
                        jump.unlinked = here;
                    }
                    self.slot_address(slot);
                    self.asm.jump_to(Mem::new(RDI, offset_of!(ChainSlot, code) as i32));
                }
                ColdKind::Guard(slot) => {
                    self.slot_address(slot);
                    self.asm.store(Mem::state(SCRATCH), RDI);
                    self.leave(Leave::Guard);
                }
                ColdKind::Abandon => {
                    self.asm.store_constant(Mem::state(RIP), rip, RCX);
                    self.asm.subtract_immediate(Mem::state(INSTRUCTIONS), uncounted);
                    self.count_event(Event::Undone, uncounted, RCX);
                    self.leave(Leave::Step);
                }
            }
        }
        self.write_tails();
        self.end_source();
    }

    /// Calls what sees to a miss of an instruction's access, whose address is in the first temporary.
    fn miss(
        &mut self,
        index: usize,
        access: Access,
        helper: RuntimeHelper,
        temporaries: [Reg; 2],
        uncounted: i32,
    ) {
        let second = temporaries[1];
        let miss = Miss {
            bytes: access.bytes,
            write: access.write,
            aligned: access.aligned,
            uncounted: uncounted as u8,
            distance: self.insns[index].rip.wrapping_sub(self.insns[0].rip) as u16,
        };
        self.count_call(FIRST_RUNTIME_HELPER + helper as usize, second);
        // What is called does not come back from an access that is abandoned.
        self.count_event(Event::Undone, uncounted, second);
        self.asm.number(second, miss.packed());
        let call = self.asm.call_forward();
        self.tails.push(Tail { call, helper, temporaries });
        self.count_event(Event::Undone, -uncounted, second);
    }

    /// What the misses of a block have in common, once for each helper and pair of registers.
    fn write_tails(&mut self) {
        let mut tails = core::mem::take(&mut self.tails);
        while let Some(&Tail { helper, temporaries, .. }) = tails.first() {
            let here = self.asm.code.len();
            tails.retain(|tail| {
                let same = tail.helper == helper && tail.temporaries == temporaries;
                if same {
                    self.asm.bind_at(tail.call, here);
                }
                !same
            });
            let [first, second] = temporaries;
            self.asm.store(Mem::state(SlowPath::argument(0)), first);
            self.asm.store(Mem::state(SCRATCH + 8), second);
            self.asm.store_constant(Mem::state(RIP), self.insns[0].rip, second);
            self.asm.load(second, Mem::state(offset_of!(CpuState, helpers)));
            // Jumped to, it would find the stack out of alignment.
            self.asm.call(Mem::new(second, 8 * (FIRST_RUNTIME_HELPER + helper as usize) as i32));
            self.asm.ret();
        }
        self.tails = tails;
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
    }
}
