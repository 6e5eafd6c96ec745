//! Entering and leaving a block: polls, direct and indirect exits; see [`crate::abi`]. Branches, CALL and RET.

use core::mem::offset_of;

use iced_x86::{Code, FlowControl, Mnemonic};
use memory::tlb::{ENTRY_SHIFT, Entry, MAX_ENTRIES};
use semantics::{
    Insn, Operand, Repeat,
    decode::{BlockEnd, GuestBlock},
};
use x86::{CpuState, GuestVirt, PAGE_MASK, PAGE_SHIFT, Width, state};

use super::{
    Declined, Flow, Template,
    assembler::{Jump, Mem, RAX, RCX, Reg, condition},
    cold::ColdKind,
    registers::{PAIR, SPARE},
    stack::Pushed,
};
use crate::{
    AddendField, DirectExit, ExitJump, Relocation, RelocationKind, RelocationTarget,
    abi::{JUMP_CACHE_ENTRIES, JumpEntry, Leave, jump_index},
    carried,
    instrument::Event,
    region::{self, next_page},
};

const RSP: u8 = state::RSP as u8;
const REQUEST: usize = offset_of!(CpuState, exit_request);
const RIP: usize = offset_of!(CpuState, rip);
const JUMP_CACHE: usize = offset_of!(CpuState, jump_cache);
const INDEX_SHIFT: u8 = (PAGE_SHIFT - ENTRY_SHIFT) as u8;

