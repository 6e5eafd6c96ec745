//! A profile's numbers, on guests of which they are known.

mod common;

use common::{CODE, Guest, MMIO, configurations};
use profiler::model::{Block, Counts, End, Profile, Tier};
use transvisor_runtime::EngineConfig;
use vcpu::{Answer, Exit, Vcpu};
use x86::paging;

fn profiled(body: impl Fn(&str, EngineConfig)) {
    for (name, config) in configurations().into_iter().filter(|(_, config)| config.profile) {
        println!("configuration: {name}");
        body(name, config);
    }
}

/// The profile of a guest that has halted; it is exact.
fn profile(guest: &Guest) -> Profile {
    let profile = guest.engine.recorder().unwrap().snapshot(true);
    assert_eq!(profile.totals.counted, guest.engine.statistics().instructions);
    assert_eq!(profile.totals.instructions, profile.totals.counted);
    let by_blocks: u64 = profile.blocks.iter().map(|block| block.executed).sum();
    assert_eq!(by_blocks, profile.totals.counted);
    for block in &profile.blocks {
        let of_code: u64 = block
            .versions
            .iter()
            .map(|version| profile.code[version.code].members[version.member].executed())
            .sum();
        assert_eq!(block.executed, block.interpreted.instructions + block.stepped.instructions + of_code);
    }
    profile
}

fn block(profile: &Profile, rip: u64) -> &Block {
    profile.blocks.iter().find(|block| block.rip == rip).unwrap_or_else(|| panic!("no block at {rip:#x}"))
}

fn number(exits: &Counts, name: &str) -> u64 {
    exits.get(name).copied().unwrap_or(0)
}

const LOOPS: u64 = 20_000;

#[test]
fn a_loop_of_n_has_n_executions() {
    let code = guest!("mov ecx, 20000", "4: add rax, rcx", "add rdx, rax", "dec ecx", "jnz 4b", "hlt",);
    profiled(|name, config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        let profile = profile(&guest);
        let body = block(&profile, CODE + 5);
        let first = block(&profile, CODE);
        // The first round is in the block that begins at the top.
        assert_eq!(body.executions + first.executions, LOOPS, "{name}");
        assert_eq!((body.instructions, first.executions), (4, 1));
        assert_eq!(body.executed, 4 * (LOOPS - 1));
        assert_eq!(profile.totals.counted, 1 + 4 * LOOPS + 1);
        assert_eq!((body.user, body.bits, body.physical), (false, 64, CODE + 5));
        if config.stress.is_none() && !name.contains("interpret") {
            let last = &profile.code[body.versions.last().unwrap().code];
            assert_eq!(last.end, End::Live);
            let compiled = !name.contains("templates");
            assert_eq!(last.tier, if compiled { Tier::Compiled } else { Tier::Region });
            assert!(last.host_bytes > 20 && last.host_instructions > 5 && last.compile_ns > 0);
            let listing = last.listing.as_ref().unwrap();
            let row = listing.rows.iter().find(|row| row.guest.ends_with("add rdx, rax")).unwrap();
            assert_eq!(row.executions, last.members[row.member.unwrap()].executions);
            assert!(!row.host.is_empty(), "{row:?}");
            assert_eq!(row.clif.iter().any(|line| line.contains("iadd")), compiled, "{row:?}");
        }
    });
}

#[test]
fn every_exit_of_a_loop_is_accounted_for() {
    // The loop calls a function in another page, which returns; so it is a chain, a guarded chain and an indirect jump.
    let code = guest!("mov ecx, 5000", "4: call 4b + 0x5000", "dec ecx", "jnz 4b", "hlt",);
    let callee = CODE + 5 + 0x5000;
    let config = EngineConfig {
        template_threshold: 1,
        threshold: u32::MAX,
        hot_threshold: u32::MAX,
        background: false,
        profile: true,
        ..EngineConfig::default()
    };
    let mut guest = Guest::new(config, code);
    guest.write(callee, guest!("inc eax", "ret"));
    guest.halt();
    let profile = profile(&guest);
    let callee = block(&profile, callee);
    assert_eq!((callee.executions, callee.executed), (5000, 10_000));
    assert_eq!(number(&callee.exits, "indirect hit") + number(&callee.exits, "indirect miss"), 5000);
    assert!(number(&callee.exits, "indirect hit") >= 4990, "{:?}", callee.exits);
    let after = block(&profile, CODE + 10);
    let direct = ["chained", "not chained yet", "chain guard failed"];
    assert_eq!(direct.map(|name| number(&after.exits, name)).iter().sum::<u64>(), 5000);
    assert!(number(&after.exits, "chained") >= 4990, "{:?}", after.exits);
}

