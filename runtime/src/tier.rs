//! The tier policy: which blocks are interpreted and which are compiled. Nothing else knows it.
//!
//! Tier 0 interprets and counts. Tier 1 translates a block by templates once it has run [`Policy::template_threshold`]
//! times: that costs some 2 us, installation included. Tier 2 makes a region by templates around a block that has run
//! [`Policy::hot_threshold`] times so: that costs tens of microseconds. What has no template (32-bit code, x87, alignment checks) is compiled by
//! Cranelift, in a region too, once it has been interpreted [`Policy::threshold`] times: that costs a millisecond or more, on another processor if
//! there is one.
//!
//! Between 2 and 8 executions before templates the boot of Debian's cloud kernel does not change beyond noise; memory does, 48 MiB
//! beyond the guest at 8, 59 at 3 and 62 at 2. Programs that run much new code want few: gcc took 3.9 CPU seconds at 8, 3.7 at 3, 3.5 at 2
//! and 3.1 at 1. So code of processes is translated when it is first run, and the kernel's later, of which much runs only
//! while it starts.
//!
//! A region by templates is made after 40,000 executions of a block of 8 instructions, fewer of a longer one, at each of which it should
//! save more. CPU seconds at 5,000, 20,000 and 80,000: gcc 3.39, 3.04, 2.80; sqlite3 0.96, 0.97, 1.04; python3 0.44, 0.41, 0.41; xz 0.57, 0.58,
//! 0.56; the other programs and the boot are within noise (least of 2, interleaved; 3,000 was 1.3 times as slow for gcc).
//! Regions by Cranelift, which took 10 ms, paid after 800,000, and are not better code (ARCHITECTURE.md): 64-bit code gets none.
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
    /// Executions before a block of the kernel is translated by templates, and three times those of a process'; 1 translates at the first,
    /// [`u32::MAX`] never.
    pub template_threshold: u32,
    /// Executions by the interpreter before a block is compiled; 1 compiles at the first.
    pub threshold: u32,
    /// Executions of a block of [`TYPICAL_LENGTH`] that was translated by templates before a region is made around it.
    pub hot_threshold: u32,
    /// Wait longer with code in pages that keep changing.
    pub patient: bool,
}

/// See the module's description.
pub const DEFAULT_THRESHOLD: u32 = 1500;

/// See the module's description.
pub const DEFAULT_HOT_THRESHOLD: u32 = 40_000;

/// See the module's description.
pub const DEFAULT_TEMPLATE_THRESHOLD: u32 = 3;

/// A block belongs to a warm block's region if it has run at least this fraction of the times that make a block warm.
const REGION_SHARE: u32 = 8;

/// Instructions of the blocks that [`Policy::hot_threshold`] is meant for.
const TYPICAL_LENGTH: u32 = 8;

/// See [`Policy::kept_region_at`].
const KEPT_REGION: u32 = 64;

/// A counter that does not run out.
pub(crate) const NEVER: u32 = i32::MAX as u32;

/// Of a guest instruction, on average.
const BYTES_OF_INSTRUCTION: u16 = 4;

/// How many times as often a block of a region must be run outside of it before it becomes the head of its own.
const AGAIN: u32 = 4;

/// Code of processes waits for this fraction of what the kernel's waits for: much of a kernel's is for its start only.
const USER_HASTE: u32 = 3;

/// How often the threshold is doubled at most for a page that keeps changing.
const MAX_DOUBLINGS: u32 = 12;

/// Templates cost so little that a page may change this many times as often before they wait.
const TEMPLATE_PATIENCE: u32 = 16;

/// Executions before a block in a page that keeps changing is translated by templates, at least.
const CHANGING: u32 = 8;

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

    /// After how many executions by templates a region is made around a block of so many instructions: what a region saves at each grows with them.
    pub fn hot_at(&self, instructions: u16) -> u32 {
        if self.hot_threshold < TYPICAL_LENGTH {
            return self.hot_threshold;
        }
        let at = u64::from(self.hot_threshold) * u64::from(TYPICAL_LENGTH) / u64::from(instructions.max(1));
        u32::try_from(at).unwrap_or(u32::MAX)
    }

    /// After how many executions of its head a region that an earlier run has kept is looked for: by then its blocks have run, too.
    pub fn kept_region_at(&self) -> u32 {
        KEPT_REGION.min(self.hot_threshold)
    }

    /// What the counter of a block of that many bytes that was translated by templates begins with.
    pub fn countdown(&self, bytes: u16) -> u32 {
        self.hot_at(bytes.div_ceil(BYTES_OF_INSTRUCTION)).min(NEVER)
    }

    /// After how many executions a block is compiled that is part of a region already, but has been run outside of it
    /// `executions` times.
    pub fn warm_again(&self, executions: u32) -> u32 {
        if self.threshold <= 1 { 1 } else { executions.saturating_add(self.threshold.saturating_mul(AGAIN)) }
    }

    /// After how many executions a block is translated by templates, if that comes before `warm_at`, the number after
    /// which it is compiled.
    pub fn template_at(&self, mode: Mode, invalidations: u32, warm_at: u32) -> Option<u32> {
        let changes = invalidations / TEMPLATE_PATIENCE;
        let threshold = match mode.cpl() {
            3 => (self.template_threshold / USER_HASTE).max(1),
            _ => self.template_threshold,
        };
        let at = if changes > FREE_INVALIDATIONS && self.patient {
            later(threshold.max(CHANGING), changes)
        } else {
            threshold.max(1)
        };
        (mode.is_64bit() && at < warm_at).then_some(at)
    }

    /// Whether blocks of a mode are translated by templates before they run, where nothing has changed.
    pub fn translates_at_once(&self, mode: Mode) -> bool {
        self.warm_at(mode, 0).and_then(|warm_at| self.template_at(mode, 0, warm_at)) == Some(1)
    }

    /// After how many executions a block is compiled, if ever, whose page has lost code to writes `invalidations`
    /// times.
    pub fn warm_at(&self, mode: Mode, invalidations: u32) -> Option<u32> {
        if !self.compiles(mode) {
            return None;
        }
        Some(if self.patient { later(self.threshold, invalidations) } else { self.threshold.max(1) })
    }
}

