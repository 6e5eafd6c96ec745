//! Functions of user code: the symbol tables of mapped files, which are read as far as the guest's page cache has them.
//!
//! A file's pages hang in an XArray (include/linux/xarray.h) at its inode; what is not there reads as zeros, and a symbol table
//! of zeros has no names. All of a guest's files that are in its initramfs are there as a whole.

use std::{collections::HashMap, sync::Arc};

use object::{Object, ObjectSegment, ObjectSymbol, SymbolKind};

use super::{
    btf::Btf,
    space::{Space, printable},
};
use crate::symbols::Symbols;

const PAGE: usize = 4096;
/// Files that are larger are not looked into.
const MOST: u64 = 64 << 20;
/// Functions that are remembered, of all files; from then on, further files have none.
const MOST_FUNCTIONS: usize = 1 << 20;
/// Bytes of names that are looked through in a file: those of a damaged one might all be as long as the table.
const MOST_NAMES: usize = 32 << 20;
/// Letters of a name.
const NAME: usize = 255;
/// Segments that are looked at.
const MOST_SEGMENTS: usize = 32;
/// Levels of an XArray: enough for 2^64 pages.
const LEVELS: usize = 11;
/// Pages of a folio.
const MOST_FOLIO: u64 = 1 << 18;
/// Where the array of `struct page` begins unless the kernel has moved it (Documentation/arch/x86/x86_64/mm.rst).
const VMEMMAP: u64 = 0xffff_ea00_0000_0000;

/// Where everything is in a kernel's structures.
pub struct Files {
    inode: u64,
    number: u64,
    size: u64,
    mapping: u64,
    head: u64,
    shift: u64,
    slots: u64,
    slot_count: u64,
    index: u64,
    page_size: u64,
    /// Address of the variable that has it.
    vmemmap: Option<u64>,
    known: HashMap<Identity, Arc<Functions>>,
    count: usize,
}

/// What identifies a file, as long as it is not written to, which it can't be while it is run.
#[derive(PartialEq, Eq, Hash)]
struct Identity {
    inode: u64,
    number: u64,
    size: u64,
}

/// Functions of a file, by their places in it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Functions {
    /// Start, end and name; sorted.
    all: Vec<(u64, u64, String)>,
}

impl Files {
    /// `None` if something is not there.
    pub fn find(btf: &Btf, symbols: &Symbols) -> Option<Self> {
        let slots = btf.field("xa_node", "slots")?;
        Some(Self {
            inode: btf.offset("file", "f_inode")?,
            number: btf.offset("inode", "i_ino")?,
            size: btf.offset("inode", "i_size")?,
            mapping: btf.offset("inode", "i_mapping")?,
            head: btf.offset("address_space", "i_pages.xa_head")?,
            shift: btf.offset("xa_node", "shift")?,
            slots: slots.offset,
            slot_count: btf.elements(slots).filter(|count| count.is_power_of_two())?,
            index: btf.offset("page", "index")?,
            page_size: btf.size("page").filter(|&size| size != 0)?,
            vmemmap: symbols.address_of("vmemmap_base"),
            known: HashMap::new(),
            count: 0,
        })
    }

    /// Functions of a `struct file`.
    pub fn functions(&mut self, space: &Space<'_>, file: u64) -> Option<Arc<Functions>> {
        let inode = space.long(file.wrapping_add(self.inode))?;
        let number = space.long(inode.wrapping_add(self.number))?;
        let size = space.long(inode.wrapping_add(self.size))?;
        let identity = Identity { inode, number, size };
        if let Some(known) = self.known.get(&identity) {
            return Some(Arc::clone(known));
        }
        let functions = match size <= MOST && self.count < MOST_FUNCTIONS {
            true => Functions::of(&self.contents(space, inode, size)?),
            false => return None,
        };
        // One for the file itself, as there may be many without any.
        self.count += 1 + functions.all.len();
        let functions = Arc::new(functions);
        self.known.insert(identity, Arc::clone(&functions));
        Some(functions)
    }