#[test]
fn faults_and_ports_and_devices_are_counted() {
    let code = guest!(
        "mov ecx, 1000",
        "mov rsi, 0xfe000000",
        "4: mov rbx, [0x9000]", // not present: the handler steps over it
        "out 0x80, al",
        "in al, 0x60",
        "mov edx, [rsi]",
        "loop 4b",
        "hlt",
    );
    let handler = guest!("add qword ptr [rsp + 8], 8", "add rsp, 8", "iretq");
    profiled(|name, config| {
        let mut guest = Guest::new(config, code);
        guest.handler(14, handler);
        guest.write(common::TABLE + 9 * 8, &(0x9000 | paging::WRITABLE).to_le_bytes());
        guest.set(|_| ());
        // The error code is on the stack below what the handler wants to change.
        let (mut reads, mut writes, mut devices) = (0, 0, 0);
        let mut exit = guest.run();
        while exit != Exit::Halt {
            exit = match exit {
                Exit::PortRead { .. } => {
                    reads += 1;
                    guest.answer(Answer::Value(1))
                }
                Exit::PortWrite { .. } => {
                    writes += 1;
                    guest.answer(Answer::Done)
                }
                Exit::MmioRead { address, .. } => {
                    assert_eq!(address.0, MMIO);
                    devices += 1;
                    guest.answer(Answer::Value(2))
                }
                Exit::Kicked => guest.run(),
                other => panic!("{other:?}"),
            };
        }
        let profile = profile(&guest);
        assert_eq!((reads, writes, devices), (1000, 1000, 1000));
        assert_eq!(number(&profile.exits, "callout: out"), 1000, "{name}: {:?}", profile.exits);
        assert_eq!(number(&profile.exits, "callout: in"), 1000, "{name}: {:?}", profile.exits);
        assert_eq!(number(&profile.exits, "exception: 14"), 1000, "{name}: {:?}", profile.exits);
        assert_eq!(number(&profile.exits, "callout: iretq"), 1000, "{name}: {:?}", profile.exits);
        assert_eq!(
            number(&profile.exits, "access to a device's memory"),
            1000,
            "{name}: {:?}",
            profile.exits
        );
        assert_eq!(profile.totals.exceptions, 1000);
    });
}

#[test]
fn code_that_is_overwritten_shows_its_versions() {
    // The immediate of the MOV is changed after so many rounds.
    let code = guest!(
        "mov r8d, 4",
        "5: mov ecx, 50",
        "4: mov eax, 1",
        "add rbx, rax",
        "dec ecx",
        "jnz 4b",
        "lea rdi, [rip + 4b + 1]",
        "inc byte ptr [rdi]",
        "dec r8d",
        "jnz 5b",
        "hlt",
    );
    profiled(|name, config| {
        let mut guest = Guest::new(config, code);
        guest.halt();
        assert_eq!(guest.gpr(3), 50 * (1 + 2 + 3 + 4));
        let profile = profile(&guest);
        let at = CODE + 11;
        let body = block(&profile, at);
        assert_eq!(body.executed, 4 * 49 * 4, "{name}");
        assert!(body.decoded == 4 || config.stress.is_some(), "{name}: {}", body.decoded);
        if name.contains("at once") {
            assert_eq!(number(&body.exits, "invalidated by a write"), 4, "{:?}", body.exits);
        }
    });
}

#[test]
fn samples_find_the_loop() {
    let code = guest!("mov rcx, 300000000", "4: add rax, rcx", "xor rax, rdx", "dec rcx", "jnz 4b", "hlt",);
    let config = EngineConfig { threshold: 3, background: false, profile: true, ..EngineConfig::default() };
    let mut guest = Guest::new(config, code);
    guest.halt();
    let profile = profile(&guest);
    let body = profile.blocks.iter().max_by_key(|block| block.executed).unwrap();
    // How many there are depends on the host; nearly all are in the only loop.
    assert!(profile.totals.samples > 5, "{:?}", profile.totals);
    assert!(body.samples * 10 >= profile.totals.samples * 8, "{} of {:?}", body.samples, profile.totals);
    let listing = profile.code[body.versions.last().unwrap().code].listing.as_ref().unwrap();
    let host: u64 = listing.rows.iter().flat_map(|row| &row.host).map(|line| line.samples).sum();
    assert!(host * 10 >= body.samples * 9, "{host} of {}", body.samples);
    let stacks = &profile.stacks;
    assert_eq!(stacks.by_tables + stacks.by_frames + stacks.leaf_only, profile.totals.samples);
}
