//! Where accesses to memory are likely to go: to the page that the same base register led to last, or anywhere.
//!
//! A register that was loaded from memory, or computed from one that was, points anywhere, until something was accessed
//! through it; any other points where it did before, or near. So far it is only a guess, which decides how an access is looked up
//! ([`memory::tlb::Recent`], or the TLB array at once): a wrong one costs time.

use iced_x86::Mnemonic;
use semantics::{Insn, MemoryOperand, Operand};
use x86::{Width, state};

const RSP: u8 = state::RSP as u8;

/// The number of the recent page for accesses by a base register. That of RSP is 0: its place is a displacement of 8 bits.
pub(crate) const fn page_of(base: u8) -> usize {
    (base ^ RSP) as usize
}

/// Set of general registers.
pub(crate) type Set = u16;

/// The recent page in which an access of `insn` is looked up first, if the registers `strange` point anywhere.
pub(crate) fn recent_page(insn: &Insn, strange: Set, small: Set) -> Option<usize> {
    if insn.operands.contains(&Operand::Memory) {
        let MemoryOperand { base, index, .. } = insn.memory;
        let known = base == RSP || has(base) && strange & bit(base) == 0 && bit(index) & !small == 0;
        return known.then(|| page_of(base));
    }
    use Mnemonic::*;
    matches!(insn.mnemonic, Push | Pop | Call | Ret | Pushfq | Popfq).then_some(page_of(RSP))
}

/// Which registers point anywhere after `insn`, if before it `strange` do.
pub(crate) fn after(insn: &Insn, strange: Set) -> Set {
    let accesses = insn.operands.contains(&Operand::Memory) && insn.memory_bytes != 0;
    let mut after = strange;
    let Operand::Gpr(to) = insn.operand(0) else { return after };
    use Mnemonic::*;
    match insn.mnemonic {
        Cmp | Test | Push | Bt | Jmp | Call => return after,
        _ => {}
    }
    let sources = &insn.operands[1..];
    let mut of_strange = accesses || insn.mnemonic == Pop;
    for source in sources {
        match source {
            Operand::Gpr(from) => of_strange |= from.width >= Width::Dword && strange & bit(from.index) != 0,
            Operand::Memory => of_strange |= strange & (bit(insn.memory.base) | bit(insn.memory.index)) != 0,
            _ => {}
        }
    }
    let zeroes = matches!(insn.mnemonic, Xor | Sub) && insn.operand(1) == insn.operand(0);
    // What is left are the bits of an index into something small.
    let small = insn.mnemonic == And && insn.operand(1) == Operand::Immediate && insn.immediate < 4096
        || matches!(insn.mnemonic, Movzx) && insn.memory_bytes <= 1 && insn.operand_width(1) == Width::Byte;
    let keeps = !matches!(insn.mnemonic, Mov | Movzx | Movsx | Movsxd | Lea | Pop);
    if zeroes || small {
        after &= !bit(to.index);
    } else if of_strange {
        after |= bit(to.index);
    } else if !keeps {
        after &= !bit(to.index);
    }
    after
}

/// Which registers are below 4096 after `insn`, if before it `small` are.
pub(crate) fn small(insn: &Insn, small: Set) -> Set {
    let Operand::Gpr(to) = insn.operand(0) else { return small };
    use Mnemonic::*;
    match insn.mnemonic {
        Cmp | Test | Push | Bt | Jmp | Call => small,
        And if insn.operand(1) == Operand::Immediate && insn.immediate < 4096 => small | bit(to.index),
        Movzx if insn.operand_width(1) == Width::Byte => small | bit(to.index),
        _ => small & !bit(to.index),
    }
}

fn has(register: u8) -> bool {
    register != MemoryOperand::NONE
}

fn bit(register: u8) -> Set {
    if has(register) { 1 << (register & 15) } else { 0 }
}
