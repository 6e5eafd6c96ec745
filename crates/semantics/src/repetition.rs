//! [`Repetition`]: what a string instruction with REP does, in one word, so that compiled code can ask for it.

use x86::{SegmentRegister, Width};

use crate::{Insn, Repeat};

/// The string instructions that can be repeated.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the instructions'")]
pub enum Bulk {
    Movs,
    Stos,
    Lods,
    Cmps,
    Scas,
}

impl Bulk {
    /// It reads at segment:rSI.
    pub const fn reads_source(self) -> bool {
        matches!(self, Self::Movs | Self::Lods | Self::Cmps)
    }

    /// It goes on only while what it compares is, or is not, equal.
    pub const fn compares(self) -> bool {
        matches!(self, Self::Cmps | Self::Scas)
    }
}

/// A repeated string instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Repetition {
    /// Which.
    pub kind: Bulk,
    /// Of an element.
    pub width: Width,
    /// Of rSI, rDI and rCX.
    pub address_width: Width,
    /// Of the source.
    pub segment: SegmentRegister,
    /// REPNE.
    pub stops_on_equal: bool,
}

impl Repetition {
    /// Below this many elements nothing is done at once: a single step is as good.
    pub const FEWEST: u64 = 4;

    /// That of an instruction.
    pub fn of(kind: Bulk, insn: &Insn) -> Self {
        Self {
            kind,
            width: insn.width,
            address_width: insn.address_width,
            segment: insn.memory.segment,
            stops_on_equal: insn.repeat == Repeat::NotEqual,
        }
    }

    /// As a word.
    pub const fn to_bits(self) -> u64 {
        self.kind as u64
            | (self.width as u64) << 8
            | (self.address_width as u64) << 16
            | (self.segment as u64) << 24
            | (self.stops_on_equal as u64) << 32
    }

    /// From [`Repetition::to_bits`]. `None` if it is none.
    pub fn from_bits(bits: u64) -> Option<Self> {
        use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};
        const KINDS: [Bulk; 5] = [Bulk::Movs, Bulk::Stos, Bulk::Lods, Bulk::Cmps, Bulk::Scas];
        const SEGMENTS: [SegmentRegister; 6] = [Es, Cs, Ss, Ds, Fs, Gs];
        let byte = |n: u32| (bits >> (8 * n) & 0xff) as usize;
        Some(Self {
            kind: *KINDS.get(byte(0))?,
            width: Width::from_bytes(byte(1))?,
            address_width: Width::from_bytes(byte(2))?,
            segment: *SEGMENTS.get(byte(3))?,
            stops_on_equal: byte(4) != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_stand_for_repetitions() {
        for kind in [Bulk::Movs, Bulk::Stos, Bulk::Lods, Bulk::Cmps, Bulk::Scas] {
            for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
                for segment in [SegmentRegister::Es, SegmentRegister::Ds, SegmentRegister::Gs] {
                    let repetition = Repetition {
                        kind,
                        width,
                        address_width: Width::Qword,
                        segment,
                        stops_on_equal: width == Width::Byte,
                    };
                    assert_eq!(Repetition::from_bits(repetition.to_bits()), Some(repetition));
                }
            }
        }
        assert_eq!(Repetition::from_bits(0), None);
    }
}
