//! `transvisor profile` and `transvisor top`; and what `run --profile` checks before the guest starts.

use std::{
    io::{IsTerminal, Write},
    path::Path,
    sync::Arc,
    time::Duration,
};

use profiler::{
    diff,
    store::{self, Directory},
    symbols::Symbols,
    text::{self, Order},
};

use crate::{
    arguments::{ProfileCommand, RunArguments, SortArgument, TopArguments},
    profile::{ForPerf, ProfileConfig, write_views},
};

impl From<SortArgument> for Order {
    fn from(sort: SortArgument) -> Self {
        match sort {
            SortArgument::Instructions => Self::Instructions,
            SortArgument::Time => Self::Time,
            SortArgument::Executions => Self::Executions,
        }
    }
}

/// What `run` is to record. Errors come now, not when the guest has ended.
pub fn prepare(arguments: &RunArguments) -> anyhow::Result<Option<ProfileConfig>> {
    let Some(path) = &arguments.profile else { return Ok(None) };
    let symbols = arguments.symbols.as_deref().map(Symbols::read).transpose()?.map(Arc::new);
    let directory = Directory::create(path)?;
    let for_perf = match (arguments.perf_map, arguments.jitdump) {
        (_, true) => ForPerf::JitDump,
        (true, false) => ForPerf::Map,
        (false, false) => ForPerf::Nothing,
    };
    Ok(Some(ProfileConfig { directory, symbols, for_perf }))
}

/// `transvisor profile`.
pub fn profile(command: &ProfileCommand) -> anyhow::Result<u8> {
    match command {
        ProfileCommand::Show { profile, top, sort } => {
            print(&text::table(&store::load(profile)?, *top, (*sort).into()))?;
        }
        ProfileCommand::Diff { before, after, top } => {
            print(&diff::table(&store::load(before)?, &store::load(after)?, *top))?;
        }
        ProfileCommand::Report { profile } => {
            write_views(&Directory::open(profile), &store::load(profile)?)?;
            print(&format!("{}\n", profile.join(store::REPORT).display()))?;
        }
    }
    Ok(0)
}

/// Whoever reads our output may have enough of it.
fn print(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => Ok(other?),
    }
}

/// Between two looks.
const REFRESH: Duration = Duration::from_secs(1);
/// Lines above the blocks, and a free one below.
const HEAD: usize = 7;
const DEFAULT_ROWS: usize = 20;

/// `transvisor top`: shows what the running machine writes, until it has ended.
pub fn top(arguments: &TopArguments) -> anyhow::Result<u8> {
    let screen = std::io::stdout().is_terminal() && !arguments.once;
    loop {
        let profile = load(&arguments.profile)?;
        let rows = arguments.top.unwrap_or_else(|| if screen { terminal_rows() } else { DEFAULT_ROWS });
        let table = text::table(&profile, rows, arguments.sort.into());
        // Home, what is there overwritten line by line, the rest cleared: no flicker.
        let table = if screen { format!("\x1b[H{}\x1b[J", table.replace('\n', "\x1b[K\n")) } else { table };
        print(&table)?;
        if !screen || profile.complete {
            return Ok(0);
        }
        std::thread::sleep(REFRESH);
    }
}

fn terminal_rows() -> usize {
    rustix::termios::tcgetwinsize(std::io::stdout())
        .map_or(DEFAULT_ROWS, |size| usize::from(size.ws_row).saturating_sub(HEAD).max(5))
}

fn load(directory: &Path) -> anyhow::Result<profiler::model::Profile> {
    let live = directory.join(store::LIVE);
    if directory.is_dir() && !live.exists() {
        anyhow::bail!(
            "{}: nothing was written yet; a machine writes once a second, if it runs with --profile {}",
            live.display(),
            directory.display()
        );
    }
    Ok(store::load_file(if directory.is_dir() { &live } else { directory })?)
}
