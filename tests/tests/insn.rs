//! The cases of `tests/insn/*.ins`: on the host processor, then on every engine and in every way.
//!
//! `BLESS=1` (`cargo xtask bless`) has the host fill in the right-hand sides that are `?`.

use std::{
    fs,
    path::{Path, PathBuf},
};

use transvisor_tests::{
    engine::{Subject, Way},
    image::USUAL_OFFSET,
    ins::{self, Case},
    oracle::Oracle,
    tolerance,
};

fn files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("insn");
    let mut files: Vec<PathBuf> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("a directory entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "ins"))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "no cases in {}", folder.display());
    files
}

fn cases(file: &Path) -> Vec<Case> {
    let text = fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    ins::parse(&text).unwrap_or_else(|error| panic!("{}: {error:#}", file.display()))
}

fn report(failures: &[String], total: usize) {
    println!("{total} cases");
    assert!(failures.is_empty(), "{} of {total} cases failed:\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn the_host_agrees() {
    let bless = std::env::var_os("BLESS").is_some();
    let mut oracle = Oracle::start().expect("the oracle starts");
    let (mut failures, mut total) = (Vec::new(), 0);
    for file in files() {
        let mut blessed = Vec::new();
        for case in cases(&file) {
            total += 1;
            let ran = oracle
                .run(&case.code, USUAL_OFFSET, case.bits, &case.start, case.instructions.len())
                .unwrap_or_else(|error| panic!("{}:{}: {error}", file.display(), case.line));
            match &case.expected {
                None if bless => {
                    let length = case.code.len() as u64;
                    blessed.push((case.line, ins::outputs(&case.start, length, &ran, case.undefined)));
                }
                None => failures.push(format!("{}:{}: `?` is to be blessed", file.display(), case.line)),
                Some(expected) => {
                    let mut expected = expected.clone();
                    if let [insn] = case.instructions[..] {
                        tolerance::tolerate_vendor(&insn, case.bits, &mut expected, &ran);
                    }
                    let differences = ran.differences(&expected, case.undefined);
                    if !differences.is_empty() {
                        let text = differences.join("\n    ");
                        failures.push(format!("{}:{}: {}\n    {text}", file.display(), case.line, case.text));
                    }
                }
            }
        }
        if !blessed.is_empty() {
            fill_in(&file, &blessed);
        }
    }
    report(&failures, total);
}

fn fill_in(file: &Path, blessed: &[(usize, String)]) {
    let text = fs::read_to_string(file).expect("it was just read");
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    for (number, outputs) in blessed {
        let line = &mut lines[number - 1];
        *line = line.replacen("=> ?", &format!("=> {outputs}"), 1).trim_end().to_owned();
    }
    fs::write(file, lines.join("\n") + "\n").expect("the file of cases can be written");
}

fn on_engine(way: Way) {
    let (mut failures, mut total) = (Vec::new(), 0);
    let mut subject = Subject::start(way).expect("an engine starts");
    for file in files() {
        for case in cases(&file) {
            let Some(expected) = &case.expected else { continue };
            total += 1;
            let differences = match subject.run(&case.code, USUAL_OFFSET, case.bits, &case.start) {
                Ok(ran) => ran.differences(expected, case.undefined),
                Err(error) => {
                    subject = Subject::start(way).expect("an engine starts");
                    vec![format!("{error:#}")]
                }
            };
            if !differences.is_empty() {
                let text = differences.join("\n    ");
                failures.push(format!(
                    "{}:{}: {} ({way:?})\n    {text}",
                    file.display(),
                    case.line,
                    case.text
                ));
            }
        }
    }
    report(&failures, total);
    let (compiled, declined) = subject.compiled();
    println!("{compiled} blocks compiled, {declined} left to the interpreter");
    if way == Way::Interpreted {
        assert_eq!(compiled, 0);
    } else {
        let (most, of) = if way.is_by_templates() { (7, 10) } else { (9, 10) };
        assert!(compiled > total as u64 * most / of, "most cases were not compiled");
    }
}

#[test]
fn interpreted() {
    on_engine(Way::Interpreted);
}

#[test]
fn compiled_one_instruction_a_block() {
    on_engine(Way::CompiledSingly);
}

#[test]
fn compiled_whole() {
    on_engine(Way::Compiled);
}

#[test]
fn chained() {
    on_engine(Way::Chained);
}

#[test]
fn in_a_region() {
    on_engine(Way::Region);
}

#[test]
fn templates_one_instruction_a_block() {
    on_engine(Way::TemplatesSingly);
}

#[test]
fn templates_whole() {
    on_engine(Way::Templates);
}

#[test]
fn templates_in_a_region() {
    on_engine(Way::TemplatesRegion);
}

#[test]
fn templates_chained() {
    on_engine(Way::TemplatesChained);
}
