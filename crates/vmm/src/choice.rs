//! `--engine auto`: KVM where it works, translation otherwise.

use std::path::Path;

use kvm::{Backing, Host};

/// What is taken.
pub struct Choice {
    /// KVM rather than translation.
    pub kvm: bool,
    /// A line for people: which, and why.
    pub why: String,
}

/// Looks at the host. An emulated KVM works, but slower than translation, so it is not taken.
pub fn choose(device: &Path) -> Choice {
    let translate = |why: String| Choice { kvm: false, why: format!("engine: translate, because {why}") };
    match Host::open(device).and_then(|host| host.speed()) {
        Err(error) => translate(error.to_string()),
        Ok(speed) => match kvm::host::backing_of(speed) {
            Backing::Hardware => Choice {
                kvm: true,
                why: format!("engine: kvm, because {} is hardware-backed", device.display()),
            },
            Backing::Emulated => translate(format!(
                "{} is an emulation ({:.1} M instructions/s); --engine kvm takes it all the same",
                device.display(),
                speed / 1e6
            )),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_kvm_it_translates_and_says_why() {
        let choice = choose(Path::new("/nonexistent/kvm"));
        assert!(!choice.kvm);
        assert!(
            choice.why.starts_with("engine: translate, because /nonexistent/kvm is not there"),
            "{}",
            choice.why
        );
    }
}
