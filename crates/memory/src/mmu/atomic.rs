//! Read-modify-writes that are atomic with respect to other vCPUs.
//!
//! Within a cache line the host's locked instructions do them, at any alignment. Across lines or pages a lock that
//! all vCPUs share is held instead: such operations exclude each other, but a plain store of another vCPU can come
//! in between, which on hardware a bus lock would prevent. On the board's registers they are a read and a write.

use std::sync::PoisonError;

use x86::{CpuState, Exception, GuestPhys, GuestVirt, PAGE_SIZE, Width};

use super::{Mmu, Stop};
use crate::host;
use crate::walk::Access;

/// Read-modify-write operations that are atomic with respect to other vCPUs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names say it; Exchange stores the operand")]
pub enum AtomicOp {
    Add,
    Sub,
    And,
    Or,
    Xor,
    Exchange,
}

impl AtomicOp {
    /// The new value, in more bits than count.
    fn apply(self, old: u64, operand: u64) -> u64 {
        match self {
            Self::Add => old.wrapping_add(operand),
            Self::Sub => old.wrapping_sub(operand),
            Self::And => old & operand,
            Self::Or => old | operand,
            Self::Xor => old ^ operand,
            Self::Exchange => operand,
        }
    }

    /// # Safety
    /// As for [`host::fetch_add`].
    unsafe fn locked(self, host: *mut u8, width: Width, operand: u64) -> u64 {
        // SAFETY: the caller's promise.
        unsafe {
            match self {
                Self::Add => host::fetch_add(host, width, operand),
                Self::Sub => host::fetch_add(host, width, operand.wrapping_neg()),
                Self::Exchange => host::exchange(host, width, operand),
                Self::And | Self::Or | Self::Xor => {
                    let mut old = host::load(host, width);
                    loop {
                        let seen = host::compare_exchange(host, width, old, self.apply(old, operand));
                        if seen == old {
                            return old;
                        }
                        old = seen;
                    }
                }
            }
        }
    }
}

/// Where the operand of a read-modify-write is.
enum Operand {
    /// Within a cache line of RAM.
    Line(*mut u8),
    /// A register of the board.
    Board(GuestPhys),
    /// Across lines or pages.
    Split,
}

impl Mmu {
    /// Atomic read-modify-write; returns the old value. Where the operand crosses a cache line, it excludes other
    /// read-modify-writes of such operands, but not plain stores.
    pub fn atomic(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        op: AtomicOp,
        operand: u64,
    ) -> Result<u64, Stop> {
        Self::check_alignment(state, self.own_view(state), address, width)?;
        match self.operand(state, address, width.bytes())? {
            // SAFETY: `operand` found RAM within a cache line.
            Operand::Line(host) => Ok(unsafe { op.locked(host, width, operand) }),
            Operand::Board(physical) => {
                let old = width.truncate(self.board_read(physical, width as u8)?);
                self.board_write(physical, width as u8, width.truncate(op.apply(old, operand)))?;
                Ok(old)
            }
            Operand::Split => self.update_split(state, address, width, |old| op.apply(old, operand)),
        }
    }

    /// Atomic compare-and-exchange; returns the old value (equal to `expected` if the exchange was made).
    pub fn compare_exchange(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        expected: u64,
        new: u64,
    ) -> Result<u64, Stop> {
        Self::check_alignment(state, self.own_view(state), address, width)?;
        let expected = width.truncate(expected);
        // The processor writes in any case: the old value if they differ (SDM Vol. 2A CMPXCHG).
        let update = |old| if old == expected { new } else { old };
        match self.operand(state, address, width.bytes())? {
            // SAFETY: `operand` found RAM within a cache line.
            Operand::Line(host) => Ok(unsafe { host::compare_exchange(host, width, expected, new) }),
            Operand::Board(physical) => {
                let old = width.truncate(self.board_read(physical, width as u8)?);
                self.board_write(physical, width as u8, width.truncate(update(old)))?;
                Ok(old)
            }
            Operand::Split => self.update_split(state, address, width, update),
        }
    }

    /// CMPXCHG16B's. Returns the old value. A misaligned address is #GP(0), as the instruction has it.
    pub fn compare_exchange128(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        expected: u128,
        new: u128,
    ) -> Result<u128, Stop> {
        if address.0 & 15 != 0 {
            return Err(Exception::GP0.into());
        }
        match self.operand(state, address, 16)? {
            // SAFETY: `operand` found RAM; pages of guest and host are aligned alike; `Ram::new` checked the host.
            Operand::Line(host) => Ok(unsafe { host::compare_exchange128(host, expected, new) }),
            Operand::Board(_) | Operand::Split => {
                let mut bytes = [0; 16];
                self.read_bytes(state, self.own_view(state), address, &mut bytes, Access::Write)?;
                let old = u128::from_le_bytes(bytes);
                let value = if old == expected { new } else { old };
                self.write_bytes(state, self.own_view(state), address, &value.to_le_bytes())?;
                Ok(old)
            }
        }
    }

    /// Finds the operand, writable, and tells the watch if it is code.
    fn operand(&mut self, state: &CpuState, address: GuestVirt, length: u64) -> Result<Operand, Stop> {
        if address.page_offset() + length > PAGE_SIZE {
            return Ok(Operand::Split);
        }
        let place = self.resolve(state, self.own_view(state), address, Access::Write)?;
        let Some(host) = place.host else { return Ok(Operand::Board(place.physical)) };
        if !host::lockable(host, length) {
            return Ok(Operand::Split);
        }
        self.announce(&place, length);
        Ok(Operand::Line(host))
    }

    /// A read-modify-write under the shared lock.
    fn update_split(
        &mut self,
        state: &CpuState,
        address: GuestVirt,
        width: Width,
        update: impl FnOnce(u64) -> u64,
    ) -> Result<u64, Stop> {
        let ram = self.ram.clone();
        // Nothing can be left half-done under it that the next holder could notice.
        let _held = ram.split_lock().lock().unwrap_or_else(PoisonError::into_inner);
        let length = width.bytes() as usize;
        let mut bytes = [0; 8];
        self.read_bytes(state, self.own_view(state), address, &mut bytes[..length], Access::Write)?;
        let old = u64::from_le_bytes(bytes);
        self.write_bytes(state, self.own_view(state), address, &update(old).to_le_bytes()[..length])?;
        Ok(old)
    }
}
