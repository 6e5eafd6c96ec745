//! Racing the contestants over workloads: each boots once a round and runs all of them (`runner.h` has the protocol).

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::{
    console::Console,
    contestant::{Contestant, Family},
    failure::{Failure, Failures},
    statistics::Figure,
    usage,
};

/// What one workload cost a contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Cost {
    /// CPU time of the whole process, user and system, seconds.
    pub cpu: Figure,
    /// Wall time, seconds.
    pub wall: Figure,
}

/// All workloads of a contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// By workload.
    pub costs: BTreeMap<String, Cost>,
    /// What the last run printed about itself (`--stats --json`), for engines of ours.
    pub statistics: Option<serde_json::Value>,
}

/// The result of a race.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// Workloads, in the order in which they ran.
    pub workloads: Vec<String>,
    /// Contestants that ran at least once.
    pub standings: Vec<Standing>,
    /// Contestants that failed.
    pub failures: Vec<Failure>,
}

/// How to race.
pub struct Rules<'a> {
    /// How often each runs everything.
    pub rounds: usize,
    /// Only workloads whose name contains one of these; all if there are none.
    pub workloads: &'a [String],
    /// How long one may take.
    pub patience: Duration,
}

/// One workload, run once.
struct Sample {
    workload: String,
    result: String,
    cpu: f64,
    wall: f64,
}

/// Runs everyone once a round. Everyone's results must be those of `reference`, the program on the host. Whoever fails is not
/// run again; the others go on.
pub fn run(reference: &Contestant, contestants: &[Contestant], rules: &Rules<'_>) -> Result<Results> {
    let expected = once(reference, rules).with_context(|| reference.name.clone())?.0;
    ensure!(!expected.is_empty(), "no workload has such a name");
    let mut samples: Vec<Vec<Sample>> = contestants.iter().map(|_| Vec::new()).collect();
    let mut statistics = vec![None; contestants.len()];
    let mut failures = Failures::default();
    for contestant in contestants {
        for _ in 0..contestant.warm_ups {
            eprintln!("warming up: {}", contestant.name);
            failures.attempt(contestant, || once(contestant, rules));
        }
    }
    for round in 1..=rules.rounds {
        for (number, contestant) in contestants.iter().enumerate() {
            if failures.has(contestant) {
                continue;
            }
            eprintln!("round {round} of {}: {}", rules.rounds, contestant.name);
            let run = || {
                let (run, said) = once(contestant, rules)?;
                check(&expected, &run)?;
                Ok((run, said))
            };
            if let Some((run, said)) = failures.attempt(contestant, run) {
                samples[number].extend(run);
                statistics[number] = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
            }
        }
    }
    let all = contestants.iter().zip(samples).zip(statistics).filter(|((_, samples), _)| !samples.is_empty());
    let standings = all.map(|((contestant, samples), statistics)| {
        let (name, family) = (contestant.name.clone(), contestant.family);
        Standing { name, family, costs: costs(&samples), statistics }
    });
    Ok(Results {
        standings: standings.collect(),
        failures: failures.list,
        workloads: expected.into_iter().map(|sample| sample.workload).collect(),
    })
}

fn costs(samples: &[Sample]) -> BTreeMap<String, Cost> {
    let mut all = BTreeMap::new();
    for Sample { workload, .. } in samples {
        let of = |figure: fn(&Sample) -> f64| {
            Figure::of(samples.iter().filter(|sample| sample.workload == *workload).map(figure).collect())
        };
        if let (Some(cpu), Some(wall)) = (of(|sample| sample.cpu), of(|sample| sample.wall)) {
            all.insert(workload.clone(), Cost { cpu, wall });
        }
    }
    all
}

/// A wrong result is worse than a slow one.
fn check(expected: &[Sample], run: &[Sample]) -> Result<()> {
    ensure!(expected.len() == run.len(), "{} workloads ran, and {} on the host", run.len(), expected.len());
    for (expected, run) in expected.iter().zip(run) {
        ensure!(
            expected.workload == run.workload && expected.result == run.result,
            "{}: the result is {}, and {} on the host ({})",
            run.workload,
            run.result,
            expected.result,
            expected.workload
        );
    }
    Ok(())
}

