//! Programs that the tests need and Cargo can't bring: taken from PATH, else from Debian's package, unpacked below
//! `target/` so that neither root nor an installation is needed.

use std::{
    env,
    ffi::OsString,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

/// A program, and how to come by it.
struct Needed {
    program: &'static str,
    package: &'static str,
    /// It needs libraries that may not be installed: they are unpacked too, and the program, which is really this one below
    /// `target/tools`, is started so that it finds them.
    behind: Option<&'static str>,
}

const NEEDED: &[Needed] = &[
    Needed { program: "nasm", package: "nasm", behind: None },
    Needed { program: "chromium", package: "chromium", behind: Some("usr/lib/chromium/chromium") },
    Needed { program: "perf", package: "linux-perf", behind: Some("usr/bin/perf") },
];

/// Makes sure that all are there; returns the PATH that finds them.
pub fn install() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    for needed in NEEDED {
        if folders.iter().any(|folder| folder.join(needed.program).is_file()) {
            continue;
        }
        folders.push(unpack(needed)?);
    }
    env::join_paths(folders).context("PATH")
}

fn unpack(needed: &Needed) -> Result<PathBuf> {
    let Needed { program, package, behind } = needed;
    let tools = target_folder()?.join("tools");
    let bin = tools.join("usr/bin");
    if bin.join(program).is_file() {
        return Ok(bin);
    }
    eprintln!("xtask: {program} is not installed: taking Debian's package {package}");
    let lists = tools.join("apt");
    for folder in ["lists/partial", "archives/partial"] {
        std::fs::create_dir_all(lists.join(folder))
            .with_context(|| format!("creating {}", lists.display()))?;
    }
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command
            .arg("-qq")
            .arg(option("Dir::State::lists", &lists.join("lists")))
            .arg(option("Dir::Cache", &lists))
            .args(arguments)
            .current_dir(&tools);
        command
    };
    let advice = || format!("getting {package}; install it with `apt-get install {package}`");
    crate::run(&mut apt(&["update"])).with_context(advice)?;
    let mut packages = vec![(*package).to_owned()];
    if behind.is_some() {
        let plan = apt(&["--simulate", "--no-install-recommends", "install", package]).output()?;
        ensure!(plan.status.success(), "{}", String::from_utf8_lossy(&plan.stderr).trim());
        packages = installed_by(&String::from_utf8_lossy(&plan.stdout));
    }
    let mut arguments = vec!["download"];
    arguments.extend(packages.iter().map(String::as_str));
    crate::run(&mut apt(&arguments)).with_context(advice)?;
    let is_archive = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "deb");
    let archives: Vec<PathBuf> =
        std::fs::read_dir(&tools)?.filter_map(|entry| Some(entry.ok()?.path())).filter(is_archive).collect();
    ensure!(!archives.is_empty(), "apt-get download {package} left no package");
    for archive in archives {
        crate::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tools))?;
        std::fs::remove_file(&archive)?;
    }
    if let Some(behind) = behind {
        ensure!(tools.join(behind).is_file(), "the package {package} holds no {behind}");
        let starter = bin.join(program);
        let mut behind = (*behind).to_owned();
        if tools.join(&behind) == starter {
            behind = format!("usr/lib/{program}.program");
            std::fs::rename(&starter, tools.join(&behind))?;
        }
        // The package's own starter, which looks below /usr, may be a link.
        let _ = std::fs::remove_file(&starter);
        std::fs::write(&starter, starter_of(&behind))?;
        std::fs::set_permissions(&starter, std::fs::Permissions::from_mode(0o755))?;
    }
    ensure!(bin.join(program).is_file(), "the package {package} holds no {program}");
    Ok(bin)
}

/// The packages that `apt-get --simulate install` would install: lines `Inst NAME (VERSION …)`.
fn installed_by(plan: &str) -> Vec<String> {
    let name = |line: &str| line.strip_prefix("Inst ")?.split_whitespace().next().map(str::to_owned);
    plan.lines().filter_map(name).collect()
}

/// A script in `usr/bin` that starts a program with the libraries that were unpacked beside it.
fn starter_of(behind: &str) -> String {
    let machine = "x86_64-linux-gnu";
    format!(
        "#!/bin/sh\nroot=$(dirname \"$(readlink -f \"$0\")\")/../..\n\
         LD_LIBRARY_PATH=$root/usr/lib/{machine}:$root/lib/{machine}:$root/usr/lib/{machine}/nss\n\
         export LD_LIBRARY_PATH\nexec \"$root/{behind}\" \"$@\"\n"
    )
}

fn option(name: &str, value: &Path) -> OsString {
    let mut option = OsString::from("-o");
    option.push(name);
    option.push("=");
    option.push(value);
    option
}

/// Where Cargo builds.
pub fn target_folder() -> Result<PathBuf> {
    let metadata = crate::output(Command::new(env!("CARGO")).args([
        "metadata",
        "--no-deps",
        "--format-version",
        "1",
        "--offline",
    ]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&metadata)?;
    Ok(metadata["target_directory"].as_str().context("cargo metadata without target directory")?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_of_apt() {
        let plan =
            "Inst libx (1.0 Debian:12/stable [amd64])\nInst y [1] (2 Debian [all])\nConf libx (1.0 Debian)\n";
        assert_eq!(installed_by(plan), ["libx", "y"]);
    }
}
