//! The template translator: a guest block to host code in microseconds, for code that is warm but not yet worth Cranelift.
//!
//! Host and guest are of the same instruction set, so the translation of most instructions is themselves: encoded
//! again over the registers that guest registers live in ([`registers`]) and over a host address where they touch memory
//! ([`memory`]). [`effects`] lists them. Instructions that need more have a function in [`stack`], [`branch`] or [`special`].
//! Whatever is left ends the block: what Cranelift compiles follows as a block of its own, the rest goes to the interpreter
//! ([`crate::abi::Leave::Step`]).
//!
//! One pass, no intermediate form: [`Template::block`] walks the instructions; cold paths are noted ([`cold`]) and
//! written behind the block. Status flags stay in the host's until something would change them ([`flags`]). Of several
//! blocks that run into each other, [`region`] makes one piece of code.
//!
//! **State.** An instruction changes guest registers only after its last access. So wherever one may fault or leave, host
//! registers and `CpuState` together have the state of its start. [`Template::settle`] stores what only the former have, before the runtime
//! gets control, and in the cold path of an access; [`Template::hand_over`] what another block does not find in registers.

mod accesses;
mod assembler;
mod bit_string;
mod branch;
mod callouts;
mod cold;
mod count;
mod effects;
mod encoding;
mod flags;
mod float;
mod form;
mod guesses;
mod instruction;
mod instrument;
mod known;
mod memory;
mod region;
mod registers;
mod source;
mod special;
mod stack;
mod string;
mod translator;
mod vector;
mod window;

use iced_x86::Mnemonic;
use semantics::{
    Insn, Kind,
    decode::{BlockEnd, GuestBlock},
    table,
};
use x86::{Mode, PAGE_MASK, state};

use crate::{
    AddendField, DirectExit, Relocation, TranslateError, WindowAccess,
    abi::Leave,
    instrument::Instrumentation,
    lift::callouts::{is_called, is_own},
    locality,
    region::next_page,
};
use assembler::{Assembler, Mem, Reg, gpr_offset, xmm_offset};
use cold::{Cold, ColdKind, Tails};
use flags::Flags;
use guesses::Guesses;
use known::KnownPages;
use region::Course;
use registers::Registers;
use window::Windows;

pub use translator::TemplateTranslator;

const RSP: u8 = state::RSP as u8;

/// An instruction that has no template, or that needs an encoding that there is not: it is left to the interpreter.
#[derive(Clone, Copy, Debug)]
struct Declined;

/// What became of an instruction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Flow {
    /// The next one follows.
    Next,
    /// Control has left the block.
    Ended,
}

/// Whether an instruction that has no template may begin a block that Cranelift compiles: x87 above all. Then that block follows.
fn is_compiled(insn: &Insn) -> bool {
    matches!(table::kind_of(insn), Kind::Lifted)
}

/// A block in the making.
struct Template<'a> {
    asm: Box<Assembler>,
    registers: Registers,
    flags: Flags,
    mode: Mode,
    /// The linear page that the block lies in.
    page: u64,
    /// All instructions of the block; the current one.
    insns: &'a [Insn],
    index: usize,
    /// What has been begun.
    blocks: Vec<Written<'a>>,
    /// The current one among them.
    at: usize,
    /// Where the number of instructions to count is to be filled in.
    counted_at: usize,
    /// In a region: instructions that are done, but not counted in the state yet.
    pending: i32,
    /// The region that is being written.
    course: Option<Course>,
    cold: Vec<Cold>,
    tails: Tails,
    relocations: Vec<Relocation>,
    exits: Vec<DirectExit>,
    /// Those that the monitor is called for.
    callouts: Vec<Insn>,
    addends: Vec<AddendField>,
    /// The guest's MXCSR is known to be in the host's register.
    mxcsr_loaded: bool,
    known: KnownPages,
    /// If accesses are made there.
    windows: Option<Windows>,
    /// They may be.
    uses_windows: bool,
    accesses: Vec<WindowAccess>,
    guesses: Guesses,
    /// Every access is checked by itself.
    careful: bool,
    /// In a region: registers that point anywhere, and those that are small ([`crate::locality`]).
    strange: Option<locality::Set>,
    /// The former, before the current instruction.
    came_strange: locality::Set,
    small: locality::Set,
    /// Those that it only moves by constants.
    steady: locality::Set,
    /// The recent page for the current instruction's operand.
    recent: Option<usize>,
    /// The carry flag is wanted behind the current instruction's lookup.
    restores: bool,
    /// What the code counts, if it is to.
    instrumentation: Option<Instrumentation>,
}

/// A block that has been written.
#[derive(Clone, Copy)]
struct Written<'a> {
    insns: &'a [Insn],
    /// Instructions that it runs to its end.
    total: u16,
    /// Where it stands among the instructions of the region.
    source: u32,
}

