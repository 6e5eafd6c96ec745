//! The tier policy: which blocks are interpreted and which are compiled. Nothing else knows it.
//!
//! Tier 0 interprets and counts. Tier 1 translates a block by templates once it has run [`Policy::template_threshold`]
//! times: that costs some 10 us, installation included, as much as interpreting some 600 instructions. Tier 2 compiles
//! a region around a block that has run [`Policy::hot_threshold`] times by templates, or [`Policy::threshold`] times by the
//! interpreter if there is no template for it: that costs milliseconds. Booting Debian's cloud kernel takes, in user+system CPU
//! seconds (two runs each on a busy machine, `transvisor run debian --template-threshold T --compile-threshold C`):
//!
//! | T  | C     |            |
//! |----|-------|------------|
//! | -  | 1500  | 5.41, 5.58 |
//! | 16 | 1500  | 6.38, 6.52 |
//! | 16 | 4000  | 3.10, 2.99 |
//! | 16 | 10000 | 2.66, 2.52 |
//! | 16 | 30000 | 2.20, 2.32 |
//! | 8  | 10000 | 2.55, 2.45 |
//! | 30 | 10000 | 2.52, 2.50 |
//!
//! and with fetches in TLB arrays of their own, T = 16, user CPU and wall seconds, three rounds of a host whose
//! speed drifts: C = 8000: 2.78 2.80 3.23 and 1.90 2.15 2.57; 15000: 2.26 2.12 3.08 and 2.02 2.12 2.85;
//! 30000: 2.31 2.64 3.06 and 2.14 2.60 2.91; 60000: 2.44 2.93 2.92 and 2.44 3.01 3.02.
//!
//! Blocks in pages whose code was overwritten wait longer, doubling with every time, so that a guest that patches or
//! generates code in a loop is interpreted, not translated over and over.

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
    /// Executions before a block is translated by templates; 1 translates at the first, [`u32::MAX`] never.
    pub template_threshold: u32,
    /// Executions by the interpreter before a block is compiled; 1 compiles at the first.
    pub threshold: u32,
    /// Executions of a block that was translated by templates before it is compiled.
    pub hot_threshold: u32,
}

/// See the module's description.
pub const DEFAULT_THRESHOLD: u32 = 1500;

/// See the module's description.
pub const DEFAULT_HOT_THRESHOLD: u32 = 15000;

/// See the module's description.
pub const DEFAULT_TEMPLATE_THRESHOLD: u32 = 16;

/// A block belongs to a warm block's region if it has run at least this fraction of the times that make a block warm.
const REGION_SHARE: u32 = 8;

/// How many times as often a block of a region must be run outside of it before it becomes the head of its own.
const AGAIN: u32 = 4;

/// How often the threshold is doubled at most for a page that keeps changing.
const MAX_DOUBLINGS: u32 = 12;

/// Templates cost so little that a page may change this many times as often before they wait.
const TEMPLATE_PATIENCE: u32 = 16;

/// Thresholds below this are meant to translate whatever comes, however often it changes: for tests.
const STRESS: u32 = 8;

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

    /// After how many executions a block is translated by templates, if that comes before `warm_at`, the number after
    /// which it is compiled.
    pub fn template_at(&self, mode: Mode, invalidations: u32, warm_at: u32) -> Option<u32> {
        let at = later(self.template_threshold, invalidations / TEMPLATE_PATIENCE);
        (mode.is_64bit() && at < warm_at).then_some(at)
    }

    /// The same as [`Policy::warm_again`] for a block that has been translated by templates.
    pub fn hot_again(&self) -> u32 {
        self.hot_threshold.saturating_mul(AGAIN)
    }

    /// After how many executions a block is compiled, if ever, whose page has lost code to writes `invalidations`
    /// times.
    pub fn warm_at(&self, mode: Mode, invalidations: u32) -> Option<u32> {
        if !self.compiles(mode) {
            return None;
        }
        Some(later(self.threshold, invalidations))
    }
}

/// A threshold for a block whose page has lost code to writes `invalidations` times. A stress setting stays as it is.
fn later(threshold: u32, invalidations: u32) -> u32 {
    let doublings = invalidations.saturating_sub(FREE_INVALIDATIONS).min(MAX_DOUBLINGS);
    if threshold < STRESS { threshold.max(1) } else { threshold.saturating_mul(1 << doublings) }
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
        let policy =
            Policy { mode: EngineMode::Translate, template_threshold: 9, threshold: 10, hot_threshold: 20 };
        assert_eq!(policy.warm_at(mode64(), 0), Some(10));
        assert_eq!(policy.warm_at(CpuState::new().mode, 0), None, "real mode");
        assert_eq!(Policy { mode: EngineMode::Interpret, ..policy }.warm_at(mode64(), 0), None);
    }

    #[test]
    fn pages_that_keep_changing_wait_longer() {
        let policy =
            Policy { mode: EngineMode::Translate, template_threshold: 9, threshold: 10, hot_threshold: 20 };
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS), Some(10));
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS + 1), Some(20));
        assert_eq!(policy.warm_at(mode64(), u32::MAX), Some(10 << MAX_DOUBLINGS));
        assert_eq!(policy.template_at(mode64(), 0, 10), Some(9));
        assert_eq!(policy.template_at(mode64(), FREE_INVALIDATIONS + 1, 20), Some(9));
        let often = (FREE_INVALIDATIONS + 1) * TEMPLATE_PATIENCE;
        assert_eq!(policy.template_at(mode64(), often, 20), Some(18));
        assert_eq!(policy.template_at(mode64(), 0, 9), None, "compiled as soon");
        assert_eq!(policy.template_at(CpuState::new().mode, 0, 10), None, "16-bit code has no templates");
        let eager = Policy { threshold: 1, ..policy };
        assert_eq!(eager.warm_at(mode64(), u32::MAX), Some(1));
    }
}
