//! Status flags: in the host's own, in `CpuState`, or both.
//!
//! What sets flags leaves them in the host's register; they are saved, as LAHF and SETO have them, only where something
//! is about to change them there or to look at the state ([`super::Template::settle`]). Flags that another
//! instruction sets before that cost nothing.

use core::mem::offset_of;

use x86::{CpuState, LazyFlags, flags};

use super::{
    Template,
    assembler::{Mem, RAX, Reg, condition},
    cold::{Cold, ColdKind},
    effects::{self, FlagUse},
};
use crate::abi::{FIRST_THUNK, SlowPath};
use semantics::Operand;

const LAZY: usize = offset_of!(CpuState, lazy_flags);
const KIND: usize = LAZY + offset_of!(LazyFlags, kind);
const IMAGE: usize = LAZY + offset_of!(LazyFlags, a);

/// The status flags that LAHF has in AH.
const IN_AH: i32 = (flags::STATUS & !flags::OF) as i32;
/// Where RFLAGS has OF.
const OVERFLOW: u8 = flags::OF.trailing_zeros() as u8;

/// The kind of flags that are saved.
const PACKED: i32 = LazyFlags::PACKED as i32;

/// Where the guest's flags are. One of the first two holds.
#[derive(Clone, Copy)]
pub(super) struct Flags {
    /// In the host's flags.
    in_host: bool,
    /// In the state.
    saved: bool,
    /// The state's flags are known to be of the kind [`PACKED`].
    packed: bool,
}

impl Default for Flags {
    fn default() -> Self {
        Self { in_host: false, saved: true, packed: false }
    }
}

impl Template<'_> {
    /// The host's flags are the guest's now, and nowhere else.
    pub(super) fn flags_set(&mut self) {
        self.flags.in_host = true;
        self.flags.saved = false;
    }

    /// The host's flags are about to be changed by something else.
    pub(super) fn lose_host_flags(&mut self) {
        debug_assert!(self.flags.saved, "flags are saved before they are lost");
        self.flags.in_host = false;
    }

    /// Saves flags that are in the host's only. Changes none.
    pub(super) fn save_flags(&mut self) {
        if self.flags.saved {
            return;
        }
        let spare = self.registers.temporaries[2];
        let occupied = self.registers.loaded & 1 << RAX != 0;
        if occupied {
            self.asm.mov(spare, RAX);
        }
        self.asm.lahf();
        self.asm.set_overflow(RAX);
        self.asm.store(Mem::state(IMAGE), RAX);
        if occupied {
            self.asm.mov(RAX, spare);
        }
        if !self.flags.packed {
            self.asm.store_immediate(Mem::state(KIND), PACKED);
        }
        self.flags.saved = true;
        self.flags.packed = true;
    }

    /// Makes the flags in the state, which are saved, packed. Changes host flags.
    fn pack_flags(&mut self) {
        if !self.flags.packed {
            self.asm.compare_immediate(Mem::state(KIND), PACKED);
            let other = self.asm.jump_if(condition::NOT_EQUAL);
            let (resume, entry) = (self.asm.code.len(), FIRST_THUNK + SlowPath::PackFlags as usize);
            self.cold.push(Cold { from: other, resume, index: self.index, kind: ColdKind::Call(entry) });
            self.flags.packed = true;
        }
    }

    /// Loads the status flags, at their places in RFLAGS. Uses another register too; host flags are lost.
    pub(super) fn load_status(&mut self, to: Reg, other: Reg) {
        self.save_flags();
        self.lose_host_flags();
        self.pack_flags();
        self.asm.load(other, Mem::state(IMAGE));
        self.asm.mov(to, other);
        self.asm.shift_right(to, 8);
        self.asm.and_immediate(to, IN_AH);
        self.asm.and_immediate(other, 1);
        self.asm.shift_left(other, OVERFLOW);
        self.asm.or(to, other);
    }

    /// Stores the status flags of an image of RFLAGS, by way of two other registers.
    pub(super) fn store_status(&mut self, image: Reg, temporaries: [Reg; 2]) {
        let [low, overflow] = temporaries;
        self.asm.mov(low, image);
        self.asm.and_immediate(low, IN_AH);
        self.asm.shift_left(low, 8);
        self.asm.mov(overflow, image);
        self.asm.shift_right(overflow, OVERFLOW);
        self.asm.and_immediate(overflow, 1);
        self.asm.or(low, overflow);
        self.asm.store(Mem::state(IMAGE), low);
        self.asm.store_immediate(Mem::state(KIND), PACKED);
        self.flags = Flags { in_host: false, saved: true, packed: true };
    }

    /// What is known about the flags where a path meets another on which they kept: they are saved.
    pub(super) fn merge_flags(&mut self, kept: Flags) {
        self.flags = Flags { in_host: false, saved: true, packed: kept.packed && self.flags.packed };
    }

    /// Brings the guest's flags to the host's. Uses the last temporary.
    pub(super) fn need_flags(&mut self) {
        if self.flags.in_host {
            return;
        }
        self.pack_flags();
        let spare = self.registers.temporaries[2];
        let occupied = self.registers.loaded & 1 << RAX != 0;
        if occupied {
            self.asm.mov(spare, RAX);
        }
        self.asm.load(RAX, Mem::state(IMAGE));
        // 0x7f + 1 overflows, 0x7f + 0 does not.
        self.asm.add_immediate8(RAX, 0x7f);
        self.asm.sahf();
        if occupied {
            self.asm.mov(RAX, spare);
        }
        self.flags.in_host = true;
    }

    /// Whether all flags are set anew before anything can see those that the current instruction leaves.
    pub(super) fn flags_are_dead(&self) -> bool {
        for insn in &self.insns[self.index + 1..] {
            if insn.operands.contains(&Operand::Memory) {
                return false;
            }
            match effects::of(insn).map(|effects| effects.flags) {
                Some(FlagUse::Set) => return true,
                Some(FlagUse::None) => {}
                _ => return false,
            }
        }
        false
    }
}
