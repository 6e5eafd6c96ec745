//! Where everything is: ports, addresses, interrupt numbers, MSR numbers. ACPI tables use the same numbers.

/// 8259 pair: command and data port of the master.
pub const PIC_MASTER: u16 = 0x20;
/// 8259 pair: command and data port of the slave.
pub const PIC_SLAVE: u16 = 0xa0;
/// Edge/level control of IRQ 0..7 and, one further, 8..15.
pub const PIC_ELCR: u16 = 0x4d0;
/// 8254: three counters and the control word.
pub const PIT: u16 = 0x40;
/// System control port B: gate of PIT counter 2, speaker, OUT2.
pub const SYSTEM_CONTROL_B: u16 = 0x61;
/// System control port A: A20 gate and fast reset.
pub const SYSTEM_CONTROL_A: u16 = 0x92;
/// 8042 keyboard controller: data.
pub const I8042_DATA: u16 = 0x60;
/// 8042 keyboard controller: command and status.
pub const I8042_COMMAND: u16 = 0x64;
/// CMOS clock: index (bit 7 masks NMI) and data.
pub const RTC: u16 = 0x70;
/// CMOS index of the century byte, for the FADT.
pub const RTC_CENTURY: u8 = 0x32;
/// POST code, also used as an I/O delay.
pub const POST_CODE: u16 = 0x80;
/// Debug console: bytes written here go to the console.
pub const DEBUG_CONSOLE: u16 = 0xe9;
/// Debug exit: ends the machine with status `(value << 1) | 1`.
pub const DEBUG_EXIT: u16 = 0xf4;
/// First serial port, COM1.
pub const UART: u16 = 0x3f8;
/// PCI configuration mechanism #1: address.
pub const PCI_CONFIG_ADDRESS: u16 = 0xcf8;
/// PCI configuration mechanism #1: data.
pub const PCI_CONFIG_DATA: u16 = 0xcfc;

/// ACPI PM1a event block: 2 bytes status, 2 bytes enable.
pub const PM1A_EVENT: u16 = 0x600;
/// Length of the PM1a event block.
pub const PM1A_EVENT_LENGTH: u8 = 4;
/// ACPI PM1a control block.
pub const PM1A_CONTROL: u16 = 0x604;
/// Length of the PM1a control block.
pub const PM1A_CONTROL_LENGTH: u8 = 2;
/// ACPI PM timer, 32 bits at [`PM_TIMER_HZ`].
pub const PM_TIMER: u16 = 0x608;
/// Length of the PM timer block.
pub const PM_TIMER_LENGTH: u8 = 4;
/// ACPI general-purpose event block 0: 2 bytes status, 2 bytes enable.
pub const GPE0: u16 = 0x60c;
/// Length of GPE block 0.
pub const GPE0_LENGTH: u8 = 4;
/// Reset control register (FADT RESET_REG).
pub const RESET: u16 = 0xcf9;
/// What to write to [`RESET`] (FADT RESET_VALUE).
pub const RESET_VALUE: u8 = 0x06;
/// SLP_TYP of S5, soft off: the DSDT's `_S5` package holds it.
pub const SLEEP_TYPE_S5: u8 = 5;

/// IOAPIC registers.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Length of the IOAPIC's page.
pub const IOAPIC_LENGTH: u64 = 0x1000;
/// APIC ID of the IOAPIC.
pub const IOAPIC_ID: u8 = 0;
/// Interrupt pins of the IOAPIC; its first global system interrupt is 0.
pub const IOAPIC_PINS: usize = 24;
/// Local APIC registers after reset.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// Length of the local APIC's page.
pub const LOCAL_APIC_LENGTH: u64 = 0x1000;

/// ISA IRQ of PIT counter 0.
pub const IRQ_PIT: u8 = 0;
/// IOAPIC pin of ISA IRQ 0 (MADT interrupt source override); all others are wired one to one.
pub const GSI_PIT: u8 = 2;
/// ISA IRQ of the keyboard.
pub const IRQ_KEYBOARD: u8 = 1;
/// ISA IRQ that the slave 8259 cascades through.
pub const IRQ_CASCADE: u8 = 2;
/// ISA IRQ of the first serial port.
pub const IRQ_UART: u8 = 4;
/// ISA IRQ of the CMOS clock.
pub const IRQ_RTC: u8 = 8;
/// ISA IRQ of ACPI's system control interrupt; level-triggered, active high.
pub const IRQ_SCI: u8 = 9;

/// MSR: local APIC base, enable, x2APIC mode, BSP.
pub const IA32_APIC_BASE: u32 = 0x1b;
/// MSR: TSC value at which the local APIC timer fires.
pub const IA32_TSC_DEADLINE: u32 = 0x6e0;
/// MSR: where KVM's guests end interrupts by a store.
pub const KVM_PV_EOI_EN: u32 = 0x4b56_4d04;
/// First x2APIC MSR.
pub const X2APIC_FIRST: u32 = 0x800;
/// Last x2APIC MSR.
pub const X2APIC_LAST: u32 = 0x8ff;
/// Physical-address bits that IA32_APIC_BASE can hold; the same as CPUID leaf 0x80000008 announces.
pub const PHYSICAL_BITS: u32 = 40;

/// Input clock of the 8254.
pub const PIT_HZ: u64 = 1_193_182;
/// Input clock of the ACPI PM timer.
pub const PM_TIMER_HZ: u64 = 3_579_545;
/// Input clock of the local APIC timer (CPUID leaf 0x15's crystal): one tick a nanosecond.
pub const APIC_TIMER_HZ: u64 = 1_000_000_000;
