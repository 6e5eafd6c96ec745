//! Small 64-bit guests for the engine's tests: identity-mapped memory, a GDT, an IDT, code as assembly text.
#![allow(dead_code, reason = "every test file uses a part of it")]

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use memory::Ram;
use transvisor_runtime::{
    Engine, EngineConfig, EngineMode,
    persistent::{Saved, Translations},
};
use vcpu::{Answer, Clock, Entry, Exit, Vcpu};
use x86::{
    CpuState, GuestPhys, Segment,
    control::{cr0, cr4, efer},
    flags, paging,
};

/// Bytes of RAM.
pub const RAM: u64 = 16 << 20;
/// Where code begins.
pub const CODE: u64 = 0x10_0000;
/// Initial stack pointer.
pub const STACK: u64 = 0x8_0000;
/// A physical address that no RAM answers, mapped.
pub const MMIO: u64 = 0xfe00_0000;
/// Where the PML4 lies; three more tables follow, then the page table of the first 2 MiB.
pub const PML4: u64 = 0x1_0000;
/// The page table of the first 2 MiB.
pub const TABLE: u64 = PML4 + 0x4000;
/// The IDT.
pub const IDT: u64 = 0x2_0000;
/// The GDT: null, 64-bit code (8), data (0x10).
pub const GDT: u64 = 0x2_2000;
/// Where handlers of [`Guest::handler`] are put, 256 bytes each.
pub const HANDLERS: u64 = 0x3_0000;

/// Guest machine code from assembly text. Labels are numbers from 4 on.
#[macro_export]
macro_rules! guest {
    ($($line:expr),+ $(,)?) => {{
        let (start, end): (*const u8, *const u8);
        // SAFETY: takes two addresses of bytes in a read-only section, which are not executed here.
        unsafe {
            core::arch::asm!(
                "lea {start}, [rip + 9990f]",
                "lea {end}, [rip + 9991f]",
                ".pushsection .rodata",
                "9990:",
                $($line,)+
                "9991:",
                ".popsection",
                start = out(reg) start,
                end = out(reg) end,
            );
            core::slice::from_raw_parts(start, end as usize - start as usize)
        }
    }};
}

/// Every configuration that a guest must behave alike in; those whose name contains the environment's ENGINE, if it
/// is set.
pub fn configurations() -> Vec<(&'static str, EngineConfig)> {
    let translate = EngineConfig {
        mode: EngineMode::Translate,
        template_threshold: u32::MAX,
        background: false,
        patient: false,
        ..EngineConfig::default()
    };
    let mut all = vec![
        ("interpret", EngineConfig::interpret()),
        ("translate at once", EngineConfig { threshold: 1, ..translate }),
        (
            "templates at once",
            EngineConfig { template_threshold: 1, threshold: u32::MAX, hot_threshold: u32::MAX, ..translate },
        ),
        (
            "templates, then regions",
            EngineConfig { template_threshold: 2, threshold: 5, hot_threshold: 3, ..translate },
        ),
        (
            "templates under stress",
            EngineConfig {
                template_threshold: 1,
                threshold: 4,
                hot_threshold: 3,
                stress: Some(0x5eee),
                ..translate
            },
        ),
        ("translate warm", EngineConfig { threshold: 3, ..translate }),
        ("translate under stress", EngineConfig { threshold: 2, stress: Some(0x5eed), ..translate }),
        ("translate in little memory", EngineConfig { threshold: 1, code_memory: 64 << 10, ..translate }),
    ];
    // A profile changes nothing that a guest can see; see also `drop`.
    let profiled = [
        ("interpret, profiled", EngineConfig::interpret()),
        ("templates, then regions, profiled", all[3].1),
        ("translate at once, profiled", all[1].1),
        ("templates under stress, profiled", all[4].1),
    ];
    all.extend(profiled.map(|(name, config)| (name, EngineConfig { profile: true, ..config })));
    if let Ok(wanted) = std::env::var("ENGINE") {
        all.retain(|(name, _)| name.contains(&wanted));
    }
    all
}

/// Runs a test body in every configuration.
pub fn everywhere(body: impl Fn(EngineConfig)) {
    for (name, config) in configurations() {
        println!("configuration: {name}");
        body(config);
    }
    let is_kept = |name: &str| name == "templates at once" || name == "templates, then regions";
    for (name, config) in configurations().into_iter().filter(|(name, _)| is_kept(name)) {
        println!("configuration: {name}, kept from run to run");
        twice(config, &body, name == "templates at once");
    }
}

thread_local! {
    /// Where guests of this thread keep their translations.
    static TRANSLATIONS: RefCell<Option<Arc<Translations>>> = const { RefCell::new(None) };
}

/// Runs a test body twice: the second time with what the first has kept. If `all` was, next to nothing is translated then (when a
/// kick comes is not the same twice).
fn twice(config: EngineConfig, body: &impl Fn(EngineConfig), all: bool) {
    let file = Scratch::new();
    let run = || {
        let (translations, refusal) = Translations::open(&file.0);
        assert!(refusal.is_none(), "{refusal:?}");
        let translations = Arc::new(translations.expect("not refused"));
        TRANSLATIONS.set(Some(Arc::clone(&translations)));
        body(config);
        TRANSLATIONS.set(None);
        translations
    };
    let first = run();
    let (kept, all) = (first.usage().new, all && first.usage().crowded == 0);
    assert_eq!(matches!(first.save().expect("a file"), Saved::Written(_)), kept != 0);
    let second = run();
    let usage = second.usage();
    assert!(!all || usage.new * 4 <= kept && usage.loaded * 2 >= kept, "{usage:?}: of {kept} kept");
}

