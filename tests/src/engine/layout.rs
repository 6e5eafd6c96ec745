//! What lies where in the guest's physical memory: tables that the processor wants, and the mailbox of the driver.
//! The first 8 MiB are mapped one to one for ring 0; the windows elsewhere, for ring 3.

use anyhow::Result;
use memory::Ram;
use x86::{GuestPhys, paging};

use crate::image::{CODE, CODE_SIZE, DATA, DATA_SIZE, DESCRIPTOR_CODE16, DESCRIPTOR_DATA16};

pub const PML4: u64 = 0x1000;
const PDPT: u64 = 0x2000;
const LOW_DIRECTORY: u64 = 0x3000;
const WINDOW_DIRECTORY: u64 = 0x4000;
const DATA_TABLE: u64 = 0x5000;
const CODE_TABLE: u64 = 0x6000;
pub const IDT: u64 = 0x7000;
pub const TSS: u64 = 0x7800;
pub const GDT: u64 = 0x7c00;
pub const LDT: u64 = 0x7d00;
/// One HLT every 16 bytes, one for each vector.
pub const HANDLERS: u64 = 0x8000;
pub const DRIVER: u64 = 0x9000;
pub const KERNEL_STACK: u64 = 0xb000;

/// The mailbox: where code is to be erased and how much of it, where code is to be put and how much,
pub const ERASE: u64 = 0xc000;
pub const WRITE: u64 = ERASE + 16;
/// the selector of DS and ES,
pub const SELECTOR: u64 = 0xc020;
/// general registers in the order of the driver's POPs, then what IRET takes,
pub const FRAME: u64 = 0xc100;
/// the rest of the registers,
pub const FX_IMAGE: u64 = 0xc200;
/// and the code.
pub const STAGING: u64 = 0xd000;

pub const DATA_PHYSICAL: u64 = 0x10_0000;
pub const CODE_PHYSICAL: u64 = 0x40_0000;
pub const MEMORY: u64 = 0x80_0000;

pub const RING0_CODE: u64 = 0x00af_9b00_0000_ffff;
/// By selector / 8; the user ones are where Linux has them.
const DESCRIPTORS: [(u64, u64); 4] =
    [(1, RING0_CODE), (4, 0x00cf_fb00_0000_ffff), (5, 0x00cf_f300_0000_ffff), (6, 0x00af_fb00_0000_ffff)];

const NMI: u64 = 2;
pub const HLT: u8 = 0xf4;

/// Fills the memory of a fresh guest.
pub fn write(ram: &Ram) -> Result<()> {
    let word = |address, value: u64| ram.write(GuestPhys(address), &value.to_le_bytes());
    let user = paging::PRESENT | paging::WRITABLE | paging::USER;
    word(PML4, PDPT | user)?;
    word(PDPT, LOW_DIRECTORY | user)?;
    word(PDPT + 8 * (CODE >> 30), WINDOW_DIRECTORY | user)?;
    for large in 0..MEMORY >> 21 {
        let entry = large << 21 | paging::PRESENT | paging::WRITABLE | paging::LARGE;
        word(LOW_DIRECTORY + 8 * large, entry)?;
    }
    word(WINDOW_DIRECTORY + 8 * (CODE >> 21 & 0x1ff), CODE_TABLE | user)?;
    for page in 0..CODE_SIZE >> 12 {
        word(CODE_TABLE + 8 * page, (CODE_PHYSICAL + (page << 12)) | paging::PRESENT | paging::USER)?;
    }
    word(WINDOW_DIRECTORY + 8 * (DATA >> 21 & 0x1ff), DATA_TABLE | user)?;
    for page in 0..DATA_SIZE >> 12 {
        word(DATA_TABLE + 8 * page, (DATA_PHYSICAL + (page << 12)) | user | paging::NO_EXECUTE)?;
    }
    for vector in 0..32u64 {
        let handler = if vector == NMI { DRIVER } else { HANDLERS + 16 * vector };
        ram.write(GuestPhys(HANDLERS + 16 * vector), &[HLT])?;
        // An interrupt gate to selector 8, DPL 3 so that INT3 and INTO may use theirs.
        let low = handler & 0xffff | 8 << 16 | 0xee00 << 32 | (handler >> 16 & 0xffff) << 48;
        word(IDT + 16 * vector, low)?;
        word(IDT + 16 * vector + 8, handler >> 32)?;
    }
    word(TSS + 4, KERNEL_STACK)?;
    for (index, descriptor) in DESCRIPTORS {
        word(GDT + 8 * index, descriptor)?;
    }
    word(LDT, DESCRIPTOR_CODE16)?;
    word(LDT + 8, DESCRIPTOR_DATA16)?;
    ram.write(GuestPhys(CODE_PHYSICAL), &vec![HLT; CODE_SIZE as usize])?;
    Ok(())
}
