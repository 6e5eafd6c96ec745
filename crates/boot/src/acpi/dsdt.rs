//! DSDT: the devices that cannot be found by looking (ACPI 6.5, 5.2.11.1).
//!
//! Processors are not in it: the MADT has them, and without processor objects the kernel idles with plain HLT
//! instead of starting cpuidle.

use acpi_tables::Aml;
use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, ResourceTemplate,
    Scope, ZERO,
};
use acpi_tables::sdt::Sdt;

use super::platform::*;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// Revision 2: integers have 64 bits.
const REVISION: u8 = 2;
const HEADER: u32 = 36;

/// The table.
pub(super) fn table() -> Vec<u8> {
    let mut aml = Vec::new();
    sleep_state().to_aml_bytes(&mut aml);
    let (com1, rtc, pci) = (com1(), rtc(), pci_root());
    Scope::new("_SB_".into(), vec![&Raw(com1), &Raw(rtc), &Raw(pci)]).to_aml_bytes(&mut aml);
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, REVISION, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    dsdt.append_slice(&aml);
    dsdt.as_slice().to_vec()
}

/// AML that is bytes already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

/// \_S5: the values of SLP_TYP for PM1a and PM1b; two reserved ones.
fn sleep_state() -> Name {
    Name::new("_S5_".into(), &Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &ZERO, &ZERO]))
}

/// An interrupt as ISA has it: edge, active high, not shared.
fn isa_interrupt(irq: u8) -> Interrupt {
    Interrupt::new(true, true, false, false, irq.into())
}

fn com1() -> Vec<u8> {
    bytes(&Device::new(
        "COM1".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0501")),
            &Name::new("_UID".into(), &1_u8),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(COM1, COM1, 1, 8), &isa_interrupt(COM1_IRQ)]),
            ),
        ],
    ))
}

fn rtc() -> Vec<u8> {
    bytes(&Device::new(
        "RTC_".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0B00")),
            &Name::new(
                "_CRS".into(),
                &ResourceTemplate::new(vec![&IO::new(RTC, RTC, 1, 2), &isa_interrupt(RTC_IRQ)]),
            ),
        ],
    ))
}

/// The PCI root: bus 0 only, configured through ports 0xcf8 to 0xcff, all other ports, and memory below the IOAPIC.
fn pci_root() -> Vec<u8> {
    let bus = AddressSpace::<u16>::new_bus_number(0, 0);
    let config = IO::new(PCI_CONFIG, PCI_CONFIG, 1, 8);
    let low_ports = AddressSpace::<u16>::new_io(0, PCI_CONFIG - 1, None);
    let high_ports = AddressSpace::<u16>::new_io(PCI_CONFIG + 8, 0xffff, None);
    let (first, last) = (*PCI_MEMORY.start(), *PCI_MEMORY.end());
    let memory =
        AddressSpace::<u32>::new_memory(AddressSpaceCacheable::NotCacheable, true, first, last, None);
    let windows = ResourceTemplate::new(vec![&bus, &config, &low_ports, &high_ports, &memory]);
    bytes(&Device::new(
        "PCI0".into(),
        vec![
            &Name::new("_HID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &windows),
        ],
    ))
}
