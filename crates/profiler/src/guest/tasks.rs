//! Whose user code runs, and which file it is from, by the kernel's own structures: the current task, its memory map (a maple
//! tree, include/linux/maple_tree.h, since Linux 6.1), the mapping's file, and its path.
//!
//! Everything read is the guest's, and may be wrong or go in circles: trees and paths are followed only so deep.

use super::{btf::Btf, space::Space};
use crate::{
    model::{FilePlace, Process},
    symbols::Symbols,
};

/// Levels of a tree: enough for 2^64 ranges of ten each.
const LEVELS: usize = 20;
/// Parts of a path, mount points counted.
const PARTS: usize = 64;
/// Letters of one.
const NAME: usize = 255;
/// Letters of a whole path.
const PATH: usize = 1024;
const PAGE_SHIFT: u32 = 12;

/// Where everything is in a kernel's structures.
pub struct Tasks {
    /// The current task's pointer, from the beginning of a processor's own data.
    current: u64,
    comm: u64,
    comm_size: usize,
    tgid: u64,
    mm: u64,
    /// `None` before Linux 6.1.
    maps: Option<Maps>,
}

struct Maps {
    root: u64,
    vdso: Option<u64>,
    leaf: Node,
    inner: Node,
    start: u64,
    end: u64,
    page_offset: u64,
    file: u64,
    paths: Paths,
}

/// A node of a maple tree.
struct Node {
    pivots: u64,
    pivot_count: u64,
    slots: u64,
    slot_count: u64,
}

struct Paths {
    file_mount: u64,
    file_dentry: u64,
    parent: u64,
    name: u64,
    name_length: u64,
    /// `struct vfsmount` in `struct mount`, and the rest from the beginning of that.
    of_mount: u64,
    mount_root: u64,
    mount_parent: u64,
    mount_point: u64,
}

impl Tasks {
    /// `None` if something that is needed for a process's name is not there.
    pub fn find(btf: &Btf, symbols: &Symbols) -> Option<Self> {
        let comm = btf.field("task_struct", "comm")?;
        let current = match symbols.address_of("current_task") {
            Some(address) => address,
            // 6.2 to 6.14.
            None => symbols.address_of("pcpu_hot")? + btf.offset("pcpu_hot", "current_task")?,
        };
        Some(Self {
            current,
            comm: comm.offset,
            comm_size: btf.elements(comm)?.min(64) as usize,
            tgid: btf.offset("task_struct", "tgid")?,
            mm: btf.offset("task_struct", "mm")?,
            maps: Maps::find(btf),
        })
    }

    /// Whether user code is named by file too.
    pub fn has_maps(&self) -> bool {
        self.maps.is_some()
    }

    /// The process that runs on the processor whose own data is at `base`, and its memory map, which threads of the kernel lack.
    pub fn current(&self, space: &Space<'_>, base: u64) -> Option<(Process, Option<u64>)> {
        let task = kernel(space.long(base.wrapping_add(self.current))?)?;
        let map = kernel(space.long(task.wrapping_add(self.mm))?);
        let name = space.text(task.wrapping_add(self.comm), self.comm_size)?;
        let id = space.word(task.wrapping_add(self.tgid))?;
        Some((Process { name, id }, map))
    }

    /// What a memory map has at an address, and its `struct file`, if it is a real one.
    pub fn mapped(&self, space: &Space<'_>, map: u64, address: u64) -> Option<(FilePlace, Option<u64>)> {
        let maps = self.maps.as_ref()?;
        let area = maps.area(space, map, address)?;
        let start = space.long(area.wrapping_add(maps.start))?;
        if !(start..space.long(area.wrapping_add(maps.end))?).contains(&address) {
            return None;
        }
        let file = space.long(area.wrapping_add(maps.file))?;
        if file == 0 {
            let is_vdso = maps.vdso.and_then(|vdso| space.long(map.wrapping_add(vdso))) == Some(start);
            return is_vdso.then(|| (FilePlace { path: "[vdso]".into(), offset: address - start }, None));
        }
        let first = space.long(area.wrapping_add(maps.page_offset))?.checked_shl(PAGE_SHIFT)?;
        let path = maps.paths.of(space, kernel(file)?)?;
        Some((FilePlace { path, offset: first.wrapping_add(address - start) }, Some(file)))
    }
}

/// An address as the kernel's objects have them.
fn kernel(address: u64) -> Option<u64> {
    (address >> 63 == 1).then_some(address)
}

