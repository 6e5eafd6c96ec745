//! Random ring-3 instructions and short sequences, on the host processor and on every engine.
//!
//! The budget is small enough for every run; `FUZZ_CASES=1000000 FUZZ_SEED=7 cargo test … --test fuzz` goes on.

use std::collections::BTreeMap;

use iced_x86::{Code, Instruction, RflagsBits};
use transvisor_tests::{
    engine::{Subject, Way},
    fuzz::{self, Random},
    image::Ran,
    ins,
    oracle::Oracle,
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// A program, and what it leaves undefined.
struct Program {
    bits: u32,
    code: Vec<u8>,
    insns: Vec<Instruction>,
    undefined: u64,
}

impl Program {
    fn random(
        random: &mut Random,
        encodings: &[Code],
        bits: u32,
        length: usize,
        first: Option<Code>,
    ) -> Option<Self> {
        let mut program = Self { bits, code: Vec::new(), insns: Vec::new(), undefined: 0 };
        for position in 0..length {
            let code = if position == 0 { first } else { None }.unwrap_or_else(|| random.pick(encodings));
            let (insn, bytes) = fuzz::instruction(random, code, bits)?;
            // A branch is put at address 0 by the generator: only as the last instruction does its target make sense.
            if insn.flow_control() != iced_x86::FlowControl::Next && position + 1 != length {
                return None;
            }
            if reads(&insn) & program.undefined != 0 {
                return None;
            }
            program.undefined = program.undefined & !defines(&insn) | ins::undefined_flags(&insn);
            program.code.extend(bytes);
            program.insns.push(insn);
        }
        Some(program)
    }
}

fn bits_of(rflags: u32) -> u64 {
    use x86::flags as f;
    [
        (RflagsBits::CF, f::CF),
        (RflagsBits::PF, f::PF),
        (RflagsBits::AF, f::AF),
        (RflagsBits::ZF, f::ZF),
        (RflagsBits::SF, f::SF),
        (RflagsBits::OF, f::OF),
    ]
    .into_iter()
    .filter(|(theirs, _)| rflags & theirs != 0)
    .fold(0, |sum, (_, ours)| sum | ours)
}

fn reads(insn: &Instruction) -> u64 {
    bits_of(insn.rflags_read())
}

/// Flags that the instruction surely sets (a shift by CL may leave them as they were).
fn defines(insn: &Instruction) -> u64 {
    use iced_x86::Mnemonic as M;
    let maybe = matches!(
        insn.mnemonic(),
        M::Shl | M::Shr | M::Sar | M::Sal | M::Rol | M::Ror | M::Rcl | M::Rcr | M::Shld | M::Shrd
    ) || insn.has_rep_prefix()
        || insn.has_repne_prefix();
    if maybe { 0 } else { bits_of(insn.rflags_written() | insn.rflags_cleared() | insn.rflags_set()) }
}

fn compare(
    subject: &mut Subject,
    way: Way,
    program: &Program,
    offset: u64,
    start: &transvisor_tests::image::Image,
    native: &Ran,
) -> Option<String> {
    let differences = match subject.run(&program.code, offset, program.bits, start) {
        Ok(ran) => ran.differences(native, program.undefined),
        Err(error) => {
            *subject = Subject::start(way).expect("an engine starts");
            vec![format!("{error:#}")]
        }
    };
    if differences.is_empty() {
        return None;
    }
    let (text, _) = ins::disassemble(&program.code, program.bits);
    let bytes: Vec<String> = program.code.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut inputs = ins::assignments(&transvisor_tests::image::Image::new(), start, 0);
    inputs.retain(|item| !item.starts_with('['));
    Some(format!(
        "{way:?}: bits {}\n{} ; {text}\n    {} => {}\n  but:\n    {}",
        program.bits,
        bytes.join(" "),
        inputs.join(" "),
        ins::outputs(start, program.code.len() as u64, native, program.undefined),
        differences.join("\n    ")
    ))
}

fn fuzz(bits: u32, ways: &[Way]) {
    let seed = setting("FUZZ_SEED", 1);
    let budget = setting("FUZZ_CASES", 6000) as usize;
    println!("FUZZ_SEED={seed} FUZZ_CASES={budget} bits={bits}");
    let mut random = Random::new(seed ^ u64::from(bits));
    let encodings = fuzz::encodings(bits);
    let mut oracle = Oracle::start().expect("the oracle starts");
    let mut subjects: Vec<(Way, Subject)> =
        ways.iter().map(|&way| (way, Subject::start(way).expect("an engine starts"))).collect();
    let mut covered = BTreeMap::new();
    let mut failures: BTreeMap<String, String> = BTreeMap::new();
    let (mut slot, mut run) = (0u64, 0);
    for number in 0..budget {
        // Every encoding in turn begins a program; one in three programs is a sequence.
        let first = encodings[number % encodings.len()];
        let length = if random.one_in(3) { 2 + random.below(5) as usize } else { 1 };
        let Some(program) = Program::random(&mut random, &encodings, bits, length, Some(first)) else {
            continue;
        };
        let start = fuzz::state(&mut random, &program.insns, bits);
        slot += 1;
        if slot == 4000 {
            slot = 1;
            for (way, subject) in &mut subjects {
                *subject = Subject::start(*way).expect("an engine starts");
            }
        }
        let offset = slot * 1024 + 512;
        let native =
            oracle.run(&program.code, offset, bits, &start, program.insns.len()).expect("the oracle runs");
        run += 1;
        for insn in &program.insns {
            *covered.entry(insn.mnemonic()).or_insert(0) += 1;
        }
        for (way, subject) in &mut subjects {
            if let Some(failure) = compare(subject, *way, &program, offset, &start, &native) {
                failures.entry(format!("{:?}", program.insns[0].mnemonic())).or_insert(failure);
            }
        }
    }
    let all = semantics::table::LIFTED.len();
    println!(
        "{run} programs over {} encodings; {} of the table's {all} lifted instructions",
        encodings.len(),
        covered.len()
    );
    let texts: Vec<&str> = failures.values().map(String::as_str).take(40).collect();
    assert!(
        failures.is_empty(),
        "{} instructions differ from the host:\n{}",
        failures.len(),
        texts.join("\n\n")
    );
}

#[test]
fn interpreter_64() {
    fuzz(64, &[Way::Interpreted]);
}

#[test]
fn interpreter_32() {
    fuzz(32, &[Way::Interpreted]);
}

#[test]
fn compiled_64() {
    fuzz(64, &[Way::Compiled, Way::CompiledSingly]);
}

#[test]
fn compiled_32() {
    fuzz(32, &[Way::Compiled]);
}
