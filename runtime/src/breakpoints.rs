//! Hardware breakpoints, DR0 to DR3 (SDM Vol. 3B 18.2). While DR7 enables any, the engine steps every instruction and
//! asks here: before it, whether it begins at an instruction breakpoint and which data it will touch; after it, the
//! latter are traps.
//!
//! Which data an instruction touches is asked of iced-x86, implicit accesses (stack, strings) included. A REP string instruction may do
//! many iterations in one step; a breakpoint in the middle is then reported after all of them.

use iced_x86::{
    Decoder, DecoderOptions, InstructionInfoFactory, InstructionInfoOptions, Mnemonic, OpAccess, Register,
};
use semantics::{Insn, Operand, Repeat};
use x86::{
    CpuState, GuestVirt, PAGE_SIZE,
    control::{cr4, debug},
    flags,
};

/// What DR7's R/W field makes a breakpoint of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Condition {
    Execute,
    Write,
    Port,
    ReadWrite,
}

/// One enabled breakpoint.
#[derive(Clone, Copy, Debug)]
struct Breakpoint {
    /// Its bit in DR6.
    bit: u64,
    condition: Condition,
    first: u64,
    length: u64,
}

/// Whether any breakpoint is enabled.
#[inline]
pub fn armed(state: &CpuState) -> bool {
    state.dr[7] & debug::DR7_ENABLES != 0
}

fn enabled(state: &CpuState) -> impl Iterator<Item = Breakpoint> {
    let (dr7, dr) = (state.dr[7], state.dr);
    let ports = state.cr4 & cr4::DE != 0;
    (0..4).filter(move |n| dr7 >> (2 * n) & 3 != 0).filter_map(move |n: usize| {
        let condition = match dr7 >> (16 + 4 * n) & 3 {
            0 => Condition::Execute,
            1 => Condition::Write,
            // Undefined without CR4.DE: none.
            2 if ports => Condition::Port,
            2 => return None,
            _ => Condition::ReadWrite,
        };
        let length = match dr7 >> (18 + 4 * n) & 3 {
            0 => 1,
            1 => 2,
            2 => 8,
            _ => 4,
        };
        Some(Breakpoint { bit: debug::DR6_B0 << n, condition, first: dr[n] & !(length - 1), length })
    })
}

/// DR6 bits of the instruction breakpoints at a linear address.
pub fn at_instruction(state: &CpuState, address: GuestVirt) -> u64 {
    enabled(state)
        .filter(|b| b.condition == Condition::Execute && b.first == address.0)
        .fold(0, |bits, b| bits | b.bit)
}

/// DR6 bits of the data and port breakpoints that an instruction, about to run, is going to touch.
///
/// `bytes` are the instruction's.
pub fn on_data(state: &CpuState, insn: &Insn, bytes: &[u8]) -> u64 {
    let breakpoints: Vec<Breakpoint> =
        enabled(state).filter(|b| b.condition != Condition::Execute).collect();
    if breakpoints.is_empty() {
        return 0;
    }
    let mut bits = 0;
    let mut touch = |condition: Condition, first: u64, length: u64| {
        for b in &breakpoints {
            let kind = b.condition == condition
                || b.condition == Condition::ReadWrite && condition == Condition::Write;
            if kind && first < b.first + b.length && b.first < first.saturating_add(length) {
                bits |= b.bit;
            }
        }
    };
    if let Some((port, length)) = port(state, insn) {
        touch(Condition::Port, port, length);
    }
    for (first, length, access) in data(state, insn, bytes) {
        match access {
            OpAccess::Read | OpAccess::CondRead => touch(Condition::ReadWrite, first, length),
            OpAccess::Write | OpAccess::CondWrite | OpAccess::ReadWrite | OpAccess::ReadCondWrite => {
                touch(Condition::Write, first, length);
            }
            OpAccess::None | OpAccess::NoMemAccess => {}
        }
    }
    bits
}

fn port(state: &CpuState, insn: &Insn) -> Option<(u64, u64)> {
    let length = insn.width.bytes();
    match insn.mnemonic {
        Mnemonic::In | Mnemonic::Out => {
            let immediate = insn.operands.contains(&Operand::Immediate);
            let port = if immediate { insn.immediate & 0xff } else { state.gpr[2] & 0xffff };
            Some((port, length))
        }
        Mnemonic::Insb
        | Mnemonic::Insw
        | Mnemonic::Insd
        | Mnemonic::Outsb
        | Mnemonic::Outsw
        | Mnemonic::Outsd => Some((state.gpr[2] & 0xffff, length)),
        _ => None,
    }
}

