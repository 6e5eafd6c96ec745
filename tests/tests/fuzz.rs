//! Random ring-3 instructions and short sequences, on the host processor and on every engine.
//!
//! The budget is small enough for every run; `FUZZ_CASES=1000000 FUZZ_SEED=7 cargo test … --test fuzz` goes on;
//! `FUZZ_ONLY=maskmovq` keeps to one mnemonic.

use std::collections::{BTreeMap, BTreeSet};

use iced_x86::{Code, Mnemonic};
use semantics::table;
use transvisor_tests::{
    engine::{Subject, Way},
    fuzz,
    image::{Image, Ran, USUAL_OFFSET},
    oracle::Oracle,
    program::Program,
    random::Random,
    start,
};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|value| value.parse().ok()).unwrap_or(default)
}

/// The host and the engines.
struct Bench {
    oracle: Oracle,
    subjects: Vec<(Way, Subject)>,
}

impl Bench {
    fn start(ways: &[Way]) -> Self {
        let subjects =
            ways.iter().map(|&way| (way, Subject::start(way).expect("an engine starts"))).collect();
        Self { oracle: Oracle::start().expect("the oracle starts"), subjects }
    }

    /// Runs natively, and on those engines that `which` asks for.
    fn run(
        &mut self,
        program: &Program,
        start: &Image,
        offset: u64,
        which: Option<Way>,
    ) -> (Ran, Vec<(Way, Vec<String>)>) {
        let code = program.code();
        let native = self
            .oracle
            .run(&code, offset, program.bits, start, program.insns.len())
            .unwrap_or_else(|error| panic!("{error}: {}", program.case(start, &ran_nowhere(start))));
        let mut found = Vec::new();
        if native.fault.is_none() && native.image.rip < code.len() as u64 {
            // A branch into the program itself: natively its first round is all that runs.
            return (native, found);
        }
        for (way, subject) in &mut self.subjects {
            if which.is_some_and(|wanted| wanted != *way) {
                continue;
            }
            let differences = match subject.run(&code, offset, program.bits, start) {
                Ok(ran) => program.differences(&ran, &native),
                Err(error) => {
                    *subject = Subject::start(*way).expect("an engine starts");
                    vec![format!("{error:#}")]
                }
            };
            found.push((*way, differences));
        }
        (native, found)
    }
}

fn ran_nowhere(start: &Image) -> Ran {
    Ran { image: start.clone(), fault: None }
}

fn fuzz(bits: u32, ways: &[Way]) {
    let seed = setting("FUZZ_SEED", 1);
    let budget = setting("FUZZ_CASES", 100_000) as usize;
    println!("FUZZ_SEED={seed} FUZZ_CASES={budget} bits={bits}");
    let mut random = Random::new(seed ^ u64::from(bits) << 32);
    let mut encodings = fuzz::encodings(bits);
    if let Ok(only) = std::env::var("FUZZ_ONLY") {
        encodings.retain(|code| format!("{:?}", code.mnemonic()).eq_ignore_ascii_case(&only));
        assert!(!encodings.is_empty(), "{only} is not fuzzed in {bits}-bit code");
    }
    let mut bench = Bench::start(ways);
    let mut covered = BTreeSet::new();
    let mut failures: BTreeMap<String, String> = BTreeMap::new();
    let mut run = 0;
    for number in 0..budget {
        // Every encoding in turn begins a program; one in three programs is a sequence.
        let first = encodings[number % encodings.len()];
        let length = match random.below(24) {
            0 => 7 + random.below(10),
            1..=8 => 2 + random.below(5),
            _ => 1,
        } as usize;
        let Some(program) = Program::random(&mut random, &encodings, bits, length, first) else { continue };
        let start = start::state(&mut random, &program.instructions(), bits);
        // Now and then across a page boundary.
        let offset = if random.one_in(8) { 0x1000 - random.below(16) } else { USUAL_OFFSET };
        let (_, found) = bench.run(&program, &start, offset, None);
        run += 1;
        covered.extend(program.insns.iter().map(|(insn, _)| insn.mnemonic()));
        for (way, differences) in found {
            if differences.is_empty() || failures.len() > 100 {
                continue;
            }
            let (mnemonic, text) = program.smallest(&start, &mut |program, start| {
                let (native, mut found) = bench.run(program, start, offset, Some(way));
                (native, found.pop().map(|(_, differences)| differences).unwrap_or_default())
            });
            failures.entry(format!("{mnemonic:?} {way:?}")).or_insert(text);
        }
    }
    println!(
        "{run} programs over {} encodings; {} of the table's {} lifted instructions, which exist in this mode",
        encodings.len(),
        covered.len(),
        table::LIFTED.len(),
    );
    let texts: Vec<String> =
        failures.iter().map(|(name, text)| format!("{name}:\n{text}")).take(40).collect();
    assert!(
        failures.is_empty(),
        "{} instructions differ from the host:\n{}",
        failures.len(),
        texts.join("\n\n")
    );
}

/// Every lifted instruction is fuzzed, or listed with the reason why it is not.
#[test]
fn the_whole_table_is_covered() {
    let made: BTreeSet<Mnemonic> =
        [64, 32].into_iter().flat_map(fuzz::encodings).map(|code| code.mnemonic()).collect();
    let excluded: BTreeSet<Mnemonic> = fuzz::EXCLUDED.iter().map(|(mnemonic, _)| *mnemonic).collect();
    let lifted: BTreeSet<Mnemonic> = table::LIFTED.iter().copied().collect();
    println!("{} of {} lifted instructions are fuzzed", made.len(), lifted.len());
    let missing: Vec<_> = lifted.iter().filter(|mnemonic| !made.contains(mnemonic)).collect();
    let offered: BTreeSet<Mnemonic> =
        Code::values().filter(|&code| fuzz::is_offered(code)).map(|code| code.mnemonic()).collect();
    let unexplained: Vec<_> = missing
        .iter()
        .filter(|mnemonic| !excluded.contains(mnemonic) && offered.contains(mnemonic))
        .collect();
    assert!(unexplained.is_empty(), "neither made up nor excluded: {unexplained:?}");
    let stale: Vec<_> = excluded.iter().filter(|mnemonic| !lifted.contains(mnemonic)).collect();
    assert!(stale.is_empty(), "excluded, but not lifted anyway: {stale:?}");
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
fn interpreter_16() {
    fuzz(16, &[Way::Interpreted]);
}

#[test]
fn compiled_64() {
    fuzz(
        64,
        &[Way::Compiled, Way::CompiledSingly, Way::Templates, Way::TemplatesSingly, Way::TemplatesRegion],
    );
}

#[test]
fn compiled_32() {
    fuzz(32, &[Way::Compiled]);
}
