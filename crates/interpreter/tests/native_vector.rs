//! SSE, MMX, x87, AES, SHA and state images against the host processor: random encodings of every opcode, register and
//! memory forms, operands that are often special values, random control words. Registers, status and memory must
//! come out the same.
//!
//! `TRANSVISOR_SEED` and `TRANSVISOR_CASES` change what is tried.

mod support;

use std::collections::BTreeMap;

use iced_x86::{Code, CpuidFeature, EncodingKind, FlowControl, Mnemonic};
use memory::Stop;
use semantics::{Insn, Kind, MemoryOperand, Operand, decode::decode_one, table};
use support::{
    CODE, Guest,
    native::{MEMORY, MEMORY_SIZE, Native, Registers},
    state::{Random, difference, load, u16_at, u64_at},
};
use transvisor_interpreter::step;
use x86::{Vector, control, flags};

/// C0, C2 and C3 after everything that neither compares, examines, nor divides (SDM Vol. 1 table 8-1).
fn undefined_conditions(insn: &Insn) -> u16 {
    use Mnemonic::*;
    const C0: u16 = 1 << 8;
    const C1: u16 = 1 << 9;
    const C2: u16 = 1 << 10;
    const C3: u16 = 1 << 14;
    match insn.mnemonic {
        Fcom | Fcomp | Fcompp | Ficom | Ficomp | Fucom | Fucomp | Fucompp | Ftst | Fxam | Fprem | Fprem1 => 0,
        Fldenv | Frstor | Fnsave | Fninit | Fnstenv | Fxrstor | Fxrstor64 | Xrstor | Xrstor64 => 0,
        Fsin | Fcos | Fsincos | Fptan => C0 | C3,
        // C1: cleared by Intel's processors, left alone by AMD's.
        Fcomi | Fcomip | Fucomi | Fucomip => C0 | C1 | C2 | C3,
        _ => C0 | C2 | C3,
    }
}

/// Random bytes that are an instruction with this opcode.
fn encoding(random: &mut Random, map: u8, opcode: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    match random.below(5) {
        0 => bytes.push(0xf3),
        1 => bytes.push(0xf2),
        2 | 3 => bytes.push(0x66),
        _ => {}
    }
    if random.below(2) == 0 {
        bytes.push(0x40 | random.below(16) as u8);
    }
    match map {
        0 => {}
        1 => bytes.push(0x0f),
        2 => bytes.extend([0x0f, 0x38]),
        _ => bytes.extend([0x0f, 0x3a]),
    }
    bytes.push(opcode);
    let modrm = random.next() as u8;
    bytes.push(if random.below(2) == 0 { modrm | 0xc0 } else { modrm });
    bytes.extend(random.next().to_le_bytes());
    bytes.extend(random.next().to_le_bytes());
    bytes.truncate(15);
    bytes
}

/// Groups of instructions that this file is about.
fn is_vector_feature(feature: CpuidFeature) -> bool {
    use CpuidFeature::*;
    matches!(
        feature,
        SSE | SSE2
            | SSE3
            | SSSE3
            | SSE4_1
            | SSE4_2
            | MMX
            | FPU
            | FPU287
            | FPU387
            | FXSR
            | XSAVE
            | AES
            | SHA
            | PCLMULQDQ
    )
}

fn is_ours(insn: &Insn) -> bool {
    use Mnemonic::*;
    let ours = insn.code.cpuid_features().iter().any(|feature| is_vector_feature(*feature))
        || insn
            .operands
            .iter()
            .any(|operand| matches!(operand, Operand::Xmm(_) | Operand::Mm(_) | Operand::St(_)));
    ours && table::kind_of(insn) == Kind::Lifted
        && insn.code.flow_control() == FlowControl::Next
        && !matches!(insn.mnemonic, Lfence | Mfence | Sfence | Pause)
}

fn is_state_image(insn: &Insn) -> bool {
    use Mnemonic::*;
    matches!(insn.mnemonic, Fxsave | Fxsave64 | Fxrstor | Fxrstor64 | Xsave | Xsave64 | Xrstor | Xrstor64)
}

