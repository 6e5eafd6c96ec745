//! Makes a first set of instruction cases: for every encoding of every lifted instruction a few, with results from the
//! host processor. It prints nothing that exists already: it was run once for each file of `tests/insn`, which have
//! been edited by hand since; for a new file of definitions, run
//! `cargo run -p transvisor-tests --example make_cases -- MODULE >tests/insn/MODULE.ins`.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use iced_x86::{Code, Instruction, Mnemonic, OpKind, Register};
use semantics::table;
use transvisor_tests::{
    fuzz,
    image::{CODE, DATA, DATA_SIZE, Image, Ran, USUAL_OFFSET},
    ins,
    oracle::Oracle,
    program::{self, Program},
    random::Random,
    start,
};

/// Attempts per encoding, and how many of them become cases.
const ATTEMPTS: usize = 60;
/// Instructions (byte sequences) of one encoding, and lines of each.
const INSTRUCTIONS: usize = 2;
const LINES: usize = 2;

/// Whose results are not the same on every processor.
const NOT_EXACT: &[Mnemonic] = &[
    Mnemonic::Rcpps,
    Mnemonic::Rcpss,
    Mnemonic::Rsqrtps,
    Mnemonic::Rsqrtss,
    Mnemonic::F2xm1,
    Mnemonic::Fcos,
    Mnemonic::Fpatan,
    Mnemonic::Fprem,
    Mnemonic::Fprem1,
    Mnemonic::Fptan,
    Mnemonic::Fsin,
    Mnemonic::Fsincos,
    Mnemonic::Fyl2x,
    Mnemonic::Fyl2xp1,
    Mnemonic::Maskmovdqu,
    Mnemonic::Maskmovq,
    Mnemonic::Cvtpi2ps,
];

fn main() -> Result<()> {
    let module =
        std::env::args().nth(1).context("usage: make_cases MODULE (a file of crates/semantics/src)")?;
    println!("# Cases of crates/semantics/src/{module}.rs; the format is described in tests/src/ins.rs.");
    println!(
        "# They were made once (tests/examples/make_cases.rs) and are edited by hand since: add what you like;"
    );
    println!(
        "# where a line ends with `=> ?`, `cargo xtask bless` has the host processor fill in the result."
    );
    let mut oracle = Oracle::start()?;
    let everywhere = fuzz::encodings(64);
    for bits in [64, 32] {
        let mut last = None;
        for code in fuzz::encodings(bits) {
            let mnemonic = code.mnemonic();
            if table::module(mnemonic) != Some(&module)
                || NOT_EXACT.contains(&mnemonic)
                || (bits == 32 && everywhere.contains(&code))
            {
                continue;
            }
            if bits == 32 && last.is_none() {
                println!("\nbits 32");
            }
            if last != Some(mnemonic) {
                println!("\n# {}", format!("{mnemonic:?}").to_uppercase());
                last = Some(mnemonic);
            }
            encoding(&mut oracle, code, bits)?;
        }
    }
    Ok(())
}

/// Prints the cases of one encoding: those attempts that show something that the others did not.
fn encoding(oracle: &mut Oracle, code: Code, bits: u32) -> Result<()> {
    let mut random = Random::new(code as u64 + 1);
    // The most numerous group has little that depends on values.
    let lines = if table::module(code.mnemonic()) == Some("sse_integer") { 1 } else { LINES };
    let mut forms = BTreeSet::new();
    for _ in 0..ATTEMPTS {
        let Some((insn, bytes)) = fuzz::instruction(&mut random, code, bits) else { continue };
        if forms.len() == INSTRUCTIONS || !is_plain(&insn) || !forms.insert(form(&insn)) {
            continue;
        }
        let program = Program { bits, insns: vec![(insn, bytes)] };
        let mut seen = BTreeSet::new();
        for _ in 0..ATTEMPTS {
            let start = small_start(&mut random, &insn, bits);
            let native = oracle.run(&program.code(), USUAL_OFFSET, bits, &start, 1)?;
            // One fault is enough, and not of a kind that says nothing about the instruction.
            if seen.len() == lines || is_dull(&native, &insn) || !seen.insert(signature(&native, &insn)) {
                continue;
            }
            if seen.len() == 1 {
                let (text, _) = ins::disassemble(&program.code(), bits);
                let bytes: Vec<String> = program.code().iter().map(|byte| format!("{byte:02x}")).collect();
                println!("{} ; {text}", bytes.join(" "));
            }
            println!("{}", program.line(&start, &native));
        }
    }
    Ok(())
}

/// A start with what the instruction depends on, and not too much of it.
fn small_start(random: &mut Random, insn: &Instruction, bits: u32) -> Image {
    let mut start = start::state(random, std::slice::from_ref(insn), bits);
    if insn.is_string_instruction() {
        start.gpr[1] %= 5;
    }
    if matches!(insn.mnemonic(), Mnemonic::Bt | Mnemonic::Bts | Mnemonic::Btr | Mnemonic::Btc)
        && insn.op1_kind() == OpKind::Register
        && insn.op1_register().full_register() != insn.memory_base().full_register()
    {
        let index = insn.op1_register().full_register() as usize - Register::RAX as usize;
        start.gpr[index] = random.below(200).wrapping_sub(random.below(2) * 200);
    }
    if start.mxcsr & 0xffc0 != start.mxcsr {
        start.mxcsr &= !0x3f;
    }
    for register in &mut start.gpr {
        if *register == CODE {
            *register = DATA;
        }
    }
    let mut image = program::relevant(&start, insn, bits);
    if random.one_in(3) {
        // Flags that must stay as they are.
        image.flags = start.flags;
    }
    image
}

/// Whether it says the same wherever it is put, and takes one line.
fn is_plain(insn: &Instruction) -> bool {
    insn.memory_base() != Register::RIP
        && insn.segment_prefix() == Register::None
        && (insn.immediate8_2nd() < 4 || insn.mnemonic() != Mnemonic::Enter)
}

/// Kinds of operands and prefixes.
fn form(insn: &Instruction) -> String {
    let memory = (0..insn.op_count()).any(|operand| insn.op_kind(operand) == OpKind::Memory);
    let shift = table::module(insn.mnemonic()) == Some("shift");
    let count = if shift { insn.immediate8().to_string() } else { String::new() };
    format!(
        "{memory} {} {} {} {count}",
        insn.has_lock_prefix(),
        insn.has_rep_prefix(),
        insn.has_repne_prefix()
    )
}

/// What a case shows: its flags, its fault, whether it branched.
fn signature(ran: &Ran, insn: &Instruction) -> String {
    format!(
        "{:?} {:x} {}",
        ran.fault.map(|fault| fault.vector),
        ran.image.flags,
        ran.image.rip == insn.len() as u64
    )
}

/// A fault that has nothing to do with the instruction (a wild address), or that is not the same on every processor.
fn is_dull(ran: &Ran, insn: &Instruction) -> bool {
    let repeats = insn.has_rep_prefix() || insn.has_repne_prefix();
    ran.fault.is_some_and(|fault| match fault.vector {
        14 if repeats => true,
        13 if matches!(insn.memory_base(), Register::RBP | Register::RSP) => true,
        14 => fault.address.is_none_or(|address| address != DATA + DATA_SIZE),
        12 => true,
        _ => false,
    })
}
