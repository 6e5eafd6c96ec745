//! `--jitdump`: the file that `perf inject --jit` reads, `jit-PID.dump` in the profile's directory.
//!
//! `perf record` notices it because this process maps it executable; nothing else happens with the mapping. Pieces of code are written
//! when profiles are, under the time at which they were installed.

use std::{
    fs::File,
    io::{self, BufWriter, Write},
    path::Path,
};

use profiler::{
    jitdump::{self, Piece},
    lines::Lines,
    model::{Profile, Tier},
    naming::Link,
    symbols::OfGuest,
    text,
};
use runtime::{Installed, Recorder};
use rustix::{
    mm::{MapFlags, ProtFlags},
    time::{ClockId, clock_gettime},
};

/// What is mapped of the file.
const MARKER: usize = 4096;

/// The file.
pub struct JitDump {
    file: BufWriter<File>,
    process: u32,
    /// Pieces in it.
    written: usize,
}

impl JitDump {
    /// Begins a file.
    pub fn create(directory: &Path) -> io::Result<Self> {
        let process = std::process::id();
        let path = directory.join(format!("jit-{process}.dump"));
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        // SAFETY: the kernel chooses where; nobody reads the mapping, or unmaps it: what is recorded at its end may be looked
        // for there.
        unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                MARKER,
                ProtFlags::READ | ProtFlags::EXEC,
                MapFlags::PRIVATE,
                &file,
                0,
            )?;
        }
        let mut file = BufWriter::new(file);
        file.write_all(&jitdump::header(process, now()))?;
        file.flush()?;
        Ok(Self { file, process, written: 0 })
    }

    /// Writes what is new in a profile of `recorder`; lines are those of the file that `found` is from.
    pub fn write(
        &mut self,
        profile: &Profile,
        recorder: &Recorder,
        found: &OfGuest,
        lines: &mut Lines,
    ) -> io::Result<()> {
        let mut new = recorder.installed_since(self.written);
        new.truncate(profile.code.len().saturating_sub(self.written));
        let mut lines = LinesOf::new(profile, found, lines);
        lines.look_up(self.written, &new);
        for (number, installed) in new.iter().enumerate() {
            let index = self.written + number;
            let piece = Piece {
                index: index as u64,
                address: installed.address,
                at_ns: installed.at_ns,
                code: &installed.code,
                name: name(profile, index),
                lines: lines.of(index, installed),
            };
            self.file.write_all(&jitdump::piece(&piece, self.process))?;
        }
        self.written += new.len();
        self.file.flush()
    }

    /// Nothing will follow.
    pub fn close(mut self) -> io::Result<()> {
        self.file.write_all(&jitdump::close(now()))?;
        self.file.flush()
    }
}

fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// By the guest block that it is entered at, as in a map for `perf`.
fn name(profile: &Profile, code: usize) -> String {
    let code = &profile.code[code];
    let head = code.members.first().and_then(|member| profile.blocks.get(member.block?));
    let tier = match code.tier {
        Tier::Templates => "template",
        Tier::Region => "region",
        Tier::Compiled => "compiled",
    };
    format!("guest_{tier}:{}", head.map_or_else(|| "?".into(), text::name))
}

/// Source lines of guest instructions.
struct LinesOf<'a> {
    profile: &'a Profile,
    link: Link<'a>,
    lines: &'a mut Lines,
    file: Option<&'a Path>,
}

impl<'a> LinesOf<'a> {
    fn new(profile: &'a Profile, found: &'a OfGuest, lines: &'a mut Lines) -> Self {
        let file = found.symbols.elf.as_ref().map(|elf| elf.path.as_path());
        Self { profile, link: Link::new(found, &profile.blocks), lines, file }
    }

    /// The address that the linker gave to an instruction of a piece of code, if it is in a block that has a line.
    fn linked(&self, code: usize, member: usize, rip: u64) -> Option<u64> {
        let block = &self.profile.blocks[self.profile.code[code].members.get(member)?.block?];
        block.line.as_ref()?;
        Some(self.link.linked(block)?.wrapping_add(rip.wrapping_sub(block.rip)))
    }

    fn look_up(&mut self, first: usize, new: &[Installed]) {
        let Some(file) = self.file else { return };
        let mut addresses = Vec::new();
        for (number, installed) in new.iter().enumerate() {
            let of = |&(_, member, rip): &(u32, usize, u64)| self.linked(first + number, member, rip);
            addresses.extend(installed.instructions.iter().filter_map(of));
        }
        // What it says is in the profile already.
        let _ = self.lines.look_up(file, addresses.into_iter());
    }

    fn of(&self, code: usize, installed: &Installed) -> Vec<(u32, String)> {
        let lines = installed.instructions.iter().filter_map(|&(offset, member, rip)| {
            Some((offset, self.lines.of(self.linked(code, member, rip)?)?))
        });
        let mut lines: Vec<(u32, String)> = lines.collect();
        lines.dedup_by(|next, last| next.1 == last.1);
        lines
    }
}
