//! Callouts, as in [`crate::lift::callouts`], which tells which are done how.

use core::mem::offset_of;

use iced_x86::Mnemonic;
use semantics::Insn;
use x86::{
    CpuState,
    control::cr4,
    flags,
    state::{Msrs, NO_SHADOW, RSP},
};

use super::{
    Declined, Flow, Template,
    assembler::{Mem, RAX, RCX, RDX, RSI, condition, gpr_offset},
    memory::{Access, Address},
    stack::Pushed,
};
use crate::{
    Relocation, RelocationKind, RelocationTarget,
    abi::{RuntimeHelper, callout},
    lift::callouts::{GS_BASE, KERNEL_GS_BASE, MSRS, POPPED, is_own},
};

const RFLAGS: usize = offset_of!(CpuState, rflags);
const WAITING: usize = offset_of!(CpuState, event_waiting);

impl Template<'_> {
    /// One that the block does not leave for.
    pub(super) fn callout(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if !is_own(insn, self.mode) {
            self.call_monitor(insn);
            return Ok(Flow::Ended);
        }
        match insn.mnemonic {
            Mnemonic::Pushfq => {
                self.pushf()?;
                self.complete();
            }
            Mnemonic::Popfq => {
                self.popf()?;
                self.complete();
            }
            Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Swapgs => {
                self.last_temporary();
                self.lose_host_flags();
                self.count_current();
                match insn.mnemonic {
                    Mnemonic::Cli => self.asm.and_memory(Mem::state(RFLAGS), !flags::IF as i32),
                    Mnemonic::Sti => self.sti(),
                    _ => self.swapgs(),
                }
                self.complete();
            }
            other => {
                // From here on registers are free.
                self.settle();
                self.lose_host_flags();
                self.lose_kept_flags();
                self.registers.loaded = 0;
                self.count_current();
                match other {
                    Mnemonic::Stac => {
                        self.asm.or_memory(Mem::state(RFLAGS), flags::AC as i32);
                        self.call_runtime(RuntimeHelper::SelectView, None);
                    }
                    Mnemonic::Clac => {
                        self.asm.and_memory(Mem::state(RFLAGS), !flags::AC as i32);
                        self.call_runtime(RuntimeHelper::SelectView, None);
                    }
                    _ => self.read_tsc(other == Mnemonic::Rdtscp),
                }
                self.complete();
            }
        }
        if matches!(insn.mnemonic, Mnemonic::Stac | Mnemonic::Clac) {
            // The arrays may be others now.
            self.exit(insn.next_rip());
        } else {
            self.direct_exit(insn.next_rip());
        }
        Ok(Flow::Ended)
    }

    /// The monitor does it, and the guest goes on unless that says otherwise.
    fn call_monitor(&mut self, insn: &Insn) {
        self.settle();
        self.lose_host_flags();
        self.count_current();
        let offset = self.asm.lea_relative(RSI);
        let (kind, target) = (RelocationKind::Pc32, RelocationTarget::Callout(self.callouts.len() as u32));
        self.relocations.push(Relocation { offset, kind, target, addend: -4 });
        self.callouts.push(*insn);
        let traits = callout::traits(insn);
        self.asm.constant(RDX, traits);
        self.call_runtime(RuntimeHelper::Callout, None);
        self.asm.test(RAX, RAX);
        let go = self.asm.jump_if(condition::EQUAL);
        self.asm.ret();
        self.asm.bind(go);
        if traits & callout::LEADS_ELSEWHERE != 0 {
            self.leave_to_rip();
        } else {
            self.hand_over();
            self.chain(insn.next_rip());
        }
    }

    /// STI is the last instruction that is counted, so the shadow begins at the state's count.
    fn sti(&mut self) {
        self.abandon_if_event_waits();
        let [none, count, enabled] = self.registers.temporaries;
        self.asm.constant(none, NO_SHADOW);
        self.asm.load(count, Mem::state(offset_of!(CpuState, instructions)));
        self.asm.load(enabled, Mem::state(RFLAGS));
        self.asm.and_immediate(enabled, flags::IF as i32);
        self.asm.move_if_not_zero(count, none);
        self.asm.store(Mem::state(offset_of!(CpuState, shadow_from)), count);
        self.asm.or_memory(Mem::state(RFLAGS), flags::IF as i32);
    }

    fn abandon_if_event_waits(&mut self) {
        self.asm.compare_immediate32(Mem::state(WAITING), 0);
        self.abandon_if(condition::NOT_EQUAL);
    }

    fn swapgs(&mut self) {
        let [base, other, _] = self.registers.temporaries;
        self.asm.load(base, Mem::state(GS_BASE));
        self.asm.load(other, Mem::state(KERNEL_GS_BASE));
        self.asm.store(Mem::state(GS_BASE), other);
        self.asm.store(Mem::state(KERNEL_GS_BASE), base);
    }

    fn read_tsc(&mut self, with_processor: bool) {
        if self.mode.cpl() != 0 {
            self.asm.load(RAX, Mem::state(offset_of!(CpuState, cr4)));
            self.asm.and_immediate(RAX, cr4::TSD as i32);
            self.abandon_if(condition::NOT_EQUAL);
        }
        self.call_runtime(RuntimeHelper::ReadTsc, None);
        self.asm.mov(RDX, RAX);
        self.asm.shift_right(RDX, 32);
        self.asm.lea32(RAX, Mem::new(RAX, 0));
        self.asm.store(Mem::state(gpr_offset(RAX)), RAX);
        self.asm.store(Mem::state(gpr_offset(RDX)), RDX);
        if with_processor {
            self.asm.load32(RCX, Mem::state(MSRS + offset_of!(Msrs, tsc_aux)));
            self.asm.store(Mem::state(gpr_offset(RCX)), RCX);
        }
    }

    /// VM and RF read as zero.
    fn pushf(&mut self) -> Result<(), Declined> {
        let [first, _, image] = self.registers.temporaries;
        self.load_status(image, first);
        self.asm.load(first, Mem::state(RFLAGS));
        self.asm.and_immediate(first, !(flags::VM | flags::RF) as i32);
        self.asm.or(image, first);
        self.push_value(Pushed::Register(image))
    }

    /// AC decides which TLB array is right, and TF traps.
    fn popf(&mut self) -> Result<(), Declined> {
        let top = self.read(RSP as u8);
        let place = self.lookup(Address::Based { base: top, displacement: 0 }, Access::read(8))?;
        let [first, second, _] = self.registers.temporaries;
        let image = self.last_temporary();
        self.asm.load(image, place);
        self.asm.load(first, Mem::state(RFLAGS));
        self.asm.xor(first, image);
        self.asm.and_immediate(first, flags::AC as i32);
        self.abandon_if(condition::NOT_EQUAL);
        self.asm.mov(first, image);
        self.asm.and_immediate(first, flags::TF as i32);
        self.abandon_if(condition::NOT_EQUAL);
        self.asm.mov(first, image);
        self.asm.and_immediate(first, flags::IF as i32);
        let masked = self.asm.jump_if(condition::EQUAL);
        self.abandon_if_event_waits();
        self.asm.bind(masked);

        self.asm.load(first, Mem::state(RFLAGS));
        self.asm.and_immediate(first, !(POPPED | flags::RF) as i32);
        self.asm.mov(second, image);
        self.asm.and_immediate(second, POPPED as i32);
        self.asm.or(first, second);
        self.asm.store(Mem::state(RFLAGS), first);
        self.store_status(image, [first, second]);
        self.asm.lea(top, Mem::new(top, 8));
        self.write(RSP as u8);
        Ok(())
    }
}