/// Runs all wanted workloads; also returns what it said on standard error.
fn once(contestant: &Contestant, rules: &Rules<'_>) -> Result<(Vec<Sample>, String)> {
    let mut console = Console::start(contestant, rules.patience)?;
    let mut samples = Vec::new();
    loop {
        let line = console.line_with("@")?;
        let Some(line) = line else {
            bail!("it ended before its workloads did; its console ends with:\n{}", console.tail());
        };
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("ready"), Some(name)) => {
                let wanted =
                    rules.workloads.is_empty() || rules.workloads.iter().any(|w| name.contains(w.as_str()));
                if wanted {
                    samples.push(one(&mut console, contestant.family, name)?);
                } else {
                    console.send("skip\n")?;
                }
            }
            (Some("end"), _) => break,
            _ => bail!("its console says \"@{line}\" and ends with:\n{}", console.tail()),
        }
    }
    let (_, said) = console.finish()?;
    Ok((samples, said))
}

/// Answers the offer, and measures until the report.
fn one(console: &mut Console, family: Family, name: &str) -> Result<Sample> {
    let process = console.process();
    let cpu = usage::cpu_time(process)?;
    let begun = Instant::now();
    console.send("go\n")?;
    let report = console.line_with("@").with_context(|| name.to_owned())?;
    let wall = begun.elapsed().as_secs_f64();
    let Some(report) = report else {
        bail!("{name}: it ended before it was done; its console ends with:\n{}", console.tail());
    };
    let words: Vec<&str> = report.split_whitespace().collect();
    let ["done", workload, own_cpu, _] = words[..] else {
        bail!("{name}: its console says \"@{report}\" and ends with:\n{}", console.tail());
    };
    ensure!(workload == name, "{name} was to run, and {workload} did");
    // On the host part of the work is that of child processes, which only their parent can account for.
    let cpu = match family {
        Family::Native => own_cpu.parse::<f64>().context("its CPU time")? / 1e6,
        Family::Ours | Family::Qemu => (usage::cpu_time(process)? - cpu).as_secs_f64(),
    };
    let result = console.line_with("@result ")?;
    let result = result.as_deref().and_then(|line| line.split_whitespace().nth(1));
    let result = result.with_context(|| format!("{name}: it reports no result"))?;
    Ok(Sample { workload: workload.to_owned(), result: result.to_owned(), cpu, wall })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guest(name: &str, result: u32, end: &str) -> Contestant {
        let mut contestant = Contestant::native("/bin/sh".as_ref(), None);
        let script =
            format!("echo @ready sum; read line; echo @done sum 20 10; echo @result sum {result}; {end}");
        contestant.command.extend(["-c".into(), script.into()]);
        Contestant { name: name.into(), family: Family::Ours, ..contestant }
    }

    #[test]
    fn those_who_fail_or_are_wrong_do_not_end_the_race() {
        let reference = guest("native", 55, "echo @end");
        let contestants =
            [guest("wrong", 54, "echo @end"), guest("dies", 55, "exit 1"), guest("right", 55, "echo @end")];
        let rules = Rules { rounds: 2, workloads: &[], patience: Duration::from_secs(20) };
        let results = run(&reference, &contestants, &rules).unwrap();
        assert_eq!((results.standings.len(), results.workloads), (1, vec!["sum".to_owned()]));
        let standing = &results.standings[0];
        assert_eq!((standing.name.as_str(), standing.costs["sum"].wall.runs.len()), ("right", 2));
        let failures: Vec<_> = results.failures.iter().map(|failure| failure.name.as_str()).collect();
        assert_eq!(failures, ["wrong", "dies"]);
        assert!(results.failures[0].why.contains("the result is 54, and 55 on the host"));
    }
}
