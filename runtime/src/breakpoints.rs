//! Data breakpoints (SDM Vol. 3B 18.2): which memory an instruction is going to touch, asked of iced-x86, implicit
//! accesses (stack, strings) included. While DR7 enables any breakpoint, the engine steps every instruction and asks
//! here before it; a hit is a trap after it.
//!
//! A REP string instruction may do many iterations in one step; a breakpoint in the middle is then reported after
//! all of them.

use iced_x86::{Decoder, DecoderOptions, InstructionInfoFactory, InstructionInfoOptions, OpAccess, Register};
use monitor::debug::data_breakpoints;
use semantics::{Insn, Repeat};
use x86::{CpuState, GuestVirt, PAGE_SIZE, flags};

/// DR6 bits of the data breakpoints that an instruction, about to run, is going to touch. `bytes` are the
/// instruction's.
pub(crate) fn touched(state: &CpuState, insn: &Insn, bytes: &[u8]) -> u64 {
    let accesses = data(state, insn, bytes);
    accesses.into_iter().fold(0, |bits, (first, length, access)| match access {
        OpAccess::None | OpAccess::NoMemAccess => bits,
        OpAccess::Read | OpAccess::CondRead => {
            bits | data_breakpoints(state, GuestVirt(first), length, false)
        }
        _ => bits | data_breakpoints(state, GuestVirt(first), length, true),
    })
}

/// Linear address, bytes and kind of every memory access of an instruction.
fn data(state: &CpuState, insn: &Insn, bytes: &[u8]) -> Vec<(u64, u64, OpAccess)> {
    let mut decoder = Decoder::with_ip(state.mode.code_bits(), bytes, state.rip, DecoderOptions::NONE);
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
        state.dr[1] = 0x6004;
        state.dr[7] = dr7;
        state.rip = 0x1000;
        state
    }

    fn on(state: &CpuState, bytes: &[u8]) -> u64 {
        let insn = decode_one(bytes, state.rip, state.mode).unwrap();
        touched(state, &insn, bytes)
    }

    #[test]
    fn write_breakpoints_ignore_reads() {
        let mut state = state(1 << 2 | 0b1101 << 20); // DR1: write, 4 bytes
        state.gpr[0] = 0x6000;
        assert_eq!(on(&state, &[0x48, 0x89, 0x08]), 2); // mov [rax], rcx: 6000..6008
        assert_eq!(on(&state, &[0x48, 0x8b, 0x08]), 0); // mov rcx, [rax]
        assert_eq!(on(&state, &[0x89, 0x08]), 0); // mov [rax], ecx: 6000..6004
        assert_eq!(on(&state, &[0x8d, 0x48, 0x04]), 0); // lea ecx, [rax+4]
    }

    #[test]
    fn access_breakpoints_see_pushes_and_strings() {
        let mut state = state(1 << 2 | 0b1111 << 20); // DR1: read or write, 4 bytes
        state.gpr[4] = 0x6010;
        assert_eq!(on(&state, &[0x50]), 0); // push rax: 6008..6010
        state.gpr[4] = 0x6008;
        assert_eq!(on(&state, &[0x50]), 2); // 6000..6008
        (state.gpr[7], state.gpr[1]) = (0x6000, 4);
        assert_eq!(on(&state, &[0xf3, 0xaa]), 0); // rep stosb: 6000..6004
        state.gpr[1] = 5;
        assert_eq!(on(&state, &[0xf3, 0xaa]), 2);
    }
}
