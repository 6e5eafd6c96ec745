//! The lifter: a guest block to CLIF.
//!
//! [`Lifter`] is the `semantics::Machine` whose numbers are CLIF values. Guest registers and flags are loaded from
//! `CpuState` when first asked for, live in SSA values while the block runs ([`registers`], [`flags`]), and are stored
//! only where the guest or the monitor could look: in exits ([`exits`]) and in cold paths ([`memory`]), which describe
//! the state as of the instruction's start. Integer arithmetic that takes more than one CLIF instruction is in
//! [`integer`], vector operations in [`vector`], counting for profiles in [`instrument`]; [`machine`] is the list of all of it.
//!
//! Lifting a block into a function is apart from making the function, so that several blocks can go into one.

pub(crate) mod callouts;
mod count;
mod emit;
mod exits;
mod flags;
mod instrument;
mod integer;
mod lazy;
mod machine;
mod memory;
mod native;
mod region;
mod registers;
mod string;
mod sums;
mod vector;
mod vector_inline;

use cranelift_codegen::ir::{AbiParam, SourceLoc, Value, types};
use cranelift_frontend::FunctionBuilder;
use semantics::{
    Insn, Kind,
    decode::{BlockEnd, GuestBlock},
};
use x86::{Mode, PAGE_MASK};

use crate::{
    DirectExit, TranslateError, instrument::Instrumentation, locality, settings::HostFeatures,
    substitute::HostInstruction,
};
use emit::{Fields, Signatures};
pub(crate) use exits::{CALLOUT_NAMESPACE, SLOT_NAMESPACE};
pub(crate) use instrument::COUNTERS_NAMESPACE;
use registers::RegisterFile;

/// The code that a definition was emitting has ended: by a transfer, an exception, or because the rest is left to the
/// interpreter. The current CLIF block has its terminator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended;

/// What lifting gave, besides CLIF.
pub(crate) struct Lifted {
    pub exits: Vec<DirectExit>,
    pub callouts: Vec<Insn>,
    pub guest_instructions: u16,
    pub guest_bytes: u16,
    /// Host instructions to be put in place of their carriers.
    pub substituted: Vec<HostInstruction>,
    pub instrumentation: Option<Instrumentation>,
}

/// Emits CLIF for one guest block at a time.
pub(crate) struct Lifter<'f> {
    b: FunctionBuilder<'f>,
    fields: Fields,
    signatures: Signatures,
    /// Address of `CpuState`: the pinned register, which costs no move.
    cpu: Value,
    mode: Mode,
    host: HostFeatures,
    /// The linear page that the guest block lies in.
    page: u64,
    /// Guest registers and flags as of now.
    file: RegisterFile,
    /// As of the current instruction's start: what cold paths write back.
    start: RegisterFile,
    insn: Current,
    /// Guest instructions that the entry counts.
    counted: u16,
    /// Why the current instruction was declined, if it was, outside of any arm.
    declined: Option<&'static str>,
    /// How many arms of [`semantics::Machine::when`] are around the current place.
    depth: u32,
    /// Where the current instruction has found writable memory: see [`memory`].
    update: Option<memory::Update>,
    /// Values of the current instruction whose zero extension to 64 bits is known.
    extended: Vec<(Value, Value)>,
    /// The current instruction has stored everything for a helper.
    flushed: bool,
    /// Vectors that the current instruction put together.
    halves: Vec<vector::Halves>,
    exits: Vec<DirectExit>,
    /// Those that the monitor is called for.
    callouts: Vec<Insn>,
    /// Host instructions that their carriers are to be exchanged for: see [`crate::substitute`].
    substituted: Vec<HostInstruction>,
    /// Values of those whose flags in MXCSR matter.
    floats: Vec<Value>,
    /// Registers whose values are below 4096, since the beginning of the guest block ([`crate::locality`]).
    small: locality::Set,
    /// What addresses in the current guest block consist of.
    terms: Vec<(sums::Term, Value)>,
    /// What the last comparison of floats compared.
    compared: Option<native::ComparedFloats>,
    /// The region, if not a block alone is lifted.
    course: Option<region::Course>,
    /// Number of the current block's first instruction among all that were lifted: source locations.
    source: u32,
    /// What the code counts, if it is to.
    instrumentation: Option<Instrumentation>,
}

/// What lifting a block at some place gave.
#[derive(Default)]
struct LiftedBlock {
    instructions: u16,
    bytes: u16,
    /// Its first instruction was declined.
    first_declined: Option<&'static str>,
}

/// The instruction being lifted.
#[derive(Clone, Copy, Default)]
struct Current {
    rip: u64,
    next_rip: u64,
    index: u16,
    /// The number of the recent page in which its accesses are looked up first.
    recent: Option<usize>,
}

