//! Racing the contestants from power-on to the shell.

use std::time::{Duration, Instant};

use anyhow::Result;
use serde::Serialize;

use crate::{
    console::Console,
    contestant::{Contestant, Family},
    failure::{Failure, Failures},
    statistics::Figure,
    usage,
};

/// What the kernel says when it has booted, and the end of the shell's prompt (`root@debian:~# `).
const INIT: &str = "Run /init as init process";
const PROMPT: &str = ":~# ";
const FAREWELL: &str = "poweroff -f\n";

/// Those who start alike.
pub struct Group {
    /// How.
    pub name: &'static str,
    /// They.
    pub contestants: Vec<Contestant>,
}

/// What one boot cost.
struct Run {
    cpu_to_init: f64,
    wall_to_init: f64,
    cpu_to_shell: f64,
    wall_to_shell: f64,
    user: f64,
    system: f64,
    peak: f64,
    beyond_guest: f64,
}

/// All boots of a contestant. Times in seconds, memory in MiB; "CPU" is user and system time of the whole process.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// What it is.
    pub family: Family,
    /// CPU time until the kernel runs /init.
    pub cpu_to_init: Figure,
    /// Wall time until then.
    pub wall_to_init: Figure,
    /// CPU time until the shell's prompt.
    pub cpu_to_shell: Figure,
    /// Wall time until then.
    pub wall_to_shell: Figure,
    /// User CPU time until it has powered off.
    pub user: Figure,
    /// System CPU time until then.
    pub system: Figure,
    /// Peak resident memory.
    pub peak: Figure,
    /// Resident at the shell's prompt besides the guest's own memory: what the contestant itself needs.
    pub beyond_guest: Figure,
    /// What the last run printed about itself (`--stats --json`), for engines of ours.
    pub statistics: Option<serde_json::Value>,
}

/// The result of a race.
#[derive(Clone, Debug, Serialize)]
pub struct Results {
    /// How they start.
    pub group: String,
    /// Contestants that ran at least once.
    pub standings: Vec<Standing>,
    /// Contestants that failed.
    pub failures: Vec<Failure>,
}

/// Runs everyone once a round. Whoever fails is not run again; the others go on.
pub fn run(group: &Group, memory: u64, rounds: usize, patience: Duration) -> Results {
    let mut all: Vec<Vec<Run>> = group.contestants.iter().map(|_| Vec::new()).collect();
    let mut statistics = vec![None; group.contestants.len()];
    let mut failures = Failures::default();
    for contestant in &group.contestants {
        for _ in 0..contestant.warm_ups {
            eprintln!("warming up: {}", contestant.name);
            failures.attempt(contestant, || once(contestant, memory, patience));
        }
    }
    for round in 1..=rounds {
        for (number, contestant) in group.contestants.iter().enumerate() {
            if failures.has(contestant) {
                continue;
            }
            eprintln!("{}, round {round} of {rounds}: {}", group.name, contestant.name);
            if let Some((run, said)) = failures.attempt(contestant, || once(contestant, memory, patience)) {
                all[number].push(run);
                statistics[number] = said.lines().rev().find_map(|line| serde_json::from_str(line).ok());
            }
        }
    }
    let standings = group.contestants.iter().zip(&all).zip(statistics);
    let standings = standings.filter_map(|((contestant, runs), statistics)| {
        let of = |figure: fn(&Run) -> f64| Figure::of(runs.iter().map(figure).collect());
        Some(Standing {
            name: contestant.name.clone(),
            family: contestant.family,
            cpu_to_init: of(|run| run.cpu_to_init)?,
            wall_to_init: of(|run| run.wall_to_init)?,
            cpu_to_shell: of(|run| run.cpu_to_shell)?,
            wall_to_shell: of(|run| run.wall_to_shell)?,
            user: of(|run| run.user)?,
            system: of(|run| run.system)?,
            peak: of(|run| run.peak)?,
            beyond_guest: of(|run| run.beyond_guest)?,
            statistics,
        })
    });
    Results { group: group.name.to_owned(), standings: standings.collect(), failures: failures.list }
}

fn once(contestant: &Contestant, memory: u64, patience: Duration) -> Result<(Run, String)> {
    let begun = Instant::now();
    let mut console = Console::start(contestant, patience)?;
    console.wait_for(INIT)?;
    let (wall_to_init, cpu_to_init) = (begun.elapsed(), usage::cpu_time(console.process())?);
    console.wait_for(PROMPT)?;
    let (wall_to_shell, cpu_to_shell) = (begun.elapsed(), usage::cpu_time(console.process())?);
    let resident = usage::resident(console.process(), memory)?;
    console.send(FAREWELL)?;
    let (total, said) = console.finish()?;
    let run = Run {
        cpu_to_init: cpu_to_init.as_secs_f64(),
        wall_to_init: wall_to_init.as_secs_f64(),
        cpu_to_shell: cpu_to_shell.as_secs_f64(),
        wall_to_shell: wall_to_shell.as_secs_f64(),
        user: total.user,
        system: total.system,
        peak: total.peak,
        beyond_guest: resident.total - resident.guest,
    };
    Ok((run, said))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_fails_does_not_end_the_race() {
        let boots = "echo Run /init as init process; printf 'root@debian:~# '; read line";
        let contestants =
            vec![Contestant::script("dies", "echo hm; exit 1"), Contestant::script("boots", boots)];
        let group = Group { name: "boot", contestants };
        // Every process has a mapping of a page.
        let results = run(&group, 4096, 2, Duration::from_secs(20));
        assert_eq!(results.standings.len(), 1);
        assert_eq!((results.standings[0].name.as_str(), results.standings[0].user.runs.len()), ("boots", 2));
        assert_eq!(results.failures.len(), 1);
        assert!(results.failures[0].name == "dies" && results.failures[0].why.contains("hm"));
    }
}