impl Template<'_> {
    /// The beginning: the entry for who has the guest's state in `CpuState`.
    pub(super) fn load_carried(&mut self) {
        self.asm.call(Mem::state(carried::LOAD));
        debug_assert_eq!(self.asm.code.len() as u64, carried::ENTRY);
    }

    /// The poll at the beginning.
    pub(super) fn poll(&mut self) {
        self.asm.compare_immediate32(Mem::state(REQUEST), 0);
        self.leave_at_entry_if(condition::NOT_EQUAL, Leave::Poll);
    }

    /// The count of executions if that is wanted, and the guard of the `second` page if there is one.
    pub(super) fn enter(&mut self, rip: u64, counts: bool, second: Option<u64>) {
        if counts {
            let offset = self.asm.decrement_relative();
            let (kind, target) = (RelocationKind::Pc32, RelocationTarget::Counter);
            self.relocations.push(Relocation { offset, kind, target, addend: -5 });
            self.leave_at_entry_if(condition::SIGN, Leave::Hot);
        }
        if let Some(addend) = second {
            self.guard(next_page(rip, self.mode), addend, ColdKind::AtEntry(Leave::Step));
        }
    }

    /// Takes a cold path unless the page of `target` can be executed, and is where it is with that addend. Uses the
    /// first two temporaries; host flags are lost.
    pub(super) fn guard(&mut self, target: u64, addend: u64, otherwise: ColdKind) {
        let [entry, other, _] = self.registers.temporaries;
        self.lose_host_flags();
        self.known.forget_shared();
        self.fetch_entry_of(target, entry);
        let offset = self.asm.constant_to_come(other);
        self.asm.patch64(offset as usize, addend);
        self.addends.push(AddendField { offset, page: target & PAGE_MASK });
        self.asm.compare(other, Mem::new(entry, offset_of!(Entry, addend) as i32));
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        self.note(from, 0, otherwise);
        self.compare_execute(target & PAGE_MASK, entry, other);
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        self.note(from, 0, otherwise);
    }

    pub(super) fn leave_at_entry_if(&mut self, condition: u8, leave: Leave) {
        let from = self.asm.jump_if(condition);
        self.note(from, 0, ColdKind::AtEntry(leave));
    }

    /// Has the interpreter do the instruction at `rip`, which is not counted.
    pub(super) fn leave_step(&mut self, rip: u64) {
        self.settle();
        self.count_pending();
        self.store_rip(rip);
        self.leave(Leave::Step);
    }

    /// Ends the block; the next one is looked up under whatever the mode is by then.
    pub(super) fn leave_anew(&mut self, rip: u64) {
        self.settle();
        self.count_pending();
        self.count_event(Event::Anew, 1, RAX);
        self.store_rip(rip);
        self.leave(Leave::Indirect);
    }

    /// Goes on at a constant target: inside the region, or through a chain slot.
    pub(super) fn direct_exit(&mut self, target: u64) {
        if !self.go_inside(target) {
            self.exit(target);
        }
    }

    /// Goes on at a constant target, through a chain slot.
    pub(super) fn exit(&mut self, target: u64) {
        self.hand_over();
        self.count_pending();
        self.chain(target);
    }

    /// Goes on at a constant target through a chain slot, with everything handed over.
    pub(super) fn chain(&mut self, target: u64) {
        let guarded = target & PAGE_MASK != self.page;
        let [entry, other] = SPARE;
        self.count_event(Event::Direct, 1, other);
        let slot = self.exits.len() as u32;
        let mut addend = None;
        if guarded {
            self.fetch_entry_of(target, entry);
            addend = Some(self.asm.constant_to_come(other));
            self.asm.compare(other, Mem::new(entry, offset_of!(Entry, addend) as i32));
            self.guard_fails_if(condition::NOT_EQUAL, slot);
            self.compare_execute(target & PAGE_MASK, entry, other);
            self.guard_fails_if(condition::NOT_EQUAL, slot);
        }
        let from = self.asm.jump();
        self.exit_by(from, target, addend);
    }

    /// Makes a jump that was just written an exit; `addend`: where the addend stands that its guard compares, if it has one.
    fn exit_by(&mut self, from: Jump, target: u64, addend: Option<u32>) {
        self.note(from, 0, ColdKind::Unlinked(self.exits.len() as u32));
        // Where the jump leads is known when cold paths are written.
        let jump = Some(ExitJump { displacement: from.displacement(), unlinked: 0, addend });
        self.exits.push(DirectExit { target, page: self.page, guarded: addend.is_some(), jump });
    }

    /// RAX becomes the address of a slot.
    pub(super) fn slot_address(&mut self, slot: u32) {
        let offset = self.asm.lea_relative(RAX);
        let (kind, target) = (RelocationKind::Pc32, RelocationTarget::Slot(slot));
        self.relocations.push(Relocation { offset, kind, target, addend: -4 });
    }

    /// A register becomes the entry for fetches at `target`.
    fn fetch_entry_of(&mut self, target: u64, entry: Reg) {
        let most = ((MAX_ENTRIES - 1) << ENTRY_SHIFT) as u64;
        self.asm.tlb_index(entry, target >> INDEX_SHIFT & most, target);
        self.fetch_entry(entry);
    }

    /// Compares the page of the entry in a register with `page`, perhaps by way of another one.
    fn compare_execute(&mut self, page: u64, entry: Reg, other: Reg) {
        let execute = Mem::new(entry, offset_of!(Entry, execute) as i32);
        if let Ok(page) = i32::try_from(page as i64) {
            self.asm.compare_immediate(execute, page);
        } else {
            self.asm.constant(other, page);
            self.asm.compare(other, execute);
        }
    }

    fn guard_fails_if(&mut self, condition: u8, slot: u32) {
        let from = self.asm.jump_if(condition);
        self.note(from, 0, ColdKind::Guard(slot));
    }

    /// Goes on at a computed target, through the jump cache. Flags are saved. The current instruction has moved RSP by `moved`.
    pub(super) fn indirect_exit(&mut self, target: Reg, moved: i32) {
        // To where it is safe from being handed over.
        let away = if self.registers.keeps_flags() { RAX } else { SPARE[0] };
        self.lose_kept_flags();
        if target != away {
            self.asm.mov(away, target);
        }
        self.hand_over();
        self.count_current();
        if away != RAX {
            self.asm.mov(RAX, away);
        }
        self.look_up_exit(false, ColdKind::Missed(moved));
    }

    /// The same to the state's rip, which is canonical, in the mode that the state has. It is the truth about everything.
    pub(super) fn leave_to_rip(&mut self) {
        self.hand_over();
        self.asm.load(RAX, Mem::state(RIP));
        self.look_up_exit(true, ColdKind::Indirect);
    }

    /// Goes on at the target in RAX, with everything handed over, perhaps in another mode than the block's, which the state has. `otherwise` if the jump
    /// cache does not have it.
    fn look_up_exit(&mut self, new_mode: bool, otherwise: ColdKind) {
        self.lose_host_flags();
        let target = RAX;
        let [entry, a] = SPARE;
        let [b, _] = PAIR;
        // `abi::jump_index`, scaled to the entry's size.
        self.asm.mov(entry, target);
        self.asm.mov(a, target);
        self.asm.shift_right(entry, 2);
        self.asm.shift_right(a, 14);
        self.asm.add(entry, a);
        self.asm.and_immediate(entry, JUMP_CACHE_ENTRIES as i32 - 1);
        self.asm.shift_left(entry, size_of::<JumpEntry>().trailing_zeros() as u8);
        self.asm.add_from(entry, Mem::state(JUMP_CACHE));
        let field = |offset: usize| Mem::new(entry, offset as i32);
        self.asm.compare(target, field(offset_of!(JumpEntry, rip)));
        self.missed_if_different(otherwise);
        if new_mode {
            self.asm.load32(a, Mem::state(offset_of!(CpuState, mode)));
            self.asm.compare(a, field(offset_of!(JumpEntry, mode)));
        } else {
            self.asm.compare_immediate(field(offset_of!(JumpEntry, mode)), self.mode.0 as i32);
        }
        self.missed_if_different(otherwise);
        self.asm.mov(a, target);
        self.asm.shift_right(a, INDEX_SHIFT);
        self.fetch_entry(a);
        self.asm.load(b, Mem::new(a, offset_of!(Entry, addend) as i32));
        self.asm.compare(b, field(offset_of!(JumpEntry, addend)));
        self.missed_if_different(otherwise);
        self.asm.mov(b, target);
        self.asm.and_immediate(b, PAGE_MASK as i32);
        self.asm.compare(b, Mem::new(a, offset_of!(Entry, execute) as i32));
        self.missed_if_different(otherwise);
        self.count_event(Event::Indirect, 1, a);
        self.asm.jump_to(field(offset_of!(JumpEntry, code)));
    }

    fn missed_if_different(&mut self, otherwise: ColdKind) {
        let from = self.asm.jump_if(condition::NOT_EQUAL);
        self.note(from, 0, otherwise);
    }

    /// A transfer to an address that is not canonical raises #GP(0) at the transfer.
    fn abandon_unless_canonical(&mut self, target: Reg, spare: Reg) {
        self.asm.mov(spare, target);
        self.asm.shift_left(spare, 16);
        self.asm.shift_right_signed(spare, 16);
        self.asm.compare_registers(spare, target);
        self.abandon_if(condition::NOT_EQUAL);
    }

    /// Jcc, JRCXZ, LOOP.
    pub(super) fn branch(&mut self, insn: &Insn, condition: u8) -> Result<Flow, Declined> {
        let target = near_target(insn)?;
        if insn.mnemonic == Mnemonic::Loop {
            if insn.code != Code::Loop_rel8_64_RCX {
                return Err(Declined);
            }
            let count = self.read(RCX);
            self.write_moved(RCX, -1);
            self.asm.lea(count, Mem::new(count, -1));
        } else if condition == condition::COUNT_ZERO {
            self.read(RCX);
        } else {
            self.need_flags();
        }
        self.complete();
        if self.course.is_some() {
            self.branch_inside(condition, target, insn.next_rip());
        } else if self.index + 1 < self.insns.len() {
            let taken = self.asm.jump_if(condition);
            self.note(taken, 0, ColdKind::Taken(target));
            return Ok(Flow::Next);
        } else {
            self.hand_over();
            let taken = self.asm.jump_if(condition);
            self.chain(insn.next_rip());
            if target & PAGE_MASK == self.page && self.instrumentation.is_none() {
                self.exit_by(taken, target, None);
            } else {
                self.asm.bind(taken);
                self.chain(target);
            }
        }
        Ok(Flow::Ended)
    }

    /// JMP.
    pub(super) fn jump(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if insn.operand(0) == Operand::Near {
            let target = near_target(insn)?;
            self.complete();
            self.direct_exit(target);
        } else {
            let target = self.indirect_target(insn)?;
            self.note_target(insn, target);
            self.save_flags();
            self.lose_host_flags();
            if !self.foreseen_inside(target) {
                self.indirect_exit(target, 0);
            }
        }
        Ok(Flow::Ended)
    }

    /// CALL.
    pub(super) fn call(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if insn.width != Width::Qword {
            return Err(Declined);
        }
        if insn.operand(0) == Operand::Near {
            let target = near_target(insn)?;
            self.push_value(Pushed::Constant(insn.next_rip()))?;
            self.complete();
            if !self.go_inside(target) {
                self.hand_over();
                self.count_pending();
                self.expect_return(insn.next_rip());
                self.chain(target);
            }
            return Ok(Flow::Ended);
        }
        let target = self.indirect_target(insn)?;
        self.save_flags();
        self.lose_host_flags();
        // Before anything is pushed.
        self.abandon_unless_canonical(target, self.registers.temporaries[0]);
        let last = self.last_temporary();
        if target != last {
            // RSP may be the target, and is about to change.
            self.asm.mov(last, target);
        }
        self.push_value(Pushed::Constant(insn.next_rip()))?;
        self.note_target(insn, last);
        if !self.foreseen_inside(last) {
            self.known.forget_shared();
            self.expect_return(insn.next_rip());
            self.indirect_exit(last, 0);
        }
        Ok(Flow::Ended)
    }

    /// Has the host fetch what the jump cache has for where the RET to a CALL leads, while it does what was called: the table is too large
    /// for its nearer caches. Changes no flags, uses the first temporary.
    fn expect_return(&mut self, rip: u64) {
        let [spare, _] = SPARE;
        let place = jump_index(rip) * size_of::<JumpEntry>();
        self.asm.load(spare, Mem::state(JUMP_CACHE));
        self.asm.prefetch_jump(spare, place as i32, rip);
    }

    /// RET.
    pub(super) fn ret(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if insn.width != Width::Qword {
            return Err(Declined);
        }
        let (target, by) = self.pop_target(insn)?;
        if !self.return_inside(target, by) {
            self.return_exit(target, by);
        }
        Ok(Flow::Ended)
    }

    /// Leaves by a RET to a target in the last temporary, which moves RSP.
    pub(super) fn return_exit(&mut self, target: Reg, by: i32) {
        let top = self.registers.home(RSP);
        self.asm.lea(top, Mem::new(top, by));
        self.write_moved(RSP, by);
        self.indirect_exit(target, by);
    }

    /// Notes where a transfer leads, for whoever forms a region around it.
    fn note_target(&mut self, insn: &Insn, target: Reg) {
        if region::is_foreseeable(insn) {
            let word = offset_of!(CpuState, last_targets) + 8 * CpuState::target_index(insn.rip);
            self.asm.store(Mem::state(word), target);
        }
    }

    /// The register with the target of an indirect transfer.
    fn indirect_target(&mut self, insn: &Insn) -> Result<Reg, Declined> {
        match insn.operand(0) {
            Operand::Gpr(register) if register.width == Width::Qword => Ok(self.read(register.index)),
            Operand::Memory if insn.memory_bytes == 8 => self.load_to_last_temporary(insn),
            _ => Err(Declined),
        }
    }
}

/// Whether a block has to poll so that every cycle of blocks does: it may lead to where it is or before, or to an unknown place, or do an
/// instruction again. From others control goes forward, where it comes to one that polls.
pub(super) fn needs_poll(block: &GuestBlock) -> bool {
    let repeats = block.insns.iter().any(|insn| insn.repeat != Repeat::None);
    let forward = block.insns.last().is_some_and(|last| match last.operand(0) {
        Operand::Near => last.immediate > last.rip && last.code.flow_control() != FlowControl::Interrupt,
        _ => block.end != BlockEnd::Terminal,
    });
    repeats || !forward
}

/// A constant target that can be gone to.
fn near_target(insn: &Insn) -> Result<u64, Declined> {
    if insn.operand(0) == Operand::Near && GuestVirt(insn.immediate).is_canonical() {
        Ok(insn.immediate)
    } else {
        Err(Declined)
    }
}
