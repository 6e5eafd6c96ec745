//! A guest that writes anything anywhere cannot panic the devices, make them allocate without bound, or make the host
//! wake up all the time.

use std::time::Duration;

use memory::{DeviceMemory, GuestPhys, Ram};
use proptest::prelude::*;
use transvisor_devices::{Chipset, ChipsetConfig, layout};
use vcpu::Clock;

/// What a guest, its board and the user can do.
#[derive(Clone, Copy, Debug)]
enum Act {
    In(u16, u8),
    Out(u16, u8, u32),
    Load(u64, u8),
    Store(u64, u8, u64),
    ReadMsr(u32),
    WriteMsr(u32, u64),
    Sleep(u64),
    SleepToDeadline,
    Acknowledge,
    AcknowledgeNmi,
    Tpr(u8),
    TscOffset(u64),
    Line(u8, bool),
    Msi(u64, u32),
    Type(usize),
    Button,
    SendIpi(u64, u64, u32, u64),
    /// What the guest makes of the word for its EOIs.
    Word(u8),
    Leave,
    Enter,
}

/// Bytes of guest memory.
const MEMORY: u64 = 1 << 20;
/// Where the guest's word for its EOIs mostly is.
const WORD: u64 = 0x1004;

/// Ports with something behind them, and a few without.
fn port() -> impl Strategy<Value = u16> {
    let devices = prop::sample::select(vec![
        0x20u16, 0x21, 0xa0, 0xa1, 0x4d0, 0x4d1, 0x40, 0x41, 0x42, 0x43, 0x60, 0x61, 0x64, 0x70, 0x71, 0x80,
        0x92, 0xe9, 0xf4, 0xcf8, 0xcf9, 0xcfa, 0xcfc, 0xcff,
    ]);
    prop_oneof![4 => devices, 2 => 0x3f8u16..0x400, 1 => 0x5feu16..0x612, 1 => any::<u16>()]
}

fn address() -> impl Strategy<Value = u64> {
    let register = (0u64..0x100).prop_map(|register| register << 4);
    prop_oneof![
        4 => register.prop_map(|offset| layout::LOCAL_APIC + offset),
        1 => (0u64..0x1000).prop_map(|offset| layout::LOCAL_APIC + offset),
        2 => prop::sample::select(vec![0u64, 0x10, 0x40]).prop_map(|offset| layout::IOAPIC + offset),
        1 => (0u64..0x1004).prop_map(|offset| layout::IOAPIC + offset),
        1 => any::<u64>(),
    ]
}

fn msr() -> impl Strategy<Value = u32> {
    prop_oneof![
        2 => Just(layout::IA32_APIC_BASE),
        2 => Just(layout::IA32_TSC_DEADLINE),
        2 => Just(layout::KVM_PV_EOI_EN),
        6 => layout::X2APIC_FIRST..layout::X2APIC_LAST + 1,
        1 => any::<u32>(),
    ]
}

fn value() -> impl Strategy<Value = u64> {
    let telling = vec![
        0,
        1,
        u64::MAX,
        0xfee0_0900,
        0xfee0_0d00,
        0xfee0_0100,
        0x1ff,
        0x400ec,
        0x200ec,
        0x8041,
        WORD,
        WORD | 1,
        WORD | 3,
        MEMORY - 3,
        MEMORY | 1,
    ];
    prop_oneof![
        3 => any::<u8>().prop_map(u64::from),
        2 => any::<u32>().prop_map(u64::from),
        1 => any::<u64>(),
        2 => prop::sample::select(telling),
    ]
}

fn act() -> impl Strategy<Value = Act> {
    let size = prop::sample::select(vec![1u8, 2, 4, 8]);
    prop_oneof![
        6 => (port(), size.clone()).prop_map(|(port, size)| Act::In(port, size)),
        12 => (port(), size.clone(), value()).prop_map(|(port, size, value)| Act::Out(port, size, value as u32)),
        3 => (address(), size.clone()).prop_map(|(address, size)| Act::Load(address, size)),
        8 => (address(), size, value()).prop_map(|(address, size, value)| Act::Store(address, size, value)),
        2 => msr().prop_map(Act::ReadMsr),
        5 => (msr(), value()).prop_map(|(index, value)| Act::WriteMsr(index, value)),
        2 => (0u64..3_000_000_000).prop_map(Act::Sleep),
        1 => any::<u64>().prop_map(|time| Act::Sleep(time >> 4)),
        4 => Just(Act::SleepToDeadline),
        4 => Just(Act::Acknowledge),
        1 => Just(Act::AcknowledgeNmi),
        1 => any::<u8>().prop_map(Act::Tpr),
        1 => any::<u64>().prop_map(Act::TscOffset),
        2 => (any::<u8>(), any::<bool>()).prop_map(|(line, high)| Act::Line(line, high)),
        1 => (address(), any::<u32>()).prop_map(|(address, data)| Act::Msi(address, data)),
        1 => (0usize..100_000).prop_map(Act::Type),
        1 => Just(Act::Button),
        2 => (any::<u64>(), value(), any::<u32>(), value()).prop_map(|(a, b, c, d)| Act::SendIpi(a, b, c % 4, d)),
        2 => any::<u8>().prop_map(Act::Word),
        4 => Just(Act::Leave),
        4 => Just(Act::Enter),
    ]
}

