//! The tier policy: which blocks are interpreted and which are compiled. Nothing else knows it.
//!
//! A block is interpreted until it has run `threshold` times, then compiled. Most blocks of a boot run a few times
//! (compiling one costs as much as interpreting thousands of instructions), so the threshold pays for itself quickly. Blocks
//! in pages whose code was overwritten wait longer, doubling with every time, so that a guest that patches or
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

    /// Whether a block of such a mode that has begun `executions` times (this one included), and whose page has
    /// lost code to writes `invalidations` times, is to be compiled now.
    pub fn is_warm(&self, mode: Mode, executions: u32, invalidations: u32) -> bool {
        if !self.compiles(mode) {
            return false;
        }
        let doublings = invalidations.saturating_sub(FREE_INVALIDATIONS).min(MAX_DOUBLINGS);
        // A stress setting stays one: threshold 1 compiles everything.
        let threshold = if self.threshold <= 1 { 1 } else { u64::from(self.threshold) << doublings };
        u64::from(executions) >= threshold
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
    fn warm_code_is_compiled_and_cold_is_not() {
        let policy = Policy { mode: EngineMode::Translate, threshold: 10 };
        assert!(!policy.is_warm(mode64(), 9, 0));
        assert!(policy.is_warm(mode64(), 10, 0));
        assert!(!Policy { mode: EngineMode::Interpret, ..policy }.is_warm(mode64(), 1000, 0));
    }

    #[test]
    fn pages_that_keep_changing_wait_longer() {
        let policy = Policy { mode: EngineMode::Translate, threshold: 10 };
        assert!(policy.is_warm(mode64(), 10, FREE_INVALIDATIONS));
        assert!(!policy.is_warm(mode64(), 19, FREE_INVALIDATIONS + 1));
        assert!(policy.is_warm(mode64(), 20, FREE_INVALIDATIONS + 1));
        assert!(policy.is_warm(mode64(), 10 << MAX_DOUBLINGS, u32::MAX));
    }

    #[test]
    fn real_mode_is_never_compiled() {
        let policy = Policy { mode: EngineMode::Translate, threshold: 1 };
        assert!(!policy.is_warm(CpuState::new().mode, 100, 0));
    }
}
