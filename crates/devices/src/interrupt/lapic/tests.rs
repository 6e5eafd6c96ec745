//! The local APIC as the SDM describes and Linux uses it.

use super::*;
use crate::layout::{LOCAL_APIC, X2APIC_FIRST};

const ID: u64 = 0x20;
const TPR: u64 = 0x80;
const PPR: u64 = 0xa0;
const EOI: u64 = 0xb0;
const LDR: u64 = 0xd0;
const DFR: u64 = 0xe0;
const SVR: u64 = 0xf0;
const ESR: u64 = 0x280;
const ICR: u64 = 0x300;
const ICR_HIGH: u64 = 0x310;
const LVT_TIMER: u64 = 0x320;
const LINT0: u64 = 0x350;
const LVT_ERROR: u64 = 0x370;
const INITIAL: u64 = 0x380;
const CURRENT: u64 = 0x390;
const DIVIDE: u64 = 0x3e0;

fn enabled() -> LocalApic {
    let mut apic = LocalApic::new(0);
    apic.write_mmio(SVR, 0x1ff, 0);
    apic
}

fn x2apic() -> LocalApic {
    let mut apic = enabled();
    apic.set_base(apic.base() | 1 << 10).unwrap();
    apic
}

fn fixed(vector: u8) -> Message {
    Message { destination: 0, logical: false, mode: DeliveryMode::Fixed, vector, level_triggered: false }
}

fn msr(register: u64) -> u32 {
    X2APIC_FIRST + (register >> 4) as u32
}

#[test]
fn after_reset() {
    let mut apic = LocalApic::new(0);
    assert_eq!(apic.base(), LOCAL_APIC | 0x900);
    assert_eq!(apic.mmio_base(), Some(LOCAL_APIC));
    for (register, value) in
        [(0x30, 0x50014), (SVR, 0xff), (DFR, u32::MAX), (LVT_TIMER, 0x10000), (LINT0, 0x10000)]
    {
        assert_eq!(apic.read_mmio(register, 0), value, "{register:#x}");
    }
    apic.receive(&fixed(0x40));
    assert_eq!(apic.pending(), None, "software-disabled");
}

#[test]
fn priorities_nest() {
    let mut apic = enabled();
    apic.receive(&fixed(0x41));
    apic.receive(&fixed(0x52));
    assert_eq!(apic.acknowledge(), Some(0x52));
    assert_eq!(apic.read_mmio(PPR, 0), 0x50);
    assert_eq!(apic.pending(), None, "0x41 waits for 0x52");
    apic.receive(&fixed(0x5f));
    assert_eq!(apic.pending(), None, "the same class does not nest");
    apic.receive(&fixed(0x61));
    assert_eq!(apic.acknowledge(), Some(0x61));
    apic.write_mmio(EOI, 0, 0);
    apic.write_mmio(EOI, 0, 0);
    assert_eq!(apic.acknowledge(), Some(0x5f));
    apic.write_mmio(EOI, 0, 0);
    assert_eq!(apic.acknowledge(), Some(0x41));
    apic.write_mmio(EOI, 0, 0);
    assert_eq!(apic.acknowledge(), None);
    assert_eq!(apic.read_mmio(PPR, 0), 0);
}

#[test]
fn task_priority_holds_back() {
    let mut apic = enabled();
    apic.receive(&fixed(0x41));
    apic.set_cr8(4);
    assert_eq!((apic.read_mmio(TPR, 0), apic.pending()), (0x40, None));
    apic.write_mmio(TPR, 0x3f, 0);
    assert_eq!((apic.cr8(), apic.pending()), (3, Some(0x41)));
    apic.set_cr8(3);
    assert_eq!(apic.read_mmio(TPR, 0), 0x3f, "the sub-class stays");
}

