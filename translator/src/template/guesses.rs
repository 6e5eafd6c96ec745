//! What is guessed of accesses to the window, and turned out to be wrong.

use hashbrown::{HashMap, HashSet};

use crate::Part;

/// What has been learned of instructions that access the window, by their addresses.
#[derive(Default)]
pub(super) struct Guesses {
    /// The part that their accesses are in: the other one was guessed, and was wrong.
    parts: HashMap<u64, Part>,
    /// Their accesses are looked up, since they are in either part, or keep finding pages that the window does not have.
    bad: HashSet<u64>,
}

impl Guesses {
    /// Of so many instructions something is known.
    const MOST: usize = 4096;

    /// The instructions' accesses are not in the parts where they were guessed to be.
    pub fn note_wrong(&mut self, guessed: impl IntoIterator<Item = (u64, Part)>) {
        if self.parts.len() > Self::MOST {
            // Of processes that have ended, mostly.
            self.parts.clear();
        }
        for (rip, part) in guessed {
            if self.parts.insert(rip, part.other()).is_some() {
                self.note_bad([rip]);
            }
        }
    }

    /// They are not to be made there.
    pub fn note_bad(&mut self, rips: impl IntoIterator<Item = u64>) {
        if self.bad.len() > Self::MOST {
            self.bad.clear();
        }
        self.bad.extend(rips);
    }

    /// Where an instruction's accesses are known to be.
    pub fn part(&self, rip: u64) -> Option<Part> {
        self.parts.get(&rip).copied()
    }

    /// Whether its accesses are to be looked up.
    pub fn are_bad(&self, rip: u64) -> bool {
        self.bad.contains(&rip)
    }
}
