//! Guest registers in host registers.
//!
//! Host and guest have the same registers, so a guest register's home is the host register of that name, and whatever
//! instructions imply (CL, RDX:RAX, AH) is where they expect it. Only RSP (the host's stack) and R15 (the state) live
//! elsewhere, in registers whose guest counterparts are used least, and so does RAX, unless something implies it; three more are
//! temporaries. That leaves homes for eleven guest registers, which is all that most code uses. Where it uses more, a
//! register without a home takes that of one which the current instruction can do without
//! ([`Template::make_room`]).
//!
//! Registers are loaded when first used and stored where something looks at the state: at exits
//! ([`super::Template::settle`]) and in the cold paths of memory accesses that may fault ([`super::cold`]).

use semantics::Insn;

use super::{
    Template,
    assembler::{Mem, RAX, Reg, gpr_offset},
    effects::{self, Set},
};

/// Host registers with other duties: the stack pointer and the state.
const TAKEN: Set = 1 << 4 | 1 << 15;
/// Temporaries.
pub(super) const TEMPORARIES: usize = 3;
/// Guest registers that have homes at the same time.
const MOST: usize = 16 - 2 - TEMPORARIES;
/// Of a guest register that is in `CpuState` only.
const NOWHERE: Reg = 16;

/// Where guest registers are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Registers {
    home: [Reg; 16],
    /// Those that instructions imply: they stay at home.
    fixed: Set,
    /// Free for any use. The last is RAX, where flags are kept ([`super::flags`]), unless the guest's is in it.
    pub temporaries: [Reg; TEMPORARIES],
    /// Two more for accesses by RSP ([`super::known`]), if there are any left.
    pub stack_pair: Option<[Reg; 2]>,
    /// Guest registers in their homes.
    pub loaded: Set,
    /// Newer there than in `CpuState`.
    pub dirty: Set,
    /// The same of XMM registers, which are all at home in their counterparts.
    pub loaded_xmm: Set,
    pub dirty_xmm: Set,
}

impl Registers {
    /// Homes for what `insns` use, most of all for what they use most.
    pub fn plan<'a>(insns: impl Iterator<Item = &'a Insn>) -> Self {
        let mut uses = [0_u32; 16];
        let mut fixed = 0;
        for insn in insns {
            fixed |= effects::implied(insn);
            for guest in numbers(effects::registers(insn)) {
                uses[usize::from(guest)] += 1;
            }
        }
        let is_used = |guest: &u8| uses[usize::from(*guest)] != 0;
        let mut wanted: Vec<u8> = (0..16).filter(is_used).collect();
        if wanted.len() > MOST {
            wanted.sort_by_key(|&guest| (fixed >> guest & 1 == 0, u32::MAX - uses[usize::from(guest)]));
            wanted.truncate(MOST);
        }
        let away = if fixed & effects::RAX == 0 { TAKEN | effects::RAX } else { TAKEN };
        let at_home = wanted.iter().fold(0, |set: Set, guest| set | 1 << guest) & !away;
        let mut free = !(away | at_home);
        let mut take = || {
            let register = free.trailing_zeros() as Reg;
            free &= !(1 << register);
            register
        };
        let last = |take: &mut dyn FnMut() -> Reg| if fixed & effects::RAX == 0 { RAX } else { take() };
        let temporaries = [take(), take(), last(&mut take)];
        let mut home = [NOWHERE; 16];
        for guest in wanted {
            home[usize::from(guest)] = if away >> guest & 1 == 0 { guest } else { take() };
        }
        let others = free & free.wrapping_sub(1);
        let stack_pair = (home[4] != NOWHERE && others != 0)
            .then(|| [free.trailing_zeros() as Reg, others.trailing_zeros() as Reg]);
        Self { home, fixed, temporaries, stack_pair, loaded: 0, dirty: 0, loaded_xmm: 0, dirty_xmm: 0 }
    }

    /// Whether flags can be kept in RAX.
    pub fn keeps_flags(&self) -> bool {
        self.temporaries[TEMPORARIES - 1] == RAX
    }

    /// Whether a register may give up its home.
    pub fn can_move(&self, guest: u8) -> bool {
        self.fixed >> guest & 1 == 0
    }

    /// The host register of a guest register that has one.
    pub fn home(&self, guest: u8) -> Reg {
        let home = self.home[usize::from(guest & 15)];
        debug_assert!(home != NOWHERE, "guest register {guest} has no home");
        home
    }

    /// All homes.
    pub fn homes(&self) -> [Reg; 16] {
        self.home
    }

    /// The guest register whose home `register` is.
    pub fn guest_in(&self, register: Reg) -> Option<u8> {
        self.home.iter().position(|&home| home == register).map(|guest| guest as u8)
    }

    /// Which guest registers have homes.
    pub fn housed(&self) -> Set {
        (0..16).filter(|&guest| self.home[guest] != NOWHERE).fold(0, |set, guest| set | 1 << guest)
    }

    /// Has a guest register without a home take that of another one, which is not loaded any more.
    pub fn replace(&mut self, guest: u8, by: u8) {
        self.home[usize::from(by)] = self.home[usize::from(guest)];
        self.home[usize::from(guest)] = NOWHERE;
        self.loaded &= !(1 << guest);
    }

    /// Guest registers that are elsewhere than in `other`, or nowhere.
    pub fn displaced(&self, other: &Self) -> Set {
        (0..16).filter(|&guest| self.home[guest] != other.home[guest]).fold(0, |set, guest| set | 1 << guest)
    }

    /// Gives every register the home that it has in `other`. Those that move are not loaded any more.
    pub fn rehouse(&mut self, other: &Self) {
        self.loaded &= !self.displaced(other);
        self.home = other.home;
    }
}

impl Template<'_> {
    /// Gives every register that an instruction touches a home, at the cost of those that are used latest.
    pub(super) fn make_room(&mut self, insn: &Insn) {
        let needed = effects::registers(insn);
        for guest in numbers(needed & !self.registers.housed()) {
            let movable = |guest: &u8| self.registers.can_move(*guest) && needed >> guest & 1 == 0;
            let next_use = |guest: &u8| {
                let rest = &self.insns[self.index..];
                rest.iter().position(|insn| effects::registers(insn) >> guest & 1 != 0).unwrap_or(usize::MAX)
            };
            let Some(victim) = numbers(self.registers.housed()).filter(movable).max_by_key(next_use) else {
                // Not reached: an instruction touches fewer registers than have homes.
                return;
            };
            self.keep_flags_without(victim);
            if self.registers.dirty & 1 << victim != 0 {
                self.asm.store(Mem::state(gpr_offset(victim)), self.registers.home(victim));
                self.registers.dirty &= !(1 << victim);
            }
            self.registers.replace(victim, guest);
            self.known.forget(victim);
        }
    }
}

/// Numbers of a set.
pub(super) fn numbers(mut set: Set) -> impl Iterator<Item = u8> {
    core::iter::from_fn(move || {
        let number = set.trailing_zeros() as u8;
        set &= set.wrapping_sub(1);
        (number < 16).then_some(number)
    })
}
