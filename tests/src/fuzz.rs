//! Random instructions. The generator walks the instruction table: every encoding of every lifted mnemonic that can
//! run in ring 3 is made up, so a new row is fuzzed from the day it is written.

use iced_x86::{
    Code, Encoder, EncodingKind, FlowControl, Instruction, Mnemonic, OpCodeOperandKind as Kind, OpKind,
    Register,
};
use semantics::{decode, table};
use x86::{CpuState, Mode};

use crate::{operand, random::Random};

/// Mnemonics that are not compared, and why.
pub const EXCLUDED: &[(Mnemonic, &str)] = &[
    (Mnemonic::Rdpid, "tells the host's processor"),
    (Mnemonic::Rdfsbase, "the host's FS base is the child's thread area"),
    (Mnemonic::Rdgsbase, "the host may not have it enabled"),
    (Mnemonic::Wrfsbase, "the host may not have it enabled"),
    (Mnemonic::Wrgsbase, "the host may not have it enabled"),
    (Mnemonic::Fxsave, "reserved bytes of the image differ between processors"),
    (Mnemonic::Fxsave64, "reserved bytes of the image differ between processors"),
    (Mnemonic::Fxrstor, "a random image is mostly #GP"),
    (Mnemonic::Fxrstor64, "a random image is mostly #GP"),
    (Mnemonic::Xsave, "the host has more state components"),
    (Mnemonic::Xsave64, "the host has more state components"),
    (Mnemonic::Xsaveopt, "the host has more state components"),
    (Mnemonic::Xsaveopt64, "the host has more state components"),
    (Mnemonic::Xrstor, "the host has more state components"),
    (Mnemonic::Xrstor64, "the host has more state components"),
    (Mnemonic::Fnstenv, "x87 pointers are not kept alike by processors"),
    (Mnemonic::Fnsave, "x87 pointers are not kept alike by processors"),
    (Mnemonic::Fldenv, "loads x87 pointers"),
    (Mnemonic::Frstor, "loads x87 pointers"),
];

/// Encodings on which processors differ: the SDM says one thing, AMD's do another.
fn processors_differ(code: Code, bits: u32) -> bool {
    // An operand-size prefix on near branches in 64-bit mode is ignored by Intel's and honoured by AMD's.
    let info = code.op_code();
    let short_branch = bits == 64 && info.operand_size() == 16 && code.flow_control() != FlowControl::Next;
    // Prefetches of registers are #UD to AMD's.
    let prefetch = matches!(
        code,
        Code::Reservednop_rm16_r16_0F0D | Code::Reservednop_rm32_r32_0F0D | Code::Reservednop_rm64_r64_0F0D
    );
    // A segment register pushed with 32 or 64 bits leaves the upper bytes as they were, or zeroes them.
    let push = code.mnemonic() == Mnemonic::Push
        && info.operand_size() != 16
        && matches!(info.op0_kind(), Kind::es | Kind::cs | Kind::ss | Kind::ds | Kind::fs | Kind::gs);
    // Intel's read 16 bits, AMD's 32.
    let extension = code == Code::Movsxd_r16_rm16;
    short_branch || prefetch || push || extension
}

/// All encodings that are fuzzed for 64-, 32- or 16-bit code.
pub fn encodings(bits: u32) -> Vec<Code> {
    Code::values()
        .filter(|&code| {
            let info = code.op_code();
            let usable = match bits {
                64 => info.mode64(),
                32 => info.mode32(),
                _ => info.mode16(),
            };
            table::LIFTED.contains(&code.mnemonic())
                && !EXCLUDED.iter().any(|(mnemonic, _)| *mnemonic == code.mnemonic())
                && !processors_differ(code, bits)
                && usable
                && info.is_instruction()
                && matches!(info.encoding(), EncodingKind::Legacy | EncodingKind::VEX)
                && !info.fwait()
                && is_lifted(code, bits)
        })
        .collect()
}

/// Whether instructions of this encoding are lifted: some forms of MOV, PUSH, CALL, … are callouts.
fn is_lifted(code: Code, bits: u32) -> bool {
    let mut random = Random::new(code as u64);
    // What can't be made up here is reported by the tests as not covered.
    let Some((_, bytes)) = (0..20).find_map(|_| instruction(&mut random, code, bits)) else { return false };
    match decode::decode_one(&bytes, 0, mode(bits)) {
        // TZCNT and LZCNT are bit scans to a host that lacks them.
        Ok(insn) => table::kind_of(&insn) == table::Kind::Lifted && insn.mnemonic == code.mnemonic(),
        // Not an instruction of the announced processor. If that is because the host lacks it, it is #UD on both;
        // otherwise the host may well have it.
        Err(_) => !is_offered(code),
    }
}

