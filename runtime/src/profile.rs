//! Profiles of a vCPU: exact counts of what every guest block did, and samples of where host time goes.
//!
//! [`Recorder`] is there only if [`crate::EngineConfig::profile`] asked for it; then compiled code is instrumented
//! ([`translator::instrument`]), and the engine tells the recorder what it does besides: whom it interprets, steps, compiles,
//! and why compiled code left. [`sampler`] interrupts the vCPU's thread to see where it is, [`unwind`] looks at the guest's
//! stack, an [`Observer`] sees whose code runs for the first time, [`snapshot`] makes a [`profiler::model::Profile`] of it all, at any time and from any thread.
//!
//! Every guest instruction is counted once: by the counters of the code that executed it, or in the tallies of the block that
//! was interpreted, or that left it to be stepped. So the sum over all blocks is `CpuState::instructions`.

mod book;
mod installed;
mod sampler;
mod sizes;
mod snapshot;
mod unwind;

use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
    atomic::{AtomicU64, Ordering},
};

use iced_x86::Mnemonic;
use memory::Mmu;
use profiler::{
    guest::{Observer, Sight},
    model::Tier,
    orc::RawStack,
};
use semantics::Insn;
use translator::{CodeBlock, instrument::BlockCounters};
use x86::{CpuState, SegmentRegister};

use crate::{block::Block, block_cache::CodeCache, kick::KickTarget};
use book::Book;
use sampler::{Sampler, Shared};

pub use installed::Installed;
pub(crate) use sampler::Phase;

/// How a guest block was left, where the engine and not compiled code sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Way {
    /// The monitor carried out its instruction.
    Callout(Mnemonic),
    /// The interpreter carried out a single instruction.
    Interpreter(Mnemonic),
    /// An exception of this vector was delivered.
    Exception(u8),
    /// An external interrupt, or an NMI.
    Interrupt,
    /// Something that is not RAM was accessed.
    Device,
}

/// What is recorded of one vCPU.
pub struct Recorder {
    book: Mutex<Book>,
    shared: Arc<Shared>,
    sampler: Sampler,
    cache: Arc<CodeCache>,
    observer: OnceLock<Box<dyn Observer>>,
    /// Guest instructions retired when the vCPU was last outside its engine.
    instructions: AtomicU64,
}

impl Recorder {
    /// For the vCPU whose state says at `profiled` what it is in, and which `target` makes look up.
    ///
    /// # Safety
    /// `profiled` stays valid until [`Recorder::stop`].
    pub(crate) unsafe fn start(
        profiled: *const u64,
        cache: Arc<CodeCache>,
        target: Arc<KickTarget>,
    ) -> std::io::Result<Arc<Self>> {
        let shared = Arc::new(Shared::new(profiled));
        let sampler = Sampler::start(Arc::clone(&shared), target)?;
        let book = Mutex::new(Book::new());
        let observer = OnceLock::new();
        Ok(Arc::new(Self { book, shared, sampler, cache, observer, instructions: AtomicU64::new(0) }))
    }

    /// The state that is profiled is about to go away.
    pub(crate) fn stop(&self) {
        self.sampler.stop();
    }

