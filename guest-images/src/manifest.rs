//! What a cache entry was made of and what must be in it.

use std::fs;
use std::io;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::apt::Package;
use crate::verified::Verified;
use crate::{Recipe, files, initramfs};

/// Its file name in the entry.
pub const NAME: &str = "manifest.json";
/// Changes when the form of the entry does.
const FORMAT: u32 = 1;

/// The record of a cache entry.
#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
pub struct Manifest {
    format: u32,
    recipe: String,
    /// SHA-256 of what the initramfs is made of besides packages: a newer Transvisor may build it differently.
    initramfs_recipe: String,
    packages: Vec<PackageRecord>,
    files: Vec<FileRecord>,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
struct PackageRecord {
    name: String,
    version: String,
    size: u64,
    sha256: String,
}

#[derive(Serialize, Deserialize, PartialEq, Eq, Debug)]
struct FileRecord {
    name: String,
    size: u64,
    sha256: String,
}

impl Manifest {
    pub(crate) fn new(recipe: &Recipe, packages: &[Package], contents: &[(&str, &[u8])]) -> Self {
        let package = |package: &Package| PackageRecord {
            name: package.name.clone(),
            version: package.version.clone(),
            size: package.size,
            sha256: package.sha256.clone(),
        };
        let file = |&(name, bytes): &(&str, &[u8])| FileRecord {
            name: name.to_owned(),
            size: bytes.len() as u64,
            sha256: files::sha256(bytes),
        };
        Self {
            format: FORMAT,
            recipe: recipe.name.to_owned(),
            initramfs_recipe: initramfs::recipe_hash(recipe),
            packages: packages.iter().map(package).collect(),
            files: contents.iter().map(file).collect(),
        }
    }

    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("strings and numbers have a JSON form") + "\n"
    }

    /// "linux-image-… 6.1…", for messages.
    pub(crate) fn kernel_package(&self) -> &str {
        self.packages.first().map_or("kernel", |package| &package.name)
    }

    /// The manifest of the entry at `path` if there is one and all its files are as it says; why not, if not.
    pub(crate) fn check(path: &Path, recipe: &Recipe) -> Result<Option<Self>, String> {
        let text = match fs::read(path.join(NAME)) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound && !path.exists() => return Ok(None),
            Err(error) => return Err(format!("{NAME}: {error}")),
        };
        let manifest: Self = serde_json::from_slice(&text).map_err(|error| format!("{NAME}: {error}"))?;
        if manifest.format != FORMAT
            || manifest.recipe != recipe.name
            || manifest.initramfs_recipe != initramfs::recipe_hash(recipe)
        {
            return Err("it was made by another version of Transvisor".into());
        }
        let mut verified = Verified::read(path);
        for name in [crate::KERNEL, crate::INITRAMFS] {
            let record = manifest.files.iter().find(|file| file.name == name);
            let record = record.ok_or_else(|| format!("{NAME}: it does not have {name}"))?;
            let (size, sha256) =
                verified.measure(path, name, &record.sha256).map_err(|error| format!("{name}: {error}"))?;
            if size != record.size {
                return Err(format!("{name}: {size} bytes instead of {}", record.size));
            }
            if sha256 != record.sha256 {
                return Err(format!("{name}: its SHA-256 has changed"));
            }
        }
        verified.write(path);
        Ok(Some(manifest))
    }
}
