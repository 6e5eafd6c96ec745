//! Guest registers in host registers.
//!
//! Host and guest have the same registers, so a guest register's home is the host register of that name, and whatever
//! instructions imply (CL, RDX:RAX, AH) is where they expect it. Only RSP (the host's stack) and R15 (the state) live
//! elsewhere, in registers whose guest counterparts the stretch of instructions does not use; three more of those are
//! temporaries. A stretch is as long as that works out: up to eleven guest registers, which most blocks keep to.
//! Where one ends, registers are stored and the next begins with all in `CpuState`.
//!
//! Registers are loaded when first used and stored by [`Registers::dirty`] wherever something may look at the state:
//! before each memory access that may fault and at exits ([`super::Template::settle`]), so that cold paths need store
//! nothing.

use semantics::Insn;

use super::{
    assembler::{RAX, Reg},
    effects::{self, Set},
};

/// Host registers with other duties: the stack pointer and the state.
const TAKEN: Set = 1 << 4 | 1 << 15;
/// Temporaries.
pub(super) const TEMPORARIES: usize = 3;
/// Guest registers that a stretch may use.
const MOST: u32 = 16 - 2 - TEMPORARIES as u32;

/// Where guest registers are.
#[derive(Clone, Copy)]
pub(super) struct Registers {
    home: [Reg; 16],
    /// Free for any use. The last is RAX, unless the guest's is in it.
    pub temporaries: [Reg; TEMPORARIES],
    /// Guest registers in their homes.
    pub loaded: Set,
    /// Newer there than in `CpuState`.
    pub dirty: Set,
    /// The same of XMM registers, which are all at home in their counterparts.
    pub loaded_xmm: Set,
    pub dirty_xmm: Set,
}

impl Registers {
    /// Plans the stretch that begins with the first of `insns`; gives its length too.
    pub fn plan(insns: &[Insn]) -> (Self, usize) {
        let mut used: Set = 0;
        let mut length = 0;
        for insn in insns {
            let more = used | effects::registers(insn);
            if more.count_ones() > MOST {
                break;
            }
            used = more;
            length += 1;
        }
        let mut home = core::array::from_fn(|index| index as Reg);
        let mut free = !(TAKEN | used & !TAKEN);
        let mut take = |avoiding: Set| {
            let from = if free & !avoiding != 0 { free & !avoiding } else { free };
            let register = from.trailing_zeros() as Reg;
            free &= !(1 << register);
            register
        };
        let mut temporaries = [take(1 << RAX), take(1 << RAX), take(0)];
        if let Some(at) = temporaries.iter().position(|&register| register == RAX) {
            temporaries.swap(at, TEMPORARIES - 1);
        }
        for guest in [4, 15] {
            if used & 1 << guest != 0 {
                home[guest] = take(0);
            }
        }
        let registers = Self { home, temporaries, loaded: 0, dirty: 0, loaded_xmm: 0, dirty_xmm: 0 };
        (registers, length)
    }

    /// The host register of a guest register.
    pub fn home(&self, guest: u8) -> Reg {
        self.home[usize::from(guest & 15)]
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
