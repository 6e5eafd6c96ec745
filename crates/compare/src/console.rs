//! A contestant that runs, and the conversation with it over its console. It is ended when it is dropped.

use std::{
    io::{Read, Write},
    os::{fd::AsRawFd, unix::process::CommandExt},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    contestant::Contestant,
    native,
    usage::{self, Total},
};

/// How much of the console an error shows.
const TAIL: usize = 800;

/// It runs.
pub struct Console {
    child: Child,
    stdin: ChildStdin,
    stdout: ChildStdout,
    errors: Option<JoinHandle<String>>,
    text: Vec<u8>,
    /// How far the text was looked at.
    seen: usize,
    /// How long it may say nothing of what is waited for.
    patience: Duration,
    waited_for: bool,
}

impl Console {
    /// Starts it.
    pub fn start(contestant: &Contestant, patience: Duration) -> Result<Self> {
        let mut command = Command::new(&contestant.command[0]);
        command.args(&contestant.command[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        if let Some(root) = &contestant.root {
            native::enter(&mut command, root)?;
        }
        // It must not outlive this program, however that ends.
        // SAFETY: prctl is a system call without effect on memory.
        unsafe {
            command.pre_exec(|| {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                Ok(())
            });
        }
        let mut child =
            command.spawn().with_context(|| format!("starting {}", contestant.command[0].display()))?;
        let stdin = child.stdin.take().context("its standard input")?;
        let stdout = child.stdout.take().context("its standard output")?;
        let mut stderr = child.stderr.take().context("its standard error")?;
        let errors = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            // What was read until an error is still worth showing.
            let _ = stderr.read_to_end(&mut bytes);
            String::from_utf8_lossy(&bytes).into_owned()
        });
        let (text, errors) = (Vec::new(), Some(errors));
        Ok(Self { child, stdin, stdout, errors, text, seen: 0, patience, waited_for: false })
    }

    /// Its process.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Reads until `wanted` appears behind all that was waited for before.
    pub fn wait_for(&mut self, wanted: &str) -> Result<()> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(at) = find(&self.text[self.seen..], wanted.as_bytes()) {
                self.seen += at + wanted.len();
                return Ok(());
            }
            ensure!(
                self.read(deadline)?,
                "it ended before its console showed \"{wanted}\":\n{}{}",
                self.tail(),
                self.complaint()
            );
        }
    }

    /// The rest of the next line that has `mark` in it; nothing if it ends before.
    pub fn line_with(&mut self, mark: &str) -> Result<Option<String>> {
        let deadline = Instant::now() + self.patience;
        loop {
            if let Some(at) = find(&self.text[self.seen..], mark.as_bytes()) {
                let start = self.seen + at + mark.len();
                if let Some(length) = find(&self.text[start..], b"\n") {
                    self.seen = start + length + 1;
                    let line = String::from_utf8_lossy(&self.text[start..start + length]);
                    return Ok(Some(line.trim().to_owned()));
                }
            }
            if !self.read(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Types.
    pub fn send(&mut self, text: &str) -> Result<()> {
        let sent = self.stdin.write_all(text.as_bytes()).and_then(|()| self.stdin.flush());
        sent.with_context(|| format!("typing at its console, which ends with:\n{}", self.tail()))
    }

    /// Waits until it ends by itself, which it must do with status 0. Returns what it cost, and what it said on standard
    /// error.
    pub fn finish(mut self) -> Result<(Total, String)> {
        let deadline = Instant::now() + self.patience;
        while self.read(deadline)? {}
        let total = usage::wait(self.child.id())?;
        self.waited_for = true;
        let complaint = self.complaint();
        ensure!(
            total.status == 0,
            "it ended with wait status {:#x}:\n{}{complaint}",
            total.status,
            self.tail()
        );
        Ok((total, complaint))
    }

    /// The end of what it has shown.
    pub fn tail(&self) -> String {
        String::from_utf8_lossy(&self.text[self.text.len().saturating_sub(TAIL)..]).into_owned()
    }

    /// What it said on standard error, once that is closed.
    pub fn complaint(&mut self) -> String {
        self.errors.take().and_then(|errors| errors.join().ok()).unwrap_or_default()
    }

    /// Reads a piece; false at the end.
    fn read(&mut self, deadline: Instant) -> Result<bool> {
        let left = deadline.saturating_duration_since(Instant::now());
        if !readable(&self.stdout, left)? {
            bail!(
                "it hangs: nothing that was waited for in {} s (--timeout); its console ends with:\n{}",
                self.patience.as_secs(),
                self.tail()
            );
        }
        let mut buffer = [0; 4096];
        let count = self.stdout.read(&mut buffer).context("reading its console")?;
        self.text.extend_from_slice(&buffer[..count]);
        Ok(count > 0)
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        if !self.waited_for {
            // It may have ended already.
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len()).position(|window| window == wanted)
}

/// Whether there is something to read (or the end) before the time is over.
fn readable(pipe: &impl AsRawFd, longest: Duration) -> Result<bool> {
    let mut fd = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, longest.as_millis() as libc::c_int) };
    ensure!(ready >= 0, "waiting for its console: {}", std::io::Error::last_os_error());
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str, patience: Duration) -> Console {
        let mut contestant = Contestant::native("/bin/sh".as_ref(), None);
        contestant.command.extend(["-c".into(), script.into()]);
        Console::start(&contestant, patience).unwrap()
    }

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_conversation() {
        let mut console =
            shell("echo noise; echo '[1.0] @ready a'; read x; echo \"@done $x\"; echo oops >&2", LONG);
        assert_eq!(console.line_with("@ready ").unwrap().as_deref(), Some("a"));
        console.send("go\n").unwrap();
        console.wait_for("@done").unwrap();
        assert_eq!(console.line_with(" ").unwrap().as_deref(), Some("go"));
        assert_eq!(console.line_with("@").unwrap(), None);
        let (total, complaint) = console.finish().unwrap();
        assert_eq!((total.status, complaint.as_str()), (0, "oops\n"));
    }

    #[test]
    fn a_failure_shows_what_was_said() {
        let console = shell("echo last words; echo why >&2; exit 3", LONG);
        let error = console.finish().unwrap_err().to_string();
        assert!(error.contains("0x300") && error.contains("last words") && error.contains("why"), "{error}");
        let mut console = shell("echo last words", LONG);
        let error = console.wait_for("@ready").unwrap_err().to_string();
        assert!(error.contains("ended before") && error.contains("last words"), "{error}");
    }

    #[test]
    fn what_hangs_is_ended() {
        let mut console = shell("echo last words; sleep 60", Duration::from_millis(300));
        let process = console.process();
        let error = console.wait_for("@ready").unwrap_err().to_string();
        assert!(error.contains("hangs") && error.contains("last words"), "{error}");
        drop(console);
        assert!(usage::cpu_time(process).is_err());
    }
}
