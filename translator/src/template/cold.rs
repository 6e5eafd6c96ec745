//! Cold paths: noted where the block jumps to them, written behind it.

use core::mem::offset_of;

use x86::CpuState;

use super::{
    Template,
    assembler::{Jump, Mem, RAX, RCX, RDI, RSI, Reg, STATE},
    memory::Address,
};
use crate::{
    abi::{ChainSlot, FIRST_RUNTIME_HELPER, FIRST_THUNK, Leave, RuntimeHelper, SlowPath},
    instrument::Event,
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
    Miss { address: Address, bytes: u8, alignment: u8, write: bool, temporaries: [Reg; 2] },
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
                ColdKind::Miss { address, bytes, alignment, write, temporaries } => {
                    let [first, second] = temporaries;
                    self.linear(address, first);
                    self.asm.store(Mem::state(SlowPath::argument(0)), first);
                    self.asm.store_immediate(Mem::state(SlowPath::argument(1)), bytes.into());
                    self.asm.store_immediate(Mem::state(SlowPath::argument(2)), alignment.into());
                    self.asm.store_constant(Mem::state(RIP), rip, second);
                    self.asm.store_immediate(Mem::state(SCRATCH + 8), uncounted);
                    let path = if write { SlowPath::FillWrite } else { SlowPath::FillRead };
                    self.count_call(FIRST_THUNK + path as usize, second);
                    // The thunk does not come back from an access that is abandoned.
                    self.count_event(Event::Undone, uncounted, second);
                    self.call_thunk(path, second);
                    self.count_event(Event::Undone, -uncounted, second);
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
        self.end_source();
    }

    /// Returns to the runtime.
    pub(super) fn leave(&mut self, how: Leave) {
        self.asm.constant(RAX, how as u64);
        self.asm.ret();
    }

    pub(super) fn store_rip(&mut self, rip: u64) {
        self.asm.store_constant(Mem::state(RIP), rip, RCX);
    }

    /// Calls a thunk, by way of a register that it need not keep. Thunks keep all others.
    fn call_thunk(&mut self, path: SlowPath, by: Reg) {
        self.asm.load(by, Mem::state(offset_of!(CpuState, helpers)));
        // The stack is 8 below a 16-byte boundary in a block.
        self.asm.push(by);
        self.asm.call(Mem::new(by, 8 * (FIRST_THUNK + path as usize) as i32));
        self.asm.pop(by);
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
