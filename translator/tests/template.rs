//! Blocks of the template translator, run: what is theirs (flags in the host's, registers at home, fills and retries,
//! counters), and how they and Cranelift's blocks run into each other.

mod common;

use common::{Machine, Placed, RAM_SIZE, RAM_START, READ_ONLY, place, place_counting};
use semantics::decode::{GuestBlock, decode_block};
use transvisor_translator::{
    CodeBlock, Options, TemplateTranslator, TranslateError, Translator,
    abi::{JumpEntry, Leave},
    carried,
};
use x86::{CpuState, Flags, LazyFlags, Mode, flags, state::NO_SHADOW};

const CODE: u64 = 0x40_1000;

fn mode() -> Mode {
    Machine::new().state.mode
}

fn guest_block(bytes: &[u8]) -> GuestBlock {
    decode_block(bytes, CODE, mode())
}

fn template(bytes: &[u8]) -> CodeBlock {
    TemplateTranslator::new().translate(&guest_block(bytes), None).unwrap().clone()
}

fn cranelift(bytes: &[u8]) -> CodeBlock {
    Translator::new(Options { verify: true, ..Options::default() })
        .unwrap()
        .translate(&guest_block(bytes))
        .unwrap()
}

/// RFLAGS' status bits as compiled code left them.
fn status(state: &CpuState) -> u64 {
    state.lazy_flags.settle().unwrap_or(state.flags).to_bits()
}

#[test]
fn registers_flags_and_count() {
    // add rax, rbx; add ecx, edx; cmp al, cl
    let placed = place(template(&[0x48, 0x01, 0xd8, 0x01, 0xd1, 0x38, 0xc8]));
    let mut machine = Machine::new();
    machine.state.gpr[..4].copy_from_slice(&[u64::MAX, 0xffff_ffff_0000_0003, u64::MAX, 2]);
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!((machine.left_through(), placed.block.exits[0].target), (placed.slot(0), CODE + 7));
    assert_eq!((machine.state.gpr[0], machine.state.gpr[1], machine.state.instructions), (1, 2, 3));
    assert_eq!(status(&machine.state), flags::CF | flags::SF | flags::AF | flags::PF);
}

#[test]
fn the_stack_pointer_and_r15_live_elsewhere() {
    // mov r15, rsp; lea rsp, [r15 + rax*2 + 8]; add rsp, r15; xchg r15, rsp
    let bytes = [0x49, 0x89, 0xe7, 0x49, 0x8d, 0x64, 0x47, 0x08, 0x4c, 0x01, 0xfc, 0x49, 0x87, 0xe7];
    let placed = place(template(&bytes));
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[4]) = (3, 0x1000);
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!((machine.state.gpr[4], machine.state.gpr[15]), (0x1000, 0x200e));
}

#[test]
fn parts_of_registers_get_addresses() {
    // lea cx, [rbx + rax*2 + 8]; lea dx, [0x12345678]
    let bytes = [0x66, 0x8d, 0x4c, 0x43, 0x08, 0x66, 0x8d, 0x14, 0x25, 0x78, 0x56, 0x34, 0x12];
    let placed = place(template(&bytes));
    let mut machine = Machine::new();
    machine.state.gpr[..4].copy_from_slice(&[0x10, u64::MAX, u64::MAX, 0xf_0003]);
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!(machine.state.gpr[1..3], [!0xffff | 0x2b, !0xffff | 0x5678]);
}

#[test]
fn more_registers_than_fit_at_once() {
    // add rax, rcx; add rdx, rbx; … all sixteen, each pair; then add rax, r15.
    let mut bytes = Vec::new();
    for pair in 0..8u8 {
        let (to, from) = (pair * 2, pair * 2 + 1);
        bytes.extend([0x48 | (from >> 3) << 2 | to >> 3, 0x01, 0xc0 | (from & 7) << 3 | to & 7]);
    }
    bytes.extend([0x4c, 0x01, 0xf8]);
    let placed = place(template(&bytes));
    let mut machine = Machine::new();
    for (n, register) in machine.state.gpr.iter_mut().enumerate() {
        *register = 1 << n;
    }
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    for n in 0..16 {
        let expected = if n == 0 {
            3 + (1 << 15)
        } else if n % 2 == 0 {
            3 << n
        } else {
            1 << n
        };
        assert_eq!(machine.state.gpr[n], expected, "register {n}");
    }
    assert_eq!(machine.state.instructions, 9);
}

