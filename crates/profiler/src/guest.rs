//! Whom the addresses of a Linux guest belong to: kernel, module, process and file, looked up in its memory.
//!
//! [`Names`] finds the kernel's symbols ([`crate::kallsyms`]), by them the layouts of its structures ([`btf`]), and by these the
//! loaded [`modules`], the [`tasks`] and their [`files`]. Processes die and modules are unloaded, so the engine asks for a [`Place`] when a block runs
//! for the first time: on the only processor, which is just about to run it.
//!
//! Nothing that is read is trusted: every walk is bounded, and what leads nowhere is a name less.

mod btf;
mod files;
mod modules;
mod space;
mod tasks;

use std::{collections::HashMap, ops::Range, sync::Arc};

use btf::Btf;
use files::{Files, Functions};
use modules::{Layout, Modules};
use space::Space;
use tasks::Tasks;

use crate::{
    kallsyms::GuestMemory,
    model::{FilePlace, Process},
    symbols::{self, OfGuest, Symbols},
};

/// A block that is about to run for the first time.
#[derive(Clone, Copy, Debug)]
pub struct Sight {
    /// Its linear address.
    pub rip: u64,
    /// Its guest-physical address.
    pub physical: u64,
    /// Ring 3.
    pub user: bool,
    /// Page tables in force.
    pub cr3: u64,
    /// Where the kernel keeps this processor's own data, as far as registers tell.
    pub per_cpu: u64,
}

/// Whose a block is, besides what symbols say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// A symbol in a module, or in a file.
    pub symbol: Option<String>,
    /// Who runs.
    pub process: Option<Process>,
    /// What is mapped there.
    pub file: Option<FilePlace>,
}

/// Who wants to see blocks when they run for the first time.
pub trait Observer: Send + Sync {
    /// Called before the block runs; the guest stands still.
    fn place(&self, sight: &Sight) -> Option<Place>;

    /// Called where a sample was taken, with the addresses of the call stack, innermost first.
    fn callers(&self, sight: &Sight, addresses: &[u64]) -> Callers;
}

/// What can be said of a call stack only when it is seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Callers {
    /// Who runs.
    pub process: Option<Arc<str>>,
    /// Names for user code, by function, else by file and page; as many as there are addresses, or fewer.
    pub frames: Vec<Option<Arc<str>>>,
}

/// No kernel's is larger.
const MOST_BTF: u64 = 64 << 20;
/// Mappings that are remembered.
const MOST_MAPPINGS: usize = 1 << 16;
/// Where modules can be (arch/x86/include/asm/pgtable_64_types.h), and more.
const MODULES: u64 = 0xffff_ffff_8000_0000;

/// What is known of a kernel's structures.
enum Structures {
    /// Not looked for yet.
    Unknown,
    /// They can't be known.
    Missing(&'static str),
    /// Here they are.
    Known(Box<Known>),
}

struct Known {
    tasks: Option<Tasks>,
    files: Option<Files>,
    modules: Option<Modules>,
}

/// Names in a guest.
pub struct Names<M> {
    memory: M,
    file: Option<Arc<Symbols>>,
    found: OfGuest,
    sought: bool,
    complaint: Option<String>,
    /// The same, until somebody was told.
    unsaid: Option<String>,
    structures: Structures,
    mappings: Mappings,
}

impl<M: GuestMemory> Names<M> {
    /// Of a guest whose kernel may not be there yet; with symbols from a file, if any.
    pub fn new(memory: M, file: Option<Arc<Symbols>>) -> Self {
        Self {
            memory,
            file,
            found: OfGuest::default(),
            sought: false,
            complaint: None,
            unsaid: None,
            structures: Structures::Unknown,
            mappings: Mappings::default(),
        }
    }

    /// What was found last.
    pub fn found(&self) -> &OfGuest {
        &self.found
    }

    /// The memory that is looked at.
    pub fn memory(&self) -> &M {
        &self.memory
    }

    /// Looks for symbols until they are found. Returns what is wrong with those of the file, once.
    pub fn seek(&mut self) -> Option<String> {
        self.look();
        self.unsaid.take()
    }

