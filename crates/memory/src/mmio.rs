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
        if let Some((_, value)) = self.done.get(self.cursor) {
            self.cursor += 1;
            return Some(*value);
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
