//! What a sample keeps of the guest's stack: its top, and the callers by frame pointers, as far as there are any.
//!
//! Code without frame pointers has anything in RBP, so a frame counts only if what it returns to follows a call.

use memory::Mmu;
use profiler::{guest::Callers, orc::RawStack};
use x86::{CpuState, GuestVirt, state};

/// Frames at most.
const DEPTH: usize = 64;

/// Words of the stack that are kept.
const WORDS: u64 = 512;

/// Of `count` samples. The top of the stack only where the kernel's tables could lead on.
pub(super) fn stack(cpu: &CpuState, mmu: &Mmu, count: u64) -> RawStack {
    let (rip, gpr, by_frames) = (cpu.rip, cpu.gpr, by_frames(cpu, mmu));
    let words = if cpu.mode.is_64bit() && cpu.cpl == 0 { top(cpu, mmu) } else { Vec::new() };
    RawStack { rip, gpr, words, by_frames, callers: Callers::default(), count }
}

fn top(cpu: &CpuState, mmu: &Mmu) -> Vec<u64> {
    let mut bytes = Vec::with_capacity(8 * WORDS as usize);
    let mut at = cpu.gpr[state::RSP];
    let end = at.saturating_add(8 * WORDS);
    // Page by page.
    while at < end {
        let length = (end - at).min(x86::PAGE_SIZE - GuestVirt(at).page_offset()) as usize;
        let from = bytes.len();
        bytes.resize(from + length, 0);
        if read(cpu, mmu, at, &mut bytes[from..]).is_none() {
            bytes.truncate(from);
            break;
        }
        at += length as u64;
    }
    bytes.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word)).collect()
}

/// Instruction pointers, innermost first; at least one.
fn by_frames(cpu: &CpuState, mmu: &Mmu) -> Vec<u64> {
    let mut stack = vec![cpu.rip];
    if !cpu.mode.is_64bit() {
        return stack;
    }
    let mut frame = cpu.gpr[state::RBP];
    while stack.len() < DEPTH {
        let (Some(next), Some(from)) = (word(cpu, mmu, frame), word(cpu, mmu, frame.wrapping_add(8))) else {
            break;
        };
        if !follows_call(cpu, mmu, from) {
            break;
        }
        stack.push(from);
        // Stacks grow downwards, so callers' frames lie above.
        if next <= frame {
            break;
        }
        frame = next;
    }
    stack
}

/// Reads guest memory without effects.
fn word(cpu: &CpuState, mmu: &Mmu, address: u64) -> Option<u64> {
    if !address.is_multiple_of(8) {
        return None;
    }
    let mut bytes = [0; 8];
    read(cpu, mmu, address, &mut bytes)?;
    Some(u64::from_le_bytes(bytes))
}

fn read(cpu: &CpuState, mmu: &Mmu, address: u64, bytes: &mut [u8]) -> Option<()> {
    let address = GuestVirt(address);
    if !address.is_canonical() || address.page_offset() + bytes.len() as u64 > x86::PAGE_SIZE {
        return None;
    }
    let physical = mmu.look_up(cpu, address)?;
    mmu.ram().read(physical, bytes).ok()
}

/// Whether a CALL ends at an address: E8 with 32 bits, or FF /2 with up to six bytes of operand.
fn follows_call(cpu: &CpuState, mmu: &Mmu, address: u64) -> bool {
    let mut bytes = [0; 7];
    if read(cpu, mmu, address.wrapping_sub(7), &mut bytes).is_none() {
        return false;
    }
    let indirect = |length: usize| bytes[7 - length] == 0xff && bytes[8 - length] >> 3 & 7 == 2;
    bytes[2] == 0xe8 || [2, 3, 4, 6, 7].into_iter().any(indirect)
}
