//! Instrumented code is the other code with counting in it, and the other code has nothing of it.

mod common;

use common::long_mode_state;
use iced_x86::{Decoder, DecoderOptions, Formatter, Instruction, Mnemonic, NasmFormatter};
use semantics::decode::{GuestBlock, decode_block};
use transvisor_translator::{
    CodeBlock, HostCode, Options, RelocationTarget, TemplateTranslator, Translator,
    region::{Region, RegionBlock},
};

const RIP: u64 = 0xffff_ffff_8100_0100;

/// Guest blocks with every way of leaving, every kind of access, and calls.
const BLOCKS: [&[u8]; 9] = [
    // mov rax, [rbx]; add [rcx + 8], rax; jne far back: within the page a branch is an exit itself, unless the way is counted
    &[0x48, 0x8b, 0x03, 0x48, 0x01, 0x41, 0x08, 0x0f, 0x85, 0, 0xe0, 0xff, 0xff],
    // push rbp; mov rbp, rsp; call far away
    &[0x55, 0x48, 0x89, 0xe5, 0xe8, 0, 0x20, 0, 0],
    // pop rbp; ret
    &[0x5d, 0xc3],
    // jmp [rax]
    &[0xff, 0x20],
    // div rcx; idiv qword [rdx]; ret
    &[0x48, 0xf7, 0xf1, 0x48, 0xf7, 0x3a, 0xc3],
    // lock xadd [rdi], eax; cmpxchg [rsi], ecx; jmp next
    &[0xf0, 0x0f, 0xc1, 0x07, 0x0f, 0xb1, 0x0e, 0xeb, 0],
    // rep movsb; ret
    &[0xf3, 0xa4, 0xc3],
    // inc rax; cli
    &[0x48, 0xff, 0xc0, 0xfa],
    // movdqu xmm0, [rax]; paddd xmm1, xmm0; fld1, which has no template
    &[0xf3, 0x0f, 0x6f, 0x00, 0x66, 0x0f, 0xfe, 0xc8, 0xd9, 0xe8],
];

fn guests() -> impl Iterator<Item = GuestBlock> {
    BLOCKS.into_iter().map(|bytes| decode_block(bytes, RIP, long_mode_state().mode))
}

fn options(instrument: bool) -> Options {
    Options { verify: true, host: HostCode::Baseline, instrument, ..Options::default() }
}

fn counters(block: &CodeBlock) -> impl Iterator<Item = u32> {
    let counters = block.relocations.iter().filter(|one| one.target == RelocationTarget::Counters);
    counters.map(|relocation| relocation.offset)
}

/// Instructions as text, without what depends on where they lie; with counting taken out.
fn without_counting(block: &CodeBlock) -> Vec<String> {
    let places: Vec<u32> = counters(block).collect();
    let mut formatter = NasmFormatter::new();
    let mut decoder = Decoder::new(64, &block.code, DecoderOptions::NONE);
    let mut kept = Vec::new();
    let mut insn = Instruction::default();
    while decoder.can_decode() {
        decoder.decode_out(&mut insn);
        if places.iter().any(|&place| u64::from(place) + 8 == insn.next_ip()) {
            // mov register, counter; add [register], …; for an execution also mov [profiled], register.
            let register = insn.op0_register();
            decoder.decode_out(&mut insn);
            assert_eq!((insn.mnemonic(), insn.memory_base()), (Mnemonic::Add, register));
            let next = block.code.get(insn.next_ip() as usize..).unwrap_or(&[]);
            let next = Decoder::new(64, next, DecoderOptions::NONE).decode();
            let profiled = core::mem::offset_of!(x86::CpuState, profiled) as u64;
            if next.mnemonic() == Mnemonic::Mov && next.memory_displacement64() == profiled {
                decoder.decode_out(&mut insn);
            }
            continue;
        }
        let mut text = String::new();
        if insn.near_branch_target() != 0 || insn.is_ip_rel_memory_operand() {
            text = format!("{:?}", insn.mnemonic());
        } else {
            formatter.format(&insn, &mut text);
        }
        kept.push(text);
    }
    kept
}

#[test]
fn templates_count_and_do_nothing_else_differently() {
    let mut plain = TemplateTranslator::counting();
    let mut counting = TemplateTranslator::counting().instrumented();
    let mut compared = 0;
    for guest in guests() {
        let (Ok(plain), Ok(counting)) = (plain.translate(&guest, None), counting.translate(&guest, None))
        else {
            continue;
        };
        assert!(plain.instrumentation.is_none() && counters(plain).next().is_none());
        assert!(counters(counting).count() >= 2);
        assert_eq!(without_counting(counting), without_counting(plain), "{guest:?}");
        compared += 1;
    }
    assert!(compared >= 5, "{compared}");
}

#[test]
fn code_is_the_same_after_an_instrumented_one() {
    let mut fresh = Translator::new(options(false)).unwrap();
    let mut counting = Translator::new(options(true)).unwrap();
    for guest in guests() {
        let Ok(before) = fresh.translate(&guest) else { continue };
        let with = counting.translate(&guest).unwrap();
        let after = fresh.translate(&guest).unwrap();
        assert_eq!((&before.code, &before.relocations), (&after.code, &after.relocations));
        assert!(before.instrumentation.is_none() && counters(&before).next().is_none());
        let profiled = core::mem::offset_of!(x86::CpuState, profiled) as u32;
        let names_it = |code: &[u8]| code.windows(4).any(|bytes| bytes == profiled.to_le_bytes());
        assert!(!names_it(&before.code) && names_it(&with.code));
    }
}

#[test]
fn every_block_of_a_region_has_its_counters_and_sources() {
    // loop: dec rcx; je out; add rax, [rdx]; jmp loop; out: ret
    let bytes = [0x48, 0xff, 0xc9, 0x74, 0x05, 0x48, 0x03, 0x02, 0xeb, 0xf6, 0xc3];
    let starts = [0usize, 5, 10];
    let blocks = starts.map(|at| {
        let guest = decode_block(&bytes[at..], RIP + at as u64, long_mode_state().mode);
        RegionBlock::new(guest, &bytes[at..], 0, None, None)
    });
    let region = Region { blocks: blocks.to_vec(), low: 0 };
    let code = Translator::new(options(true)).unwrap().translate_region(&region).unwrap();
    let all = code.instrumentation.as_deref().unwrap();
    let mut numbers: Vec<(usize, u16)> =
        all.blocks.iter().map(|block| (block.number, block.instructions)).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, [(0, 2), (1, 2), (2, 1)]);
    for source in 0..5 {
        assert!(all.sources.iter().any(|range| range.source == source), "{source} of {:?}", all.sources);
    }
    let clif = all.clif.as_deref().unwrap();
    assert!(clif.contains("@0004"), "{clif}");
    let accesses: Vec<usize> =
        all.calls.iter().filter(|call| call.callee.is_access()).map(|call| call.block).collect();
    assert_eq!(accesses, [1, 2], "the load of the loop, and that of RET: {:?}", all.calls);
}