impl<'f> Lifter<'f> {
    /// Starts a function: the builder's function gets the signature of a block, and its entry is created.
    pub fn new(mut b: FunctionBuilder<'f>, mode: Mode, host: HostFeatures) -> Self {
        let signature = &mut b.func.signature;
        signature.call_conv = cranelift_codegen::isa::CallConv::Tail;
        signature.params.push(AbiParam::new(types::I64));
        signature.returns.push(AbiParam::new(types::I64));
        let fields = Fields::new(b.func);
        let entry = b.create_block();
        b.append_block_params_for_function_params(entry);
        b.switch_to_block(entry);
        let cpu = emit::pinned(&mut b);
        Self {
            b,
            fields,
            signatures: Signatures::default(),
            cpu,
            mode,
            host,
            page: 0,
            file: RegisterFile::default(),
            start: RegisterFile::default(),
            insn: Current::default(),
            counted: 0,
            declined: None,
            depth: 0,
            update: None,
            extended: Vec::new(),
            flushed: false,
            halves: Vec::new(),
            exits: Vec::new(),
            callouts: Vec::new(),
            substituted: Vec::new(),
            floats: Vec::new(),
            small: 0,
            terms: Vec::new(),
            compared: None,
            course: None,
            source: 0,
            instrumentation: None,
        }
    }

    /// Lifts a guest block alone.
    pub fn block(&mut self, block: &GuestBlock) -> Result<Lifted, TranslateError> {
        if self.liftable(block) == 0 {
            return Err(TranslateError::FirstDeclined("not a lifted instruction"));
        }
        self.enter(block.rip);
        let lifted = self.guest_block(block, 0);
        match lifted.first_declined {
            Some(reason) => Err(TranslateError::FirstDeclined(reason)),
            None => Ok(self.lifted(lifted.instructions, lifted.bytes)),
        }
    }

    /// How many instructions at a block's beginning are lifted; the last may be a callout.
    fn liftable(&self, block: &GuestBlock) -> usize {
        let lifted = |insn: &&Insn| semantics::table::kind_of(insn) == Kind::Lifted || self.is_inline(insn);
        block.insns.iter().take_while(lifted).count()
    }

    /// Lifts a guest block at the current place, with what the file knows: count, instructions, exits. `number` is its
    /// number in the region.
    fn guest_block(&mut self, block: &GuestBlock, number: usize) -> LiftedBlock {
        let liftable = self.liftable(block);
        if self.course.is_some() {
            // Anew for each block: it is a copy, and would keep a register busy all through the region.
            self.cpu = emit::pinned(&mut self.b);
        }
        self.file.strange = match &self.course {
            Some(course) => course.strange(number),
            None => locality::Set::MAX,
        };
        self.small = 0;
        self.page = block.rip & PAGE_MASK;
        self.counted = liftable as u16;
        self.compared = None;
        self.declined = None;
        self.count(i64::from(self.counted));
        self.count_execution(number);

        let mut lifted = LiftedBlock::default();
        for (index, insn) in block.insns[..liftable].iter().enumerate() {
            let ended = self.instruction(index as u16, insn).is_err();
            if let Some(reason) = self.declined {
                lifted.first_declined = (index == 0).then_some(reason);
                return lifted;
            }
            lifted.instructions += 1;
            lifted.bytes += u16::from(insn.length);
            if ended {
                return lifted;
            }
        }
        let next = block.rip.wrapping_add(u64::from(lifted.bytes));
        let next = if self.mode.is_64bit() { next } else { next & 0xffff_ffff };
        if liftable < block.insns.len() {
            let file = self.file;
            self.leave_step(&file, next, 0);
        } else if block.end == BlockEnd::Terminal {
            // Not a transfer, so what it did may have changed the mode: have the next block looked up.
            self.leave_anew(next);
        } else {
            self.insn.index = self.counted.saturating_sub(1);
            self.direct_exit(next);
        }
        lifted
    }

    /// Ends the function.
    pub fn finish(mut self, config: cranelift_codegen::isa::TargetFrontendConfig) {
        self.keep_floats();
        self.b.seal_all_blocks();
        self.b.finalize(config);
    }

    /// Lifts an instruction.
    fn instruction(&mut self, index: u16, insn: &Insn) -> Result<(), Ended> {
        let recent = locality::recent_page(insn, self.file.strange, self.small);
        self.insn = Current { rip: insn.rip, next_rip: insn.next_rip(), index, recent };
        self.file.strange = locality::after(insn, self.file.strange);
        self.small = locality::small(insn, self.small);
        self.b.set_srcloc(SourceLoc::new(self.source + u32::from(index)));
        self.start = self.file;
        self.flushed = false;
        if index == 0 {
            self.terms.clear();
        }
        self.update = None;
        self.extended.clear();
        self.halves.clear();
        if self.is_inline(insn) {
            return Err(self.callout(insn));
        }
        semantics::execute(self, insn)
    }

    fn lifted(&mut self, guest_instructions: u16, guest_bytes: u16) -> Lifted {
        let exits = core::mem::take(&mut self.exits);
        let callouts = core::mem::take(&mut self.callouts);
        let substituted = core::mem::take(&mut self.substituted);
        let instrumentation = self.instrumentation.take();
        Lifted { exits, callouts, guest_instructions, guest_bytes, substituted, instrumentation }
    }
}
