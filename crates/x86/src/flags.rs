//! RFLAGS: its bits (SDM Vol. 1 3.4.3), and the form in which the status flags are kept between instructions.

/// Carry.
pub const CF: u64 = 1 << 0;
/// Always set.
pub const FIXED_ONE: u64 = 1 << 1;
/// Parity of the low byte.
pub const PF: u64 = 1 << 2;
/// Adjust (carry out of bit 3).
pub const AF: u64 = 1 << 4;
/// Zero.
pub const ZF: u64 = 1 << 6;
/// Sign.
pub const SF: u64 = 1 << 7;
/// Trap (single-step).
pub const TF: u64 = 1 << 8;
/// Interrupt enable.
pub const IF: u64 = 1 << 9;
/// Direction.
pub const DF: u64 = 1 << 10;
/// Overflow.
pub const OF: u64 = 1 << 11;
/// I/O privilege level, both bits.
pub const IOPL: u64 = 3 << 12;
/// Nested task.
pub const NT: u64 = 1 << 14;
/// Resume.
pub const RF: u64 = 1 << 16;
/// Virtual-8086 mode.
pub const VM: u64 = 1 << 17;
/// Alignment check, and access control under SMAP.
pub const AC: u64 = 1 << 18;
/// Virtual interrupt flag.
pub const VIF: u64 = 1 << 19;
/// Virtual interrupt pending.
pub const VIP: u64 = 1 << 20;
/// CPUID can be used.
pub const ID: u64 = 1 << 21;

/// The six status flags.
pub const STATUS: u64 = CF | PF | AF | ZF | SF | OF;
/// Every bit that software can ever see set, other than [`FIXED_ONE`].
pub const WRITABLE: u64 = STATUS | TF | IF | DF | IOPL | NT | RF | VM | AC | VIF | VIP | ID;

/// The status flags in source form: what each is computed from, so that an instruction that sets all of them
/// stores a few words and computes none.
///
/// The three result words differ only after an instruction that loads flags as bits (POPF, SAHF, IRET, COMISD, …).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct Flags {
    /// CF: 0 or 1.
    pub carry: u64,
    /// ZF = (this == 0).
    pub zero: u64,
    /// SF = bit 63.
    pub sign: u64,
    /// PF = even number of ones in bits 7..0.
    pub parity: u64,
    /// AF = bit 4.
    pub adjust: u64,
    /// OF = bit 63.
    pub overflow: u64,
}

impl Flags {
    /// The status bits at their RFLAGS positions.
    #[inline]
    pub const fn to_bits(self) -> u64 {
        let mut bits = self.carry & CF;
        if (self.parity as u8).count_ones() & 1 == 0 {
            bits |= PF;
        }
        bits |= self.adjust & AF;
        if self.zero == 0 {
            bits |= ZF;
        }
        bits |= (self.sign >> 63) << 7;
        bits |= (self.overflow >> 63) << 11;
        bits
    }

    /// Source form of the status bits of `rflags`; other bits are ignored.
    #[inline]
    pub const fn from_bits(rflags: u64) -> Self {
        Self {
            carry: rflags & CF,
            zero: !rflags & ZF,
            sign: (rflags & SF) << 56,
            parity: (!rflags & PF) >> 2,
            adjust: rflags & AF,
            overflow: (rflags & OF) << 52,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_combination_survives_the_round_trip() {
        for bits in 0..1u64 << 12 {
            assert_eq!(Flags::from_bits(bits).to_bits(), bits & STATUS);
        }
    }
}
