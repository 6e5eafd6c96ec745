//! What a kernel's ELF file says of it besides symbols: where it is loaded, and its build ID, by which it is recognized in memory.

use std::path::{Path, PathBuf};

use object::{Object, ObjectSection, ObjectSegment, ObjectSymbol, SymbolKind, elf, read::elf::ProgramHeader};

use crate::{
    kallsyms::{self, GuestMemory},
    symbols::{SymbolError, Symbols},
};

/// A kernel's file.
#[derive(Clone, Debug)]
pub struct Elf {
    /// Where it is.
    pub path: PathBuf,
    /// What it was built from, as the linker has hashed it (`--build-id`).
    pub build_id: Option<BuildId>,
    segments: Vec<Segment>,
}

/// A build ID.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildId {
    id: Vec<u8>,
    /// Where it is in memory, if the kernel isn't moved. `None` if it is not loaded.
    physical: Option<u64>,
}

/// Something that is loaded.
#[derive(Clone, Copy, Debug)]
struct Segment {
    address: u64,
    physical: u64,
    offset: u64,
    file_size: u64,
    size: u64,
}

/// Bytes of a build ID that are compared; the usual ones have 20.
const MOST_ID: usize = 32;

/// Symbols and what else there is to know.
pub fn symbols(bytes: &[u8], path: &Path) -> Result<Symbols, SymbolError> {
    let name = path.display().to_string();
    let format = |why: String| SymbolError::Format { path: name.clone(), why };
    let file = object::File::parse(bytes).map_err(|error| format(error.to_string()))?;
    let entries: Vec<(u64, String)> = file
        .symbols()
        .filter(|symbol| {
            matches!(symbol.kind(), SymbolKind::Text | SymbolKind::Data | SymbolKind::Unknown)
                && symbol.is_definition()
        })
        .filter_map(|symbol| Some((symbol.address(), symbol.name().ok()?.to_owned())))
        .filter(|(_, name)| !name.is_empty())
        .collect();
    if entries.is_empty() {
        return Err(format("it has no symbol table".into()));
    }
    let rodata = file.section_by_name(".rodata").and_then(|section| section.data().ok());
    let segments = segments(bytes).unwrap_or_default();
    let build_id = file.build_id().ok().flatten().filter(|id| id.len() >= 8);
    let build_id = build_id.map(|id| BuildId {
        id: id[..id.len().min(MOST_ID)].to_vec(),
        physical: physical_of(&segments, bytes, id),
    });
    let mut symbols = Symbols::new(entries, name.clone());
    symbols.banner = rodata.and_then(kallsyms::find_banner_in);
    symbols.elf = Some(std::sync::Arc::new(Elf { path: path.to_owned(), build_id, segments }));
    Ok(symbols)
}

fn segments(bytes: &[u8]) -> Option<Vec<Segment>> {
    let mut segments = Vec::new();
    match object::File::parse(bytes).ok()? {
        object::File::Elf64(file) => {
            for header in file.elf_program_headers() {
                let endian = file.endian();
                if header.p_type(endian) == elf::PT_LOAD {
                    segments.push(Segment {
                        address: header.p_vaddr(endian),
                        physical: header.p_paddr(endian),
                        offset: header.p_offset(endian),
                        file_size: header.p_filesz(endian),
                        size: header.p_memsz(endian),
                    });
                }
            }
        }
        file => segments.extend(file.segments().map(|segment| {
            let (offset, file_size) = segment.file_range();
            let (address, size) = (segment.address(), segment.size());
            Segment { address, physical: address, offset, file_size, size }
        })),
    }
    Some(segments)
}

/// Where a part of the file is loaded.
fn physical_of(segments: &[Segment], bytes: &[u8], part: &[u8]) -> Option<u64> {
    let offset = (part.as_ptr() as u64).checked_sub(bytes.as_ptr() as u64)?;
    segments.iter().find_map(|segment| {
        let within = offset.checked_sub(segment.offset)?;
        (within < segment.file_size).then(|| segment.physical.wrapping_add(within))
    })
}

impl Elf {
    /// The address that the linker gave to what is loaded at a physical one.
    pub fn linked(&self, physical: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = physical.checked_sub(segment.physical)?;
            (within < segment.size).then(|| segment.address.wrapping_add(within))
        })
    }
}

impl BuildId {
    /// Whether it is loaded with the kernel, so that it must be in its memory.
    pub fn is_loaded(&self) -> bool {
        self.physical.is_some()
    }

    /// By how much the kernel in memory was moved. `None` if this one is not there.
    pub fn find(&self, memory: &dyn GuestMemory) -> Option<u64> {
        let physical = self.physical?;
        let mut moved = None;
        kallsyms::search(memory, &[b"GNU\0".as_slice(), &self.id].concat(), |at| {
            // `Elf64_Nhdr`: NT_GNU_BUILD_ID is 3.
            let mut head = [0; 12];
            let is_note = at.checked_sub(12).is_some_and(|head_at| memory.read(head_at, &mut head))
                && head[..4] == 4u32.to_le_bytes()
                && head[8..] == 3u32.to_le_bytes();
            if is_note {
                moved = Some((at + 4).wrapping_sub(physical));
            }
            is_note
        });
        moved
    }
}

impl std::fmt::Display for BuildId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.id.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
