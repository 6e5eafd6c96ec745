//! MADT: processors and interrupt controllers (ACPI 6.5, 5.2.12).

use acpi_tables::Aml;
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::sdt::Sdt;

use super::platform::*;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

const REVISION: u8 = 4;
/// Header, local APIC address, flags.
const FIXED: u32 = 44;
/// Flags: two 8259s are there too, to be masked before the APICs are used.
const PCAT_COMPAT: u32 = 1;

/// Interrupt source override (5.2.12.5).
const OVERRIDE: u8 = 2;
/// Local APIC NMI (5.2.12.7).
const LOCAL_NMI: u8 = 4;
/// MPS INTI flags (table 5.26): as the bus has it (ISA: active high, edge).
const CONFORMING: u16 = 0;
/// Active high, level-triggered.
const HIGH_LEVEL: u16 = 0b1101;
/// "All processors", as an ACPI processor UID.
const ALL: u8 = 0xff;

/// The table, for processors with the APIC ids 0..`cpus`.
pub(super) fn table(cpus: u8) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", FIXED, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, PCAT_COMPAT);
    for id in 0..cpus {
        append(&mut madt, &ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    append(&mut madt, &IoApic::new(IOAPIC_ID, IOAPIC, 0));
    madt.append_slice(&source_override(0, TIMER_GSI, CONFORMING));
    madt.append_slice(&source_override(SCI_IRQ, SCI_IRQ.into(), HIGH_LEVEL));
    // NMI at LINT1 of every processor.
    madt.append_slice(&[LOCAL_NMI, 6, ALL, 0, 0, 1]);
    madt.as_slice().to_vec()
}

fn append(madt: &mut Sdt, structure: &dyn Aml) {
    let mut bytes = Vec::new();
    structure.to_aml_bytes(&mut bytes);
    madt.append_slice(&bytes);
}

/// ISA interrupt `irq` arrives at IOAPIC input `gsi`.
fn source_override(irq: u8, gsi: u32, flags: u16) -> [u8; 10] {
    let [g0, g1, g2, g3] = gsi.to_le_bytes();
    let [f0, f1] = flags.to_le_bytes();
    [OVERRIDE, 10, 0, irq, g0, g1, g2, g3, f0, f1]
}
