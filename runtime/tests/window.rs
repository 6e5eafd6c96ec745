//! The window as the engine uses it. There is one in a process, so this is one test.

mod common;

use common::{CODE, Guest, PML4, RAM};
use transvisor_runtime::EngineConfig;
use vcpu::{Exit, Vcpu};
use x86::{Segment, flags, paging};

/// The first of the pages that the guest reads.
const FIRST: u64 = 0x40_0000;

/// Where all of low memory is again.
const HIGH: u64 = 0x5500_0000_0000;

/// A guest in ring 3 that may access ports, and everything else too. Its pages' leaves have these flags too.
fn user(config: EngineConfig, code: &[u8], flags: u64) -> Guest {
    let mut guest = Guest::new(config, code);
    let rights = paging::PRESENT | paging::WRITABLE | paging::USER;
    // Everything again, in small pages, for which there is room at the end of RAM.
    let tables = RAM - (RAM >> 21) * 0x1000;
    for (address, bits) in [(PML4, PML4 + 0x1000), (PML4 + 0x1000, PML4 + 0x2000)] {
        guest.write(address, &(bits | rights).to_le_bytes());
    }
    guest.write(PML4 + (HIGH >> 39) * 8, &((PML4 + 0x1000) | rights).to_le_bytes());
    for n in 0..RAM >> 21 {
        guest.write(PML4 + 0x2000 + n * 8, &((tables + n * 0x1000) | rights).to_le_bytes());
        for page in 0..512 {
            let address = (n << 21) | (page << 12);
            guest.write(tables + n * 0x1000 + page * 8, &(address | rights | flags).to_le_bytes());
        }
    }
    guest.set(|state| {
        state.cpl = 3;
        state.segments[1] = Segment::from_descriptor(0xb, 0x00af_fb00_0000_ffff);
        for n in [0, 2, 3, 4, 5] {
            state.segments[n] = Segment::from_descriptor(0x13, 0x00cf_f300_0000_ffff);
        }
        state.set_rflags(flags::FIXED_ONE | flags::IOPL);
    });
    guest
}

/// Gives a sum, the faults and the pages that came in.
fn run(config: EngineConfig, code: &[u8]) -> (u64, u64, u64) {
    let (sum, faults, pages, _) = run_with(config, code, 0);
    (sum, faults, pages)
}

/// The same, with flags of leaves; gives how many instructions compiled code has left to the interpreter, too.
fn run_with(config: EngineConfig, code: &[u8], flags: u64) -> (u64, u64, u64, u64) {
    let mut guest = user(config, code, flags);
    for page in 0..400_u64 {
        guest.write(FIRST + page * 0x1000, &page.to_le_bytes());
    }
    let exit = guest.run();
    assert!(matches!(exit, Exit::PortWrite { .. }), "{exit:?} at {:#x}", guest.engine.state().rip - CODE);
    let statistics = guest.engine.statistics();
    (guest.gpr(14), statistics.window_faults, statistics.window_pages, guest.engine.leaves().step)
}

