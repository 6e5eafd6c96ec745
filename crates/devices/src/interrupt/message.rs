//! Interrupt messages: what an IOAPIC, an MSI or an ICR sends to local APICs (SDM Vol. 3A 11.6, 11.11).

/// How a message acts on its receiver (SDM Vol. 3A 11.6.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryMode {
    /// The vector, to all destinations.
    Fixed,
    /// The vector, to the destination with the lowest priority.
    LowestPriority,
    /// System management interrupt.
    Smi,
    /// Non-maskable interrupt.
    Nmi,
    /// INIT.
    Init,
    /// Start-up IPI.
    StartUp,
    /// The vector comes from the 8259 pair.
    ExtInt,
    /// Encoding 011, which nobody may use.
    Reserved,
}

impl DeliveryMode {
    /// From the three bits of an LVT, ICR, redirection entry or MSI data.
    pub const fn from_bits(bits: u32) -> Self {
        match bits & 7 {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            2 => Self::Smi,
            3 => Self::Reserved,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::StartUp,
            _ => Self::ExtInt,
        }
    }
}

/// Physical destination that means every local APIC.
pub const BROADCAST: u32 = u32::MAX;

/// One interrupt message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message {
    /// APIC ID, or set of logical APICs.
    pub destination: u32,
    /// Whether `destination` is logical.
    pub logical: bool,
    /// What it does.
    pub mode: DeliveryMode,
    /// Vector, for the modes that have one.
    pub vector: u8,
    /// Whether the EOI is to be told to the IOAPIC.
    pub level_triggered: bool,
}

impl Message {
    /// From an 8-bit destination, as IOAPICs, MSIs and xAPIC ICRs have it; 0xff is a broadcast.
    pub const fn with_short_destination(
        destination: u8,
        logical: bool,
        mode: DeliveryMode,
        vector: u8,
        level_triggered: bool,
    ) -> Self {
        let destination = if destination == 0xff { BROADCAST } else { destination as u32 };
        Self { destination, logical, mode, vector, level_triggered }
    }

    /// From an MSI's address and data (SDM Vol. 3A 11.11); `None` if the address is none of a local APIC.
    pub const fn from_msi(address: u64, data: u32) -> Option<Self> {
        if address >> 20 != 0xfee {
            return None;
        }
        let destination = (address >> 12) as u8;
        let logical = address & 1 << 2 != 0;
        let mode = DeliveryMode::from_bits(data >> 8);
        Some(Self::with_short_destination(destination, logical, mode, data as u8, data & 1 << 15 != 0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn msi_fields() {
        let message = Message::from_msi(0xfee0_3004, 0x8141).unwrap();
        assert_eq!(
            message,
            Message {
                destination: 3,
                logical: true,
                mode: DeliveryMode::LowestPriority,
                vector: 0x41,
                level_triggered: true
            }
        );
        assert_eq!(Message::from_msi(0xfeef_f000, 0x30).unwrap().destination, BROADCAST);
        assert_eq!(Message::from_msi(0xfec0_0000, 0x30), None);
    }
}
