//! An access that KVM left for, given to the board in pieces that it knows.
//!
//! KVM leaves once for a whole REP INS or OUTS, and with MMIO of any length up to 8; the board takes 1, 2, 4 or 8 bytes
//! at a time. So one exit of KVM's may be several of ours, which no run of the guest lies between.

use vcpu::{Answer, Exit};
use x86::GuestPhys;

/// Which way, and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Access {
    PortRead(u16),
    PortWrite(u16),
    MmioRead(u64),
    MmioWrite(u64),
}

/// An access in progress.
#[derive(Debug)]
pub(crate) struct Exchange {
    access: Access,
    /// Bytes of a piece.
    size: usize,
    /// What is written, or what was read so far.
    data: Vec<u8>,
    /// Bytes of `data` that are done with.
    done: usize,
}

impl Exchange {
    /// Of `data`, in pieces of `size` bytes; for a read `data` has what is to be overwritten.
    pub(crate) fn new(access: Access, size: usize, data: &[u8]) -> Self {
        let size = match size {
            1 | 2 | 4 | 8 if data.len().is_multiple_of(size) => size,
            _ => 1,
        };
        Self { access, size, data: data.to_vec(), done: 0 }
    }

    /// The next piece for the board; `None`: all is done.
    pub(crate) fn next(&self) -> Option<Exit> {
        let bytes = self.data.get(self.done..self.done + self.size)?;
        let mut value = [0; 8];
        value[..self.size].copy_from_slice(bytes);
        let (value, size) = (u64::from_le_bytes(value), self.size as u8);
        // Elements of a string go to the same port, and to consecutive addresses.
        let at = self.done as u64;
        Some(match self.access {
            Access::PortRead(port) => Exit::PortRead { port, size },
            Access::PortWrite(port) => Exit::PortWrite { port, size, value: value as u32 },
            Access::MmioRead(address) => {
                Exit::MmioRead { address: GuestPhys(address.wrapping_add(at)), size }
            }
            Access::MmioWrite(address) => {
                Exit::MmioWrite { address: GuestPhys(address.wrapping_add(at)), size, value }
            }
        })
    }

    /// Takes the board's answer to the last piece; false: it should have had a value.
    pub(crate) fn answer(&mut self, answer: Answer) -> bool {
        if self.is_read() {
            let Answer::Value(value) = answer else { return false };
            let piece = self.done..self.done + self.size;
            self.data[piece].copy_from_slice(&value.to_le_bytes()[..self.size]);
        }
        self.done += self.size;
        true
    }

    /// Whether KVM waits for data.
    pub(crate) fn is_read(&self) -> bool {
        matches!(self.access, Access::PortRead(_) | Access::MmioRead(_))
    }

    /// Whether it is a port's.
    pub(crate) fn is_port(&self) -> bool {
        matches!(self.access, Access::PortRead(_) | Access::PortWrite(_))
    }

    /// The bytes.
    pub(crate) fn data(&self) -> &[u8] {
        &self.data
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_goes_to_one_port_piece_by_piece() {
        let mut exchange = Exchange::new(Access::PortWrite(0x3f8), 1, b"ab");
        assert_eq!(exchange.next(), Some(Exit::PortWrite { port: 0x3f8, size: 1, value: 0x61 }));
        assert!(exchange.answer(Answer::Done));
        assert_eq!(exchange.next(), Some(Exit::PortWrite { port: 0x3f8, size: 1, value: 0x62 }));
        assert!(exchange.answer(Answer::Done));
        assert_eq!(exchange.next(), None);
    }

    #[test]
    fn answers_are_gathered() {
        let mut exchange = Exchange::new(Access::PortRead(0x60), 2, &[0; 4]);
        assert_eq!(exchange.next(), Some(Exit::PortRead { port: 0x60, size: 2 }));
        assert!(exchange.answer(Answer::Value(0xdead_1234)));
        assert!(exchange.answer(Answer::Value(0x5678)));
        assert_eq!(exchange.next(), None);
        assert_eq!(exchange.data(), [0x34, 0x12, 0x78, 0x56]);
        assert!(!Exchange::new(Access::PortRead(0x60), 1, &[0]).answer(Answer::Done));
    }

    #[test]
    fn odd_lengths_go_byte_by_byte() {
        let mut exchange = Exchange::new(Access::MmioWrite(0xfee0_00ff), 3, &[1, 2, 3]);
        let mut addresses = Vec::new();
        while let Some(Exit::MmioWrite { address, size: 1, value }) = exchange.next() {
            addresses.push((address.0, value));
            assert!(exchange.answer(Answer::Done));
        }
        assert_eq!(addresses, [(0xfee0_00ff, 1), (0xfee0_0100, 2), (0xfee0_0101, 3)]);
    }

    #[test]
    fn a_whole_quadword_is_one_access() {
        let exchange = Exchange::new(Access::MmioRead(0xfec0_0000), 8, &[0; 8]);
        assert_eq!(exchange.next(), Some(Exit::MmioRead { address: GuestPhys(0xfec0_0000), size: 8 }));
    }
}
