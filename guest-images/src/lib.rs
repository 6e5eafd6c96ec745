//! Recipes for guests: which packages of a distribution give a kernel and a user land, and how an initramfs is made of
//! them. Nothing binary is kept in the repository; everything is fetched by the host's own package manager, checked,
//! and cached.
//!
//! Data flows one way: [`recipe`] (a row of the table) -> [`apt`] (package lists and packages, in a private state
//! directory) -> [`package`] (the few files wanted of a .deb, or a whole `tree`) -> [`initramfs`] -> [`cache`] (renamed into place as
//! a whole, with a [`manifest`]) -> [`Guest`]. [`workloads`] puts programs to measure on top.

pub mod apt;
pub mod cache;
mod error;
mod files;
pub mod initramfs;
pub mod manifest;
pub mod package;
mod progress;
pub mod recipe;
mod tree;
mod unpack;
mod verified;
pub mod workloads;

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
};

use apt::Apt;
pub use cache::CacheDir;
use cache::Lock;
pub use error::Error;
use manifest::Manifest;
pub use progress::{Progress, Silent, Step};
pub use recipe::{RECIPES, Recipe};
use tree::Tree;

/// File names within a cache entry.
const KERNEL: &str = "vmlinuz";
const INITRAMFS: &str = "initramfs.cpio";

/// A guest ready to boot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Guest {
    /// The kernel, byte for byte as its package ships it.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// Kernel command line; the user's own words go behind it.
    pub cmdline: String,
    /// Bytes of guest memory to give it unless the user says otherwise.
    pub memory: u64,
}

impl Guest {
    /// How to boot it with `kernel` in the place of its own, in words that both QEMU and `transvisor run` understand.
    pub fn arguments(&self, kernel: &Path) -> Vec<OsString> {
        vec![
            "-kernel".into(),
            kernel.into(),
            "-initrd".into(),
            self.initramfs.clone().into(),
            "-append".into(),
            self.cmdline.clone().into(),
            "-m".into(),
            (self.memory >> 20).to_string().into(),
            "-no-reboot".into(),
        ]
    }
}

/// The guest of that recipe: from the cache if it is there and whole, else fetched. Needs the network only then.
pub fn fetch(recipe: &str, cache: &CacheDir, progress: &mut dyn Progress) -> Result<Guest, Error> {
    obtain(Recipe::find(recipe)?, cache, &Apt::default(), progress, false)
}

/// The same, but always fetched anew: how a cached guest gets its distribution's updates.
pub fn refresh(recipe: &str, cache: &CacheDir, progress: &mut dyn Progress) -> Result<Guest, Error> {
    obtain(Recipe::find(recipe)?, cache, &Apt::default(), progress, true)
}

fn obtain(
    recipe: &'static Recipe,
    cache: &CacheDir,
    apt: &Apt,
    progress: &mut dyn Progress,
    refresh: bool,
) -> Result<Guest, Error> {
    let lock = match Lock::take(cache, progress) {
        Ok(lock) => lock,
        // A cache that can't be written may still be read.
        Err(error @ Error::CacheReadOnly { .. }) => {
            return match (refresh, Manifest::check(&cache.entry(recipe), recipe)) {
                (false, Ok(Some(_))) => Ok(guest(recipe, cache)),
                _ => Err(error),
            };
        }
        Err(error) => return Err(error),
    };
    if !refresh {
        match Manifest::check(&cache.entry(recipe), recipe) {
            Ok(Some(manifest)) => {
                progress.step(&Step::Cached { recipe, kernel: manifest.kernel_package().to_owned() });
                return Ok(guest(recipe, cache));
            }
            Ok(None) => {}
            Err(reason) => progress.step(&Step::Damaged { recipe, reason }),
        }
    }
    build(recipe, &lock, apt, progress)?;
    Ok(guest(recipe, cache))
}

fn guest(recipe: &Recipe, cache: &CacheDir) -> Guest {
    let entry = cache.entry(recipe);
    Guest {
        kernel: entry.join(KERNEL),
        initramfs: entry.join(INITRAMFS),
        cmdline: recipe.cmdline.to_owned(),
        memory: recipe.memory,
    }
}

/// Fetches, checks, unpacks, builds, and puts the whole into the cache.
fn build(
    recipe: &'static Recipe,
    lock: &Lock<'_>,
    apt: &Apt,
    progress: &mut dyn Progress,
) -> Result<(), Error> {
    let work = lock.work_directory(if recipe.packages.is_empty() {
        cache::NEEDED
    } else {
        cache::NEEDED_WITH_PACKAGES
    })?;
    let mut session = apt.session(&work.subdirectory("apt")?)?;
    session.update(progress)?;
    let kernel = session.resolve_kernel(recipe)?;
    let mut packages = vec![kernel, session.resolve(recipe.busybox_package, recipe)?];
    packages.extend(session.resolve_with_dependencies(recipe.packages, recipe)?);
    let files = session.download(&packages, &work.subdirectory("packages")?, progress)?;

    progress.step(&Step::Unpacking { package: packages[0].name.clone() });
    let kernel = package::extract(&files[0], "boot/vmlinuz-", &packages[0].name)?;
    progress.step(&Step::Unpacking { package: packages[1].name.clone() });
    let busybox = package::extract(&files[1], "bin/busybox", &packages[1].name)?;
    let initramfs = if recipe.packages.is_empty() {
        initramfs::build(&busybox)
    } else {
        let mut tree = Tree::default();
        progress.step(&Step::UnpackingAll { packages: packages.len() - 2 });
        for (package, file) in packages.iter().zip(&files).skip(2) {
            tree.unpack(file, &package.name)?;
        }
        initramfs::build_with(&busybox, &tree)
    };
    progress.step(&Step::Built { initramfs: initramfs.len() as u64 });

    let entry = work.subdirectory("entry")?;
    files::write(&entry.join(KERNEL), &kernel)?;
    files::write(&entry.join(INITRAMFS), &initramfs)?;
    let manifest = Manifest::new(recipe, &packages, &[(KERNEL, &kernel), (INITRAMFS, &initramfs)]);
    files::write(&entry.join(manifest::NAME), manifest.to_json().as_bytes())?;
    lock.install(&lock.guest(recipe), &entry, &work)?;
    progress.step(&Step::Stored { recipe, size: (kernel.len() + initramfs.len()) as u64 });
    Ok(())
}

#[cfg(test)]
mod tests;
