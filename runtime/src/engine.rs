//! [`Engine`]: one vCPU, `impl Vcpu` by interpretation and translation.
//!
//! It owns the processor state (boxed: its address is what compiled code has in r15), the MMU, its view of the block
//! cache, and what is shared with no other vCPU. The other files of this crate are its parts: [`crate::dispatch`] is the loop.

use std::sync::{Arc, atomic::Ordering};

use memory::{CodePages, Mmu, Ram};
use semantics::decode::MAX_BLOCK;
use translator::{
    Options, Translator,
    windows::{self, Handled},
};
use vcpu::{Clock, EngineError, Entry, Exit, Kick, Statistics, Vcpu};
use x86::{CpuState, Segment};

use crate::{
    block_cache::CodeCache,
    callouts::Callouts,
    code_memory::CodeMemory,
    compiled::{LeaveCounters, OpenExit},
    compiler::Compiler,
    events::Events,
    finder::{self, Finder},
    helpers::HelperTable,
    jump_cache::JumpCache,
    kick::KickTarget,
    persistent::Translations,
    profile::Recorder,
    stress::Stress,
    tier::{DEFAULT_HOT_THRESHOLD, DEFAULT_TEMPLATE_THRESHOLD, DEFAULT_THRESHOLD, EngineMode, Policy},
};

/// What short-lived processes do not reach: some 10 ms.
const DEFAULT_WINDOW_PATIENCE: u64 = 20_000_000;

/// How an engine works.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EngineConfig {
    /// Interpret only, or translate what is warm.
    pub mode: EngineMode,
    /// Executions of a block before it is translated by templates; 1 translates at the first, [`u32::MAX`] never.
    pub template_threshold: u32,
    /// Executions of a block by the interpreter before it is compiled; 1 compiles at the first.
    pub threshold: u32,
    /// Executions of a block that was translated by templates before a region is made around it.
    pub hot_threshold: u32,
    /// Bytes of host memory reserved for compiled code.
    pub code_memory: usize,
    /// Instructions that a guest block has at most; for tests, which run blocks of one.
    pub longest_block: usize,
    /// Wait longer with code in pages that keep changing; tests want it translated all the same.
    pub patient: bool,
    /// Compile on a thread of its own; else the guest waits for the compiler.
    pub background: bool,
    /// Record a profile: [`Engine::recorder`].
    pub profile: bool,
    /// Announce paravirtual features, and have them.
    pub paravirt: bool,
    /// Hot code of user processes accesses guest memory by the host's own MMU, where the host allows that ([`memory::window`]).
    pub windows: bool,
    /// Instructions that a process must have run before its hot code does.
    pub window_patience: u64,
    /// For tests: drop code, blocks, links and caches at random, by this seed.
    pub stress: Option<u64>,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            mode: EngineMode::Translate,
            template_threshold: DEFAULT_TEMPLATE_THRESHOLD,
            threshold: DEFAULT_THRESHOLD,
            hot_threshold: DEFAULT_HOT_THRESHOLD,
            code_memory: 256 << 20,
            longest_block: MAX_BLOCK,
            patient: true,
            background: true,
            profile: false,
            paravirt: true,
            windows: true,
            window_patience: DEFAULT_WINDOW_PATIENCE,
            stress: None,
        }
    }
}

impl EngineConfig {
    /// An engine that never compiles.
    pub fn interpret() -> Self {
        Self { mode: EngineMode::Interpret, ..Self::default() }
    }
}

/// A vCPU.
pub struct Engine {
    pub(crate) state: Box<CpuState>,
    pub(crate) mmu: Mmu,
    pub(crate) clock: Clock,
    pub(crate) cache: Arc<CodeCache>,
    pub(crate) finder: Finder,
    pub(crate) jump_cache: Arc<JumpCache>,
    /// `None`: interpret only.
    pub(crate) compiler: Option<Compiler>,
    helpers: Option<&'static HelperTable>,
    kick: Arc<KickTarget>,
    pub(crate) events: Events,
    /// The exit that compiled code left through last, until the next block is found.
    pub(crate) open: Option<OpenExit>,
    /// DR6 bits that wait for the end of a MOV SS shadow.
    pub(crate) deferred_debug: u64,
    pub(crate) stress: Option<Stress>,
    /// Instructions that were not compiled code's.
    pub(crate) interpreted: u64,
    pub(crate) exceptions: u64,
    pub(crate) leaves: LeaveCounters,
    pub(crate) callouts: Callouts,
    exits: u64,
    paravirt: bool,
    /// Blocks have the length that they have by default.
    usual_blocks: bool,
    pub(crate) profile: Option<Arc<Recorder>>,
    /// Compiled code may access the window.
    windows: bool,
}

