//! The local APIC timer: one-shot, periodic and TSC-deadline (SDM Vol. 3A 11.5.4).
//!
//! Its clock is 1 GHz, so a count is nanoseconds over the divider. Nothing ticks: the timer knows when it expires and
//! computes the current count from that.

use crate::time::SHORTEST_PERIOD;

/// LVT timer register bits 18:17.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum TimerMode {
    OneShot,
    Periodic,
    TscDeadline,
    /// Encoding 11: never fires.
    Reserved,
}

impl TimerMode {
    pub(super) fn from_lvt(lvt: u32) -> Self {
        match lvt >> 17 & 3 {
            0 => Self::OneShot,
            1 => Self::Periodic,
            2 => Self::TscDeadline,
            _ => Self::Reserved,
        }
    }
}

/// The timer's registers, apart from its LVT entry.
#[derive(Clone, Debug)]
pub(super) struct Timer {
    mode: TimerMode,
    initial: u32,
    divide: u32,
    /// When the count reaches zero, in one-shot and periodic mode.
    expires: Option<u64>,
    /// A periodic timer asks for no wake-up before this.
    rest_until: u64,
    /// IA32_TSC_DEADLINE; 0 is disarmed.
    tsc_deadline: u64,
    /// Guest TSC minus the machine's clock.
    tsc_offset: u64,
}

impl Timer {
    pub(super) fn new() -> Self {
        Self {
            mode: TimerMode::OneShot,
            initial: 0,
            divide: 0,
            expires: None,
            rest_until: 0,
            tsc_deadline: 0,
            tsc_offset: 0,
        }
    }

    /// Back to the state after power-up. The TSC is not the timer's to reset.
    pub(super) fn reset(&mut self) {
        *self = Self { tsc_offset: self.tsc_offset, ..Self::new() };
    }

    pub(super) fn set_tsc_offset(&mut self, offset: u64) {
        self.tsc_offset = offset;
    }

    /// Nanoseconds a count.
    fn divisor(&self) -> u64 {
        let value = (self.divide & 3) | (self.divide & 8) >> 1;
        1 << ((value + 1) & 7)
    }

    fn period(&self) -> u64 {
        u64::from(self.initial) * self.divisor()
    }

    /// The LVT entry was written. Going to or from TSC-deadline mode disarms the timer.
    pub(super) fn set_mode(&mut self, mode: TimerMode) {
        if self.mode != mode && (self.mode == TimerMode::TscDeadline || mode == TimerMode::TscDeadline) {
            self.expires = None;
            self.tsc_deadline = 0;
            self.initial = 0;
        }
        self.mode = mode;
    }

    pub(super) fn initial(&self) -> u32 {
        self.initial
    }

    /// Writes the initial-count register, which starts the timer; 0 stops it.
    pub(super) fn set_initial(&mut self, count: u32, now: u64) {
        if self.mode == TimerMode::TscDeadline {
            return;
        }
        self.initial = count;
        self.expires = (count != 0).then(|| now.saturating_add(self.period()));
        self.rest_until = 0;
    }

    /// The current-count register.
    pub(super) fn current(&self, now: u64) -> u32 {
        let Some(expires) = self.expires else { return 0 };
        let left = if expires > now {
            expires - now
        } else if self.mode == TimerMode::Periodic {
            let period = self.period().max(1);
            period - (now - expires) % period
        } else {
            return 0;
        };
        left.div_ceil(self.divisor()) as u32
    }

    pub(super) fn divide(&self) -> u32 {
        self.divide
    }

    /// Writes the divide configuration; a running count goes on at the new rate.
    pub(super) fn set_divide(&mut self, value: u32, now: u64) {
        let left = self.current(now);
        self.divide = value & 0xb;
        if let Some(expires) = &mut self.expires
            && left != 0
        {
            let divisor = 1 << (((self.divide & 3 | (self.divide & 8) >> 1) + 1) & 7);
            *expires = now.saturating_add(u64::from(left) * divisor);
        }
    }

    /// IA32_TSC_DEADLINE as read: 0 when disarmed or in another mode.
    pub(super) fn tsc_deadline(&self) -> u64 {
        self.tsc_deadline
    }

    /// Writes IA32_TSC_DEADLINE; ignored in other modes.
    pub(super) fn set_tsc_deadline(&mut self, deadline: u64) {
        if self.mode == TimerMode::TscDeadline {
            self.tsc_deadline = deadline;
        }
    }

