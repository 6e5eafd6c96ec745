//! apt, run in a private state directory: it needs neither root nor an earlier `apt-get update`, and leaves no trace in
//! the host's own state. Sources, keys and proxy settings are the host's.

mod run;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use crate::{Error, Progress, Recipe, Step, files};
use run::{Event, Finished};

/// Read after the host's configuration: hooks must not run for a private update, and only package lists are wanted.
const CONFIGURATION: &str = r#"
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear Acquire::IndexTargets::deb::DEP-11;
#clear Acquire::IndexTargets::deb::Contents-deb;
#clear Acquire::IndexTargets::deb::CNF;
#clear Acquire::IndexTargets::deb-src;
#clear Acquire::Languages;
Acquire::Languages "none";
"#;

/// How long apt may do nothing: longer than its own timeouts with their retries.
const STALL: Duration = Duration::from_secs(180);

/// Where apt's programs are.
#[derive(Clone, Debug)]
pub struct Apt {
    get: PathBuf,
    cache: PathBuf,
    stall: Duration,
}

impl Default for Apt {
    /// The host's, by PATH.
    fn default() -> Self {
        Self { get: "apt-get".into(), cache: "apt-cache".into(), stall: STALL }
    }
}

/// A package that can be downloaded.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Package {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Bytes of the .deb.
    pub size: u64,
    /// SHA-256 of the .deb, in hexadecimal.
    pub sha256: String,
}

/// apt with its private state.
pub struct Session<'a> {
    apt: &'a Apt,
    directory: PathBuf,
    /// What update said, if it was not content.
    complaint: String,
}

impl Apt {
    #[cfg(test)]
    pub(crate) fn at(directory: &Path, stall: Duration) -> Self {
        Self { get: directory.join("apt-get"), cache: directory.join("apt-cache"), stall }
    }

    /// A session whose state is in `directory`, an absolute path.
    pub fn session(&self, directory: &Path) -> Result<Session<'_>, Error> {
        for name in ["state/lists/partial", "cache/archives/partial"] {
            files::create_directory(&directory.join(name))?;
        }
        files::write(&directory.join("apt.conf"), CONFIGURATION.as_bytes())?;
        // No package is installed, as far as this state knows.
        files::write(&directory.join("state/status"), b"")?;
        Ok(Session { apt: self, directory: directory.to_owned(), complaint: String::new() })
    }
}

