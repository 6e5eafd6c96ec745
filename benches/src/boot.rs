//! The two groups that boot: all from the same bzImage, and each as its own documentation would have it, with the kernel
//! unpacked on the host.

use anyhow::{Context, Result};
use compare::boot::Group;
use guest_images::Guest;

use crate::{peers::Peers, scratch::Scratch};

/// The two groups. The unpacked kernel is put into `scratch`.
pub fn groups(peers: &Peers, guest: &Guest, scratch: &Scratch) -> Result<Vec<Group>> {
    let mut bzimage = peers.ours(guest, "bzimage")?;
    bzimage.insert(1, peers.second(guest, "bzimage", &scratch.path("bzimage.translations"))?);
    bzimage.extend(peers.qemus(guest, &guest.kernel)?);
    let mut unpacked = peers.ours(guest, "auto")?;
    unpacked.insert(1, peers.second(guest, "auto", &scratch.path("unpacked.translations"))?);
    if !peers.no_qemu {
        let kernel =
            std::fs::read(&guest.kernel).with_context(|| format!("reading {}", guest.kernel.display()))?;
        let vmlinux = boot::bzimage::BzImage::parse(&kernel)
            .and_then(|image| boot::payload::unpack(image.payload()?, guest.memory))
            .with_context(|| format!("unpacking {}", guest.kernel.display()))?
            .1;
        let path = scratch.path("vmlinux");
        std::fs::write(&path, vmlinux).with_context(|| format!("writing {}", path.display()))?;
        unpacked.extend(peers.qemus(guest, &path)?);
    }
    Ok(vec![
        Group { name: "boot from the bzImage", contestants: bzimage },
        Group { name: "boot of the kernel unpacked on the host", contestants: unpacked },
    ])
}
