//! Random blocks, compiled and interpreted: both must end in the same state.
//!
//! It checks the lifter against the same definitions on numbers, so it finds what is wrong in lowering: write-backs,
//! flags, precise faults, memory paths, vectors. `DIFFERENTIAL_CASES` and `DIFFERENTIAL_SEED` make it longer or repeat
//! a case.

#[path = "../common/mod.rs"]
mod common;
mod side;

use std::collections::{BTreeMap, BTreeSet};

use common::{
    long_mode_state, place, protected_state,
    random::{DATA, DATA_SIZE, Random, instruction, instruction_of_run, registers},
    user_state,
};
use iced_x86::{Decoder, Mnemonic, OpKind, Register, RflagsBits};
use semantics::{
    Bulk, Insn, Operand, Repeat, Repetition,
    decode::{GuestBlock, decode_block, decode_extended, options},
};
use side::Side;
use transvisor_translator::{
    CodeBlock, Options, RegisterAllocator, TemplateTranslator, TranslateError, Translator,
    abi::Leave,
    region::{Region, RegionBlock, Versions},
    windows::{self, Handled, Windows},
};
use x86::{CpuState, LazyFlags, Mode, Width, flags, lazy_flags::Form};

const CODE: u64 = 0x4_0000;

/// What differs between two states, in words.
fn differences(compiled: &CpuState, interpreted: &CpuState) -> String {
    let mut text = String::new();
    let mut note = |name: String, a: u128, b: u128| {
        if a != b {
            text += &format!("  {name}: compiled {a:#x}, interpreted {b:#x}\n");
        }
    };
    for n in 0..16 {
        note(format!("gpr {n}"), compiled.gpr[n].into(), interpreted.gpr[n].into());
        note(format!("xmm{n}"), compiled.xmm[n], interpreted.xmm[n]);
    }
    note("rip".into(), compiled.rip.into(), interpreted.rip.into());
    note("rflags".into(), compiled.rflags().into(), interpreted.rflags().into());
    note("instructions".into(), compiled.instructions.into(), interpreted.instructions.into());
    note("mxcsr".into(), compiled.mxcsr.into(), interpreted.mxcsr.into());
    if compiled.x87 != interpreted.x87 {
        text += &format!("  x87: compiled {:?}\n    interpreted {:?}\n", compiled.x87, interpreted.x87);
    }
    text
}

/// What a run of cases met with.
#[derive(Default)]
struct Seen {
    executed: BTreeSet<String>,
    /// Instructions that compiled code left to the interpreter although they raise nothing.
    left: BTreeMap<String, u64>,
    declined: u64,
    /// Runs that might have used the window, and how often it was on.
    runs: u64,
    on: u64,
}

/// Translates a block, or several with their bytes.
type Translate = Box<dyn FnMut(&[(GuestBlock, &[u8])]) -> Result<CodeBlock, TranslateError>>;

struct Harness {
    translate: Translate,
    /// There are branches in the code, each of whose ways leads to the next instruction.
    branches: bool,
    /// Undefined flags are the host's, not those of the definitions.
    host_flags: bool,
    state: fn() -> Box<CpuState>,
    /// Code is there, and most of what registers point to: 0 or [`side::HIGH`].
    base: u64,
    /// Where its accesses to the window go on, if it may have any.
    windows: Option<Box<Windows>>,
    compiled: Side,
    interpreted: Side,
    seen: Seen,
}