    /// Whether the timer has expired since the last call. Missed periods count as one.
    pub(super) fn take_expired(&mut self, now: u64) -> bool {
        match (self.mode, self.expires) {
            (TimerMode::TscDeadline, _) => {
                let due = self.tsc_deadline != 0 && now.wrapping_add(self.tsc_offset) >= self.tsc_deadline;
                if due {
                    self.tsc_deadline = 0;
                }
                due
            }
            (TimerMode::OneShot, Some(expires)) if expires <= now => {
                self.expires = None;
                true
            }
            (TimerMode::Periodic, Some(expires)) if expires <= now => {
                let period = self.period().max(1);
                let missed = (now - expires) / period;
                self.expires = Some(expires.saturating_add((missed + 1).saturating_mul(period)));
                self.rest_until = now.saturating_add(SHORTEST_PERIOD);
                true
            }
            _ => false,
        }
    }

    /// When the timer expires next.
    pub(super) fn next_deadline(&self, now: u64) -> Option<u64> {
        match self.mode {
            TimerMode::TscDeadline if self.tsc_deadline == 0 => None,
            TimerMode::TscDeadline => {
                let ahead = self.tsc_deadline.saturating_sub(now.wrapping_add(self.tsc_offset));
                Some(now.saturating_add(ahead))
            }
            TimerMode::OneShot => self.expires,
            TimerMode::Periodic => self.expires.map(|expires| expires.max(self.rest_until)),
            TimerMode::Reserved => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_shot_counts_down_once() {
        let mut timer = Timer::new();
        timer.set_divide(0xb, 0); // by 1
        timer.set_initial(1000, 100);
        assert_eq!((timer.current(100), timer.current(600), timer.current(1099)), (1000, 500, 1));
        assert_eq!(timer.next_deadline(100), Some(1100));
        assert!(!timer.take_expired(1099));
        assert!(timer.take_expired(1100));
        assert!(!timer.take_expired(5000));
        assert_eq!((timer.current(5000), timer.next_deadline(5000)), (0, None));
    }

    #[test]
    fn periods_missed_are_merged() {
        let mut timer = Timer::new();
        timer.set_mode(TimerMode::Periodic);
        timer.set_divide(0x3, 0); // by 16
        timer.set_initial(62_500, 0); // 1 ms
        assert!(timer.take_expired(10_500_000));
        assert!(!timer.take_expired(10_999_999));
        assert_eq!(timer.next_deadline(10_500_000), Some(11_000_000), "still in phase");
        assert_eq!(timer.current(10_500_000), 31_250);
        assert!(timer.take_expired(11_000_000));
    }

    #[test]
    fn an_absurd_period_does_not_ask_for_endless_wake_ups() {
        let mut timer = Timer::new();
        timer.set_mode(TimerMode::Periodic);
        timer.set_divide(0xb, 0);
        timer.set_initial(1, 0);
        assert!(timer.take_expired(1000));
        assert_eq!(timer.next_deadline(1000), Some(1000 + SHORTEST_PERIOD));
    }

    #[test]
    fn changing_the_divider_keeps_the_count() {
        let mut timer = Timer::new();
        timer.set_divide(0xb, 0);
        timer.set_initial(1000, 0);
        timer.set_divide(0x0, 400); // by 2
        assert_eq!(timer.current(400), 600);
        assert_eq!(timer.next_deadline(400), Some(400 + 1200));
    }

    #[test]
    fn tsc_deadline_follows_the_guest_tsc() {
        let mut timer = Timer::new();
        timer.set_tsc_deadline(5);
        assert_eq!(timer.tsc_deadline(), 0, "another mode");
        timer.set_mode(TimerMode::TscDeadline);
        timer.set_tsc_offset(0u64.wrapping_sub(1000));
        timer.set_tsc_deadline(500);
        assert_eq!(timer.next_deadline(1200), Some(1500));
        assert!(!timer.take_expired(1499));
        assert!(timer.take_expired(1500));
        assert_eq!((timer.tsc_deadline(), timer.next_deadline(1500)), (0, None));
        timer.set_tsc_deadline(1);
        assert_eq!(timer.next_deadline(1600), Some(1600), "in the past: at once");
        timer.set_tsc_deadline(u64::MAX);
        assert!(!timer.take_expired(1 << 62));
        timer.set_initial(77, 0);
        assert_eq!(timer.initial(), 0, "ignored in this mode");
        timer.set_mode(TimerMode::OneShot);
        timer.set_initial(77, 0);
        timer.set_mode(TimerMode::TscDeadline);
        assert_eq!((timer.initial(), timer.current(1), timer.next_deadline(1)), (0, 0, None), "disarmed");
        timer.set_tsc_deadline(u64::MAX);
        timer.set_mode(TimerMode::OneShot);
        assert_eq!((timer.tsc_deadline(), timer.next_deadline(0)), (0, None));
    }
}