/// A file's name, and the file, if there is one, until this is dropped.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("transvisor-runtime-{}-{number}.translations", std::process::id());
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A guest in 64-bit mode at [`CODE`], interrupts disabled.
pub struct Guest {
    pub engine: Engine,
    pub ram: Ram,
}

impl Guest {
    pub fn new(config: EngineConfig, code: &[u8]) -> Self {
        let ram = Ram::new(RAM).expect("guest memory");
        build_tables(&ram);
        ram.write(GuestPhys(CODE), code).expect("code fits");
        let mut engine = Engine::new(config, ram.clone(), Clock::manual()).expect("an engine");
        TRANSLATIONS.with_borrow(|translations| {
            if let Some(translations) = translations {
                engine.use_translations(translations);
            }
        });
        engine.update_state(&mut |state| *state = start_state());
        Self { engine, ram }
    }

    /// Puts a handler in the IDT (interrupt gate, DPL 0).
    pub fn handler(&mut self, vector: u8, code: &[u8]) {
        let address = HANDLERS + u64::from(vector) * 256;
        assert!(code.len() <= 256);
        self.write(address, code);
        let low = address & 0xffff | 8 << 16 | 0x8e00 << 32 | (address >> 16 & 0xffff) << 48;
        self.write(IDT + u64::from(vector) * 16, &low.to_le_bytes());
        self.write(IDT + u64::from(vector) * 16 + 8, &(address >> 32).to_le_bytes());
    }

    pub fn write(&self, address: u64, bytes: &[u8]) {
        self.ram.write(GuestPhys(address), bytes).expect("an address in RAM");
    }

    pub fn read(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        self.ram.read(GuestPhys(address), &mut bytes).expect("an address in RAM");
        u64::from_le_bytes(bytes)
    }

    /// Changes the state.
    pub fn set(&mut self, mut change: impl FnMut(&mut CpuState)) {
        self.engine.update_state(&mut change);
    }

    pub fn gpr(&self, n: usize) -> u64 {
        self.engine.state().gpr[n]
    }

    pub fn rax(&self) -> u64 {
        self.gpr(0)
    }

    pub fn enter(&mut self, entry: Entry) -> Exit {
        self.engine.run(entry).expect("no engine error")
    }

    pub fn run(&mut self) -> Exit {
        self.enter(Entry::default())
    }

    pub fn answer(&mut self, answer: Answer) -> Exit {
        self.enter(Entry { answer, ..Entry::default() })
    }

    /// Runs to HLT.
    pub fn halt(&mut self) {
        assert_eq!(self.run(), Exit::Halt, "rip {:#x}", self.engine.state().rip);
    }

    /// Runs to HLT with an interrupt delivered first.
    pub fn interrupt(&mut self, vector: u8) -> Exit {
        assert!(self.engine.ready_for_interrupt());
        self.enter(Entry { interrupt: Some(vector), ..Entry::default() })
    }
}

impl Drop for Guest {
    /// Every instruction of every guest is in its profile once.
    fn drop(&mut self) {
        if let Some(recorder) = self.engine.recorder()
            && !std::thread::panicking()
        {
            let totals = recorder.snapshot(true).totals;
            assert_eq!(totals.counted, self.engine.state().instructions, "{totals:?}");
        }
    }
}

/// The state at [`CODE`].
pub fn start_state() -> CpuState {
    let mut state = CpuState::new();
    state.cr0 = cr0::PE | cr0::PG | cr0::WP | cr0::NE | cr0::ET;
    state.cr4 = cr4::PAE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::PGE | cr4::DE;
    state.efer = efer::LME | efer::LMA | efer::SCE | efer::NXE;
    state.cr3 = PML4;
    state.segments[1] = Segment::from_descriptor(8, CODE_DESCRIPTOR);
    for n in [0, 2, 3, 4, 5] {
        state.segments[n] = Segment::from_descriptor(0x10, DATA_DESCRIPTOR);
    }
    state.gdtr = Segment { base: GDT, limit: 0x17, ..Segment::default() };
    state.idtr = Segment { base: IDT, limit: 0xfff, ..Segment::default() };
    state.set_rflags(flags::FIXED_ONE);
    state.gpr = [0; 16];
    state.gpr[4] = STACK;
    state.rip = CODE;
    state
}

const CODE_DESCRIPTOR: u64 = 0x00af_9b00_0000_ffff;
const DATA_DESCRIPTOR: u64 = 0x00cf_9300_0000_ffff;

/// Identity mapping: 4 KiB pages below 2 MiB, 2 MiB pages to the end of RAM and at [`MMIO`].
fn build_tables(ram: &Ram) {
    let word =
        |address: u64, value: u64| ram.write(GuestPhys(address), &value.to_le_bytes()).expect("in RAM");
    let rights = paging::PRESENT | paging::WRITABLE;
    let (directory, high_directory) = (PML4 + 0x2000, PML4 + 0x3000);
    word(PML4, (PML4 + 0x1000) | rights);
    word(PML4 + 0x1000, directory | rights);
    word(PML4 + 0x1000 + 3 * 8, high_directory | rights);
    word(directory, TABLE | rights);
    for n in 1..RAM >> 21 {
        word(directory + n * 8, n << 21 | rights | paging::LARGE);
    }
    word(high_directory + (MMIO >> 21 & 0x1ff) * 8, MMIO | rights | paging::LARGE);
    for n in 0..512 {
        word(TABLE + n * 8, n << 12 | rights);
    }
    word(GDT + 8, CODE_DESCRIPTOR);
    word(GDT + 16, DATA_DESCRIPTOR);
}