impl Session<'_> {
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command.env("LC_ALL", "C").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.arg("-c").arg(self.directory.join("apt.conf"));
        let mut set = |name: &str, value: &Path| {
            let mut option = std::ffi::OsString::from(name);
            option.push("=");
            option.push(value);
            command.arg("-o").arg(option);
        };
        set("Dir::State", &self.directory.join("state"));
        set("Dir::State::lists", &self.directory.join("state/lists"));
        set("Dir::State::status", &self.directory.join("state/status"));
        set("Dir::Cache", &self.directory.join("cache"));
        set("Dir::Cache::archives", &self.directory.join("cache/archives"));
        for option in [
            // Guests are x86-64 whatever the host is.
            "APT::Architecture=amd64",
            "APT::Architectures=amd64",
            // The user _apt could not write here.
            "APT::Sandbox::User=root",
            "Acquire::http::Timeout=30",
            "Acquire::https::Timeout=30",
            "Acquire::Retries=2",
        ] {
            command.arg("-o").arg(option);
        }
        command
    }

    /// Reads the package lists. Complaints are kept: some sources may fail as long as the packages are found.
    pub fn update(&mut self, progress: &mut dyn Progress) -> Result<(), Error> {
        progress.step(&Step::UpdatingLists);
        let mut tell = |event: Event<'_>| {
            if let Event::Line(line) = event {
                progress.detail(line);
            }
        };
        let finished =
            run::run(self.command(&self.apt.get).arg("update"), &self.directory, self.apt.stall, &mut tell)?;
        if is_disk_full(&finished.complaint) {
            let reason = finished.complaint.trim().to_owned();
            return Err(Error::DiskFull { path: self.directory.clone(), reason });
        }
        self.complaint = finished.complaint;
        Ok(())
    }

    /// The newest version of package `name` that the sources have.
    pub fn resolve(&self, name: &str, recipe: &Recipe) -> Result<Package, Error> {
        package(name, &self.show(&[name], recipe)?)
    }

    /// The kernel package that the recipe's meta package depends on.
    pub fn resolve_kernel(&self, recipe: &Recipe) -> Result<Package, Error> {
        let record = self.show(&[recipe.kernel_meta_package], recipe)?;
        let depends = record_field(&record, "Depends").unwrap_or_default();
        let kernel = dependencies(depends).find(|name| name.starts_with(recipe.kernel_package_prefix));
        let kernel = kernel.ok_or_else(|| Error::NoKernelDependency {
            package: recipe.kernel_meta_package.to_owned(),
            prefix: recipe.kernel_package_prefix,
            recipe: recipe.name,
        })?;
        self.resolve(kernel, recipe)
    }

    /// The packages called `names` with all that they depend on, in an order in which they could be installed.
    pub fn resolve_with_dependencies(&self, names: &[&str], recipe: &Recipe) -> Result<Vec<Package>, Error> {
        if names.is_empty() {
            return Ok(Vec::new());
        }
        let mut command = self.command(&self.apt.get);
        command.args(["--simulate", "--no-install-recommends", "install"]).args(names);
        let program = self.apt.get.display().to_string();
        let output = command.output().map_err(|source| Error::NoApt { program, source })?;
        if !output.status.success() {
            let complaint = if self.complaint.is_empty() {
                String::from_utf8_lossy(&output.stderr).into_owned()
            } else {
                return Err(Error::Network { message: indented(&self.complaint) });
            };
            return Err(Error::Apt {
                command: format!("apt-get --simulate install {}", names.join(" ")),
                status: output.status.to_string(),
                message: indented(&complaint),
            });
        }
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let names: Vec<&str> = installed(&said).collect();
        let records = self.show(&names, recipe)?;
        // They come in the order of the names, each ended by an empty line.
        let mut records = records.split("\n\n").map(str::trim).filter(|record| !record.is_empty());
        let next = |name: &&str| {
            let record = records.find(|record| record_field(record, "Package") == Some(*name));
            package(name, record.unwrap_or_default())
        };
        names.iter().map(next).collect()
    }

    /// apt's records of packages (deb822).
    fn show(&self, names: &[&str], recipe: &Recipe) -> Result<String, Error> {
        let mut command = self.command(&self.apt.cache);
        command.args(["show", "--no-all-versions"]).args(names);
        let program = self.apt.cache.display().to_string();
        let output = command.output().map_err(|source| Error::NoApt { program, source })?;
        if output.status.success() && !output.stdout.is_empty() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        Err(match self.complaint.is_empty() {
            true => Error::NoPackage { package: names.join(", "), recipe: recipe.name },
            false => Error::Network { message: indented(&self.complaint) },
        })
    }

    /// Downloads packages into `directory` and checks them; returns the files in the same order.
    pub fn download(
        &self,
        packages: &[Package],
        directory: &Path,
        progress: &mut dyn Progress,
    ) -> Result<Vec<PathBuf>, Error> {
        let total = packages.iter().map(|package| package.size).sum();
        progress.step(&Step::Downloading {
            packages: packages.iter().map(|p| (p.name.clone(), p.version.clone())).collect(),
            size: total,
        });
        let mut command = self.command(&self.apt.get);
        command.current_dir(directory).arg("-q").arg("download");
        command.args(packages.iter().map(|package| format!("{}={}", package.name, package.version)));
        let mut tell = |event: Event<'_>| {
            if let Event::Bytes(bytes) = event {
                progress.bytes(bytes.min(total), total);
            }
        };
        let finished = run::run(&mut command, directory, self.apt.stall, &mut tell)?;
        self.check_download(&finished)?;
        progress.bytes(total, total);
        let files = packages.iter().map(|package| verify(package, directory)).collect::<Result<_, _>>()?;
        match packages {
            [.., _, _, _, _, _] => {
                progress.step(&Step::VerifiedAll { packages: packages.len(), size: total })
            }
            few => few.iter().for_each(|package| {
                let Package { name, size, sha256, .. } = package.clone();
                progress.step(&Step::Verified { package: name, size, sha256 });
            }),
        }
        Ok(files)
    }

    fn check_download(&self, finished: &Finished) -> Result<(), Error> {
        let message = &finished.complaint;
        if finished.status.success() {
            return Ok(());
        }
        Err(if is_disk_full(message) {
            Error::DiskFull { path: self.directory.clone(), reason: message.trim().to_owned() }
        } else if message.contains("Failed to fetch") || message.contains("Could not resolve") {
            Error::Network { message: indented(message) }
        } else {
            Error::Apt {
                command: "apt-get download".into(),
                status: finished.status.to_string(),
                message: indented(message),
            }
        })
    }
}

