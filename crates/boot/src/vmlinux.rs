//! An ELF kernel: its segments, its 64-bit entry and its PVH entry.

use std::borrow::Cow;
use std::ops::Range;

use memory::Ram;
use object::LittleEndian;
use object::elf::{
    ELFCLASS64, EM_X86_64, ET_DYN, ET_EXEC, FileClass, FileHeader64, FileType, Machine, NoteType, PT_LOAD,
    PT_NOTE, ProgramHeader64,
};
use object::read::elf::{FileHeader as _, ProgramHeader as _};
use x86::GuestPhys;

use crate::KernelError;

type Header = FileHeader64<LittleEndian>;
type Segment = ProgramHeader64<LittleEndian>;

const ENDIAN: LittleEndian = LittleEndian;
/// The note that carries the 32-bit entry point (Xen: xen/include/public/elfnote.h).
const XEN_ELFNOTE_PHYS32_ENTRY: NoteType = NoteType(18);
const XEN_NOTE_NAME: &[u8] = b"Xen";

/// An ELF file for x86-64 whose loadable segments have been checked against the file.
pub struct Vmlinux<'a> {
    bytes: Cow<'a, [u8]>,
    entry: u64,
    segments: Vec<Load>,
}

/// A loadable segment: a piece of the file and where it goes; the rest up to the end is BSS.
struct Load {
    file: Range<usize>,
    memory: Range<u64>,
}

impl<'a> Vmlinux<'a> {
    /// Whether the file begins as ELF files do.
    pub fn recognises(bytes: &[u8]) -> bool {
        bytes.starts_with(&object::elf::ELFMAG)
    }

    /// Checks header and segments.
    pub fn parse(bytes: Cow<'a, [u8]>) -> Result<Self, KernelError> {
        let (entry, segments) = Self::segments(&bytes)?;
        Ok(Self { bytes, entry, segments })
    }

    fn segments(bytes: &[u8]) -> Result<(u64, Vec<Load>), KernelError> {
        let header = header(bytes)?;
        let length = bytes.len() as u64;
        let mut segments = Vec::new();
        for segment in program_headers(header, bytes)? {
            if segment.p_type(ENDIAN) != PT_LOAD {
                continue;
            }
            let (offset, in_file) = segment.file_range(ENDIAN);
            let (start, in_memory) = (segment.p_paddr(ENDIAN), segment.p_memsz(ENDIAN));
            if in_memory == 0 {
                continue;
            }
            let file_end = offset
                .checked_add(in_file)
                .ok_or(KernelError::Field { field: "a segment's p_offset", value: offset })?;
            if file_end > length {
                return Err(KernelError::Truncated { part: "a segment", needed: file_end, length });
            }
            if in_file > in_memory {
                return Err(KernelError::Field { field: "a segment's p_filesz", value: in_file });
            }
            let end = start
                .checked_add(in_memory)
                .ok_or(KernelError::Field { field: "a segment's p_paddr", value: start })?;
            segments.push(Load { file: offset as usize..file_end as usize, memory: start..end });
        }
        if segments.is_empty() {
            return Err(KernelError::Elf("it has no loadable segment".into()));
        }
        Ok((header.e_entry(ENDIAN), segments))
    }

    /// The guest-physical addresses from the first segment's start to the last one's end.
    pub fn range(&self) -> Range<u64> {
        let start = self.segments.iter().map(|s| s.memory.start).min().unwrap_or(0);
        let end = self.segments.iter().map(|s| s.memory.end).max().unwrap_or(0);
        start..end
    }

    /// e_entry: for Linux the physical address of its 64-bit entry.
    pub fn entry(&self) -> u64 {
        self.entry
    }

    /// The 32-bit entry of the PVH boot protocol, if there is one.
    pub fn pvh_entry(&self) -> Result<Option<u32>, KernelError> {
        let bytes: &[u8] = &self.bytes;
        let header = header(bytes)?;
        for segment in program_headers(header, bytes)? {
            if segment.p_type(ENDIAN) != PT_NOTE {
                continue;
            }
            let Some(mut notes) = segment.notes(ENDIAN, bytes).map_err(elf)? else { continue };
            while let Some(note) = notes.next().map_err(elf)? {
                if note.name() == XEN_NOTE_NAME && note.n_type(ENDIAN) == XEN_ELFNOTE_PHYS32_ENTRY {
                    // Xen's interface makes it as wide as the kernel's words; only 32 bits can be entered.
                    let descriptor = note.desc();
                    let mut value = [0; 8];
                    let used = descriptor.len().min(8);
                    value[..used].copy_from_slice(&descriptor[..used]);
                    let value = u64::from_le_bytes(value);
                    return match u32::try_from(value) {
                        Ok(entry) if used >= 4 => Ok(Some(entry)),
                        _ => Err(KernelError::Field { field: "XEN_ELFNOTE_PHYS32_ENTRY", value }),
                    };
                }
            }
        }
        Ok(None)
    }

    /// `address` if it lies in what the file gives memory, a complaint about `field` otherwise.
    pub(crate) fn check_entry(&self, field: &'static str, address: u64) -> Result<u64, KernelError> {
        let inside = self.segments.iter().any(|s| {
            let filled = s.memory.start..s.memory.start + s.file.len() as u64;
            filled.contains(&address)
        });
        if inside { Ok(address) } else { Err(KernelError::Field { field, value: address }) }
    }

    /// Puts the segments into RAM. BSS is left as it is: RAM starts as zero.
    pub(crate) fn load(&self, ram: &Ram) -> Result<(), KernelError> {
        for segment in &self.segments {
            ram.write(GuestPhys(segment.memory.start), &self.bytes[segment.file.clone()])?;
        }
        Ok(())
    }
}

/// The file header of a little-endian x86-64 executable.
fn header(bytes: &[u8]) -> Result<&Header, KernelError> {
    let needed = size_of::<Header>() as u64;
    if (bytes.len() as u64) < needed {
        return Err(KernelError::Truncated { part: "the ELF header", needed, length: bytes.len() as u64 });
    }
    let (class, little_endian) = (FileClass(bytes[4]), bytes[5] == object::elf::ELFDATA2LSB.0);
    let half = |at: usize| match little_endian {
        true => u16::from_le_bytes([bytes[at], bytes[at + 1]]),
        false => u16::from_be_bytes([bytes[at], bytes[at + 1]]),
    };
    // e_type and e_machine have the same place in both classes.
    let (kind, machine) = (FileType(half(16)), Machine(half(18)));
    if class != ELFCLASS64 || machine != EM_X86_64 {
        return Err(KernelError::OtherMachine {
            machine: machine.0,
            class: if class == ELFCLASS64 { 64 } else { 32 },
        });
    }
    if kind != ET_EXEC && kind != ET_DYN {
        return Err(KernelError::NotExecutable(kind.0));
    }
    Header::parse(bytes).map_err(elf)
}

fn program_headers<'b>(header: &Header, bytes: &'b [u8]) -> Result<&'b [Segment], KernelError> {
    header.program_headers(ENDIAN, bytes).map_err(elf)
}

fn elf(error: object::read::Error) -> KernelError {
    KernelError::Elf(error.to_string())
}
