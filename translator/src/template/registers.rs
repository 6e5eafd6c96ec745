//! Guest registers in host registers.
//!
//! Host and guest have the same registers, so a guest register's home is mostly the host register of that name, and whatever
//! instructions imply (CL, RDX:RAX, AH) is where they expect it. Nine of them are *carried*: blocks hand them over in fixed homes
//! ([`crate::carried`]), and within a block they are there unless something implies RAX or the block uses others more. R15 is the
//! state, RSP the host's stack, three host registers are temporaries; what is left is home to others, or serves accesses by RSP.
//! Where code uses more guest registers than there are homes, one without takes that of one which the current instruction can do without
//! ([`Template::make_room`]).
//!
//! What is not carried is loaded when first used and stored where something looks at the state: at exits
//! ([`Template::hand_over`], [`super::Template::settle`]) and in the cold paths of memory accesses that may fault ([`super::cold`]).

use semantics::Insn;

use super::{
    Template,
    assembler::{Mem, RAX, Reg, gpr_offset, xmm_offset},
    effects::{self, Set},
    known::KnownPages,
};
use crate::carried;

/// Temporaries.
pub(super) const TEMPORARIES: usize = 3;
/// Two of them, which are never anyone's home.
pub(super) const SPARE: [Reg; 2] = [9, 10];
/// Homes of what is not carried, or for accesses by RSP.
pub(super) const PAIR: [Reg; 2] = [11, 13];
/// Of a guest register that is in `CpuState` only.
const NOWHERE: Reg = 16;

/// The homes of carried registers, by guest register.
const CARRIED: [Reg; 16] = {
    let mut homes = [NOWHERE; 16];
    let mut n = 0;
    while n < carried::HOMES.len() {
        homes[carried::HOMES[n].0 as usize] = carried::HOMES[n].1;
        n += 1;
    }
    homes
};