    fn contents(&self, space: &Space<'_>, inode: u64, size: u64) -> Option<Vec<u8>> {
        let mapping = space.long(inode.wrapping_add(self.mapping))?;
        let head = space.long(mapping.wrapping_add(self.head))?;
        let vmemmap = self.vmemmap.map_or(Some(VMEMMAP), |variable| space.long(variable))?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        for (index, page) in bytes.chunks_mut(PAGE).enumerate() {
            let physical = self.page(space, head, index as u64).and_then(|page| {
                let first = space.long(page.wrapping_add(self.index))?;
                let within = (index as u64).checked_sub(first).filter(|&within| within < MOST_FOLIO)?;
                let number = page.checked_sub(vmemmap)? / self.page_size;
                number.checked_add(within)?.checked_mul(PAGE as u64)
            });
            // One that is not there stays zero.
            if let Some(physical) = physical
                && !space.physical(physical, page)
            {
                page.fill(0);
            }
            if index == 0 && !page.starts_with(b"\x7fELF") {
                return Some(Vec::new());
            }
        }
        Some(bytes)
    }

    /// The `struct page` that an XArray has at an index.
    fn page(&self, space: &Space<'_>, head: u64, index: u64) -> Option<u64> {
        let mut entry = head;
        let mut whole = true;
        for _ in 0..LEVELS {
            // Internal entries end in binary 10; the small ones are no pointers.
            if entry & 3 != 2 || entry <= 4096 {
                break;
            }
            let node = entry - 2;
            let mut shift = [0];
            space.read(node.wrapping_add(self.shift), &mut shift)?;
            let places = index.checked_shr(shift[0].into())?;
            if whole && places >= self.slot_count {
                return None;
            }
            whole = false;
            let slot = |n: u64| space.long(node.wrapping_add(self.slots + 8 * n));
            entry = slot(places & (self.slot_count - 1))?;
            // A sibling: the same as in another slot.
            if entry & 3 == 2 && entry >> 2 < self.slot_count {
                entry = slot(entry >> 2)?;
            }
        }
        // Without nodes it is all of the file that there is, a folio.
        (entry & 3 == 0 && entry >> 63 == 1).then_some(entry)
    }
}

impl Functions {
    /// From an ELF file; none if it isn't one.
    pub fn of(bytes: &[u8]) -> Self {
        let Ok(file) = object::File::parse(bytes) else { return Self::default() };
        let segments =
            file.segments().take(MOST_SEGMENTS).map(|segment| (segment.address(), segment.file_range()));
        let segments: Vec<_> = segments.collect();
        let place = |address: u64| {
            segments.iter().find_map(|&(start, (offset, size))| {
                let within = address.checked_sub(start).filter(|&within| within < size)?;
                offset.checked_add(within)
            })
        };
        let (mut all, mut read) = (Vec::new(), 0);
        for symbol in file.symbols().chain(file.dynamic_symbols()) {
            if symbol.kind() != SymbolKind::Text || symbol.is_undefined() || symbol.size() == 0 {
                continue;
            }
            let Some(start) = place(symbol.address()) else { continue };
            let Ok(name) = symbol.name_bytes() else { break };
            read += name.len() + 1;
            if read > MOST_NAMES || all.len() >= MOST_FUNCTIONS {
                break;
            }
            if !name.is_empty() {
                let name = printable(&name[..name.len().min(NAME)]);
                all.push((start, start.saturating_add(symbol.size()), name));
            }
        }
        all.sort();
        all.dedup_by_key(|(start, ..)| *start);
        Self { all }
    }

    /// The function at a place in the file, and how far behind its start that is.
    pub fn at(&self, offset: u64) -> Option<(&str, u64)> {
        let after = self.all.partition_point(|(start, ..)| *start <= offset);
        let (start, end, name) = self.all.get(after.checked_sub(1)?)?;
        (offset < *end).then(|| (name.as_str(), offset - start))
    }
}
