//! Where host time goes, without performance counters: a thread looks every two milliseconds.
//!
//! While the vCPU is in its engine, the look is a signal to its thread, whose handler notes the host's instruction pointer,
//! what the engine was doing, and which block instrumented code was in; then it asks the engine for attention, so that what
//! was noted is taken in soon. While the vCPU is with the board or asleep, the sampler just counts that.
//!
//! The handler runs on the thread that takes notes in, so the ring between the two has one writer and one reader that
//! never run at the same time, and it does nothing but read and write memory and the clock.

use std::{
    cell::Cell,
    sync::{
        Arc, Mutex, Once, PoisonError,
        atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use crate::{block::BlockId, kick::KickTarget};

/// Between two looks.
const PERIOD: Duration = Duration::from_millis(2);

/// Notes that fit before they are taken in.
const NOTES: usize = 256;

/// Looks outside the engine that are kept until a snapshot is made.
const MOST_OUTSIDE: usize = 1 << 18;

/// What the vCPU's thread is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u32)]
pub(crate) enum Phase {
    /// Asleep in HLT.
    Idle,
    /// Outside the engine: devices.
    Board,
    /// Finding what to run next, delivering events.
    #[default]
    Dispatch,
    /// In compiled code.
    Compiled,
    /// In what compiled code calls: slow paths of memory accesses, helpers.
    Helper,
    /// Interpreting a block.
    Interpreting,
    /// Carrying out one instruction: callouts, and what compiled code left to the interpreter.
    Stepping,
    /// Translating or compiling, or forming a region for that.
    Translating,
    /// Waiting until a snapshot of the profile is made.
    Waiting,
}

/// Number of phases.
pub(super) const PHASES: usize = 9;

impl Phase {
    /// All, in numeric order, with their names.
    pub const ALL: [(Self, &'static str); PHASES] = [
        (Self::Idle, "idle"),
        (Self::Board, "devices"),
        (Self::Dispatch, "dispatch"),
        (Self::Compiled, "translated code"),
        (Self::Helper, "helpers and slow paths"),
        (Self::Interpreting, "interpreter"),
        (Self::Stepping, "callouts and single steps"),
        (Self::Translating, "translating"),
        (Self::Waiting, "waiting for the profile"),
    ];

    fn from_number(number: u32) -> Self {
        Self::ALL.get(number as usize).map_or(Self::Dispatch, |&(phase, _)| phase)
    }
}

/// What a look has found.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Sample {
    pub at_ns: u64,
    pub phase: Phase,
    /// The host's instruction pointer.
    pub host: u64,
    /// `CpuState::profiled`.
    pub profiled: u64,
    /// The block that the engine is busy with, outside compiled code.
    pub current: Option<BlockId>,
}

/// One note of the ring.
#[derive(Default)]
struct Note {
    at_ns: AtomicU64,
    phase: AtomicU32,
    host: AtomicU64,
    profiled: AtomicU64,
    current: AtomicU64,
}

/// No block.
const NOBODY: u64 = u64::MAX;

/// Shared by the vCPU's thread, its signal handler and the sampler.
pub(super) struct Shared {
    began: Instant,
    began_ns: u64,
    phase: AtomicU32,
    current: AtomicU64,
    profiled: *const u64,
    /// The thread that is in the engine, or 0.
    thread: AtomicI32,
    notes: [Note; NOTES],
    /// Notes ever written, and of these, taken in.
    written: AtomicUsize,
    read: AtomicUsize,
    lost: AtomicU64,
    /// Looks that found it outside the engine and were not taken in yet, with their times.
    outside: Mutex<Vec<(u64, Phase)>>,
    stop: AtomicBool,
}

// SAFETY: `profiled` is read only by the signal handler, on the thread that owns the state.
unsafe impl Send for Shared {}
// SAFETY: as above; all else is atomic.
unsafe impl Sync for Shared {}

thread_local! {
    /// For the signal handler. Needs no initialization and no destructor, so it may be used there.
    static CURRENT: Cell<*const Shared> = const { Cell::new(std::ptr::null()) };
    static THREAD: Cell<i32> = const { Cell::new(0) };
}

impl Shared {
    pub fn new(profiled: *const u64) -> Self {
        Self {
            began: Instant::now(),
            began_ns: monotonic_ns(),
            phase: AtomicU32::new(Phase::Board as u32),
            current: AtomicU64::new(NOBODY),
            profiled,
            thread: AtomicI32::new(0),
            notes: std::array::from_fn(|_| Note::default()),
            written: AtomicUsize::new(0),
            read: AtomicUsize::new(0),
            lost: AtomicU64::new(0),
            outside: Mutex::default(),
            stop: AtomicBool::new(false),
        }
    }

    /// This thread enters the engine.
    pub fn attach(&self) {
        CURRENT.set(self);
        if THREAD.get() == 0 {
            // SAFETY: takes nothing and can't fail.
            THREAD.set(unsafe { libc::gettid() });
        }
        self.thread.store(THREAD.get(), Ordering::Release);
    }

    /// It leaves it.
    pub fn detach(&self) {
        self.thread.store(0, Ordering::Release);
        CURRENT.set(std::ptr::null());
    }

    #[inline]
    pub fn set_phase(&self, phase: Phase) {
        self.phase.store(phase as u32, Ordering::Relaxed);
    }

    pub fn set_current(&self, block: BlockId) {
        self.current.store(block.0, Ordering::Relaxed);
    }

    pub fn current(&self) -> Option<BlockId> {
        block(self.current.load(Ordering::Relaxed))
    }

    /// Nanoseconds since the beginning.
    pub fn elapsed(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }

    /// The time by CLOCK_MONOTONIC.
    pub fn monotonic(&self) -> u64 {
        self.began_ns + self.elapsed()
    }

    /// Samples that there was no room for.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// Takes the looks that found the vCPU outside its engine.
    pub fn take_outside(&self) -> Vec<(u64, Phase)> {
        std::mem::take(&mut *self.outside.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The vCPU's thread waits for a lock; gives what it was doing.
    pub fn wait(&self) -> Phase {
        let phase = self.phase.load(Ordering::Relaxed);
        self.set_phase(Phase::Waiting);
        Phase::from_number(phase)
    }

    fn note_outside(&self) {
        let phase = Phase::from_number(self.phase.load(Ordering::Relaxed));
        let mut outside = self.outside.lock().unwrap_or_else(PoisonError::into_inner);
        if outside.len() < MOST_OUTSIDE {
            outside.push((self.elapsed(), phase));
        } else {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Takes all notes. On the vCPU's thread only.
    pub fn take(&self) -> Vec<Sample> {
        let (read, written) = (self.read.load(Ordering::Relaxed), self.written.load(Ordering::Acquire));
        let samples = (read..written).map(|n| {
            let note = &self.notes[n % NOTES];
            Sample {
                at_ns: note.at_ns.load(Ordering::Relaxed),
                phase: Phase::from_number(note.phase.load(Ordering::Relaxed)),
                host: note.host.load(Ordering::Relaxed),
                profiled: note.profiled.load(Ordering::Relaxed),
                current: block(note.current.load(Ordering::Relaxed)),
            }
        });
        let samples = samples.collect();
        self.read.store(written, Ordering::Release);
        samples
    }

    /// In the signal handler.
    fn note(&self, host: u64) {
        let written = self.written.load(Ordering::Relaxed);
        if written - self.read.load(Ordering::Relaxed) >= NOTES {
            self.lost.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let note = &self.notes[written % NOTES];
        note.at_ns.store(monotonic_ns().saturating_sub(self.began_ns), Ordering::Relaxed);
        note.phase.store(self.phase.load(Ordering::Relaxed), Ordering::Relaxed);
        note.host.store(host, Ordering::Relaxed);
        // SAFETY: the state lives while its thread is in the engine, and nobody else writes to it meanwhile.
        let profiled = unsafe { self.profiled.read_volatile() };
        note.profiled.store(profiled, Ordering::Relaxed);
        note.current.store(self.current.load(Ordering::Relaxed), Ordering::Relaxed);
        self.written.store(written + 1, Ordering::Release);
    }
}

fn block(number: u64) -> Option<BlockId> {
    (number != NOBODY).then_some(BlockId(number))
}

fn monotonic_ns() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one timespec; may be called in signal handlers (POSIX).
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// The signal; Rust's runtime and our other crates have no use for it.
const SIGNAL: i32 = libc::SIGPROF;

extern "C" fn on_signal(_: i32, _: *mut libc::siginfo_t, context: *mut libc::c_void) {
    let shared = CURRENT.get();
    if shared.is_null() || context.is_null() {
        return;
    }
    // SAFETY: the kernel gives a ucontext; `Shared` is alive as long as this thread is in the engine that it belongs to.
    unsafe {
        let registers = &(*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs;
        (*shared).note(registers[libc::REG_RIP as usize] as u64);
    }
}

fn install_handler() -> std::io::Result<()> {
    static ONCE: Once = Once::new();
    let mut result = Ok(());
    ONCE.call_once(|| {
        // SAFETY: a zeroed sigaction is valid; the handler is a function of the type that SA_SIGINFO asks for, and
        // stays where it is.
        let failed = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = on_signal as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART;
            libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) != 0
        };
        if failed {
            result = Err(std::io::Error::last_os_error());
        }
    });
    result
}

/// The thread that looks.
pub(super) struct Sampler {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Sampler {
    pub fn start(shared: Arc<Shared>, target: Arc<KickTarget>) -> std::io::Result<Self> {
        install_handler()?;
        let looks = Arc::clone(&shared);
        let thread =
            std::thread::Builder::new().name("sampler".into()).spawn(move || run(&looks, &target))?;
        Ok(Self { shared, thread: Mutex::new(Some(thread)) })
    }

    /// Stops and joins the thread.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = thread.join();
        }
    }
}

fn run(shared: &Shared, target: &KickTarget) {
    while !shared.stop.load(Ordering::Relaxed) {
        std::thread::sleep(PERIOD);
        let thread = shared.thread.load(Ordering::Acquire);
        if thread == 0 {
            shared.note_outside();
            continue;
        }
        // SAFETY: sends a signal to a thread of this process; if that has ended meanwhile, the call fails.
        unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), thread, SIGNAL) };
        target.request_attention();
    }
}