/// Where guest registers are.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Registers {
    home: [Reg; 16],
    /// Those that instructions imply: they stay at home.
    fixed: Set,
    /// Free for any use. The last is RAX, where flags are kept ([`super::flags`]), unless the guest's is in it.
    pub temporaries: [Reg; TEMPORARIES],
    /// More guest registers are used than there are homes.
    crowded: bool,
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
    /// As they are handed over.
    pub fn carried() -> Self {
        Self {
            home: CARRIED,
            fixed: 0,
            crowded: false,
            temporaries: [SPARE[0], SPARE[1], RAX],
            stack_pair: Some(PAIR),
            loaded: carried::ALL,
            dirty: carried::ALL,
            loaded_xmm: 0,
            dirty_xmm: 0,
        }
    }

    /// Homes for what `insns` use, most of all for what they use most. Nothing is in them yet.
    pub fn plan<'a>(insns: impl Iterator<Item = &'a Insn>) -> Self {
        let (mut used, mut fixed) = (0, 0);
        let mut uses = [0_u32; 16];
        for insn in insns {
            fixed |= effects::implied(insn);
            let touched = effects::registers(insn);
            used |= touched;
            numbers(touched).for_each(|guest| uses[usize::from(guest)] += 1);
        }
        let mut plan = Self { fixed, loaded: 0, dirty: 0, ..Self::carried() };
        let rax = usize::from(RAX);
        if fixed & effects::RAX != 0 {
            plan.temporaries[2] = core::mem::replace(&mut plan.home[rax], RAX);
        }
        if used & !carried::ALL == 0 {
            return plan;
        }
        let mut free = PAIR.into_iter();
        loop {
            let homeless = (0..16).filter(|&guest| uses[guest] != 0 && plan.home[guest] == NOWHERE);
            let Some(guest) = homeless.max_by_key(|&guest| uses[guest]) else { break };
            if let Some(home) = free.next() {
                (plan.home[guest], plan.stack_pair) = (home, None);
                continue;
            }
            let movable = (0..16)
                .filter(|&other| plan.home[other] != NOWHERE && fixed >> other & 1 == 0 && other != rax);
            let victim = movable.min_by_key(|&other| uses[other]).filter(|&other| uses[other] < uses[guest]);
            let Some(victim) = victim else { break };
            plan.home[guest] = core::mem::replace(&mut plan.home[victim], NOWHERE);
        }
        plan.crowded = used & !plan.housed() != 0;
        plan
    }

    /// Those carried registers that are where they are handed over.
    fn in_place(&self) -> Set {
        let set = (0..16).filter(|&guest| self.home[guest] == CARRIED[guest]);
        set.fold(0, |set, guest| set | 1 << guest) & carried::ALL & self.loaded
    }

    /// What is newer than in the state, and whether all carried registers are in place, and among it; then they are not in the set.
    pub fn newer(&self) -> (Set, bool) {
        let carried = self.in_place() == carried::ALL && (self.dirty & carried::ALL).count_ones() > 1;
        (if carried { self.dirty & !carried::ALL } else { self.dirty }, carried)
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
    /// At an entry, where carried registers are as they are handed over: has them where the plan wants them.
    pub(super) fn take_over(&mut self) {
        for (guest, carried) in carried::HOMES {
            match self.registers.home[usize::from(guest)] {
                NOWHERE => {
                    self.asm.store(Mem::state(gpr_offset(guest)), carried);
                    continue;
                }
                home if home == carried => {}
                home => self.asm.mov(home, carried),
            }
            self.registers.loaded |= 1 << guest;
            self.registers.dirty |= 1 << guest;
        }
    }

    /// Has carried registers where they are handed over, and the state the truth about everything else but rip. Changes no host flags, and of the
    /// temporaries only the last.
    pub(super) fn hand_over(&mut self) {
        let in_place = self.registers.in_place();
        let in_rax = self.registers.home[usize::from(RAX)] == RAX && self.registers.loaded & 1 != 0;
        let moved = in_place | Set::from(in_rax);
        for guest in numbers(self.registers.dirty & !moved) {
            self.asm.store(Mem::state(gpr_offset(guest)), self.registers.home(guest));
        }
        self.store_dirty_xmm();
        self.save_flags();
        if in_rax {
            self.asm.mov(CARRIED[usize::from(RAX)], RAX);
        }
        let missing = carried::ALL & !moved;
        if missing == carried::ALL {
            self.asm.call(Mem::state(carried::LOAD));
        } else {
            for guest in numbers(missing) {
                self.asm.load(CARRIED[usize::from(guest)], Mem::state(gpr_offset(guest)));
            }
        }
        let (loaded_xmm, dirty) = (self.registers.loaded_xmm, self.registers.dirty & moved);
        self.registers = Registers { loaded_xmm, dirty, ..Registers::carried() };
        self.known = KnownPages::default();
    }

    fn store_dirty_xmm(&mut self) {
        for index in numbers(core::mem::take(&mut self.registers.dirty_xmm)) {
            self.asm.store_xmm(Mem::state(xmm_offset(index)), index);
        }
    }

    /// Makes `CpuState` the whole truth but for rip. Changes no host flags.
    pub(super) fn settle(&mut self) {
        let (newer, carried) = self.registers.newer();
        self.registers.dirty = 0;
        if carried {
            self.asm.call(Mem::state(carried::STORE));
        }
        for guest in numbers(newer) {
            self.asm.store(Mem::state(gpr_offset(guest)), self.registers.home(guest));
        }
        self.store_dirty_xmm();
        self.save_flags();
    }

    /// Gives every register that an instruction touches a home, at the cost of those that are used latest.
    pub(super) fn make_room(&mut self, insn: &Insn) {
        if !self.registers.crowded {
            return;
        }
        let needed = effects::registers(insn);
        for guest in numbers(needed & !self.registers.housed()) {
            let movable = |guest: &u8| self.registers.can_move(*guest) && needed >> guest & 1 == 0;
            let movable = numbers(self.registers.housed()).filter(movable);
            // Of those that are used latest, or not at all, the last.
            let mut latest: Set = movable.fold(0, |set, guest| set | 1 << guest);
            for insn in &self.insns[self.index..] {
                match latest & !effects::registers(insn) {
                    0 => break,
                    later => latest = later,
                }
            }
            let Some(victim) = latest.checked_ilog2().map(|victim| victim as u8) else {
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