    /// On the vCPU's thread.
    fn book(&self) -> MutexGuard<'_, Book> {
        match self.book.try_lock() {
            Ok(book) => book,
            Err(TryLockError::Poisoned(error)) => error.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let phase = self.shared.wait();
                let book = self.book_elsewhere();
                self.phase(phase);
                book
            }
        }
    }

    fn book_elsewhere(&self) -> MutexGuard<'_, Book> {
        // Counters are right at every moment, whoever panicked.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The vCPU's thread is in its engine from here on.
    pub(crate) fn enter_engine(&self) {
        self.shared.attach();
        self.phase(Phase::Dispatch);
    }

    /// It is with the board now, or asleep.
    pub(crate) fn leave_engine(&self, state: &CpuState, asleep: bool) {
        self.instructions.store(state.instructions, Ordering::Relaxed);
        self.phase(if asleep { Phase::Idle } else { Phase::Board });
        self.shared.detach();
    }

    /// What the vCPU's thread does from here on.
    #[inline]
    pub(crate) fn phase(&self, phase: Phase) {
        self.shared.set_phase(phase);
    }

    /// Compiled code has returned.
    pub(crate) fn left(&self, state: &CpuState, leave: u64) {
        self.phase(Phase::Dispatch);
        if state.profiled == 0 {
            return;
        }
        // SAFETY: instrumented code stores nothing else there than the address of counters, which the book keeps.
        let counters = unsafe { &*(state.profiled as *const BlockCounters) };
        if let Some(count) = counters.leaves.get(leave as usize) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let number = counters.number.load(Ordering::Relaxed);
        let block = self.book().block_of(number as usize);
        if let Some(block) = block {
            self.shared.set_current(block);
        }
    }

    /// A block is about to be run.
    pub(crate) fn run(&self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu) {
        self.know(block, state, mmu);
    }

    /// Opens a record of a block, if there is none yet.
    fn know(&self, block: &Arc<Block>, state: &CpuState, mmu: &Mmu) {
        if self.book().knows(block.id) {
            return;
        }
        // Not while the book is locked: the observer may have to wait for who is reading that.
        let place = self.observer_of(state).and_then(|observer| {
            let phase = self.shared.wait();
            let place = observer.place(&sight(state, block.key.rip, block.key.first.0));
            self.phase(phase);
            place
        });
        self.book().open(block, state, mmu, place);
    }

    /// Who looks at 64-bit kernels.
    fn observer_of(&self, state: &CpuState) -> Option<&dyn Observer> {
        let observer = self.observer.get().filter(|_| state.efer & x86::control::efer::LMA != 0)?;
        Some(observer.as_ref())
    }

    /// Has somebody look at blocks who can say more of them than where they are. Only the first is asked.
    pub fn observe(&self, observer: Box<dyn Observer>) {
        // A second one has nothing to do.
        let _ = self.observer.set(observer);
    }

    /// A block is about to be interpreted.
    pub(crate) fn begin_interpreting(&self, block: &Block) {
        self.shared.set_current(block.id);
        self.phase(Phase::Interpreting);
    }

    /// It was, and executed so many instructions.
    pub(crate) fn interpreted(&self, block: &Block, instructions: u64) {
        self.phase(Phase::Dispatch);
        if let Some(record) = self.book().record(block.id) {
            record.interpreted.executions += 1;
            record.interpreted.instructions += instructions;
        }
    }

    /// The one instruction of `single` is about to be carried out. It belongs to the block that was run last, if it is in it.
    pub(crate) fn begin_step(&self, single: &Arc<Block>, state: &CpuState, mmu: &Mmu) {
        let current = self.shared.current();
        if !current.is_some_and(|current| self.book().contains(current, single)) {
            self.know(single, state, mmu);
            self.shared.set_current(single.id);
        }
        self.phase(Phase::Stepping);
    }

    /// It has completed, as so many instructions (none, if it goes on).
    pub(crate) fn stepped(&self, insn: &Insn, instructions: u64, callout: bool) {
        let way = if callout { Way::Callout(insn.mnemonic) } else { Way::Interpreter(insn.mnemonic) };
        self.count(way, instructions);
        self.phase(Phase::Dispatch);
    }

    /// The current block was left.
    pub(crate) fn way(&self, way: Way) {
        self.count(way, 0);
    }

    fn count(&self, way: Way, instructions: u64) {
        let Some(current) = self.shared.current() else { return };
        if let Some(record) = self.book().record(current) {
            record.stepped.executions += u64::from(instructions != 0);
            record.stepped.instructions += instructions;
            record.count(way);
        }
    }

    /// Code was installed at `address`.
    pub(crate) fn installed(
        &self,
        members: &[Arc<Block>],
        code: (&CodeBlock, Tier),
        address: u64,
        nanoseconds: u64,
    ) {
        let now = self.shared.monotonic();
        self.book().install(members, code, (address, now), nanoseconds, self.cache.generation());
    }

    /// A region was compiled on another thread, in the time until now.
    pub(crate) fn compiled_in_background(&self, nanoseconds: u64) {
        self.book().timeline.background(self.shared.elapsed(), nanoseconds);
    }

    /// Takes in what the sampler has seen. The state is up to date.
    pub(crate) fn drain(&self, state: &CpuState, mmu: &Mmu) {
        let samples = self.shared.take();
        if samples.is_empty() {
            return;
        }
        self.instructions.store(state.instructions, Ordering::Relaxed);
        // What it waited for was us.
        let counted = samples.iter().filter(|sample| sample.phase != Phase::Waiting).count() as u64;
        let stack = (counted > 0).then(|| {
            let mut stack = unwind::stack(state, mmu, counted);
            if let Some(observer) = self.observer_of(state) {
                stack.callers = observer.callers(&sight(state, state.rip, 0), &stack.by_frames);
            }
            stack
        });
        let mut book = self.book();
        for sample in &samples {
            book.sample(sample, self.cache.generation());
        }
        if let Some(stack) = stack {
            book.stack(stack);
        }
    }

    /// Has someone who can see more than frame pointers look at the stacks since the last time.
    pub fn settle_stacks(&self, unwind: &dyn Fn(&RawStack) -> Option<Vec<u64>>) {
        self.book_elsewhere().settle_stacks(unwind);
    }

    /// An exception was delivered.
    pub(crate) fn exception(&self, vector: u8) {
        self.book().exceptions += 1;
        self.way(Way::Exception(vector));
    }
}

/// What an observer needs to know of the vCPU. The kernel's GS is the current one in its own code, but for its first and last
/// instructions.
fn sight(state: &CpuState, rip: u64, physical: u64) -> Sight {
    let (gs, other) = (state.segments[SegmentRegister::Gs as usize].base, state.msrs.kernel_gs_base);
    let user = state.cpl == 3;
    let per_cpu = if !user && gs >> 63 == 1 { gs } else { other };
    Sight { rip, physical, user, cr3: state.cr3, per_cpu }
}
