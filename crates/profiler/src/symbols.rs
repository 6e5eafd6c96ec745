//! Names for addresses: from a System.map, from a vmlinux, or from the running kernel's own table ([`crate::kallsyms`]).

use std::{ops::Range, path::Path, sync::Arc};

use crate::{
    elf::{self, BuildId, Elf},
    kallsyms::{self, GuestMemory},
};

/// What is wrong with a file of symbols.
#[derive(Debug, thiserror::Error)]
pub enum SymbolError {
    /// It can't be read.
    #[error("--symbols {path}: {source}")]
    Read {
        /// As given.
        path: String,
        /// What the host says.
        source: std::io::Error,
    },
    /// It is neither.
    #[error("--symbols {path}: neither a System.map nor an ELF vmlinux with symbols ({why})")]
    Format {
        /// As given.
        path: String,
        /// Why not.
        why: String,
    },
    /// Debian's packages have a System.map of one line.
    #[error(
        "--symbols {path}: a placeholder without symbols, as Debian packages it; install the -dbg package, or leave \
         --symbols out: names are then taken from the guest's memory"
    )]
    Placeholder {
        /// As given.
        path: String,
    },
    /// It describes something else than what runs.
    #[error(
        "--symbols {path}: symbols of another kernel: {why}; leave --symbols out to take names from the guest's memory"
    )]
    OtherKernel {
        /// As given.
        path: String,
        /// What differs.
        why: String,
    },
}

/// Addresses and names, sorted.
#[derive(Clone, Debug, Default)]
pub struct Symbols {
    /// Start of each, ascending.
    entries: Vec<(u64, String)>,
    /// Data that each processor has: offsets, not addresses.
    pub per_cpu: Vec<(u64, String)>,
    /// Where they are from.
    pub source: String,
    /// The banner of the kernel that they belong to, if it is known.
    pub banner: Option<String>,
    /// What else the file says of the kernel.
    pub elf: Option<Arc<Elf>>,
    /// By how much they were moved.
    pub moved_by: u64,
}

/// Code further than this behind a symbol is not its own: gaps between sections.
const FURTHEST: u64 = 1 << 20;

impl Symbols {
    /// From unsorted entries; of several at one address the first is its name.
    pub fn new(mut entries: Vec<(u64, String)>, source: String) -> Self {
        entries.sort_by_key(|(address, _)| *address);
        entries.dedup();
        Self { entries, source, ..Self::default() }
    }

