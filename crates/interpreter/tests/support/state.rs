//! Random x87, MMX and SSE states, as FXSAVE images, and the way from an image to a guest's state and back.

use x86::CpuState;

use super::native::FxImage;

/// xorshift64*.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    pub fn of<T: Copy>(&mut self, values: &[T]) -> T {
        values[self.below(values.len() as u64) as usize]
    }

    pub fn f32(&mut self) -> u32 {
        let sign = (self.next() as u32) & 0x8000_0000;
        let bits = match self.below(9) {
            0 => 0,
            1 => self.next() as u32 & 0x7f_ffff,
            2 => 0x7f80_0000,
            3 => 0x7fc0_0000 | self.next() as u32 & 0x3f_ffff,
            4 => 0x7f80_0001 | self.next() as u32 & 0x3f_ffff,
            5 => (self.below(300) as f32 / 4.0).to_bits(),
            6 => self.of(&[0x7f7f_ffff, 0x0080_0000, 0x4f00_0000, 0x4eff_ffff, 0x3f80_0000]),
            _ => self.next() as u32 & 0x7fff_ffff,
        };
        sign | bits
    }

    pub fn f64(&mut self) -> u64 {
        let sign = self.next() & 1 << 63;
        let bits = match self.below(9) {
            0 => 0,
            1 => self.next() & 0xf_ffff_ffff_ffff,
            2 => 0x7ff << 52,
            3 => 0xfff << 51 | self.next() & 0x7_ffff_ffff_ffff,
            4 => 0x7ff << 52 | 1 | self.next() & 0x7_ffff_ffff_ffff,
            5 => (self.below(300) as f64 / 4.0).to_bits(),
            6 => self.of(&[0x7fef_ffff_ffff_ffff, 1 << 52, 0x43e0_0000_0000_0000, 0x41df_ffff_ffc0_0000]),
            7 => (self.next() as f64 / 2f64.powi(self.below(70) as i32)).to_bits(),
            _ => self.next() & !(1 << 63),
        };
        sign | bits
    }

    /// 80 bits: fraction, sign and exponent.
    pub fn f80(&mut self) -> (u64, u16) {
        let sign = (self.next() as u16) & 0x8000;
        let integer = 1 << 63;
        let (fraction, exponent) = match self.below(12) {
            0 => (0, 0),
            1 => (self.next() >> 1 >> self.below(63), 0),
            2 => (integer | self.next(), 0),
            3 => (integer, 0x7fff),
            4 => (integer | 1 << 62 | self.next(), 0x7fff),
            5 => (integer | 1 | self.next() >> 2, 0x7fff),
            6 => (self.next() >> 1, self.below(0x8000) as u16),
            7 => (integer | self.next(), self.below(0x8000) as u16),
            8 => (integer | self.next() << self.below(64), 0x3fff + self.below(64) as u16),
            9 => (integer | self.next(), self.of(&[1, 0x7ffe, 0x3f80, 0x3c00, 0x43ff, 0x407f, 0x3f6a])),
            _ => (integer | self.next(), 0x3ff8 + self.below(12) as u16),
        };
        (fraction, sign | exponent)
    }

    pub fn vector(&mut self) -> [u8; 16] {
        let mut bytes = [0; 16];
        match self.below(6) {
            0 | 1 => bytes.chunks_mut(4).for_each(|chunk| chunk.copy_from_slice(&self.f32().to_le_bytes())),
            2 | 3 => bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.f64().to_le_bytes())),
            4 => bytes.iter_mut().for_each(|byte| *byte = self.of(&[0, 1, 2, 0x7f, 0x80, 0xff, 7, 8])),
            _ => bytes.chunks_mut(8).for_each(|chunk| chunk.copy_from_slice(&self.next().to_le_bytes())),
        }
        bytes
    }

    /// A whole state. Half of the control words mask everything; few states have an exception pending.
    pub fn state(&mut self) -> FxImage {
        let mut image = [0; 512];
        let mut control = 0x40 | self.next() as u16 & 0x0f3f;
        if self.below(2) == 0 {
            control |= 0x3f;
        }
        let mut status = self.next() as u16 & 0x7f7f;
        if self.below(8) != 0 {
            status &= control | !0x3f;
        }
        let tags = match self.below(4) {
            0 => self.next() as u8,
            1 => self.of(&[0, 0x80, 0x7f, 0x01]),
            // ST(0) to ST(3) are there, and room for a push.
            _ => 0x0f_u8.rotate_left(u32::from(status >> 11 & 7)),
        };
        image[0..2].copy_from_slice(&control.to_le_bytes());
        image[2..4].copy_from_slice(&status.to_le_bytes());
        image[4] = tags;
        let mut mxcsr = self.next() as u32 & 0xffff;
        if self.below(4) != 0 {
            mxcsr |= 0x1f80;
        }
        image[24..28].copy_from_slice(&mxcsr.to_le_bytes());
        for register in image[32..160].chunks_mut(16) {
            let (fraction, exponent) = self.f80();
            register[..8].copy_from_slice(&fraction.to_le_bytes());
            register[8..10].copy_from_slice(&exponent.to_le_bytes());
        }
        for register in image[160..416].chunks_mut(16) {
            register.copy_from_slice(&self.vector());
        }
        image
    }
}

