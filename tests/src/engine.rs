//! The same cases on our engines: a guest with the code and data windows at the same linear addresses, in ring 3.
//!
//! The guest is set up once. A case is handed over in memory and begun by an NMI: its handler ([`driver`]) copies the code into its
//! window, loads the registers and returns to ring 3. Around the code lies HLT, which in ring 3 raises #GP; the
//! handlers of all exceptions are a HLT in ring 0, which leaves the engine: its address tells the vector, its stack
//! frame the rest. So a case ends at the first instruction outside its code, or in a fault.

mod driver;
mod layout;

use std::{sync::Arc, time::Duration};

use anyhow::{Result, bail};
use memory::Ram;
use runtime::{Engine, EngineConfig, EngineMode};
use vcpu::{Clock, Entry, Exit, Kick, Vcpu};
use x86::{CpuState, GuestPhys, Segment, control, state::RSP};

use crate::image::{
    CODE, COMPARED_FLAGS, DATA_SIZE, Fault, Image, Ran, code_address, fxsave_of, keep_upper_stack_pointer,
    set_segments,
};
use layout::*;

/// A way to run a case. All must agree.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The interpreter.
    Interpreted,
    /// Compiled at the first execution, blocks of one instruction: every value goes through the state.
    CompiledSingly,
    /// Compiled at the first execution, whole blocks.
    Compiled,
    /// As `CompiledSingly`, the third time round: every block enters the next by its chain slot.
    Chained,
    /// Blocks of one instruction, interpreted twice, then compiled into one region.
    Region,
    /// As `CompiledSingly`, by templates.
    TemplatesSingly,
    /// As `Compiled`, by templates.
    Templates,
    /// As `Region`, by templates.
    TemplatesRegion,
    /// As `Chained`, by templates.
    TemplatesChained,
}

impl Way {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Interpreted,
        Self::CompiledSingly,
        Self::Compiled,
        Self::Chained,
        Self::Region,
        Self::TemplatesSingly,
        Self::Templates,
        Self::TemplatesChained,
        Self::TemplatesRegion,
    ];

    /// Whether it is by templates, which leave some instructions to the interpreter.
    pub fn is_by_templates(self) -> bool {
        matches!(
            self,
            Self::TemplatesSingly | Self::Templates | Self::TemplatesChained | Self::TemplatesRegion
        )
    }

    fn config(self) -> EngineConfig {
        let config = EngineConfig {
            threshold: 1,
            background: false,
            template_threshold: u32::MAX,
            patient: false,
            code_memory: 64 << 20,
            windows: false,
            ..EngineConfig::default()
        };
        let templates =
            EngineConfig { template_threshold: 1, threshold: u32::MAX, hot_threshold: u32::MAX, ..config };
        match self {
            Self::Interpreted => EngineConfig::interpret(),
            Self::Compiled => EngineConfig { mode: EngineMode::Translate, ..config },
            Self::CompiledSingly | Self::Chained => {
                EngineConfig { mode: EngineMode::Translate, longest_block: 1, ..config }
            }
            Self::Region => {
                EngineConfig { mode: EngineMode::Translate, longest_block: 1, threshold: 3, ..config }
            }
            Self::Templates => templates,
            // There is one window in a process: who asks first has it.
            Self::TemplatesRegion => EngineConfig {
                longest_block: 1,
                hot_threshold: 2,
                windows: true,
                window_patience: 0,
                ..templates
            },
            Self::TemplatesSingly | Self::TemplatesChained => EngineConfig { longest_block: 1, ..templates },
        }
    }

    /// How often a case is run; the last time counts.
    fn times(self) -> usize {
        match self {
            Self::Chained | Self::TemplatesChained => 3,
            Self::Region | Self::TemplatesRegion => 4,
            _ => 1,
        }
    }
}

/// Every so often the engine is kicked, so that a case that loops for good is noticed.
const WATCH: Duration = Duration::from_millis(500);
/// Kicks that a case may get before it counts as hung.
const MOST_KICKS: usize = 20;

/// An engine with the guest in it.
pub struct Subject {
    way: Way,
    engine: Engine,
    ram: Ram,
    /// Where in the window the last case's code was, and its length: to be erased.
    last: (u64, u64),
    /// While it is held, somebody kicks the engine.
    _watch: Arc<()>,
}

impl Subject {
    /// A fresh guest, waiting for its first case.
    pub fn start(way: Way) -> Result<Self> {
        let ram = Ram::new(MEMORY)?;
        layout::write(&ram)?;
        let driver = driver::assemble()?;
        ram.write(GuestPhys(DRIVER), &driver)?;
        let mut engine = Engine::new(way.config(), ram.clone(), Clock::manual())?;
        engine.update_state(&mut set_system_state);
        let watch = watch(engine.kick_handle());
        let mut subject = Self { way, engine, ram, last: (0, 0), _watch: watch };
        subject.wait_for_halt(Entry::default())?;
        Ok(subject)
    }

    /// Runs `code`, put at `CODE + offset`, from the state of `start` to the first instruction outside it, or to a
    /// fault.
    pub fn run(&mut self, code: &[u8], offset: u64, bits: u32, start: &Image) -> Result<Ran> {
        self.hand_over(code, offset, bits, start)?;
        for time in 0..self.way.times() {
            if time == 1 {
                // The code is there and stays.
                self.words(ERASE, &[CODE_PHYSICAL, 0, CODE_PHYSICAL, 0])?;
            }
            self.ram.write(GuestPhys(DATA_PHYSICAL), &start.data)?;
            self.wait_for_halt(Entry { nmi: true, ..Entry::default() })?;
        }
        let mut ran = self.finish(code, code_address(offset, bits), bits)?;
        keep_upper_stack_pointer(bits, start.gpr[RSP], &mut ran.image.gpr[RSP]);
        Ok(ran)
    }

