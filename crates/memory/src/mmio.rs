//! Accesses that no RAM answers.
//!
//! An instruction may make several. Each stops it, goes to the board, and is entered in the log; then the
//! instruction starts again and the log answers what was already done. State is untouched until the last access is
//! answered, so this works for every instruction without knowing which it is.

use x86::GuestPhys;

/// One access for the board: physical (MMIO) or port I/O.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the fields are those of vcpu::Exit")]
pub enum MmioAccess {
    Read { address: GuestPhys, size: u8 },
    Write { address: GuestPhys, size: u8, value: u64 },
    PortRead { port: u16, size: u8 },
    PortWrite { port: u16, size: u8, value: u32 },
}

impl MmioAccess {
    /// Port I/O, and not MMIO.
    pub fn is_port(&self) -> bool {
        matches!(self, Self::PortRead { .. } | Self::PortWrite { .. })
    }

    /// Whether the accesses differ in the written value at most. That may change between the runs of an instruction
    /// (another processor may have changed its source), but the board has done the write and must not do it again.
    fn is_same_place(&self, other: &Self) -> bool {
        let place = |access: &Self| match *access {
            Self::Read { address, size } => (0, address.0, size),
            Self::Write { address, size, .. } => (1, address.0, size),
            Self::PortRead { port, size } => (2, port.into(), size),
            Self::PortWrite { port, size, .. } => (3, port.into(), size),
        };
        place(self) == place(other)
    }
}

/// What the current instruction has already asked of the board.
#[derive(Default, Debug)]
pub struct MmioLog {
    done: Vec<(MmioAccess, u64)>,
    cursor: usize,
    pending: Option<MmioAccess>,
}

impl MmioLog {
    /// Makes an access: `Some(value)` (0 for writes) if the board has done it, `None` if the instruction must stop
    /// with [`crate::Stop::Board`] and be run again.
    pub fn access(&mut self, access: MmioAccess) -> Option<u64> {
        if let Some((done, value)) = self.done.get(self.cursor) {
            if done.is_same_place(&access) {
                self.cursor += 1;
                return Some(*value);
            }
            // Another processor has changed what the instruction computes from; the rest of the log is void.
            self.done.truncate(self.cursor);
        }
        self.pending = Some(access);
        None
    }

    /// The access that stopped the instruction.
    pub fn pending(&self) -> Option<MmioAccess> {
        self.pending
    }

    /// The board's answer to the pending access; the instruction can start again.
    pub fn answer(&mut self, value: u64) {
        if let Some(access) = self.pending.take() {
            self.done.push((access, value));
        }
        self.cursor = 0;
    }

    /// Whether answers wait to be consumed: the next instruction to run must be the one that asked.
    #[inline]
    pub fn is_replaying(&self) -> bool {
        !self.done.is_empty()
    }

    /// The instruction has completed or faulted: forget its accesses.
    #[inline]
    pub fn clear(&mut self) {
        if !self.done.is_empty() || self.pending.is_some() {
            self.done.clear();
            self.pending = None;
        }
        self.cursor = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const READ: MmioAccess = MmioAccess::Read { address: GuestPhys(0xfee0_0000), size: 4 };

    fn write(value: u64) -> MmioAccess {
        MmioAccess::Write { address: GuestPhys(0xfee0_0000), size: 4, value }
    }

    #[test]
    fn accesses_are_answered_in_order_run_by_run() {
        let mut log = MmioLog::default();
        assert_eq!(log.access(READ), None);
        assert_eq!(log.pending(), Some(READ));
        assert!(!log.is_replaying());
        log.answer(7);
        assert!(log.is_replaying());
        assert_eq!(log.access(READ), Some(7));
        assert_eq!(log.access(write(8)), None);
        log.answer(0);
        assert_eq!(log.access(READ), Some(7));
        assert_eq!(log.access(write(9)), Some(0), "the value does not count");
        log.clear();
        assert!(!log.is_replaying());
        assert_eq!(log.access(READ), None);
    }

    #[test]
    fn another_access_than_the_logged_one_is_asked_for() {
        let mut log = MmioLog::default();
        assert_eq!(log.access(READ), None);
        log.answer(7);
        let other = MmioAccess::PortRead { port: 0x60, size: 1 };
        assert_eq!(log.access(other), None);
        assert_eq!(log.pending(), Some(other));
        log.answer(1);
        assert_eq!(log.access(other), Some(1));
    }
}
