//! ACPI tables: how the kernel learns of processors, interrupt controllers, power management and legacy devices.
//!
//! As few and as small as a PC can do with: RSDP -> XSDT -> FADT (-> FACS, DSDT), MADT. Every table costs the guest
//! time to parse. The addresses of the hardware behind them are in [`platform`].

mod dsdt;
mod fadt;
mod madt;
pub mod platform;

use acpi_tables::Aml;
use acpi_tables::facs::FACS;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;
use memory::Ram;
use x86::GuestPhys;

use crate::{BootError, layout};

const OEM_ID: [u8; 6] = *b"TRNSVS";
const OEM_TABLE_ID: [u8; 8] = *b"TRNSVSOR";
const OEM_REVISION: u32 = 1;
/// The FACS must be aligned to this (ACPI 5.2.10); the rest is content with less.
const ALIGNMENT: u64 = 64;

/// Table bytes and where the next ones go.
struct Writer<'a> {
    ram: &'a Ram,
    next: GuestPhys,
}

impl Writer<'_> {
    /// Writes a table; returns its address.
    fn put(&mut self, table: &dyn Aml) -> Result<GuestPhys, BootError> {
        let mut bytes = Vec::new();
        table.to_aml_bytes(&mut bytes);
        self.put_bytes(&bytes)
    }

    fn put_bytes(&mut self, bytes: &[u8]) -> Result<GuestPhys, BootError> {
        let address = self.next;
        // 254 processors need 2 KiB of MADT; nothing else grows.
        debug_assert!(address.0 + bytes.len() as u64 <= layout::ACPI.0 + layout::ACPI_SIZE);
        self.ram.write(address, bytes)?;
        self.next = GuestPhys((address.0 + bytes.len() as u64).next_multiple_of(ALIGNMENT));
        Ok(address)
    }
}

/// Writes all tables for `cpus` processors; returns the address of the RSDP.
pub(crate) fn load(ram: &Ram, cpus: u8) -> Result<GuestPhys, BootError> {
    if cpus == 0 || cpus == u8::MAX {
        return Err(BootError::Cpus(cpus));
    }
    let rsdp = layout::ACPI;
    let first = GuestPhys((rsdp.0 + Rsdp::len() as u64).next_multiple_of(ALIGNMENT));
    let mut tables = Writer { ram, next: first };
    let facs = tables.put(&FACS::new())?;
    let dsdt = tables.put_bytes(&dsdt::table())?;
    let fadt = tables.put(&fadt::table(facs, dsdt))?;
    let madt = tables.put_bytes(&madt::table(cpus))?;
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    xsdt.add_entry(fadt.0);
    xsdt.add_entry(madt.0);
    let xsdt = tables.put(&xsdt)?;
    let mut bytes = Vec::new();
    Rsdp::new(OEM_ID, xsdt.0).to_aml_bytes(&mut bytes);
    ram.write(rsdp, &bytes)?;
    Ok(rsdp)
}

#[cfg(test)]
mod tests;
