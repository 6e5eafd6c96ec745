//! Names in loadable modules: the kernel's list of them, and the symbol table that each has with it (kernel/module/kallsyms.c).
//!
//! A module's own start-up code, and the names in it, are gone once it has started. So names are looked up when code runs for
//! the first time.

use std::ops::Range;

use super::{btf::Btf, space::Space};
use crate::symbols::Symbols;

/// Modules that are looked at.
const MOST: usize = 2048;
/// Letters of a symbol.
const NAME: usize = 255;
/// Symbols that are remembered, of all modules.
const MOST_REMEMBERED: usize = 1 << 20;
/// Symbols of a module that are looked at, 24 bytes each.
const MOST_SYMBOLS: u32 = 1 << 16;
/// Bytes behind a symbol that are still its own.
const FURTHEST: u64 = 1 << 20;
/// `Elf64_Sym`.
const SYMBOL: usize = 24;

/// Where everything is in a kernel's structures.
pub struct Layout {
    /// Address of the list's head.
    list: u64,
    next: u64,
    name: u64,
    name_size: usize,
    /// Base and size of each part of a module.
    parts: Vec<(u64, u64)>,
    kallsyms: u64,
    table: u64,
    count: u64,
    strings: u64,
}

impl Layout {
    /// `None` if something is not there: such a kernel can't load modules.
    pub fn find(btf: &Btf, symbols: &Symbols) -> Option<Self> {
        let name = btf.field("module", "name")?;
        let part = |part: &str| {
            let base = btf.offset("module", &format!("{part}.base"))?;
            Some((base, btf.offset("module", &format!("{part}.size"))?))
        };
        let parts = match btf.field("module", "mem") {
            // Since 6.4.
            Some(field) => {
                let (base, size) =
                    (btf.offset("module_memory", "base")?, btf.offset("module_memory", "size")?);
                let step = btf.size("module_memory")?;
                let element = |n| field.offset + n * step;
                (0..btf.elements(field)?.min(16)).map(|n| (element(n) + base, element(n) + size)).collect()
            }
            None => vec![part("core_layout")?, part("init_layout")?],
        };
        Some(Self {
            list: symbols.address_of("modules")?,
            next: btf.offset("module", "list.next")?,
            name: name.offset,
            name_size: btf.elements(name)?.min(128) as usize,
            parts,
            kallsyms: btf.offset("module", "kallsyms")?,
            table: btf.offset("mod_kallsyms", "symtab")?,
            count: btf.offset("mod_kallsyms", "num_symtab")?,
            strings: btf.offset("mod_kallsyms", "strtab")?,
        })
    }

    /// The module that an address is in.
    fn module(&self, space: &Space<'_>, address: u64) -> Option<u64> {
        let mut at = space.long(self.list)?;
        for _ in 0..MOST {
            if at == self.list {
                break;
            }
            let module = at.wrapping_sub(self.next);
            if self.holds(space, module, address) {
                return Some(module);
            }
            at = space.long(at)?;
        }
        None
    }

    fn holds(&self, space: &Space<'_>, module: u64, address: u64) -> bool {
        self.parts(space, module).any(|part| part.contains(&address))
    }

    fn parts(&self, space: &Space<'_>, module: u64) -> impl Iterator<Item = Range<u64>> {
        self.parts.iter().filter_map(move |&(base, size)| {
            let base = space.long(module.wrapping_add(base)).filter(|&base| base != 0)?;
            Some(base..base.saturating_add(space.word(module.wrapping_add(size))?.into()))
        })
    }
}

/// Finds names, and remembers all modules that it has found some in.
pub struct Modules {
    layout: Layout,
    known: Vec<Table>,
    /// Symbols in these, and tables.
    count: usize,
    /// Index of the one that was needed last.
    last: usize,
}

/// What identifies a module's table: a module that has taken another's place differs in something.
#[derive(PartialEq, Eq)]
struct Identity {
    module: u64,
    name: String,
    table: u64,
    strings: u64,
    count: u32,
}

