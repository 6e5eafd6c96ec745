//! The lzop container, in which kernels packed with LZO come (lib/decompress_unlzo.c describes what is used of it): a
//! header, then blocks of (unpacked size, packed size, checksums, data), then a size of zero. Numbers are big-endian.

/// What a file begins with.
pub(super) const MAGIC: [u8; 9] = [0x89, b'L', b'Z', b'O', 0, b'\r', b'\n', 0x1a, b'\n'];
/// Header flag: a filter byte follows the flags.
const HAS_FILTER: u32 = 0x800;
/// Header flags: Adler-32 or CRC-32 of unpacked (D) and packed (C) data are in each block.
const ADLER32_D: u32 = 0x1;
const ADLER32_C: u32 = 0x2;
const CRC32_D: u32 = 0x100;
const CRC32_C: u32 = 0x200;
/// From this version on the header has a level byte and a "version needed".
const VERSION_LEVEL: u16 = 0x0940;
/// lzop never makes larger blocks.
const MOST_BLOCK: usize = 64 << 20;

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or("it is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u16(&mut self) -> Result<u16, String> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn u32(&mut self) -> Result<u32, String> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }
}

/// Unpacks `stream` to `size` bytes, or fewer if it ends early.
pub(super) fn unpack(stream: &[u8], size: usize) -> Result<Vec<u8>, String> {
    let mut input = Reader(stream);
    let flags = header(&mut input)?;
    let checksums = |set: u32| flags & set != 0;
    let mut output = vec![0; size];
    let mut filled = 0;
    loop {
        let unpacked = input.u32()? as usize;
        if unpacked == 0 {
            break;
        }
        let packed = input.u32()? as usize;
        if unpacked > MOST_BLOCK || packed > unpacked {
            return Err(format!("a block of {packed} bytes is to give {unpacked}"));
        }
        let room = output.get_mut(filled..filled + unpacked).ok_or("it gives more than its trailer says")?;
        for set in [ADLER32_D, CRC32_D] {
            input.take(if checksums(set) { 4 } else { 0 })?;
        }
        if packed == unpacked {
            // Stored; the checksums of the packed data are left out.
            room.copy_from_slice(input.take(packed)?);
        } else {
            for set in [ADLER32_C, CRC32_C] {
                input.take(if checksums(set) { 4 } else { 0 })?;
            }
            let written = lzokay::decompress::decompress(input.take(packed)?, room)
                .map_err(|error| error.to_string())?;
            if written != unpacked {
                return Err(format!("a block gives {written} bytes instead of {unpacked}"));
            }
        }
        filled += unpacked;
    }
    output.truncate(filled);
    Ok(output)
}

/// Reads past the header; returns its flags.
fn header(input: &mut Reader<'_>) -> Result<u32, String> {
    input.take(MAGIC.len())?;
    let version = input.u16()?;
    input.u16()?; // library version
    if version >= VERSION_LEVEL {
        input.u16()?; // version needed
    }
    input.u8()?; // method
    if version >= VERSION_LEVEL {
        input.u8()?; // level
    }
    let flags = input.u32()?;
    if flags & HAS_FILTER != 0 {
        return Err("it was filtered before packing, which no kernel is".into());
    }
    input.take(8)?; // mode, modification time
    if version >= VERSION_LEVEL {
        input.take(4)?; // modification time, high half
    }
    let name = input.u8()? as usize;
    input.take(name)?;
    input.take(4)?; // checksum of the header
    Ok(flags)
}