    fn look(&mut self) {
        if self.found.certain {
            return;
        }
        match symbols::of_guest(self.file.as_deref(), &self.memory) {
            Ok(found) => self.found = found,
            Err(error) => {
                self.complain(error.to_string());
                // The guest's own are right in any case.
                self.file = None;
                self.look();
            }
        }
    }

    fn complain(&mut self, text: String) {
        self.complaint = Some(text.clone());
        self.unsaid = Some(text);
    }

    /// The guest has ended: whether a file's kernel was ever there is known now.
    pub fn last_look(&mut self) -> Option<String> {
        self.look();
        let file = self.file.as_ref().filter(|_| !self.found.certain);
        let elf = file.and_then(|file| Some((file, file.elf.as_ref()?.build_id.as_ref()?)));
        if let Some((file, id)) = elf.filter(|(_, id)| id.is_loaded()) {
            let text = file.not_there(id).to_string();
            self.complain(text);
        }
        self.unsaid.take()
    }

    /// The function of a module that an address was in, if blocks of that module were named.
    pub fn module_function(&self, address: u64) -> Option<String> {
        let Structures::Known(known) = &self.structures else { return None };
        known.modules.as_ref()?.function(address)
    }

    /// What the reader of a profile should know about the names.
    pub fn note(&self) -> Option<String> {
        let unsure = !self.found.certain && !self.found.symbols.is_empty();
        let doubt = "the guest's own symbols were not found, so nobody knows whether these are of its kernel";
        self.complaint.clone().or_else(|| unsure.then(|| doubt.to_owned()))
    }

    /// How modules and processes are named.
    pub fn structures(&self) -> String {
        match &self.structures {
            Structures::Unknown if self.sought && self.found.own.is_none() => {
                Self::nothing("the kernel's own symbol table (CONFIG_KALLSYMS) was not found")
            }
            Structures::Unknown => String::new(),
            Structures::Missing(why) => Self::nothing(why),
            Structures::Known(known) => {
                let tasks = match &known.tasks {
                    Some(tasks) if tasks.has_maps() => "processes and files",
                    Some(_) => "processes (no files: the kernel is older than 6.1)",
                    None => "no processes",
                };
                let modules = if known.modules.is_some() { "modules" } else { "no modules" };
                format!("{modules}, {tasks} by the kernel's BTF")
            }
        }
    }

    fn nothing(why: &str) -> String {
        format!("none: {why}, so modules and processes have no names")
    }

    /// See [`Observer::place`].
    pub fn place(&mut self, sight: &Sight) -> Option<Place> {
        if !sight.user && (sight.rip < MODULES || self.is_image(sight.rip)) {
            return None;
        }
        if !self.found.certain && !self.sought && sight.user {
            // A kernel that runs user code is there as a whole, and if it is not found now, then a look each second is enough.
            self.sought = true;
            self.look();
        }
        if matches!(self.structures, Structures::Unknown) {
            let (own, image) = (self.found.own.as_ref()?, self.found.image.as_ref()?);
            self.structures = structures(own, &kernel_space(&self.memory, image, sight.cr3));
        }
        let Structures::Known(known) = &mut self.structures else { return None };
        let space = kernel_space(&self.memory, self.found.image.as_ref()?, sight.cr3);
        if !sight.user {
            let symbol = known.modules.as_mut()?.name(&space, sight.rip)?;
            return Some(Place { symbol: Some(symbol), ..Place::default() });
        }
        let (process, map) = known.tasks.as_ref()?.current(&space, sight.per_cpu)?;
        let page = sight.rip & !0xfff;
        let mapping = map.and_then(|map| self.mappings.at(known, &space, map, page, sight.physical));
        let Some(mapping) = mapping else {
            return Some(Place { process: Some(process), ..Place::default() });
        };
        let (file, function) = mapping.at(sight.rip - page);
        let symbol = function.map(|(name, offset)| match offset {
            0 => format!("{name} [{}]", file.name()),
            _ => format!("{name}+{offset:#x} [{}]", file.name()),
        });
        Some(Place { symbol, process: Some(process), file: Some(file) })
    }

