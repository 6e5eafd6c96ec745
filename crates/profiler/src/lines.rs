//! Source lines from the DWARF of a kernel's file.
//!
//! Kernels' files have hundreds of megabytes of it. So it is opened only when addresses are asked for that were not before, and
//! closed again; what was found is kept.

use std::{borrow::Cow, collections::HashMap, fs::File, io::Read, path::Path};

use addr2line::Context;
use gimli::{DwarfSections, EndianSlice, LittleEndian, Reader, SectionId};
use object::{CompressionFormat, Object, ObjectSection, ReadCache};

/// Lines that were found, by the address that the linker gave.
#[derive(Debug, Default)]
pub struct Lines {
    known: HashMap<u64, Option<String>>,
    /// Nothing more is looked for: there is nothing, or this is not the time.
    pub paused: bool,
    trouble: Option<String>,
}

/// No section is larger.
const MOST: u64 = 4 << 30;

impl Lines {
    /// Looks up those that are not known yet. Returns what a reader should know about it.
    pub fn look_up(&mut self, path: &Path, addresses: impl Iterator<Item = u64>) -> String {
        let new: Vec<u64> = addresses.filter(|address| !self.known.contains_key(address)).collect();
        if !new.is_empty()
            && !self.paused
            && self.trouble.is_none()
            && let Err(trouble) = find(path, &new, &mut self.known)
        {
            self.trouble = Some(trouble);
        }
        match &self.trouble {
            Some(trouble) => format!("none: {}: {trouble}", path.display()),
            None => format!("DWARF of {}", path.display()),
        }
    }

    /// What was found, such as `kernel/fork.c:2689`.
    pub fn of(&self, address: u64) -> Option<String> {
        self.known.get(&address).cloned().flatten()
    }
}

fn find(path: &Path, addresses: &[u64], known: &mut HashMap<u64, Option<String>>) -> Result<(), String> {
    let file = ReadCache::new(File::open(path).map_err(|error| error.to_string())?);
    let elf = object::File::parse(&file).map_err(|error| error.to_string())?;
    let Some(section) = elf.section_by_name(".debug_line") else {
        return Err("it has no .debug_line; build the kernel with CONFIG_DEBUG_INFO".into());
    };
    if section.size() == 0 || !elf.is_little_endian() {
        return Err("its .debug_line is empty".into());
    }
    let sections = DwarfSections::load(|id: SectionId| {
        elf.section_by_name(id.name()).map_or(Ok(Cow::Borrowed([].as_slice())), |section| contents(&section))
    })?;
    let dwarf = sections.borrow(|section| EndianSlice::new(section, LittleEndian));
    let context = Context::from_dwarf(dwarf).map_err(|error| error.to_string())?;
    known.extend(addresses.iter().map(|&address| (address, line(&context, address))));
    Ok(())
}

/// A section, unpacked.
fn contents<'a>(section: &impl ObjectSection<'a>) -> Result<Cow<'a, [u8]>, String> {
    let data = section.compressed_data().map_err(|error| error.to_string())?;
    match data.format {
        CompressionFormat::None => Ok(Cow::Borrowed(data.data)),
        CompressionFormat::Zlib => {
            let mut bytes = Vec::new();
            let unpacked = flate2::read::ZlibDecoder::new(data.data).take(MOST).read_to_end(&mut bytes);
            unpacked.map_err(|error| error.to_string())?;
            Ok(Cow::Owned(bytes))
        }
        _ => Err("its DWARF is packed in a way that is not known here; unpack it with `objcopy --decompress-debug-sections`".into()),
    }
}

/// File, without the directory that the compiler ran in, and line.
fn line<R: Reader>(context: &Context<R>, address: u64) -> Option<String> {
    let location = context.find_location(address).ok()??;
    let (file, line) = (location.file?, location.line?);
    let unit = context.find_dwarf_and_unit(address).skip_all_loads();
    let directory = unit.and_then(|unit| unit.comp_dir.as_ref()?.to_string_lossy().ok().map(Cow::into_owned));
    let relative =
        directory.and_then(|directory| Some(file.strip_prefix(&directory)?.trim_start_matches('/')));
    Some(format!("{}:{line}", relative.unwrap_or(file)))
}
