use super::*;
use crate::testing::{FORMATS, Random, pack, pattern};

const SIZE: usize = 300_000;

#[test]
fn every_format_unpacks_to_what_was_packed() {
    let data = pattern(SIZE);
    for format in FORMATS {
        let (found, unpacked) = unpack(&pack(format, &data), SIZE as u64).unwrap();
        assert_eq!(found, format);
        assert!(unpacked == data, "{format}");
    }
}

#[test]
fn lz4_blocks_of_8_mib_follow_each_other() {
    let data = pattern((17 << 20) + 5);
    let (_, unpacked) = unpack(&pack(Compression::Lz4, &data), data.len() as u64).unwrap();
    assert!(unpacked == data);
}

#[test]
fn an_uncompressed_payload_is_the_vmlinux() {
    let (format, unpacked) = unpack(b"\x7fELF and more", 100).unwrap();
    assert_eq!((format, unpacked.as_slice()), (Compression::None, &b"\x7fELF and more"[..]));
}

#[test]
fn output_is_bounded_by_the_trailer() {
    let data = vec![0; SIZE];
    for format in FORMATS {
        let mut packed = pack(format, &data);
        let trailer = packed.len() - 4;
        packed[trailer..].copy_from_slice(&1000_u32.to_le_bytes());
        assert!(unpack(&packed, u64::MAX).is_err(), "{format} gave more than it said");
        packed[trailer..].copy_from_slice(&(SIZE as u32 + 1).to_le_bytes());
        assert!(unpack(&packed, u64::MAX).is_err(), "{format} gave less than it said");
    }
}

#[test]
fn output_is_bounded_by_init_size() {
    let packed = pack(Compression::Xz, &vec![0; SIZE]);
    match unpack(&packed, SIZE as u64 - 1) {
        Err(KernelError::PayloadSize { actual, expected, .. }) => {
            assert_eq!((actual, expected), (SIZE as u64, SIZE as u64 - 1));
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn truncated_payloads_are_errors() {
    let data = pattern(20_000);
    for format in FORMATS {
        let packed = pack(format, &data);
        for length in (0..packed.len()).step_by(97).chain(0..40) {
            // What is left of it may end with four bytes that look like a size, but not like the right one.
            assert!(unpack(&packed[..length], 1 << 20).is_err(), "{format} cut to {length}");
        }
    }
}

#[test]
fn damaged_payloads_never_panic() {
    let data = pattern(20_000);
    let mut random = Random(7);
    for format in FORMATS {
        let good = pack(format, &data);
        for _ in 0..400 {
            let mut bad = good.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bad.len());
                bad[at] ^= 1 << random.below(8);
            }
            if let Ok((_, unpacked)) = unpack(&bad, 1 << 20) {
                // Formats without a checksum can't tell; the size is right at least.
                assert!(unpacked.len() <= 1 << 20);
            }
        }
    }
}

#[test]
fn unknown_formats_show_their_first_bytes() {
    match unpack(b"what?", 100) {
        Err(KernelError::UnknownCompression { magic }) => assert_eq!(&magic, b"what?\0"),
        other => panic!("{other:?}"),
    }
}