#[test]
fn a_miss_fills_and_looks_again() {
    // add rax, [rbx]; add [rbx + 8], rax; add [rbx + 12], al
    let placed = place(template(&[0x48, 0x03, 0x03, 0x48, 0x01, 0x43, 0x08, 0x00, 0x43, 0x0c]));
    for filled in [true, false] {
        let mut machine = Machine::new();
        if filled {
            machine.fill();
        }
        machine.ram.bytes[0x123..0x12b].copy_from_slice(&5u64.to_le_bytes());
        machine.state.gpr[3] = RAM_START + 0x123;
        machine.state.gpr[0] = 7;
        assert_eq!(machine.run(&placed), Leave::Unlinked);
        assert_eq!(machine.state.gpr[0], 12);
        assert_eq!(machine.ram.bytes[0x12b..0x133], [12, 0, 0, 0, 12, 0, 0, 0]);
        assert_eq!(machine.ram.slow, if filled { 0 } else { 2 }, "for reading, then for writing");
    }
}

/// The page of an access is known afterwards, but a larger one at the same place, or one near it, may go beyond its end.
#[test]
fn what_goes_beyond_a_known_page_is_the_interpreter_s() {
    let by = |base: &str, rest: [u8; 2]| match base {
        "rsp" => vec![0x8a, 0x04, 0x24, 0x48, rest[0], 0x5c, 0x24, rest[1]],
        _ => vec![0x40, 0x8a, 0x06, 0x48, rest[0], 0x5e, rest[1], 0x90],
    };
    // mov al, [base]; then mov rbx, [base], mov rbx, [base + 1], mov [base], rbx or mov [base - 8], rbx.
    for (base, rest, crosses) in [
        ("rsp", [0x8b, 0], true),
        ("rsp", [0x8b, 1], true),
        ("rsp", [0x89, 0], true),
        ("rsp", [0x89, 0xf8], false),
        ("rsi", [0x8b, 0], true),
        ("rsi", [0x8b, 1], true),
        ("rsi", [0x89, 0], true),
        ("rsi", [0x89, 0xf8], false),
    ] {
        let placed = place(template(&by(base, rest)));
        let mut machine = Machine::new();
        machine.fill();
        (machine.state.gpr[4], machine.state.gpr[6]) = (RAM_START + 0xffe, RAM_START + 0xffe);
        let expected = if crosses { (Leave::Step, CODE + 3) } else { (Leave::Unlinked, CODE + 8) };
        let leave = machine.run(&placed);
        let rip = if leave == Leave::Step { machine.state.rip } else { placed.block.exits[0].target };
        assert_eq!((leave, rip), expected, "{base} {rest:x?}");
    }
}

#[test]
fn a_fault_leaves_the_state_of_the_instruction_s_start() {
    // add rax, rbx; add [rcx], rax; add rax, rax
    let placed = place(template(&[0x48, 0x01, 0xd8, 0x48, 0x01, 0x01, 0x48, 0x01, 0xc0]));
    let crossing = RAM_START + 0xffc;
    for address in [0, READ_ONLY, READ_ONLY - 4, RAM_START + RAM_SIZE as u64 - 1, crossing] {
        let mut machine = Machine::new();
        machine.fill();
        (machine.state.gpr[0], machine.state.gpr[3], machine.state.gpr[1]) = (1, u64::MAX, address);
        assert_eq!(machine.run(&placed), Leave::Step);
        assert_eq!((machine.state.rip, machine.state.gpr[0], machine.state.instructions), (CODE + 3, 0, 1));
        assert_eq!(status(&machine.state), flags::CF | flags::ZF | flags::PF | flags::AF);
        assert!(machine.ram.bytes.iter().all(|&byte| byte == 0));
    }
}

