//! Programs that the tests need and Cargo can't bring: taken from PATH, else from Debian's package, unpacked below
//! `target/` so that neither root nor an installation is needed.

use std::{
    env,
    ffi::OsString,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

/// (program, Debian package).
const NEEDED: &[(&str, &str)] = &[("nasm", "nasm")];

/// Makes sure that all are there; returns the PATH that finds them.
pub fn install() -> Result<OsString> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&path).collect();
    for (program, package) in NEEDED {
        if folders.iter().any(|folder| folder.join(program).is_file()) {
            continue;
        }
        folders.push(unpack(program, package)?);
    }
    env::join_paths(folders).context("PATH")
}

fn unpack(program: &str, package: &str) -> Result<PathBuf> {
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
        crate::run(&mut command)
    };
    let advice = || format!("getting {package}; install it with `apt-get install {package}`");
    apt(&["update"]).with_context(advice)?;
    apt(&["download", package]).with_context(advice)?;
    let Some(archive) = std::fs::read_dir(&tools)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
    else {
        bail!("apt-get download {package} left no package");
    };
    crate::run(Command::new("dpkg-deb").arg("-x").arg(&archive).arg(&tools))?;
    std::fs::remove_file(&archive)?;
    ensure!(bin.join(program).is_file(), "the package {package} holds no {program}");
    Ok(bin)
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
