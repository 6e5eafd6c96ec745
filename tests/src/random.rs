//! Random numbers from a seed, and values that are often the special ones of their kind.

/// A small random generator (xorshift64*), so that a printed seed reproduces a run anywhere.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// One time in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    /// One of them.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len() as u64) as usize]
    }

    /// An integer that is often special.
    pub fn integer(&mut self) -> u64 {
        match self.below(8) {
            0 => self.below(4),
            1 => self.below(4).wrapping_neg(),
            2 => 1 << self.below(64),
            3 => (1u64 << self.below(64)).wrapping_sub(1),
            4 => self.bits() & 0xff,
            5 => self.bits() & 0xffff_ffff,
            _ => self.bits(),
        }
    }

    /// A vector whose lanes are often special as floating-point numbers of either size.
    pub fn vector(&mut self) -> u128 {
        const DOUBLES: [u64; 12] = [
            0,
            1 << 63,
            0x3ff0_0000_0000_0000,
            0xbff8_0000_0000_0000,
            0x7ff0_0000_0000_0000,
            0xfff0_0000_0000_0000,
            0x7ff8_0000_0000_0001,
            0x7ff0_0000_0000_0001,
            1,
            0x000f_ffff_ffff_ffff,
            0x7fef_ffff_ffff_ffff,
            0x41df_ffff_ffc0_0000,
        ];
        const SINGLES: [u32; 12] = [
            0,
            1 << 31,
            0x3f80_0000,
            0xbfc0_0000,
            0x7f80_0000,
            0xff80_0000,
            0x7fc0_0001,
            0x7f80_0001,
            1,
            0x007f_ffff,
            0x7f7f_ffff,
            0x4f00_0000,
        ];
        let mut half = || match self.below(4) {
            0 => self.pick(&DOUBLES),
            1 => u64::from(self.pick(&SINGLES)) | u64::from(self.pick(&SINGLES)) << 32,
            2 => (1.0 + self.below(1000) as f64 / 7.0).to_bits(),
            _ => self.bits(),
        };
        u128::from(half()) | u128::from(half()) << 64
    }

    /// An 80-bit x87 value.
    pub fn extended(&mut self) -> [u64; 2] {
        const VALUES: [[u64; 2]; 12] = [
            [0, 0],
            [0, 0x8000],
            [1 << 63, 0x3fff],
            [0xc000_0000_0000_0000, 0xc000],
            [1 << 63, 0x7fff],
            [1 << 63, 0xffff],
            [0xc000_0000_0000_0001, 0x7fff],
            [0x8000_0000_0000_0001, 0x7fff],
            [1, 0],
            [0x7fff_ffff_ffff_ffff, 0],
            [0xc90f_daa2_2168_c235, 0x4000],
            [0x4000_0000_0000_0000, 0x3fff],
        ];
        match self.below(3) {
            0 => self.pick(&VALUES),
            1 => [self.bits() | 1 << 63, 0x3fff - 20 + self.below(40)],
            _ => [self.bits() | 1 << 63, self.bits() & 0xffff],
        }
    }
}