/// Whether guests have instructions of this encoding on this host.
pub fn is_offered(code: Code) -> bool {
    code.cpuid_features().iter().all(|&feature| semantics::native::is_offered(feature))
}

/// The mode of a 64-, 32- or 16-bit program in ring 3.
pub fn mode(bits: u32) -> Mode {
    let mut state = CpuState::new();
    crate::image::set_segments(&mut state, bits);
    state.update_mode();
    state.mode
}

/// Whose memory operands must be aligned.
pub const SHA: [Mnemonic; 7] = [
    Mnemonic::Sha1msg1,
    Mnemonic::Sha1msg2,
    Mnemonic::Sha1nexte,
    Mnemonic::Sha1rnds4,
    Mnemonic::Sha256msg1,
    Mnemonic::Sha256msg2,
    Mnemonic::Sha256rnds2,
];

/// Shift counts about which there is something special.
pub const COUNTS: [u8; 16] = [0, 1, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 255];

/// Where a count of more than 16 leaves the result undefined, as it does for their immediate forms.
pub const DOUBLE_SHIFTS_BY_CL: [Code; 2] = [Code::Shld_rm16_r16_CL, Code::Shrd_rm16_r16_CL];

/// Whether an instruction must be the first of a program, because its registers must have certain values.
pub fn is_delicate(code: Code) -> bool {
    DOUBLE_SHIFTS_BY_CL.contains(&code)
        || SHA.contains(&code.mnemonic())
        || matches!(code.mnemonic(), Mnemonic::Maskmovdqu | Mnemonic::Maskmovq)
}

/// Segments for prefixes. In 64-bit mode the bases of FS and GS are zero; outside they are null.
fn segments(bits: u32) -> &'static [Register] {
    use Register::{CS, DS, ES, FS, GS, SS};
    if bits == 64 { &[FS, GS] } else { &[CS, DS, ES, SS, GS] }
}

/// Makes up one instruction of an encoding; `None` where the operands are not ours to choose.
pub fn instruction(random: &mut Random, code: Code, bits: u32) -> Option<(Instruction, Vec<u8>)> {
    let info = code.op_code();
    let registers = if bits == 64 { 16 } else { 8 };
    let mut insn = Instruction::default();
    insn.set_code(code);
    for operand in 0..info.op_count() {
        operand::place(random, &mut insn, operand, info.op_kind(operand), bits, registers)?;
    }
    if info.can_use_lock_prefix() && insn.op0_kind() == OpKind::Memory && random.one_in(3) {
        insn.set_has_lock_prefix(true);
    }
    if SHA.contains(&code.mnemonic()) && insn.op1_kind() == OpKind::Memory {
        // AMD's don't want its memory aligned.
        insn.set_memory_index(Register::None);
        if insn.memory_base() == Register::RIP {
            insn.set_memory_base(Register::RBX);
        }
        insn.set_memory_displacement64(insn.memory_displacement64() & !15);
    }
    if insn.is_string_instruction() && random.one_in(2) {
        if random.one_in(2) || !info.can_use_repne_prefix() {
            insn.set_has_rep_prefix(true);
        } else {
            insn.set_has_repne_prefix(true);
        }
    }
    if table::module(code.mnemonic()) == Some("shift")
        && insn.op_count() > 1
        && insn.op_kind(insn.op_count() - 1) == OpKind::Immediate8
        && insn.immediate8() != 1
        && random.one_in(2)
    {
        insn.set_immediate8(random.pick(&COUNTS));
    }
    if matches!(code, Code::Shld_rm16_r16_imm8 | Code::Shrd_rm16_r16_imm8) {
        insn.set_immediate8(insn.immediate8() % 17);
    }
    if random.one_in(12) && (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory) {
        insn.set_segment_prefix(random.pick(segments(bits)));
    }
    let mut encoder = Encoder::new(bits);
    // Near branches need an address near their target; code is position-independent otherwise.
    encoder.encode(&insn, 0).ok()?;
    let bytes = encoder.take_buffer();
    Some((insn, bytes))
}