#[test]
fn atomic_operands_out_of_alignment_are_left() {
    // lock xadd [rbx], rax
    let placed = place(template(&[0xf0, 0x48, 0x0f, 0xc1, 0x03]));
    for (offset, leave) in [(0x100, Leave::Unlinked), (0x104, Leave::Step)] {
        let mut machine = Machine::new();
        machine.fill();
        (machine.state.gpr[0], machine.state.gpr[3]) = (5, RAM_START + offset);
        assert_eq!(machine.run(&placed), leave);
        assert_eq!(machine.ram.bytes[offset as usize], if leave == Leave::Step { 0 } else { 5 });
    }
}

#[test]
fn flags_cross_blocks_of_both_kinds() {
    // cmp rax, rbx | setb cl; sete dl
    let (sets, reads): (&[u8], &[u8]) = (&[0x48, 0x39, 0xd8], &[0x0f, 0x92, 0xc1, 0x0f, 0x94, 0xc2]);
    let blocks: [fn(&[u8]) -> CodeBlock; 2] = [template, cranelift];
    for first in blocks {
        for second in blocks {
            let (first, second) = (place(first(sets)), place(second(reads)));
            // SAFETY: the second block stays alive.
            unsafe { first.link(0, &second, 0) };
            for (a, b) in [(1, 2), (2, 2), (3, 2)] {
                let mut machine = Machine::new();
                (machine.state.gpr[0], machine.state.gpr[3]) = (a, b);
                assert_eq!(machine.run(&first), Leave::Unlinked);
                assert_eq!(machine.left_through(), second.slot(0));
                let seen = (machine.state.gpr[1] & 0xff, machine.state.gpr[2] & 0xff);
                assert_eq!(seen, (u64::from(a < b), u64::from(a == b)));
            }
        }
    }
}

#[test]
fn incoming_flags_in_every_form() {
    let placed = place(template(&[0x0f, 0x92, 0xc1, 0x0f, 0x90, 0xc2])); // setb cl; seto dl
    for bits in [0, flags::CF, flags::OF, flags::CF | flags::OF] {
        for lazy in [LazyFlags::default(), LazyFlags::packed(Flags::from_bits(bits))] {
            let mut machine = Machine::new();
            machine.state.lazy_flags = lazy;
            let words = if lazy.kind == LazyFlags::SETTLED { bits } else { !bits };
            machine.state.flags = Flags::from_bits(words);
            assert_eq!(machine.run(&placed), Leave::Unlinked);
            let expected = (u64::from(bits & flags::CF != 0), u64::from(bits & flags::OF != 0));
            assert_eq!((machine.state.gpr[1] & 0xff, machine.state.gpr[2] & 0xff), expected);
            assert_eq!(status(&machine.state), bits);
        }
    }
}

#[test]
fn a_request_is_seen_before_anything_is_done() {
    // add rax, rbx; and what leads to where it comes from or before, or to an unknown place, or repeats itself.
    let ends: [&[u8]; 9] = [
        &[0xeb, 0xfb],
        &[0xeb, 0xfe],
        &[0x75, 0xfb],
        &[0xe8, 0xf0, 0xff, 0xff, 0xff],
        &[0xe3, 0xfb],
        &[0xff, 0xe1],
        &[0xff, 0xd1],
        &[0xc3],
        &[0xf3, 0xaa, 0xeb, 0],
    ];
    for end in ends {
        let placed = place(template(&[&[0x48, 0x01, 0xd8], end].concat()));
        let mut machine = Machine::new();
        machine.state.exit_request.store(1, std::sync::atomic::Ordering::Relaxed);
        machine.state.gpr[3] = 1;
        assert_eq!(machine.run(&placed), Leave::Poll, "{end:x?}");
        assert_eq!((machine.state.rip, machine.state.gpr[0], machine.state.instructions), (CODE, 0, 0));
    }
    // From others control can only go forward.
    for end in [&[] as &[u8], &[0xeb, 0], &[0x75, 0x10], &[0xe3, 0x10]] {
        let placed = place(template(&[&[0x48, 0x01, 0xd8], end].concat()));
        let mut machine = Machine::new();
        machine.state.exit_request.store(1, std::sync::atomic::Ordering::Relaxed);
        assert_eq!(machine.run(&placed), Leave::Unlinked, "{end:x?}");
    }
}