/// Places the memory operand within the mapped memory by choosing registers. False if it can't be done.
fn place_memory(insn: &Insn, random: &mut Random, registers: &mut Registers) -> bool {
    const MIDDLE: u64 = MEMORY + MEMORY_SIZE as u64 / 2;
    if matches!(insn.mnemonic, Mnemonic::Maskmovdqu | Mnemonic::Maskmovq) {
        registers.gpr[7] = MIDDLE + random.below(64);
        return insn.memory.segment as u8 <= 3 && insn.memory.width.bits() == 64;
    }
    if !insn.operands.contains(&Operand::Memory) {
        return true;
    }
    let memory = &insn.memory;
    if memory.segment as u8 > 3
        || memory.base == MemoryOperand::NONE
        || memory.base == memory.index
        || memory.index == 4
        || memory.width.bits() != 64
    {
        return false;
    }
    // EDX:EAX chooses components.
    if is_state_image(insn)
        && [memory.base, memory.index].iter().any(|&register| register == 0 || register == 2)
    {
        return false;
    }
    let alignment = if is_state_image(insn) { 64 } else { 16 };
    let offset = if random.below(8) == 0 { random.below(64) } else { random.below(8) * alignment };
    let mut base = MIDDLE.wrapping_add(offset).wrapping_sub(memory.displacement);
    if memory.index != MemoryOperand::NONE {
        registers.gpr[memory.index as usize] = random.below(64).wrapping_sub(32) & !15;
        base = base.wrapping_sub(registers.gpr[memory.index as usize] << memory.scale);
    }
    registers.gpr[memory.base as usize] = base;
    true
}

/// Fills memory with operands, or with state images where the instruction restores one.
fn fill_memory(memory: &mut [u8], insn: &Insn, random: &mut Random) {
    use Mnemonic::*;
    let wide = matches!(insn.mnemonic, Fld | Fbld | Fldenv | Frstor);
    if is_state_image(insn) {
        // At every alignment an image with a header at its end can start; they overlap, so one for all.
        for chunk in memory.chunks_mut(64) {
            chunk.copy_from_slice(&random.state()[160..224]);
        }
        return;
    }
    for chunk in memory.chunks_mut(16) {
        chunk.copy_from_slice(&random.vector());
        if wide && random.below(2) == 0 {
            let (fraction, exponent) = random.f80();
            chunk[..8].copy_from_slice(&fraction.to_le_bytes());
            chunk[8..10].copy_from_slice(&exponent.to_le_bytes());
        }
        if insn.mnemonic == Fbld {
            chunk.iter_mut().for_each(|byte| *byte = (random.below(10) << 4 | random.below(10)) as u8);
        }
    }
}

/// Makes the memory operand of a restore an image that mostly can be restored.
fn place_image(memory: &mut [u8], at: usize, insn: &Insn, random: &mut Random) {
    use Mnemonic::*;
    match insn.mnemonic {
        Fxrstor | Fxrstor64 | Xrstor | Xrstor64 => {
            memory[at..at + 512].copy_from_slice(&random.state());
            memory[at + 512..at + 576].fill(0);
            memory[at + 512] = random.below(4) as u8;
            if random.below(8) == 0 {
                // A bit that makes it invalid: of XCOMP_BV, of the zero qword, of MXCSR.
                let (byte, bit) = random.of(&[(520, 1), (535, 0x80), (26, 1)]);
                memory[at + byte] |= bit;
            }
        }
        Xsave | Xsave64 => memory[at + 512..at + 576].fill(0),
        Ldmxcsr if random.below(4) != 0 => memory[at + 2..at + 4].fill(0),
        _ => {}
    }
}

/// The address of the memory operand.
fn effective_address(insn: &Insn, registers: &Registers) -> u64 {
    let memory = &insn.memory;
    let index = match memory.index {
        MemoryOperand::NONE => 0,
        index => registers.gpr[usize::from(index)] << memory.scale,
    };
    registers.gpr[usize::from(memory.base)].wrapping_add(index).wrapping_add(memory.displacement)
}