/// A threshold for a block whose page has lost translated code to writes `invalidations` times.
fn later(threshold: u32, invalidations: u32) -> u32 {
    let doublings = invalidations.saturating_sub(FREE_INVALIDATIONS).min(MAX_DOUBLINGS);
    threshold.max(1).saturating_mul(1 << doublings)
}

#[cfg(test)]
mod tests {
    use super::*;
    use x86::{CpuState, control, segment::attribute};

    fn mode64() -> Mode {
        mode64_at(0)
    }

    fn mode64_at(cpl: u8) -> Mode {
        let mut state = CpuState::new();
        state.cpl = cpl;
        state.cr0 |= control::cr0::PE | control::cr0::PG;
        state.efer |= control::efer::LMA | control::efer::LME;
        state.segments[1].attributes |= attribute::LONG;
        state.update_mode();
        state.mode
    }

    fn policy() -> Policy {
        Policy {
            mode: EngineMode::Translate,
            template_threshold: 9,
            threshold: 10,
            hot_threshold: 20,
            patient: true,
        }
    }

    #[test]
    fn modes_decide() {
        let policy = policy();
        assert_eq!(policy.warm_at(mode64(), 0), Some(10));
        assert_eq!(policy.warm_at(CpuState::new().mode, 0), None, "real mode");
        assert_eq!(Policy { mode: EngineMode::Interpret, ..policy }.warm_at(mode64(), 0), None);
    }

    #[test]
    fn long_blocks_are_hot_sooner() {
        let policy = Policy { hot_threshold: 800, ..policy() };
        assert_eq!([1, 8, 64].map(|length| policy.hot_at(length)), [6400, 800, 100]);
        assert_eq!(policy.hot_at(0), 6400);
        let never = Policy { hot_threshold: u32::MAX, ..policy };
        assert_eq!(never.hot_at(1), u32::MAX);
        assert_eq!(Policy { hot_threshold: 3, ..policy }.hot_at(64), 3, "tests say what they want");
    }

    #[test]
    fn pages_that_keep_changing_wait_longer() {
        let policy = policy();
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS), Some(10));
        assert_eq!(policy.warm_at(mode64(), FREE_INVALIDATIONS + 1), Some(20));
        assert_eq!(policy.warm_at(mode64(), u32::MAX), Some(10 << MAX_DOUBLINGS));
        assert_eq!(policy.template_at(mode64(), 0, 10), Some(9));
        assert_eq!(policy.template_at(mode64(), FREE_INVALIDATIONS + 1, 20), Some(9));
        let often = (FREE_INVALIDATIONS + 1) * TEMPLATE_PATIENCE;
        assert_eq!(policy.template_at(mode64(), often, 20), Some(18));
        assert_eq!(policy.template_at(mode64(), 0, 9), None, "compiled as soon");
        assert_eq!(policy.template_at(CpuState::new().mode, 0, 10), None, "16-bit code has no templates");
        let user = mode64_at(3);
        assert_eq!(policy.template_at(user, 0, 10), Some(3), "code of processes waits less");
        assert_eq!(Policy { template_threshold: u32::MAX, ..policy }.template_at(user, 0, 10), None);
        let eager = Policy { threshold: 1, template_threshold: 1, patient: false, ..policy };
        assert_eq!(eager.warm_at(mode64(), u32::MAX), Some(1));
        assert_eq!(eager.template_at(mode64(), u32::MAX, 10), Some(1));
        let at_once = Policy { template_threshold: 1, ..policy };
        assert_eq!(at_once.template_at(mode64(), often, u32::MAX), Some(2 * CHANGING));
    }
}
