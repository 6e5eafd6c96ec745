//! Which status flags a block's successors can still see.

use x86::flags::{AF, CF, OF, PF, SF, ZF};

/// A set of status flags.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LiveFlags(pub(crate) u8);

impl LiveFlags {
    /// All of them.
    pub const ALL: Self = Self(0x3f);

    /// Those that are set in a mask of RFLAGS bits.
    pub const fn from_rflags(mask: u64) -> Self {
        // In the order of the words in `x86::Flags`.
        let order = [CF, ZF, SF, PF, AF, OF];
        let mut set = 0;
        let mut n = 0;
        while n < order.len() {
            if mask & order[n] != 0 {
                set |= 1 << n;
            }
            n += 1;
        }
        Self(set)
    }
}

/// Tells what is live where a block leaves to. Flags that are not live are not stored by direct exits; a guest sees
/// that only if it is interrupted between the blocks and looks at the flags it was going to overwrite.
pub trait FlagLiveness {
    /// Flags that the code at `target` may read before it writes them.
    fn live_at(&self, target: u64) -> LiveFlags;
}

/// Everything is live.
pub struct AllLive;

impl FlagLiveness for AllLive {
    fn live_at(&self, _: u64) -> LiveFlags {
        LiveFlags::ALL
    }
}
