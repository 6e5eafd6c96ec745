//! Running apt-get and watching over it: it tells what it does, and must not hang. (Its fetchers wait for ever when
//! the disk is full, and for long when a server goes silent.)

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::{Error, cache};

/// How often its directory is looked at.
const POLL: Duration = Duration::from_millis(100);
/// With a full disk, how long it may stand still.
const FULL_DISK_STALL: Duration = Duration::from_secs(3);
/// Less free space than this is a full disk.
const FULL_DISK: u64 = 64 << 10;

/// What apt-get is doing.
pub(super) enum Event<'a> {
    /// It wrote a line.
    Line(&'a str),
    /// There are so many bytes in its directory.
    Bytes(u64),
}

/// How it ended.
pub(super) struct Finished {
    pub(super) status: ExitStatus,
    /// What it wrote to its standard error.
    pub(super) complaint: String,
}

/// Runs `command` to its end. It is taken to make progress while it writes lines or `directory` changes its size;
/// after `stall` without progress it is ended.
pub(super) fn run(
    command: &mut Command,
    directory: &Path,
    stall: Duration,
    tell: &mut dyn FnMut(Event<'_>),
) -> Result<Finished, Error> {
    let program = command.get_program().to_string_lossy().into_owned();
    let failed = |source| Error::NoApt { program: program.clone(), source };
    let mut child = Guard(command.spawn().map_err(failed)?);
    let complaint = read_all(child.0.stderr.take());
    let (sender, lines) = mpsc::channel();
    let reader = child.0.stdout.take().map(|pipe| {
        thread::spawn(move || {
            for line in BufReader::new(pipe).split(b'\n').map_while(Result::ok) {
                // Nobody listens any more if the child was given up.
                let _ = sender.send(String::from_utf8_lossy(&line).trim_end().to_owned());
            }
        })
    });

    let (mut size, mut changed) = (0, Instant::now());
    loop {
        match lines.recv_timeout(POLL) {
            Ok(line) => {
                changed = Instant::now();
                tell(Event::Line(&line));
                continue;
            }
            Err(RecvTimeoutError::Timeout) => {}
            // The pipe is closed: it has ended, or is about to.
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = bytes_in(directory);
        if now != size {
            (size, changed) = (now, Instant::now());
            tell(Event::Bytes(size));
        }
        let still = changed.elapsed();
        if still > FULL_DISK_STALL && cache::available(directory).is_some_and(|free| free < FULL_DISK) {
            return Err(Error::DiskFull { path: directory.to_owned(), reason: "no space is left".into() });
        }
        if still > stall {
            let message = format!("  (nothing for {} seconds; it was ended)", stall.as_secs());
            return Err(Error::Network { message });
        }
    }
    let status = child.0.wait().map_err(failed)?;
    if let Some(reader) = reader {
        // Threads that only read pipes don't panic.
        let _ = reader.join();
    }
    Ok(Finished { status, complaint: complaint.join().unwrap_or_default() })
}

/// Ends the child on every way out; one that has ended already is not harmed.
struct Guard(Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Collects what a pipe gives on a thread of its own, so that the child never waits for its reader.
fn read_all(pipe: Option<impl Read + Send + 'static>) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // What was read until an error is still worth showing.
            let _ = pipe.read_to_end(&mut bytes);
        }
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Size of all files in a directory and below.
fn bytes_in(directory: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(directory) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            Some(if metadata.is_dir() { bytes_in(&entry.path()) } else { metadata.len() })
        })
        .sum()
}
