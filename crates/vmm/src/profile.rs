//! `--profile`: from a vCPU's recorder to the files of a directory, while the guest runs and when it has ended.
//!
//! A thread writes what there is every so often, so that a machine that dies half-way leaves that. It takes its time: it
//! works for a twentieth of the time at most, since the vCPU waits while a snapshot is made.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{RecvTimeoutError, Sender, channel},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use memory::{GuestPhys, Ram};
use profiler::{
    flame,
    guest::{Callers, Names, Observer, Place, Sight},
    kallsyms::GuestMemory,
    lines::Lines,
    model::Profile,
    naming::{self, Naming},
    orc::Orc,
    report,
    store::{self, Directory},
    symbols::{OfGuest, Symbols},
};
use runtime::{EngineMode, Recorder};

use crate::{board::MachineError, config::Config, jitdump::JitDump};

/// What is to be recorded where.
#[derive(Clone, Debug)]
pub struct ProfileConfig {
    /// Where it goes.
    pub directory: Directory,
    /// Symbols from a file.
    pub symbols: Option<Arc<Symbols>>,
    /// What Linux `perf` is to find.
    pub for_perf: ForPerf,
}

/// How `perf` learns the names of translated code. If it had both, it would mix them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ForPerf {
    /// Not at all.
    #[default]
    Nothing,
    /// `/tmp/perf-PID.map`: what is installed at the end.
    Map,
    /// `jit-PID.dump` in the directory.
    JitDump,
}

/// Blocks in what is written for `transvisor top`.
const LIVE_BLOCKS: usize = 200;
/// Between two writings of that.
const LIVE: Duration = Duration::from_secs(1);
/// Between two writings of the whole.
const WHOLE: Duration = Duration::from_secs(5);
/// What a writing may take of the time between two.
const SHARE: u32 = 20;

struct Memory(Ram);

impl GuestMemory for Memory {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        self.0.read(GuestPhys(address), bytes).is_ok()
    }
}

/// Makes profiles of one boot.
struct Maker {
    config: ProfileConfig,
    directory: Directory,
    recorder: Arc<Recorder>,
    kernel: String,
    engine: String,
    began: u64,
    /// The vCPU's thread asks them too, so they are not held while the recorder is asked for something.
    names: Arc<Mutex<Names<Memory>>>,
    /// The kernel's tables for unwinding; whether they were looked for with symbols that are certain.
    orc: Option<Orc>,
    sought_orc: bool,
    lines: Lines,
    /// What the names of the last profile were from.
    found: OfGuest,
    dump: Option<JitDump>,
}

/// Tells the recorder whose a block is.
struct Eye(Arc<Mutex<Names<Memory>>>);

impl Observer for Eye {
    fn place(&self, sight: &Sight) -> Option<Place> {
        locked(&self.0).place(sight)
    }

    fn callers(&self, sight: &Sight, addresses: &[u64]) -> Callers {
        locked(&self.0).callers(sight, addresses)
    }
}

fn locked(names: &Mutex<Names<Memory>>) -> MutexGuard<'_, Names<Memory>> {
    // Whoever panicked has left at worst a name less.
    names.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Maker {
    fn profile(&mut self, listings: bool) -> Profile {
        if let Some(complaint) = locked(&self.names).seek() {
            eprintln!("transvisor: {complaint}");
        }
        if let Some(orc) = &self.orc {
            self.recorder.settle_stacks(&|raw| orc.unwind(raw));
        }
        let mut profile = self.recorder.snapshot(listings);
        profile.arrange();
        let names = locked(&self.names);
        let (found, note, structures) = (names.found().clone(), names.note(), names.structures());
        if !self.sought_orc && found.certain {
            (self.orc, self.sought_orc) = find_orc(&profile, &found, names.memory());
        }
        drop(names);
        let run = &mut profile.run;
        run.transvisor = env!("CARGO_PKG_VERSION").into();
        run.kernel = self.kernel.clone();
        run.engine = self.engine.clone();
        run.began = self.began;
        run.banner = found.banner.clone();
        let modules = |address| locked(&self.names).module_function(address);
        let naming = Naming { found: &found, modules: &modules, note, structures };
        naming::apply(&mut profile, &naming, &mut self.lines);
        self.found = found;
        profile
    }

    fn write_live(&mut self) -> Result<(), store::StoreError> {
        // Opening a kernel's DWARF takes too long for each second.
        self.lines.paused = true;
        let profile = self.profile(false).top(LIVE_BLOCKS);
        self.lines.paused = false;
        self.directory.write_profile(store::LIVE, &profile)
    }

    fn write_whole(&mut self) -> Result<(), store::StoreError> {
        let profile = self.profile(false);
        self.write_for_perf(&profile);
        self.directory.write_profile(store::BLOCKS, &profile)?;
        self.directory.write_profile(store::LIVE, &profile.top(LIVE_BLOCKS))
    }

    fn write_last(&mut self, outcome: Option<String>) -> Result<(), store::StoreError> {
        if let Some(complaint) = locked(&self.names).last_look() {
            eprintln!("transvisor: {complaint}");
        }
        if !self.sought_orc {
            // A first look, for what the stacks need.
            self.profile(false);
        }
        let mut profile = self.profile(true);
        profile.complete = true;
        profile.run.outcome = outcome;
        self.write_for_perf(&profile);
        self.directory.write_profile(store::BLOCKS, &profile)?;
        write_views(&self.directory, &profile)?;
        if let Some(Err(error)) = self.dump.take().map(JitDump::close) {
            eprintln!("transvisor: --jitdump: {error}");
        }
        self.directory.write_profile(store::LIVE, &profile.top(LIVE_BLOCKS))
    }

    fn write_for_perf(&mut self, profile: &Profile) {
        if let Some(dump) = &mut self.dump
            && let Err(error) = dump.write(profile, &self.recorder, &self.found, &mut self.lines)
        {
            eprintln!("transvisor: --jitdump: {error}; the file ends here");
            self.dump = None;
        }
        if self.config.for_perf == ForPerf::Map {
            let path = PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()));
            if let Err(error) = std::fs::write(&path, flame::perf_map(profile)) {
                eprintln!("transvisor: --perf-map: {}: {error}", path.display());
            }
        }
    }
}

