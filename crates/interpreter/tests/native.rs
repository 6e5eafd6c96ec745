//! General-purpose instructions against the host processor: random encodings of every opcode, register and memory
//! forms, random operands; registers, memory and all defined flags must come out the same.
//!
//! `TRANSVISOR_SEED` and `TRANSVISOR_CASES` change what is tried.

mod support;

use std::collections::BTreeSet;

use iced_x86::{Decoder, FlowControl, Instruction, Mnemonic};
use memory::Stop;
use semantics::{
    Insn, Kind, MemoryOperand, Operand,
    decode::{decode_one, options},
    table,
};
use support::{
    CODE, Guest,
    native::{MEMORY, MEMORY_SIZE, Native, Registers},
};
use transvisor_interpreter::{BlockExit, DecodedBlock, run_block, step};
use x86::{Exception, flags};

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 32) % n
    }

    /// A value that is often at an edge.
    fn operand(&mut self) -> u64 {
        const EDGES: [u64; 12] =
            [0, 1, 2, 0x7f, 0x80, 0xff, 0x7fff, 0x8000, 0x7fff_ffff, 0x8000_0000, u64::MAX, 1 << 63];
        match self.below(4) {
            0 => EDGES[self.below(EDGES.len() as u64) as usize],
            1 => self.next() >> self.below(64),
            _ => self.next(),
        }
    }
}

/// Random bytes that are an instruction with this opcode: prefixes, REX or VEX, opcode, ModRM and more.
fn encoding(random: &mut Random, map: u8, opcode: u8) -> Vec<u8> {
    let mut bytes = Vec::new();
    if random.below(4) == 0 {
        bytes.push(0x66);
    }
    match random.below(8) {
        0 => bytes.push(0xf3),
        1 => bytes.push(0xf2),
        2 => bytes.push(0xf0),
        _ => {}
    }
    if random.below(2) == 0 {
        bytes.push(0x40 | random.below(16) as u8);
    }
    match map {
        0 => {}
        1 => bytes.push(0x0f),
        2 => bytes.extend([0x0f, 0x38]),
        // VEX, which takes no prefix of those before: 0F38 and 0F3A.
        map => bytes = vec![0xc4, random.next() as u8 & 0xe0 | (map - 1), random.next() as u8 & 0xfb],
    }
    bytes.push(opcode);
    let modrm = random.next() as u8;
    bytes.push(if random.below(2) == 0 { modrm | 0xc0 } else { modrm });
    bytes.extend(random.next().to_le_bytes());
    bytes.extend(random.next().to_le_bytes());
    bytes.truncate(15);
    bytes
}

/// Whether an instruction can be tried: of this file's matter, and without effects that the two sides can't share.
fn is_ours(insn: &Insn) -> bool {
    let integer = insn.operands.iter().all(|operand| {
        matches!(
            operand,
            Operand::None | Operand::Gpr(_) | Operand::Memory | Operand::Immediate | Operand::Immediate2
        )
    });
    let group = iced_x86::Code::cpuid_features(insn.code);
    let general = group.iter().all(|feature| {
        use iced_x86::CpuidFeature::*;
        !matches!(
            feature,
            SSE | SSE2 | SSE3 | SSSE3 | SSE4_1 | MMX | FPU | FPU287 | FPU387 | FXSR | XSAVE | XSAVEOPT
        )
    });
    integer
        && general
        && table::kind_of(insn) == Kind::Lifted
        && insn.code.flow_control() == FlowControl::Next
        && !matches!(
            insn.mnemonic,
            Mnemonic::Rdfsbase
                | Mnemonic::Rdgsbase
                | Mnemonic::Wrfsbase
                | Mnemonic::Wrgsbase
                | Mnemonic::Rdpid
                // What they do depends on extensions that the host has and the guest has not.
                | Mnemonic::Rdsspd
                | Mnemonic::Rdsspq
                // With REX.B it is XCHG R8, rAX to AMD's processors, PAUSE to Intel's.
                | Mnemonic::Pause
                // Register forms of PREFETCHW are #UD on AMD's processors, NOP on Intel's.
                | Mnemonic::Reservednop
        )
}

