//! Kernel images made for tests, small but complete.

use std::io::{Read, Write};

use crate::{Compression, Source};

pub(crate) const LOAD: u64 = 0x100_0000;
pub(crate) const PVH_ENTRY: u32 = 0x100_0040;
pub(crate) const INIT_SIZE: u32 = 0x20_0000;
/// Bytes of the segment in the file, and in memory.
pub(crate) const FILE_SIZE: u64 = 0x1800;
pub(crate) const MEMORY_SIZE: u64 = 0x4000;

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// A byte pattern that packs neither to nothing nor not at all.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    let mut state = 1_u32;
    (0..length)
        .map(|i| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            if i % 3 == 0 { (state >> 24) as u8 } else { (i >> 6) as u8 }
        })
        .collect()
}

/// An ELF64 executable: one segment of [`pattern`] at [`LOAD`], entered at its start, and a PVH note if wanted.
pub(crate) fn vmlinux(pvh: Option<u32>) -> Vec<u8> {
    const SEGMENT: usize = 0x200;
    let mut bytes = vec![0; SEGMENT];
    put(&mut bytes, 0, b"\x7fELF\x02\x01\x01");
    put(&mut bytes, 16, &2_u16.to_le_bytes()); // e_type: executable
    put(&mut bytes, 18, &62_u16.to_le_bytes()); // e_machine: x86-64
    put(&mut bytes, 20, &1_u32.to_le_bytes());
    put(&mut bytes, 24, &LOAD.to_le_bytes()); // e_entry
    put(&mut bytes, 32, &64_u64.to_le_bytes()); // e_phoff
    put(&mut bytes, 52, &64_u16.to_le_bytes());
    put(&mut bytes, 54, &56_u16.to_le_bytes());
    put(&mut bytes, 56, &2_u16.to_le_bytes()); // e_phnum
    program_header(&mut bytes, 64, 1, SEGMENT as u64, LOAD, FILE_SIZE, MEMORY_SIZE);
    if let Some(entry) = pvh {
        const NOTE: usize = 0x180;
        put(&mut bytes, NOTE, &4_u32.to_le_bytes());
        put(&mut bytes, NOTE + 4, &8_u32.to_le_bytes());
        put(&mut bytes, NOTE + 8, &18_u32.to_le_bytes());
        put(&mut bytes, NOTE + 12, b"Xen\0");
        put(&mut bytes, NOTE + 16, &u64::from(entry).to_le_bytes());
        program_header(&mut bytes, 64 + 56, 4, NOTE as u64, 0, 24, 24);
    }
    bytes.extend(pattern(FILE_SIZE as usize));
    bytes
}

fn program_header(bytes: &mut [u8], at: usize, kind: u32, offset: u64, address: u64, file: u64, memory: u64) {
    put(bytes, at, &kind.to_le_bytes());
    put(bytes, at + 8, &offset.to_le_bytes());
    put(bytes, at + 24, &address.to_le_bytes());
    put(bytes, at + 32, &file.to_le_bytes());
    put(bytes, at + 40, &memory.to_le_bytes());
}

/// A bzImage around `payload`.
pub(crate) fn bzimage(payload: &[u8]) -> Vec<u8> {
    const SETUP: usize = 4 * 512;
    const OFFSET: usize = 0x400;
    let code = (OFFSET + payload.len()).next_multiple_of(16);
    let mut bytes = vec![0; SETUP + code];
    put(&mut bytes, 0, b"MZ");
    bytes[0x1f1] = 3; // setup_sects
    put(&mut bytes, 0x1f4, &(code as u32 / 16).to_le_bytes());
    put(&mut bytes, 0x1fe, &0xaa55_u16.to_le_bytes());
    put(&mut bytes, 0x200, &[0xeb, 0x6a]);
    put(&mut bytes, 0x202, b"HdrS");
    put(&mut bytes, 0x206, &0x20f_u16.to_le_bytes());
    put(&mut bytes, 0x20e, &0x100_u16.to_le_bytes()); // kernel_version
    put(&mut bytes, 0x300, b"6.1.0-test (somebody) #1\0");
    bytes[0x211] = 1; // loadflags: LOADED_HIGH
    put(&mut bytes, 0x214, &0x10_0000_u32.to_le_bytes());
    put(&mut bytes, 0x22c, &0x7fff_ffff_u32.to_le_bytes()); // initrd_addr_max
    put(&mut bytes, 0x230, &0x20_0000_u32.to_le_bytes()); // kernel_alignment
    bytes[0x234] = 1; // relocatable_kernel
    put(&mut bytes, 0x236, &1_u16.to_le_bytes()); // XLF_KERNEL_64
    put(&mut bytes, 0x238, &2047_u32.to_le_bytes()); // cmdline_size
    put(&mut bytes, 0x248, &(OFFSET as u32).to_le_bytes());
    put(&mut bytes, 0x24c, &(payload.len() as u32).to_le_bytes());
    put(&mut bytes, 0x258, &LOAD.to_le_bytes()); // pref_address
    put(&mut bytes, 0x260, &INIT_SIZE.to_le_bytes());
    put(&mut bytes, SETUP + OFFSET, payload);
    bytes
}

