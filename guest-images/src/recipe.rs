//! The table of recipes.

use crate::Error;

/// How a guest is made.
#[derive(PartialEq, Eq, Debug)]
pub struct Recipe {
    /// What the user types.
    pub name: &'static str,
    /// One line for listings.
    pub summary: &'static str,
    /// The meta package that depends on the current kernel's package.
    pub kernel_meta_package: &'static str,
    /// How the names of real kernel packages begin.
    pub kernel_package_prefix: &'static str,
    /// The package with a static BusyBox as bin/busybox.
    pub busybox_package: &'static str,
    /// Packages to be there as if installed, with all that they depend on; they are found before the BusyBox.
    pub packages: &'static [&'static str],
    /// Kernel command line.
    pub cmdline: &'static str,
    /// Bytes of guest memory.
    pub memory: u64,
}

/// - `console=ttyS0`: the console is the serial port.
/// - `panic=-1`: a panic resets at once, so that the machine ends instead of hanging.
/// - `tsc=reliable`: the TSC is the machine's one clock; nothing needs to watch it.
/// - `no_timer_check`: the timer interrupt does arrive; no need to wait for ten of them.
/// - `nowatchdog`: a busy host is not a locked-up guest.
/// - `8250.nr_uarts=1`: there is one serial port; the others are not probed for.
const CMDLINE: &str = "console=ttyS0 panic=-1 tsc=reliable no_timer_check nowatchdog 8250.nr_uarts=1";

/// All recipes.
pub const RECIPES: [Recipe; 3] = [
    Recipe {
        name: "debian",
        summary: "Debian's kernel for clouds and a BusyBox shell",
        kernel_meta_package: "linux-image-cloud-amd64",
        kernel_package_prefix: "linux-image-",
        busybox_package: "busybox-static",
        packages: &[],
        cmdline: CMDLINE,
        memory: 512 << 20,
    },
    Recipe {
        name: "debian-programs",
        summary: "The same, with coreutils, gzip, xz, openssl, python3, gcc and sqlite3",
        kernel_meta_package: "linux-image-cloud-amd64",
        kernel_package_prefix: "linux-image-",
        busybox_package: "busybox-static",
        packages: &["coreutils", "gzip", "xz-utils", "openssl", "python3", "gcc", "libc6-dev", "sqlite3"],
        cmdline: CMDLINE,
        memory: 512 << 20,
    },
    Recipe {
        name: "debian-full",
        summary: "Debian's kernel for all hardware and a BusyBox shell",
        kernel_meta_package: "linux-image-amd64",
        kernel_package_prefix: "linux-image-",
        busybox_package: "busybox-static",
        packages: &[],
        cmdline: CMDLINE,
        memory: 512 << 20,
    },
];

impl Recipe {
    /// The recipe of that name.
    pub fn find(name: &str) -> Result<&'static Self, Error> {
        RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| Error::UnknownRecipe {
            name: name.to_owned(),
            known: RECIPES.iter().map(|recipe| recipe.name).collect::<Vec<_>>().join(", "),
        })
    }
}
