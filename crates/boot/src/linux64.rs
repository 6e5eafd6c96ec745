//! The 64-bit boot protocol of Linux: struct boot_params (Documentation/arch/x86/boot.rst and zero-page.rst).

use linux_loader::loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use memory::Ram;
use vm_memory::ByteValued;

use crate::start::{Protocol, StartState};
use crate::{BootError, Parts, layout};

/// type_of_loader: none of the assigned ones.
const UNDEFINED_LOADER: u8 = 0xff;
/// vid_mode: "normal"; there is no VGA to set.
const VIDEO_NORMAL: u16 = 0xffff;
/// loadflags: the kernel is not loaded below 1 MiB.
const LOADED_HIGH: u8 = 1 << 0;

/// The header for a vmlinux that comes without one, as a boot loader that knows protocol 2.15 would have filled it.
fn default_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20f,
        loadflags: LOADED_HIGH,
        kernel_alignment: 0x100_0000,
        initrd_addr_max: crate::bzimage::DEFAULT_INITRD_MAX as u32,
        cmdline_size: crate::bzimage::DEFAULT_CMDLINE_SIZE as u32,
        ..setup_header::default()
    }
}

/// Writes boot_params and what else 64-bit entry at `entry_point` needs.
pub(crate) fn prepare(
    ram: &Ram,
    parts: &Parts<'_>,
    header: Option<setup_header>,
    load_address: u64,
    entry_point: u64,
) -> Result<StartState, BootError> {
    let mut params = boot_params { hdr: header.unwrap_or_else(default_header), ..boot_params::default() };
    params.hdr.type_of_loader = UNDEFINED_LOADER;
    params.hdr.vid_mode = VIDEO_NORMAL;
    // Addresses below the 32-bit hole: all of them have 32 bits, so the ext_ fields stay zero.
    params.hdr.code32_start = load_address as u32;
    params.hdr.cmd_line_ptr = layout::CMDLINE.0 as u32;
    params.hdr.setup_data = 0;
    if let Some(initramfs) = &parts.initramfs {
        params.hdr.ramdisk_image = initramfs.start as u32;
        params.hdr.ramdisk_size = (initramfs.end - initramfs.start) as u32;
    }
    params.acpi_rsdp_addr = parts.rsdp.0;
    let regions = parts.map.regions();
    params.e820_entries = regions.len() as u8;
    let mut table = params.e820_table;
    for (entry, region) in table.iter_mut().zip(&regions) {
        *entry = boot_e820_entry {
            addr: region.range.start,
            size: region.range.end - region.range.start,
            r#type: region.kind as u32,
        };
    }
    params.e820_table = table;
    ram.write(layout::BOOT_PARAMS, params.as_slice())?;
    let start = StartState { protocol: Protocol::Linux64, rip: entry_point, info: layout::BOOT_PARAMS };
    start.prepare(ram)?;
    Ok(start)
}
