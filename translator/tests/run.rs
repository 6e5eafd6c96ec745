//! Compiled blocks, run: registers, flags, memory by both paths, exits, abandoning.

mod common;

use common::{Machine, RAM_SIZE, RAM_START, READ_ONLY, place, protected_state};
use semantics::decode::{GuestBlock, decode_block};
use transvisor_translator::{
    CodeBlock, Options, TemplateTranslator, TranslateError, Translator,
    abi::{JumpEntry, Leave},
};
use x86::{LazyFlags, Mode, Width, flags, lazy_flags::Form};

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
fn the_monitor_is_called_for_callouts_and_says_when_to_leave() {
    let bytes = [0x48, 0x01, 0xd8, 0x0f, 0xa2]; // add rax, rbx; cpuid
    for block in
        [translate(&bytes), TemplateTranslator::new().translate(&guest_block(&bytes), None).unwrap().clone()]
    {
        let placed = place(block);
        let mut machine = Machine::new();
        machine.state.gpr[3] = 1;
        machine.state.rip = 0;
        assert_eq!(machine.run(&placed), Leave::Callout);
        assert_eq!((machine.state.rip, machine.state.gpr[0], machine.state.instructions), (CODE + 3, 1, 1));
    }
}

#[test]
fn in_32_bit_code_callouts_end_a_block_and_may_not_begin_one() {
    let mode = protected_state().mode;
    let decode = |bytes: &[u8]| decode_block(bytes, CODE, mode);
    let mut translator = Translator::new(Options::default()).unwrap();
    let placed = place(translator.translate(&decode(&[0x01, 0xd8, 0x0f, 0xa2])).unwrap()); // add eax, ebx; cpuid
    let mut machine = Machine::new();
    machine.state.gpr[3] = 1;
    assert_eq!(machine.run(&placed), Leave::Step);
    assert_eq!(machine.state.rip, CODE + 2);
    assert_eq!(machine.state.instructions, 1);
    assert_eq!(machine.state.gpr[0], 1);

    let alone = translator.translate(&decode(&[0x0f, 0xa2]));
    assert!(matches!(alone, Err(TranslateError::FirstDeclined(_))));
    // The translator is usable after an error.
    translator.translate(&guest_block(&[0x48, 0x01, 0xd8])).unwrap();
}

#[test]
fn linked_slots_lead_from_block_to_block() {
    // cmp rax, rbx; jb +2; then both ways, in the same page.
    let first = place(translate(&[0x48, 0x39, 0xd8, 0x72, 0x02]));
    let second = place(translate(&[0x48, 0x01, 0xd9])); // add rcx, rbx
    assert_eq!(first.block.exits.iter().map(|e| e.target).collect::<Vec<_>>(), [CODE + 7, CODE + 5]);
    assert!(first.block.exits.iter().all(|exit| !exit.guarded));
    // SAFETY: the slot is the first block's, and the second stays alive.
    unsafe { first.link(0, &second, 0) };
    let mut machine = Machine::new();
    machine.state.gpr[3] = 5;
    assert_eq!(machine.run(&first), Leave::Unlinked);
    assert_eq!(machine.left_through(), second.slot(0), "taken: through the second block");
    assert_eq!((machine.state.gpr[1], machine.state.instructions), (5, 3));
    machine.state.gpr[0] = 6;
    assert_eq!(machine.run(&first), Leave::Unlinked);
    assert_eq!(machine.left_through(), first.slot(1), "not taken: unlinked");
    assert_eq!((machine.state.gpr[1], machine.state.instructions), (5, 5));
}