#[test]
fn a_counter_that_runs_out_ends_the_runs() {
    let block =
        TemplateTranslator::counting().translate(&guest_block(&[0x48, 0x01, 0xd8]), None).unwrap().clone();
    let placed: Placed = place_counting(block, 2);
    let mut machine = Machine::new();
    machine.state.gpr[3] = 1;
    let leaves: Vec<_> = (0..4).map(|_| machine.run(&placed)).collect();
    assert_eq!(leaves, [Leave::Unlinked, Leave::Unlinked, Leave::Hot, Leave::Hot]);
    assert_eq!((machine.state.rip, machine.state.gpr[0], machine.state.instructions), (CODE, 2, 2));
}

#[test]
fn what_has_no_template_ends_the_block() {
    // add rax, rbx; fninit
    let placed = place(template(&[0x48, 0x01, 0xd8, 0xdb, 0xe3]));
    let mut machine = Machine::new();
    machine.state.gpr[3] = 1;
    assert_eq!(machine.run(&placed), Leave::Unlinked, "what follows may be Cranelift's");
    assert_eq!((machine.left_through(), placed.block.exits[0].target), (placed.slot(0), CODE + 3));
    assert_eq!((machine.state.gpr[0], machine.state.instructions), (1, 1));
    // add rax, rbx; hlt, which is a call of the monitor only where nothing is counted
    let mut counting = TemplateTranslator::new().instrumented();
    let placed = place(counting.translate(&guest_block(&[0x48, 0x01, 0xd8, 0xf4]), None).unwrap().clone());
    let mut machine = Machine::new();
    machine.state.gpr[3] = 1;
    assert_eq!(machine.run(&placed), Leave::Step);
    assert_eq!((machine.state.rip, machine.state.gpr[0], machine.state.instructions), (CODE + 3, 1, 1));
    let mut translator = TemplateTranslator::new();
    let alone = translator.translate(&guest_block(&[0xdb, 0xe3]), None);
    assert!(matches!(alone, Err(TranslateError::FirstDeclined(_))));
    translator.translate(&guest_block(&[0x48, 0x01, 0xd8]), None).unwrap();
}