/// Bytes of memory, from the operand, that the two sides need not agree on: pointers, opcode, MXCSR_MASK of images.
fn is_undefined_byte(insn: &Insn, offset: u64) -> bool {
    use Mnemonic::*;
    match insn.mnemonic {
        Fxsave | Fxsave64 | Xsave | Xsave64 => matches!(offset, 6..24 | 28..32),
        Fnstenv | Fnsave if matches!(insn.memory_bytes, 14 | 94) => (6..14).contains(&offset),
        Fnstenv | Fnsave => (12..28).contains(&offset),
        _ => false,
    }
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn vector_and_x87_instructions_do_what_the_host_does() {
    let seed = from_environment("TRANSVISOR_SEED", 0x5eed);
    let cases = from_environment("TRANSVISOR_CASES", 200);
    let (mut native, _guard) = Native::take();
    let mut guest = Guest::new(64);
    guest.state.cr4 |= control::cr4::OSXMMEXCPT | control::cr4::OSXSAVE;
    guest.state.xcr0 = 3;
    let mut random = Random(seed | 1);
    let mut codes: BTreeMap<Code, u32> = BTreeMap::new();
    let mut failures: BTreeMap<Code, (u32, String)> = BTreeMap::new();
    for round in 0..cases {
        for (map, opcodes) in [(0, 0xd8..=0xdf), (1, 0..=0xff), (2, 0..=0xff), (3, 0..=0xff)] {
            for opcode in opcodes {
                // x87 opcodes, and the one of state images, are eight instructions each or more.
                for _ in 0..if map == 0 || (map, opcode) == (1, 0xae) { 24 } else { 1 } {
                    let bytes = encoding(&mut random, map, opcode);
                    let Ok(insn) = decode_one(&bytes, CODE, guest.mode()) else { continue };
                    if !is_ours(&insn) {
                        continue;
                    }
                    let bytes = &bytes[..usize::from(insn.length)];
                    match compare(&mut native, &mut guest, &mut random, &insn, bytes) {
                        Comparison::Same => *codes.entry(insn.code).or_default() += 1,
                        Comparison::NotTried => {}
                        Comparison::Different(what) => {
                            failures.entry(insn.code).or_insert((0, format!("round {round}: {what}"))).0 += 1;
                        }
                    }
                }
            }
        }
    }
    let report: Vec<_> = failures
        .iter()
        .map(|(code, (count, what))| {
            format!("{code:?}: {count} of {}; {what}", count + codes.get(code).unwrap_or(&0))
        })
        .collect();
    assert!(report.is_empty(), "seed {seed}:\n{}", report.join("\n"));
    let not_reached: Vec<_> = Code::values()
        .filter(|code| table::LIFTED.contains(&code.mnemonic()) && code.encoding() == EncodingKind::Legacy)
        .filter(|code| code.cpuid_features().iter().any(|feature| is_vector_feature(*feature)))
        .filter(|code| !codes.contains_key(code))
        .collect();
    println!("{} encodings; not reached: {not_reached:?}", codes.len());
    assert!(cases < 200 || codes.len() > 500, "only {} encodings were reached", codes.len());
}

enum Comparison {
    Same,
    NotTried,
    Different(String),
}

/// Runs one case on both sides.
fn compare(
    native: &mut Native,
    guest: &mut Guest,
    random: &mut Random,
    insn: &Insn,
    bytes: &[u8],
) -> Comparison {
    use Mnemonic::*;
    const OVERFLOW: u8 = 1 << 3;
    const UNDERFLOW: u8 = 1 << 4;
    const PRECISION: u8 = 1 << 5;
    let mut registers = Registers::default();
    registers.gpr.iter_mut().for_each(|register| *register = random.next() >> random.below(64));
    registers.gpr[4] = MEMORY + 0x100;
    registers.rflags = 0x202 | random.next() & flags::STATUS;
    if is_state_image(insn) {
        (registers.gpr[0], registers.gpr[2]) = (random.below(4), 0);
    }
    if matches!(insn.mnemonic, Pcmpestri | Pcmpestrm) {
        registers.gpr[0] = random.below(40).wrapping_sub(20);
        registers.gpr[2] = random.below(40).wrapping_sub(20);
    }
    if !place_memory(insn, random, &mut registers) {
        return Comparison::NotTried;
    }
    fill_memory(native.memory(), insn, random);
    let operand = insn.operands.contains(&Operand::Memory).then(|| effective_address(insn, &registers));
    if let Some(address) = operand
        && insn.memory.base != MemoryOperand::NONE
    {
        place_image(native.memory(), (address - MEMORY) as usize, insn, random);
    }
    // AMD's processors have no alignment check in SHA instructions; the announced one has.
    if insn.code.cpuid_features().contains(&CpuidFeature::SHA) && operand.is_some_and(|at| at % 16 != 0) {
        return Comparison::NotTried;
    }
    // CVTPI2PS of memory neither waits for x87 exceptions nor enters MMX state there.
    if insn.mnemonic == Cvtpi2ps && operand.is_some() {
        return Comparison::NotTried;
    }
    let before = native.memory().to_vec();
    guest.write(MEMORY, &before);
    let image = random.state();
    guest.state.gpr = registers.gpr;
    guest.state.set_rflags(registers.rflags);
    load(&mut guest.state, &image);

    let mut native_image = image;
    let expected = native.run_with_state(bytes, &registers, &mut native_image);
    guest.state.rip = CODE;
    let outcome = step(&mut guest.state, &mut guest.mmu, insn);
    let describe = |what: String| {
        let st: Vec<_> = (0..8)
            .map(|i| format!("{:04x}:{:016x}", u16_at(&image, 40 + 16 * i), u64_at(&image, 32 + 16 * i)))
            .collect();
        let xmm: Vec<_> = image[160..416]
            .chunks(16)
            .map(|b| format!("{:032x}", u128::from_le_bytes(b.try_into().unwrap())))
            .collect();
        Comparison::Different(format!(
            "{what}\n  {bytes:02x?} with {registers:x?} control {:x} status {:x} tags {:x} mxcsr {:x}\n  st {st:?}\n  xmm {xmm:?}\n  memory {:02x?}",
            u16_at(&image, 0),
            u16_at(&image, 2),
            image[4],
            u64_at(&image, 24) as u32,
            operand.map(|at| &before[(at - MEMORY) as usize..][..32]),
        ))
    };
    match (&expected, outcome) {
        (Err(signal), Err(Stop::Exception(exception))) => {
            let same = match *signal {
                libc::SIGFPE => {
                    matches!(exception.vector, Vector::X87FloatingPoint | Vector::SimdFloatingPoint)
                }
                libc::SIGILL => exception.vector == Vector::InvalidOpcode,
                _ => exception.vector == Vector::GeneralProtection,
            };
            if !same {
                return describe(format!("signal {signal}, but {exception:?}"));
            }
        }
        (Ok(expected), Ok(())) => {
            if guest.state.gpr != expected.gpr {
                return describe(format!("registers {:x?}, natively {:x?}", guest.state.gpr, expected.gpr));
            }
            let (got, wanted) = (guest.state.rflags() & flags::STATUS, expected.rflags & flags::STATUS);
            if got != wanted {
                return describe(format!("flags {got:#x}, natively {wanted:#x}"));
            }
        }
        (native, guest) => return describe(format!("natively {native:x?}, but {guest:?}")),
    }
    let faulted = expected.is_err();
    // Of these, AMD's processors enter MMX state even if #XM follows.
    if faulted && matches!(insn.mnemonic, Cvtps2pi | Cvttps2pi | Cvtpd2pi | Cvttpd2pi | Cvtpi2ps) {
        return Comparison::NotTried;
    }
    // Whether a result that overflows or underflows with a trap is also inexact can't be seen from the masked one.
    let unmasked = !(u64_at(&image, 24) >> 7) as u8;
    if faulted && native_image[24] & unmasked & (OVERFLOW | UNDERFLOW) != 0 {
        guest.state.mxcsr &= !u32::from(PRECISION);
        native_image[24] &= !PRECISION;
    }
    // Nor can flags of intermediate results.
    if faulted && matches!(insn.mnemonic, Dpps | Dppd) {
        native_image[24..28].copy_from_slice(&guest.state.mxcsr.to_le_bytes());
    }
    if let Some(what) = difference(&guest.state, &native_image, undefined_conditions(insn)) {
        return describe(what);
    }
    let memory = guest.read(MEMORY, MEMORY_SIZE);
    let native_memory = native.memory();
    let differs = |at: &usize| {
        let is_undefined = operand
            .is_some_and(|operand| is_undefined_byte(insn, (MEMORY + *at as u64).wrapping_sub(operand)));
        memory[*at] != native_memory[*at] && !is_undefined
    };
    match (0..MEMORY_SIZE).find(differs) {
        None => Comparison::Same,
        Some(at) => describe(format!(
            "memory at {:#x} (operand at {operand:x?}): {:02x?}, natively {:02x?}",
            MEMORY + at as u64,
            &memory[at..][..16],
            &native_memory[at..][..16],
        )),
    }
}