/// Places the instruction's memory within the mapped memory by choosing registers. False if it can't be done.
fn place_memory(insn: &Insn, random: &mut Random, registers: &mut Registers) -> bool {
    const MIDDLE: u64 = MEMORY + MEMORY_SIZE as u64 / 2;
    registers.gpr[4] = MIDDLE & !15;
    let string = insn.code.is_string_instruction();
    if string {
        registers.gpr[6] = MIDDLE + random.below(64);
        registers.gpr[7] = MIDDLE + random.below(64);
        registers.gpr[1] = random.below(40);
        return insn.memory.segment as u8 <= 3;
    }
    if insn.mnemonic == Mnemonic::Leave || insn.mnemonic == Mnemonic::Enter {
        registers.gpr[5] = MIDDLE + random.below(64);
        return insn.immediate2 & 31 < 8 && insn.immediate < 0x400;
    }
    if insn.memory_bytes == 0 && insn.mnemonic != Mnemonic::Clflush {
        // LEA relative to RIP would have to be at the same address on both sides.
        return insn.mnemonic != Mnemonic::Lea || insn.memory.base != MemoryOperand::NONE;
    }
    let memory = &insn.memory;
    if memory.segment as u8 > 3 || memory.base == MemoryOperand::NONE || memory.base == memory.index {
        return false;
    }
    if insn.mnemonic == Mnemonic::Xlatb {
        registers.gpr[3] = MIDDLE;
        return true;
    }
    if matches!(insn.mnemonic, Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && let Operand::Gpr(offset) = insn.operand(1)
    {
        if offset.index == memory.base || offset.index == memory.index {
            return false;
        }
        registers.gpr[offset.index as usize] = random.below(0x2000).wrapping_sub(0x1000);
    }
    // RSP as a base must also be a stack for PUSH and POP.
    let slack = random.below(64) & if insn.mnemonic == Mnemonic::Cmpxchg16b { !15 } else { !0 };
    let mut base = MIDDLE.wrapping_add(slack).wrapping_sub(memory.displacement);
    if memory.index != MemoryOperand::NONE {
        if memory.index == 4 {
            return false;
        }
        registers.gpr[memory.index as usize] = random.below(64).wrapping_sub(32) & !15;
        base = base.wrapping_sub(registers.gpr[memory.index as usize] << memory.scale);
    }
    if memory.base == 4 && matches!(insn.mnemonic, Mnemonic::Push | Mnemonic::Pop) {
        return false;
    }
    registers.gpr[memory.base as usize] = base;
    true
}

/// Flags that neither side need agree on.
fn undefined_flags(instruction: &Instruction, insn: &Insn, registers: &Registers) -> u64 {
    use iced_x86::RflagsBits as Bits;
    let undefined = instruction.rflags_undefined();
    let pairs = [
        (Bits::CF, flags::CF),
        (Bits::PF, flags::PF),
        (Bits::AF, flags::AF),
        (Bits::ZF, flags::ZF),
        (Bits::SF, flags::SF),
        (Bits::OF, flags::OF),
    ];
    let mut mask = pairs.iter().filter(|(bit, _)| undefined & bit != 0).map(|(_, flag)| flag).sum::<u64>();
    let width_bits = u64::from(insn.operand_width(0).bits());
    let count_mask = if width_bits == 64 { 63 } else { 31 };
    let count = match insn.mnemonic {
        Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sal | Mnemonic::Sar => insn.operand(1),
        Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr => insn.operand(1),
        Mnemonic::Shld | Mnemonic::Shrd => insn.operand(2),
        _ => return mask,
    };
    let count = if count == Operand::Immediate { insn.immediate } else { registers.gpr[1] } & count_mask;
    // iced masks more than is undefined where the count is in CL: zero changes nothing, one defines OF.
    match count {
        0 => mask = 0,
        1 => mask &= flags::AF,
        _ => mask |= flags::OF,
    }
    // CF is undefined beyond the operand's size (SHL, SHR).
    if count >= width_bits && matches!(insn.mnemonic, Mnemonic::Shl | Mnemonic::Shr | Mnemonic::Sal) {
        mask |= flags::CF;
    }
    mask
}

/// Whether the result itself is undefined.
fn is_undefined(insn: &Insn, registers: &Registers) -> bool {
    let count = if insn.operand(2) == Operand::Immediate { insn.immediate } else { registers.gpr[1] } & 31;
    matches!(insn.mnemonic, Mnemonic::Shld | Mnemonic::Shrd)
        && insn.operand_width(0).bits() == 16
        && count > 16
}

fn from_environment(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

#[test]
fn general_purpose_instructions_do_what_the_host_does() {
    let seed = from_environment("TRANSVISOR_SEED", 0x5eed);
    let cases = from_environment("TRANSVISOR_CASES", 600);
    let (mut native, _guard) = Native::take();
    let mut guest = Guest::new(64);
    let mut random = Random(seed | 1);
    let mut codes = BTreeSet::new();
    let mut failures = Vec::new();
    for round in 0..cases {
        for map in 0..5 {
            for opcode in 0..=255 {
                let bytes = encoding(&mut random, map, opcode);
                let Ok(insn) = decode_one(&bytes, CODE, guest.mode()) else { continue };
                if !is_ours(&insn) {
                    continue;
                }
                if let Some(failure) = compare(&mut native, &mut guest, &mut random, &insn, &bytes) {
                    failures.push(format!("round {round}: {failure}"));
                }
                codes.insert(insn.code);
            }
        }
        assert!(failures.len() < 20, "seed {seed}:\n{}", failures.join("\n"));
    }
    assert!(failures.is_empty(), "seed {seed}:\n{}", failures.join("\n"));
    println!("{} encodings of {} mnemonics", codes.len(), {
        codes.iter().map(|code| code.mnemonic()).collect::<BTreeSet<_>>().len()
    });
    assert!(cases < 600 || codes.len() > 500, "only {} encodings were reached", codes.len());
}

/// Runs one case on both sides; what differs, if anything.
fn compare(
    native: &mut Native,
    guest: &mut Guest,
    random: &mut Random,
    insn: &Insn,
    bytes: &[u8],
) -> Option<String> {
    let bytes = &bytes[..insn.length as usize];
    let instruction = Decoder::with_ip(64, bytes, CODE, options()).decode();
    let mut registers = Registers::default();
    registers.gpr.iter_mut().for_each(|register| *register = random.operand());
    registers.rflags = 0x202 | random.next() & (flags::STATUS | flags::DF);
    if matches!(insn.mnemonic, Mnemonic::Div | Mnemonic::Idiv) && random.below(2) == 0 {
        // Mostly quotients that fit.
        registers.gpr[2] = if random.below(2) == 0 { 0 } else { u64::MAX };
    }
    if !place_memory(insn, random, &mut registers) || is_undefined(insn, &registers) {
        return None;
    }
    // Memory with few values, so that comparisons find equal ones.
    let few = random.below(2) == 0;
    for chunk in native.memory().chunks_mut(8) {
        let value = random.next();
        chunk.copy_from_slice(&if few { value & 0x0101_0101_0101_0101 } else { value }.to_le_bytes());
    }
    if insn.mnemonic == Mnemonic::Cmpxchg || insn.mnemonic == Mnemonic::Cmpxchg8b {
        make_equal_sometimes(native, random, insn, &mut registers);
    }
    let before = native.memory().to_vec();
    guest.write(MEMORY, &before);
    guest.state.gpr = registers.gpr;
    guest.state.set_rflags(registers.rflags);

    let expected = native.run(bytes, &registers);
    let outcome = execute(guest, insn, random.below(2) == 0);
    let describe =
        |what: String| Some(format!("{what}\n  {bytes:02x?} {:?} with {registers:x?}", instruction.code()));
    let expected = match (expected, outcome) {
        (Err(signal), Err(Stop::Exception(exception))) => {
            let same = match signal {
                libc::SIGFPE => exception == Exception::DE,
                libc::SIGILL => exception == Exception::UD,
                _ => exception == Exception::GP0 || exception == Exception::SS0,
            };
            return if same { None } else { describe(format!("signal {signal}, but {exception:?}")) };
        }
        (Ok(expected), Ok(())) => expected,
        (native, guest) => return describe(format!("natively {native:x?}, but {guest:?}")),
    };
    for register in 0..16 {
        if guest.state.gpr[register] != expected.gpr[register] {
            return describe(format!(
                "register {register}: {:#x}, natively {:#x}",
                guest.state.gpr[register], expected.gpr[register]
            ));
        }
    }
    let checked = (flags::STATUS | flags::DF) & !undefined_flags(&instruction, insn, &registers);
    let (got, wanted) = (guest.state.rflags() & checked, expected.rflags & checked);
    if got != wanted {
        return describe(format!("flags {got:#x}, natively {wanted:#x} (of {checked:#x})"));
    }
    let memory = guest.read(MEMORY, MEMORY_SIZE);
    if let Some(at) = (0..MEMORY_SIZE).find(|&at| memory[at] != native.memory()[at]) {
        return describe(format!(
            "memory at {:#x}: {:#x}, natively {:#x}",
            MEMORY + at as u64,
            memory[at],
            native.memory()[at]
        ));
    }
    None
}

/// Runs an instruction to its end, by itself or as a block.
fn execute(guest: &mut Guest, insn: &Insn, as_block: bool) -> Result<(), Stop> {
    guest.state.rip = CODE;
    if as_block {
        let block = DecodedBlock::from_insns(&[*insn], CODE);
        return match run_block(&mut guest.state, &mut guest.mmu, &block) {
            BlockExit::Stop(stop) => Err(stop),
            _ => Ok(()),
        };
    }
    loop {
        step(&mut guest.state, &mut guest.mmu, insn)?;
        if guest.state.rip != CODE {
            return Ok(());
        }
    }
}

/// Lets the comparison of CMPXCHG hold in half of the cases.
fn make_equal_sometimes(native: &mut Native, random: &mut Random, insn: &Insn, registers: &mut Registers) {
    if random.below(2) == 0 {
        return;
    }
    match insn.operand(0) {
        Operand::Gpr(register) if !register.high && register.index != 4 => {
            registers.gpr[register.index as usize] = registers.gpr[0];
        }
        Operand::Memory => {
            let memory = &insn.memory;
            if [memory.base, memory.index].iter().any(|&register| register == 0 || register == 2) {
                return;
            }
            let index = if memory.index == MemoryOperand::NONE {
                0
            } else {
                registers.gpr[memory.index as usize] << memory.scale
            };
            let address =
                registers.gpr[memory.base as usize].wrapping_add(index).wrapping_add(memory.displacement);
            let at = (address - MEMORY) as usize;
            let low = (registers.gpr[0] as u32).to_le_bytes();
            let high = (registers.gpr[2] as u32).to_le_bytes();
            let value = if insn.mnemonic == Mnemonic::Cmpxchg8b {
                [low, high].concat()
            } else {
                registers.gpr[0].to_le_bytes().to_vec()
            };
            native.memory()[at..at + 8].copy_from_slice(&value);
        }
        _ => {}
    }
}
