//! Which status flags a block's successors can still see, so that exits do not compute the others.
//!
//! An instruction that sets all flags is usually followed by another that does before anything reads them: [`PageLiveness`] looks
//! at the bytes of the successors for it. What it relies on can change, so a [`crate::CodeBlock`] names the bytes that it was
//! made from including those ([`crate::CodeBlock::depends`]).

use core::cell::Cell;

use iced_x86::{Decoder, DecoderOptions, FlowControl, Instruction, Mnemonic, Register, RflagsBits};
use semantics::{Kind, table};
use x86::{
    Mode, PAGE_MASK,
    flags::{AF, CF, OF, PF, SF, ZF},
};

/// Instructions of a successor that are looked at.
const FAR_ENOUGH: usize = 8;

/// A set of status flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveFlags(pub(crate) u8);

impl LiveFlags {
    /// All of them.
    pub const ALL: Self = Self(0x3f);
    /// None.
    pub const NONE: Self = Self(0);

    /// Those that are set in a mask of RFLAGS bits.
    pub const fn from_rflags(mask: u64) -> Self {
        // In the order of the words in `x86::Flags`.
        let order = [CF, ZF, SF, PF, AF, OF];
        let mut set = 0;
        let mut n = 0;
        while n < order.len() {
            if mask & order[n] != 0 {
                set |= 1 << n;
            }
            n += 1;
        }
        Self(set)
    }

    fn from_iced(mask: u32) -> Self {
        let pairs = [
            (RflagsBits::CF, CF),
            (RflagsBits::ZF, ZF),
            (RflagsBits::SF, SF),
            (RflagsBits::PF, PF),
            (RflagsBits::AF, AF),
            (RflagsBits::OF, OF),
        ];
        let rflags = pairs.iter().filter(|(iced, _)| mask & iced != 0).fold(0, |bits, (_, flag)| bits | flag);
        Self::from_rflags(rflags)
    }
}

/// Tells what is live where a block leaves to. Flags that are not live are not stored by direct exits; a guest sees
/// that only if it is interrupted there and looks at flags that it was going to overwrite.
pub trait FlagLiveness {
    /// Flags that the code at `target` may read before it writes them, and how many bytes from there on this was read
    /// off from.
    fn live_at(&self, target: u64) -> (LiveFlags, u64);
}

/// Everything is live.
pub struct AllLive;

impl FlagLiveness for AllLive {
    fn live_at(&self, _: u64) -> (LiveFlags, u64) {
        (LiveFlags::ALL, 0)
    }
}

/// Looks at successors that lie in the block's own page.
pub struct PageLiveness<'a> {
    mode: Mode,
    page: u64,
    bytes: &'a [u8],
    /// The last answer: loops and branches ask again.
    last: Cell<Option<(u64, (LiveFlags, u64))>>,
}

impl<'a> PageLiveness<'a> {
    /// `bytes` are those of the page of flat code that holds `rip`, from its first byte on.
    pub fn new(mode: Mode, rip: u64, bytes: &'a [u8]) -> Self {
        Self { mode, page: rip & PAGE_MASK, bytes, last: Cell::new(None) }
    }
}

impl FlagLiveness for PageLiveness<'_> {
    fn live_at(&self, target: u64) -> (LiveFlags, u64) {
        if let Some((asked, answer)) = self.last.get()
            && asked == target
        {
            return answer;
        }
        let answer = match self.bytes.get((target & !PAGE_MASK) as usize..) {
            Some(bytes) if target & PAGE_MASK == self.page => live_in(bytes, target, self.mode),
            _ => (LiveFlags::ALL, 0),
        };
        self.last.set(Some((target, answer)));
        answer
    }
}

fn live_in(bytes: &[u8], rip: u64, mode: Mode) -> (LiveFlags, u64) {
    let mut decoder = Decoder::with_ip(mode.code_bits(), bytes, rip, DecoderOptions::NONE);
    let mut instruction = Instruction::default();
    let mut live = 0;
    let mut undecided = LiveFlags::ALL.0;
    for _ in 0..FAR_ENOUGH {
        if undecided == 0 || !decoder.can_decode() {
            break;
        }
        decoder.decode_out(&mut instruction);
        if instruction.is_invalid()
            || table::kind(instruction.mnemonic()) != Kind::Lifted
            || writes_sometimes(&instruction)
        {
            break;
        }
        live |= undecided & LiveFlags::from_iced(instruction.rflags_read()).0;
        undecided &= !(live | LiveFlags::from_iced(instruction.rflags_modified()).0);
        if instruction.flow_control() != FlowControl::Next {
            break;
        }
    }
    (LiveFlags(live | undecided), decoder.position() as u64)
}

