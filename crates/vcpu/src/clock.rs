//! The machine's clock. TSC, PIT, PM timer, APIC timer, kvmclock and RTC all derive from it, so a guest that
//! calibrates one against another succeeds however busy the host is.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

/// Nanoseconds since the machine was made, monotonic. Clones share the time.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    Host(Instant),
    Manual(AtomicU64),
}

impl Clock {
    /// Frequency of the guest's TSC: one tick a nanosecond.
    pub const TSC_HZ: u64 = 1_000_000_000;

    /// A clock that follows the host's monotonic clock.
    pub fn host() -> Self {
        Self(Arc::new(Source::Host(Instant::now())))
    }

    /// A clock that moves only by [`Clock::advance`], for tests and reproducible runs.
    pub fn manual() -> Self {
        Self(Arc::new(Source::Manual(AtomicU64::new(0))))
    }

    /// Nanoseconds since the machine was made.
    #[inline]
    pub fn now(&self) -> u64 {
        match &*self.0 {
            Source::Host(start) => start.elapsed().as_nanos() as u64,
            Source::Manual(now) => now.load(Ordering::Relaxed),
        }
    }

    /// Moves a manual clock on; a host clock ignores it.
    pub fn advance(&self, nanoseconds: u64) {
        if let Source::Manual(now) = &*self.0 {
            now.fetch_add(nanoseconds, Ordering::Relaxed);
        }
    }

    /// TSC ticks since the machine was made, before any offset that the guest set.
    #[inline]
    pub fn tsc(&self) -> u64 {
        self.now()
    }
}