/// All formats that the kernel's build can choose.
pub(crate) const FORMATS: [Compression; 7] = [
    Compression::Gzip,
    Compression::Bzip2,
    Compression::Lzma,
    Compression::Xz,
    Compression::Lzo,
    Compression::Lz4,
    Compression::Zstd,
];

/// Packs as the kernel's build does, size appended.
pub(crate) fn pack(format: Compression, data: &[u8]) -> Vec<u8> {
    use liblzma::stream::{Check, Filters, LzmaOptions, Stream};
    let mut packed = Vec::new();
    match format {
        Compression::None => return data.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(&mut packed, flate2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap();
            return packed; // its own trailer ends with the size
        }
        Compression::Bzip2 => {
            let mut encoder = bzip2::write::BzEncoder::new(&mut packed, bzip2::Compression::best());
            encoder.write_all(data).unwrap();
            encoder.finish().unwrap();
        }
        Compression::Lzma => {
            let options = LzmaOptions::new_preset(6).unwrap();
            let encoder = Stream::new_lzma_encoder(&options).unwrap();
            liblzma::read::XzEncoder::new_stream(data, encoder).read_to_end(&mut packed).unwrap();
        }
        Compression::Xz => {
            // scripts/xz_wrap.sh: --check=crc32 --x86 --lzma2=,dict=32MiB
            let mut options = LzmaOptions::new_preset(6).unwrap();
            options.dict_size(32 << 20);
            let mut filters = Filters::new();
            filters.x86().lzma2(&options);
            let encoder = Stream::new_stream_encoder(&filters, Check::Crc32).unwrap();
            liblzma::read::XzEncoder::new_stream(data, encoder).read_to_end(&mut packed).unwrap();
        }
        Compression::Lzo => packed = lzop(data),
        Compression::Lz4 => {
            packed.extend([0x02, 0x21, 0x4c, 0x18]);
            for block in data.chunks(8 << 20) {
                let block = lz4_flex::block::compress(block);
                packed.extend((block.len() as u32).to_le_bytes());
                packed.extend(block);
            }
        }
        Compression::Zstd => {
            packed = ruzstd::encoding::compress_to_vec(data, ruzstd::encoding::CompressionLevel::Fastest);
        }
    }
    packed.extend((data.len() as u32).to_le_bytes());
    packed
}

/// As lzop 1.04 writes it: Adler-32 of unpacked data in each block.
fn lzop(data: &[u8]) -> Vec<u8> {
    let mut packed = vec![0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];
    packed.extend([0x10, 0x40, 0x20, 0xa0, 0x09, 0x40, 3, 9]); // versions, method, level
    packed.extend(0x0300_0001_u32.to_be_bytes()); // flags
    packed.extend([0; 12]); // mode, times
    packed.push(0); // name
    packed.extend([0; 4]); // checksum
    for block in data.chunks(256 << 10) {
        let small = lzokay::compress::compress(block).unwrap();
        packed.extend((block.len() as u32).to_be_bytes());
        let stored = small.len() >= block.len();
        let body = if stored { block } else { &small };
        packed.extend((body.len() as u32).to_be_bytes());
        packed.extend([0; 4]);
        packed.extend(body);
    }
    packed.extend([0; 4]);
    packed
}

/// Bytes as a kernel file called "K".
pub(crate) fn source(bytes: Vec<u8>) -> Source {
    Source::Bytes { name: "K".into(), bytes }
}

/// A small generator, so that what fails can be repeated.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, limit: usize) -> usize {
        // xorshift64*
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}