/// What is put back when an instruction turns out to have no encoding.
#[derive(Clone, Copy)]
struct Mark {
    code: usize,
    cold: usize,
    waiting: usize,
    mxcsr_loaded: bool,
    known: KnownPages,
    registers: Registers,
    flags: Flags,
}

impl<'a> Template<'a> {
    fn new(mut asm: Box<Assembler>, block: &GuestBlock) -> Self {
        asm.code.truncate(0);
        asm.windows.clear();
        let registers = Registers::plan([].iter());
        Self {
            asm,
            registers,
            flags: Flags::default(),
            mode: block.mode,
            page: block.rip & PAGE_MASK,
            insns: &[],
            index: 0,
            blocks: Vec::new(),
            at: 0,
            counted_at: 0,
            pending: 0,
            course: None,
            cold: Vec::new(),
            tails: Tails::default(),
            relocations: Vec::new(),
            exits: Vec::new(),
            callouts: Vec::new(),
            addends: Vec::new(),
            mxcsr_loaded: false,
            known: KnownPages::default(),
            windows: None,
            uses_windows: false,
            accesses: Vec::new(),
            guesses: Guesses::default(),
            careful: false,
            strange: None,
            came_strange: 0,
            small: 0,
            steady: 0,
            recent: None,
            restores: false,
            instrumentation: None,
        }
    }

    /// Writes the block's instructions and its end; gives how many instructions and bytes.
    fn block(&mut self, block: &'a GuestBlock) -> Result<(u16, u16), TranslateError> {
        self.block_from(block, 0)
    }

    /// The same from the instruction of a number on.
    fn block_from(&mut self, block: &'a GuestBlock, start: usize) -> Result<(u16, u16), TranslateError> {
        let mut bytes = 0;
        for (index, insn) in block.insns.iter().enumerate().skip(start) {
            self.index = index;
            let is_foreign = table::kind_of(insn) != Kind::Lifted && !self.is_inline(insn);
            if !is_foreign {
                self.make_room(insn);
            }
            let keeps = accesses::keeps(insn);
            self.keep_known(keeps);
            self.keep_flags_from(insn);
            self.guess(insn);
            let mark = self.mark();
            self.begin_source(index);
            let flow = match table::kind_of(insn) {
                _ if is_foreign => Err(Declined),
                Kind::Callout => self.callout(insn),
                _ => self.instruction(insn),
            };
            match flow {
                Ok(Flow::Next) => {
                    self.complete();
                    self.note_accesses();
                    bytes += u16::from(insn.length);
                    self.keep_known(keeps);
                }
                Ok(Flow::Ended) => {
                    self.note_accesses();
                    self.end_block(index as u16 + 1);
                    return Ok((index as u16 + 1, bytes + u16::from(insn.length)));
                }
                Err(Declined) => {
                    self.restores = false;
                    if index == 0 && self.blocks.len() == 1 {
                        return Err(TranslateError::FirstDeclined("it has no template"));
                    }
                    self.reset(mark);
                    if is_compiled(insn) {
                        self.exit(insn.rip);
                    } else {
                        self.leave_step(insn.rip);
                    }
                    self.end_block(index as u16);
                    return Ok((index as u16, bytes));
                }
            }
        }
        let Some(last) = block.insns.last() else {
            return Err(TranslateError::FirstDeclined("there is none"));
        };
        if block.end == BlockEnd::Terminal {
            // Not a transfer, so what it did may have changed the mode: have the next block looked up.
            self.leave_anew(last.next_rip());
        } else {
            self.direct_exit(last.next_rip());
        }
        self.end_block(block.insns.len() as u16);
        Ok((block.insns.len() as u16, bytes))
    }

    /// Whether the instruction's access is likely to be near where others were.
    fn guess(&mut self, insn: &Insn) {
        if let Some(strange) = &mut self.strange {
            self.came_strange = *strange;
            self.recent = locality::recent_page(insn, *strange | !self.steady, self.small);
            *strange = locality::after(insn, *strange);
            self.small = locality::small(insn, self.small);
        }
    }

    /// Begins a block, which has that number in the region. `second` is to be guarded here.
    fn begin_block(&mut self, block: &'a GuestBlock, number: usize, second: Option<u64>) {
        self.at = self.blocks.len();
        self.insns = &block.insns;
        self.index = 0;
        self.page = block.rip & PAGE_MASK;
        let source = self.blocks.iter().map(|block| block.insns.len() as u32).sum();
        self.blocks.push(Written { insns: &block.insns, total: 0, source });
        if let Some(second) = second {
            self.keep_flags();
            self.guard(next_page(block.rip, self.mode), second, ColdKind::Before(Leave::Step, block.rip));
        }
        if self.course.is_none() {
            self.asm.add_small_immediate(Mem::state(count::INSTRUCTIONS), 0);
            self.counted_at = self.asm.code.len() - 1;
        }
        self.count_execution(number, source);
    }

