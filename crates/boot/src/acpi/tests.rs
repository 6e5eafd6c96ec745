use super::*;

fn bytes(ram: &Ram, address: u64, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    ram.read(GuestPhys(address), &mut bytes).unwrap();
    bytes
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn sum(bytes: &[u8]) -> u8 {
    bytes.iter().fold(0, |sum, &byte| sum.wrapping_add(byte))
}

/// The table at `address`, whose signature and checksum must be right.
fn table(ram: &Ram, address: u64, signature: &[u8; 4]) -> Vec<u8> {
    let header = bytes(ram, address, 8);
    assert_eq!(&header[..4], signature);
    let table = bytes(ram, address, u32_at(&header, 4) as usize);
    if signature != b"FACS" {
        assert_eq!(sum(&table), 0, "checksum of {}", String::from_utf8_lossy(signature));
    }
    assert!(address >= layout::ACPI.0);
    assert!(address + table.len() as u64 <= layout::ACPI.0 + layout::ACPI_SIZE);
    table
}

/// FADT and MADT, reached from the RSDP as a kernel would.
fn walk(cpus: u8) -> (Ram, Vec<u8>, Vec<u8>) {
    let ram = Ram::new(2 << 20).unwrap();
    let address = load(&ram, cpus).unwrap();
    assert_eq!(address.0 % 16, 0);
    let rsdp = bytes(&ram, address.0, 36);
    assert_eq!(&rsdp[..8], b"RSD PTR ");
    assert_eq!((sum(&rsdp[..20]), sum(&rsdp)), (0, 0));
    assert_eq!(rsdp[15], 2);
    let xsdt = table(&ram, u64_at(&rsdp, 24), b"XSDT");
    assert_eq!(xsdt.len(), 36 + 2 * 8);
    let fadt = table(&ram, u64_at(&xsdt, 36), b"FACP");
    let madt = table(&ram, u64_at(&xsdt, 44), b"APIC");
    (ram, fadt, madt)
}

#[test]
fn fadt_names_the_platform() {
    let (ram, fadt, _) = walk(1);
    assert_eq!(fadt.len(), 276);
    // ACPI 6.5 table 5.9.
    let u16_at = |at: usize| u16::from_le_bytes([fadt[at], fadt[at + 1]]);
    assert_eq!(u16_at(46), 9, "SCI_INT");
    assert_eq!(u32_at(&fadt, 48), 0, "SMI_CMD");
    assert_eq!((u32_at(&fadt, 56), fadt[88]), (0x600, 4), "PM1a_EVT");
    assert_eq!((u32_at(&fadt, 64), fadt[89]), (0x604, 2), "PM1a_CNT");
    assert_eq!((u32_at(&fadt, 76), fadt[91]), (0x608, 4), "PM_TMR");
    assert_eq!((u32_at(&fadt, 80), fadt[92]), (0x60c, 4), "GPE0");
    assert_eq!(u16_at(109) & 0b110, 0b100, "IAPC_BOOT_ARCH: no VGA, no 8042");
    assert_eq!(u32_at(&fadt, 112) & (1 << 10 | 1 << 20), 1 << 10, "reset register, not hardware-reduced");
    assert_eq!((fadt[116], u64_at(&fadt, 120), fadt[128]), (1, 0xcf9, 6), "RESET_REG");
    // The extended blocks name the same places.
    for (block, extended) in [(56, 148), (64, 172), (76, 208), (80, 220)] {
        assert_eq!(u64_at(&fadt, extended + 4), u64::from(u32_at(&fadt, block)));
    }
    let facs = u64::from(u32_at(&fadt, 36));
    assert_eq!(facs % 64, 0);
    assert_eq!(table(&ram, facs, b"FACS").len(), 64);
    assert_eq!(u64_at(&fadt, 140), u64::from(u32_at(&fadt, 40)), "DSDT and X_DSDT");
}

#[test]
fn dsdt_has_s5_and_the_legacy_devices() {
    let (ram, fadt, _) = walk(1);
    let dsdt = table(&ram, u64_at(&fadt, 140), b"DSDT");
    let has = |part: &[u8]| dsdt.windows(part.len()).any(|window| window == part);
    // Name (_S5_, Package (4) { 5, 5, 0, 0 })
    assert!(has(b"\x08_S5_\x12\x08\x04\x0a\x05\x0a\x05\x00\x00"));
    for (device, hid) in [("COM1", 0x0105_d041_u32), ("RTC_", 0x000b_d041), ("PCI0", 0x030a_d041)] {
        let name = [device.as_bytes(), b"\x08_HID\x0c", &hid.to_le_bytes()].concat();
        assert!(has(&name), "{device}");
    }
    // IO (Decode16, 0x3f8, 0x3f8, 1, 8), Interrupt (consumer, edge, high, exclusive) { 4 }
    assert!(has(b"\x47\x01\xf8\x03\xf8\x03\x01\x08\x89\x06\x00\x03\x01\x04\x00\x00\x00\x79\x00"));
}

#[test]
fn madt_has_every_processor() {
    for cpus in [1, 2, 254] {
        let (_, _, madt) = walk(cpus);
        assert_eq!(u32_at(&madt, 36), 0xfee0_0000);
        assert_eq!(madt[40], 1, "there are 8259s");
        let mut rest = &madt[44..];
        let mut kinds = Vec::new();
        let mut next_id = 0;
        while !rest.is_empty() {
            let (entry, after) = rest.split_at(rest[1].into());
            match entry[0] {
                0 => {
                    assert_eq!((entry[2], entry[3], entry[4]), (next_id, next_id, 1));
                    next_id += 1;
                }
                1 => assert_eq!((entry[2], u32_at(entry, 4), u32_at(entry, 8)), (1, 0xfec0_0000, 0)),
                2 => kinds.push((entry[3], u32_at(entry, 4), entry[8])),
                4 => assert_eq!((entry[2], entry[5]), (0xff, 1)),
                kind => panic!("structure {kind}"),
            }
            rest = after;
        }
        assert_eq!(next_id, cpus);
        assert_eq!(kinds, [(0, 2, 0), (9, 9, 0b1101)]);
    }
}

#[test]
fn impossible_numbers_of_processors_are_errors() {
    let ram = Ram::new(1 << 20).unwrap();
    assert!(matches!(load(&ram, 0), Err(BootError::Cpus(0))));
    assert!(matches!(load(&ram, 255), Err(BootError::Cpus(255))));
}