/// Linear address, bytes and kind of every memory access of an instruction.
fn data(state: &CpuState, insn: &Insn, bytes: &[u8]) -> Vec<(u64, u64, OpAccess)> {
    let mut decoder =
        Decoder::with_ip(state.mode.code_bits(), bytes, state.rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info_options(&instruction, InstructionInfoOptions::NO_REGISTER_USAGE);
    let accesses = info.used_memory().iter().filter_map(|memory| {
        let mut first = memory.virtual_address(0, |register, _, _| Some(value(state, register)))?;
        // iced-x86 gives no size where REP repeats the access.
        let size = match memory.memory_size().size() as u64 {
            0 if insn.repeat != Repeat::None => insn.width.bytes(),
            0 => u64::from(insn.memory_bytes).max(1),
            known => known,
        };
        let mut length = size;
        if insn.repeat != Repeat::None {
            // One step does at most a page.
            length = size.saturating_mul(state.gpr[1]).min(PAGE_SIZE);
            if state.rflags & flags::DF != 0 {
                first = first.wrapping_sub(length.saturating_sub(size));
            }
        }
        let first = if state.mode.is_64bit() { first } else { first & 0xffff_ffff };
        Some((first, length, memory.access()))
    });
    accesses.collect()
}

/// A register as an effective-address computation wants it; segments give their base.
fn value(state: &CpuState, register: Register) -> u64 {
    if register.is_segment_register() {
        let segment = &state.segments[register.number()];
        let flat = state.mode.is_64bit() && !matches!(register, Register::FS | Register::GS);
        return if flat { 0 } else { segment.base };
    }
    if !register.is_gpr() {
        return 0;
    }
    let full = state.gpr[register.number() & 15];
    match register.size() {
        8 => full,
        4 => full & 0xffff_ffff,
        2 => full & 0xffff,
        _ => full & 0xff,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use semantics::decode::decode_one;
    use x86::{control::cr0, control::efer, segment::attribute};

    fn state(dr7: u64) -> CpuState {
        let mut state = CpuState::new();
        state.cr0 |= cr0::PE | cr0::PG;
        state.efer |= efer::LMA | efer::LME;
        state.segments[1].attributes |= attribute::LONG;
        state.update_mode();
        state.dr[0] = 0x5000;
        state.dr[1] = 0x6004;
        state.dr[7] = dr7;
        state.rip = 0x1000;
        state
    }

    fn on(state: &CpuState, bytes: &[u8]) -> u64 {
        let insn = decode_one(bytes, state.rip, state.mode).unwrap();
        on_data(state, &insn, bytes)
    }

    #[test]
    fn instruction_breakpoints_match_one_address() {
        let state = state(1);
        assert_eq!(at_instruction(&state, GuestVirt(0x5000)), 1);
        assert_eq!(at_instruction(&state, GuestVirt(0x5001)), 0);
    }

    #[test]
    fn write_breakpoints_ignore_reads() {
        let mut state = state(1 << 2 | 0b1101 << 20); // DR1: write, 4 bytes
        state.gpr[0] = 0x6000;
        assert_eq!(on(&state, &[0x48, 0x89, 0x08]), 2); // mov [rax], rcx: 6000..6008
        assert_eq!(on(&state, &[0x48, 0x8b, 0x08]), 0); // mov rcx, [rax]
        assert_eq!(on(&state, &[0x89, 0x08]), 0); // mov [rax], ecx: 6000..6004
    }

    #[test]
    fn access_breakpoints_see_pushes() {
        let mut state = state(1 << 2 | 0b1111 << 20); // DR1: read or write, 4 bytes
        state.gpr[4] = 0x6010;
        assert_eq!(on(&state, &[0x50]), 0); // push rax: 6008..6010
        state.gpr[4] = 0x6008;
        assert_eq!(on(&state, &[0x50]), 2); // 6000..6008
    }

    #[test]
    fn disabled_breakpoints_do_nothing() {
        let mut state = state(0b1101 << 20);
        state.gpr[0] = 0x6004;
        assert!(!armed(&state));
        assert_eq!(on(&state, &[0x89, 0x08]), 0);
    }
}
