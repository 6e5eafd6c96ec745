//! What a run cost.

use std::{
    fmt,
    time::{Duration, Instant},
};

use runtime::persistent::{Saved, Translations};
use serde::Serialize;
use vcpu::{Exit, Statistics};

/// How often the guest left its engine, by reason.
#[derive(Clone, Copy, Debug, Default, Serialize)]
#[allow(missing_docs, reason = "named after vcpu::Exit")]
pub struct ExitCounts {
    pub port: u64,
    pub mmio: u64,
    pub msr: u64,
    pub hypercall: u64,
    pub halt: u64,
    pub interrupt_window: u64,
    pub kicked: u64,
}

impl ExitCounts {
    /// Counts one.
    pub fn count(&mut self, exit: Exit) {
        match exit {
            Exit::PortRead { .. } | Exit::PortWrite { .. } => self.port += 1,
            Exit::MmioRead { .. } | Exit::MmioWrite { .. } => self.mmio += 1,
            Exit::MsrRead { .. } | Exit::MsrWrite { .. } => self.msr += 1,
            Exit::Hypercall { .. } => self.hypercall += 1,
            Exit::Halt => self.halt += 1,
            Exit::InterruptWindow => self.interrupt_window += 1,
            Exit::Kicked => self.kicked += 1,
            Exit::Shutdown => {}
        }
    }
}

/// Figures of a run, over all its boots.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    #[serde(skip)]
    begun: Instant,
    #[serde(skip)]
    cpu_before: Duration,
    /// Wall time, seconds.
    pub wall_seconds: f64,
    /// User CPU time of this process, seconds.
    pub user_seconds: f64,
    /// Whether the engine counts what it executes; KVM does not, and all counters up to `exits` are zero.
    pub counted: bool,
    /// Guest instructions retired.
    pub instructions: u64,
    /// Of these, by the interpreter.
    pub interpreted: u64,
    /// Guest blocks decoded.
    pub blocks: u64,
    /// Blocks compiled.
    pub compiled: u64,
    /// Host code bytes produced.
    pub code_bytes: u64,
    /// Seconds in the compiler.
    pub compile_seconds: f64,
    /// Blocks invalidated by writes to code.
    pub invalidated: u64,
    /// Times that code memory was full and emptied.
    pub evictions: u64,
    /// Softmmu misses that led to a page walk.
    pub tlb_fills: u64,
    /// Pages that translated code could access by the host's own MMU.
    pub window_pages: u64,
    /// Its accesses there that the host faulted at.
    pub window_faults: u64,
    /// Exits to the board.
    pub exits: ExitCounts,
    /// What came of translations that are kept, if they are.
    pub translations: Option<TranslationReport>,
}

/// What came of the translation cache.
#[derive(Clone, Debug, Serialize)]
pub struct TranslationReport {
    /// The file.
    pub file: String,
    /// Blocks whose code came from it.
    pub loaded: u64,
    /// Host code bytes of those.
    pub loaded_bytes: u64,
    /// Blocks that were looked for and are not in it.
    pub missed: u64,
    /// Blocks that would be new in it.
    pub new: u64,
    /// Bytes that it had.
    pub file_bytes: u64,
    /// Bytes that it has now, if it was written anew.
    pub written: Option<u64>,
    /// Why it was not.
    pub error: Option<String>,
}

impl TranslationReport {
    /// Saves what is new.
    pub fn of(translations: &Translations) -> Self {
        let usage = translations.usage();
        let file = translations.path().display().to_string();
        let (written, error) = match translations.save() {
            Ok(Saved::Unchanged) => (None, None),
            Ok(Saved::Written(bytes)) => (Some(bytes), None),
            Err(error) => {
                let text = format!(
                    "writing {file}: {error}; name another file with --translation-cache, or say off"
                );
                (None, Some(text))
            }
        };
        Self {
            file,
            loaded: usage.loaded,
            loaded_bytes: usage.loaded_bytes,
            missed: usage.missed,
            new: usage.new,
            file_bytes: usage.file_bytes,
            written,
            error,
        }
    }
}

