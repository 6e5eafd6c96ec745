//! PCI configuration mechanism #1 and a host bridge on an otherwise empty bus.
//!
//! Source: PCI Local Bus Specification 3.0, 3.2.2.3.2. The address register takes 32-bit accesses only; narrower ones
//! to the same ports belong to other devices (0xcf9 is the reset control register).

/// Vendor Intel, and the device ID that its virtual machines' host bridge has: no operating system has quirks for it.
const VENDOR_DEVICE: u32 = 0x0d57_8086;
/// Class 06 (bridge), subclass 00 (host), revision 0.
const CLASS: u32 = 0x0600_0000;
const ENABLE: u32 = 1 << 31;

/// The configuration access registers.
#[derive(Clone, Debug, Default)]
pub struct PciRoot {
    address: u32,
}

impl PciRoot {
    /// Reads CONFIG_ADDRESS.
    pub fn address(&self) -> u32 {
        self.address
    }

    /// Writes CONFIG_ADDRESS.
    pub fn set_address(&mut self, value: u32) {
        self.address = value & (ENABLE | 0x00ff_fffc);
    }

    /// Reads `size` bytes of CONFIG_DATA at `offset`, 0..3. Functions that are absent read as ones.
    pub fn read_data(&self, offset: u64, size: u8) -> u64 {
        let enabled = self.address & ENABLE != 0;
        let function = self.address >> 8 & 0xffff; // bus, device, function
        if !enabled || function != 0 {
            return u64::MAX;
        }
        let dword = match self.address & 0xfc {
            0x00 => VENDOR_DEVICE,
            0x08 => CLASS,
            _ => 0,
        };
        crate::bus::truncate(u64::from(dword) >> (8 * (offset & 3)), size)
    }

    // Writes go nowhere: the host bridge has no BARs, and nothing on it can be turned off.
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn linux_finds_mechanism_1_and_a_host_bridge() {
        let mut pci = PciRoot::default();
        // pci_check_type1.
        pci.set_address(0x8000_0000);
        assert_eq!(pci.address(), 0x8000_0000);
        // pci_sanity_check: the class word of a device on bus 0 is that of a host bridge.
        pci.set_address(0x8000_0008);
        assert_eq!(pci.read_data(2, 2), 0x0600);
        pci.set_address(0x8000_0000);
        assert_eq!((pci.read_data(0, 4), pci.read_data(0, 2)), (0x0d57_8086, 0x8086));
        pci.set_address(0x8000_000c);
        assert_eq!(pci.read_data(2, 1), 0, "header type 0, one function");
    }

    #[test]
    fn the_rest_is_absent() {
        let mut pci = PciRoot::default();
        for address in [0x8000_0100, 0x8000_0800, 0x8001_0000, 0x0000_0000] {
            pci.set_address(address);
            assert_eq!(pci.read_data(0, 4) as u32, u32::MAX, "{address:#x}");
        }
    }
}
