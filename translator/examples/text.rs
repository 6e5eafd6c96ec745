use std::time::Duration;
fn cpu() -> Duration { let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 }; unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut t) }; Duration::new(t.tv_sec as u64, t.tv_nsec as u32) }
use semantics::decode::decode_block;
use transvisor_translator::*;
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
fn main() {
    let mut args = std::env::args().skip(1);
    let file = std::fs::read(args.next().unwrap()).unwrap();
    let offset: usize = usize::from_str_radix(&args.next().unwrap(), 16).unwrap();
    let size: usize = usize::from_str_radix(&args.next().unwrap(), 16).unwrap();
    let n: usize = args.next().unwrap().parse().unwrap();
    let text = &file[offset..offset + size];
    let mut blocks = Vec::new();
    let mut at = 0usize;
    while at < size && blocks.len() < n {
        let end = (at | 0xfff) + 1;
        let b = decode_block(&text[at..end.min(size)], 0x40_0000 + at as u64, mode());
        let len: usize = b.insns.iter().map(|i| i.length as usize).sum();
        at += len.max(1);
        if b.insns.len() > 0 { blocks.push(b); }
    }
    let padded = { let mut v = text.to_vec(); v.resize(size.next_multiple_of(4096), 0); v };
    for (name, o) in [
        ("opt", Options { verify: false, ..Options::default() }),
        ("opt single", Options { verify: false, registers: RegisterAllocator::SinglePass, ..Options::default() }),
        ("none", Options { verify: false, optimize: false, ..Options::default() }),
        ("none single", Options { verify: false, optimize: false, registers: RegisterAllocator::SinglePass, ..Options::default() }),
    ] {
        for live in [false, true] {
        let mut t = Translator::new(o).unwrap();
        let start = cpu();
        let (mut insns, mut bytes, mut ok, mut bad) = (0usize, 0usize, 0usize, 0usize);
        for b in &blocks {
            let page = ((b.rip - 0x40_0000) & !0xfff) as usize;
            let l = PageLiveness::new(b.mode, b.rip, &padded[page..page + 4096]);
            let r = if live { t.translate_with(b, &l) } else { t.translate(b) };
            match r {
                Ok(c) => { ok += 1; insns += c.guest_instructions as usize; bytes += c.code.len(); }
                Err(TranslateError::FirstDeclined(_)) => bad += 1,
                Err(e) => panic!("{e}"),
            }
        }
        let e = cpu() - start;
        println!("{name} live={live}: {ok} blocks ({bad} declined), {:.1} insns, {:.1} us/block, {:.1} us/insn, {} host bytes/block",
            insns as f64 / ok as f64, e.as_micros() as f64 / ok as f64, e.as_micros() as f64 / insns as f64, bytes / ok);
        }
    }
}
