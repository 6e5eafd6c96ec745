//! FADT: fixed power-management hardware, and what legacy hardware there is not (ACPI 6.5, 5.2.9).

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use x86::GuestPhys;

use super::platform::*;
use super::{OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// IAPC_BOOT_ARCH (ACPI table 5.11): there are devices on ISA, namely COM1.
const LEGACY_DEVICES: u16 = 1 << 0;
/// IAPC_BOOT_ARCH: no VGA, so the kernel does not write to its memory.
const VGA_NOT_PRESENT: u16 = 1 << 2;

/// The table. The 8042 bit of IAPC_BOOT_ARCH stays clear: there is no keyboard, and the kernel must not spend its
/// time looking for one. (Its reset line works all the same.)
pub(super) fn table(facs: GuestPhys, dsdt: GuestPhys) -> FADT {
    let io =
        |width: u8, access, port: u16| GAS::new(AddressSpace::SystemIo, width, 0, access, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        // Power and sleep "buttons" are said to be control methods, of which there are none: no fixed buttons.
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless)
        .preferred_pm_profile(PmProfile::Unspecified);
    // 32-bit fields for old kernels, 64-bit ones as ACPI 2.0 wants them; where both are set they must agree.
    fadt.firmware_ctrl = (facs.0 as u32).into();
    fadt.dsdt = (dsdt.0 as u32).into();
    fadt.x_dsdt = dsdt.0.into();
    // SMI_CMD is zero: the machine is always in ACPI mode.
    fadt.sci_int = u16::from(SCI_IRQ).into();
    fadt.pm1a_evt_blk = u32::from(PM1A_EVENT).into();
    fadt.pm1_evt_len = PM1A_EVENT_LENGTH;
    fadt.x_pm1a_evt_blk = io(32, AccessSize::WordAccess, PM1A_EVENT);
    fadt.pm1a_cnt_blk = u32::from(PM1A_CONTROL).into();
    fadt.pm1_cnt_len = PM1A_CONTROL_LENGTH;
    fadt.x_pm1a_cnt_blk = io(16, AccessSize::WordAccess, PM1A_CONTROL);
    fadt.pm_tmr_blk = u32::from(PM_TIMER).into();
    fadt.pm_tmr_len = PM_TIMER_LENGTH;
    fadt.x_pm_tmr_blk = io(32, AccessSize::DwordAccess, PM_TIMER);
    fadt.gpe0_blk = u32::from(GPE0).into();
    fadt.gpe0_blk_len = GPE0_LENGTH;
    fadt.x_gpe0_blk = io(32, AccessSize::ByteAccess, GPE0);
    fadt.reset_reg = io(8, AccessSize::ByteAccess, RESET);
    fadt.reset_value = RESET_VALUE;
    // Above 100 and 1000 microseconds: no C2, no C3.
    fadt.p_lvl2_lat = 0xfff.into();
    fadt.p_lvl3_lat = 0xfff.into();
    // The CMOS byte that holds the century.
    fadt.century = 0x32;
    fadt.iapc_boot_arch = (LEGACY_DEVICES | VGA_NOT_PRESENT).into();
    fadt.finalize()
}
