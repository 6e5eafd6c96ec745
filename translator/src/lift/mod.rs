//! The lifter: a guest block to CLIF.
//!
//! [`Lifter`] is the `semantics::Machine` whose numbers are CLIF values. Guest registers and flags are loaded from
//! `CpuState` when first asked for, live in SSA values while the block runs ([`registers`], [`flags`]), and are stored
//! only where the guest or the monitor could look: in exits ([`exits`]) and in cold paths ([`memory`]), which describe
//! the state as of the instruction's start. Integer arithmetic that takes more than one CLIF instruction is in
//! [`integer`], vector operations in [`vector`]; [`machine`] is the list of all of it.
//!
//! Lifting a block into a function is apart from making the function, so that several blocks can go into one.

mod emit;
mod exits;
mod flags;
mod integer;
mod lazy;
mod machine;
mod memory;
mod native;
mod registers;
mod string;
mod sums;
mod vector;
mod vector_inline;

use cranelift_codegen::ir::{AbiParam, SourceLoc, Value, types};
use cranelift_frontend::FunctionBuilder;
use iced_x86::Mnemonic;
use semantics::{
    Insn, Kind,
    decode::{BlockEnd, GuestBlock},
};
use x86::{Mode, PAGE_MASK};

use crate::{DirectExit, TranslateError, settings::HostFeatures, substitute::HostInstruction};
use emit::{Fields, Signatures};
pub(crate) use exits::SLOT_NAMESPACE;
use registers::RegisterFile;

/// The code that a definition was emitting has ended: by a transfer, an exception, or because the rest is left to the
/// interpreter. The current CLIF block has its terminator.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended;

/// What lifting gave, besides CLIF.
pub(crate) struct Lifted {
    pub exits: Vec<DirectExit>,
    pub guest_instructions: u16,
    pub guest_bytes: u16,
    /// Host instructions to be put in place of their carriers.
    pub substituted: Vec<HostInstruction>,
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
    /// Start and mask of the TLB array, once the block has loaded them.
    tlb: Option<(Value, Value)>,
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
    /// Host instructions that their carriers are to be exchanged for: see [`crate::substitute`].
    substituted: Vec<HostInstruction>,
    /// Values of those whose flags in MXCSR matter.
    floats: Vec<Value>,
    /// What addresses in the current guest block consist of.
    terms: Vec<(sums::Term, Value)>,
    /// What the last comparison of floats compared.
    compared: Option<native::ComparedFloats>,
}

/// The instruction being lifted.
#[derive(Clone, Copy, Default)]
struct Current {
    mnemonic: Mnemonic,
    rip: u64,
    next_rip: u64,
    index: u16,
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
            tlb: None,
            counted: 0,
            declined: None,
            depth: 0,
            update: None,
            extended: Vec::new(),
            flushed: false,
            halves: Vec::new(),
            exits: Vec::new(),
            substituted: Vec::new(),
            floats: Vec::new(),
            terms: Vec::new(),
            compared: None,
        }
    }

    /// Lifts a guest block at the current place: poll, count, instructions, exit.
    pub fn block(&mut self, block: &GuestBlock) -> Result<Lifted, TranslateError> {
        let liftable =
            block.insns.iter().take_while(|insn| semantics::table::kind_of(insn) == Kind::Lifted).count();
        let Some(first) = block.insns.first().filter(|_| liftable > 0) else {
            return Err(TranslateError::FirstDeclined("not a lifted instruction"));
        };
        self.page = block.rip & PAGE_MASK;
        self.counted = liftable as u16;
        self.file = RegisterFile::default();
        self.enter(block.rip);

        let mut bytes = 0;
        let mut last = first;
        for (index, insn) in block.insns[..liftable].iter().enumerate() {
            let ended = self.instruction(index as u16, insn).is_err();
            if let Some(reason) = self.declined {
                if index == 0 {
                    return Err(TranslateError::FirstDeclined(reason));
                }
                return Ok(self.lifted(index as u16, bytes));
            }
            bytes += u16::from(insn.length);
            if ended {
                return Ok(self.lifted(index as u16 + 1, bytes));
            }
            last = insn;
        }
        if liftable < block.insns.len() {
            let file = self.file;
            self.leave_step(&file, last.next_rip(), 0);
        } else if block.end == BlockEnd::Terminal {
            // Not a transfer, so what it did may have changed the mode: have the next block looked up.
            self.leave_anew(last.next_rip());
        } else {
            self.direct_exit(last.next_rip());
        }
        Ok(self.lifted(liftable as u16, bytes))
    }

    /// Ends the function.
    pub fn finish(mut self, config: cranelift_codegen::isa::TargetFrontendConfig) {
        self.keep_floats();
        self.b.seal_all_blocks();
        self.b.finalize(config);
    }

    fn instruction(&mut self, index: u16, insn: &Insn) -> Result<(), Ended> {
        self.insn = Current { mnemonic: insn.mnemonic, rip: insn.rip, next_rip: insn.next_rip(), index };
        self.b.set_srcloc(SourceLoc::new(u32::from(index)));
        self.start = self.file;
        self.flushed = false;
        if index == 0 {
            self.terms.clear();
        }
        self.update = None;
        self.extended.clear();
        self.halves.clear();
        semantics::execute(self, insn)
    }

    fn lifted(&mut self, guest_instructions: u16, guest_bytes: u16) -> Lifted {
        let exits = core::mem::take(&mut self.exits);
        let substituted = core::mem::take(&mut self.substituted);
        Lifted { exits, guest_instructions, guest_bytes, substituted }
    }
}