pub(crate) fn failed(what: String) -> EngineError {
    EngineError { engine: "translate", what }
}

impl Engine {
    /// A vCPU in its power-up state.
    pub fn new(config: EngineConfig, ram: Ram, clock: Clock) -> Result<Self, EngineError> {
        let missing = semantics::native::missing_host_features();
        if !missing.is_empty() {
            let missing = missing.join(", ");
            return Err(failed(format!("this host's processor lacks {missing}, which guests are promised")));
        }
        let translates = config.mode == EngineMode::Translate;
        // The interpreter's share of the cache needs no code memory.
        let code_memory = if translates { config.code_memory } else { CodeMemory::SMALLEST };
        let memory = CodeMemory::new(code_memory).map_err(|error| failed(error.to_string()))?;
        let pages = CodePages::new(&ram);
        let cache = CodeCache::new(Arc::clone(&pages), memory);
        let mut mmu = Mmu::new(ram, pages);
        mmu.set_watch(cache.clone());
        let jump_cache = Arc::new(JumpCache::new());
        cache.register(Arc::clone(&jump_cache));
        let state = Box::new(CpuState::new());
        // SAFETY: the word is in a box that the engine frees only after `drop` has disconnected the target.
        let kick = Arc::new(unsafe { KickTarget::new(&raw const state.exit_request) });
        let profile = if config.profile {
            // SAFETY: the word is in the same box, and `drop` stops the recorder before it is freed.
            let recorder =
                unsafe { Recorder::start(&raw const state.profiled, Arc::clone(&cache), Arc::clone(&kick)) };
            Some(recorder.map_err(|error| failed(format!("starting the profile's sampler: {error}")))?)
        } else {
            None
        };
        let ready = if translates { finder::READY } else { finder::READY_FOR_GOOD };
        let mut finder = Finder::new(Arc::clone(&cache), config.longest_block, ready);
        let (compiler, helpers) = if translates {
            let translator = Translator::new(Options { instrument: config.profile, ..Options::default() })
                .map_err(|error| failed(error.to_string()))?;
            let policy = Policy {
                mode: config.mode,
                template_threshold: config.template_threshold,
                threshold: config.threshold,
                hot_threshold: config.hot_threshold,
                patient: config.patient,
            };
            let compiler = if config.background {
                Compiler::in_background(policy, translator, Arc::clone(&cache), Arc::clone(&kick))
                    .map_err(|error| failed(format!("starting the compiler's thread: {error}")))?
            } else {
                Compiler::here(policy, translator, Arc::clone(&cache))
            };
            let compiler = match &profile {
                Some(recorder) => compiler.recording(Arc::clone(recorder)),
                None => {
                    finder.extend_blocks(policy);
                    compiler
                }
            };
            (Some(compiler), Some(HelperTable::get().map_err(failed)?))
        } else {
            (None, None)
        };
        let mut engine = Self {
            state,
            mmu,
            clock,
            callouts: Callouts::new(&cache),
            finder,
            cache,
            jump_cache,
            compiler,
            helpers,
            kick,
            events: Events::default(),
            open: None,
            deferred_debug: 0,
            stress: config.stress.map(Stress::new),
            interpreted: 0,
            exceptions: 0,
            leaves: LeaveCounters::default(),
            exits: 0,
            paravirt: config.paravirt,
            usual_blocks: config.longest_block == MAX_BLOCK,
            profile,
            windows: false,
        };
        if config.windows
            && !config.profile
            && translates
            && windows::prepare()
            && engine.mmu.open_window(config.window_patience)
        {
            engine.windows = true;
            if let Some(compiler) = &mut engine.compiler {
                compiler.use_windows();
            }
        }
        engine.attach();
        Ok(engine)
    }

    /// The profile that is being recorded, if [`EngineConfig::profile`] asked for one.
    pub fn recorder(&self) -> Option<Arc<Recorder>> {
        self.profile.clone()
    }

    /// Has it take code from there, and note there what it translates. Does nothing where code would be other than usual:
    /// with a profile, or with blocks of another length; or where there is none.
    pub fn use_translations(&mut self, translations: &Arc<Translations>) {
        if self.profile.is_some() || !self.usual_blocks {
            return;
        }
        if let Some(compiler) = &mut self.compiler {
            self.finder.use_translations(Arc::clone(translations), compiler.policy());
            compiler.keep_translations(Arc::clone(translations));
        }
    }

    /// How often compiled code left, by reason.
    pub fn leaves(&self) -> LeaveCounters {
        self.leaves
    }

    /// Exceptions delivered.
    pub fn exceptions(&self) -> u64 {
        self.exceptions
    }