#[test]
fn a_slot_to_another_page_is_guarded() {
    // A jump from the code's page to where RAM is.
    let distance = (RAM_START as i32 - (CODE as i32 + 5)).to_le_bytes();
    let jump = [0xe9, distance[0], distance[1], distance[2], distance[3]];
    let first = place(translate(&jump));
    assert!(first.block.exits[0].guarded);
    let second = place(translate(&[0x48, 0x01, 0xd9]));
    let mut machine = Machine::new();
    let addend = machine.addend();
    // SAFETY: as above.
    unsafe { first.link(0, &second, addend) };
    assert_eq!(machine.run(&first), Leave::Guard, "nothing mapped");
    assert_eq!(machine.left_through(), first.slot(0));
    machine.fill();
    assert_eq!(machine.run(&first), Leave::Unlinked);
    assert_eq!(machine.left_through(), second.slot(0));
    // SAFETY: as above.
    unsafe { first.link(0, &second, addend.wrapping_add(4096)) };
    assert_eq!(machine.run(&first), Leave::Guard, "mapped elsewhere");
    // SAFETY: as above.
    unsafe { first.link(0, &second, addend) };
    machine.forbid_execution(RAM_START);
    assert_eq!(machine.run(&first), Leave::Guard, "no code any more");
}

#[test]
fn indirect_jumps_go_through_the_jump_cache() {
    let first = place(translate(&[0xff, 0xe0])); // jmp rax
    let second = place(translate(&[0x48, 0x01, 0xd9]));
    let target = RAM_START + 0x40;
    let mut machine = Machine::new();
    machine.fill();
    machine.state.gpr[0] = target;
    assert_eq!(machine.run(&first), Leave::Indirect, "not there");
    assert_eq!(machine.state.rip, target);
    let good =
        JumpEntry { rip: target, code: second.code(), addend: machine.addend(), mode: mode().0.into() };
    *machine.jump_entry(target) = good;
    assert_eq!(machine.run(&first), Leave::Unlinked);
    assert_eq!(machine.left_through(), second.slot(0));
    for bad in [
        JumpEntry { rip: target + 1, ..good },
        JumpEntry { mode: good.mode ^ 1, ..good },
        JumpEntry { addend: good.addend.wrapping_add(4096), ..good },
    ] {
        *machine.jump_entry(target) = bad;
        assert_eq!(machine.run(&first), Leave::Indirect, "{bad:x?}");
    }
    machine.state.gpr[0] = 1 << 50;
    machine.state.instructions = 0;
    assert_eq!(machine.run(&first), Leave::Step, "not canonical: the interpreter raises #GP at the jump");
    assert_eq!((machine.state.rip, machine.state.instructions), (CODE, 0));
}

#[test]
fn division_errors_are_left_to_the_interpreter() {
    // div rbx; idiv ebx
    for (bytes, rax, rdx, rbx, fits) in [
        (&[0x48u8, 0xf7, 0xf3][..], 100, 0, 7, true),
        (&[0x48, 0xf7, 0xf3], 100, 0, 0, false),
        (&[0x48, 0xf7, 0xf3], 0, 1, 2, true),
        (&[0x48, 0xf7, 0xf3], 0, 2, 2, false),
        (&[0xf7, 0xfb], 0x8000_0000, 0xffff_ffff, 0xffff_ffff, false),
        (&[0xf7, 0xfb], 0, 0x8000_0000, 0xffff_ffff, false),
        (&[0x48, 0xf7, 0xfb], 1 << 63, u64::MAX, u64::MAX, false),
        (&[0x48, 0xf7, 0xfb], 0xffff_ffff_ffff_fff9, u64::MAX, 2, true),
        (&[0x48, 0xf7, 0xfb], 0, 1 << 63, u64::MAX, false),
    ] {
        let placed = place(translate(bytes));
        let mut machine = Machine::new();
        (machine.state.gpr[0], machine.state.gpr[2], machine.state.gpr[3]) = (rax, rdx, rbx);
        let leave = machine.run(&placed);
        assert_eq!(
            leave,
            if fits { Leave::Unlinked } else { Leave::Step },
            "{bytes:x?} {rdx:x}:{rax:x} {rbx:x}"
        );
        if !fits {
            assert_eq!((machine.state.gpr[0], machine.state.gpr[2]), (rax, rdx));
        }
    }
}