    /// See [`Observer::callers`].
    pub fn callers(&mut self, sight: &Sight, addresses: &[u64]) -> Callers {
        self.try_callers(sight, addresses).unwrap_or_default()
    }

    fn try_callers(&mut self, sight: &Sight, addresses: &[u64]) -> Option<Callers> {
        let Structures::Known(known) = &mut self.structures else { return None };
        let kernel = kernel_space(&self.memory, self.found.image.as_ref()?, sight.cr3);
        let (process, map) = known.tasks.as_ref()?.current(&kernel, sight.per_cpu)?;
        let own = Space::new(&self.memory, sight.cr3);
        let mut name = |address: u64| -> Option<Arc<str>> {
            if address >> 63 == 1 {
                return None;
            }
            let page = address & !0xfff;
            let mapping = self.mappings.at(known, &kernel, map?, page, own.translate(page)?)?;
            Some(match mapping.at(address - page) {
                (file, Some((name, _))) => format!("{name} [{}]", file.name()).into(),
                (file, None) => format!("{}+{:#x}", file.name(), file.offset & !0xfff).into(),
            })
        };
        let frames = addresses.iter().map(|&address| name(address)).collect();
        Some(Callers { process: Some(process.name.into()), frames })
    }

    /// Whether an address is in the kernel's own image, whose symbols are in the tables.
    fn is_image(&self, rip: u64) -> bool {
        self.found.image.as_ref().is_some_and(|image| image.contains(&rip))
    }
}

/// The address space in which the kernel's structures are.
fn kernel_space<'a>(memory: &'a dyn GuestMemory, image: &Range<u64>, cr3: u64) -> Space<'a> {
    let space = Space::new(memory, cr3);
    if space.translate(image.start).is_some() { space } else { space.of_kernel() }
}

/// What was mapped, by memory map, page and physical page: the same contents at the same place are of the same file.
#[derive(Default)]
struct Mappings(HashMap<(u64, u64, u64), Option<Mapping>>);

/// A page of a file.
#[derive(Clone)]
struct Mapping {
    place: FilePlace,
    functions: Option<Arc<Functions>>,
}

impl Mappings {
    /// What user code is of.
    fn at(
        &mut self,
        known: &mut Known,
        space: &Space<'_>,
        map: u64,
        page: u64,
        physical: u64,
    ) -> Option<Mapping> {
        if self.0.len() >= MOST_MAPPINGS {
            self.0.clear();
        }
        let Known { tasks, files, .. } = known;
        let look = || {
            let (place, file) = tasks.as_ref()?.mapped(space, map, page)?;
            let functions = file.zip(files.as_mut()).and_then(|(file, files)| files.functions(space, file));
            Some(Mapping { place, functions })
        };
        self.0.entry((map, page, physical >> 12)).or_insert_with(look).clone()
    }
}

impl Mapping {
    /// The file and the function that an address in the page is of.
    fn at(&self, within: u64) -> (FilePlace, Option<(&str, u64)>) {
        let offset = self.place.offset.wrapping_add(within);
        let function = self.functions.as_ref().and_then(|functions| functions.at(offset));
        (FilePlace { path: self.place.path.clone(), offset }, function)
    }
}

fn structures(symbols: &Symbols, space: &Space<'_>) -> Structures {
    let (Some(start), Some(end)) = (symbols.address_of("__start_BTF"), symbols.address_of("__stop_BTF"))
    else {
        return Structures::Missing("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)");
    };
    let size = end.wrapping_sub(start);
    if size == 0 || size > MOST_BTF {
        return Structures::Missing("the kernel has no BTF (CONFIG_DEBUG_INFO_BTF)");
    }
    let mut bytes = vec![0; size as usize];
    let Some(btf) = space.read(start, &mut bytes).and_then(|()| Btf::new(&bytes)) else {
        return Structures::Missing("the kernel's BTF can't be read");
    };
    let modules = Layout::find(&btf, symbols).map(Modules::new);
    Structures::Known(Box::new(Known {
        tasks: Tasks::find(&btf, symbols),
        files: Files::find(&btf, symbols),
        modules,
    }))
}

#[cfg(test)]
mod tests;
