//! The 8254 against its datasheet and as Linux calibrates with it.

use super::*;
use crate::interrupt::Wires;

struct Bench {
    pit: Pit,
    wires: Wires,
    now: u64,
}

impl Bench {
    fn new() -> Self {
        let wires = Wires::default();
        let pit = Pit::new(wires.line(0));
        Self { pit, wires, now: 0 }
    }

    /// Moves to the beginning of a tick counted from the start.
    fn at(&mut self, tick: u64) -> &mut Self {
        self.now = nanoseconds(tick, PIT_HZ);
        self
    }

    fn write(&mut self, offset: u64, value: u8) {
        self.pit.write(offset, value, self.now);
    }

    fn load(&mut self, channel: u8, mode: u8, count: u16) {
        self.write(3, channel << 6 | 0x30 | mode << 1);
        self.write(u64::from(channel), count as u8);
        self.write(u64::from(channel), (count >> 8) as u8);
    }

    fn count(&mut self, channel: u8) -> u16 {
        self.write(3, 0xc0 | 0x10 | 2 << channel);
        let read = |bench: &mut Self| bench.pit.read(u64::from(channel), bench.now);
        u16::from_le_bytes([read(self), read(self)])
    }

    fn out(&mut self, channel: u8) -> bool {
        self.write(3, 0xc0 | 0x20 | 2 << channel);
        self.pit.read(u64::from(channel), self.now) & 0x80 != 0
    }

    /// Rising edges seen since the last call: 0 or 1.
    fn rose(&mut self) -> bool {
        self.pit.advance(self.now);
        self.wires.drain().is_some_and(|changes| changes.risen & 1 != 0)
    }
}

#[test]
fn linux_quick_calibration() {
    // quick_pit_calibrate: counter 2, mode 0, gate by port 0x61, then the high byte goes down every 256 ticks.
    let mut bench = Bench::new();
    let control = bench.pit.read_control_b(0);
    bench.pit.write_control_b(control & !2 | 1, 0);
    bench.load(2, 0, 0xffff);
    let mut read = |tick| {
        let now = nanoseconds(tick, PIT_HZ);
        bench.pit.read(2, now);
        bench.pit.read(2, now)
    };
    assert_eq!(read(0), 0xff);
    assert_eq!(read(255), 0xff);
    assert_eq!(read(256), 0xfe);
    assert_eq!(read(256 * 10 + 255), 0xf5);
}

#[test]
fn linux_slow_calibration() {
    // pit_calibrate_tsc: mode 0 for 10 ms, poll OUT2 (port 0x61 bit 5).
    let mut bench = Bench::new();
    bench.pit.write_control_b(1, 0);
    bench.load(2, 0, 11_931);
    let out2 = |bench: &Bench, tick| bench.pit.read_control_b(nanoseconds(tick, PIT_HZ)) & 0x20 != 0;
    assert!(!out2(&bench, 0) && !out2(&bench, 11_930));
    assert!(out2(&bench, 11_931) && out2(&bench, 100_000));
}

#[test]
fn the_gate_pauses_mode_0() {
    let mut bench = Bench::new();
    bench.pit.write_control_b(1, 0);
    bench.load(2, 0, 1000);
    bench.at(400);
    bench.pit.write_control_b(0, bench.now);
    bench.at(5000);
    assert_eq!(bench.count(2), 600);
    bench.pit.write_control_b(1, bench.now);
    bench.at(5100);
    assert_eq!(bench.count(2), 500);
    assert!(!bench.out(2));
    assert!(bench.at(5600).out(2));
    assert_eq!(bench.at(5601).count(2), 0xffff, "counts on below zero");
}

#[test]
fn mode_0_interrupts_once() {
    let mut bench = Bench::new();
    bench.load(0, 0, 100);
    assert!(!bench.at(99).rose());
    assert_eq!(bench.pit.next_deadline(), Some(nanoseconds(100, PIT_HZ)));
    assert!(bench.at(100).rose());
    assert!(!bench.at(70_000).rose());
    assert_eq!(bench.pit.next_deadline(), None);
    // The low byte alone stops it.
    bench.load(0, 0, 100);
    bench.write(0, 50);
    bench.at(80_000);
    assert!(!bench.rose() && !bench.out(0));
    bench.write(0, 0);
    assert!(bench.at(80_050).rose());
}

#[test]
fn mode_1_is_triggered_by_the_gate() {
    let mut bench = Bench::new();
    bench.load(2, 1, 50);
    assert!(bench.at(10).out(2), "high until triggered");
    bench.pit.write_control_b(1, bench.now);
    assert!(!bench.out(2));
    assert!(!bench.at(59).out(2));
    assert!(bench.at(60).out(2));
    bench.pit.write_control_b(0, bench.now);
    bench.at(70);
    bench.pit.write_control_b(1, bench.now);
    bench.at(100);
    bench.pit.write_control_b(0, bench.now);
    bench.pit.write_control_b(1, bench.now);
    assert!(!bench.at(149).out(2), "retriggered at 100");
    assert!(bench.at(150).out(2));
}

