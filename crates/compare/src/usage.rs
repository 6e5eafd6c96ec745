//! What a process costs, as the host's kernel accounts for it.

use std::{fs, time::Duration};

use anyhow::{Context, Result, ensure};

/// CPU time (user and system, all threads, also those that have ended) of a running process.
pub fn cpu_time(process: u32) -> Result<Duration> {
    let mut clock: libc::clockid_t = 0;
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the two places that are written to outlive the calls.
    let read = unsafe {
        libc::clock_getcpuclockid(process as libc::pid_t, &raw mut clock) == 0
            && libc::clock_gettime(clock, &raw mut time) == 0
    };
    ensure!(read, "reading the CPU time of process {process}: has it ended?");
    Ok(Duration::new(time.tv_sec as u64, time.tv_nsec as u32))
}

/// Resident memory of a running process, MiB.
#[derive(Clone, Copy, Debug)]
pub struct Resident {
    /// All of it.
    pub total: f64,
    /// Of the mapping that is the guest's memory: what the guest has touched.
    pub guest: f64,
}

/// Resident memory of a process that gives its guest `memory` bytes.
///
/// The guest's memory is taken to be the neighbouring writable mappings, alike in what they map, that together have the
/// size of that memory up to 2 MiB for alignment: kernels split mappings where advice about them differs.
pub fn resident(process: u32, memory: u64) -> Result<Resident> {
    let path = format!("/proc/{process}/smaps");
    let text = fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let mappings = mappings(&text);
    let guest = find_guest(&mappings, memory);
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    let total = mappings.iter().map(|mapping| mapping.resident).sum();
    Ok(Resident {
        total: mib(total),
        guest: mib(guest.with_context(|| format!("{path} shows no mapping of the guest's memory"))?),
    })
}

struct Mapping<'a> {
    start: u64,
    end: u64,
    writable: bool,
    /// Inode and path.
    object: &'a str,
    resident: u64,
}

/// proc_pid_smaps(5): a line as in maps, then lines "Name: value kB". Pss counts a page once that is mapped twice, as code
/// memory is.
fn mappings(text: &str) -> Vec<Mapping<'_>> {
    let mut all: Vec<Mapping<'_>> = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let (Some(first), Some(second)) = (words.next(), words.next()) else { continue };
        if let Some((start, end)) = first.split_once('-')
            && let (Ok(start), Ok(end)) = (u64::from_str_radix(start, 16), u64::from_str_radix(end, 16))
        {
            let object = line.splitn(5, ' ').nth(4).unwrap_or_default();
            all.push(Mapping { start, end, writable: second.contains('w'), object, resident: 0 });
        } else if first == "Pss:"
            && let Some(mapping) = all.last_mut()
        {
            mapping.resident = second.parse::<u64>().unwrap_or(0) << 10;
        }
    }
    all
}

fn find_guest(mappings: &[Mapping<'_>], memory: u64) -> Option<u64> {
    for (number, first) in mappings.iter().enumerate().filter(|(_, mapping)| mapping.writable) {
        let (mut end, mut resident) = (first.end, first.resident);
        let mut rest = mappings[number + 1..].iter();
        loop {
            let size = end - first.start;
            if size >= memory {
                if size <= memory + (2 << 20) {
                    return Some(resident);
                }
                break;
            }
            match rest.next() {
                Some(next) if next.start == end && next.writable && next.object == first.object => {
                    end = next.end;
                    resident += next.resident;
                }
                _ => break,
            }
        }
    }
    None
}

/// What a process that has ended cost in all.
#[derive(Clone, Copy, Debug)]
pub struct Total {
    /// Its wait status.
    pub status: i32,
    /// User CPU time, seconds.
    pub user: f64,
    /// System CPU time, seconds.
    pub system: f64,
    /// Peak resident memory, MiB.
    pub peak: f64,
}

/// Waits for a child and takes the system's account of it, which the standard library does not give.
pub fn wait(child: u32) -> Result<Total> {
    // SAFETY: an all-zero rusage is valid; wait4 writes to the two places given and nowhere else. The child is ours and
    // nobody else waits for it.
    let (status, usage) = unsafe {
        let mut status = 0;
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(child as libc::pid_t, &raw mut status, 0, &raw mut usage);
        ensure!(waited == child as libc::pid_t, "waiting for it: {}", std::io::Error::last_os_error());
        (status, usage)
    };
    let seconds = |time: libc::timeval| time.tv_sec as f64 + time.tv_usec as f64 / 1e6;
    Ok(Total {
        status,
        user: seconds(usage.ru_utime),
        system: seconds(usage.ru_stime),
        peak: usage.ru_maxrss as f64 / 1024.0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
55d000000000-55d000100000 rw-p 00000000 00:00 0                          [heap]
Size:               1024 kB
Pss:                 512 kB
7f0000000000-7f0010000000 rw-p 00000000 00:00 0
Pss:              100000 kB
7f0010000000-7f0020000000 rw-p 00000000 00:00 0
Pss:               50000 kB
VmFlags: rd wr mr mw me ac sd
7f0020000000-7f0020001000 ---p 00000000 00:00 0
Pss:                   0 kB
7f0030000000-7f0070000000 rw-s 00000000 00:01 77                         /memfd:code (deleted)
Pss:                3000 kB
";

    #[test]
    fn the_guest_is_found_although_it_is_split() {
        let mappings = mappings(SMAPS);
        assert_eq!(mappings.len(), 5);
        assert_eq!(find_guest(&mappings, 512 << 20), Some(150_000 << 10));
        assert_eq!(find_guest(&mappings, 511 << 20), Some(150_000 << 10));
        assert_eq!(find_guest(&mappings, 500 << 20), None);
        assert_eq!(mappings.iter().map(|mapping| mapping.resident).sum::<u64>(), 153_512 << 10);
    }

    #[test]
    fn this_process_uses_time_and_memory() {
        let before = cpu_time(std::process::id()).unwrap();
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        assert!(cpu_time(std::process::id()).unwrap() > before);
        let resident = resident(std::process::id(), memory.len() as u64).unwrap();
        assert!(resident.guest >= 64.0 && resident.total > resident.guest, "{resident:?}");
    }

    #[test]
    fn children_are_accounted_for() {
        let mut child = std::process::Command::new("sh").args(["-c", "exit 3"]).spawn().unwrap();
        let total = wait(child.id()).unwrap();
        assert_eq!(total.status, 3 << 8);
        assert!(child.wait().is_err(), "it was waited for already");
        assert!(total.peak > 0.0);
    }
}