struct Table {
    of: Identity,
    /// Where its parts were.
    parts: Vec<Range<u64>>,
    /// Sorted by address.
    symbols: Vec<(u64, String)>,
}

impl Modules {
    /// None is known yet.
    pub fn new(layout: Layout) -> Self {
        Self { layout, known: Vec::new(), count: 0, last: 0 }
    }

    /// `symbol+0x12 [module]`; `[module]` if that has no symbol there.
    pub fn name(&mut self, space: &Space<'_>, address: u64) -> Option<String> {
        let last = self.known.get(self.last).map(|last| last.of.module);
        let module = match last.filter(|&module| self.layout.holds(space, module, address)) {
            Some(module) => module,
            None => self.layout.module(space, address)?,
        };
        let of = self.identity(space, module)?;
        self.last = match self.known.iter().rposition(|table| table.of == of) {
            Some(known) => known,
            None => {
                let symbols = symbols(space, &of);
                self.count += 1 + symbols.len();
                if self.count > MOST_REMEMBERED {
                    self.known.clear();
                    self.count = 1 + symbols.len();
                }
                let parts = self.layout.parts(space, module).collect();
                self.known.push(Table { symbols, of, parts });
                self.known.len() - 1
            }
        };
        let table = &self.known[self.last];
        Some(match table.find(address) {
            None => format!("[{}]", table.of.name),
            Some((name, 0)) => format!("{name} [{}]", table.of.name),
            Some((name, offset)) => format!("{name}+{offset:#x} [{}]", table.of.name),
        })
    }

    /// The function that an address was in, of the modules that names were asked for. Of two that were there, the later.
    pub fn function(&self, address: u64) -> Option<String> {
        let is_in = |table: &&Table| table.parts.iter().any(|part| part.contains(&address));
        let table = self.known.iter().rev().find(is_in)?;
        Some(match table.find(address) {
            Some((name, _)) => format!("{name} [{}]", table.of.name),
            None => format!("[{}]", table.of.name),
        })
    }

    fn identity(&self, space: &Space<'_>, module: u64) -> Option<Identity> {
        let layout = &self.layout;
        let kallsyms = space.long(module.wrapping_add(layout.kallsyms))?;
        Some(Identity {
            module,
            name: space.text(module.wrapping_add(layout.name), layout.name_size)?,
            table: space.long(kallsyms.wrapping_add(layout.table)).unwrap_or(0),
            strings: space.long(kallsyms.wrapping_add(layout.strings)).unwrap_or(0),
            count: space.word(kallsyms.wrapping_add(layout.count)).unwrap_or(0),
        })
    }
}

impl Table {
    /// The symbol before an address, and how far before.
    fn find(&self, address: u64) -> Option<(&str, u64)> {
        let after = self.symbols.partition_point(|(start, _)| *start <= address);
        let start = self.symbols[after.checked_sub(1)?].0;
        let first = self.symbols.partition_point(|(other, _)| *other < start);
        // Further away is the module's other part.
        (address - start < FURTHEST).then(|| (self.symbols[first].1.as_str(), address - start))
    }
}

/// Those that are defined and have a name, as the kernel itself chooses them.
fn symbols(space: &Space<'_>, of: &Identity) -> Vec<(u64, String)> {
    let mut bytes = vec![0; of.count.min(MOST_SYMBOLS) as usize * SYMBOL];
    if space.read(of.table, &mut bytes).is_none() {
        return Vec::new();
    }
    let symbol = |symbol: &[u8; SYMBOL]| {
        let [a, b, c, d, _, _, e, f, value @ .., _, _, _, _, _, _, _, _] = *symbol;
        let (name, section) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]));
        if name == 0 || section == 0 {
            return None;
        }
        let name = space.text(of.strings.wrapping_add(name.into()), NAME)?;
        (!name.is_empty()).then_some((u64::from_le_bytes(value), name))
    };
    let mut symbols: Vec<_> = bytes.as_chunks::<SYMBOL>().0.iter().filter_map(symbol).collect();
    // Of several at one address the first is its name, as in the kernel.
    symbols.sort_by_key(|(address, _)| *address);
    symbols
}
