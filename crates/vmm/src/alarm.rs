//! A timer that kicks the vCPU while the guest runs, so that device deadlines are met.
//!
//! It is a signal to the vCPU's own thread. A thread that waits for a timerfd and kicks from there took 13 to 43 us of the processor each time,
//! and a guest asks for some 250 a second. (In gdb: `handle SIG36 nostop noprint pass`.)

use std::{
    cell::Cell,
    io,
    marker::PhantomData,
    mem::zeroed,
    ptr::{null_mut, without_provenance_mut},
    sync::OnceLock,
};

use vcpu::Kick;

/// See the module's description. It rings on the thread that made it, and stays there.
pub struct Alarm {
    timer: libc::timer_t,
    armed: Option<u64>,
    /// Whom it kicks. The thread's [`TARGET`] is this.
    _kick: Box<Kick>,
    thread: PhantomData<*const ()>,
}

thread_local! {
    static TARGET: Cell<Option<*const Kick>> = const { Cell::new(None) };
}

/// Used for nothing else in this process ([`kvm`] has the one before it).
fn signal() -> libc::c_int {
    libc::SIGRTMIN() + 2
}

extern "C" fn on_alarm(_: libc::c_int) {
    // SAFETY: a thread's errno is its own; who is interrupted may be about to read it. The target lives as long as it is here, and may be
    // kicked in a signal's handler.
    unsafe {
        let errno = *libc::__errno_location();
        if let Some(kick) = TARGET.get() {
            (*kick).kick();
        }
        *libc::__errno_location() = errno;
    }
}

/// Without a handler the signal would end the process; system calls that it interrupts begin anew.
fn install_handler() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        // SAFETY: an all-zero sigaction is a valid one, and the handler is of the type that goes without SA_SIGINFO.
        let failed = unsafe {
            let mut action: libc::sigaction = zeroed();
            action.sa_sigaction = on_alarm as extern "C" fn(libc::c_int) as libc::sighandler_t;
            action.sa_flags = libc::SA_RESTART;
            libc::sigaction(signal(), &raw const action, null_mut()) != 0
        };
        if failed { Err(io::Error::last_os_error().raw_os_error().unwrap_or(0)) } else { Ok(()) }
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Has this thread receive the signal, whatever mask the process was started with.
fn unblock() {
    // SAFETY: the set is written by `sigemptyset` before anyone reads it.
    unsafe {
        let mut set: libc::sigset_t = zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal());
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const set, null_mut());
    }
}

impl Alarm {
    /// One that kicks a vCPU of this thread. A thread has one at a time.
    pub fn new(kick: Kick) -> io::Result<Self> {
        install_handler()?;
        unblock();
        let mut timer: libc::timer_t = without_provenance_mut(0);
        // SAFETY: an all-zero sigevent is a valid one; both structures live for the call.
        let failed = unsafe {
            let mut event: libc::sigevent = zeroed();
            event.sigev_notify = libc::SIGEV_THREAD_ID;
            event.sigev_signo = signal();
            event.sigev_notify_thread_id = libc::gettid();
            libc::timer_create(libc::CLOCK_MONOTONIC, &raw mut event, &raw mut timer) != 0
        };
        if failed {
            return Err(io::Error::last_os_error());
        }
        debug_assert!(TARGET.get().is_none(), "this thread has an alarm");
        let kick = Box::new(kick);
        TARGET.set(Some(&raw const *kick));
        Ok(Self { timer, armed: None, _kick: kick, thread: PhantomData })
    }

    /// Sets it for `deadline`, `now` being the same clock's time (nanoseconds); `None` stops it. Costs a system call
    /// only if the deadline is another than before.
    pub fn set(&mut self, deadline: Option<u64>, now: u64) {
        if deadline == self.armed {
            return;
        }
        self.armed = deadline;
        // Zero would disarm it; a deadline that has passed should fire at once.
        let wait = deadline.map_or(0, |deadline| deadline.saturating_sub(now).max(1));
        let spec = libc::itimerspec {
            it_interval: libc::timespec { tv_sec: 0, tv_nsec: 0 },
            it_value: libc::timespec {
                tv_sec: (wait / 1_000_000_000) as i64,
                tv_nsec: (wait % 1_000_000_000) as i64,
            },
        };
        // SAFETY: the timer lives as long as this. Fails only for arguments that are out of range, which these are not.
        unsafe { libc::timer_settime(self.timer, 0, &raw const spec, null_mut()) };
    }

    /// The deadline has passed and was handled: the same one may be set again.
    pub fn passed(&mut self) {
        self.armed = None;
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        // A signal that is on its way finds no target.
        TARGET.set(None);
        // SAFETY: it is used no longer.
        unsafe { libc::timer_delete(self.timer) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU32, Ordering},
        },
        time::{Duration, Instant},
    };
    use vcpu::Kicker;

    #[derive(Default)]
    struct Kicks(AtomicU32);

    impl Kicker for Kicks {
        fn kick(&self) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn wait(kicks: &Kicks, number: u32) {
        while kicks.0.load(Ordering::SeqCst) < number {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_alarm_rings() {
        let kicks = Arc::new(Kicks::default());
        let start = Instant::now();
        let mut alarm = Alarm::new(Arc::clone(&kicks) as Kick).unwrap();
        alarm.set(Some(30_000_000), 0);
        wait(&kicks, 1);
        assert!(start.elapsed() >= Duration::from_millis(29));
        // The same again, once it was handled; one that has passed rings at once.
        alarm.set(Some(30_000_000), 0);
        alarm.passed();
        alarm.set(Some(30_000_000), 40_000_000);
        wait(&kicks, 2);
    }

    #[test]
    fn it_rings_where_all_signals_were_blocked() {
        // SAFETY: the set is written before it is read. Only this thread, which ends with the test, blocks them.
        unsafe {
            let mut set: libc::sigset_t = zeroed();
            libc::sigfillset(&raw mut set);
            libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, null_mut());
        }
        let kicks = Arc::new(Kicks::default());
        let mut alarm = Alarm::new(Arc::clone(&kicks) as Kick).unwrap();
        alarm.set(Some(1_000_000), 0);
        wait(&kicks, 1);
    }

    #[test]
    fn a_stopped_alarm_is_silent() {
        let kicks = Arc::new(Kicks::default());
        let mut alarm = Alarm::new(Arc::clone(&kicks) as Kick).unwrap();
        alarm.set(Some(20_000_000), 0);
        alarm.set(None, 0);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(kicks.0.load(Ordering::SeqCst), 0);
        alarm.set(Some(20_000_000), 0);
        drop(alarm);
        std::thread::sleep(Duration::from_millis(60));
        assert_eq!(kicks.0.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn what_it_interrupts_goes_on() {
        let kicks = Arc::new(Kicks::default());
        let mut alarm = Alarm::new(Arc::clone(&kicks) as Kick).unwrap();
        let (reader, writer) = std::io::pipe().unwrap();
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(80));
            drop(writer);
        });
        alarm.set(Some(20_000_000), 0);
        let mut buffer = [0];
        assert_eq!(io::Read::read(&mut &reader, &mut buffer).unwrap(), 0, "the end, not an error");
        assert_eq!(kicks.0.load(Ordering::SeqCst), 1);
        late.join().unwrap();
    }
}