#[test]
fn a_slot_to_another_page_is_guarded() {
    let distance = (RAM_START as i32 - (CODE as i32 + 5)).to_le_bytes();
    let first = place(template(&[0xe9, distance[0], distance[1], distance[2], distance[3]]));
    assert!(first.block.exits[0].guarded);
    let second = place(cranelift(&[0x48, 0x01, 0xd9]));
    let mut machine = Machine::new();
    let addend = machine.addend();
    // SAFETY: the second block stays alive.
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
fn indirect_transfers_go_through_the_jump_cache() {
    let target = RAM_START + 0x40;
    let stack = RAM_START + 0x2000;
    // jmp rax; call rax; ret
    for bytes in [&[0xff, 0xe0][..], &[0xff, 0xd0], &[0xc3]] {
        let first = place(template(bytes));
        let second = place(cranelift(&[0x48, 0x01, 0xd9]));
        let fresh = |target: u64| {
            let mut machine = Machine::new();
            machine.fill();
            (machine.state.gpr[0], machine.state.gpr[4]) = (target, stack);
            machine.ram.bytes[0x2000..0x2008].copy_from_slice(&target.to_le_bytes());
            machine
        };
        let top = match bytes[0] {
            0xc3 => stack + 8,
            _ if bytes[1] == 0xd0 => stack - 8,
            _ => stack,
        };
        let mut machine = fresh(target);
        assert_eq!(machine.run(&first), Leave::Indirect, "not there");
        assert_eq!((machine.state.rip, machine.state.gpr[4]), (target, top));
        let good = JumpEntry {
            rip: target,
            code: second.code() + carried::ENTRY,
            addend: machine.addend(),
            mode: mode().0.into(),
        };
        let mut machine = fresh(target);
        let good = JumpEntry { addend: machine.addend(), ..good };
        *machine.jump_entry(target) = good;
        assert_eq!(machine.run(&first), Leave::Unlinked);
        assert_eq!((machine.left_through(), machine.state.gpr[4]), (second.slot(0), top));
        for bad in [
            JumpEntry { rip: target + 1, ..good },
            JumpEntry { mode: good.mode ^ 1, ..good },
            JumpEntry { addend: good.addend.wrapping_add(4096), ..good },
        ] {
            *machine.jump_entry(target) = bad;
            (machine.state.gpr[0], machine.state.gpr[4]) = (target, stack);
            assert_eq!(machine.run(&first), Leave::Indirect, "{bad:x?}");
        }
        let mut machine = fresh(1 << 50);
        assert_eq!(machine.run(&first), Leave::Step, "not canonical: the interpreter raises #GP");
        assert_eq!((machine.state.rip, machine.state.gpr[4], machine.state.instructions), (CODE, stack, 0));
        assert_eq!(machine.ram.bytes[0x1ff8..0x2000], [0; 8], "nothing is pushed");
    }
}

#[test]
fn divisions_that_might_fault_are_left() {
    // div rbx; idiv ebx; idiv rbx
    for (bytes, rax, rdx, rbx, done) in [
        (&[0x48u8, 0xf7, 0xf3][..], 100, 0, 7, true),
        (&[0x48, 0xf7, 0xf3], 100, 0, 0, false),
        (&[0x48, 0xf7, 0xf3], 0, 1, 2, true),
        (&[0x48, 0xf7, 0xf3], 0, 2, 2, false),
        (&[0xf7, 0xfb], 0x8000_0000, 0xffff_ffff, 0xffff_ffff, false),
        (&[0xf7, 0xfb], 0xffff_fff9, 0xffff_ffff, 2, true),
        (&[0x48, 0xf7, 0xfb], 1 << 63, u64::MAX, u64::MAX, false),
        (&[0x48, 0xf7, 0xfb], 5, 0, 0, false),
        (&[0x48, 0xf7, 0xfb], 0xffff_ffff_ffff_fff9, u64::MAX, 2, true),
    ] {
        let placed = place(template(bytes));
        let mut machine = Machine::new();
        (machine.state.gpr[0], machine.state.gpr[2], machine.state.gpr[3]) = (rax, rdx, rbx);
        let leave = machine.run(&placed);
        assert_eq!(
            leave,
            if done { Leave::Unlinked } else { Leave::Step },
            "{bytes:x?} {rdx:x}:{rax:x} {rbx:x}"
        );
        if !done {
            assert_eq!((machine.state.gpr[0], machine.state.gpr[2]), (rax, rdx));
        }
    }
}

#[test]
fn the_interrupt_flag_is_changed_in_place() {
    // sti | cli
    let (sti, cli) = (place(template(&[0xfb])), place(template(&[0xfa])));
    for (set_before, shadow) in [(false, 41), (true, NO_SHADOW)] {
        let mut machine = Machine::new();
        machine.state.instructions = 40;
        machine.state.set_rflags(if set_before { flags::IF } else { 0 } | flags::ZF);
        assert_eq!(machine.run(&sti), Leave::Unlinked);
        assert_eq!((machine.state.shadow_from, machine.state.instructions), (shadow, 41));
        assert_eq!(machine.state.rflags & flags::IF, flags::IF);
        assert_eq!(machine.run(&cli), Leave::Unlinked);
        assert_eq!((machine.state.rflags & flags::IF, status(&machine.state)), (0, flags::ZF));
    }
    let mut machine = Machine::new();
    machine.state.event_waiting = 1;
    machine.state.set_rflags(0);
    assert_eq!(machine.run(&sti), Leave::Step, "an event waits");
    assert_eq!(
        (machine.state.rip, machine.state.rflags & flags::IF, machine.state.instructions),
        (CODE, 0, 0)
    );
}

#[test]
fn flags_are_pushed_and_popped() {
    // add al, al; pushf | popf
    let (pushes, pops) = (place(template(&[0x00, 0xc0, 0x9c])), place(template(&[0x9d])));
    let top = RAM_START + 0x100;
    let image = flags::FIXED_ONE | flags::IF | flags::DF | flags::CF | flags::OF | flags::ZF | flags::PF;
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[4]) = (0x80, top);
    machine.state.set_rflags(flags::IF | flags::DF | flags::RF);
    assert_eq!(machine.run(&pushes), Leave::Unlinked);
    assert_eq!(machine.state.gpr[4], top - 8);
    assert_eq!(machine.ram.bytes[0xf8..0x100], image.to_le_bytes());
    machine.state.set_rflags(0);
    assert_eq!(machine.run(&pops), Leave::Unlinked);
    assert_eq!((machine.state.gpr[4], status(&machine.state)), (top, image & flags::STATUS));
    assert_eq!(machine.state.rflags & !flags::STATUS, image & !flags::STATUS);
    // AC wants another view of the TLB, TF traps, and an event that waits is due.
    for (image, waiting) in [(flags::AC, 0), (flags::TF, 0), (flags::IF, 1)] {
        let mut machine = Machine::new();
        machine.ram.bytes[0x100..0x108].copy_from_slice(&image.to_le_bytes());
        (machine.state.gpr[4], machine.state.event_waiting) = (top, waiting);
        machine.state.set_rflags(0);
        assert_eq!(machine.run(&pops), Leave::Step);
        assert_eq!((machine.state.gpr[4], machine.state.rflags()), (top, flags::FIXED_ONE));
    }
}