/// Finds the package's file and compares it with what the package list says.
fn verify(package: &Package, directory: &Path) -> Result<PathBuf, Error> {
    let failed = |error| Error::of_file(directory, error);
    let start = format!("{}_", package.name);
    let mut found = None;
    for entry in fs::read_dir(directory).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with(&start) && name.ends_with(".deb") {
            found = Some(entry.path());
        }
    }
    let path = found.ok_or_else(|| Error::Apt {
        command: "apt-get download".into(),
        status: "exit status: 0".into(),
        message: format!("  but there is no file of package {}", package.name),
    })?;
    let (size, sha256) = files::measure(&path).map_err(|error| Error::of_file(&path, error))?;
    let mismatch = |what, actual: String, expected: String| {
        Err(Error::Mismatch { package: package.name.clone(), what, actual, expected })
    };
    if size != package.size {
        return mismatch("size", size.to_string(), package.size.to_string());
    }
    if sha256 != package.sha256 {
        return mismatch("SHA-256", sha256, package.sha256.clone());
    }
    Ok(path)
}

fn is_disk_full(message: &str) -> bool {
    message.contains("No space left on device") || message.contains("enough free space")
}

/// apt's words, set off from ours, without what is only a hint to run apt again.
fn indented(message: &str) -> String {
    let lines = message.lines().filter(|line| line.starts_with("E:") || line.starts_with("W:"));
    let mut lines: Vec<_> = lines.map(|line| format!("  {line}")).collect();
    if lines.is_empty() {
        lines = message.lines().map(|line| format!("  {line}")).collect();
    }
    lines.dedup();
    lines.truncate(12);
    lines.join("\n")
}

/// What a record says about its package.
fn package(name: &str, record: &str) -> Result<Package, Error> {
    let unusable = |field| Error::Metadata { package: name.to_owned(), field };
    let field = |field: &'static str| record_field(record, field).ok_or_else(|| unusable(field));
    let sha256 = field("SHA256")?.to_ascii_lowercase();
    if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(unusable("SHA256"));
    }
    Ok(Package {
        name: name.to_owned(),
        version: field("Version")?.to_owned(),
        size: field("Size")?.parse().map_err(|_| unusable("Size"))?,
        sha256,
    })
}

/// A field of a deb822 record; continuation lines are left out, which no field used here has.
fn record_field<'a>(record: &'a str, field: &str) -> Option<&'a str> {
    let paragraph = record.lines().take_while(|line| !line.is_empty());
    paragraph
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case(field))
        .map(|(_, value)| value.trim())
}

/// Names in lines "Inst NAME (VERSION …)" of a simulated installation.
fn installed(said: &str) -> impl Iterator<Item = &str> {
    said.lines().filter_map(|line| line.strip_prefix("Inst ")?.split([' ', ':']).next())
}

/// Names of all packages in a Depends field (Debian policy 7.1), alternatives included.
fn dependencies(depends: &str) -> impl Iterator<Item = &str> {
    depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.trim().split([' ', '(', ':', '[']).next())
        .filter(|name| !name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_those_of_the_first_paragraph() {
        let record =
            "Package: a\nVersion: 1:2-3\nDescription: x\n more: y\nSize: 17\n\nPackage: b\nSHA256: 00\n";
        assert_eq!(record_field(record, "Version"), Some("1:2-3"));
        assert_eq!(record_field(record, "size"), Some("17"));
        assert_eq!(record_field(record, "SHA256"), None);
    }

    #[test]
    fn dependencies_lose_versions_and_alternatives() {
        let depends = "kmod, linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), a:any | b(>= 1) [amd64]";
        let names: Vec<_> = dependencies(depends).collect();
        assert_eq!(names, ["kmod", "linux-image-6.1.0-56-cloud-amd64", "a", "b"]);
    }

    #[test]
    fn a_simulated_installation_names_packages() {
        let said =
            "Reading package lists...\nInst a (1:2 Debian:12 [amd64]) []\nInst b:amd64 (3)\nConf a (1:2)\n";
        assert_eq!(installed(said).collect::<Vec<_>>(), ["a", "b"]);
    }

    #[test]
    fn only_errors_and_warnings_are_quoted() {
        let message = "Ign:1 http://x\nW: Failed to fetch\nW: Failed to fetch\nE: gone\n";
        assert_eq!(indented(message), "  W: Failed to fetch\n  E: gone");
        assert_eq!(indented("something else"), "  something else");
    }
}
