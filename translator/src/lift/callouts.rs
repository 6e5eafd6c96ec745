//! Callouts in 64-bit mode. What an operating system does all the time with RFLAGS, GS and the TSC, compiled code does itself, where
//! the answer is simple and the privilege allows it; for the rest the monitor is called ([`RuntimeHelper::Callout`]).
//!
//! Each ends its block, since interrupts or the TLB array may be others after it: by a chain slot, or through the jump
//! cache where it leads elsewhere (SYSCALL, SYSRET, IRET).
//!
//! **STI's shadow** lasts for one instruction. It is noted as the count of instructions at which it began: if the
//! runtime gets control back at that count, the instruction after STI has not been executed, however far compiled code
//! came, and the shadow still holds (`CpuState::take_shadow`). So nobody has to end it.
//!
//! **Interrupts that wait** (`CpuState::event_waiting`) can be taken once IF is set, so STI and POPF then leave to the
//! monitor, and the dispatcher looks.

use core::mem::offset_of;

use cranelift_codegen::ir::{InstBuilder, Value, condcodes::IntCC, types};
use iced_x86::Mnemonic;
use semantics::{Flag, Insn, Kind, Register, table};
use x86::{
    CpuState, Mode, Segment, Width,
    control::cr4,
    flags,
    state::{Msrs, NO_SHADOW, RSP},
};

use super::{CALLOUT_NAMESPACE, Ended, Lifter, registers::RegisterFile};
use crate::abi::{FIRST_RUNTIME_HELPER, RuntimeHelper, callout};

const RFLAGS: usize = offset_of!(CpuState, rflags);
pub(crate) const GS_BASE: usize =
    offset_of!(CpuState, segments) + 5 * size_of::<Segment>() + offset_of!(Segment, base);
pub(crate) const MSRS: usize = offset_of!(CpuState, msrs);
pub(crate) const KERNEL_GS_BASE: usize = MSRS + offset_of!(Msrs, kernel_gs_base);

/// The status flags and where they are in RFLAGS.
const STATUS: [(Flag, u8); 6] = [
    (Flag::Carry, 0),
    (Flag::Parity, 2),
    (Flag::Adjust, 4),
    (Flag::Zero, 6),
    (Flag::Sign, 7),
    (Flag::Overflow, 11),
];

/// System flags that POPF loads at CPL 0.
pub(crate) const POPPED: u64 =
    flags::TF | flags::IF | flags::DF | flags::IOPL | flags::NT | flags::AC | flags::ID;

/// Whether compiled code does a callout without the monitor (though it may still find at run time that it can't).
pub(crate) fn is_own(insn: &Insn, mode: Mode) -> bool {
    let supervisor = mode.cpl() == 0;
    mode.is_64bit()
        && match insn.mnemonic {
            Mnemonic::Cli | Mnemonic::Sti | Mnemonic::Stac | Mnemonic::Clac | Mnemonic::Swapgs => supervisor,
            Mnemonic::Popfq => supervisor && insn.width == Width::Qword,
            Mnemonic::Pushfq => insn.width == Width::Qword,
            Mnemonic::Rdtsc | Mnemonic::Rdtscp => true,
            _ => false,
        }
}

/// Whether compiled code calls the monitor for a callout.
pub(crate) fn is_called(insn: &Insn, mode: Mode) -> bool {
    mode.is_64bit() && table::kind_of(insn) == Kind::Callout
}

