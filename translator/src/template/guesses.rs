//! What is guessed of accesses to the window, and turned out to be wrong.

use hashbrown::HashSet;

/// What has been learned of instructions that access the window, by their addresses.
#[derive(Default)]
pub(super) struct Guesses {
    /// Their accesses are where the guess did not expect them.
    wrong: HashSet<u64>,
    /// Their accesses are looked up, since they are in either part, or keep finding pages that the window does not have.
    bad: HashSet<u64>,
}

impl Guesses {
    /// Of so many instructions something is known.
    const MOST: usize = 4096;

    /// The instructions' accesses are not where they were guessed to be.
    pub fn note_wrong(&mut self, rips: impl IntoIterator<Item = u64>) {
        Self::bound(&mut self.wrong);
        let again = rips.into_iter().filter(|rip| !self.wrong.insert(*rip));
        let again: Vec<u64> = again.collect();
        self.note_bad(again);
    }

    /// They are not to be made there.
    pub fn note_bad(&mut self, rips: impl IntoIterator<Item = u64>) {
        Self::bound(&mut self.bad);
        self.bad.extend(rips);
    }

    fn bound(rips: &mut HashSet<u64>) {
        if rips.len() > Self::MOST {
            // Of processes that have ended, mostly.
            rips.clear();
        }
    }

    /// Whether the guess of an instruction's part is known to be wrong.
    pub fn are_wrong(&self, rip: u64) -> bool {
        self.wrong.contains(&rip)
    }

    /// Whether its accesses are to be looked up.
    pub fn are_bad(&self, rip: u64) -> bool {
        self.bad.contains(&rip)
    }
}