#[test]
fn lazy_flags_are_settled_before_they_are_looked_at() {
    // adc rax, 0; stc (only CF, so the words of the others must be there)
    let placed = place(translate(&[0x48, 0x83, 0xd0, 0x00]));
    let mut machine = Machine::new();
    machine.state.lazy_flags = LazyFlags { kind: Form::Sub.kind(Width::Byte), a: 1, b: 2, c: 0 };
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.state.gpr[0], 1, "1 - 2 borrows");

    let placed = place(translate(&[0xf9]));
    machine.state.lazy_flags = LazyFlags { kind: Form::Sub.kind(Width::Dword), a: 2, b: 2, c: 0 };
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.state.flags.to_bits(), flags::CF | flags::ZF | flags::PF);
}

#[test]
fn overflow_of_a_step_comes_in_without_being_settled() {
    // seto al
    let placed = place(translate(&[0x0f, 0x90, 0xc0]));
    for width in [Width::Byte, Width::Word, Width::Dword, Width::Qword] {
        let lowest = 1 << (width.bits() - 1);
        for (form, overflows) in [(Form::Increment, lowest), (Form::Decrement, lowest - 1)] {
            for a in [0, 1, lowest - 2, lowest - 1, lowest, lowest + 1, u64::MAX >> (64 - width.bits())] {
                // What stands above the operand does not count.
                for above in [0, !u64::MAX.unbounded_shr(64 - width.bits())] {
                    let mut machine = Machine::new();
                    let lazy = LazyFlags { kind: form.kind(width), a: a | above, b: 0, c: 0 };
                    machine.state.lazy_flags = lazy;
                    assert_eq!(machine.run(&placed), Leave::Unlinked);
                    assert_eq!(machine.state.gpr[0] & 0xff, u64::from(a == overflows), "{lazy:x?}");
                    let settled = lazy.settle().expect("it is lazy").to_bits() & flags::OF != 0;
                    assert_eq!(settled, a == overflows, "{lazy:x?}");
                }
            }
        }
    }
}

#[test]
fn flags_that_one_instruction_sets_are_left_lazy() {
    for (bytes, kind, bits) in [
        (
            &[0x48, 0x39, 0xd8][..],
            Form::Sub.kind(Width::Qword),
            flags::CF | flags::SF | flags::PF | flags::AF,
        ),
        (&[0x84, 0xdb], Form::Logic.kind(Width::Byte), 0),
        // add eax, ebx; inc eax
        (&[0x01, 0xd8, 0xff, 0xc0], Form::Increment.kind(Width::Dword), 0),
        // add eax, ebx; stc: no form says it
        (&[0x01, 0xd8, 0xf9], LazyFlags::SETTLED, flags::CF),
    ] {
        let placed = place(translate(bytes));
        let mut machine = Machine::new();
        machine.state.gpr[3] = 1;
        // SAFETY: `Machine` has all that the state points to.
        let leave = unsafe { placed.run(&mut machine.state) };
        assert_eq!(leave, Leave::Unlinked);
        assert_eq!(machine.state.lazy_flags.kind, kind, "{bytes:x?}");
        machine.state.settle_flags();
        assert_eq!(machine.state.flags.to_bits(), bits, "{bytes:x?}");
    }
}

#[test]
fn floating_point_flags_outlive_their_values() {
    const PRECISION: u32 = 1 << 5;
    // divsd xmm0, xmm1; xorps xmm0, xmm0
    let placed = place(translate(&[0xf2, 0x0f, 0x5e, 0xc1, 0x0f, 0x57, 0xc0]));
    // cvtsd2si rax, xmm0; mov rax, rbx
    let converted = place(translate(&[0xf2, 0x48, 0x0f, 0x2d, 0xc0, 0x48, 0x89, 0xd8]));
    for placed in [placed, converted] {
        let mut machine = Machine::new();
        (machine.state.xmm[0], machine.state.xmm[1]) = (0.5_f64.to_bits().into(), 3.0_f64.to_bits().into());
        assert_eq!(machine.run(&placed), Leave::Unlinked);
        assert_eq!(machine.state.mxcsr, 0x1f80 | PRECISION);
        assert_eq!(machine.state.mxcsr_loaded, 0);
    }
}

