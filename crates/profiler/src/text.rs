//! A profile on a terminal.

use std::fmt::Write;

use crate::model::{Block, Profile, Tier};

/// What a table is sorted by.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Order {
    /// Guest instructions executed.
    #[default]
    Instructions,
    /// Samples of host time.
    Time,
    /// Times entered.
    Executions,
}

impl Order {
    /// What counts for a block.
    pub fn weight(self, block: &Block) -> u64 {
        match self {
            Self::Instructions => block.executed,
            Self::Time => block.samples,
            Self::Executions => block.executions,
        }
    }
}

/// `part` of `whole`, in percent.
pub fn percent(part: u64, whole: u64) -> f64 {
    100.0 * part as f64 / whole.max(1) as f64
}

/// What a block is called: symbol; process and file; or address and address space.
pub fn name(block: &Block) -> String {
    match (&block.symbol, &block.process, &block.file) {
        (Some(symbol), Some(process), _) => format!("{}: {symbol}", process.name),
        (Some(symbol), None, _) => symbol.clone(),
        (None, Some(process), Some(file)) => {
            format!("{}: {}+{:#x}", process.name, file.name(), file.offset)
        }
        (None, Some(process), None) => format!("{}: {:#x}", process.name, block.rip),
        _ if block.user => format!("{:#x} (user, cr3 {:#x})", block.rip, block.address_space),
        _ => format!("{:#x}", block.rip),
    }
}

/// The tier that a block is in now.
pub fn tier(profile: &Profile, block: &Block) -> &'static str {
    let code = block.versions.last().and_then(|version| profile.code.get(version.code));
    match code.map(|code| code.tier) {
        None => "interpreted",
        Some(Tier::Templates) => "templates",
        Some(Tier::Region) => "region",
        Some(Tier::Compiled) => "compiled",
    }
}

/// Host instructions per guest instruction in a block's newest code.
pub fn expansion(profile: &Profile, block: &Block) -> Option<f64> {
    let version = block.versions.last()?;
    let member = profile.code.get(version.code)?.members.get(version.member)?;
    (member.instructions > 0).then(|| f64::from(member.host_instructions) / f64::from(member.instructions))
}

/// Totals, and the first `top` blocks.
pub fn table(profile: &Profile, top: usize, order: Order) -> String {
    let mut text = head(profile);
    let mut blocks: Vec<&Block> = profile.blocks.iter().collect();
    blocks.sort_by_key(|block| std::cmp::Reverse(order.weight(block)));
    let _ = writeln!(
        text,
        "{:>7} {:>7} {:>15} {:>13} {:>6}  {:<11} {:>5}  block",
        "insns", "time", "instructions", "executions", "insns", "tier", "x"
    );
    for block in blocks.into_iter().take(top) {
        let expansion = expansion(profile, block).map_or(String::new(), |factor| format!("{factor:.1}"));
        let _ = writeln!(
            text,
            "{:>6.2}% {:>6.2}% {:>15} {:>13} {:>6}  {:<11} {:>5}  {}{}",
            percent(block.executed, profile.totals.counted),
            percent(block.samples, profile.totals.samples),
            block.executed,
            block.executions,
            block.instructions,
            tier(profile, block),
            expansion,
            name(block),
            block.line.as_ref().map_or(String::new(), |line| format!("  {line}")),
        );
    }
    text
}

fn head(profile: &Profile) -> String {
    let (run, totals) = (&profile.run, &profile.totals);
    let mut text = String::new();
    let state = match (&run.outcome, profile.complete) {
        (Some(outcome), _) => outcome.clone(),
        (None, true) => "ended".into(),
        (None, false) => "a snapshot: the run had not ended".into(),
    };
    // Writing to a String can't fail.
    let _ = writeln!(text, "{} ({}), {:.2} s: {state}", run.kernel, run.engine, run.wall_ns as f64 / 1e9);
    let _ = writeln!(
        text,
        "{:.1} M guest instructions, {:.1}% interpreted; {} blocks, {} pieces of code in {:.2} s of compiling; {} samples",
        totals.counted as f64 / 1e6,
        percent(totals.interpreted, totals.counted),
        profile.blocks.len(),
        profile.code.len(),
        totals.compile_ns as f64 / 1e9,
        totals.samples,
    );
    let phases = phases(profile);
    let sum: u64 = phases.iter().map(|(_, count)| count).sum();
    let shares: Vec<String> = phases
        .iter()
        .filter(|(_, count)| *count > 0)
        .map(|(phase, count)| format!("{phase} {:.0}%", percent(*count, sum)))
        .collect();
    let _ = writeln!(text, "host time: {}", shares.join(", "));
    if profile.symbols.count > 0 {
        let _ = writeln!(text, "names: {} from {}", profile.symbols.count, profile.symbols.source);
    }
    if !profile.symbols.structures.is_empty() {
        let _ = writeln!(text, "guest's structures: {}", profile.symbols.structures);
    }
    if !profile.symbols.lines.is_empty() {
        let _ = writeln!(text, "source lines: {}", profile.symbols.lines);
    }
    if let Some(note) = &profile.symbols.note {
        let _ = writeln!(text, "note: {note}");
    }
    text
}

/// Samples by phase.
pub fn phases(profile: &Profile) -> Vec<(&str, u64)> {
    let timeline = &profile.timeline;
    let sum = |column: usize| {
        timeline.bins.iter().map(|bin| u64::from(bin.get(column).copied().unwrap_or(0))).sum()
    };
    timeline.phases.iter().enumerate().map(|(column, name)| (name.as_str(), sum(column))).collect()
}
