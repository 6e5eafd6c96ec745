//! Guest instructions a second: `cargo bench -p transvisor-interpreter`.
//!
//! Each loop is a guest program with code like compilers make; its blocks are decoded once and found again by their
//! address, as an engine does.

#[path = "../tests/support/mod.rs"]
mod support;

use std::hint::black_box;

use semantics::decode::decode_block;
use support::{CODE, DATA, Guest};
use transvisor_interpreter::{BlockExit, DecodedBlock, run_block};

/// Bytes of the programs, with what they are.
const PROGRAMS: &[(&str, &[u8])] = &[
    // l: add rax,rcx; xor rax,rbx; lea rdx,[rax+rcx*4+8]; shr rdx,3; cmp rdx,rsi; cmovb rdi,rdx; dec rcx; jnz l
    (
        "registers",
        &[
            0x48, 0x01, 0xc8, 0x48, 0x31, 0xd8, 0x48, 0x8d, 0x54, 0x88, 0x08, 0x48, 0xc1, 0xea, 0x03, 0x48,
            0x39, 0xf2, 0x48, 0x0f, 0x42, 0xfa, 0x48, 0xff, 0xc9, 0x75, 0xe5,
        ],
    ),
    // l: mov rax,[rsi]; add rax,[rsi+8]; mov [rsi+16],rax; movzx edx,byte [rsi+3]; mov [rsi+24],dl;
    //    test edx,edx; dec rcx; jnz l
    (
        "memory",
        &[
            0x48, 0x8b, 0x06, 0x48, 0x03, 0x46, 0x08, 0x48, 0x89, 0x46, 0x10, 0x0f, 0xb6, 0x56, 0x03, 0x88,
            0x56, 0x18, 0x85, 0xd2, 0x48, 0xff, 0xc9, 0x75, 0xe7,
        ],
    ),
    // l: push rbx; call f; pop rbx; dec rcx; jnz l; jmp end; f: mov rbx,[rsp+8]; test bl,1; jz g; inc eax; g: ret
    (
        "calls",
        &[
            0x53, 0xe8, 0x08, 0, 0, 0, 0x5b, 0x48, 0xff, 0xc9, 0x75, 0xf4, 0xeb, 0x0d, 0x48, 0x8b, 0x5c,
            0x24, 0x08, 0xf6, 0xc3, 0x01, 0x74, 0x02, 0xff, 0xc0, 0xc3,
        ],
    ),
];

/// CPU time of this thread, which other load on the machine does not count into.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on Linux and the pointer is to a timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn main() {
    for (name, code) in PROGRAMS {
        let mut best = 0f64;
        for _ in 0..5 {
            let mut guest = Guest::new(64);
            guest.state.gpr[1] = 2_000_000;
            guest.state.gpr[6] = DATA;
            let mut blocks: Vec<Option<DecodedBlock>> = code.iter().map(|_| None).collect();
            let started = cpu_seconds();
            loop {
                let rip = guest.state.rip;
                let Some(rest) = code.get((rip - CODE) as usize..).filter(|rest| !rest.is_empty()) else {
                    break;
                };
                let mode = guest.state.mode;
                let block = blocks[(rip - CODE) as usize]
                    .get_or_insert_with(|| DecodedBlock::new(&decode_block(rest, rip, mode)));
                // A block that leads to itself is run again, as an engine's last-block check does.
                loop {
                    match run_block(&mut guest.state, &mut guest.mmu, black_box(block)) {
                        BlockExit::Next => {}
                        exit => panic!("{name}: {exit:?}"),
                    }
                    if guest.state.rip != rip {
                        break;
                    }
                }
            }
            let speed = guest.state.instructions as f64 / (cpu_seconds() - started);
            best = best.max(speed);
        }
        println!("{name:10} {:7.1} M instructions/s", best / 1e6);
    }
}