impl Harness {
    fn case(&mut self, seed: u64) {
        let random = &mut Random(seed);
        let code_at = self.base + CODE;
        let (mut insns, mut bytes) = (Vec::<Insn>::new(), Vec::new());
        let mxcsr = match random.below(4) {
            0 => 0x1f80 & !(random.next() as u32 & 0x1f80) | random.next() as u32 & 0xe040,
            1 => 0x1f80,
            _ => 0x1f80 | random.next() as u32 & 0xe07f,
        };
        for side in [&mut self.compiled, &mut self.interpreted] {
            side.state.mxcsr = mxcsr;
            side.state.update_mode();
        }
        let mode = self.compiled.state.mode;
        let run = (mode.is_64bit() && random.once_in(3)).then(|| random.below(16) as u8);
        for _ in 0..1 + random.below(if self.branches { 16 } else { 8 }) {
            if let Some(base) = run.filter(|_| !random.once_in(4)) {
                let (insn, encoded) = instruction_of_run(random, base, code_at + bytes.len() as u64, mode);
                bytes.extend(encoded);
                insns.push(insn);
                continue;
            }
            if self.branches && !insns.is_empty() && random.once_in(3) {
                // Jcc, LOOP, JRCXZ.
                let opcode = [0x70 | random.below(16) as u8, 0xe2, 0xe3];
                bytes.extend([opcode[random.below(12).saturating_sub(9) as usize], 0]);
            }
            let (insn, encoded) = instruction(random, code_at + bytes.len() as u64, mode);
            bytes.extend(encoded);
            insns.push(insn);
            if semantics::decode::ends_block(&insn) {
                break;
            }
        }
        let mut blocks = Vec::new();
        let mut at = 0;
        while at < bytes.len() {
            let block = decode_block(&bytes[at..], code_at + at as u64, mode);
            let length = block.length() as usize;
            assert!(length > 0, "seed {seed:#x}: no block at {at} of {bytes:02x?}");
            blocks.push((block, &bytes[at..at + length]));
            at += length;
        }
        let end = code_at + bytes.len() as u64;
        let leads_back = |insn: &Insn| {
            insn.operand(0) == Operand::Near
                && (code_at..end).contains(&insn.immediate)
                && insn.immediate != insn.next_rip()
        };
        if self.branches && insns.iter().any(leads_back) {
            return;
        }
        let insns = blocks.iter().flat_map(|(block, _)| &block.insns).copied().collect();
        let block = GuestBlock { insns, ..blocks[0].0.clone() };
        let code = match (self.translate)(&blocks) {
            Ok(code) => code,
            Err(TranslateError::FirstDeclined(_)) => {
                self.seen.declined += 1;
                return;
            }
            Err(error) => panic!("seed {seed:#x}: {error}: {bytes:02x?}"),
        };
        let placed = place(code);

        // What the window may cost is counted by them.
        let counted = self.windows.as_ref().map_or(0, |_| self.compiled.state.instructions + 100_000);
        let data: Vec<u8> =
            (0..(DATA_SIZE + 0x2_0000) / 8).flat_map(|_| random.next().to_le_bytes()).collect();
        let mut start = (self.state)();
        registers(random, &mut start);
        start.segments[4].base = self.base + DATA + random.below(0x1000);
        start.segments[5].base = self.base + DATA + random.below(0x1000);
        if self.base != 0 {
            let data = DATA..DATA + DATA_SIZE;
            for register in start.gpr.iter_mut().filter(|register| data.contains(*register)) {
                *register += if random.once_in(8) { 0 } else { self.base };
            }
        }
        for side in [&mut self.compiled, &mut self.interpreted] {
            side.set_data(&data);
            let state = &mut side.state;
            (state.gpr, state.xmm, state.x87) = (start.gpr, start.xmm, start.x87);
            (state.flags, state.rflags, state.mxcsr) = (start.flags, start.rflags, mxcsr);
            state.segments = start.segments;
            (state.rip, state.instructions, state.pending_exception) = (code_at, counted, 0);
        }

        if random.once_in(2) {
            let form = Form::ALL[random.below(Form::ALL.len() as u64) as usize];
            let width = [Width::Byte, Width::Word, Width::Dword, Width::Qword][random.below(4) as usize];
            let [a, b, c] = [(); 3].map(|()| random.next());
            let a = if form == Form::Packed { a & !0xfe } else { a };
            let lazy = LazyFlags { kind: form.kind(width), a, b, c: c & 1 };
            self.compiled.state.lazy_flags = lazy;
            self.interpreted.state.lazy_flags = lazy;
            self.interpreted.state.settle_flags();
        }

        if let Some(windows) = &mut self.windows {
            if random.once_in(4) {
                self.compiled.mmu.flush_all(&mut self.compiled.state);
            }
            self.compiled.mmu.select_view(&mut self.compiled.state);
            self.seen.runs += 1;
            self.seen.on += u64::from(self.compiled.state.window != 0);
            windows.installed(seed, placed.code(), &placed.block);
        }
        let windows = self.windows.as_ref().map(|windows| &raw const **windows);
        // SAFETY: they are in boxes; `Side::new` made `engine` point to its MMU.
        let handled = windows.map(|windows| unsafe { Handled::new(windows, &raw mut *self.compiled.state) });
        // SAFETY: what the state points to lives in `compiled`.
        let leave = unsafe { placed.run(&mut self.compiled.state) };
        drop(handled);
        let stray = self.windows.as_ref().map_or(0, |windows| windows.stray());
        assert_eq!(stray, 0, "seed {seed:#x}: an access to the window was not checked: {bytes:02x?}");
        self.compiled.state.settle_flags();
        let compiled = &mut *self.compiled.state;
        if matches!(leave, Leave::Unlinked | Leave::Guard) {
            let slot = compiled.scratch[0] as usize - placed.slot(0) as usize;
            compiled.rip = placed.block.exits[slot / 32].target;
        }
        let executed = (compiled.instructions - counted) as usize;
        let undefined = if self.host_flags { undefined_flags(&bytes, mode, executed) } else { Some(0) };
        let Some(undefined) = undefined else {
            // Also where no case resets it, memory must stay the same.
            self.interpreted.set_all(&self.compiled.all());
            return;
        };
        for _ in 0..executed {
            let rip = self.interpreted.state.rip;
            let insn = block.insns.iter().find(|insn| insn.rip == rip);
            let insn =
                insn.unwrap_or_else(|| panic!("seed {seed:#x}: interpreter left the block early: {rip:#x}"));
            interpreter::step(&mut self.interpreted.state, &mut self.interpreted.mmu, insn).unwrap_or_else(
                |stop| panic!("seed {seed:#x}: {insn:?} stops: {stop:?}; {bytes:02x?} left by {leave:?}"),
            );
            self.seen.executed.insert(format!("{:?}", insn.code));
        }
        let describe = || {
            let codes: Vec<_> = block.insns.iter().map(|insn| insn.code).collect();
            format!("seed {seed:#x}: {bytes:02x?} left by {leave:?}: {codes:?}")
        };
        if leave == Leave::Step && (self.compiled.state.mxcsr ^ self.interpreted.state.mxcsr) & !0x3f == 0 {
            // What raises #XM has set its flags in MXCSR already, and will again.
            self.compiled.state.mxcsr = self.interpreted.state.mxcsr;
        }
        let counts = [&self.compiled, &self.interpreted].map(|side| side.state.gpr[1]);
        if leave == Leave::Step
            && counts[0] != counts[1]
            && let Some(repetition) = repetition(&block.insns, self.compiled.state.rip)
        {
            // It may have done a part of its work before it was abandoned.
            let Side { state, mmu, .. } = &mut self.interpreted;
            interpreter::bulk::run(state, mmu, repetition);
        }
        for side in [&mut self.compiled, &mut self.interpreted] {
            let rflags = side.state.rflags() & !undefined;
            side.state.set_rflags(rflags);
        }
        let differences = differences(&self.compiled.state, &self.interpreted.state);
        assert!(differences.is_empty(), "{}\n{differences}", describe());
        if leave == Leave::Step {
            // An instruction that was abandoned may have stored a part of what it stores: done again, it must come out
            // the same.
            let rip = self.compiled.state.rip;
            let insn = block.insns.iter().find(|insn| insn.rip == rip).expect("a step is at an instruction");
            let [ours, theirs] = [&mut self.compiled, &mut self.interpreted].map(|side| {
                side.state.pending_exception = 0;
                interpreter::step(&mut side.state, &mut side.mmu, insn)
            });
            assert_eq!(ours, theirs, "{}", describe());
            assert_eq!(self.compiled.state.mxcsr, self.interpreted.state.mxcsr, "{}", describe());
            if theirs.is_ok() {
                *self.seen.left.entry(format!("{:?}", insn.mnemonic)).or_default() += 1;
            }
        }
        assert!(self.compiled.data() == self.interpreted.data(), "{}: memory differs", describe());
    }
}