/// The kernel's image lies in one piece, so one block of it tells where the tables are. Also whether there was one.
fn find_orc(profile: &Profile, found: &OfGuest, memory: &Memory) -> (Option<Orc>, bool) {
    let in_image = |rip| found.symbols.find(rip).is_some_and(|(_, offset)| offset < 1 << 12);
    match profile.blocks.iter().find(|block| !block.user && in_image(block.rip)) {
        Some(block) => {
            let moved = block.rip.wrapping_sub(block.physical);
            (Orc::find(&found.symbols, memory, moved, found.banner.as_deref()), true)
        }
        None => (None, false),
    }
}

/// Everything that is made of a profile for people and other programs.
pub fn write_views(directory: &Directory, profile: &Profile) -> Result<(), store::StoreError> {
    directory.write(store::REPORT, report::html(profile).as_bytes())?;
    let speedscope = flame::speedscope(profile).to_string();
    directory.write(store::SPEEDSCOPE, speedscope.as_bytes())?;
    match flame::svg(profile) {
        Some(svg) => directory.write(store::FLAMEGRAPH, &svg),
        None => Ok(()),
    }
}

/// The thread that writes, for one boot.
pub struct ProfileWriter {
    stop: Option<Sender<()>>,
    thread: Option<JoinHandle<Maker>>,
}

impl ProfileWriter {
    /// Starts it, for the `boot`-th boot of a machine.
    pub fn start(
        config: &ProfileConfig,
        boot: u32,
        (recorder, ram): (Arc<Recorder>, Ram),
        machine: &Config,
    ) -> Result<Self, MachineError> {
        let directory = config.directory.of_boot(boot)?;
        let began = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let dump = match config.for_perf {
            ForPerf::JitDump => Some(JitDump::create(directory.path()).map_err(|source| {
                let what = "an executable mapping of --jitdump's file, by which perf finds it (is --profile on a file system mounted noexec?)";
                MachineError::Host { what, source }
            })?),
            ForPerf::Nothing | ForPerf::Map => None,
        };
        let names = Arc::new(Mutex::new(Names::new(Memory(ram), config.symbols.clone())));
        recorder.observe(Box::new(Eye(Arc::clone(&names))));
        let mut maker = Maker {
            config: config.clone(),
            directory,
            recorder,
            names,
            kernel: machine.kernel.display().to_string(),
            engine: match machine.engine.mode {
                EngineMode::Interpret => "interpret".into(),
                EngineMode::Translate => "translate".into(),
            },
            began,
            orc: None,
            sought_orc: false,
            lines: Lines::default(),
            found: OfGuest::default(),
            dump,
        };
        let (stop, stopped) = channel::<()>();
        let thread = std::thread::Builder::new()
            .name("profile".into())
            .spawn(move || {
                let (mut whole, mut wait) = (Instant::now(), LIVE);
                while stopped.recv_timeout(wait) == Err(RecvTimeoutError::Timeout) {
                    let start = Instant::now();
                    let due = whole.elapsed() >= WHOLE.max(wait * 2);
                    let written = if due { maker.write_whole() } else { maker.write_live() };
                    if due {
                        whole = Instant::now();
                    }
                    // The last writing will say it.
                    let _ = written;
                    wait = LIVE.max(start.elapsed() * SHARE);
                }
                maker
            })
            .map_err(|source| MachineError::Host { what: "a thread", source })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }

    /// The guest has ended, and its vCPU stands still.
    pub fn finish(mut self, outcome: String) -> Result<(), MachineError> {
        self.stop = None;
        if let Some(mut maker) = self.thread.take().and_then(|thread| thread.join().ok()) {
            maker.write_last(Some(outcome))?;
        }
        Ok(())
    }
}

impl Drop for ProfileWriter {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