/// Whether the instruction leaves flags alone under some condition: a shift by zero, a repetition of no elements.
fn writes_sometimes(instruction: &Instruction) -> bool {
    use Mnemonic::*;
    match instruction.mnemonic() {
        Rol | Ror | Rcl | Rcr | Shl | Sal | Shr | Sar => instruction.op1_register() == Register::CL,
        Shld | Shrd => instruction.op2_register() == Register::CL,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq | Scasb | Scasw | Scasd | Scasq => {
            instruction.has_rep_prefix() || instruction.has_repne_prefix()
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::{CpuState, Segment, control, segment::attribute};

    fn mode() -> Mode {
        let mut state = CpuState::new();
        state.cr0 |= control::cr0::PE;
        state.efer |= control::efer::LMA;
        let attributes = attribute::PRESENT | attribute::CODE | attribute::LONG;
        state.segments[1] = Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
        state.update_mode();
        state.mode
    }

    fn live(code: &[u8]) -> u64 {
        let mut page = vec![0xcc; 4096];
        page[0x100..0x100 + code.len()].copy_from_slice(code);
        let liveness = PageLiveness::new(mode(), 0x40_0000, &page);
        let (flags, _) = liveness.live_at(0x40_0100);
        [CF, PF, AF, ZF, SF, OF]
            .into_iter()
            .filter(|&flag| LiveFlags::from_rflags(flag).0 & flags.0 != 0)
            .fold(0, |bits, flag| bits | flag)
    }

    const ALL: u64 = x86::flags::STATUS;

    #[test]
    fn flags_are_dead_where_they_are_overwritten() {
        assert_eq!(live(&[0x48, 0x89, 0xd8, 0x48, 0x01, 0xd8]), 0, "mov, add");
        assert_eq!(live(&[0x48, 0xff, 0xc0, 0x48, 0x01, 0xd8]), 0, "inc, add");
        assert_eq!(live(&[0x48, 0xff, 0xc0, 0x48, 0x11, 0xd8]), CF, "inc keeps what adc reads");
        assert_eq!(live(&[0x0f, 0x94, 0xc0, 0x85, 0xc0]), ZF, "sete, test");
        assert_eq!(live(&[0xc1, 0xe0, 0x04, 0x85, 0xc0]), 0, "shl by 4");
    }

    #[test]
    fn flags_are_live_where_it_is_not_known() {
        assert_eq!(live(&[0xd3, 0xe0, 0x85, 0xc0]), ALL, "shl by cl may change nothing");
        assert_eq!(live(&[0xc1, 0xe0, 0x20, 0xcc]), ALL, "shl by 32 is by 0");
        assert_eq!(live(&[0xf3, 0xa6, 0x85, 0xc0]), ALL, "repe cmpsb of nothing");
        assert_eq!(live(&[0xc3]), ALL, "ret");
        assert_eq!(live(&[0x9c, 0x85, 0xc0]), ALL, "pushf");
        assert_eq!(live(&[0x48, 0x89, 0xd8, 0x72, 0x10]), ALL, "jb reads one and leads on");
        let page = [0x85; 4096];
        let elsewhere = PageLiveness::new(mode(), 0x40_0000, &page).live_at(0x40_1000);
        assert_eq!(elsewhere, (LiveFlags::ALL, 0));
    }

    #[test]
    fn what_was_looked_at_is_told() {
        let mut page = vec![0x90; 4096];
        page[2..4].copy_from_slice(&[0x85, 0xc0]);
        let liveness = PageLiveness::new(mode(), 0, &page);
        assert_eq!(liveness.live_at(0), (LiveFlags::NONE, 4));
        assert_eq!(liveness.live_at(2), (LiveFlags::NONE, 2));
    }
}
