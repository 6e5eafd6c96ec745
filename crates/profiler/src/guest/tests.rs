//! A made-up kernel in made-up memory, whole and damaged.

use std::sync::Arc;

use super::*;

/// Linear addresses of the kernel's image: physical ones and this.
const IMAGE: u64 = 0xffff_ffff_8000_0000;
/// The same for all of memory.
const DIRECT: u64 = 0xffff_8880_0000_0000;
const CR3: u64 = 0x4000;
const SIZE: usize = 1 << 18;

#[derive(Clone)]
struct Bytes(Vec<u8>);

impl GuestMemory for Bytes {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        let part =
            usize::try_from(address).ok().and_then(|from| self.0.get(from..from.checked_add(bytes.len())?));
        part.is_some_and(|part| {
            bytes.copy_from_slice(part);
            true
        })
    }
}

impl Bytes {
    fn put(&mut self, at: u64, bytes: &[u8]) {
        self.0[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn long(&mut self, at: u64, value: u64) {
        self.put(at, &value.to_le_bytes());
    }
}

/// Types being written down, as `pahole -J` does it.
#[derive(Default)]
struct Types {
    types: Vec<u8>,
    strings: Vec<u8>,
    count: u32,
}

impl Types {
    fn new() -> Self {
        let mut types = Self { strings: vec![0], ..Self::default() };
        // 1 is an integer, which stands for everything that is not looked into.
        types.add("long", 1 << 24, 8, &[64]);
        types
    }

    fn name(&mut self, name: &str) -> u32 {
        if name.is_empty() {
            return 0;
        }
        let at = self.strings.len() as u32;
        self.strings.extend(name.bytes().chain([0]));
        at
    }

    fn add(&mut self, name: &str, info: u32, size: u32, rest: &[u32]) -> u32 {
        let name = self.name(name);
        for word in [name, info, size].iter().chain(rest) {
            self.types.extend(word.to_le_bytes());
        }
        self.count += 1;
        self.count
    }

    fn array(&mut self, elements: u32) -> u32 {
        self.add("", 3 << 24, 0, &[1, 1, elements])
    }

    /// Members with their offsets in bytes and their types.
    fn structure(&mut self, name: &str, size: u32, members: &[(&str, u32, u32)]) -> u32 {
        let rest: Vec<u32> = members
            .iter()
            .flat_map(|&(member, offset, kind)| [self.name(member), kind, 8 * offset])
            .collect();
        self.add(name, 4 << 24 | members.len() as u32, size, &rest)
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0x9f, 0xeb, 1, 0];
        let (types, strings) = (self.types.len() as u32, self.strings.len() as u32);
        for word in [24, 0, types, types, strings] {
            bytes.extend(word.to_le_bytes());
        }
        bytes.extend(&self.types);
        bytes.extend(&self.strings);
        bytes
    }
}

/// The layouts of a kernel like 6.1, or with the parts of modules in an array as since 6.4.
fn types(new_modules: bool) -> Types {
    let mut types = Types::new();
    let list = types.structure("list_head", 16, &[("next", 0, 1), ("prev", 8, 1)]);
    let (letters, name) = (types.array(16), types.array(56));
    types.structure("task_struct", 64, &[("mm", 8, 1), ("tgid", 16, 1), ("comm", 24, letters)]);
    let tree = types.structure("maple_tree", 16, &[("ma_root", 8, 1)]);
    let vdso = types.structure("", 16, &[("vdso", 8, 1)]);
    let context = types.add("mm_context_t", 8 << 24, vdso, &[]);
    let inside = types.structure("", 64, &[("mm_mt", 0, tree), ("context", 16, context)]);
    types.structure("mm_struct", 64, &[("", 0, inside)]);
    let (few, many) = (types.array(3), types.array(4));
    types.structure("maple_range_64", 64, &[("pivot", 8, few), ("slot", 32, many)]);
    types.structure("maple_arange_64", 64, &[("pivot", 8, few), ("slot", 32, many)]);
    let area = [("vm_start", 0, 1), ("vm_end", 8, 1), ("vm_pgoff", 16, 1), ("vm_file", 24, 1)];
    types.structure("vm_area_struct", 32, &area);
    let path = types.structure("path", 16, &[("mnt", 0, 1), ("dentry", 8, 1)]);
    types.structure("file", 32, &[("f_inode", 0, 1), ("f_path", 16, path)]);
    types.structure("inode", 24, &[("i_mapping", 0, 1), ("i_ino", 8, 1), ("i_size", 16, 1)]);
    let pages = types.structure("xarray", 8, &[("xa_head", 0, 1)]);
    types.structure("address_space", 8, &[("i_pages", 0, pages)]);
    let slots = types.array(64);
    types.structure("xa_node", 520, &[("shift", 0, 1), ("slots", 8, slots)]);
    types.structure("page", 16, &[("index", 8, 1)]);
    let text = types.structure("qstr", 16, &[("len", 4, 1), ("name", 8, 1)]);
    types.structure("dentry", 32, &[("d_parent", 0, 1), ("d_name", 8, text)]);
    let mount = types.structure("vfsmount", 8, &[("mnt_root", 0, 1)]);
    types.structure("mount", 32, &[("mnt_parent", 0, 1), ("mnt_mountpoint", 8, 1), ("mnt", 16, mount)]);
    let kallsyms =
        types.structure("mod_kallsyms", 24, &[("symtab", 0, 1), ("num_symtab", 8, 1), ("strtab", 16, 1)]);
    assert!(kallsyms > 0);
    let common = [("list", 8, list), ("name", 24, name), ("kallsyms", 80, 1)];
    if new_modules {
        types.structure("module_memory", 16, &[("base", 0, 1), ("size", 8, 1)]);
        let parts = types.array(2);
        types.structure("module", 128, &[common[0], common[1], common[2], ("mem", 88, parts)]);
    } else {
        let part = types.structure("module_layout", 16, &[("base", 0, 1), ("size", 8, 1)]);
        let (core, init) = (("core_layout", 88, part), ("init_layout", 104, part));
        types.structure("module", 128, &[common[0], common[1], common[2], core, init]);
    }
    types
}

const BTF: u64 = 0x1_0000;
const PER_CPU: u64 = 0x8000;
const CURRENT: u64 = 0x40;
const TASK: u64 = 0x8100;
const MAP: u64 = 0x8200;
const ROOT: u64 = 0x8300;
const LEAF: u64 = 0x8400;
const AREA: u64 = 0x8500;
const VDSO_AREA: u64 = 0x8540;
const FILE: u64 = 0x8600;
const MODULES: u64 = 0x9000;
const MODULE: [u64; 2] = [0x9100, 0x9200];
const INODE: u64 = 0x9300;
const VMEMMAP_BASE: u64 = 0x9400;
const NODE: u64 = 0xd000;
/// The array of `struct page`, and the one page that is in memory of the file.
const PAGES: u64 = 0xc000;
const CONTENTS: u64 = 0xe000;
const CODE: u64 = 0xffff_ffff_c000_0000;

/// An ELF file's first page: code from 0x5000 in the file at 0x401000, and a function in it from 0x401200 on.
fn elf() -> Vec<u8> {
    let mut bytes = vec![0; 0x400];
    let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
    put(0, b"\x7fELF\x02\x01\x01");
    put(16, &[2, 0, 62, 0, 1]);
    // Program headers, section headers.
    for (at, value) in [(32, 64u64), (40, 128)] {
        put(at, &value.to_le_bytes());
    }
    put(52, &[64, 0, 56, 0, 1, 0, 64, 0, 4, 0, 3]);
    put(64, &[1, 0, 0, 0, 5]);
    for (n, value) in [0x5000u64, 0x40_1000, 0x40_1000, 0x2000, 0x2000].into_iter().enumerate() {
        put(72 + 8 * n, &value.to_le_bytes());
    }
    // .symtab, .strtab, .shstrtab: name, type, offset, size, link, entry size.
    for (n, (name, kind, offset, size, link, entry)) in
        [(1u32, 2u32, 0x200u64, 72u64, 2u32, 24u64), (9, 3, 0x300, 16, 0, 0), (17, 3, 0x320, 27, 0, 0)]
            .into_iter()
            .enumerate()
    {
        let at = 192 + 64 * n;
        put(at, &name.to_le_bytes());
        put(at + 4, &kind.to_le_bytes());
        put(at + 24, &offset.to_le_bytes());
        put(at + 32, &size.to_le_bytes());
        put(at + 40, &link.to_le_bytes());
        put(at + 56, &entry.to_le_bytes());
    }
    // A function, and an object that begins later.
    for (n, (name, info, start, size)) in
        [(1u32, 0x12u8, 0x40_1200u64, 0x80u64), (7, 0x11, 0x40_1220, 8)].into_iter().enumerate()
    {
        let at = 0x200 + 24 * (n + 1);
        put(at, &name.to_le_bytes());
        put(at + 4, &[info, 0, 1, 0]);
        put(at + 8, &start.to_le_bytes());
        put(at + 16, &size.to_le_bytes());
    }
    put(0x300, b"\0steps\0table\0");
    put(0x320, b"\0.symtab\0.strtab\0.shstrtab\0");
    bytes
}

/// A process `sh` with `/mnt/bin/tool` at 0x401000, and modules `first` and `second`.
fn kernel(new_modules: bool) -> (Bytes, OfGuest) {
    let mut memory = Bytes(vec![0; SIZE]);
    for (entry, table) in [(0, 0x6000), (273, 0x2000), (511, 0x3000)] {
        memory.long(CR3 + 8 * entry, table | 3);
    }
    // Large pages of 1 GiB from physical 0.
    memory.long(0x6000, 0x83);
    memory.long(0x2000, 0x83);
    memory.long(0x3000 + 8 * 510, 0x83);
    let btf = types(new_modules).bytes();
    memory.put(BTF, &btf);

    memory.long(PER_CPU + CURRENT, DIRECT + TASK);
    memory.long(TASK + 8, DIRECT + MAP);
    memory.long(TASK + 16, 42);
    memory.put(TASK + 24, b"sh\0");
    // Root (an inner node, type 3) of which the second slot is a leaf (type 1).
    memory.long(MAP + 8, DIRECT + ROOT + 0x1e);
    memory.long(MAP + 24, 0x7000_0000_1000);
    memory.long(ROOT + 8, 0xfff);
    memory.long(ROOT + 40, DIRECT + LEAF + 0xc);
    for (n, end) in [0x40_0fff, 0x40_2fff, 0x7000_0000_0fff].into_iter().enumerate() {
        memory.long(LEAF + 8 + 8 * n as u64, end);
    }
    memory.long(LEAF + 32 + 8, DIRECT + AREA);
    memory.long(LEAF + 32 + 24, DIRECT + VDSO_AREA);
    for (at, value) in [0x40_1000, 0x40_3000, 5, DIRECT + FILE].into_iter().enumerate() {
        memory.long(AREA + 8 * at as u64, value);
    }
    memory.long(VDSO_AREA, 0x7000_0000_1000);
    memory.long(VDSO_AREA + 8, 0x7000_0000_3000);
    // tool in bin in the root of a mount on mnt in the root of all.
    let (above, below, root, mnt, top, bin, tool) = (0xa000, 0xa100, 0xa200, 0xa300, 0xa400, 0xa500, 0xa600);
    memory.long(FILE + 16, DIRECT + below + 16);
    memory.long(FILE + 24, DIRECT + tool);
    for (mount, parent, point, root) in [(above, above, 0, root), (below, above, mnt, top)] {
        for (n, value) in [parent, point, root].into_iter().enumerate() {
            memory.long(mount + 8 * n as u64, DIRECT + value);
        }
    }
    for (dentry, parent, name) in
        [(root, root, "/"), (mnt, root, "mnt"), (top, top, "/"), (bin, top, "bin"), (tool, bin, "tool")]
    {
        memory.long(dentry, DIRECT + parent);
        memory.long(dentry + 8, (name.len() as u64) << 32);
        memory.long(dentry + 16, DIRECT + dentry + 0x20);
        memory.put(dentry + 0x20, name.as_bytes());
    }

    memory.long(FILE, DIRECT + INODE);
    // Its address space is behind it.
    for (n, value) in [DIRECT + INODE + 24, 77, 0x7000, DIRECT + NODE + 2].into_iter().enumerate() {
        memory.long(INODE + 8 * n as u64, value);
    }
    memory.long(NODE + 8, DIRECT + PAGES + CONTENTS / 4096 * 16);
    memory.put(CONTENTS, &elf());
    memory.long(VMEMMAP_BASE, DIRECT + PAGES);

    memory.long(MODULES, DIRECT + MODULE[0] + 8);
    memory.long(MODULE[0] + 8, DIRECT + MODULE[1] + 8);
    memory.long(MODULE[1] + 8, IMAGE + MODULES);
    for (n, name) in ["first", "second"].into_iter().enumerate() {
        let (module, tables) = (MODULE[n], 0xb000 + 0x400 * n as u64);
        memory.put(module + 24, name.as_bytes());
        memory.long(module + 80, DIRECT + tables);
        memory.long(module + 88, CODE + 0x1_0000 * n as u64);
        memory.long(module + 96, 0x2000);
        for (at, value) in [(0, DIRECT + tables + 0x40), (8, 3), (16, DIRECT + tables + 0x200)] {
            memory.long(tables + at, value);
        }
        for (symbol, offset) in [(1u64, 0x100), (2, 0x40)] {
            let at = tables + 0x40 + 24 * symbol;
            memory.long(at, (4 * symbol) | (1 << 48));
            memory.long(at + 8, CODE + 0x1_0000 * n as u64 + offset);
            memory.put(tables + 0x200 + 4 * symbol, format!("f{symbol}").as_bytes());
        }
    }

    let names = [
        ("_text", 0x10),
        ("_end", 0x4_0000),
        ("__start_BTF", BTF),
        ("__stop_BTF", BTF + btf.len() as u64),
        ("modules", MODULES),
        ("vmemmap_base", VMEMMAP_BASE),
    ];
    let mut own = Symbols::new(names.map(|(name, at)| (IMAGE + at, name.to_owned())).to_vec(), "test".into());
    own.per_cpu.push((CURRENT, "current_task".into()));
    let own = Some(Arc::new(own));
    let image = Some(IMAGE + 0x10..IMAGE + 0x4_0000);
    (memory, OfGuest { certain: true, own, image, ..OfGuest::default() })
}

fn names(new_modules: bool) -> Names<Bytes> {
    let (memory, found) = kernel(new_modules);
    Names { found, ..Names::new(memory, None) }
}

fn sight(rip: u64) -> Sight {
    let user = rip >> 63 == 0;
    Sight { rip, physical: rip & 0xffff, user, cr3: CR3, per_cpu: DIRECT + PER_CPU }
}

fn user(rip: u64, cr3: u64) -> Sight {
    Sight { cr3, ..sight(rip) }
}

#[test]
fn user_code_is_of_a_process_and_a_file() {
    let mut names = names(false);
    let place = names.place(&sight(0x40_1234)).unwrap();
    assert_eq!(place.process, Some(Process { name: "sh".into(), id: 42 }));
    assert_eq!(place.file, Some(FilePlace { path: "/mnt/bin/tool".into(), offset: 0x5234 }));
    assert_eq!(place.symbol.as_deref(), Some("steps+0x34 [tool]"));
    let behind = names.place(&sight(0x40_1280)).unwrap();
    assert_eq!(behind.symbol, None, "the function has ended");
    let callers = names.callers(&sight(0x40_1234), &[0x40_1234, 0x40_1300, IMAGE, 0x50_0000]);
    assert_eq!(callers.process.as_deref(), Some("sh"));
    let frames: Vec<_> = callers.frames.iter().map(Option::as_deref).collect();
    assert_eq!(frames, [Some("steps [tool]"), Some("tool+0x5000"), None, None]);
    let vdso = names.place(&sight(0x7000_0000_1a10)).unwrap().file.unwrap();
    assert_eq!((vdso.path.as_str(), vdso.offset), ("[vdso]", 0xa10));
    let nothing = names.place(&sight(0x50_0000)).unwrap();
    assert!(nothing.process.is_some() && nothing.file.is_none());
    assert!(names.structures().contains("modules, processes and files"), "{}", names.structures());
    // On page tables that lack the kernel: the other of the pair has it.
    assert_eq!(names.place(&user(0x40_1234, CR3 | 0x1003)), Some(place));
}

#[test]
fn module_code_has_its_symbols() {
    for new in [false, true] {
        let mut names = names(new);
        let mut name = |rip| names.place(&sight(rip)).and_then(|place| place.symbol);
        assert_eq!(name(CODE + 0x100).as_deref(), Some("f1 [first]"));
        assert_eq!(name(CODE + 0x50).as_deref(), Some("f2+0x10 [first]"));
        assert_eq!(name(CODE + 0x1_0104).as_deref(), Some("f1+0x4 [second]"));
        assert_eq!(name(CODE + 0x10).as_deref(), Some("[first]"));
        assert_eq!(name(CODE + 0x5_0000), None);
        assert_eq!(name(IMAGE + 0x20), None, "not a module's");
        // Another module takes the place of the first.
        names.memory.put(MODULE[0] + 24, b"third\0");
        names.memory.put(0xb200 + 4, b"g");
        let name = names.place(&sight(CODE + 0x100)).and_then(|place| place.symbol);
        assert_eq!(name.as_deref(), Some("g1 [third]"), "{new}");
    }
}

#[test]
fn a_kernel_without_btf_is_told() {
    let mut names = names(false);
    let own = names.found.own.as_ref().unwrap();
    let kept = own.iter().filter(|(_, name)| !name.contains("BTF"));
    let kept = kept.map(|(at, name)| (at, name.to_owned())).collect();
    names.found.own = Some(Arc::new(Symbols::new(kept, "test".into())));
    assert_eq!(names.place(&sight(0x40_1234)), None);
    assert!(names.structures().contains("CONFIG_DEBUG_INFO_BTF"), "{}", names.structures());
}

#[test]
fn what_goes_in_circles_ends() {
    // The root's slots lead to itself; a directory is its own grandparent; a module follows itself.
    let mut names = names(false);
    names.memory.long(ROOT + 40, DIRECT + ROOT + 0x1c);
    assert_eq!(names.place(&sight(0x40_1234)).unwrap().file, None);
    let mut names = self::names(false);
    names.memory.long(0xa500, DIRECT + 0xa600);
    assert_eq!(names.place(&sight(0x40_1234)).unwrap().file, None);
    let mut names = self::names(false);
    names.memory.long(MODULE[0] + 8, DIRECT + MODULE[0] + 8);
    assert_eq!(names.place(&sight(CODE + 0x1_0000)), None);
}

#[test]
fn structures_of_structures_are_not_followed_for_ever() {
    let mut types = Types::new();
    // 200 unnamed members, each of a structure of 200 unnamed members, and so on: 200^12 at the bottom.
    let mut inner = 1;
    for _ in 0..12 {
        let members: Vec<(&str, u32, u32)> = (0..200).map(|n| ("", n, inner)).collect();
        inner = types.structure("", 8, &members);
    }
    types.structure("task_struct", 8, &[("", 0, inner), ("mm", 0, 1)]);
    let btf = Btf::new(&types.bytes()).unwrap();
    assert_eq!(btf.offset("task_struct", "nothing"), None);
    assert_eq!(btf.offset("list_head", "next"), None);
}

#[test]
fn damaged_memory_is_a_name_less_at_worst() {
    let (whole, found) = kernel(false);
    // xorshift64*
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    };
    let used: Vec<u64> = (0..SIZE as u64 / 8)
        .map(|n| 8 * n)
        .filter(|&at| whole.0[at as usize..at as usize + 8].iter().any(|&byte| byte != 0))
        .collect();
    let (mut named, mut lost) = (0, 0);
    for round in 0..4000 {
        let mut memory = whole.clone();
        for _ in 0..=round % 4 {
            let at = used[(random() % used.len() as u64) as usize];
            let value = match random() % 4 {
                0 => random() << 16 | random(),
                1 => DIRECT + random() % (2 * SIZE as u64),
                2 => whole.0[at as usize..][..8].iter().fold(0, |word, &byte| word << 8 | u64::from(byte)),
                _ => u64::MAX,
            };
            memory.long(at, value);
        }
        let mut names = Names { found: found.clone(), ..Names::new(memory, None) };
        for rip in [0x40_1234, CODE + 0x100, CODE + 0x1_0104, 0x7000_0000_1a10] {
            match names.place(&sight(rip)) {
                Some(_) => named += 1,
                None => lost += 1,
            }
        }
    }
    assert!(named > 4000 && lost > 400, "{named} {lost}");
}