#[test]
fn eoi_of_a_level_goes_out() {
    let mut apic = enabled();
    apic.receive(&Message { level_triggered: true, ..fixed(0x41) });
    apic.receive(&fixed(0x31));
    apic.acknowledge();
    assert_eq!(apic.write_mmio(EOI, 0, 0), Some(Outgoing::EndOfInterrupt(0x41)));
    apic.acknowledge();
    assert_eq!(apic.write_mmio(EOI, 0, 0), None);
    assert_eq!(apic.write_mmio(EOI, 0, 0), None, "nothing in service");
}

#[test]
fn a_vector_is_level_or_edge_as_it_came_last() {
    let mut apic = enabled();
    apic.receive(&Message { level_triggered: true, ..fixed(0x41) });
    assert_eq!(apic.read_mmio(0x1a0, 0), 0x2);
    apic.acknowledge();
    apic.write_mmio(EOI, 0, 0);
    apic.receive(&fixed(0x41));
    assert_eq!(apic.read_mmio(0x1a0, 0), 0);
    apic.acknowledge();
    assert_eq!(apic.write_mmio(EOI, 0, 0), None);
}

#[test]
fn logical_destinations() {
    let logical = |destination| Message { destination, logical: true, ..fixed(0x40) };
    let mut apic = enabled();
    apic.write_mmio(LDR, 0x0200_0000, 0);
    assert!(apic.is_destination(&logical(0x03)) && !apic.is_destination(&logical(0x01)));
    apic.write_mmio(DFR, 0x0fff_ffff, 0);
    apic.write_mmio(LDR, 0x3200_0000, 0);
    assert!(apic.is_destination(&logical(0x36)) && apic.is_destination(&logical(0xf2)));
    assert!(!apic.is_destination(&logical(0x22)) && !apic.is_destination(&logical(0x31)));
    assert!(apic.is_destination(&Message { logical: false, ..logical(BROADCAST) }));
    assert!(!apic.is_destination(&Message { logical: false, ..logical(1) }));

    let mut apic = LocalApic::new(0x25);
    apic.set_base(LOCAL_APIC | 0xc00).unwrap();
    assert_eq!(apic.read_msr(msr(LDR), 0), Ok(0x2_0020));
    assert!(apic.is_destination(&logical(0x2_0020)) && apic.is_destination(&logical(BROADCAST)));
    assert!(!apic.is_destination(&logical(0x20)));
}

#[test]
fn command_register() {
    let mut apic = enabled();
    apic.write_mmio(ICR_HIGH, 0x0300_0000, 0);
    let sent = apic.write_mmio(ICR, 0x40fd, 0);
    let message = Message { destination: 3, ..fixed(0xfd) };
    assert_eq!(sent, Some(Outgoing::Ipi { to: Shorthand::None, message }));
    assert_eq!(apic.read_mmio(ICR, 0), 0x40fd, "delivery status is idle");
    assert_eq!(apic.read_mmio(ICR_HIGH, 0), 0x0300_0000);
    assert!(matches!(apic.write_mmio(ICR, 0x440fd, 0), Some(Outgoing::Ipi { to: Shorthand::Itself, .. })));
    assert!(matches!(apic.write_mmio(ICR, 0xc4500, 0), Some(Outgoing::Ipi { to: Shorthand::Others, .. })));
    assert_eq!(apic.write_mmio(ICR, 0x8500, 0), None, "INIT level de-assert");

    let mut apic = x2apic();
    let sent = apic.write_msr(msr(ICR), 0x1_0000_0000 | 0x8fd, 0).unwrap();
    let message = Message { destination: 1, logical: true, ..fixed(0xfd) };
    assert_eq!(sent, Some(Outgoing::Ipi { to: Shorthand::None, message }));
    let sent = apic.write_msr(msr(0x3f0), 0x44, 0).unwrap();
    assert!(matches!(sent, Some(Outgoing::Ipi { to: Shorthand::Itself, message }) if message.vector == 0x44));
}

