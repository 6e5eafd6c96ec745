//! Conversions between nanoseconds of the machine's clock and ticks of a device's clock.

/// Nanoseconds in a second.
pub(crate) const SECOND: u64 = 1_000_000_000;

/// Shortest distance that a periodic timer asks to be woken in, in nanoseconds. Faster ones still count exactly;
/// their interrupts are merged, so that a guest cannot keep the host busy with wake-ups.
pub(crate) const SHORTEST_PERIOD: u64 = 20_000;

/// Ticks of a clock of `hz` (below 2^32) that have passed at `nanoseconds`, rounded down.
pub(crate) const fn ticks(nanoseconds: u64, hz: u64) -> u64 {
    (nanoseconds / SECOND) * hz + (nanoseconds % SECOND) * hz / SECOND
}

/// First nanosecond at which [`ticks`] reaches `count`; saturates.
pub(crate) const fn nanoseconds(count: u64, hz: u64) -> u64 {
    let whole = (count / hz).saturating_mul(SECOND);
    whole.saturating_add(((count % hz) * SECOND).div_ceil(hz))
}

/// The earlier of two deadlines.
pub(crate) fn earliest(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{PIT_HZ, PM_TIMER_HZ};

    #[test]
    fn a_tick_begins_at_its_nanosecond_and_not_before() {
        for hz in [PIT_HZ, PM_TIMER_HZ, 32_768, 1_000_000_000] {
            for count in [0, 1, 2, 3, 65_535, 65_536, hz - 1, hz, hz + 1, hz * 1_000_003 + 7] {
                let at = nanoseconds(count, hz);
                assert_eq!(ticks(at, hz), count, "{hz} Hz, tick {count}");
                assert!(at == 0 || ticks(at - 1, hz) == count - 1, "{hz} Hz, tick {count}");
            }
        }
    }
}
