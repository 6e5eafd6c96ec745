//! What the callouts cost that a running kernel makes all the time. `cargo bench -p transvisor-monitor`.
#![allow(missing_docs, reason = "a program, not a library")]

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use memory::{CodePages, GuestPhys, Mmu, Ram};
use semantics::{Insn, decode::decode_one};
use transvisor_monitor::{Context, Event, deliver, execute};
use vcpu::Clock;
use x86::{
    CpuState, Exception, Segment,
    control::{cr0, cr4, efer},
    flags,
    state::RSP,
};

const GDT: u64 = 0x1000;
const IDT: u64 = 0x2000;
const TSS: u64 = 0x3000;
const TABLES: u64 = 0x10000;
const CODE: u64 = 0x8000;
const KERNEL_CODE: u16 = 0x10;
const USER_DATA: u16 = 0x2b;
const USER_CODE: u16 = 0x33;

struct Guest {
    state: Box<CpuState>,
    mmu: Mmu,
    clock: Clock,
}

impl Guest {
    /// 64-bit user mode under a kernel with handlers for #PF and interrupt 0x40.
    fn new() -> Self {
        let ram = Ram::new(4 << 20).expect("4 MiB");
        let put = |address: u64, value: u64| {
            ram.write(GuestPhys(address), &value.to_le_bytes()).expect("within RAM");
        };
        put(TABLES, (TABLES + 0x1000) | 7);
        put(TABLES + 0x1000, (TABLES + 0x2000) | 7);
        put(TABLES + 0x2000, 0x87);
        let descriptors = [
            (0x10, 0x00af_9b00_0000_ffff),
            (0x18, 0x00cf_9300_0000_ffff),
            (0x28, 0x00cf_f300_0000_ffff),
            (0x30, 0x00af_fb00_0000_ffff),
        ];
        for (selector, bits) in descriptors {
            put(GDT + selector, bits);
        }
        put(TSS + 4, 0x20000);
        for vector in [14, 0x40] {
            put(IDT + vector * 16, CODE | u64::from(KERNEL_CODE) << 16 | 0x8e << 40);
        }
        let mut state = Box::new(CpuState::new());
        state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::ET;
        state.cr3 = TABLES;
        state.cr4 = cr4::PAE | cr4::OSFXSR;
        state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
        state.gdtr = Segment { base: GDT, limit: 0x7f, ..Segment::default() };
        state.idtr = Segment { base: IDT, limit: 0xfff, ..Segment::default() };
        state.tr = Segment { base: TSS, limit: 0x67, selector: 0x40, attributes: 0x8b };
        state.segments = [Segment::from_descriptor(USER_DATA, 0x00cf_f300_0000_ffff); 6];
        state.segments[1] = Segment::from_descriptor(USER_CODE, 0x00af_fb00_0000_ffff);
        state.cpl = 3;
        state.rip = CODE;
        state.gpr[RSP] = 0x30000;
        state.rflags |= flags::IF;
        state.msrs.star = 0x23_0010 << 32;
        state.msrs.lstar = CODE;
        state.msrs.fmask = flags::IF;
        state.update_mode();
        let mut mmu = Mmu::new(ram.clone(), CodePages::new(&ram));
        mmu.flush_all(&mut state);
        Self { state, mmu, clock: Clock::host() }
    }

    fn decode(&self, bytes: &[u8]) -> Insn {
        decode_one(bytes, CODE, self.state.mode).expect("a valid instruction")
    }

    fn run(&mut self, insn: &Insn) {
        let mut cx = Context { state: &mut self.state, mmu: &mut self.mmu, clock: &self.clock };
        execute(&mut cx, black_box(insn)).expect("it completes");
    }

    fn deliver(&mut self, event: Event) {
        let mut cx = Context { state: &mut self.state, mmu: &mut self.mmu, clock: &self.clock };
        deliver(&mut cx, black_box(event)).expect("it is delivered");
    }
}

fn callouts(c: &mut Criterion) {
    let mut guest = Guest::new();
    let iretq = guest.decode(&[0x48, 0xcf]);
    c.bench_function("interrupt from user and iretq", |b| {
        b.iter(|| {
            guest.deliver(Event::Interrupt(0x40));
            guest.run(&iretq);
        });
    });
    let syscall = guest.decode(&[0x0f, 0x05]);
    let sysret = guest.decode(&[0x48, 0x0f, 0x07]);
    c.bench_function("syscall and sysretq", |b| {
        b.iter(|| {
            guest.run(&syscall);
            guest.run(&sysret);
        });
    });
    guest.run(&syscall);
    guest.state.gpr[RSP] = 0x20000;
    c.bench_function("page fault in the kernel and iretq", |b| {
        b.iter(|| {
            guest.deliver(Event::Exception(Exception::page_fault(0x1234_5678, 2)));
            guest.state.gpr[RSP] += 8;
            guest.run(&iretq);
        });
    });
    let single: [(&str, &[u8]); 4] = [
        ("rdtsc", &[0x0f, 0x31]),
        ("swapgs", &[0x0f, 0x01, 0xf8]),
        ("stac", &[0x0f, 0x01, 0xcb]),
        ("mov cr2", &[0x0f, 0x20, 0xd0]),
    ];
    for (name, bytes) in single {
        let insn = guest.decode(bytes);
        c.bench_function(name, |b| b.iter(|| guest.run(&insn)));
    }
    let pairs: [(&str, &[u8], &[u8]); 3] = [
        ("cli and sti", &[0xfa], &[0xfb]),
        ("pushf and popf", &[0x9c], &[0x9d]),
        ("stac and clac", &[0x0f, 0x01, 0xcb], &[0x0f, 0x01, 0xca]),
    ];
    for (name, first, second) in pairs {
        let (first, second) = (guest.decode(first), guest.decode(second));
        c.bench_function(name, |b| {
            b.iter(|| {
                guest.run(&first);
                guest.run(&second);
            });
        });
    }
    let wrmsr = guest.decode(&[0x0f, 0x30]);
    guest.state.gpr[1] = u64::from(x86::msr::IA32_FS_BASE);
    c.bench_function("wrmsr fs base", |b| b.iter(|| guest.run(&wrmsr)));
    let write_cr3 = guest.decode(&[0x0f, 0x22, 0xd8]);
    guest.state.gpr[0] = TABLES;
    c.bench_function("mov to cr3", |b| b.iter(|| guest.run(&write_cr3)));
}

criterion_group!(benches, callouts);
criterion_main!(benches);
