//! The tier policy: which blocks are interpreted and which are compiled. Nothing else knows it.
//!
//! A block is interpreted until it has run `threshold` times, then compiled. Compiling one costs some 200 us and
//! interpreting one some 30 ns, so a block should run thousands of times before; booting Debian's cloud kernel takes
//! least host time around [`DEFAULT_THRESHOLD`] (user CPU with a threshold of 64: 3.9 s, 500: 2.5 s, 2000: 2.3 s,
//! 5000: 2.5 s, 10000: 3.0 s; `transvisor run --stats`). Blocks in pages whose code was overwritten wait longer, doubling with every time, so that a guest that patches or
//! generates code in a loop is interpreted, not compiled over and over.

use x86::Mode;

/// What an engine does with guest code.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum EngineMode {
    /// Never compiles.
    Interpret,
    /// Compiles what is warm.
    Translate,
}

/// The policy's parameters.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Policy {
    /// See [`EngineMode`].
    pub mode: EngineMode,
    /// Executions before a block is compiled; 1 compiles at the first.
    pub threshold: u32,
}

/// See the module's description.
pub const DEFAULT_THRESHOLD: u32 = 1500;

/// A block belongs to a warm block's region if it has run at least this fraction of the times that make a block warm.
const REGION_SHARE: u32 = 8;

/// How many times as often a block of a region must be run outside of it before it becomes the head of its own.
const AGAIN: u32 = 4;

/// How often the threshold is doubled at most for a page that keeps changing.
const MAX_DOUBLINGS: u32 = 12;

/// Overwritings of a page that are not held against it: loaders and the kernel's own patching at boot write a few times.
const FREE_INVALIDATIONS: u32 = 4;

impl Policy {
    /// Whether code of a mode is ever compiled. Segmented code (bases or limits that are not flat) is not: a chain
    /// within a page relies on linear and CS-relative pages being the same.
    pub fn compiles(&self, mode: Mode) -> bool {
        self.mode == EngineMode::Translate && (mode.is_64bit() || mode.is_flat() && mode.is_protected())
    }

    /// How often a block must have run to be part of a region around one that has run `executions` times.
    pub fn warm_in_region(&self, executions: u32) -> u32 {
        executions / REGION_SHARE
    }

    /// After how many executions a block is compiled that is part of a region already, but has been run outside of it
    /// `executions` times.
    pub fn warm_again(&self, executions: u32) -> u32 {
        if self.threshold <= 1 { 1 } else { executions.saturating_add(self.threshold.saturating_mul(AGAIN)) }
    }

    /// After how many executions a block is compiled, if ever, whose page has lost code to writes `invalidations`
    /// times.
    pub fn warm_at(&self, mode: Mode, invalidations: u32) -> Option<u32> {
        if !self.compiles(mode) {
            return None;
        }
        let doublings = invalidations.saturating_sub(FREE_INVALIDATIONS).min(MAX_DOUBLINGS);
        // A stress setting stays one: threshold 1 compiles everything.
        Some(if self.threshold <= 1 { 1 } else { self.threshold.saturating_mul(1 << doublings) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::{CpuState, control, segment::attribute};

    fn mode64() -> Mode {
        let mut state = CpuState::new();
        state.cr0 |= control::cr0::PE | control::cr0::PG;
        state.efer |= control::efer::LMA | control::efer::LME;
        state.segments[1].attributes |= attribute::LONG;
        state.update_mode();
        state.mode
    }

    #[test]
    fn modes_decide() {
        let policy = Policy { mode: EngineMode::Translate, threshold: 10 };
        assert_eq!(policy.warm_at(mode64(), 0), Some(10));
        assert_eq!(policy.warm_at(CpuState::new().mode, 0), None, "real mode");
        assert_eq!(Policy { mode: EngineMode::Interpret, ..policy }.warm_at(mode64(), 0), None);
    }

    #[test]
    fn pages_that_keep_changing_wait_longer() {
        let policy = Policy { mode: EngineMode::Translate, threshold: 10 };
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS), Some(10));
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS + 1), Some(20));
        assert_eq!(policy.warm_at(mode64(), u32::MAX), Some(10 << MAX_DOUBLINGS));
        let eager = Policy { threshold: 1, ..policy };
        assert_eq!(eager.warm_at(mode64(), u32::MAX), Some(1));
    }
}