    /// It is known how many instructions the block runs to its end.
    fn end_block(&mut self, total: u16) {
        self.blocks[self.at].total = total;
        if self.course.is_none() {
            debug_assert!(total < 0x80, "a block has at most {} instructions", semantics::decode::MAX_BLOCK);
            self.asm.code.bytes_mut()[self.counted_at] = total as u8;
        }
        self.know_counted(total);
    }

    /// Cold paths of a block are written from here on.
    fn return_to(&mut self, block: usize, index: usize) {
        (self.at, self.index) = (block, index);
        self.insns = self.blocks[block].insns;
        self.page = self.insns[0].rip & PAGE_MASK;
    }

    /// Whether a callout is done here, as in [`crate::lift`].
    fn is_inline(&self, insn: &Insn) -> bool {
        is_own(insn, self.mode) || self.instrumentation.is_none() && is_called(insn, self.mode)
    }

    fn instruction(&mut self, insn: &Insn) -> Result<Flow, Declined> {
        if let Some(condition) = effects::branch_condition(insn.mnemonic) {
            return self.branch(insn, condition);
        }
        match insn.mnemonic {
            mnemonic if effects::is_nop(mnemonic) => Ok(Flow::Next),
            Mnemonic::Mov if special::is_high_move(insn) => self.move_high(insn),
            Mnemonic::Lea => self.lea(insn),
            Mnemonic::Push => self.push(insn),
            Mnemonic::Pop => self.pop(insn),
            Mnemonic::Leave => self.leave_frame(insn),
            Mnemonic::Call => self.call(insn),
            Mnemonic::Ret => self.ret(insn),
            Mnemonic::Jmp => self.jump(insn),
            Mnemonic::Bsf | Mnemonic::Bsr => self.bit_scan(insn),
            Mnemonic::Div | Mnemonic::Idiv => self.divide(insn),
            Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc if bit_string::is_one(insn) => {
                self.bit_string(insn)
            }
            Mnemonic::Cld | Mnemonic::Std => {
                self.set_direction(insn.mnemonic == Mnemonic::Std);
                Ok(Flow::Next)
            }
            _ if insn.code.is_string_instruction() => self.string(insn),
            _ => {
                let row = if self.mode.sse_traps() { None } else { vector::of(insn) };
                let effects = row.or_else(|| effects::of(insn)).ok_or(Declined)?;
                self.encode_again(insn, effects)?;
                Ok(Flow::Next)
            }
        }
    }

    fn mark(&self) -> Mark {
        let (code, cold) = (self.asm.code.len(), self.cold.len());
        let (mxcsr_loaded, known) = (self.mxcsr_loaded, self.known);
        let waiting = self.course.as_ref().map_or(0, Course::waiting);
        Mark { code, cold, waiting, mxcsr_loaded, known, registers: self.registers, flags: self.flags }
    }

    fn reset(&mut self, mark: Mark) {
        self.asm.code.truncate(mark.code);
        self.asm.windows.clear();
        if let Some(windows) = &mut self.windows {
            windows.forget();
        }
        self.cold.truncate(mark.cold);
        if let Some(course) = &mut self.course {
            course.let_wait(mark.waiting);
        }
        self.relocations.retain(|relocation| (relocation.offset as usize) < mark.code);
        self.asm.addresses.retain(|field| (field.offset as usize) < mark.code);
        (self.mxcsr_loaded, self.known) = (mark.mxcsr_loaded, mark.known);
        (self.registers, self.flags) = (mark.registers, mark.flags);
    }

    /// Brings a guest register to its home; gives that.
    fn read(&mut self, guest: u8) -> Reg {
        let home = self.registers.home(guest);
        if self.registers.loaded & 1 << guest == 0 {
            self.asm.load(home, Mem::state(gpr_offset(guest)));
            self.registers.loaded |= 1 << guest;
        }
        home
    }

    /// The home of a register that is about to be written as a whole.
    fn write(&mut self, guest: u8) -> Reg {
        self.known.forget(guest);
        self.write_moved(guest, 0)
    }

    /// The same of one that is moved by a constant.
    fn write_moved(&mut self, guest: u8, by: i32) -> Reg {
        self.known.moved(guest, by);
        self.registers.loaded |= 1 << guest;
        self.registers.dirty |= 1 << guest;
        self.registers.home(guest)
    }

    fn read_xmm(&mut self, index: u8) {
        if self.registers.loaded_xmm & 1 << index == 0 {
            self.asm.load_xmm(index, Mem::state(xmm_offset(index)));
            self.registers.loaded_xmm |= 1 << index;
        }
    }

    fn write_xmm(&mut self, index: u8) {
        self.registers.loaded_xmm |= 1 << index;
        self.registers.dirty_xmm |= 1 << index;
    }
}