#[test]
fn mode_2_has_one_low_tick_a_period() {
    let mut bench = Bench::new();
    bench.load(0, 2, 1000);
    assert_eq!((bench.count(0), bench.at(1).count(0), bench.at(999).count(0)), (1000, 999, 1));
    assert!(!bench.out(0) && bench.at(998).out(0) && bench.at(1000).out(0));
    assert_eq!(bench.count(0), 1000);
    assert!(bench.rose());
    assert!(!bench.at(1999).rose());
    assert!(bench.at(2000).rose());
    assert!(bench.at(9_500).rose(), "seven missed periods are one interrupt");
    assert!(!bench.at(9_600).rose());
    assert_eq!(bench.pit.next_deadline(), Some(nanoseconds(10_000, PIT_HZ)), "and the phase is kept");
}

#[test]
fn a_new_count_waits_for_the_end_of_the_period() {
    let mut bench = Bench::new();
    bench.load(0, 2, 1000);
    bench.at(400);
    bench.write(0, 100);
    bench.write(0, 0);
    assert_eq!(bench.at(500).count(0), 500);
    bench.write(3, 0xc0 | 0x20 | 2);
    assert_eq!(bench.pit.read(0, bench.now), 0x80 | 0x40 | 0x34, "status with null count");
    assert!(bench.at(1000).rose());
    assert_eq!(bench.at(1001).count(0), 99);
    assert!(bench.at(1100).rose());
}

#[test]
fn absurd_rates_do_not_ask_for_endless_wake_ups() {
    let mut bench = Bench::new();
    bench.load(0, 2, 2);
    assert!(bench.at(1000).rose());
    assert_eq!(bench.pit.next_deadline(), Some(bench.now + SHORTEST_PERIOD));
}

#[test]
fn the_gate_restarts_a_period() {
    let mut bench = Bench::new();
    bench.pit.write_control_b(1, 0);
    bench.load(2, 2, 1000);
    bench.at(400);
    bench.write(2, 100);
    bench.write(2, 0);
    bench.pit.write_control_b(0, bench.now);
    assert_eq!(bench.at(2_000).count(2), 600, "halted");
    assert!(bench.out(2));
    bench.pit.write_control_b(1, bench.now);
    assert_eq!(bench.at(2_030).count(2), 70, "the new count is loaded");
}

#[test]
fn mode_3_is_a_square_wave() {
    let mut bench = Bench::new();
    bench.load(0, 3, 10);
    let mut wave = |tick| (bench.at(tick).out(0), bench.count(0));
    assert_eq!((0..11).map(|t| wave(t).0 as u8).collect::<Vec<_>>(), [1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 1]);
    assert_eq!((0..6).map(|t| wave(t).1).collect::<Vec<_>>(), [10, 8, 6, 4, 2, 10]);
    bench.at(0);
    bench.load(0, 3, 5);
    let mut wave = |tick| (bench.at(tick).out(0), bench.count(0));
    assert_eq!(
        (0..6).map(&mut wave).collect::<Vec<_>>(),
        [(true, 5), (true, 4), (true, 2), (false, 5), (false, 2), (true, 5)]
    );
}

#[test]
fn mode_4_strobes_once() {
    let mut bench = Bench::new();
    bench.load(0, 4, 10);
    bench.rose();
    assert!(bench.at(9).out(0) && !bench.at(10).out(0) && bench.at(11).out(0));
    assert!(bench.rose());
    assert!(!bench.at(100_000).rose());
}

#[test]
fn mode_5_strobes_after_the_gate() {
    let mut bench = Bench::new();
    bench.load(2, 5, 10);
    assert!(bench.at(50).out(2));
    bench.pit.write_control_b(1, bench.now);
    assert!(bench.at(59).out(2) && !bench.at(60).out(2) && bench.at(61).out(2));
}

#[test]
fn latches_hold_until_read() {
    let mut bench = Bench::new();
    bench.load(0, 2, 0);
    bench.at(0x1234);
    bench.write(3, 0x00);
    bench.at(0x3000);
    bench.write(3, 0x00);
    let count = [bench.pit.read(0, bench.now), bench.pit.read(0, bench.now)];
    assert_eq!(u16::from_le_bytes(count), 0u16.wrapping_sub(0x1234), "the second latch is ignored");
    let count = [bench.pit.read(0, bench.now), bench.pit.read(0, bench.now)];
    assert_eq!(u16::from_le_bytes(count), 0u16.wrapping_sub(0x3000), "live again");
    // Read-back of both: status first, then the count.
    bench.write(3, 0xc2);
    assert_eq!(bench.pit.read(0, bench.now), 0xb4);
    assert_eq!(bench.pit.read(0, bench.now), 0x00);
    assert_eq!(bench.pit.read(0, bench.now), 0xd0);
    assert_eq!(bench.pit.read(3, 0), 0xff);
}

#[test]
fn bcd_and_single_bytes() {
    let mut bench = Bench::new();
    bench.write(3, 0x31 | 2 << 1);
    bench.write(0, 0x00);
    bench.write(0, 0x10);
    assert_eq!(bench.at(1).count(0), 0x0999);
    bench.at(0);
    bench.write(3, 0x20 | 2 << 1); // high byte only
    bench.write(0, 0x02);
    bench.at(0x101);
    assert_eq!(bench.pit.read(0, bench.now), 0x00);
    assert_eq!(bench.at(0x200).pit.read(0, nanoseconds(0x200, PIT_HZ)), 0x02);
}