impl Lifter<'_> {
    /// Whether a callout is done without leaving: in place, or by a call of the monitor. Where a profile
    /// counts, the monitor's are left to the dispatcher, which counts them by kind.
    pub(super) fn is_inline(&self, insn: &Insn) -> bool {
        is_own(insn, self.mode) || self.instrumentation.is_none() && is_called(insn, self.mode)
    }

    /// Lifts the current instruction, which [`Lifter::is_inline`], and the end of its block.
    pub(super) fn callout(&mut self, insn: &Insn) -> Ended {
        if !is_own(insn, self.mode) {
            self.call_monitor(insn);
            return Ended;
        }
        match insn.mnemonic {
            Mnemonic::Cli => {
                let rflags = self.state_load(types::I64, RFLAGS);
                let rflags = self.b.ins().band_imm_s(rflags, !flags::IF as i64);
                self.state_store(rflags, RFLAGS);
            }
            Mnemonic::Sti => self.sti(),
            Mnemonic::Pushfq => self.pushf(),
            Mnemonic::Popfq => self.popf(),
            Mnemonic::Swapgs => {
                let gs = self.state_load(types::I64, GS_BASE);
                let other = self.state_load(types::I64, KERNEL_GS_BASE);
                self.state_store(other, GS_BASE);
                self.state_store(gs, KERNEL_GS_BASE);
            }
            Mnemonic::Stac | Mnemonic::Clac => self.set_access_flag(insn.mnemonic == Mnemonic::Stac),
            _ => self.read_tsc(insn.mnemonic == Mnemonic::Rdtscp),
        }
        let file = self.file;
        self.write_back(&file);
        self.chain(self.insn.next_rip);
        Ended
    }

    /// The monitor does it, and the guest goes on unless that says otherwise.
    fn call_monitor(&mut self, insn: &Insn) {
        let file = self.file;
        self.write_back(&file);
        let described = self.symbol(CALLOUT_NAMESPACE, self.callouts.len() as u32);
        self.callouts.push(*insn);
        let entry = FIRST_RUNTIME_HELPER + RuntimeHelper::Callout as usize;
        let traits = callout::traits(insn);
        let traits_value = self.word(traits);
        let result = self.call_table(entry, &[self.cpu, described, traits_value]);
        self.file = RegisterFile::default();
        let leave = self.b.create_block();
        let go = self.b.create_block();
        self.b.set_cold_block(leave);
        self.b.ins().brif(result, leave, &[], go, &[]);
        self.b.switch_to_block(leave);
        self.b.ins().return_(&[result]);
        self.b.switch_to_block(go);
        if traits & callout::LEADS_ELSEWHERE == 0 {
            self.chain(self.insn.next_rip);
            return;
        }
        let target = self.state_load(types::I64, offset_of!(CpuState, rip));
        let mode = self.state_load(types::I32, offset_of!(CpuState, mode));
        let mode = self.extend(mode);
        self.indirect_exit_in(target, Some(mode));
    }

    fn event_waits(&mut self) -> Value {
        let waiting = self.state_load(types::I32, offset_of!(CpuState, event_waiting));
        self.b.ins().icmp_imm_s(IntCC::NotEqual, waiting, 0)
    }

    fn sti(&mut self) {
        let waits = self.event_waits();
        self.abandon_if(waits);
        let old = self.state_load(types::I64, RFLAGS);
        let was_set = self.b.ins().band_imm_u(old, flags::IF as i64);
        let new = self.b.ins().bor_imm_u(old, flags::IF as i64);
        self.state_store(new, RFLAGS);
        let now = self.count_value();
        let none = self.word(NO_SHADOW);
        let from = self.b.ins().select(was_set, none, now);
        self.state_store(from, offset_of!(CpuState, shadow_from));
    }

    /// VM and RF read as zero.
    fn pushf(&mut self) {
        let system = self.state_load(types::I64, RFLAGS);
        let mut image = self.b.ins().band_imm_s(system, !(flags::VM | flags::RF) as i64);
        for (flag, bit) in STATUS {
            let set = self.read_flag(flag);
            let set = self.extend(set);
            let set = self.b.ins().ishl_imm_u(set, i64::from(bit));
            image = self.b.ins().bor(image, set);
        }
        let pointer = Register::new(RSP as u8, Width::Qword);
        let old = self.read_gpr(pointer);
        let new = self.b.ins().iadd_imm_s(old, -8);
        self.store_guest(Width::Qword, new, image);
        self.write_gpr(pointer, new);
    }

    fn popf(&mut self) {
        let pointer = Register::new(RSP as u8, Width::Qword);
        let old = self.read_gpr(pointer);
        let image = self.load_guest(Width::Qword, old);
        let current = self.state_load(types::I64, RFLAGS);
        // AC decides which TLB array is right, and TF traps.
        let changed = self.b.ins().bxor(image, current);
        let view = self.b.ins().band_imm_u(changed, flags::AC as i64);
        let traps = self.b.ins().band_imm_u(image, flags::TF as i64);
        let special = self.b.ins().bor(view, traps);
        let waits = self.event_waits();
        let waits = self.extend(waits);
        let waits = self.b.ins().ishl_imm_u(waits, i64::from(flags::IF.trailing_zeros()));
        let taken = self.b.ins().band(waits, image);
        let special = self.b.ins().bor(special, taken);
        self.abandon_if(special);

        let kept = self.b.ins().band_imm_s(current, !(POPPED | flags::RF) as i64);
        let popped = self.b.ins().band_imm_u(image, POPPED as i64);
        let rflags = self.b.ins().bor(kept, popped);
        self.state_store(rflags, RFLAGS);
        for (flag, bit) in STATUS {
            let shifted = self.b.ins().ushr_imm_u(image, i64::from(bit));
            let set = self.b.ins().band_imm_u(shifted, 1);
            let set = self.reduce(Width::Byte, set);
            self.write_flag(flag, set);
        }
        let new = self.b.ins().iadd_imm_s(old, 8);
        self.write_gpr(pointer, new);
    }

    fn set_access_flag(&mut self, set: bool) {
        let old = self.state_load(types::I64, RFLAGS);
        let new = if set {
            self.b.ins().bor_imm_u(old, flags::AC as i64)
        } else {
            self.b.ins().band_imm_s(old, !flags::AC as i64)
        };
        self.state_store(new, RFLAGS);
        // Nothing of this function uses the TLB array of before after this.
        self.call_table(FIRST_RUNTIME_HELPER + RuntimeHelper::SelectView as usize, &[self.cpu]);
    }

    fn read_tsc(&mut self, with_processor: bool) {
        if self.mode.cpl() != 0 {
            let cr4 = self.state_load(types::I64, offset_of!(CpuState, cr4));
            let forbidden = self.b.ins().band_imm_u(cr4, cr4::TSD as i64);
            self.abandon_if(forbidden);
        }
        let tsc = self.call_table(FIRST_RUNTIME_HELPER + RuntimeHelper::ReadTsc as usize, &[self.cpu]);
        let low = self.reduce(Width::Dword, tsc);
        let high = self.b.ins().ushr_imm_u(tsc, 32);
        self.write_gpr(Register::new(0, Width::Dword), low);
        self.write_gpr(Register::new(2, Width::Qword), high);
        if with_processor {
            let processor = self.state_load(types::I32, MSRS + offset_of!(Msrs, tsc_aux));
            self.write_gpr(Register::new(1, Width::Dword), processor);
        }
    }
}
