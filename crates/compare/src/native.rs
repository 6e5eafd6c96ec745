//! A guest's programs on the host: the files of its initramfs in a directory that becomes their root, so that they run
//! with the libraries that they have in the guest.

use std::{
    ffi::CString,
    io,
    os::unix::{ffi::OsStrExt, process::CommandExt},
    path::Path,
    process::Command,
};

use anyhow::{Context, Result};

/// Lets the command run with `root` as its root directory: as the superuser, or in a user namespace.
pub fn enter(command: &mut Command, root: &Path) -> Result<()> {
    let root = CString::new(root.as_os_str().as_bytes()).context("the root directory's name")?;
    // SAFETY: between fork and exec only system calls are made, on a string that was made before.
    unsafe {
        command.pre_exec(move || {
            if libc::geteuid() != 0 && libc::unshare(libc::CLONE_NEWUSER) != 0 {
                return Err(io::Error::last_os_error());
            }
            if libc::chroot(root.as_ptr()) != 0 || libc::chdir(c"/".as_ptr()) != 0 {
                return Err(io::Error::last_os_error());
            }
            Ok(())
        });
    }
    Ok(())
}