#[test]
fn repetitions_come_back_by_a_slot() {
    // rep stosb; add rax, rbx. The runtime's part does nothing here.
    let placed = place(template(&[0xf3, 0xaa, 0x48, 0x01, 0xd8]));
    let mut machine = Machine::new();
    (machine.state.gpr[0], machine.state.gpr[3]) = (7, 1);
    (machine.state.gpr[1], machine.state.gpr[7]) = (2, RAM_START + 0x10);
    let left = |machine: &Machine| {
        let slot = (0..2).find(|&n| machine.left_through() == placed.slot(n)).unwrap();
        placed.block.exits[slot].target
    };
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!((left(&machine), machine.state.instructions), (CODE, 1), "one element is one instruction");
    assert_eq!((machine.state.gpr[1], machine.state.gpr[7]), (1, RAM_START + 0x11));
    assert_eq!(machine.run(&placed), Leave::Unlinked);
    assert_eq!((left(&machine), machine.state.instructions), (CODE + 5, 3));
    assert_eq!((machine.state.gpr[0], machine.state.gpr[1]), (8, 0));
    assert_eq!(machine.ram.bytes[0xf..0x13], [0, 7, 7, 0]);
}

#[test]
fn the_guest_s_mxcsr_is_loaded_for_floats_only() {
    // divsd xmm0, xmm1; ucomisd xmm0, xmm1
    let placed = place(template(&[0xf2, 0x0f, 0x5e, 0xc1, 0x66, 0x0f, 0x2e, 0xc1]));
    // Towards zero, and to the nearest: 1 / 3 differs in the last bit of 2 / 3.
    for (mxcsr, last) in [(0x7f80, 5), (0x1f80, 5), (0x5f80, 6)] {
        let mut machine = Machine::new();
        machine.state.mxcsr = mxcsr;
        machine.state.xmm[0] = u128::from(2f64.to_bits());
        machine.state.xmm[1] = u128::from(3f64.to_bits());
        assert_eq!(machine.run(&placed), Leave::Unlinked);
        assert_eq!(machine.state.xmm[0] as u64, 0x3fe5_5555_5555_5550 | last, "{mxcsr:x}");
        assert_eq!((machine.state.mxcsr, machine.state.mxcsr_loaded), (mxcsr | 0x20, 0), "inexact");
        assert_eq!(status(&machine.state), flags::CF);
    }
    let mut state = Machine::new().state;
    state.mxcsr = 0x1f00;
    state.update_mode();
    let block = decode_block(&[0xf2, 0x0f, 0x5e, 0xc1], CODE, state.mode);
    let mut translator = TemplateTranslator::new();
    assert!(matches!(translator.translate(&block, None), Err(TranslateError::FirstDeclined(_))));
}