    /// Blocks compiled so far, and blocks that the translator left to the interpreter.
    pub fn compiled(&self) -> (u64, u64) {
        (self.engine.statistics().compiled, self.engine.declined())
    }

    fn words(&self, address: u64, words: &[u64]) -> Result<()> {
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        Ok(self.ram.write(GuestPhys(address), &bytes)?)
    }

    /// Puts a case where the driver finds it.
    fn hand_over(&mut self, code: &[u8], offset: u64, bits: u32, start: &Image) -> Result<()> {
        let length = code.len() as u64;
        let (last, last_length) = std::mem::replace(&mut self.last, (offset, length));
        self.words(ERASE, &[CODE_PHYSICAL + last, last_length, CODE_PHYSICAL + offset, length])?;
        self.ram.write(GuestPhys(STAGING), code)?;
        self.ram.write(GuestPhys(FX_IMAGE), &fxsave_of(start))?;
        let mut state = CpuState::new();
        set_segments(&mut state, bits);
        let [es, cs, ss, ..] = state.segments.map(|segment| u64::from(segment.selector));
        self.words(SELECTOR, &[es])?;
        let g = &start.gpr;
        let popped =
            [g[15], g[14], g[13], g[12], g[11], g[10], g[9], g[8], g[7], g[6], g[5], g[3], g[2], g[1], g[0]];
        self.words(FRAME, &popped)?;
        let rflags = x86::flags::FIXED_ONE | start.flags & COMPARED_FLAGS;
        let frame = [code_address(offset, bits) + start.rip, cs, rflags, g[RSP], ss];
        self.words(FRAME + 8 * popped.len() as u64, &frame)
    }

    fn wait_for_halt(&mut self, mut entry: Entry) -> Result<()> {
        for _ in 0..MOST_KICKS {
            match self.engine.run(entry)? {
                Exit::Halt => return Ok(()),
                Exit::Kicked => entry = Entry::default(),
                other => bail!("the case left the engine with {other:?}"),
            }
        }
        bail!("the case does not end")
    }

    /// Reads the state that the exception handler's frame and registers hold.
    fn finish(&self, code: &[u8], base: u64, bits: u32) -> Result<Ran> {
        let state = self.engine.state();
        let handler = state.rip.wrapping_sub(1).wrapping_sub(HANDLERS);
        if !handler.is_multiple_of(16) || handler / 16 >= 32 {
            bail!("halted at {:#x}, which is no exception handler", state.rip);
        }
        let vector = (handler / 16) as u8;
        let has_code = matches!(vector, 8 | 10..=14 | 17);
        let frame = state.gpr[RSP] + if has_code { 8 } else { 0 };
        let word = |index: u64| -> Result<u64> {
            let mut bytes = [0; 8];
            self.ram.read(GuestPhys(frame + 8 * index), &mut bytes)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (rip, rflags, rsp) = (word(0)?, word(2)?, word(3)?);
        let mut gpr = state.gpr;
        gpr[RSP] = rsp;
        let mut data = vec![0; DATA_SIZE as usize];
        self.ram.read(GuestPhys(DATA_PHYSICAL), &mut data)?;
        let inside = (base..base + code.len() as u64).contains(&rip);
        // HLT, or nothing at all, where the code has gone.
        let linear = if bits == 16 { CODE + rip } else { rip };
        let ended = !inside && (vector == 13 || vector == 14 && state.cr2 == linear);
        let fault = (!ended).then_some(Fault { vector, address: (vector == 14).then_some(state.cr2) });
        let image = Image {
            gpr,
            rip: rip.wrapping_sub(base),
            flags: rflags & COMPARED_FLAGS,
            xmm: state.xmm,
            mxcsr: state.mxcsr,
            x87: state.x87,
            data,
        };
        Ok(Ran { image, fault })
    }
}

/// Kicks until what it returns is dropped.
fn watch(kick: Kick) -> Arc<()> {
    let watch = Arc::new(());
    let held = Arc::downgrade(&watch);
    std::thread::spawn(move || {
        while held.upgrade().is_some() {
            std::thread::sleep(WATCH);
            kick.kick();
        }
    });
    watch
}

/// Ring 0 of the guest, about to halt; from there on it drives itself.
fn set_system_state(state: &mut CpuState) {
    use control::cr4;
    set_segments(state, 64);
    state.segments[1] = Segment::from_descriptor(8, RING0_CODE);
    state.segments[2] = Segment::default();
    state.cpl = 0;
    state.rip = HANDLERS;
    state.gpr[RSP] = KERNEL_STACK;
    state.cr3 = PML4;
    state.cr4 = cr4::PAE | cr4::PGE | cr4::OSFXSR | cr4::OSXMMEXCPT | cr4::FSGSBASE | cr4::OSXSAVE;
    state.xcr0 = control::xcr0::X87 | control::xcr0::SSE;
    state.tr = Segment { base: TSS, limit: 0x67, selector: 0x40, attributes: 0x8b };
    state.ldtr = Segment { base: LDT, limit: 0xf, selector: 0x50, attributes: 0x82 };
    state.gdtr = Segment { base: GDT, limit: 0x4f, ..Segment::default() };
    state.idtr = Segment { base: IDT, limit: 0x1ff, ..Segment::default() };
    state.update_mode();
}
