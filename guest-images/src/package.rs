//! Reading a file out of a Debian package: an ar archive whose member `data.tar.*` is the file tree (deb(5)).

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

use crate::Error;

/// No file is near this size: what is larger is damaged or hostile.
pub(crate) const MOST: u64 = 512 << 20;

/// The content of the first regular file whose path begins with `path` (without a leading "./"). `package` is for
/// messages.
pub fn extract(deb: &Path, path: &str, package: &str) -> Result<Vec<u8>, Error> {
    let content = with_data(deb, package, |tree| find(tree, path))?;
    content.ok_or_else(|| Error::MissingFile { package: package.to_owned(), path: path.to_owned() })
}

/// Calls `visit` with every entry of the file tree, in their order.
pub(crate) fn each(
    deb: &Path,
    package: &str,
    mut visit: impl FnMut(&mut tar::Entry<'_, Box<dyn Read + '_>>) -> io::Result<()>,
) -> Result<(), Error> {
    with_data(deb, package, |tree| {
        for entry in tar::Archive::new(tree).entries()? {
            visit(&mut entry?)?;
        }
        Ok(())
    })
}

/// Calls `read` with the file tree, unpacked.
fn with_data<T>(
    deb: &Path,
    package: &str,
    read: impl FnOnce(Box<dyn Read + '_>) -> io::Result<T>,
) -> Result<T, Error> {
    let damaged = |reason: String| Error::Unpack { package: package.to_owned(), reason };
    let file = File::open(deb).map_err(|error| Error::of_file(deb, error))?;
    let mut archive = ar::Archive::new(BufReader::new(file));
    while let Some(member) = archive.next_entry() {
        let member = member.map_err(|error| damaged(error.to_string()))?;
        let name = String::from_utf8_lossy(member.header().identifier()).into_owned();
        // GNU ar ends names with a slash.
        let name = name.trim_end_matches('/');
        let Some(extension) = name.strip_prefix("data.tar") else { continue };
        let tree: Box<dyn Read> = match extension {
            "" => Box::new(member),
            ".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            ".xz" => Box::new(liblzma::read::XzDecoder::new(member)),
            ".zst" => Box::new(
                ruzstd::decoding::StreamingDecoder::new(member)
                    .map_err(|error| damaged(error.to_string()))?,
            ),
            other => return Err(damaged(format!("its data.tar{other} is packed in an unknown way"))),
        };
        return read(tree).map_err(|error| damaged(error.to_string()));
    }
    Err(damaged("it has no data.tar".into()))
}

/// Reads no further than to the file: what is behind it, mostly modules, need not be decompressed.
fn find(tree: impl Read, path: &str) -> io::Result<Option<Vec<u8>>> {
    for entry in tar::Archive::new(tree).entries()? {
        let entry = entry?;
        let name = entry.path_bytes();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        if !entry.header().entry_type().is_file() || !name.starts_with(path.as_bytes()) {
            continue;
        }
        let size = entry.size();
        if size > MOST {
            return Err(io::Error::other(format!("{path} is said to have {size} bytes")));
        }
        let mut content = Vec::with_capacity(size as usize);
        entry.take(MOST).read_to_end(&mut content)?;
        return Ok(Some(content));
    }
    Ok(None)
}
