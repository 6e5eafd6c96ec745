//! An initramfs of ours written to a directory, as a kernel would unpack it.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use crate::Error;

/// Writes everything but devices below `directory`, which is created. Later archives replace what earlier ones have.
/// For archives that were made here: names are not examined.
pub(crate) fn unpack(archives: &[u8], directory: &Path) -> Result<(), Error> {
    let mut input = archives;
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |error| Error::of_file(&path, error)
    };
    fs::create_dir_all(directory).map_err(failed(directory))?;
    loop {
        // Zeros fill up an archive, and what is between two.
        while input.first() == Some(&0) {
            input = &input[1..];
        }
        if input.is_empty() {
            return Ok(());
        }
        let mut reader = cpio::NewcReader::new(input).map_err(failed(directory))?;
        if !reader.entry().is_trailer() {
            let path = directory.join(reader.entry().name());
            let mode = reader.entry().mode();
            let mut content = Vec::with_capacity(reader.entry().file_size() as usize);
            reader.read_to_end(&mut content).map_err(failed(&path))?;
            write(&path, mode, &content).map_err(failed(&path))?;
        }
        input = reader.finish().map_err(failed(directory))?;
    }
}

/// inode(7): the type is in the upper bits of the mode.
fn write(path: &Path, mode: u32, content: &[u8]) -> io::Result<()> {
    match mode & 0o170_000 {
        0o040_000 => fs::create_dir_all(path)?,
        0o100_000 => {
            fs::write(path, content)?;
            fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))?;
        }
        0o120_000 => {
            match fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            symlink(String::from_utf8_lossy(content).as_ref(), path)?;
        }
        _ => {}
    }
    Ok(())
}