/// What the instruction at an address repeats, if it does.
fn repetition(insns: &[Insn], rip: u64) -> Option<Repetition> {
    use iced_x86::Mnemonic::*;
    let insn = insns.iter().find(|insn| insn.rip == rip && insn.repeat != Repeat::None)?;
    let kind = match insn.mnemonic {
        Movsb | Movsw | Movsd | Movsq => Bulk::Movs,
        Stosb | Stosw | Stosd | Stosq => Bulk::Stos,
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => Bulk::Cmps,
        Scasb | Scasw | Scasd | Scasq => Bulk::Scas,
        _ => return None,
    };
    Some(Repetition::of(kind, insn))
}

fn setting(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    let parsed = match text.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => text.parse(),
    };
    Some(parsed.unwrap_or_else(|_| panic!("{name} is no number")))
}

/// Status flags that are undefined after the first `count` of a sequence, or `None` if one of them is read in it.
fn undefined_flags(bytes: &[u8], mode: Mode, count: usize) -> Option<u64> {
    let mut undefined = 0u32;
    for instruction in Decoder::with_ip(mode.code_bits(), bytes, CODE, options()).iter().take(count) {
        if instruction.rflags_read() & undefined != 0 {
            return None;
        }
        let counted_by_cl = (0..instruction.op_count()).any(|n| {
            instruction.op_kind(n) == OpKind::Register && instruction.op_register(n) == Register::CL
        });
        // Of no element, or of a count of zero, flags keep.
        let repeated = instruction.has_rep_prefix() || instruction.has_repne_prefix();
        if !counted_by_cl && !repeated {
            undefined &=
                !(instruction.rflags_written() | instruction.rflags_cleared() | instruction.rflags_set());
        }
        undefined |= instruction.rflags_undefined();
        if matches!(instruction.mnemonic(), Mnemonic::Rol | Mnemonic::Ror | Mnemonic::Rcl | Mnemonic::Rcr) {
            // Of a count other than one; iced knows that of some only.
            undefined |= RflagsBits::OF;
        }
        // Their double and quadruple forms do not exist for operands of 16 bits and counts above.
        if matches!(instruction.mnemonic(), Mnemonic::Shld | Mnemonic::Shrd)
            && instruction.op0_kind() == OpKind::Register
            && instruction.op0_register().size() == 2
        {
            return None;
        }
    }
    let pairs = [
        (RflagsBits::CF, flags::CF),
        (RflagsBits::ZF, flags::ZF),
        (RflagsBits::SF, flags::SF),
        (RflagsBits::PF, flags::PF),
        (RflagsBits::AF, flags::AF),
        (RflagsBits::OF, flags::OF),
    ];
    Some(pairs.iter().filter(|(iced, _)| undefined & iced != 0).fold(0u64, |bits, (_, flag)| bits | flag))
}

