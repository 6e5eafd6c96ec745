//! Random states in which given instructions can mostly reach their memory.

use iced_x86::{Instruction, InstructionInfoFactory, Mnemonic, Register};
use semantics::table;

use crate::{
    fuzz::{COUNTS, DOUBLE_SHIFTS_BY_CL, SHA, is_delicate},
    image::{CODE, DATA, DATA_SIZE, Image},
    random::Random,
};

/// A random state in which the instructions can mostly reach their memory.
pub fn state(random: &mut Random, insns: &[Instruction], bits: u32) -> Image {
    let mut image = Image::new();
    for value in &mut image.gpr {
        *value = random.integer();
        if bits != 64 {
            *value &= 0xffff_ffff;
        }
    }
    // 16-bit segments begin at the windows: their offsets are the low half of the linear addresses of these.
    image.gpr[x86::state::RSP] = DATA + 0x100 + (random.below(DATA_SIZE - 0x200) & !7);
    if bits == 16 {
        image.gpr[x86::state::RSP] &= 0xffff;
    }
    image.flags = random.bits() & x86::flags::STATUS;
    let mut information = InstructionInfoFactory::new();
    for insn in insns {
        let aligned = SHA.contains(&insn.mnemonic());
        for memory in information.info(insn).used_memory() {
            if memory.base().full_register() != Register::RSP {
                aim(random, &mut image, memory.base(), bits, aligned);
            }
            let index = memory.index();
            if index.is_gpr() && index != memory.base() && index != Register::AL {
                image.gpr[number(index)] = random.below(64);
            }
        }
        if table::module(insn.mnemonic()) == Some("shift") && random.one_in(2) {
            image.gpr[1] = image.gpr[1] & !0xff | u64::from(random.pick(&COUNTS));
        }
        if matches!(insn.mnemonic(), Mnemonic::Div | Mnemonic::Idiv) && random.one_in(2) {
            // So that the quotient often fits.
            let (high, low) = (random.below(16), random.below(0x8000));
            image.gpr[2] = random.pick(&[0, u64::MAX, high]);
            image.gpr[0] = random.pick(&[image.gpr[0], low]);
        }
        if insn.is_string_instruction() {
            image.gpr[1] = random.below(70);
            if random.one_in(4) {
                image.flags |= x86::flags::DF;
            }
        }
    }
    if let Some(first) = insns.first().filter(|insn| is_delicate(insn.code())) {
        make_delicate(random, &mut image, first, bits);
    }
    for value in &mut image.xmm {
        *value = random.vector();
    }
    if random.one_in(3) {
        // Rounding mode, flush-to-zero, denormals-are-zero and sticky flags; now and then an unmasked exception.
        image.mxcsr = x86::fpu::MXCSR_RESET | random.bits() as u32 & 0xe07f;
        if random.one_in(4) {
            image.mxcsr &= !(1 << (7 + random.below(6)));
        }
    }
    for register in &mut image.x87.registers {
        *register = random.extended();
    }
    let some = random.bits() as u16 & 0xff;
    image.x87.tags = random.pick(&[0xff, 0xff, 0xff, 0, some]);
    image.x87.status = (random.below(8) as u16) << 11;
    image.x87.control = 0x037f ^ (random.below(4) as u16) << 10;
    let filled = image.data.len() / 8;
    for word in 0..filled {
        let value = random.integer();
        image.data[word * 8..][..8].copy_from_slice(&value.to_le_bytes());
    }
    image
}

/// Gives the registers of an instruction the values that it must have for processors to agree.
fn make_delicate(random: &mut Random, image: &mut Image, insn: &Instruction, bits: u32) {
    if DOUBLE_SHIFTS_BY_CL.contains(&insn.code()) {
        image.gpr[1] = image.gpr[1] & !0x1f | random.below(17);
    } else if SHA.contains(&insn.mnemonic()) {
        for register in &mut image.gpr {
            *register &= !15;
        }
    } else {
        // Where MASKMOVDQU faults depends on the processor.
        let offset = random.below(DATA_SIZE - 16);
        image.gpr[7] = if bits == 16 { offset } else { DATA + offset };
    }
}

/// The encoding number of a general register or part of one.
fn number(register: Register) -> usize {
    register.full_register() as usize - Register::RAX as usize
}

/// Points a register into the data window, mostly; sometimes across its end, or nowhere.
fn aim(random: &mut Random, image: &mut Image, register: Register, bits: u32, aligned: bool) {
    if !register.is_gpr() {
        return;
    }
    let address = match random.below(16) {
        0 => DATA + DATA_SIZE - random.below(20),
        1 => random.integer(),
        2 => CODE,
        3..=8 => DATA + 0x200 + (random.below(DATA_SIZE - 0x400) & !15),
        _ => DATA + 0x200 + random.below(DATA_SIZE - 0x400),
    };
    let address = if bits == 16 { address & 0xffff } else { address };
    // What a shorter address leaves out may be anything.
    let garbage = match register.size() {
        2 => random.bits() << 16,
        4 => random.bits() << 32,
        _ => 0,
    };
    let garbage = if random.one_in(2) { garbage } else { 0 };
    let value = garbage | if aligned { address & !15 } else { address };
    image.gpr[number(register)] = if bits == 64 { value } else { value & 0xffff_ffff };
}
