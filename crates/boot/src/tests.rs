//! Whole loads: what is in RAM afterwards, and what bad input leads to.

use linux_loader::loader::bootparam::boot_params;
use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::ByteValued;
use x86::{CpuState, Segment, SegmentRegister};

use super::*;
use crate::testing::*;

const MIB: u64 = 1 << 20;

fn config(kernel: Vec<u8>) -> BootConfig {
    BootConfig { cmdline: "console=ttyS0".into(), ..BootConfig::new(source(kernel)) }
}

fn ram() -> Ram {
    Ram::new(64 * MIB).unwrap()
}

fn bytes(ram: &Ram, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ram.read(GuestPhys(address), &mut bytes).unwrap();
    bytes
}

fn at<T: ByteValued + Default>(ram: &Ram, address: u64) -> T {
    let mut value = T::default();
    ram.read(GuestPhys(address), value.as_mut_slice()).unwrap();
    value
}

fn kernel_error(kernel: Vec<u8>, entry: Entry) -> KernelError {
    match load(&ram(), &BootConfig { entry, ..config(kernel) }) {
        Err(BootError::Kernel { file, error }) => {
            assert_eq!(file, "K");
            error
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn bzimage_is_unpacked_and_entered_by_pvh() {
    let ram = ram();
    let kernel = bzimage(&pack(Compression::Lz4, &vmlinux(Some(PVH_ENTRY))));
    let initramfs = Some(Source::Bytes { name: "I".into(), bytes: vec![7; 5000] });
    let booted = load(&ram, &BootConfig { initramfs, ..config(kernel) }).unwrap();
    assert_eq!(booted.start.protocol, Protocol::Pvh);
    assert_eq!(booted.start.rip, u64::from(PVH_ENTRY));
    assert_eq!(booted.unpacked, Some(Compression::Lz4));
    assert_eq!(booted.version.as_deref(), Some("6.1.0-test (somebody) #1"));
    assert_eq!(booted.kernel, LOAD..LOAD + u64::from(INIT_SIZE));
    assert!(bytes(&ram, LOAD, FILE_SIZE as usize) == pattern(FILE_SIZE as usize));

    let info: hvm_start_info = at(&ram, booted.start.info.0);
    assert_eq!((info.magic, info.version, info.nr_modules), (0x336e_c578, 1, 1));
    assert_eq!(info.rsdp_paddr, booted.rsdp.0);
    assert_eq!(bytes(&ram, info.cmdline_paddr, 14), b"console=ttyS0\0");
    let module: hvm_modlist_entry = at(&ram, info.modlist_paddr);
    assert_eq!((module.paddr, module.size), (64 * MIB - 8192, 5000));
    assert_eq!(booted.initramfs, Some(module.paddr..module.paddr + 5000));
    assert!(bytes(&ram, module.paddr, 5000) == [7; 5000]);
    let last = info.memmap_paddr + u64::from(info.memmap_entries - 1) * 24;
    let high: hvm_memmap_table_entry = at(&ram, last);
    assert_eq!((high.addr, high.size, high.type_), (MIB, 63 * MIB, 1));
}

#[test]
fn pvh_starts_in_flat_protected_mode() {
    let mut state = CpuState::new();
    let start = StartState { protocol: Protocol::Pvh, rip: 0x1234, info: layout::PVH_INFO };
    start.apply(&mut state);
    assert_eq!((state.rip, state.gpr[3]), (0x1234, layout::PVH_INFO.0));
    assert_eq!((state.cr0, state.cr4, state.efer), (0x11, 0, 0));
    assert_eq!(state.rflags(), 2);
    assert!(state.mode.is_protected() && state.mode.is_flat() && !state.mode.is_long());
    assert_eq!(state.mode.code_bits(), 32);
    assert_eq!((state.tr.base, state.tr.limit), (0, 0x67));
}

#[test]
fn boot_params_tell_a_64_bit_kernel_all() {
    let ram = ram();
    let file = bzimage(&pack(Compression::Gzip, &vmlinux(None)));
    let initramfs = Some(Source::Bytes { name: "I".into(), bytes: vec![7; 5000] });
    let booted =
        load(&ram, &BootConfig { initramfs, entry: Entry::Bzimage, ..config(file.clone()) }).unwrap();
    assert_eq!((booted.start.protocol, booted.start.rip), (Protocol::Linux64, LOAD + 0x200));
    assert_eq!(booted.unpacked, None);
    assert!(bytes(&ram, LOAD, file.len() - 2048) == file[2048..]);

    let params: boot_params = at(&ram, booted.start.info.0);
    let header = params.hdr;
    assert_eq!((header.boot_flag, { header.version }, header.type_of_loader), (0xaa55, 0x20f, 0xff));
    assert_eq!({ header.pref_address }, LOAD);
    assert_eq!(bytes(&ram, header.cmd_line_ptr.into(), 14), b"console=ttyS0\0");
    assert_eq!((header.ramdisk_image, { header.ramdisk_size }), (64 * MIB as u32 - 8192, 5000));
    assert_eq!({ params.acpi_rsdp_addr }, booted.rsdp.0);
    assert_eq!(params.sentinel, 0);
    let map: Vec<_> = params.e820_table[..params.e820_entries.into()]
        .iter()
        .map(|entry| (entry.addr, entry.size, entry.r#type))
        .collect();
    assert_eq!(map, [(0, 0x9_fc00, 1), (0x9_fc00, 0x400, 2), (0xe_0000, 0x2_0000, 2), (MIB, 63 * MIB, 1),]);
}

#[test]
fn a_vmlinux_without_pvh_is_entered_in_64_bit_mode() {
    let ram = ram();
    let booted = load(&ram, &config(vmlinux(None))).unwrap();
    assert_eq!((booted.start.protocol, booted.start.rip), (Protocol::Linux64, LOAD));
    assert_eq!(booted.kernel, LOAD..LOAD + MEMORY_SIZE);
    let params: boot_params = at(&ram, layout::BOOT_PARAMS.0);
    assert_eq!({ params.hdr.header }, u32::from_le_bytes(*b"HdrS"));
}

#[test]
fn explicit_entries_are_obeyed() {
    let packed = |pvh| bzimage(&pack(Compression::Zstd, &vmlinux(pvh)));
    let start = |kernel, entry| load(&ram(), &BootConfig { entry, ..config(kernel) }).unwrap().start;
    assert_eq!(start(packed(Some(PVH_ENTRY)), Entry::Elf64).protocol, Protocol::Linux64);
    assert_eq!(start(vmlinux(Some(PVH_ENTRY)), Entry::Elf64).rip, LOAD);
    assert_eq!(start(vmlinux(Some(PVH_ENTRY)), Entry::Pvh).rip, u64::from(PVH_ENTRY));
    assert!(matches!(kernel_error(packed(None), Entry::Pvh), KernelError::NoPvhEntry));
    assert!(matches!(kernel_error(vmlinux(None), Entry::Bzimage), KernelError::NotBzImage));
}

#[test]
fn what_the_host_cannot_unpack_the_guest_may() {
    let kernel = bzimage(b"some new format of 2030");
    let booted = load(&ram(), &config(kernel.clone())).unwrap();
    assert_eq!((booted.start.rip, booted.unpacked), (LOAD + 0x200, None));
    assert!(matches!(kernel_error(kernel, Entry::Pvh), KernelError::UnknownCompression { .. }));
}

#[test]
fn sixty_four_bit_entry_finds_the_documented_state() {
    let ram = ram();
    let booted = load(&ram, &config(vmlinux(None))).unwrap();
    let mut state = CpuState::new();
    booted.start.apply(&mut state);
    assert!(state.mode.is_64bit());
    assert_eq!((state.gpr[6], state.rflags()), (layout::BOOT_PARAMS.0, 2));
    let cs = state.segment(SegmentRegister::Cs);
    let ds = state.segment(SegmentRegister::Ds);
    assert_eq!((cs.selector, ds.selector), (0x10, 0x18));
    // The GDT in memory says the same as the cached descriptors.
    for segment in [cs, ds, state.segment(SegmentRegister::Ss), state.segment(SegmentRegister::Es)] {
        let raw = bytes(&ram, state.gdtr.base + u64::from(segment.selector), 8);
        let descriptor = u64::from_le_bytes(raw.try_into().unwrap());
        assert_eq!(*segment, Segment::from_descriptor(segment.selector, descriptor));
    }
    // Identity, to the last 2 MiB page below 4 GiB.
    for address in [0, LOAD, 0xfee0_0000, 0xffe0_0000_u64] {
        let entry = |table: u64, shift: u32| {
            let index = address >> shift & 511;
            u64::from_le_bytes(bytes(&ram, (table & 0xf_f000) + index * 8, 8).try_into().unwrap())
        };
        let leaf = entry(entry(entry(state.cr3, 39), 30), 21);
        assert_eq!(leaf, address >> 21 << 21 | 0x83);
    }
}

#[test]
fn files_that_are_no_kernels() {
    use KernelError as E;
    assert!(matches!(kernel_error(vec![0x5a; 100], Entry::Auto), E::NotAKernel));
    assert!(matches!(kernel_error(pattern(100_000), Entry::Auto), E::NotAKernel));
    assert!(matches!(kernel_error(b"\x7fELF".to_vec(), Entry::Auto), E::Truncated { .. }));
    let changed = |mut kernel: Vec<u8>, at: usize, value: &[u8]| {
        kernel[at..at + value.len()].copy_from_slice(value);
        kernel_error(kernel, Entry::Auto)
    };
    let elf = || vmlinux(None);
    assert!(matches!(changed(elf(), 18, &[183, 0]), E::OtherMachine { machine: 183, class: 64 }));
    assert!(matches!(changed(elf(), 4, &[1]), E::OtherMachine { class: 32, .. }));
    assert!(matches!(changed(elf(), 16, &[1, 0]), E::NotExecutable(1)));
    assert!(matches!(changed(elf(), 24, &[0; 8]), E::Field { field: "e_entry", .. }));
    let image = || bzimage(&pack(Compression::Gzip, &elf()));
    assert!(matches!(changed(image(), 0x206, &[0x0b, 2]), E::OldProtocol { version: 0x20b }));
    assert!(matches!(changed(image(), 0x211, &[0]), E::ZImage));
    assert!(matches!(changed(image(), 0x236, &[0, 0]), E::Bits32));
    assert!(matches!(changed(image(), 0x230, &[3, 0, 0, 0]), E::Field { field: "kernel_alignment", .. }));
    assert!(matches!(changed(image(), 0x248, &[0xff; 4]), E::Field { field: "payload_offset", .. }));
    assert!(matches!(changed(image(), 0x24c, &[0xff; 4]), E::Field { field: "payload_length", .. }));
    assert!(matches!(changed(image(), 0x258, &[0; 8]), E::Field { field: "pref_address", .. }));
    assert!(matches!(changed(image(), 0x258, &[0, 0, 0, 0xc0, 0, 0, 0, 0]), E::Address { .. }));
    assert!(matches!(changed(image(), 0x600 + 0x600 + 12, &[0xff; 8]), E::Payload { .. }));
}

#[test]
fn paths_that_are_no_files() {
    let of = |path: &str| load(&ram(), &BootConfig::new(Source::Path(path.into()))).unwrap_err().to_string();
    assert!(of("/nowhere/vmlinuz").contains("kernel /nowhere/vmlinuz: "));
    assert!(of("/").to_lowercase().contains("directory"));
    assert!(of("/dev/null").contains("not a regular file"));
    let empty = load(&ram(), &config(vec![])).unwrap_err();
    assert!(matches!(empty, BootError::Empty { what: "kernel", .. }));
    let initramfs = Some(Source::Path("/nowhere/initramfs".into()));
    let error = load(&ram(), &BootConfig { initramfs, ..config(vmlinux(None)) }).unwrap_err();
    assert!(matches!(error, BootError::Read { what: "initramfs", .. }));
}

#[test]
fn too_little_memory_says_how_much_is_needed() {
    let small = Ram::new(16 * MIB).unwrap();
    for kernel in [vmlinux(None), bzimage(&pack(Compression::Gzip, &vmlinux(None)))] {
        let error = load(&small, &config(kernel)).unwrap_err();
        assert!(
            matches!(&error, BootError::Kernel { error: KernelError::MemoryTooSmall { available, .. }, .. }
                if *available == 16 * MIB)
        );
        assert!(error.to_string().contains("at least 1"), "{error}");
    }
}

#[test]
fn an_initramfs_must_fit_above_the_kernel() {
    let load = |length: usize| {
        let initramfs = Some(Source::Bytes { name: "I".into(), bytes: vec![1; length] });
        load(&ram(), &BootConfig { initramfs, ..config(vmlinux(None)) })
    };
    let free = 64 * MIB - (LOAD + MEMORY_SIZE);
    assert_eq!(load(free as usize).unwrap().initramfs, Some(LOAD + MEMORY_SIZE..64 * MIB));
    match load(free as usize + 1) {
        Err(BootError::InitramfsTooLarge { file, available, needed, .. }) => {
            assert_eq!((file.as_str(), available, needed), ("I", free, 64 * MIB + 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn initrd_addr_max_is_honoured() {
    let mut kernel = bzimage(&pack(Compression::Gzip, &vmlinux(None)));
    kernel[0x22c..0x230].copy_from_slice(&0x1ff_ffff_u32.to_le_bytes());
    let initramfs = Some(Source::Bytes { name: "I".into(), bytes: vec![1; 10] });
    let booted = load(&ram(), &BootConfig { initramfs, ..config(kernel) }).unwrap();
    assert_eq!(booted.initramfs, Some(0x1ff_f000..0x1ff_f00a));
}

#[test]
fn command_lines_have_a_longest() {
    let load = |cmdline: String| load(&ram(), &BootConfig { cmdline, ..config(vmlinux(None)) });
    assert!(load("x".repeat(2047)).is_ok());
    assert!(matches!(load("x".repeat(2048)), Err(BootError::CmdlineTooLong { length: 2048, most: 2047 })));
    assert!(matches!(load("a\0b".into()), Err(BootError::CmdlineNul)));
}

#[test]
fn truncated_kernels_are_errors() {
    for kernel in [vmlinux(Some(PVH_ENTRY)), bzimage(&pack(Compression::Lz4, &vmlinux(None)))] {
        for length in (1..0x400).chain((0x400..kernel.len()).step_by(113)) {
            let short = kernel[..length].to_vec();
            for entry in [Entry::Auto, Entry::Bzimage] {
                assert!(
                    load(&ram(), &BootConfig { entry, ..config(short.clone()) }).is_err(),
                    "{length} of {} bytes",
                    kernel.len()
                );
            }
        }
    }
}

#[test]
fn damaged_headers_never_panic() {
    let ram = ram();
    let mut random = Random(42);
    for kernel in [vmlinux(Some(PVH_ENTRY)), bzimage(&pack(Compression::Lz4, &vmlinux(Some(PVH_ENTRY))))] {
        let header = kernel.len().min(0x268);
        for round in 0..3000 {
            let mut bad = kernel.clone();
            for _ in 0..=round % 5 {
                let value = [0, 0xff, 0x7f, 0x80, random.below(256) as u8][random.below(5)];
                bad[random.below(header)] = value;
            }
            for entry in [Entry::Auto, Entry::Bzimage, Entry::Elf64] {
                let _ = load(&ram, &BootConfig { entry, ..config(bad.clone()) });
            }
        }
    }
}