fn run(options: Options, state: fn() -> Box<CpuState>, cases: u64, seed: u64) {
    let mut translator = Translator::new(options).unwrap();
    run_with(Box::new(move |blocks| translator.translate(&blocks[0].0)), (false, false), state, cases, seed);
}

fn run_with(
    translate: Translate,
    (branches, host_flags): (bool, bool),
    state: fn() -> Box<CpuState>,
    cases: u64,
    seed: u64,
) {
    let (compiled, interpreted) = (Side::new(state), Side::new(state));
    let seen = Seen::default();
    let (base, windows) = (0, None);
    run_harness(
        Harness { translate, branches, host_flags, state, base, windows, compiled, interpreted, seen },
        cases,
        seed,
    );
}

fn run_harness(mut harness: Harness, cases: u64, seed: u64) -> Seen {
    let cases = setting("DIFFERENTIAL_CASES").unwrap_or(cases);
    let seed = setting("DIFFERENTIAL_SEED").unwrap_or(seed);
    for n in 0..cases {
        harness.case(seed.wrapping_add(n));
    }
    let seen = harness.seen;
    println!(
        "{cases} blocks from seed {seed:#x}: {} forms executed, {} blocks declined at their first instruction",
        seen.executed.len(),
        seen.declined
    );
    println!("left to the interpreter without need: {:?}", seen.left);
    seen
}