#[test]
fn errors_are_latched_and_interrupt() {
    let mut apic = enabled();
    apic.write_mmio(LVT_ERROR, 0xfe, 0);
    apic.write_mmio(ICR, 0x4003, 0);
    assert_eq!(apic.read_mmio(ESR, 0), 0, "latched by a write only");
    assert_eq!(apic.acknowledge(), Some(0xfe));
    apic.receive(&fixed(0x02));
    apic.read_mmio(0x2f0, 0);
    apic.write_mmio(ESR, 0, 0);
    assert_eq!(apic.read_mmio(ESR, 0), 0xe0);
    apic.write_mmio(ESR, 0, 0);
    assert_eq!(apic.read_mmio(ESR, 0), 0);
    apic.write_mmio(LVT_ERROR, 0x01, 0);
    apic.receive(&fixed(0x02));
    apic.write_mmio(ESR, 0, 0);
    assert_eq!(apic.read_mmio(ESR, 0), 0x40);
}

#[test]
fn transitions_of_the_base_register() {
    // (from, to, allowed): disabled, xAPIC, x2APIC and the non-state (SDM Vol. 3A figure 11-27).
    let (off, xapic, x2apic, bad) = (0, 0x800, 0xc00, 0x400);
    for (path, allowed) in [
        (vec![xapic], true),
        (vec![x2apic], true),
        (vec![x2apic, xapic], false),
        (vec![x2apic, off], true),
        (vec![off, x2apic], false),
        (vec![off, xapic, x2apic], true),
        (vec![bad], false),
        (vec![off, bad], false),
    ] {
        let mut apic = LocalApic::new(0);
        let (last, first) = path.split_last().unwrap();
        first.iter().for_each(|mode| apic.set_base(LOCAL_APIC | 0x100 | mode).unwrap());
        assert_eq!(apic.set_base(LOCAL_APIC | 0x100 | last).is_ok(), allowed, "{path:x?}");
    }
    let mut apic = LocalApic::new(0);
    for reserved in [1 << 0, 1 << 9, 1 << 40, 1 << 63] {
        assert_eq!(apic.set_base(apic.base() | reserved), Err(Illegal));
    }
    apic.set_base(0xfee1_0900).unwrap();
    assert_eq!(apic.mmio_base(), Some(0xfee1_0000));
    apic.write_mmio(SVR, 0x1ff, 0);
    apic.set_base(0xfee1_0100).unwrap();
    assert_eq!(apic.mmio_base(), None);
    apic.set_base(0xfee1_0900).unwrap();
    assert_eq!(apic.read_mmio(SVR, 0), 0xff, "as after power-up");
}

#[test]
fn entering_x2apic_mode_keeps_all_but_the_destination() {
    let mut apic = enabled();
    apic.write_mmio(TPR, 0x20, 0);
    apic.write_mmio(ICR_HIGH, 0x0300_0000, 0);
    apic.set_base(apic.base() | 1 << 10).unwrap();
    assert_eq!(apic.read_msr(msr(TPR), 0), Ok(0x20));
    assert_eq!(apic.read_msr(msr(ICR), 0), Ok(0));
}

#[test]
fn x2apic_refuses_what_does_not_exist() {
    let mut apic = x2apic();
    assert_eq!(apic.mmio_base(), None);
    for register in [DFR, ICR_HIGH, EOI, 0x2f0, 0x400, 0x090, 0x0c0, 0x3f0, 0xff0] {
        assert_eq!(apic.read_msr(msr(register), 0), Err(Illegal), "{register:#x}");
    }
    for (register, value) in [
        (ID, 0),
        (PPR, 0),
        (LDR, 0),
        (0x100, 0),
        (CURRENT, 0),
        (EOI, 1),
        (ESR, 1),
        (TPR, 0x100),
        (TPR, 1 << 32),
        (SVR, 0x1000),
        (DIVIDE, 4),
        (LVT_TIMER, 1 << 19),
        (ICR, 1 << 20),
    ] {
        assert_eq!(apic.write_msr(msr(register), value, 0), Err(Illegal), "{register:#x} = {value:#x}");
    }
    assert_eq!(apic.write_msr(msr(EOI), 0, 0), Ok(None));
    let mut apic = enabled();
    assert_eq!(apic.read_msr(msr(TPR), 0), Err(Illegal), "xAPIC mode");
    assert_eq!(apic.write_msr(msr(TPR), 0, 0), Err(Illegal));
}