impl Maps {
    fn find(btf: &Btf) -> Option<Self> {
        let area = |name| btf.offset("vm_area_struct", name);
        Some(Self {
            root: btf.offset("mm_struct", "mm_mt.ma_root")?,
            vdso: btf.offset("mm_struct", "context.vdso"),
            leaf: Node::find(btf, "maple_range_64")?,
            inner: Node::find(btf, "maple_arange_64")?,
            start: area("vm_start")?,
            end: area("vm_end")?,
            page_offset: area("vm_pgoff")?,
            file: area("vm_file")?,
            paths: Paths::find(btf)?,
        })
    }

    /// The area that an address is in.
    fn area(&self, space: &Space<'_>, map: u64, address: u64) -> Option<u64> {
        let mut entry = space.long(map.wrapping_add(self.root))?;
        // A root that is a node ends in binary 10, and the smallest such numbers are no pointers; nodes below are not marked.
        if entry & 3 != 2 || entry <= 4096 {
            return None;
        }
        let mut most = u64::MAX;
        for _ in 0..LEVELS {
            // Nodes are aligned to 256 bytes; below is their type.
            let (node, kind) = (kernel(entry & !0xff)?, entry >> 3 & 0xf);
            let layout = match kind {
                1 | 2 => &self.leaf,
                3 => &self.inner,
                _ => return None,
            };
            let (slot, end) = layout.slot(space, node, address, most)?;
            if kind == 1 {
                return kernel(slot);
            }
            (entry, most) = (slot, end);
        }
        None
    }
}

impl Node {
    fn find(btf: &Btf, name: &str) -> Option<Self> {
        let (pivots, slots) = (btf.field(name, "pivot")?, btf.field(name, "slot")?);
        Some(Self {
            pivots: pivots.offset,
            pivot_count: btf.elements(pivots)?.min(32),
            slots: slots.offset,
            slot_count: btf.elements(slots)?.min(32),
        })
    }

    /// What is at an address, and where that ends. `most` is where the node ends.
    fn slot(&self, space: &Space<'_>, node: u64, address: u64, most: u64) -> Option<(u64, u64)> {
        for n in 0..self.slot_count {
            let pivot =
                if n < self.pivot_count { space.long(node.wrapping_add(self.pivots + 8 * n))? } else { most };
            // A zero is where no more slots are used.
            let end = if pivot == 0 && n > 0 { most } else { pivot };
            if address <= end {
                return Some((space.long(node.wrapping_add(self.slots + 8 * n))?, end));
            }
            if end == most {
                return None;
            }
        }
        None
    }
}

impl Paths {
    fn find(btf: &Btf) -> Option<Self> {
        let of_mount = btf.offset("mount", "mnt")?;
        Some(Self {
            file_mount: btf.offset("file", "f_path.mnt")?,
            file_dentry: btf.offset("file", "f_path.dentry")?,
            parent: btf.offset("dentry", "d_parent")?,
            name: btf.offset("dentry", "d_name.name")?,
            name_length: btf.offset("dentry", "d_name.len")?,
            of_mount,
            mount_root: of_mount + btf.offset("vfsmount", "mnt_root")?,
            mount_parent: btf.offset("mount", "mnt_parent")?,
            mount_point: btf.offset("mount", "mnt_mountpoint")?,
        })
    }

    /// A file's path, from the root of all mounts.
    fn of(&self, space: &Space<'_>, file: u64) -> Option<String> {
        let mut mount = space.long(file.wrapping_add(self.file_mount))?.wrapping_sub(self.of_mount);
        let mut dentry = space.long(file.wrapping_add(self.file_dentry))?;
        let mut path = String::new();
        for _ in 0..PARTS {
            if dentry == space.long(mount.wrapping_add(self.mount_root))? {
                let above = space.long(mount.wrapping_add(self.mount_parent))?;
                if above == mount {
                    return (!path.is_empty()).then_some(path);
                }
                dentry = space.long(mount.wrapping_add(self.mount_point))?;
                mount = above;
                continue;
            }
            let length = space.word(dentry.wrapping_add(self.name_length))? as usize;
            let name = space.text(space.long(dentry.wrapping_add(self.name))?, length.min(NAME))?;
            let parent = space.long(dentry.wrapping_add(self.parent))?;
            if dentry == parent {
                // Of no directory: `memfd:…`.
                return (!name.is_empty()).then(|| format!("{name}{path}"));
            }
            path = format!("/{name}{path}");
            if path.len() > PATH {
                return None;
            }
            dentry = parent;
        }
        None
    }
}