pub fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

/// Puts an image into a guest's state, field by field.
pub fn load(state: &mut CpuState, image: &FxImage) {
    let x87 = &mut state.x87;
    *x87 = Default::default();
    x87.control = u16_at(image, 0);
    x87.status = u16_at(image, 2) & 0x7f7f;
    if x87.status & !x87.control & 0x3f != 0 {
        x87.status |= 0x8080;
    }
    x87.tags = image[4].into();
    for i in 0..8 {
        let at = 32 + 16 * i;
        x87.registers[(x87.top() + i) & 7] = [u64_at(image, at), u16_at(image, at + 8).into()];
    }
    state.mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap());
    for (register, bytes) in state.xmm.iter_mut().zip(image[160..].chunks(16)) {
        *register = u128::from_le_bytes(bytes.try_into().unwrap());
    }
}

/// What differs between a guest's state and an image. Condition codes that the instruction leaves undefined, pointers
/// and opcode are not looked at.
pub fn difference(state: &CpuState, image: &FxImage, undefined: u16) -> Option<String> {
    let x87 = &state.x87;
    if x87.control != u16_at(image, 0) {
        return Some(format!("control word {:#x}, natively {:#x}", x87.control, u16_at(image, 0)));
    }
    let (got, wanted) = (x87.status & !undefined, u16_at(image, 2) & !undefined);
    if got != wanted {
        return Some(format!("status word {got:#x}, natively {wanted:#x}"));
    }
    if x87.tags != u16::from(image[4]) {
        return Some(format!("tags {:#x}, natively {:#x}", x87.tags, image[4]));
    }
    for i in 0..8 {
        let at = 32 + 16 * i;
        let wanted = [u64_at(image, at), u16_at(image, at + 8).into()];
        let got = x87.registers[(x87.top() + i) & 7];
        if got != wanted {
            return Some(format!("ST({i}) {got:x?}, natively {wanted:x?}"));
        }
    }
    let mxcsr = u32::from_le_bytes(image[24..28].try_into().unwrap());
    if state.mxcsr != mxcsr {
        return Some(format!("MXCSR {:#x}, natively {mxcsr:#x}", state.mxcsr));
    }
    for (n, (got, bytes)) in state.xmm.iter().zip(image[160..].chunks(16)).enumerate() {
        let wanted = u128::from_le_bytes(bytes.try_into().unwrap());
        if *got != wanted {
            return Some(format!("XMM{n} {got:032x}, natively {wanted:032x}"));
        }
    }
    None
}
