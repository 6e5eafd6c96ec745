//! Call stacks of a Linux kernel without frame pointers, by its own ORC tables (Documentation/arch/x86/orc-unwinder.rst).
//!
//! The tables lie in the kernel's read-only data: for each range of code, how to find the caller's stack pointer, its RBP and
//! its return address (arch/x86/include/asm/orc_types.h). A [`RawStack`] is what was taken of the guest at a sample:
//! registers and the top of its stack. What lies further down (another stack, deep recursion) is not seen, and the stack ends
//! there.

use crate::{guest::Callers, kallsyms::GuestMemory, symbols::Symbols};

/// What a sample keeps of the guest.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RawStack {
    /// Instruction pointer.
    pub rip: u64,
    /// General registers in encoding order: rax rcx rdx rbx rsp rbp rsi rdi r8..r15.
    pub gpr: [u64; 16],
    /// Words from RSP upwards.
    pub words: Vec<u64>,
    /// Instruction pointers by frame pointers, innermost first, for where there are no tables.
    pub by_frames: Vec<u64>,
    /// Whose it is, and names for those.
    pub callers: Callers,
    /// Samples that it stands for.
    pub count: u64,
}

impl RawStack {
    fn word(&self, address: u64) -> Option<u64> {
        let offset = address.wrapping_sub(self.gpr[RSP]);
        let aligned = offset.is_multiple_of(8).then_some(offset / 8)?;
        self.words.get(usize::try_from(aligned).ok()?).copied()
    }
}

const RDX: usize = 2;
const RSP: usize = 4;
const RBP: usize = 5;
const RDI: usize = 7;

/// Frames at most.
const DEPTH: usize = 100;
/// No kernel has larger tables.
const MOST_ENTRIES: u64 = 4 << 20;

/// One entry, decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry {
    sp_offset: i64,
    bp_offset: i64,
    sp_reg: u8,
    bp_reg: u8,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// The stack ends here, or nobody knows.
    End,
    /// The return address is below the caller's stack pointer.
    Call,
    /// An exception's full register frame.
    Registers,
    /// Of it only what the processor pushed.
    Iret,
}

/// A kernel's tables.
pub struct Orc {
    /// Start of each range, ascending.
    starts: Vec<u64>,
    entries: Vec<[u8; 6]>,
    /// Types are numbered as since 6.4.
    renumbered: bool,
}

impl Orc {
    /// Finds the tables by the kernel's own symbols; `moved` is what virtual addresses of the kernel's image are above physical
    /// ones.
    pub fn find(
        symbols: &Symbols,
        memory: &dyn GuestMemory,
        moved: u64,
        banner: Option<&str>,
    ) -> Option<Self> {
        let address = |name| symbols.address_of(name);
        let (ips, ips_end) = (address("__start_orc_unwind_ip")?, address("__stop_orc_unwind_ip")?);
        let (entries, entries_end) = (address("__start_orc_unwind")?, address("__stop_orc_unwind")?);
        let count = ips_end.checked_sub(ips)? / 4;
        if count == 0 || count > MOST_ENTRIES || entries_end.checked_sub(entries)? != count * 6 {
            return None;
        }
        let read = |from: u64, bytes: u64| {
            let mut buffer = vec![0; bytes as usize];
            memory.read(from.wrapping_sub(moved), &mut buffer).then_some(buffer)
        };
        let starts = read(ips, count * 4)?;
        let starts: Vec<u64> = starts
            .as_chunks::<4>()
            .0
            .iter()
            .zip(0u64..)
            .map(|(word, n)| (ips + 4 * n).wrapping_add_signed(i32::from_le_bytes(*word).into()))
            .collect();
        // Sorted when the kernel was built.
        let is_table = starts.is_sorted() && symbols.find(starts[0]).is_some();
        let entries = read(entries, count * 6)?.as_chunks::<6>().0.to_vec();
        is_table.then_some(Self { starts, entries, renumbered: is_renumbered(banner) })
    }

    /// The call stack, innermost first. `None` if the tables don't know the code.
    pub fn unwind(&self, raw: &RawStack) -> Option<Vec<u64>> {
        let mut stack = vec![raw.rip];
        let (mut ip, mut sp, mut bp) = (raw.rip, raw.gpr[RSP], raw.gpr[RBP]);
        // Where the processor is, or was interrupted: that very instruction. Else after a call, which may end its function.
        let mut exact = true;
        self.entry(ip)?;
        while stack.len() < DEPTH {
            let Some(entry) = self.entry(if exact { ip } else { ip.wrapping_sub(1) }) else { break };
            let innermost = stack.len() == 1;
            let register = |number: usize| innermost.then(|| raw.gpr[number]);
            let above = |base: u64| base.wrapping_add_signed(entry.sp_offset);
            let caller = match entry.sp_reg {
                2 => register(RDX),
                3 => register(RDI),
                4 => Some(above(bp)),
                5 => Some(above(sp)),
                6 => register(10),
                7 => register(13),
                8 => raw.word(above(bp)),
                9 => raw.word(sp).map(above),
                _ => None,
            };
            let Some(caller) = caller else { break };
            let (next, next_sp) = match entry.kind {
                Kind::End => break,
                Kind::Call => (raw.word(caller.wrapping_sub(8)), Some(caller)),
                Kind::Registers => (raw.word(caller.wrapping_add(128)), raw.word(caller.wrapping_add(152))),
                Kind::Iret => (raw.word(caller), raw.word(caller.wrapping_add(24))),
            };
            let (Some(next), Some(next_sp)) = (next, next_sp) else { break };
            // Interrupted user code is on no kernel stack.
            if next >> 63 == 0 {
                break;
            }
            let next_bp = match (entry.bp_reg, entry.kind) {
                (1, _) => raw.word(caller.wrapping_add_signed(entry.bp_offset)),
                (4, _) => raw.word(bp.wrapping_add_signed(entry.bp_offset)),
                (_, Kind::Registers) => raw.word(caller.wrapping_add(32)),
                _ => Some(bp),
            };
            exact = entry.kind != Kind::Call;
            (ip, sp, bp) = (next, next_sp, next_bp.unwrap_or(bp));
            stack.push(ip);
        }
        Some(stack)
    }