    /// Number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &str)> {
        self.entries.iter().map(|(address, name)| (*address, name.as_str()))
    }

    /// The symbol that an address belongs to, and how far behind its start it is.
    pub fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.entries.partition_point(|(start, _)| *start <= address);
        let (start, _) = self.entries.get(after.checked_sub(1)?)?;
        let first = self.entries.partition_point(|(other, _)| other < start);
        let (_, name) = &self.entries[first];
        let offset = address - start;
        (offset < FURTHEST).then_some((name, offset))
    }

    /// Where a name is; of what each processor has, how far from the beginning of its data.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        let mut all = self.entries.iter().chain(&self.per_cpu);
        all.find(|(_, known)| known == name).map(|(address, _)| *address)
    }

    /// The same, moved: for a kernel that was loaded elsewhere than it was linked for.
    pub fn moved(mut self, by: u64) -> Self {
        for (address, _) in &mut self.entries {
            *address = address.wrapping_add(by);
        }
        self.moved_by = self.moved_by.wrapping_add(by);
        self
    }

    /// Reads a System.map or a vmlinux.
    pub fn read(path: &Path) -> Result<Self, SymbolError> {
        let name = path.display().to_string();
        let bytes = std::fs::read(path).map_err(|source| SymbolError::Read { path: name.clone(), source })?;
        if bytes.starts_with(b"\x7fELF") { elf::symbols(&bytes, path) } else { Self::from_map(&bytes, name) }
    }

    fn from_map(bytes: &[u8], path: String) -> Result<Self, SymbolError> {
        if bytes.len() < 1000 && bytes.windows(20).any(|part| part.starts_with(b"The real System.map")) {
            return Err(SymbolError::Placeholder { path });
        }
        let mut entries = Vec::new();
        for (number, line) in String::from_utf8_lossy(bytes).lines().enumerate() {
            let mut fields = line.split_whitespace();
            let parsed = match (fields.next(), fields.next(), fields.next()) {
                (Some(address), Some(kind), Some(name)) if kind.len() == 1 => {
                    u64::from_str_radix(address, 16).ok().map(|address| (address, kind, name))
                }
                _ => None,
            };
            let Some((address, kind, name)) = parsed else {
                let why = format!("line {}: no `address type name`", number + 1);
                return Err(SymbolError::Format { path, why });
            };
            // Per-CPU symbols are offsets.
            if !kind.eq_ignore_ascii_case("a") && address >> 63 == 1 {
                entries.push((address, name.to_owned()));
            }
        }
        if entries.is_empty() {
            return Err(SymbolError::Format { path, why: "it names no kernel address".into() });
        }
        Ok(Self::new(entries, path))
    }

    /// The build ID is not in the guest's memory.
    pub fn not_there(&self, id: &BuildId) -> SymbolError {
        let why = format!("their build ID {id} is not in the guest's memory");
        SymbolError::OtherKernel { path: self.source.clone(), why }
    }

    /// The symbols of a file as the running kernel has them: moved to where it is. `running` is the kernel's own table, if it
    /// was found, `banner` its banner.
    pub fn fitted(self, running: Option<&Symbols>, banner: Option<&str>) -> Result<Self, SymbolError> {
        let path = self.source.clone();
        if let (Some(ours), Some(theirs)) = (&self.banner, banner)
            && ours.trim() != theirs.trim()
        {
            let why = format!("they are of `{}`, the guest is `{}`", ours.trim(), theirs.trim());
            return Err(SymbolError::OtherKernel { path, why });
        }
        let Some(running) = running else { return Ok(self) };
        let fitted = match (self.address_of("_text"), running.address_of("_text")) {
            (Some(linked), Some(loaded)) => self.moved(loaded.wrapping_sub(linked)),
            _ => self,
        };
        let theirs: std::collections::HashSet<(u64, &str)> = running.iter().collect();
        let known = fitted.iter().filter(|entry| theirs.contains(entry)).count();
        // Files may have symbols that the running table has not, and the reverse, but not at other addresses.
        if known * 2 < fitted.len().min(running.len()) {
            let why = format!("only {known} of {} names are where the guest has them", fitted.len());
            return Err(SymbolError::OtherKernel { path, why });
        }
        Ok(fitted)
    }
}

/// Names for a guest.
#[derive(Clone, Debug, Default)]
pub struct OfGuest {
    /// Of a file if one was given, else the guest's own.
    pub symbols: Arc<Symbols>,
    /// The kernel's banner.
    pub banner: Option<String>,
    /// Whose the symbols are is known: the guest's own table was there, or the build ID of the file.
    pub certain: bool,
    /// The guest's own table.
    pub own: Option<Arc<Symbols>>,
    /// Where the kernel's image is, by that table.
    pub image: Option<Range<u64>>,
    /// Without such a table: by how much the file's kernel was moved in physical memory. Its symbols are where they were linked.
    pub displaced: Option<u64>,
}

