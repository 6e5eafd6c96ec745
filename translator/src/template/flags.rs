//! Status flags: in the host's own, kept in RAX, in `CpuState`, or in several of them.
//!
//! What sets flags leaves them in the host's register. Where something is about to change them there, they are *kept*: LAHF and
//! SETO, in RAX if no guest register lives there, else in `CpuState`. Where something looks at the state they are *saved* there
//! ([`super::Template::settle`]), as LAHF and SETO have them. Flags that another instruction sets before that cost nothing.

use core::mem::offset_of;

use iced_x86::Mnemonic;
use x86::{CpuState, LazyFlags, flags};

use super::{
    Template,
    assembler::{Mem, RAX, Reg, condition},
    cold::ColdKind,
    effects::{self, FlagUse},
    source::Source,
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

/// What becomes of flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fate {
    /// They are set anew, and nothing can see them before.
    Dead,
    /// Nothing reads them in the block, but a fault or what follows the block could show them.
    Observed,
    /// They are read in the block.
    Read,
    /// An addition or subtraction reads CF, and sets all of them; nothing can see them before.
    CarryRead,
}

/// Where the guest's flags are. One of the first three holds, or there is a source.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Flags {
    /// In the host's flags.
    in_host: bool,
    /// In RAX.
    kept: bool,
    /// In the state.
    saved: bool,
    /// The state's flags are known to be of the kind [`PACKED`].
    packed: bool,
    /// What computes them again.
    pub source: Option<Source>,
}

impl Default for Flags {
    fn default() -> Self {
        Self { in_host: false, kept: false, saved: true, packed: false, source: None }
    }
}

impl Flags {
    /// They are in RAX and in no other place.
    pub fn kept() -> Self {
        Self { kept: true, saved: false, ..Self::default() }
    }

    /// Whether the state has not what RAX has, and not the kind either.
    pub fn unsaved(&self) -> (bool, bool) {
        let unsaved = self.kept && !self.saved;
        (unsaved, unsaved && !self.packed)
    }

    /// They are in the host's flags.
    pub fn in_host(&self) -> bool {
        self.in_host
    }

    /// Only a source or the host's flags tell them.
    pub fn are_loose(&self) -> bool {
        !self.saved && !self.kept
    }
}