#[test]
fn timer_interrupts_through_its_lvt() {
    let mut apic = enabled();
    apic.write_mmio(DIVIDE, 0xb, 0);
    apic.write_mmio(LVT_TIMER, 0x200ec, 0);
    apic.write_mmio(INITIAL, 1_000_000, 0);
    assert_eq!(apic.read_mmio(CURRENT, 400_000), 600_000);
    assert_eq!(apic.next_deadline(400_000), Some(1_000_000));
    apic.advance(1_000_000);
    assert_eq!(apic.acknowledge(), Some(0xec));
    apic.write_mmio(EOI, 0, 1_000_001);
    apic.write_mmio(LVT_TIMER, 0x300ec, 1_000_001);
    assert_eq!(apic.next_deadline(1_000_001), None, "masked");
    apic.advance(3_500_000);
    assert_eq!(apic.pending(), None);
    apic.write_mmio(LVT_TIMER, 0x200ec, 3_500_000);
    apic.advance(3_999_999);
    assert_eq!(apic.pending(), None, "what expired while masked is gone");
    apic.advance(4_000_000);
    assert_eq!(apic.pending(), Some(0xec));
}

#[test]
fn deadline_mode_as_linux_arms_it() {
    let mut apic = x2apic();
    apic.write_msr(msr(LVT_TIMER), 0x400ec, 0).unwrap();
    apic.set_tsc_deadline(5_000, 1_000);
    assert_eq!(apic.tsc_deadline(4_999), 5_000);
    assert_eq!(apic.next_deadline(4_999), Some(5_000));
    assert_eq!(apic.tsc_deadline(5_000), 0);
    assert_eq!(apic.acknowledge(), Some(0xec));
    apic.set_tsc_deadline(1, 6_000);
    apic.write_msr(msr(EOI), 0, 6_000).unwrap();
    assert_eq!(apic.acknowledge(), Some(0xec), "a deadline in the past fires at once");
}

#[test]
fn virtual_wire_and_lint() {
    let mut apic = LocalApic::new(0);
    assert!(!apic.accepts_ext_int());
    apic.enter_virtual_wire_mode();
    assert!(apic.accepts_ext_int());
    apic.set_lint1(true);
    assert!(apic.take_nmi() && !apic.take_nmi());
    apic.write_mmio(LINT0, 0x10700, 0);
    assert!(!apic.accepts_ext_int());
    apic.write_mmio(LINT0, 0x00031, 0);
    apic.set_lint0(true);
    assert_eq!(
        apic.acknowledge(),
        Some(0x31),
        "LINT0 as a fixed interrupt: Linux's last resort for its timer"
    );
    apic.set_base(LOCAL_APIC | 0x100).unwrap();
    assert!(apic.accepts_ext_int(), "without an APIC INTR is the pin");
    apic.set_lint1(false);
    apic.set_lint1(true);
    assert!(apic.take_nmi());
}

#[test]
fn software_disable_masks_the_lvt() {
    let mut apic = enabled();
    apic.write_mmio(LVT_TIMER, 0xec, 0);
    apic.write_mmio(SVR, 0xff, 0);
    assert_eq!(apic.read_mmio(LVT_TIMER, 0), 0x100ec);
    apic.write_mmio(LVT_TIMER, 0xec, 0);
    assert_eq!(apic.read_mmio(LVT_TIMER, 0), 0x100ec);
}

#[test]
fn init_and_start_up() {
    let mut apic = enabled();
    apic.receive(&Message { mode: DeliveryMode::Init, ..fixed(0) });
    assert_eq!(apic.read_mmio(SVR, 0), 0xff);
    apic.receive(&Message { mode: DeliveryMode::StartUp, ..fixed(0x9a) });
    assert_eq!(apic.take_startup(), Startup { init: true, sipi: Some(0x9a) });
    assert_eq!(apic.take_startup(), Startup::default());
}
