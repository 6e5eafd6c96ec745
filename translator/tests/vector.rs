//! Vector instructions are host instructions in compiled code; what is left to a function of the runtime stands here.

mod common;

use std::collections::BTreeSet;

use common::long_mode_state;
use iced_x86::{Code, Encoder, EncodingKind, Instruction, OpCodeOperandKind as Operand, Register};
use semantics::{decode::decode_block, native::is_offered, table};
use transvisor_translator::{
    Options, Translator,
    abi::{FIRST_RUNTIME_HELPER, RuntimeHelper},
};

/// The instruction with registers as operands.
fn instruction(code: Code) -> Option<Instruction> {
    let op_code = code.op_code();
    let mut instruction = Instruction::default();
    instruction.set_code(code);
    for n in 0..op_code.op_count() {
        match op_code.op_kind(n) {
            Operand::xmm_reg => instruction.set_op_register(n, Register::XMM1),
            Operand::xmm_rm | Operand::xmm_or_mem => instruction.set_op_register(n, Register::XMM2),
            Operand::r32_reg | Operand::r32_or_mem => instruction.set_op_register(n, Register::ECX),
            Operand::r64_reg | Operand::r64_or_mem => instruction.set_op_register(n, Register::RCX),
            Operand::imm8 => {
                instruction.set_op_kind(n, iced_x86::OpKind::Immediate8);
                instruction.set_immediate8(1);
            }
            _ => return None,
        }
    }
    Some(instruction)
}

#[test]
fn few_vector_instructions_are_called() {
    let mut translator = Translator::new(Options { text: true, ..Options::default() }).unwrap();
    let entry = (FIRST_RUNTIME_HELPER + RuntimeHelper::VectorOp as usize) * 8;
    let (mut called, mut seen) = (BTreeSet::new(), 0);
    for code in Code::values() {
        let op_code = code.op_code();
        let vector = (0..op_code.op_count())
            .any(|n| matches!(op_code.op_kind(n), Operand::xmm_reg | Operand::xmm_rm | Operand::xmm_or_mem));
        if code.encoding() != EncodingKind::Legacy
            || !vector
            || table::kind(code.mnemonic()) != table::Kind::Lifted
            || !code.cpuid_features().iter().all(|&feature| is_offered(feature))
        {
            continue;
        }
        let Some(instruction) = instruction(code) else { continue };
        let mut encoder = Encoder::new(64);
        encoder.encode(&instruction, 0x40_0000).unwrap();
        let block = decode_block(&encoder.take_buffer(), 0x40_0000, long_mode_state().mode);
        let translated = translator.translate(&block).unwrap_or_else(|error| panic!("{code:?}: {error}"));
        let clif = translated.text.unwrap().clif;
        seen += 1;
        if clif.lines().any(|line| line.contains("region2") && line.ends_with(&format!("+{entry}"))) {
            called.insert(format!("{:?}", code.mnemonic()));
        }
    }
    assert!(seen > 200, "{seen}");
    let expected = ["Pcmpestri", "Pcmpestri64", "Pcmpestrm", "Pcmpestrm64", "Pcmpistri", "Pcmpistrm"];
    let others: Vec<_> =
        called.iter().filter(|name| !expected.contains(&name.as_str()) && !name.starts_with("Sha")).collect();
    assert!(others.is_empty(), "called: {others:?}");
    assert!(called.contains("Pcmpistri"), "calls are recognized");
}