fn memory() -> DeviceMemory {
    DeviceMemory::new(Ram::new(MEMORY).expect("a megabyte"), None)
}

fn board(clock: &Clock, memory: Option<DeviceMemory>) -> Chipset {
    let sink = || Box::new(std::io::sink());
    let utc = Duration::from_secs(1_800_000_000);
    let config =
        ChipsetConfig { utc, debug_console: Some(sink()), memory, vcpus: 2, ..ChipsetConfig::new(sink()) };
    Chipset::new(clock.clone(), config)
}

/// Some centuries: further on, deadlines saturate.
const END_OF_TIME: u64 = 1 << 62;

proptest! {
    #[test]
    fn anything_goes(acts in prop::collection::vec(act(), 1..400)) {
        let clock = Clock::manual();
        let memory = memory();
        let mut chipset = board(&clock, Some(memory.clone()));
        let mut lines: Vec<_> = (0..24).map(|line| chipset.line(line)).collect();
        for act in acts {
            match act {
                Act::In(port, size) => { chipset.port_read(port, size); }
                Act::Out(port, size, value) => chipset.port_write(port, size, value),
                Act::Load(address, size) => { chipset.mmio_read(GuestPhys(address), size); }
                Act::Store(address, size, value) => chipset.mmio_write(GuestPhys(address), size, value),
                Act::ReadMsr(index) => { let _ = chipset.msr_read(index); }
                Act::WriteMsr(index, value) => { let _ = chipset.msr_write(index, value); }
                Act::Sleep(time) => {
                    if clock.now() < END_OF_TIME {
                        clock.advance(time);
                    }
                    chipset.advance(clock.now());
                }
                Act::SleepToDeadline => {
                    chipset.advance(clock.now());
                    if let Some(deadline) = chipset.next_deadline().filter(|deadline| *deadline < END_OF_TIME) {
                        clock.advance(deadline.saturating_sub(clock.now()));
                        chipset.advance(clock.now());
                        // What was due is done: a halted guest cannot spin the host.
                        let next = chipset.next_deadline();
                        prop_assert!(next.is_none_or(|next| next > clock.now()), "{next:?} at {}", clock.now());
                    }
                }
                Act::Acknowledge => {
                    let pending = chipset.pending_interrupt();
                    prop_assert_eq!(chipset.acknowledge_interrupt().is_some(), pending);
                }
                Act::AcknowledgeNmi => { chipset.acknowledge_nmi(); }
                Act::Tpr(cr8) => chipset.set_tpr(cr8),
                Act::TscOffset(offset) => chipset.set_tsc_offset(offset),
                Act::Line(line, high) => {
                    let count = lines.len();
                    lines[usize::from(line) % count].set(high);
                    chipset.advance(clock.now());
                }
                Act::Msi(address, data) => chipset.send_msi(address, data),
                Act::Type(length) => { chipset.push_console_input(&vec![b'x'; length]); }
                Act::Button => chipset.press_power_button(),
                Act::SendIpi(low, high, first, command) => {
                    let taken = chipset.send_ipi(u128::from(high) << 64 | u128::from(low), first, command);
                    prop_assert!(taken.is_ok_and(|taken| taken <= 2) || command & 0xc0800 != 0);
                }
                Act::Word(value) => memory.write(GuestPhys(WORD), &[value]).expect("it is in RAM"),
                Act::Leave => chipset.collect_eoi(),
                Act::Enter => chipset.offer_eoi(),
            }
            chipset.power_event();
        }
    }

    /// The same acts at the same times give the same answers.
    #[test]
    fn a_manual_clock_makes_runs_equal(acts in prop::collection::vec((port(), value(), 0u64..5_000_000), 1..200)) {
        let run = || {
            let clock = Clock::manual();
            let mut chipset = board(&clock, None);
            let answers = acts.iter().map(|&(port, value, time)| {
                clock.advance(time);
                chipset.port_write(port, 1, value as u32);
                (chipset.port_read(port, 4), chipset.next_deadline(), chipset.acknowledge_interrupt())
            });
            answers.collect::<Vec<_>>()
        };
        prop_assert_eq!(run(), run());
    }

    /// Looking at the devices more often does not change what a guest sees: all counts follow from the time.
    #[test]
    fn how_often_the_board_looks_does_not_matter(acts in prop::collection::vec((port(), value(), 0u64..5_000_000), 1..100)) {
        let run = |steps: u64| {
            let clock = Clock::manual();
            let mut chipset = board(&clock, None);
            let answers = acts.iter().map(|&(port, value, time)| {
                for step in 0..steps {
                    clock.advance(time / steps + if step == 0 { time % steps } else { 0 });
                    chipset.advance(clock.now());
                }
                chipset.port_write(port, 1, value as u32);
                chipset.port_read(port, 4)
            });
            answers.collect::<Vec<_>>()
        };
        prop_assert_eq!(run(1), run(7));
    }
}