    /// Blocks that the translator refused: they are interpreted for good.
    pub fn declined(&self) -> u64 {
        self.compiler.as_ref().map_or(0, Compiler::declined)
    }

    /// Host bytes of code memory in use.
    pub fn code_memory_used(&self) -> usize {
        self.cache.code_memory_used()
    }

    /// The block cache, to tell it of writes to RAM that do not come from the guest's processor (DMA):
    /// [`memory::CodeWatch::code_written`].
    pub fn code_cache(&self) -> &Arc<CodeCache> {
        &self.cache
    }

    /// Which pages hold code that was translated, for devices that write to memory.
    pub fn code_pages(&self) -> &Arc<CodePages> {
        self.mmu.code_pages()
    }

    pub(crate) fn context(&mut self) -> monitor::Context<'_> {
        monitor::Context { state: &mut self.state, mmu: &mut self.mmu, clock: &self.clock }
    }

    fn windows_of_code(&self) -> Option<*const windows::Windows> {
        self.compiler.as_ref().filter(|_| self.windows).map(Compiler::windows)
    }

    /// Points the state at this engine's tables, and derives what follows from its registers.
    fn attach(&mut self) {
        self.state.jump_cache = self.jump_cache.as_ptr();
        self.state.helpers = self.helpers.map_or(std::ptr::null(), HelperTable::as_ptr);
        translator::carried::attach(&mut self.state);
        self.state.paravirt = self.paravirt;
        self.state.update_mode();
        self.mmu.flush_all(&mut self.state);
        self.mmu.select_view(&mut self.state);
    }
}

impl Vcpu for Engine {
    fn run(&mut self, entry: Entry) -> Result<Exit, EngineError> {
        self.exits += 1;
        if let Some(profile) = &self.profile {
            profile.enter_engine();
        }
        // SAFETY: both are in boxes, which live as long as the engine; the rest is `Engine::enter`'s to see to.
        let handled =
            self.windows_of_code().map(|windows| unsafe { Handled::new(windows, &raw mut *self.state) });
        let exit = self.run_guest(entry);
        drop(handled);
        if let (Ok(Exit::Halt), Some(compiler)) = (&exit, &self.compiler) {
            compiler.rest();
        }
        if let Some(profile) = &self.profile {
            profile.leave_engine(&self.state, matches!(exit, Ok(Exit::Halt)));
        }
        exit
    }

    fn ready_for_interrupt(&self) -> bool {
        self.state.interruptible() && self.events.admit_interrupt()
    }

    fn kick_handle(&self) -> Kick {
        self.kick.clone()
    }

    fn state(&self) -> &CpuState {
        &self.state
    }

    fn update_state(&mut self, change: &mut dyn FnMut(&mut CpuState)) {
        // A change may replace the state as a whole; kicks are not part of what it means.
        let requests = self.state.exit_request.load(Ordering::Relaxed);
        let before = Roots::of(&self.state);
        change(&mut self.state);
        self.state.exit_request.fetch_or(requests, Ordering::Relaxed);
        if Roots::of(&self.state) == before {
            // Data, such as CR8, which the board keeps in step with its interrupt controller.
            return;
        }
        self.attach();
        self.mmu.mmio.clear();
        self.events.forget();
        self.update_events();
        self.open = None;
        self.deferred_debug = 0;
        // Whoever sends the guest elsewhere may have put new code there (a loader, a reset).
        self.cache.clear();
        self.finder.clear();
    }

    fn statistics(&self) -> Statistics {
        let (counters, window) = (self.cache.counters(), self.mmu.window_stats());
        Statistics {
            instructions: self.state.instructions,
            interpreted: self.interpreted,
            blocks: counters.blocks,
            compiled: counters.compiled,
            code_bytes: counters.code_bytes,
            compile_nanoseconds: self.compiler.as_ref().map_or(0, Compiler::nanoseconds),
            invalidated: counters.invalidated,
            evictions: counters.evictions,
            exits: self.exits,
            tlb_fills: self.mmu.fills,
            window_pages: window.mapped,
            window_faults: window.faults,
        }
    }
}

/// What everything that the engine derives from the state depends on.
#[derive(PartialEq)]
struct Roots {
    rip: u64,
    rflags: u64,
    control: [u64; 4],
    cpl: u8,
    segments: [Segment; 6],
    tables: [*const u8; 2],
}

impl Roots {
    fn of(state: &CpuState) -> Self {
        Self {
            rip: state.rip,
            rflags: state.rflags,
            control: [state.cr0, state.cr3, state.cr4, state.efer],
            cpl: state.cpl,
            segments: state.segments,
            tables: [state.tlb, state.jump_cache],
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Some(profile) = &self.profile {
            profile.stop();
        }
        self.kick.disconnect();
    }
}
