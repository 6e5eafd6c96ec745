//! Random instructions and processor states, from a seed.

#![allow(dead_code, reason = "not every test uses all of it")]

use semantics::{Insn, Kind, decode::decode_one, table};
use x86::{CpuState, Mode, flags};

/// SplitMix64 (Steele, Lea, Flood, OOPSLA 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

/// Where random states point to: [`DATA`, `DATA` + [`DATA_SIZE`]).
pub const DATA: u64 = 0x1_0000;
pub const DATA_SIZE: u64 = 0x1_0000;

/// A random instruction that is lifted, for `rip`.
pub fn instruction(random: &mut Random, rip: u64, mode: Mode) -> (Insn, Vec<u8>) {
    loop {
        let bytes = encoding(random, mode);
        let Ok(insn) = decode_one(&bytes, rip, mode) else { continue };
        if table::kind_of(&insn) != Kind::Lifted {
            continue;
        }
        let bytes = bytes[..usize::from(insn.length)].to_vec();
        return (insn, bytes);
    }
}

/// A random instruction of a run: accesses of a few kinds near each other, by one base register that is seldom something else than
/// moved by constants, in 64-bit mode.
pub fn instruction_of_run(random: &mut Random, base: u8, rip: u64, mode: Mode) -> (Insn, Vec<u8>) {
    let register = random.below(16) as u8;
    let register = if register == base && !random.once_in(8) { register ^ 1 } else { register };
    // Prefix and opcode, of instructions with a memory operand.
    let (prefix, opcode): (&[u8], &[u8]) = match random.below(16) {
        0 | 1 => (&[], &[0x8b]),
        2 => (&[], &[0x89]),
        3 => (&[], random.pick(&[&[0x8a], &[0x88]])),
        4 => (&[], &[0x01]),
        5 => (&[], &[0x03]),
        6 | 7 => (&[], &[0x13]),
        8 => (&[], &[0x11]),
        9 => (&[0x66], &[0x0f, 0x38, 0xf6]),
        10 => (&[0xf3], &[0x0f, 0x38, 0xf6]),
        11 => (&[], &[0x0f, 0x10]),
        12 => (&[], &[0x0f, 0x11]),
        13 => (&[], &[0x8d]),
        14 => (&[], &[0x83]),
        _ => (&[], &[0x39]),
    };
    let mut bytes = prefix.to_vec();
    // Without REX, SPL to DIL are AH to BH.
    if !matches!(opcode, [0x88 | 0x8a]) || (register | base) >= 8 || random.once_in(3) {
        bytes.push(0x48 | register >> 3 << 2 | base >> 3);
    }
    bytes.extend(opcode);
    match opcode {
        // ADD, ADC, SBB, SUB of a constant to the base.
        [0x83] => bytes.push(0xc0 | random.pick(&[0, 2, 3, 5]) << 3 | base & 7),
        _ => {
            let register = if opcode == [0x8d] { base } else { register };
            if opcode == [0x8d] {
                bytes[prefix.len()] = 0x48 | base >> 3 << 2 | base >> 3;
            }
            bytes.push(0x40 | (register & 7) << 3 | base & 7);
            if base & 7 == 4 {
                bytes.push(0x24);
            }
        }
    }
    bytes.push(random.below(96) as u8 & 0xf8 | if random.once_in(4) { random.below(8) as u8 } else { 0 });
    let insn = decode_one(&bytes, rip, mode).expect("it is an instruction");
    (insn, bytes)
}

fn encoding(random: &mut Random, mode: Mode) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.once_in(5) {
        bytes.push(0x66);
    }
    if random.once_in(6) {
        bytes.push(random.pick(&[0xf2, 0xf3]));
    }
    if random.once_in(12) {
        bytes.push(random.pick(&[0xf0, 0x64, 0x65, 0x67]));
    }
    if mode.is_64bit() && !random.once_in(3) {
        bytes.push(0x40 | random.below(16) as u8);
    }
    let mut opcode = random.next() as u8;
    match random.below(22) {
        0..=8 => {}
        9..=16 => bytes.push(0x0f),
        17..=18 => bytes.extend([0x0f, 0x38]),
        19 => bytes.extend([0x0f, 0x3a]),
        _ => {
            // VEX, which takes no prefix of those before. Of general registers there are F2 to F7 in map 0F38, F0 in 0F3A.
            let vector_length = 4;
            bytes = vec![0xc4, random.next() as u8 & 0xe0 | 2, random.next() as u8 & !vector_length];
            opcode = 0xf2 + random.below(6) as u8;
            if random.once_in(8) {
                bytes = vec![0xc4, random.next() as u8 & 0xe0 | 3, 0x7b | random.next() as u8 & 0x80];
                opcode = 0xf0;
            }
        }
    }
    bytes.push(opcode);
    let modrm = random.next() as u8;
    bytes.push(modrm);
    if modrm < 0xc0 {
        if modrm & 7 == 4 {
            // Seldom an index register: it would mostly lead out of RAM.
            let sib = random.next() as u8;
            bytes.push(if random.once_in(4) { sib } else { sib & 0xc7 | 0x20 });
        }
        match modrm >> 6 {
            0 if modrm & 7 == 5 => bytes.extend((random.below(0x4000) as i32 - 0x2_8000).to_le_bytes()),
            1 => bytes.push(random.next() as u8),
            2 => bytes.extend((random.below(0x2000) as i32 - 0x1000).to_le_bytes()),
            _ => {}
        }
    }
    for _ in 0..8 {
        bytes.push(random.next() as u8);
    }
    bytes
}

fn value(random: &mut Random) -> u64 {
    match random.below(20) {
        0..=9 => pointer(random),
        10..=12 => random.below(64),
        13..=15 => random.next(),
        16 => u64::from(random.next() as u32),
        _ => {
            let edge =
                random.pick(&[0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, 1 << 63]);
            if random.once_in(2) { edge } else { edge.wrapping_neg() }
        }
    }
}

fn pointer(random: &mut Random) -> u64 {
    let place = DATA + random.below(DATA_SIZE - 64);
    match random.below(4) {
        // Where accesses cross pages, and where they are aligned.
        0 => place & !0xfff | (0xff0 + random.below(16)),
        1 => place & !15,
        _ => place,
    }
}

/// Random registers, flags and vectors.
pub fn registers(random: &mut Random, state: &mut CpuState) {
    for index in 0..16 {
        state.gpr[index] = value(random);
        state.xmm[index] = u128::from(random.next()) << 64 | u128::from(random.next());
        if random.once_in(4) {
            // Floating-point numbers of ordinary size.
            let number = (random.next() as i32 as f64 / 1024.0).to_bits();
            state.xmm[index] = u128::from(number) << 64 | u128::from((random.next() as i16 as f32).to_bits());
        }
    }
    state.gpr[4] = pointer(random) & !7;
    if !state.mode.is_64bit() {
        state.gpr.iter_mut().for_each(|register| *register &= 0xffff_ffff);
    }
    let bits = random.next() & (flags::STATUS | flags::DF);
    state.set_rflags(bits | flags::IF);
    for register in &mut state.x87.registers {
        *register = [random.next(), 0xffff];
    }
}
