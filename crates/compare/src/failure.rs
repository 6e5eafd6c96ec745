//! Who failed, and why: a contestant that fails must not cost the others their measurements.

use anyhow::Result;
use serde::Serialize;

use crate::contestant::Contestant;

/// A contestant's first failure; it is not run again after it.
#[derive(Clone, Debug, Serialize)]
pub struct Failure {
    /// Who.
    pub name: String,
    /// Why.
    pub why: String,
}

/// All of a race.
#[derive(Default)]
pub(crate) struct Failures {
    pub(crate) list: Vec<Failure>,
}

impl Failures {
    /// Whether a contestant has failed.
    pub(crate) fn has(&self, contestant: &Contestant) -> bool {
        self.list.iter().any(|failure| failure.name == contestant.name)
    }

    /// Runs a contestant, unless it has failed already, and notes down if it does.
    pub(crate) fn attempt<T>(
        &mut self,
        contestant: &Contestant,
        run: impl FnOnce() -> Result<T>,
    ) -> Option<T> {
        if self.has(contestant) {
            return None;
        }
        match run() {
            Ok(result) => Some(result),
            Err(error) => {
                eprintln!("{} failed", contestant.name);
                self.list.push(Failure { name: contestant.name.clone(), why: format!("{error:#}") });
                None
            }
        }
    }
}

/// Why a contestant failed, if it did.
pub(crate) fn of(failures: &[Failure], name: &str) -> Option<String> {
    failures.iter().find(|failure| failure.name == name).map(|failure| failure.why.clone())
}
