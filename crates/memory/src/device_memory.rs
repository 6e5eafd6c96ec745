//! Guest memory as devices reach it.

use std::{fmt, sync::Arc};

use crate::{CodePages, GuestPhys, Ram, RamError};

/// RAM for devices: what they write over is no longer run as the code that it was.
#[derive(Clone)]
pub struct DeviceMemory {
    ram: Ram,
    /// `None`: nothing is made from the guest's code.
    code: Option<Arc<CodePages>>,
}

impl DeviceMemory {
    /// `code` has the marks of the engine that translates from this RAM, if one does.
    pub fn new(ram: Ram, code: Option<Arc<CodePages>>) -> Self {
        Self { ram, code }
    }

    /// Whether `length` bytes from `address` are RAM.
    pub fn contains(&self, address: GuestPhys, length: u64) -> bool {
        self.ram.regions().any(|(start, size)| {
            let offset = address.0.wrapping_sub(start.0);
            offset < size && length <= size - offset
        })
    }

    /// Copies bytes out of RAM.
    pub fn read(&self, address: GuestPhys, bytes: &mut [u8]) -> Result<(), RamError> {
        self.ram.read(address, bytes)
    }

    /// Copies bytes into RAM.
    pub fn write(&self, address: GuestPhys, bytes: &[u8]) -> Result<(), RamError> {
        self.ram.write(address, bytes)?;
        if let Some(code) = &self.code {
            code.device_wrote(address, bytes.len() as u64);
        }
        Ok(())
    }
}

impl fmt::Debug for DeviceMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DeviceMemory({} bytes)", self.ram.size())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_beyond_ram_is_told() {
        let memory = DeviceMemory::new(Ram::new(1 << 20).unwrap(), None);
        assert!(memory.contains(GuestPhys(0), 1 << 20) && memory.contains(GuestPhys(0xffffc), 4));
        for address in [0xffffd, 1 << 20, 0xfee0_0000, u64::MAX - 1] {
            assert!(!memory.contains(GuestPhys(address), 4), "{address:#x}");
        }
        memory.write(GuestPhys(0xffffc), &[1, 2, 3, 4]).unwrap();
        let mut bytes = [0; 4];
        memory.read(GuestPhys(0xffffc), &mut bytes).unwrap();
        assert_eq!(bytes, [1, 2, 3, 4]);
        assert!(memory.write(GuestPhys(0xffffd), &[0; 4]).is_err());
    }
}