#[test]
fn templates_do_what_the_interpreter_does() {
    let mut translator = TemplateTranslator::new();
    run_with(
        Box::new(move |blocks| translator.translate(&blocks[0].0, None).cloned()),
        (false, true),
        long_mode_state,
        20000,
        0x4000_0000,
    );
}

#[test]
fn templates_behind_branches_do_what_the_interpreter_does() {
    let mut translator = TemplateTranslator::new();
    run_with(
        Box::new(move |blocks| {
            let first = &blocks[0].0;
            let bytes: Vec<u8> = blocks.iter().flat_map(|(_, bytes)| *bytes).copied().collect();
            let block = decode_extended(&bytes, first.rip, first.mode, |_| true);
            translator.translate(&block, None).cloned()
        }),
        (true, true),
        long_mode_state,
        20000,
        0x8000_0000,
    );
}

fn region(blocks: &[(GuestBlock, &[u8])]) -> Region {
    let blocks = blocks.iter().map(|(block, bytes)| RegionBlock::new(block.clone(), bytes, 0, None, None));
    Region { blocks: blocks.collect(), low: 0 }
}

#[test]
fn regions_by_templates_do_what_the_interpreter_does() {
    let mut translator = TemplateTranslator::new();
    run_with(
        Box::new(move |blocks| translator.translate_region(&region(blocks), Versions::Both).cloned()),
        (true, true),
        long_mode_state,
        20000,
        0x5000_0000,
    );
}

#[test]
fn regions_with_the_window_do_what_the_interpreter_does() {
    let mut translator = TemplateTranslator::new();
    translator.use_windows(true);
    let (state, mut low) = (user_state, 1_u32);
    let (mut compiled, interpreted) = (Side::new(state), Side::new(state));
    assert!(windows::prepare() && compiled.mmu.open_window(0), "this host can't have the window");
    let harness = Harness {
        translate: Box::new(move |blocks| {
            // What is guessed of pointers does not matter.
            low = low.wrapping_mul(0x9e37_79b9).wrapping_add(0x7f4a_7c15);
            let region = Region { low: (low >> 13) & (low >> 7), ..region(blocks) };
            let versions = if low >> 31 == 0 { Versions::Both } else { Versions::Window };
            translator.translate_region(&region, versions).cloned()
        }),
        branches: true,
        host_flags: true,
        state,
        base: side::HIGH,
        windows: Some(Box::default()),
        compiled,
        interpreted,
        seen: Seen::default(),
    };
    let seen = run_harness(harness, 20000, 0x7000_0000);
    println!("the window was on in {} of {} runs", seen.on, seen.runs);
    assert!(seen.on > seen.runs / 2);
}

#[test]
fn compiled_regions_do_what_the_interpreter_does() {
    let mut translator = Translator::new(Options { verify: true, ..Options::default() }).unwrap();
    run_with(
        Box::new(move |blocks| translator.translate_region(&region(blocks))),
        (true, false),
        long_mode_state,
        1000,
        0x6000_0000,
    );
}

#[test]
fn compiled_blocks_do_what_the_interpreter_does() {
    run(Options { verify: true, ..Options::default() }, long_mode_state, 3000, 0x1000_0000);
}

#[test]
fn with_the_optimizer_too() {
    run(Options { verify: true, optimize: true, ..Options::default() }, long_mode_state, 1000, 0x2000_0000);
}

#[test]
fn with_the_quick_register_allocator_too() {
    let options = Options { verify: true, registers: RegisterAllocator::SinglePass, ..Options::default() };
    run(options, long_mode_state, 500, 0x2800_0000);
}

#[test]
fn in_32_bit_mode_too() {
    run(Options { verify: true, ..Options::default() }, protected_state, 1500, 0x3000_0000);
}
