//! The PVH boot protocol: hvm_start_info (Xen: xen/include/public/arch-x86/hvm/start_info.h).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use memory::Ram;
use vm_memory::ByteValued;

use crate::start::{Protocol, StartState};
use crate::{BootError, Parts, layout};

/// "xEn3" with the 0x80 bit of the "E" set.
const MAGIC: u32 = 0x336e_c578;
/// The version that has a memory map.
const VERSION: u32 = 1;

/// Writes the start info and what else 32-bit entry at `entry_point` needs.
pub(crate) fn prepare(ram: &Ram, parts: &Parts<'_>, entry_point: u64) -> Result<StartState, BootError> {
    let module_address = layout::PVH_INFO.offset(size_of::<hvm_start_info>() as u64);
    let map_address = module_address.offset(size_of::<hvm_modlist_entry>() as u64);
    let regions = parts.map.regions();
    let mut info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        cmdline_paddr: if parts.cmdline_length == 0 { 0 } else { layout::CMDLINE.0 },
        rsdp_paddr: parts.rsdp.0,
        memmap_paddr: map_address.0,
        memmap_entries: regions.len() as u32,
        ..hvm_start_info::default()
    };
    if let Some(initramfs) = &parts.initramfs {
        info.nr_modules = 1;
        info.modlist_paddr = module_address.0;
        let module = hvm_modlist_entry {
            paddr: initramfs.start,
            size: initramfs.end - initramfs.start,
            ..hvm_modlist_entry::default()
        };
        ram.write(module_address, module.as_slice())?;
    }
    let mut address = map_address;
    for region in regions {
        let entry = hvm_memmap_table_entry {
            addr: region.range.start,
            size: region.range.end - region.range.start,
            type_: region.kind as u32,
            reserved: 0,
        };
        ram.write(address, entry.as_slice())?;
        address = address.offset(size_of::<hvm_memmap_table_entry>() as u64);
    }
    ram.write(layout::PVH_INFO, info.as_slice())?;
    let start = StartState { protocol: Protocol::Pvh, rip: entry_point, info: layout::PVH_INFO };
    start.prepare(ram)?;
    Ok(start)
}
