//! Where the hardware is that the ACPI tables speak of. The board must put it there.

/// SCI: the ACPI interrupt; level-triggered, active high, IOAPIC input of the same number.
pub const SCI_IRQ: u8 = 9;
/// PM1a event block: status word, then enable word.
pub const PM1A_EVENT: u16 = 0x600;
/// Its bytes.
pub const PM1A_EVENT_LENGTH: u8 = 4;
/// PM1a control word.
pub const PM1A_CONTROL: u16 = 0x604;
/// Its bytes.
pub const PM1A_CONTROL_LENGTH: u8 = 2;
/// PM timer: 3.579545 MHz, 24 bits valid.
pub const PM_TIMER: u16 = 0x608;
/// Its bytes.
pub const PM_TIMER_LENGTH: u8 = 4;
/// General-purpose event block 0: two status bytes, then two enable bytes.
pub const GPE0: u16 = 0x60c;
/// Its bytes.
pub const GPE0_LENGTH: u8 = 4;
/// I/O port that resets the machine.
pub const RESET: u16 = 0xcf9;
/// What must be written to it.
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP for S5 in PM1a control: with SLP_EN it powers off.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;
/// The IOAPIC.
pub const IOAPIC: u32 = 0xfec0_0000;
/// Its id.
pub const IOAPIC_ID: u8 = 1;
/// IOAPIC input to which the 8254 is wired, as in every PC since the MP specification.
pub const TIMER_GSI: u32 = 2;

/// COM1.
pub const COM1: u16 = 0x3f8;
/// Its interrupt.
pub const COM1_IRQ: u8 = 4;
/// CMOS RTC: index and data.
pub const RTC: u16 = 0x70;
/// Its interrupt.
pub const RTC_IRQ: u8 = 8;
/// PCI configuration mechanism 1: address, and data behind it.
pub const PCI_CONFIG: u16 = 0xcf8;
/// Memory for PCI BARs below the IOAPIC.
pub const PCI_MEMORY: core::ops::RangeInclusive<u32> = 0xc000_0000..=0xfebf_ffff;
