//! The clock as Linux's mc146818-lib and rtc-cmos use it.

use super::*;
use crate::interrupt::Wires;

/// 2026-11-01 13:45:58 UTC, a Sunday, and 300 ms.
fn rtc() -> Rtc {
    Rtc::new(Wires::default().line(8), Duration::from_millis(1_793_540_758_300))
}

fn read(rtc: &mut Rtc, index: usize, now: u64) -> u8 {
    rtc.write(0, index as u8, now);
    rtc.read(1, now)
}

fn write(rtc: &mut Rtc, index: usize, value: u8, now: u64) {
    rtc.write(0, index as u8, now);
    rtc.write(1, value, now);
}

fn time(rtc: &mut Rtc, now: u64) -> Vec<u8> {
    [CENTURY, YEAR, MONTH, DAY, WEEKDAY, HOURS, MINUTES, SECONDS].map(|index| read(rtc, index, now)).to_vec()
}

const MS: u64 = 1_000_000;

#[test]
fn time_in_bcd_follows_the_clock() {
    let mut rtc = rtc();
    assert_eq!(time(&mut rtc, 0), [0x20, 0x26, 0x11, 0x01, 1, 0x13, 0x45, 0x58]);
    assert_eq!(time(&mut rtc, 699 * MS)[7], 0x58);
    assert_eq!(time(&mut rtc, 700 * MS)[7], 0x59);
    let day = 86_400_000 * MS;
    assert_eq!(time(&mut rtc, 30 * day), [0x20, 0x26, 0x12, 0x01, 3, 0x13, 0x45, 0x58]);
    assert_eq!(read(&mut rtc, STATUS_D, 0), 0x80);
}

#[test]
fn update_in_progress_before_each_second() {
    let mut rtc = rtc();
    let mut uip = |now| read(&mut rtc, STATUS_A, now) & 0x80 != 0;
    assert!(!uip(0));
    assert!(!uip(700 * MS - UPDATE - 1));
    assert!(uip(700 * MS - UPDATE));
    assert!(uip(700 * MS - 1));
    assert!(!uip(700 * MS));
    write(&mut rtc, STATUS_B, 0x82, 0);
    assert_eq!(read(&mut rtc, STATUS_A, 1700 * MS - 1), 0x26, "not while SET");
}

#[test]
fn binary_and_twelve_hours() {
    let mut rtc = rtc();
    write(&mut rtc, STATUS_B, 0x80 | 0x04, 0);
    for (index, value) in
        [(CENTURY, 20), (YEAR, 28), (MONTH, 2), (DAY, 28), (HOURS, 0x80 | 11), (MINUTES, 59), (SECONDS, 59)]
    {
        write(&mut rtc, index, value, 0);
    }
    assert_eq!(time(&mut rtc, 5_000 * MS)[7], 59, "SET stops the clock");
    write(&mut rtc, STATUS_B, 0x04, 5_000 * MS);
    assert_eq!(time(&mut rtc, 5_700 * MS), [20, 28, 2, 29, 3, 12, 0, 0], "midnight is 12 am of the leap day");
    assert_eq!(time(&mut rtc, 5_700 * MS + 13 * 3_600_000 * MS)[5], 0x80 | 1);
}

#[test]
fn linux_set_time_restarts_the_second() {
    // mc146818_set_time: SET, divider reset, write, clear both.
    let mut rtc = rtc();
    write(&mut rtc, STATUS_B, 0x82, 0);
    write(&mut rtc, STATUS_A, 0x76, 0);
    for (index, value) in [(MONTH, 0x02), (DAY, 0x31), (SECONDS, 0x30)] {
        write(&mut rtc, index, value, 0);
    }
    assert_eq!(read(&mut rtc, DAY, 3_000 * MS), 0x31, "nothing corrects a date that is being written");
    write(&mut rtc, DAY, 0x05, 3_000 * MS);
    write(&mut rtc, STATUS_B, 0x02, 3_100 * MS);
    write(&mut rtc, STATUS_A, 0x26, 3_100 * MS);
    assert_eq!(read(&mut rtc, SECONDS, 3_599 * MS), 0x30);
    assert_eq!(read(&mut rtc, SECONDS, 3_600 * MS), 0x31);
    assert_eq!(time(&mut rtc, 3_600 * MS)[2..4], [0x02, 0x05]);
}

