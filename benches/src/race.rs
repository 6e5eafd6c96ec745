//! Running the contestants in turn.

use std::{
    io::{Read, Write},
    os::fd::AsRawFd,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;

use crate::contestant::Contestant;

/// What the guest's shell prints when it is ready (its prompt is `root@debian:~# `), and what ends the guest.
const PROMPT: &[u8] = b":~# ";
const FAREWELL: &[u8] = b"poweroff -f\n";
/// The slowest contestant (the interpreter) stays well below this.
const LONGEST: Duration = Duration::from_secs(180);

/// One run.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Run {
    /// Wall time to the shell's prompt, seconds.
    pub to_shell: f64,
    /// Wall time to the end, seconds.
    pub wall: f64,
    /// User CPU time of the whole process, seconds.
    pub user: f64,
    /// System CPU time, seconds.
    pub system: f64,
    /// Peak resident memory, MiB.
    pub resident: f64,
}

/// All runs of a contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Its runs, in order.
    pub runs: Vec<Run>,
    /// What the last run printed about itself (`--stats --json`), for engines of ours.
    pub statistics: Option<serde_json::Value>,
}

/// Runs everyone once a round.
pub fn run(contestants: &[Contestant], rounds: usize) -> Result<Vec<Standing>> {
    let mut results: Vec<Standing> = contestants
        .iter()
        .map(|contestant| Standing { name: contestant.name.clone(), runs: Vec::new(), statistics: None })
        .collect();
    for round in 1..=rounds {
        for (contestant, result) in contestants.iter().zip(&mut results) {
            eprintln!("round {round} of {rounds}: {}", contestant.name);
            let (run, errors) = once(contestant).with_context(|| contestant.name.clone())?;
            result.runs.push(run);
            result.statistics = errors.lines().rev().find_map(|line| serde_json::from_str(line).ok());
        }
    }
    Ok(results)
}

fn once(contestant: &Contestant) -> Result<(Run, String)> {
    let begun = Instant::now();
    let mut child = Command::new(&contestant.command[0])
        .args(&contestant.command[1..])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting it")?;
    let mut stdin = child.stdin.take().context("its standard input")?;
    let mut stdout = child.stdout.take().context("its standard output")?;
    let mut stderr = child.stderr.take().context("its standard error")?;
    let errors = std::thread::spawn(move || {
        let mut text = String::new();
        let _ = stderr.read_to_string(&mut text);
        text
    });
    let mut console = Vec::new();
    let mut to_shell = None;
    let mut buffer = [0; 4096];
    loop {
        if !readable(&stdout, LONGEST.saturating_sub(begun.elapsed()))? {
            child.kill().context("ending it")?;
            let tail = String::from_utf8_lossy(&console[console.len().saturating_sub(500)..]).into_owned();
            bail!("it takes longer than {} s; its console ends with:\n{tail}", LONGEST.as_secs());
        }
        let count = stdout.read(&mut buffer).context("reading its console")?;
        if count == 0 {
            break;
        }
        console.extend_from_slice(&buffer[..count]);
        if to_shell.is_none() && console.windows(PROMPT.len()).any(|window| window == PROMPT) {
            to_shell = Some(begun.elapsed());
            stdin.write_all(FAREWELL).context("typing")?;
        }
    }
    let (status, usage) = wait(child.id())?;
    let errors = errors.join().unwrap_or_default();
    let tail = String::from_utf8_lossy(&console[console.len().saturating_sub(500)..]).into_owned();
    ensure!(status == 0, "it ended with wait status {status:#x}:\n{tail}\n{errors}");
    let to_shell = to_shell.with_context(|| format!("its console shows no shell:\n{tail}"))?;
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    let run = Run {
        to_shell: to_shell.as_secs_f64(),
        wall: begun.elapsed().as_secs_f64(),
        user: seconds(usage.ru_utime),
        system: seconds(usage.ru_stime),
        resident: usage.ru_maxrss as f64 / 1024.0,
    };
    Ok((run, errors))
}

/// Whether there is something to read (or the end) before the time is over.
fn readable(pipe: &impl AsRawFd, longest: Duration) -> Result<bool> {
    let mut fd = libc::pollfd { fd: pipe.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    // SAFETY: one pollfd, which outlives the call.
    let ready = unsafe { libc::poll(&raw mut fd, 1, longest.as_millis() as libc::c_int) };
    ensure!(ready >= 0, "waiting for its console: {}", std::io::Error::last_os_error());
    Ok(ready > 0)
}

/// Waits for a child and takes the system's account of it, which the standard library does not give.
fn wait(child: u32) -> Result<(i32, libc::rusage)> {
    // SAFETY: an all-zero rusage is valid; wait4 writes to the two places given and nowhere else. The child is ours and
    // nobody else waits for it.
    unsafe {
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(child as libc::pid_t, &raw mut status, 0, &raw mut usage);
        ensure!(waited == child as libc::pid_t, "waiting for it: {}", std::io::Error::last_os_error());
        Ok((status, usage))
    }
}
