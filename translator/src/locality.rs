//! Where accesses to memory are likely to go: to the page that the same base register led to last, or anywhere.
//!
//! A register that was loaded from memory, or computed from one that was, is *strange*: it points anywhere. Any other points where it did
//! before, or near. It is only a guess, which decides how an access is looked up ([`memory::tlb::Recent`], or the TLB array at once): a
//! wrong one costs time.

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

/// The recent page in which an access of `insn` is looked up first, if any. An index that is not `small` makes the address strange.
pub(crate) fn recent_page(insn: &Insn, strange: Set, small: Set) -> Option<usize> {
    if insn.operands.contains(&Operand::Memory) {
        let MemoryOperand { base, index, .. } = insn.memory;
        let known = base == RSP || has(base) && strange & bit(base) == 0 && bit(index) & !small == 0;
        return known.then(|| page_of(base));
    }
    use Mnemonic::*;
    matches!(insn.mnemonic, Push | Pop | Call | Ret | Pushfq | Popfq).then_some(page_of(RSP))
}

/// Whether an instruction moves its first operand by a constant, or sets it to one: what that points to is near, or always the same.
pub(crate) fn is_step(insn: &Insn) -> bool {
    use Mnemonic::*;
    let Operand::Gpr(to) = insn.operand(0) else { return false };
    let MemoryOperand { base, index, .. } = insn.memory;
    match insn.mnemonic {
        Inc | Dec => true,
        Add | Sub | Mov => insn.operand(1) == Operand::Immediate,
        Lea => !has(index) && (!has(base) || base == to.index),
        _ => false,
    }
}

/// Which registers are strange after `insn`, if before it `strange` are.
pub(crate) fn after(insn: &Insn, strange: Set) -> Set {
    use Mnemonic::*;
    let Some(to) = written(insn) else { return strange };
    let zeroes = matches!(insn.mnemonic, Xor | Sub) && insn.operand(1) == insn.operand(0);
    if zeroes || small(insn, 0) != 0 {
        return strange & !to;
    }
    let loads = insn.operands.contains(&Operand::Memory) && insn.memory_bytes != 0 || insn.mnemonic == Pop;
    let from = insn.operands[1..].iter().fold(0, |from, source| match source {
        Operand::Gpr(register) if register.width >= Width::Dword => from | bit(register.index),
        Operand::Memory => from | bit(insn.memory.base) | bit(insn.memory.index),
        _ => from,
    });
    if loads || strange & from != 0 {
        strange | to
    } else if matches!(insn.mnemonic, Mov | Movzx | Movsx | Movsxd | Lea) {
        strange & !to
    } else {
        strange
    }
}

/// Which registers are below 4096 after `insn`, if before it `small` are.
pub(crate) fn small(insn: &Insn, small: Set) -> Set {
    use Mnemonic::*;
    let Some(to) = written(insn) else { return small };
    match insn.mnemonic {
        And if insn.operand(1) == Operand::Immediate && insn.immediate < 4096 => small | to,
        Movzx if insn.operand_width(1) == Width::Byte => small | to,
        _ => small & !to,
    }
}

/// The register that is an instruction's first operand, if it may write it.
fn written(insn: &Insn) -> Option<Set> {
    use Mnemonic::*;
    match insn.operand(0) {
        Operand::Gpr(to) if !matches!(insn.mnemonic, Cmp | Test | Push | Bt | Jmp | Call) => {
            Some(bit(to.index))
        }
        _ => None,
    }
}

fn has(register: u8) -> bool {
    register != MemoryOperand::NONE
}

fn bit(register: u8) -> Set {
    if has(register) { 1 << (register & 15) } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use semantics::decode::decode_one;
    use x86::{CpuState, Mode, control, segment::attribute};

    const RAX: Set = 1;
    const RCX: Set = 1 << 1;
    const RDI: Set = 1 << 7;

    fn insn(bytes: &[u8]) -> Insn {
        let mut state = CpuState::new();
        state.cr0 |= control::cr0::PE | control::cr0::PG;
        state.efer |= control::efer::LMA | control::efer::LME;
        state.segments[1].attributes |= attribute::LONG;
        state.update_mode();
        let mode: Mode = state.mode;
        decode_one(bytes, 0x1000, mode).unwrap()
    }

    #[test]
    fn what_is_loaded_is_strange() {
        let load = insn(&[0x48, 0x8b, 0x07]); // mov rax, [rdi]
        assert_eq!(after(&load, 0), RAX);
        assert_eq!(after(&insn(&[0x48, 0x8d, 0x04, 0x0f]), RCX), RAX | RCX, "lea rax, [rdi+rcx]");
        assert_eq!(after(&insn(&[0x48, 0x83, 0xc0, 8]), RAX), RAX, "add rax, 8");
        assert_eq!(after(&insn(&[0x48, 0x83, 0xc0, 8]), 0), 0);
        assert_eq!(after(&insn(&[0x48, 0x89, 0xf8]), RAX), 0, "mov rax, rdi");
        assert_eq!(after(&insn(&[0x31, 0xc0]), RAX), 0, "xor eax, eax");
        assert_eq!(after(&insn(&[0x0f, 0xb6, 0x07]), RAX), 0, "movzx eax, byte [rdi]");
        assert_eq!(after(&insn(&[0x48, 0x39, 0xc8]), RCX), RCX, "cmp rax, rcx");
        assert_eq!(recent_page(&load, RDI, 0), None);
        assert_eq!(recent_page(&load, RAX, 0), Some(page_of(7)));
    }

    #[test]
    fn steps() {
        assert!(is_step(&insn(&[0x48, 0x83, 0xc7, 8])), "add rdi, 8");
        assert!(is_step(&insn(&[0x48, 0x8d, 0x7f, 8])), "lea rdi, [rdi+8]");
        assert!(is_step(&insn(&[0x48, 0x8d, 0x3d, 0, 0, 0, 0])), "lea rdi, [rip]");
        assert!(!is_step(&insn(&[0x48, 0x8d, 0x3c, 0x0f])), "lea rdi, [rdi+rcx]");
        assert!(!is_step(&insn(&[0x48, 0x89, 0xc7])), "mov rdi, rax");
        assert!(!is_step(&insn(&[0x48, 0x01, 0xcf])), "add rdi, rcx");
    }

    #[test]
    fn a_table_is_near_its_base() {
        let look_up = insn(&[0x33, 0x04, 0x8f]); // xor eax, [rdi+rcx*4]
        assert_eq!(recent_page(&look_up, 0, 0), None);
        let cut = small(&insn(&[0x0f, 0xb6, 0xc9]), 0); // movzx ecx, cl
        assert_eq!(cut, RCX);
        assert_eq!(recent_page(&look_up, 0, cut), Some(page_of(7)));
        assert_eq!(small(&insn(&[0x48, 0xff, 0xc1]), cut), 0, "inc rcx");
        assert_eq!(recent_page(&insn(&[0x58]), Set::MAX, 0), Some(0), "pop rax");
    }
}