#[test]
fn periodic_interrupts_are_merged() {
    let mut rtc = rtc();
    write(&mut rtc, STATUS_B, 0x42, 0);
    let period = nanoseconds(32, HZ); // 1024 Hz
    assert_eq!(rtc.next_deadline(), Some(period));
    rtc.advance(period - 1);
    assert!(!rtc.line.is_high());
    rtc.advance(period * 7);
    assert!(rtc.line.is_high());
    assert_eq!(rtc.next_deadline(), None, "until it is taken");
    assert_eq!(read(&mut rtc, STATUS_C, period * 7), 0xc0);
    assert!(!rtc.line.is_high());
    assert_eq!(read(&mut rtc, STATUS_C, period * 7), 0);
    assert!(rtc.next_deadline().is_some_and(|at| at > period * 7 && at <= period * 8));
}

#[test]
fn update_and_alarm_interrupts() {
    let mut rtc = rtc();
    read(&mut rtc, STATUS_C, 0);
    write(&mut rtc, STATUS_B, 0x12, 0);
    assert_eq!(rtc.next_deadline(), Some(700 * MS));
    rtc.advance(700 * MS);
    assert_eq!(
        read(&mut rtc, STATUS_C, 700 * MS),
        0x90 | 0x40,
        "the periodic flag is set without its enable"
    );
    // 13:46:10, then any hour and minute.
    for (index, value) in [(HOURS_ALARM, 0x13), (MINUTES_ALARM, 0x46), (SECONDS_ALARM, 0x10)] {
        write(&mut rtc, index, value, 700 * MS);
    }
    write(&mut rtc, STATUS_B, 0x22, 700 * MS);
    assert_eq!(rtc.next_deadline(), Some(11_700 * MS));
    rtc.advance(11_699 * MS);
    assert!(!rtc.line.is_high());
    rtc.advance(11_700 * MS);
    assert!(rtc.line.is_high());
    assert_eq!(read(&mut rtc, STATUS_C, 11_700 * MS) & 0xa0, 0xa0);
    write(&mut rtc, HOURS_ALARM, 0xff, 11_700 * MS);
    assert_eq!(rtc.next_deadline(), Some(11_700 * MS + 3_600_000 * MS));
    write(&mut rtc, MINUTES_ALARM, 0xc0, 11_700 * MS);
    assert_eq!(rtc.next_deadline(), Some(71_700 * MS));
    write(&mut rtc, SECONDS_ALARM, 0x99, 11_700 * MS);
    assert_eq!(rtc.next_deadline(), None, "a time that never comes");
}

#[test]
fn setting_the_time_takes_the_update_interrupt_away() {
    let mut rtc = rtc();
    write(&mut rtc, STATUS_B, 0x12, 0);
    write(&mut rtc, STATUS_B, 0x92, 0);
    assert_eq!(read(&mut rtc, STATUS_B, 0), 0x82);
}

#[test]
fn ram_and_nmi_mask() {
    let mut rtc = rtc();
    write(&mut rtc, 0x0f | 0x80, 0x0a, 0);
    assert!(rtc.is_nmi_masked());
    assert_eq!(read(&mut rtc, 0x0f, 0), 0x0a);
    assert!(!rtc.is_nmi_masked());
    rtc.set_cmos(0x34, 0x55);
    rtc.set_cmos(0, 0x55);
    rtc.set_cmos(200, 0x55);
    assert_eq!((read(&mut rtc, 0x34, 0), read(&mut rtc, SECONDS, 0)), (0x55, 0x58));
    assert_eq!(rtc.read(0, 0), 0xff);
}