impl fmt::Display for TranslationReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        write!(
            f,
            "translations  {} blocks loaded ({:.1} MiB), {} not found, {} new; file of {:.1} MiB",
            self.loaded,
            mib(self.loaded_bytes),
            self.missed,
            self.new,
            mib(self.file_bytes)
        )?;
        match (&self.error, self.written) {
            (Some(_), _) => write!(f, ", could not be written"),
            (None, Some(bytes)) => write!(f, ", now of {:.1} MiB", mib(bytes)),
            (None, None) => write!(f, ", left as it is"),
        }
    }
}

impl Report {
    /// Begins to measure.
    pub fn start() -> Self {
        Self {
            begun: Instant::now(),
            cpu_before: user_time(),
            wall_seconds: 0.0,
            user_seconds: 0.0,
            counted: false,
            instructions: 0,
            interpreted: 0,
            blocks: 0,
            compiled: 0,
            code_bytes: 0,
            compile_seconds: 0.0,
            invalidated: 0,
            evictions: 0,
            tlb_fills: 0,
            window_pages: 0,
            window_faults: 0,
            exits: ExitCounts::default(),
            translations: None,
        }
    }

    /// Adds what an engine did.
    pub fn add(&mut self, s: &Statistics) {
        self.counted |= s.instructions != 0;
        self.instructions += s.instructions;
        self.interpreted += s.interpreted;
        self.blocks += s.blocks;
        self.compiled += s.compiled;
        self.code_bytes += s.code_bytes;
        self.compile_seconds += s.compile_nanoseconds as f64 / 1e9;
        self.invalidated += s.invalidated;
        self.evictions += s.evictions;
        self.tlb_fills += s.tlb_fills;
        self.window_pages += s.window_pages;
        self.window_faults += s.window_faults;
    }

    fn write_counters(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let share = |part: u64| 100.0 * part as f64 / self.instructions.max(1) as f64;
        writeln!(
            f,
            "instructions  {:.1} M, {:.1} M/s, {:.1}% of them interpreted",
            self.instructions as f64 / 1e6,
            self.instructions as f64 / 1e6 / self.user_seconds.max(1e-9),
            share(self.interpreted)
        )?;
        writeln!(
            f,
            "blocks        {} decoded, {} compiled to {:.1} MiB in {:.2} s, {} invalidated, {} evictions",
            self.blocks,
            self.compiled,
            self.code_bytes as f64 / f64::from(1 << 20),
            self.compile_seconds,
            self.invalidated,
            self.evictions
        )?;
        writeln!(
            f,
            "memory        {} TLB fills, {} pages in the window by {} faults",
            self.tlb_fills, self.window_pages, self.window_faults
        )
    }

    /// Ends the measurement.
    pub fn finish(mut self) -> Self {
        self.wall_seconds = self.begun.elapsed().as_secs_f64();
        self.user_seconds = user_time().saturating_sub(self.cpu_before).as_secs_f64();
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let e = &self.exits;
        writeln!(f, "time          {:.2} s wall, {:.2} s user CPU", self.wall_seconds, self.user_seconds)?;
        if self.counted {
            self.write_counters(f)?;
        } else {
            writeln!(f, "instructions  not counted by this engine")?;
        }
        if let Some(translations) = &self.translations {
            writeln!(f, "{translations}")?;
        }
        write!(
            f,
            "exits         {} port, {} MMIO, {} MSR, {} hypercall, {} halt, {} interrupt window, {} kicked",
            e.port, e.mmio, e.msr, e.hypercall, e.halt, e.interrupt_window, e.kicked
        )
    }
}

/// User CPU time of this process, all threads.
fn user_time() -> Duration {
    // Fields 14 of /proc/self/stat count in clock ticks, which are 10 ms: getrusage is finer, and rustix leaves it out.
    // SAFETY: an all-zero rusage is valid, and the call writes no more than one.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    Duration::new(usage.ru_utime.tv_sec as u64, usage.ru_utime.tv_usec as u32 * 1000)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_counted_is_not_shown_as_zero() {
        let mut report = Report::start();
        report.add(&Statistics { exits: 7, ..Statistics::default() });
        let text = report.to_string();
        assert!(text.contains("not counted") && !text.contains("compiled"), "{text}");
        report.add(&Statistics { instructions: 3_000_000, ..Statistics::default() });
        let text = report.to_string();
        assert!(text.contains("instructions  3.0 M") && text.contains("TLB fills"), "{text}");
    }
}