#[test]
fn the_host_gets_its_own_mxcsr_back() {
    // addsd xmm0, xmm1; mov rax, [rbx], which is no RAM: the frame is abandoned
    let placed = place(translate(&[0xf2, 0x0f, 0x58, 0xc1, 0x48, 0x8b, 0x03]));
    let mut machine = Machine::new();
    machine.state.mxcsr = 0xff80;
    assert_eq!(machine.run(&placed), Leave::Step);
    let mut host = 0_u32;
    // SAFETY: stores MXCSR into a local.
    unsafe { core::arch::asm!("stmxcsr dword ptr [{}]", in(reg) &raw mut host, options(nostack)) };
    assert_eq!(host & !0x3f, 0x1f80);
    assert_eq!((machine.state.mxcsr, machine.state.mxcsr_loaded), (0xff80, 0));
}

/// An entry that one access looked up serves others near it, but only in its page.
#[test]
fn accesses_with_one_base_are_looked_up_by_page() {
    // mov rax, [rbx]; mov rcx, [rbx + 8]; mov rdx, [rbx - 16]; mov rsi, [rbx - 4]; mov [rbx + 20], rbp
    let bytes = [
        &[0x48, 0x8b, 0x03][..],
        &[0x48, 0x8b, 0x4b, 0x08],
        &[0x48, 0x8b, 0x53, 0xf0],
        &[0x48, 0x8b, 0x73, 0xfc],
        &[0x48, 0x89, 0x6b, 0x14],
    ];
    let placed = place(translate(&bytes.concat()));
    let (first, second) = (RAM_START + 0x3000, RAM_START + 0x4000);
    for base in second - 48..second + 48 {
        let mut machine = Machine::new();
        for (n, word) in machine.ram.bytes.chunks_exact_mut(4).enumerate() {
            word.copy_from_slice(&(n as u32).wrapping_mul(0x9e37_79b9).to_le_bytes());
        }
        machine.fill();
        machine.exchange(first, second);
        // Where the bytes of an access are: the slow path, which is for those that cross, knows nothing of the exchange.
        let place_of = |address: u64| {
            let crosses = (address ^ (address + 7)) & !0xfff != 0;
            let exchanged = if address & !0xfff == first { address + 0x1000 } else { address - 0x1000 };
            (if crosses { address } else { exchanged } - RAM_START) as usize
        };
        let [rax, rcx, rdx, rsi] = [0, 8, -16, -4].map(|distance| {
            let at = place_of(base.wrapping_add_signed(distance));
            u64::from_le_bytes(machine.ram.bytes[at..at + 8].try_into().unwrap())
        });
        (machine.state.gpr[3], machine.state.gpr[5]) = (base, 0x1122_3344_5566_7788);
        assert_eq!(machine.run(&placed), Leave::Unlinked);
        let gpr = &machine.state.gpr;
        assert_eq!([gpr[0], gpr[1], gpr[2], gpr[6]], [rax, rcx, rdx, rsi], "{base:#x}");
        let at = place_of(base + 20);
        assert_eq!(machine.ram.bytes[at..at + 8], 0x1122_3344_5566_7788_u64.to_le_bytes(), "{base:#x}");
    }
}

#[test]
fn a_page_that_can_be_read_is_not_written_for_it() {
    // mov rax, [rbx]; mov [rbx + 8], rax
    let placed = place(translate(&[0x48, 0x8b, 0x03, 0x48, 0x89, 0x43, 0x08]));
    let mut machine = Machine::new();
    machine.fill();
    machine.state.gpr[3] = READ_ONLY;
    assert_eq!(machine.run(&placed), Leave::Step);
    assert_eq!(machine.state.instructions, 1);
}
