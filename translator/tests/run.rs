//! Compiled blocks, run: registers, flags, memory by both paths, exits, abandoning.

mod common;

use common::{Machine, RAM_SIZE, RAM_START, READ_ONLY, place};
use semantics::decode::{GuestBlock, decode_block};
use transvisor_translator::{CodeBlock, Options, TranslateError, Translator, abi::Leave};
use x86::{Mode, flags};

const CODE: u64 = 0x40_1000;

fn mode() -> Mode {
    Machine::new().state.mode
}

fn guest_block(bytes: &[u8]) -> GuestBlock {
    decode_block(bytes, CODE, mode())
}

fn translate(bytes: &[u8]) -> CodeBlock {
    let options = Options { verify: true, ..Options::default() };
    Translator::new(options).unwrap().translate(&guest_block(bytes)).unwrap()
}

#[test]
fn additions_set_registers_flags_and_count() {
    // add rax, rbx; add ecx, edx; cmp al, cl
    let placed = place(translate(&[0x48, 0x01, 0xd8, 0x01, 0xd1, 0x38, 0xc8]));
    let mut machine = Machine::new();
    machine.state.gpr[0] = u64::MAX;
    machine.state.gpr[3] = 2;
    machine.state.gpr[1] = 0xffff_ffff_0000_0003;
    machine.state.gpr[2] = 0xffff_ffff_ffff_ffff;
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.left_through(), placed.slot(0));
    assert_eq!(placed.block.exits[0].target, CODE + 7);
    assert_eq!(machine.state.gpr[0], 1);
    assert_eq!(machine.state.gpr[1], 2);
    assert_eq!(machine.state.instructions, 3);
    // 1 - 2: borrow, sign, adjust; 0xff has even parity.
    assert_eq!(machine.state.flags.to_bits(), flags::CF | flags::SF | flags::AF | flags::PF);
}

#[test]
fn memory_is_reached_by_both_paths() {
    // add rax, [rbx]; add [rbx + 8], rax; add [rbx + 12], al
    let bytes = [0x48, 0x03, 0x03, 0x48, 0x01, 0x43, 0x08, 0x00, 0x43, 0x0c];
    let placed = place(translate(&bytes));
    for slow in [false, true] {
        let mut machine = Machine::new();
        if !slow {
            machine.fill();
        }
        machine.ram.bytes[0x123..0x12b].copy_from_slice(&5u64.to_le_bytes());
        machine.state.gpr[3] = RAM_START + 0x123;
        machine.state.gpr[0] = 7;
        let gpr = machine.state.gpr;
        assert_eq!(machine.run(&placed), Leave::Unlinked);
        assert_eq!(machine.state.gpr[0], 12);
        assert_eq!(machine.state.gpr[1..], gpr[1..]);
        assert_eq!(machine.ram.bytes[0x12b..0x133], [12, 0, 0, 0, 12, 0, 0, 0]);
        assert_eq!(machine.ram.slow, if slow { 5 } else { 0 });
    }
}

#[test]
fn crossing_a_page_goes_the_slow_way() {
    let placed = place(translate(&[0x48, 0x03, 0x03])); // add rax, [rbx]
    let mut machine = Machine::new();
    machine.fill();
    machine.ram.bytes[0xffc..0x1004].copy_from_slice(&0x0102_0304_0506_0708u64.to_le_bytes());
    machine.state.gpr[3] = RAM_START + 0xffc;
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.state.gpr[0], 0x0102_0304_0506_0708);
    assert_eq!(machine.ram.slow, 1);
    machine.state.gpr[3] = RAM_START + 0xff8;
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.ram.slow, 1);
}

#[test]
fn a_fault_leaves_the_state_of_the_instruction_s_start() {
    // add rax, rbx; add [rcx], rax; add rax, rax
    let bytes = [0x48, 0x01, 0xd8, 0x48, 0x01, 0x01, 0x48, 0x01, 0xc0];
    let placed = place(translate(&bytes));
    for address in [0, READ_ONLY, READ_ONLY - 4, RAM_START + RAM_SIZE as u64 - 1] {
        let mut machine = Machine::new();
        machine.fill();
        machine.state.gpr[0] = 1;
        machine.state.gpr[3] = u64::MAX;
        machine.state.gpr[1] = address;
        assert_eq!(machine.run(&placed), Leave::Step);
        assert_eq!(machine.state.rip, CODE + 3);
        assert_eq!(machine.state.gpr[0], 0);
        assert_eq!(machine.state.instructions, 1);
        let expected = flags::CF | flags::ZF | flags::PF | flags::AF;
        assert_eq!(machine.state.flags.to_bits(), expected);
        assert!(machine.ram.bytes.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn a_request_is_seen_before_anything_is_done() {
    let placed = place(translate(&[0x48, 0x01, 0xd8]));
    let mut machine = Machine::new();
    machine.state.exit_request.store(1, std::sync::atomic::Ordering::Relaxed);
    machine.state.gpr[3] = 1;
    assert_eq!(machine.run(&placed), Leave::Poll);
    assert_eq!(machine.state.rip, CODE);
    assert_eq!(machine.state.gpr[0], 0);
    assert_eq!(machine.state.instructions, 0);
}

#[test]
fn callouts_end_a_block_and_may_not_begin_one() {
    let placed = place(translate(&[0x48, 0x01, 0xd8, 0x0f, 0xa2])); // add rax, rbx; cpuid
    let mut machine = Machine::new();
    machine.state.gpr[3] = 1;
    assert_eq!(machine.run(&placed), Leave::Step);
    assert_eq!(machine.state.rip, CODE + 3);
    assert_eq!(machine.state.instructions, 1);
    assert_eq!(machine.state.gpr[0], 1);

    let mut translator = Translator::new(Options::default()).unwrap();
    let alone = translator.translate(&guest_block(&[0x0f, 0xa2]));
    assert!(matches!(alone, Err(TranslateError::FirstDeclined(_))));
    // The translator is usable after an error.
    translator.translate(&guest_block(&[0x48, 0x01, 0xd8])).unwrap();
}
