//! A pointer that others may follow until it is taken back.

use std::{
    ptr::null_mut,
    sync::atomic::{AtomicPtr, AtomicUsize, Ordering},
};

/// What others may use, on any thread, also in a signal's handler, as long as it lives: they take no lock.
///
/// Invariant: the pointer is valid while it is here; who lent it takes it back ([`Lent::take_back`]) before it ends.
pub struct Lent<T> {
    pointer: AtomicPtr<T>,
    /// How many are using it, or about to see that it is gone.
    users: AtomicUsize,
}

impl<T: Sync> Lent<T> {
    /// Lends something.
    ///
    /// # Safety
    /// It stays valid until [`Lent::take_back`].
    pub unsafe fn new(pointer: *const T) -> Self {
        Self { pointer: AtomicPtr::new(pointer.cast_mut()), users: AtomicUsize::new(0) }
    }

    /// What `function`, which does not panic, makes of it; `None` if it has been taken back.
    pub fn with<R>(&self, function: impl FnOnce(&T) -> R) -> Option<R> {
        self.users.fetch_add(1, Ordering::SeqCst);
        // SAFETY: valid unless null; whoever takes it back waits for this use to end, which was announced before the pointer was read.
        let result = unsafe { self.pointer.load(Ordering::SeqCst).as_ref() }.map(function);
        self.users.fetch_sub(1, Ordering::SeqCst);
        result
    }

    /// Nobody uses it from now on. Not to be called within [`Lent::with`].
    pub fn take_back(&self) {
        self.pointer.store(null_mut(), Ordering::SeqCst);
        while self.users.load(Ordering::SeqCst) != 0 {
            std::thread::yield_now();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;

    #[test]
    fn what_is_taken_back_is_not_used_any_more() {
        let mut lives = Box::new(AtomicU32::new(0));
        // SAFETY: taken back below, while it lives.
        let lent = unsafe { Lent::new(&raw const *lives) };
        assert_eq!(lent.with(|word| word.fetch_add(1, Ordering::Relaxed)), Some(0));
        std::thread::scope(|scope| {
            let users: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| while lent.with(|word| word.fetch_add(2, Ordering::Relaxed)).is_some() {})
                })
                .collect();
            while lives.load(Ordering::Relaxed) < 1000 {
                std::thread::yield_now();
            }
            lent.take_back();
            let last = lives.load(Ordering::Relaxed);
            users.into_iter().for_each(|user| user.join().unwrap());
            assert_eq!(lives.load(Ordering::Relaxed), last, "used after it was taken back");
        });
        *lives.get_mut() = 0;
        assert_eq!(lent.with(|_| ()), None);
    }
}
