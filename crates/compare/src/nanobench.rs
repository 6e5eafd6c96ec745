//! Racing the contestants over `guest-images/nanobench`: what each operation costs that a monitor has to do something about.

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, bail};

use crate::{
    comparison::{Column, Section},
    console::Console,
    contestant::Contestant,
    failure::Failures,
    statistics::Figure,
};

/// What one run said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Operations in the order of the guest, with nanoseconds.
    pub costs: Vec<(String, f64)>,
    /// Operations that it left out, with the reason.
    pub skipped: Vec<(String, String)>,
    /// Frequency of the guest's TSC.
    pub tsc_hz: u64,
}

impl Run {
    /// Takes a line of the guest's, without the `@`; true at the end.
    fn take(&mut self, line: &str) -> Result<bool> {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["tsc", hz] => self.tsc_hz = hz.parse().context("the frequency of its TSC")?,
            ["op", name, _, picoseconds] => {
                let picoseconds: f64 = picoseconds.parse().with_context(|| format!("the cost of {name}"))?;
                self.costs.push((name.to_owned(), picoseconds / 1000.0));
            }
            ["skip", name, ..] => self.skipped.push((name.to_owned(), words[2..].join(" "))),
            ["end"] => return Ok(true),
            _ => bail!("the guest says \"@{line}\""),
        }
        Ok(false)
    }
}

/// Runs everyone once a round. A contestant that fails is a column with the reason, and is not run again.
pub fn race(contestants: &[Contestant], rounds: usize, patience: Duration) -> Section {
    let mut order: Vec<String> = Vec::new();
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); contestants.len()];
    let mut failures = Failures::default();
    for round in 1..=rounds {
        for (number, contestant) in contestants.iter().enumerate() {
            if failures.has(contestant) {
                continue;
            }
            eprintln!("nanobench, round {round} of {rounds}: {}", contestant.name);
            if let Some(run) = failures.attempt(contestant, || once(contestant, patience)) {
                for (name, _) in &run.costs {
                    if !order.contains(name) {
                        order.push(name.clone());
                    }
                }
                runs[number].push(run);
            }
        }
    }
    let columns = contestants.iter().zip(&runs).map(|(contestant, runs)| Column {
        figures: figures(runs),
        skipped: runs.last().map(|run| run.skipped.iter().cloned().collect()).unwrap_or_default(),
        ..Column::of(contestant, &failures.list)
    });
    Section {
        name: "nanobench".into(),
        unit: "ns per operation".into(),
        columns: columns.collect(),
        rows: order,
    }
}

fn figures(runs: &[Run]) -> BTreeMap<String, Figure> {
    let mut all: BTreeMap<String, Vec<f64>> = BTreeMap::new();
    for (name, cost) in runs.iter().flat_map(|run| &run.costs) {
        all.entry(name.clone()).or_default().push(*cost);
    }
    all.into_iter().filter_map(|(name, costs)| Some((name, Figure::of(costs)?))).collect()
}

fn once(contestant: &Contestant, patience: Duration) -> Result<Run> {
    let mut console = Console::start(contestant, patience)?;
    let mut run = Run::default();
    loop {
        let Some(line) = console.line_with("@")? else {
            bail!(
                "it ended before the guest did; its console ends with:\n{}{}",
                console.tail(),
                console.complaint()
            );
        };
        if run.take(&line)? {
            break;
        }
    }
    console.finish()?;
    Ok(run)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_guest_says_becomes_figures() {
        let good = "echo @tsc 1000000000; echo noise; echo @op in 100 2500; echo '@skip cr3wr_pcid no PCIDs'; echo @end";
        let section = race(&[Contestant::script("a", good)], 2, Duration::from_secs(20));
        assert_eq!(section.rows, ["in"]);
        assert_eq!(section.columns[0].figures["in"].runs, [2.5, 2.5]);
        assert_eq!(section.columns[0].skipped["cr3wr_pcid"], "no PCIDs");
    }

    #[test]
    fn one_that_fails_does_not_end_the_race() {
        let section = race(
            &[
                Contestant::script("dies", "echo @op in 1 1000; echo why >&2; exit 1"),
                Contestant::script("b", "echo @op in 1 1000; echo @end"),
            ],
            2,
            Duration::from_secs(20),
        );
        let failure = section.columns[0].failure.as_deref().unwrap();
        assert!(failure.contains("why"), "{failure}");
        assert_eq!(section.columns[1].figures["in"].runs.len(), 2);
    }

    #[test]
    fn a_guest_that_fails_is_quoted() {
        let error =
            once(&Contestant::script("a", "echo '@fail smc: stale code ran'"), Duration::from_secs(20))
                .unwrap_err();
        assert!(error.to_string().contains("stale code ran"));
    }
}
