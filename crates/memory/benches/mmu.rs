//! What guest memory accesses cost: hits, walks, flushes. `cargo bench -p transvisor-memory`.
#![allow(missing_docs, reason = "a program, not a library")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use memory::{AtomicOp, CodePages, GuestPhys, GuestVirt, Mmu, Ram};
use transvisor_memory as memory;
use x86::control::{cr0, cr4, efer};
use x86::segment::attribute;
use x86::{CpuState, Width, paging};

const ROOT: u64 = 0x1000;
const OPEN: u64 = paging::PRESENT | paging::WRITABLE | paging::USER;
/// Pages of 4 KiB from here to 1 GiB further on, global in their first half.
const PAGES: u64 = 0x4000_0000;
const HALF: u64 = 0x2000_0000;

/// 64-bit mode with 4-level paging over 64 MiB of RAM.
fn guest() -> (Mmu, CpuState) {
    let ram = Ram::new(64 << 20).expect("64 MiB");
    let put = |address: u64, value: u64| {
        ram.write(GuestPhys(address), &value.to_le_bytes()).expect("within RAM");
    };
    put(ROOT, 0x2000 | OPEN);
    put(0x2000 + 8, 0x3000 | OPEN);
    for table in 0..512 {
        let at = 0x10_0000 + table * 0x1000;
        put(0x3000 + table * 8, at | OPEN);
        for page in 0..512 {
            let physical = 0x100_0000 + (table * 512 + page) % 8192 * 0x1000;
            let global = if table < 256 { paging::GLOBAL } else { 0 };
            put(at + page * 8, physical | OPEN | global | paging::ACCESSED | paging::DIRTY);
        }
    }
    let mut state = CpuState::new();
    state.cr0 |= cr0::PE | cr0::PG | cr0::WP;
    state.cr4 |= cr4::PAE | cr4::PGE;
    state.efer |= efer::LME | efer::LMA | efer::NXE;
    state.cr3 = ROOT;
    state.segments[1].attributes |= attribute::LONG;
    state.update_mode();
    let mut mmu = Mmu::new(ram.clone(), CodePages::new(&ram));
    mmu.flush_all(&mut state);
    (mmu, state)
}

fn touch(mmu: &mut Mmu, state: &CpuState, start: u64, pages: u64) {
    for page in 0..pages {
        let at = GuestVirt(start + page * 0x1000);
        black_box(mmu.load(state, at, Width::Qword).is_ok());
    }
}

fn accesses(c: &mut Criterion) {
    let (mut mmu, state) = guest();
    let at = GuestVirt(PAGES + 0x100);
    c.bench_function("load, hit", |b| {
        b.iter(|| mmu.load(&state, black_box(at), Width::Qword));
    });
    c.bench_function("store, hit", |b| {
        b.iter(|| mmu.store(&state, black_box(at), Width::Dword, 1));
    });
    c.bench_function("fetch, hit", |b| b.iter(|| mmu.fetch(&state, black_box(at))));
    c.bench_function("locked add, hit", |b| {
        b.iter(|| mmu.atomic(&state, black_box(at), Width::Dword, AtomicOp::Add, 1));
    });
    c.bench_function("supervisor load, hit", |b| {
        b.iter(|| mmu.load_supervisor(&state, black_box(at), Width::Qword));
    });
    let crossing = GuestVirt(PAGES + 0xffc);
    c.bench_function("load across pages, hit", |b| {
        b.iter(|| mmu.load(&state, black_box(crossing), Width::Qword));
    });
    c.bench_function("try_load across pages, hit", |b| {
        b.iter(|| mmu.try_load(&state, black_box(crossing), Width::Qword));
    });
    c.bench_function("look_up, a walk alone", |b| b.iter(|| mmu.look_up(&state, black_box(at))));
    // Two pages that share a slot at every array size.
    let (one, other) = (GuestVirt(PAGES), GuestVirt(PAGES + (1 << 28)));
    c.bench_function("load with a page walk", |b| {
        b.iter(|| {
            black_box(mmu.load(&state, black_box(one), Width::Qword).is_ok());
            mmu.load(&state, black_box(other), Width::Qword)
        });
    });
}

fn flushes(c: &mut Criterion) {
    let (mut mmu, mut state) = guest();
    for _ in 0..30 {
        touch(&mut mmu, &state, PAGES, 6000);
        mmu.select_view(&mut state);
    }
    c.bench_function("select_view", |b| b.iter(|| mmu.select_view(black_box(&mut state))));
    c.bench_function("CR3 load, 6000 global pages, nothing else", |b| {
        b.iter(|| mmu.switch_address_space(&mut state, false));
    });
    c.bench_function("CR3 load after 100 pages, with their walks", |b| {
        b.iter(|| {
            touch(&mut mmu, &state, PAGES + HALF + (6000 << 12), 100);
            mmu.switch_address_space(&mut state, false);
        });
    });
    c.bench_function("INVLPG", |b| {
        b.iter(|| mmu.flush_page(&mut state, black_box(GuestVirt(PAGES + HALF))));
    });
    c.bench_function("protect_page among 6000, never stored to", |b| {
        b.iter(|| mmu.protect_page(black_box(GuestPhys(0x5000))));
    });
    c.bench_function("protect_page among 6000", |b| {
        b.iter(|| {
            let store = mmu.store(&state, GuestVirt(PAGES), Width::Byte, 0);
            mmu.protect_page(black_box(GuestPhys(0x100_0000)));
            store
        });
    });
    c.bench_function("flush_all after 100 pages, with their walks", |b| {
        b.iter(|| {
            touch(&mut mmu, &state, PAGES, 100);
            mmu.flush_all(&mut state);
        });
    });
}

criterion_group!(benches, accesses, flushes);
criterion_main!(benches);