#[test]
fn accesses_that_are_not_worth_the_window_are_looked_up() {
    let config = EngineConfig {
        template_threshold: 1,
        threshold: u32::MAX,
        hot_threshold: 3,
        background: false,
        window_patience: 0,
        ..EngineConfig::default()
    };
    // Every seventh page, so that each comes in alone, and not before something else was done; the sum of all, four times.
    let scattered = guest!(
        "mov r12d, 4",
        "4: xor edx, edx",
        "mov ecx, 400",
        "5: mov eax, 60000",
        "7: dec eax",
        "jnz 7b",
        "mov rbx, rdx",
        "shl rbx, 12",
        "add r14, [rbx + 0x400000]",
        "add rdx, 7",
        "cmp rdx, 400",
        "jb 6f",
        "sub rdx, 400",
        "6: dec ecx",
        "jnz 5b",
        "dec r12d",
        "jnz 4b",
        "out 0x80, al",
    );
    let (sum, faults, pages) = run(config, scattered);
    assert_eq!(sum, 4 * 400 * 399 / 2);
    assert!((32..100).contains(&faults), "{faults} faults, {pages} pages");
    // The same without doing anything else: they come in, and are used for long. No more than the smallest TLB array holds.
    let at_once = guest!(
        "mov r12d, 400",
        "4: xor edx, edx",
        "mov ecx, 200",
        "5: mov rbx, rdx",
        "shl rbx, 12",
        "add r14, [rbx + 0x400000]",
        "add rdx, 7",
        "cmp rdx, 200",
        "jb 6f",
        "sub rdx, 200",
        "6: dec ecx",
        "jnz 5b",
        "dec r12d",
        "jnz 4b",
        "out 0x80, al",
    );
    let (sum, faults, pages) = run(config, at_once);
    assert_eq!(sum, 400 * 200 * 199 / 2);
    assert!(pages >= 200 && faults < 500, "{faults} faults, {pages} pages");
    // Where nothing but the window's lack is in the way, they come in with those around them, and each access is made again where it is.
    let (sum, faults, pages, steps) = run_with(config, at_once, paging::ACCESSED | paging::DIRTY);
    assert_eq!((sum, steps), (400 * 200 * 199 / 2, 0));
    assert!(pages >= 200 && (10..30).contains(&faults), "{faults} faults, {pages} pages");
    // A few pages, again and again: they come in and stay.
    let few = guest!(
        "mov r12d, 16000",
        "4: mov rbx, r12",
        "and ebx, 3",
        "shl rbx, 14",
        "add r14, [rbx + 0x400000]",
        "dec r12d",
        "jnz 4b",
        "out 0x80, al",
    );
    let (sum, faults, pages) = run(config, few);
    assert_eq!(sum, 4000 * (4 + 8 + 12));
    assert!((1..20).contains(&faults) && pages >= 4, "{faults} faults, {pages} pages");
    let without = run(EngineConfig { windows: false, ..config }, scattered);
    assert_eq!(without, (4 * 400 * 399 / 2, 0, 0));

    // A register that is high whenever the region is entered, as it is each time, and low where it is used: a wrong guess.
    let wrong = guest!(
        "mov r12d, 16000",
        "lea rsi, [rip + 4f]",
        "4: mov ebx, 0x400000",
        "add r14, [rbx + 0x2000]",
        "mov rbx, 0x550000000000",
        "dec r12d",
        "jz 5f",
        "jmp rsi",
        "5: out 0x80, al",
    );
    let (sum, faults, pages) = run(config, wrong);
    assert_eq!(sum, 2 * 16000);
    assert!((8..32).contains(&faults) && pages > 0, "{faults} faults, {pages} pages");
    // A region that was made while the window was on gives way to one for either, once, where that is off.
    let twice = guest!(
        "4: mov r12d, 1000",
        "5: mov rbx, r12",
        "and ebx, 3",
        "shl rbx, 14",
        "add r14, [rbx + 0x400000]",
        "dec r12d",
        "jnz 5b",
        "out 0x80, al",
        "jmp 4b",
    );
    let mut guest = user(config, twice, 0);
    for page in 0..400_u64 {
        guest.write(FIRST + page * 0x1000, &page.to_le_bytes());
    }
    for (round, on, left) in [(1, 1, 0), (2, 0, 1), (3, 0, 1), (4, 1, 1)] {
        guest.set(|state| state.window = on);
        assert!(matches!(guest.run(), Exit::PortWrite { .. }));
        assert_eq!(guest.gpr(14), round * 250 * (4 + 8 + 12));
        assert_eq!(guest.engine.leaves().window_off, left, "in round {round}");
    }
    drop(guest);
    // High and low in turn: no guess is right.
    let both = guest!(
        "mov r12d, 16000",
        "lea rsi, [rip + 4f]",
        "4: mov ebx, 0x400000",
        "test r12d, 1",
        "jz 6f",
        "mov rbx, 0x550000400000",
        "6: add r14, [rbx + 0x2000]",
        "dec r12d",
        "jz 5f",
        "jmp rsi",
        "5: out 0x80, al",
    );
    let (sum, faults, pages) = run(config, both);
    assert_eq!(sum, 2 * 16000);
    assert!((16..40).contains(&faults), "{faults} faults, {pages} pages");
    // High, but for one time of 4096: what else is accessed by the register is not guessed any more either.
    let mostly = |every: u32| {
        [
            guest!("mov r12d, 0x140001", "lea rsi, [rip + 4f]", "jmp 4f", "4:").to_vec(),
            // test r12d, every - 1
            [&[0x41, 0xf7, 0xc4], &(every - 1).to_le_bytes()[..]].concat(),
            guest!(
                "mov ebx, 0x400000",
                "mov ecx, 0",
                "jz 6f",
                "mov rbx, 0x550000400000",
                "6: add r14, [rbx + 0x2000]",
                "add rbx, rcx",
                "add r14, [rbx + 0x2000]",
                "add rbx, rcx",
                "add r14, [rbx + 0x2000]",
                "dec r12d",
                "jz 5f",
                "jmp rsi",
                "5: out 0x80, al",
            )
            .to_vec(),
        ]
        .concat()
    };
    let (sum, faults, pages) = run(config, &mostly(0x1000));
    assert_eq!(sum, 6 * 0x14_0001);
    assert!((8..16).contains(&faults), "{faults} faults, {pages} pages");
    // So seldom that they cost nothing, they are left where they are.
    let (sum, faults, pages) = run(config, &mostly(0x1_0000));
    assert_eq!(sum, 6 * 0x14_0001);
    assert!((20..24).contains(&faults), "{faults} faults, {pages} pages");
}
