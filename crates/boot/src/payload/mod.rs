//! The vmlinux packed in a bzImage, unpacked on the host: many times faster than the guest's own decompressor.
//!
//! The payload is one compressed stream. All formats but gzip (which has its own) are followed by the unpacked size in
//! four little-endian bytes (scripts/Makefile.lib, `size_append`); gzip ends with the same four bytes by itself. That
//! size, bounded by the header's init_size (the kernel unpacks itself within that much memory), bounds the output.

mod lz4;
mod lzop;

use std::fmt;
use std::io::Read;

use crate::KernelError;

/// How a payload is packed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(missing_docs, reason = "the names are the formats'")]
pub enum Compression {
    None,
    Gzip,
    Bzip2,
    Lzma,
    Xz,
    Lzo,
    Lz4,
    Zstd,
}

/// Magic numbers (lib/decompress.c; xz: xz-file-format 2.1.1.1; zstd: RFC 8878 3.1.1).
const MAGICS: [(&[u8], Compression); 8] = [
    (b"\x7fELF", Compression::None),
    (&[0x1f, 0x8b], Compression::Gzip),
    (b"BZh", Compression::Bzip2),
    (&[0x5d, 0x00, 0x00], Compression::Lzma),
    (&[0xfd, b'7', b'z', b'X', b'Z', 0], Compression::Xz),
    (&lzop::MAGIC, Compression::Lzo),
    (&lz4::MAGIC, Compression::Lz4),
    (&[0x28, 0xb5, 0x2f, 0xfd], Compression::Zstd),
];

/// Bytes of the size that follows the stream.
const TRAILER: usize = 4;
/// What liblzma may allocate: its dictionary is at most 64 MiB in kernels, and a host must not be drained.
const LZMA_MEMORY: u64 = 256 << 20;

impl Compression {
    /// What the first bytes say.
    pub fn recognise(bytes: &[u8]) -> Option<Self> {
        MAGICS.iter().find(|(magic, _)| bytes.starts_with(magic)).map(|&(_, format)| format)
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Lzma => "lzma",
            Self::Xz => "xz",
            Self::Lzo => "lzo",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
        })
    }
}

/// Unpacks `payload` to exactly the size that its trailer gives, which must not be above `most`.
pub fn unpack(payload: &[u8], most: u64) -> Result<(Compression, Vec<u8>), KernelError> {
    let Some(format) = Compression::recognise(payload) else {
        let mut magic = [0; 6];
        let length = payload.len().min(magic.len());
        magic[..length].copy_from_slice(&payload[..length]);
        return Err(KernelError::UnknownCompression { magic });
    };
    if format == Compression::None {
        return Ok((format, payload.to_vec()));
    }
    let damaged = |reason: String| KernelError::Payload { format, reason };
    let (stream, trailer) = payload
        .split_last_chunk::<TRAILER>()
        .ok_or_else(|| damaged("it is shorter than its trailer".into()))?;
    let expected = u64::from(u32::from_le_bytes(*trailer));
    if expected > most {
        return Err(KernelError::PayloadSize { format, actual: expected, expected: most });
    }
    let size = expected as usize;
    let output = match format {
        // gzip's trailer is part of the stream.
        Compression::Gzip => read(flate2::read::GzDecoder::new(payload), size),
        Compression::Bzip2 => read(bzip2::read::BzDecoder::new(stream), size),
        Compression::Lzma => liblzma::stream::Stream::new_lzma_decoder(LZMA_MEMORY)
            .map_err(|error| error.to_string())
            .and_then(|decoder| read(liblzma::read::XzDecoder::new_stream(stream, decoder), size)),
        Compression::Xz => liblzma::stream::Stream::new_stream_decoder(LZMA_MEMORY, 0)
            .map_err(|error| error.to_string())
            .and_then(|decoder| read(liblzma::read::XzDecoder::new_stream(stream, decoder), size)),
        Compression::Zstd => ruzstd::decoding::StreamingDecoder::new(stream)
            .map_err(|error| error.to_string())
            .and_then(|decoder| read(decoder, size)),
        Compression::Lzo => lzop::unpack(stream, size),
        Compression::Lz4 => lz4::unpack(stream, size),
        Compression::None => return Ok((format, payload.to_vec())),
    }
    .map_err(damaged)?;
    if output.len() != size {
        return Err(KernelError::PayloadSize { format, actual: output.len() as u64, expected });
    }
    Ok((format, output))
}

/// Everything that `decoder` gives, but never more than one byte above `size`.
fn read(decoder: impl Read, size: usize) -> Result<Vec<u8>, String> {
    let mut output = Vec::with_capacity(size + 1);
    decoder.take(size as u64 + 1).read_to_end(&mut output).map_err(|error| error.to_string())?;
    Ok(output)
}

#[cfg(test)]
mod tests;
