//! The LZ4 legacy frame, which `lz4 -l` writes for kernels: a magic number, then blocks of 8 MiB, each with its packed
//! size in front (lz4: doc/lz4_Frame_format.md, "Legacy frame"). Only the blocks are decoded by the lz4 crate: its
//! frame reader takes the size that follows in a kernel for one more block.

use lz4_flex::block::decompress_into;

/// 0x184c2102, little-endian.
pub(super) const MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
/// What every block but the last unpacks to.
const BLOCK: usize = 8 << 20;

/// Unpacks `stream` to `size` bytes, or fewer if it ends early.
pub(super) fn unpack(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut rest = &stream[MAGIC.len().min(stream.len())..];
    let mut output = vec![0; size];
    let mut filled = 0;
    while !rest.is_empty() {
        let (length, after) = rest.split_first_chunk::<4>().ok_or("a block's size is cut off")?;
        // Frames may be concatenated: then their magic number stands where a block's size would.
        if *length == MAGIC {
            rest = after;
            continue;
        }
        let length = u32::from_le_bytes(*length) as usize;
        let block = after.get(..length).ok_or_else(|| format!("a block of {length} bytes is cut off"))?;
        let end = (filled + BLOCK).min(size);
        filled += decompress_into(block, &mut output[filled..end]).map_err(|error| error.to_string())?;
        rest = &after[length..];
    }
    output.truncate(filled);
    Ok(output)
}
