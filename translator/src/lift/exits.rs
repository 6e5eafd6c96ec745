//! Entering and leaving a block; see [`crate::abi`] for what each way out means.

use core::mem::offset_of;

use cranelift_codegen::ir::{
    ExternalName, GlobalValueData, InstBuilder, UserExternalName, Value, condcodes::IntCC, types,
};
use memory::tlb::Entry;
use x86::{CpuState, PAGE_MASK};

use super::{Ended, Lifter, registers::RegisterFile};
use crate::{
    DirectExit,
    abi::{ChainSlot, JUMP_CACHE_ENTRIES, JumpEntry, Leave},
    carried,
    instrument::Event,
};

/// Namespace of the symbols that stand for chain slots.
pub(crate) const SLOT_NAMESPACE: u32 = 1;
/// Namespace of the symbols that stand for callouts.
pub(crate) const CALLOUT_NAMESPACE: u32 = 3;

const RIP: usize = offset_of!(CpuState, rip);
const SCRATCH: usize = offset_of!(CpuState, scratch);

impl Lifter<'_> {
    /// What every function begins with: the poll.
    pub(super) fn enter(&mut self, rip: u64) {
        let request = self.state_load(types::I32, offset_of!(CpuState, exit_request));
        let asked = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(asked);
        self.b.ins().brif(request, asked, &[], go, &[]);
        self.b.switch_to_block(asked);
        self.store_rip(rip);
        self.leave(Leave::Poll);
        self.b.switch_to_block(go);
    }

    pub(super) fn store_rip(&mut self, rip: u64) {
        let rip = self.word(rip);
        self.state_store(rip, RIP);
    }

    pub(super) fn leave(&mut self, how: Leave) {
        let how = self.word(how as u64);
        self.b.ins().return_(&[how]);
    }

    /// Has the interpreter do the instruction at `rip`. `uncounted`: instructions of the block that were counted at its
    /// entry but are not done.
    pub(super) fn leave_step(&mut self, file: &RegisterFile, rip: u64, uncounted: u16) {
        self.write_back(file);
        self.store_rip(rip);
        if uncounted != 0 {
            self.count_in_state(-i64::from(uncounted));
            self.count_event(Event::Undone, i64::from(uncounted));
        }
        self.leave(Leave::Step);
    }

    /// How many counted instructions are not done if the current one is abandoned.
    pub(super) fn uncounted(&self) -> u16 {
        self.counted - self.insn.index
    }

    /// Ends the current CLIF block by leaving the current instruction to the interpreter, as if it had not begun.
    pub(super) fn abandon(&mut self) -> Ended {
        let start = self.start;
        self.leave_step(&start, self.insn.rip, self.uncounted());
        Ended
    }

    /// Abandons the current instruction if `condition` holds.
    pub(super) fn abandon_if(&mut self, condition: Value) {
        let cold = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(cold);
        self.b.ins().brif(condition, cold, &[], go, &[]);
        self.b.switch_to_block(cold);
        self.abandon();
        self.b.switch_to_block(go);
    }

    /// Ends the block; the next one is looked up under whatever the mode is by then.
    pub(super) fn leave_anew(&mut self, rip: u64) {
        let file = self.file;
        self.write_back(&file);
        self.store_rip(rip);
        self.count_event(Event::Anew, 1);
        self.leave(Leave::Indirect);
    }

    /// Before an exit that is not the block's last instruction (NOT and NEG with LOCK, when they lose a race): the ones
    /// after it were counted but are not done.
    fn uncount_rest(&mut self) {
        let rest = self.uncounted().saturating_sub(1);
        if rest != 0 {
            self.count(-i64::from(rest));
            self.count_event(Event::Undone, i64::from(rest));
        }
    }

    /// Goes on at a constant target.
    pub(super) fn direct_exit(&mut self, target: u64) {
        self.uncount_rest();
        self.go(target);
    }

    /// A branch in the middle of the block: what follows is the case that it is not taken.
    pub(super) fn branch_aside(&mut self, condition: Value, target: u64) {
        let taken = self.b.create_block();
        let not_taken = self.b.create_block();
        self.b.set_cold_block(taken);
        self.b.ins().brif(condition, taken, &[], not_taken, &[]);
        self.b.switch_to_block(taken);
        let file = self.file;
        self.direct_exit(target);
        self.file = file;
        self.b.switch_to_block(not_taken);
    }

    /// Whether instructions of the block follow the current one.
    pub(super) fn is_followed(&self) -> bool {
        self.uncounted() > 1
    }

    /// A conditional branch: goes on at `target` or at the next instruction.
    pub(super) fn branch_exit(&mut self, condition: Value, target: u64) {
        let other = self.insn.next_rip;
        let stays = [target, other].map(|rip| self.is_inside(rip));
        let file = self.file;
        if stays == [false, false] {
            // Once for both.
            self.write_back(&file);
        }
        let sides = [target, other].map(|_| self.b.create_block());
        self.b.ins().brif(condition, sides[0], &[], sides[1], &[]);
        for (n, rip) in [target, other].into_iter().enumerate() {
            self.b.switch_to_block(sides[n]);
            self.file = file;
            if stays == [false, false] {
                self.chain(rip);
                continue;
            }
            if !stays[n] {
                self.b.set_cold_block(sides[n]);
            }
            self.go(rip);
        }
    }

    pub(super) fn chain(&mut self, target: u64) {
        let guarded = target & PAGE_MASK != self.page;
        self.count_event(Event::Direct, 1);
        let slot = self.slot_address(self.exits.len() as u32);
        self.exits.push(DirectExit { target, page: self.page, guarded, jump: None });
        if guarded {
            let target = self.word(target);
            let linked = self.table_load(slot, offset_of!(ChainSlot, addend));
            let fails = self.guard(target, linked);
            let failed = self.b.create_block();
            let passed = self.b.create_block();
            self.b.set_cold_block(failed);
            self.b.ins().brif(fails, failed, &[], passed, &[]);
            self.b.switch_to_block(failed);
            self.state_store(slot, SCRATCH);
            self.leave(Leave::Guard);
            self.b.switch_to_block(passed);
        }
        let code = self.table_load(slot, offset_of!(ChainSlot, code));
        let signature = self.block_signature();
        self.b.ins().return_call_indirect(signature, code, &[slot]);
    }

    /// Whether a target is not canonical, so that going there raises #GP(0) at the transfer. Only in 64-bit mode:
    /// elsewhere flat code can go anywhere.
    pub(super) fn not_canonical(&mut self, target: Value) -> Value {
        let shifted = self.b.ins().ishl_imm_u(target, 16);
        let extended = self.b.ins().sshr_imm_u(shifted, 16);
        self.b.ins().icmp(IntCC::NotEqual, extended, target)
    }

    /// Goes on at a computed target, through the jump cache. A target in the cache has been gone to before, so only
    /// others are checked.
    pub(super) fn indirect_exit(&mut self, target: Value) {
        self.uncount_rest();
        self.indirect_exit_in(target, None);
    }

    /// The same in another mode than the block's; the target is canonical.
    pub(super) fn indirect_exit_in(&mut self, target: Value, new_mode: Option<Value>) {
        let file = self.file;
        // `abi::jump_index`, scaled to the entry's size.
        let low = self.b.ins().ushr_imm_u(target, 2);
        let high = self.b.ins().ushr_imm_u(target, 14);
        let hash = self.b.ins().iadd(low, high);
        let index = self.b.ins().band_imm_u(hash, JUMP_CACHE_ENTRIES as i64 - 1);
        let offset = self.b.ins().ishl_imm_u(index, i64::from(size_of::<JumpEntry>().trailing_zeros()));
        let cache = self.state_load(types::I64, offset_of!(CpuState, jump_cache));
        let entry = self.b.ins().iadd(cache, offset);

        let missed = self.b.create_block();
        let found = self.b.create_block();
        let passed = self.b.create_block();
        self.b.set_cold_block(missed);
        let rip = self.table_load(entry, offset_of!(JumpEntry, rip));
        let mode = self.table_load(entry, offset_of!(JumpEntry, mode));
        let rip_differs = self.b.ins().bxor(rip, target);
        let mode_differs = match new_mode {
            Some(new_mode) => self.b.ins().bxor(mode, new_mode),
            None => self.b.ins().bxor_imm_u(mode, i64::from(self.mode.0)),
        };
        let differs = self.b.ins().bor(rip_differs, mode_differs);
        self.b.ins().brif(differs, missed, &[], found, &[]);

        self.b.switch_to_block(found);
        let linked = self.table_load(entry, offset_of!(JumpEntry, addend));
        let fails = self.guard(target, linked);
        self.b.ins().brif(fails, missed, &[], passed, &[]);

        self.b.switch_to_block(missed);
        if self.mode.is_64bit() && new_mode.is_none() {
            let faults = self.not_canonical(target);
            self.abandon_if(faults);
        }
        self.write_back(&file);
        self.state_store(target, RIP);
        self.leave(Leave::Indirect);

        self.b.switch_to_block(passed);
        self.write_back(&file);
        self.count_event(Event::Indirect, 1);
        let code = self.table_load(entry, offset_of!(JumpEntry, code));
        let signature = self.block_signature();
        let go = self.state_load(types::I64, carried::GO);
        self.b.ins().return_call_indirect(signature, go, &[code]);
    }

    /// Not zero if code at `target` may not be run, or lies elsewhere than where `addend` says.
    pub(super) fn guard(&mut self, target: Value, addend: Value) -> Value {
        let index = self.tlb_index(target);
        let mask = self.state_load(types::I64, offset_of!(CpuState, fetch_tlb_mask));
        let offset = self.b.ins().band(index, mask);
        let array = self.state_load(types::I64, offset_of!(CpuState, fetch_tlb));
        let entry = self.b.ins().iadd(array, offset);
        let current = self.table_load(entry, offset_of!(Entry, addend));
        let elsewhere = self.b.ins().bxor(current, addend);
        let execute = self.table_load(entry, offset_of!(Entry, execute));
        let page = match self.constant_of(target) {
            Some(target) => self.word(target & PAGE_MASK),
            None => self.b.ins().band_imm_s(target, PAGE_MASK as i64),
        };
        let other_page = self.b.ins().bxor(execute, page);
        self.b.ins().bor(elsewhere, other_page)
    }

    /// The address of chain slot `n`: a symbol that the runtime resolves.
    fn slot_address(&mut self, n: u32) -> Value {
        self.symbol(SLOT_NAMESPACE, n)
    }

    /// The address of symbol `n` of a namespace.
    pub(super) fn symbol(&mut self, namespace: u32, n: u32) -> Value {
        let function = &mut self.b.func;
        let name = function.declare_imported_user_function(UserExternalName::new(namespace, n));
        let symbol = function.create_global_value(GlobalValueData::Symbol {
            name: ExternalName::user(name),
            offset: 0.into(),
            colocated: true,
            tls: false,
        });
        self.b.ins().symbol_value(types::I64, symbol)
    }

    /// Loads 64 bits from an engine's table.
    pub(super) fn table_load(&mut self, base: Value, offset: usize) -> Value {
        self.b.ins().load(types::I64, self.fields.tables, base, offset as i32)
    }
}