impl Template<'_> {
    /// The host's flags are the guest's now, and nowhere else.
    pub(super) fn flags_set(&mut self) {
        self.flags = Flags { in_host: true, kept: false, saved: false, source: None, ..self.flags };
    }

    /// The host's flags are about to be changed by something else.
    pub(super) fn lose_host_flags(&mut self) {
        debug_assert!(
            !self.flags.are_loose() || self.flags.source.is_some(),
            "flags are kept before they are lost"
        );
        self.flags.in_host = false;
    }

    /// Nothing will see the flags.
    pub(super) fn drop_flags(&mut self) {
        self.flags = Flags { packed: self.flags.packed, ..Flags::default() };
    }

    /// Sees to it that flags are elsewhere too, or can be had again, if they are in the host's. Changes none.
    pub(super) fn keep_flags(&mut self) {
        if self.flags.source.is_none() {
            self.keep_flags_themselves();
        }
    }

    /// Sees to it that flags are in RAX or in the state. Changes the host's only if they are not there.
    pub(super) fn keep_flags_themselves(&mut self) {
        if !self.flags.are_loose() {
            return;
        }
        self.need_flags();
        if self.registers.keeps_flags() {
            self.asm.lahf();
            self.asm.set_overflow(RAX);
            self.flags.kept = true;
        } else {
            self.save_flags();
        }
    }

    /// Saves flags in the state. Changes the host's only if they are not there.
    pub(super) fn save_flags(&mut self) {
        if self.flags.saved {
            return;
        }
        if !self.flags.kept {
            self.need_flags();
        }
        let spare = self.registers.temporaries[2];
        let occupied = !self.registers.keeps_flags() && self.registers.loaded & 1 << RAX != 0;
        if occupied {
            self.asm.mov(spare, RAX);
        }
        if !self.flags.kept {
            self.asm.lahf();
            self.asm.set_overflow(RAX);
        }
        self.flags.kept = self.registers.keeps_flags();
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

    /// RAX is about to be used for something else. Flags are saved.
    pub(super) fn lose_kept_flags(&mut self) {
        debug_assert!(self.flags.saved, "flags are saved before they are lost");
        self.flags.kept = false;
    }

    /// Stores what RAX has, and its kind.
    pub(super) fn store_kept_flags(&mut self, image: bool, kind: bool) {
        if image {
            self.asm.store(Mem::state(IMAGE), RAX);
        }
        if kind {
            self.asm.store_immediate(Mem::state(KIND), PACKED);
        }
    }

    /// The last temporary, for use until flags are set again.
    pub(super) fn last_temporary(&mut self) -> Reg {
        self.save_flags();
        self.lose_kept_flags();
        self.registers.temporaries[2]
    }

    /// Sees to it that flags are in RAX. Host flags are lost.
    pub(super) fn bring_flags_to_rax(&mut self) {
        self.keep_flags_themselves();
        if !self.flags.kept {
            self.lose_host_flags();
            self.pack_flags();
            self.asm.load(RAX, Mem::state(IMAGE));
            self.flags.kept = true;
        }
    }

    /// Makes the flags in the state, which are saved, packed. Changes host flags.
    fn pack_flags(&mut self) {
        if !self.flags.packed {
            self.asm.compare_immediate(Mem::state(KIND), PACKED);
            let other = self.asm.jump_if(condition::NOT_EQUAL);
            let (resume, entry) = (self.asm.code.len(), FIRST_THUNK + SlowPath::PackFlags as usize);
            self.note(other, resume, ColdKind::Call(entry));
            self.flags.packed = true;
        }
    }

    /// Loads the status flags, at their places in RFLAGS. Uses another register too; host flags are lost.
    pub(super) fn load_status(&mut self, to: Reg, other: Reg) {
        self.save_flags();
        self.lose_kept_flags();
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
        self.flags = Flags { packed: true, ..Flags::default() };
    }

    /// What is known about the flags where a path meets another on which they kept: they are saved.
    pub(super) fn merge_flags(&mut self, kept: Flags) {
        let packed = kept.packed && self.flags.packed;
        self.flags = Flags { packed, ..Flags::default() };
    }

    /// Brings the guest's flags to the host's. Uses the last temporary.
    pub(super) fn need_flags(&mut self) {
        if self.flags.in_host {
            return;
        }
        if let Some(source) = self.flags.source.filter(|_| self.flags.are_loose()) {
            self.compute_again(source);
            self.flags.in_host = true;
            return;
        }
        let spare = self.registers.temporaries[2];
        let mut occupied = false;
        if !self.flags.kept {
            self.pack_flags();
            occupied = !self.registers.keeps_flags() && self.registers.loaded & 1 << RAX != 0;
            if occupied {
                self.asm.mov(spare, RAX);
            }
            self.asm.load(RAX, Mem::state(IMAGE));
            self.flags.kept = self.registers.keeps_flags();
        }
        // 1 - -127 overflows, 0 - -127 does not.
        self.asm.compare_immediate8(RAX, -127);
        self.asm.sahf();
        if occupied {
            self.asm.mov(RAX, spare);
        }
        self.flags.in_host = true;
    }

    /// Whether all flags are set anew before anything can see those that the current instruction leaves.
    pub(super) fn flags_are_dead(&self) -> bool {
        self.fate() == Fate::Dead
    }

    /// What becomes of the flags that the current instruction leaves.
    pub(super) fn fate(&self) -> Fate {
        let mut observed = false;
        for insn in &self.insns[self.index + 1..] {
            match effects::of(insn).map(|effects| effects.flags) {
                Some(FlagUse::Update)
                    if !observed && matches!(insn.mnemonic, Mnemonic::Adc | Mnemonic::Sbb) =>
                {
                    return if insn.operands.contains(&Operand::Memory) {
                        Fate::Read
                    } else {
                        Fate::CarryRead
                    };
                }
                Some(FlagUse::Read | FlagUse::Update | FlagUse::Merge) => return Fate::Read,
                _ if effects::branch_condition(insn.mnemonic).is_some() => return Fate::Read,
                Some(FlagUse::Set) if observed || insn.operands.contains(&Operand::Memory) => {
                    return Fate::Observed;
                }
                Some(FlagUse::Set) => return Fate::Dead,
                Some(FlagUse::None) => observed |= insn.operands.contains(&Operand::Memory),
                None if insn.mnemonic == Mnemonic::Lea => {}
                None => return Fate::Observed,
            }
        }
        Fate::Observed
    }
}
