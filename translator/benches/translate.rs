//! What a translation costs: the goldens' guest blocks, by stage and by register allocator.
//!
//! `cargo bench -p transvisor-translator`

use std::{fs, path::Path};

use criterion::{Criterion, criterion_group, criterion_main};
use semantics::decode::{GuestBlock, decode_block};
use transvisor_translator::{Options, RegisterAllocator, Translator};
use x86::{CpuState, Mode, Segment, control, segment::attribute};

fn mode() -> Mode {
    let mut state = CpuState::new();
    state.cr0 |= control::cr0::PE;
    state.cr4 |= control::cr4::OSFXSR;
    state.efer |= control::efer::LMA;
    let attributes = attribute::PRESENT | attribute::CODE | attribute::LONG | attribute::NON_SYSTEM;
    state.segments[1] = Segment { base: 0, limit: u32::MAX, selector: 8, attributes };
    state.update_mode();
    state.mode
}

/// The 64-bit blocks of `tests/lift`, without those for another mode.
fn blocks() -> Vec<GuestBlock> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/lift");
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let mut blocks = Vec::new();
    for file in files {
        let text = fs::read_to_string(file).unwrap();
        let head = text.split_once("----\n").map_or(text.as_str(), |(head, _)| head);
        if head.contains("mode 32") {
            continue;
        }
        let bytes: Vec<u8> = head
            .lines()
            .filter(|line| !line.starts_with('#') && !line.starts_with("rip "))
            .flat_map(str::split_whitespace)
            .map(|digits| u8::from_str_radix(digits, 16).unwrap())
            .collect();
        blocks.push(decode_block(&bytes, 0xffff_ffff_8100_0100, mode()));
    }
    blocks
}

fn translate(c: &mut Criterion) {
    let blocks = blocks();
    let instructions: usize = blocks.iter().map(|block| block.insns.len()).sum();
    let mut group = c.benchmark_group(format!("{} blocks, {instructions} instructions", blocks.len()));
    let plain = Options { verify: false, ..Options::default() };
    for (name, options) in [
        ("default", plain),
        ("optimized", Options { optimize: true, ..plain }),
        ("single pass", Options { registers: RegisterAllocator::SinglePass, ..plain }),
    ] {
        let mut translator = Translator::new(options).unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                blocks.iter().map(|block| translator.translate(block).unwrap().code.len()).sum::<usize>()
            });
        });
    }
    group.finish();
}

criterion_group!(benches, translate);
criterion_main!(benches);