    fn entry(&self, ip: u64) -> Option<Entry> {
        let after = self.starts.partition_point(|&start| start <= ip);
        let bytes = self.entries.get(after.checked_sub(1)?)?;
        let [a, b, c, d, registers, kind] = *bytes;
        // The last range has no end of its own.
        (ip - self.starts[after - 1] < 1 << 16).then(|| Entry {
            sp_offset: i16::from_le_bytes([a, b]).into(),
            bp_offset: i16::from_le_bytes([c, d]).into(),
            sp_reg: registers & 0xf,
            bp_reg: registers >> 4,
            kind: self.kind(kind),
        })
    }

    fn kind(&self, bits: u8) -> Kind {
        if self.renumbered {
            match bits & 7 {
                2 => Kind::Call,
                3 => Kind::Registers,
                4 => Kind::Iret,
                _ => Kind::End,
            }
        } else {
            match bits & 3 {
                _ if bits & 4 != 0 => Kind::End,
                0 => Kind::Call,
                1 => Kind::Registers,
                2 => Kind::Iret,
                _ => Kind::End,
            }
        }
    }
}

/// Whether a kernel is of 6.4 or later, by its banner.
fn is_renumbered(banner: Option<&str>) -> bool {
    let version = banner.and_then(|text| text.strip_prefix("Linux version "));
    let mut numbers =
        version.unwrap_or("").split(['.', '-', ' ', '+']).map_while(|part| part.parse::<u32>().ok());
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (6, 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: u64 = 0xffff_ffff_8100_0000;
    const STACK: u64 = 0xffff_c900_0000_1000;

    fn entry(sp_offset: i16, bp_offset: i16, registers: u8, kind: u8) -> [u8; 6] {
        let ([a, b], [c, d]) = (sp_offset.to_le_bytes(), bp_offset.to_le_bytes());
        [a, b, c, d, registers, kind]
    }

    /// leaf (frame of 16 bytes) called by middle (RBP saved, based on it) interrupted in outer.
    fn tables(renumbered: bool) -> Orc {
        let (call, registers, end) = if renumbered { (2, 3, 1) } else { (0, 1, 4) };
        Orc {
            starts: vec![TEXT, TEXT + 0x100, TEXT + 0x200, TEXT + 0x300, TEXT + 0x400],
            entries: vec![
                entry(24, 0, 5, call),
                entry(16, -16, 0x14, call),
                entry(0, 0, 5, registers),
                entry(8, 0, 5, call),
                entry(0, 0, 0, end),
            ],
            renumbered,
        }
    }

    #[test]
    fn frames_of_every_kind_are_followed() {
        let mut raw = RawStack { rip: TEXT + 0x10, words: vec![0; 64], ..RawStack::default() };
        raw.gpr[RSP] = STACK;
        raw.gpr[RBP] = STACK + 24 + 16;
        raw.words[2] = TEXT + 0x150; // leaf's return, into middle
        raw.words[5] = 0x1234; // middle's saved RBP
        raw.words[6] = TEXT + 0x250; // middle's return, into an entry with a register frame at its stack pointer
        raw.words[7 + 16] = TEXT + 0x310; // RIP of what was interrupted
        raw.words[7 + 19] = STACK + 40 * 8; // RSP
        raw.words[40] = TEXT + 0x400; // its return: just behind a call that ends its function
        for renumbered in [false, true] {
            let stack = tables(renumbered).unwind(&raw).unwrap();
            assert_eq!(stack, [0x10, 0x150, 0x250, 0x310, 0x400].map(|offset| TEXT + offset), "{renumbered}");
        }
        assert_eq!(tables(false).unwind(&RawStack { rip: 0x1000, ..raw }), None, "code without tables");
    }

    #[test]
    fn versions() {
        assert!(!is_renumbered(Some("Linux version 6.1.0-56-cloud-amd64 (debian)")));
        assert!(
            is_renumbered(Some("Linux version 6.12.5 (debian)"))
                && is_renumbered(Some("Linux version 7.0-rc1"))
        );
        assert!(!is_renumbered(None));
    }
}