/// Looks in the guest's memory, which may have no kernel yet.
pub fn of_guest(file: Option<&Symbols>, memory: &dyn GuestMemory) -> Result<OfGuest, SymbolError> {
    let own = kallsyms::find(memory).map(Arc::new);
    let banner = kallsyms::find_banner(memory);
    let image = own.as_ref().and_then(|own| Some(own.address_of("_text")?..own.address_of("_end")?));
    let found = OfGuest { banner, certain: own.is_some(), own, image, ..OfGuest::default() };
    let Some(file) = file else {
        let symbols = found.own.clone().unwrap_or_default();
        return Ok(OfGuest { symbols, ..found });
    };
    let build_id = file.elf.as_ref().and_then(|elf| elf.build_id.as_ref()).filter(|id| id.is_loaded());
    let build_id = build_id.map(|id| (id, id.find(memory)));
    // A build ID says more than a banner does.
    let banner = found.banner.as_deref().filter(|_| !matches!(build_id, Some((_, Some(_)))));
    let fitted = file.clone().fitted(found.own.as_deref(), banner)?;
    match build_id {
        // Nothing more can be said.
        None => Ok(OfGuest { symbols: Arc::new(fitted), ..found }),
        Some((_, Some(displaced))) => {
            let displaced = found.own.is_none().then_some(displaced);
            Ok(OfGuest { symbols: Arc::new(fitted), certain: true, displaced, ..found })
        }
        Some((id, None)) if found.certain => Err(file.not_there(id)),
        // Perhaps it comes.
        Some((_, None)) => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(entries: &[(u64, &str)]) -> Symbols {
        Symbols::new(entries.iter().map(|(at, name)| (*at, (*name).to_owned())).collect(), "test".into())
    }

    const TEXT: u64 = 0xffff_ffff_8100_0000;

    #[test]
    fn an_address_belongs_to_the_symbol_before_it() {
        let symbols = table(&[(TEXT + 0x20, "b"), (TEXT, "a")]);
        assert_eq!(symbols.find(TEXT), Some(("a", 0)));
        assert_eq!(symbols.find(TEXT + 0x1f), Some(("a", 0x1f)));
        assert_eq!(symbols.find(TEXT + 0x25), Some(("b", 5)));
        assert_eq!(symbols.find(TEXT - 1), None);
        assert_eq!(symbols.find(u64::MAX), None, "too far");
    }

    fn map(text: &str) -> Result<Symbols, SymbolError> {
        Symbols::from_map(text.as_bytes(), "map".into())
    }

    #[test]
    fn system_maps() {
        let good =
            map("0000000000001000 A cpu_area\nffffffff81000000 T _text\nffffffff81000040 t f\n").unwrap();
        assert_eq!((good.len(), good.find(TEXT + 0x44)), (2, Some(("f", 4))));
        let stub = "ffffffffffffffff B The real System.map is in the linux-image-6.1.0-dbg package\n";
        assert!(matches!(map(stub), Err(SymbolError::Placeholder { .. })));
        for bad in ["hello\n", "", "xyz T name\n", "ffffffff81000000 T\n"] {
            assert!(matches!(map(bad), Err(SymbolError::Format { .. })), "{bad:?}");
        }
    }

    #[test]
    fn symbols_of_another_kernel_are_refused() {
        let running =
            table(&[(TEXT, "_text"), (TEXT + 0x100, "f"), (TEXT + 0x200, "g"), (TEXT + 0x300, "h")]);
        let other = table(&[(TEXT, "_text"), (TEXT + 0x180, "f"), (TEXT + 0x280, "g"), (TEXT + 0x380, "h")]);
        let error = other.fitted(Some(&running), None).unwrap_err();
        assert!(error.to_string().contains("another kernel"), "{error}");
        let mut file = table(&[(0x1000, "_text")]);
        file.banner = Some("Linux version 5.10 …".into());
        assert!(file.clone().fitted(None, Some("Linux version 6.1 …")).is_err());
        assert!(file.fitted(None, Some("Linux version 5.10 …\n")).is_ok());
    }

    #[test]
    fn a_kernel_that_was_moved_is_followed() {
        let running = table(&[(TEXT + 0x4000_0000, "_text"), (TEXT + 0x4000_0100, "f")]);
        let fitted = table(&[(TEXT, "_text"), (TEXT + 0x100, "f")]).fitted(Some(&running), None).unwrap();
        assert_eq!(fitted.find(TEXT + 0x4000_0102), Some(("f", 2)));
    }
}
