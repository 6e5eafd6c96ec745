//! Two profiles compared: what got hotter, what got bigger.
//!
//! Blocks are matched by name, where they have one (the same kernel may lie elsewhere), else by address.

use std::{collections::HashMap, fmt::Write};

use crate::{
    model::{Block, Profile},
    text,
};

/// One block in both profiles.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What it is called.
    pub name: String,
    /// Share of executed guest instructions, in percent, before and after.
    pub instructions: [f64; 2],
    /// Share of host time, likewise.
    pub time: [f64; 2],
    /// Times entered.
    pub executions: [u64; 2],
    /// Host bytes of its newest code; 0 if it has none.
    pub host_bytes: [u32; 2],
}

impl Change {
    /// By how many percent of all instructions it got hotter.
    pub fn hotter(&self) -> f64 {
        self.instructions[1] - self.instructions[0]
    }

    /// By how many bytes it got bigger; 0 unless both have code of it.
    pub fn bigger(&self) -> i64 {
        match self.host_bytes {
            [0, _] | [_, 0] => 0,
            [before, after] => i64::from(after) - i64::from(before),
        }
    }
}

#[derive(Clone, Copy, Default)]
struct Side {
    instructions: f64,
    time: f64,
    executions: u64,
    host_bytes: u32,
}

fn sides(profile: &Profile) -> HashMap<String, Side> {
    let mut sides: HashMap<String, Side> = HashMap::new();
    for block in &profile.blocks {
        let side = sides.entry(key(block)).or_default();
        side.instructions += text::percent(block.executed, profile.totals.counted);
        side.time += text::percent(block.samples, profile.totals.samples);
        side.executions += block.executions;
        let newest = block.versions.last().and_then(|version| {
            profile.code.get(version.code).and_then(|code| code.members.get(version.member))
        });
        side.host_bytes += newest.map_or(0, |member| member.host_bytes);
    }
    sides
}

/// User code of no file at the same address is another program's as often as not, but there is nothing better. Which process ran
/// a block first may differ from run to run.
fn key(block: &Block) -> String {
    match (&block.symbol, &block.file) {
        (Some(symbol), _) => symbol.clone(),
        (None, Some(file)) => format!("{}+{:#x}", file.name(), file.offset),
        (None, None) if block.user => format!("user {:#x}", block.rip),
        (None, None) => format!("{:#x}", block.rip),
    }
}

/// All blocks of either.
pub fn compare(before: &Profile, after: &Profile) -> Vec<Change> {
    let (mut old, new) = (sides(before), sides(after));
    let change = |name: String, a: Side, b: Side| Change {
        name,
        instructions: [a.instructions, b.instructions],
        time: [a.time, b.time],
        executions: [a.executions, b.executions],
        host_bytes: [a.host_bytes, b.host_bytes],
    };
    let mut changes: Vec<Change> = new
        .into_iter()
        .map(|(name, side)| {
            let other = old.remove(&name).unwrap_or_default();
            change(name, other, side)
        })
        .collect();
    changes.extend(old.into_iter().map(|(name, side)| change(name, side, Side::default())));
    changes.sort_by(|a, b| b.hotter().abs().total_cmp(&a.hotter().abs()).then_with(|| a.name.cmp(&b.name)));
    changes
}

/// The `top` largest changes of each kind.
pub fn table(before: &Profile, after: &Profile, top: usize) -> String {
    let changes = compare(before, after);
    let mut out = String::new();
    let million = |profile: &Profile| profile.totals.counted as f64 / 1e6;
    // Writing to a String can't fail.
    let _ = writeln!(
        out,
        "guest instructions: {:.1} M -> {:.1} M; host code: {} -> {} bytes; compiling: {:.2} -> {:.2} s",
        million(before),
        million(after),
        host_bytes(before),
        host_bytes(after),
        before.totals.compile_ns as f64 / 1e9,
        after.totals.compile_ns as f64 / 1e9,
    );
    let heading = "   before    after   change      executions before -> after  block";
    let (hotter, colder): (Vec<_>, Vec<_>) = changes.iter().partition(|change| change.hotter() >= 0.0);
    for (title, rows) in [("hotter", hotter), ("colder", colder)] {
        let _ = writeln!(out, "\n{title} (share of guest instructions)\n{heading}");
        for change in rows.into_iter().filter(|change| change.hotter() != 0.0).take(top) {
            let _ = writeln!(
                out,
                "{:>8.3}% {:>7.3}% {:>+7.3}% {:>15} -> {:<13} {}",
                change.instructions[0],
                change.instructions[1],
                change.hotter(),
                change.executions[0],
                change.executions[1],
                change.name
            );
        }
    }
    let mut bigger: Vec<&Change> = changes.iter().filter(|change| change.bigger() != 0).collect();
    bigger.sort_by_key(|change| std::cmp::Reverse(change.bigger().abs()));
    let _ = writeln!(out, "\nbigger or smaller (host bytes of the newest code)");
    for change in bigger.into_iter().take(top) {
        let [old, new] = change.host_bytes;
        let _ = writeln!(out, "{old:>8} {new:>8} {:>+8}  {}", change.bigger(), change.name);
    }
    out
}

fn host_bytes(profile: &Profile) -> u64 {
    profile.code.iter().map(|code| u64::from(code.host_bytes)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Code, Member, VersionOf};

    fn profile(blocks: &[(&str, u64, u32)]) -> Profile {
        let mut profile = Profile::default();
        for &(name, executed, host_bytes) in blocks {
            let code = profile.code.len();
            profile.code.push(Code {
                host_bytes,
                members: vec![Member { host_bytes, ..Member::default() }],
                ..Code::default()
            });
            profile.blocks.push(Block {
                symbol: Some(name.into()),
                executed,
                executions: executed,
                versions: vec![VersionOf { code, member: 0 }],
                ..Block::default()
            });
            profile.totals.counted += executed;
        }
        profile
    }

    #[test]
    fn hotter_and_bigger_come_first() {
        let before = profile(&[("a", 50, 100), ("b", 30, 10), ("gone", 20, 5)]);
        let after = profile(&[("a", 10, 300), ("b", 80, 10), ("new", 10, 5)]);
        let changes = compare(&before, &after);
        let names: Vec<&str> = changes.iter().map(|change| change.name.as_str()).collect();
        assert_eq!(names, ["b", "a", "gone", "new"]);
        assert_eq!(changes[0].instructions, [30.0, 80.0]);
        assert_eq!((changes[1].bigger(), changes[2].bigger()), (200, 0));
        let text = table(&before, &after, 1);
        assert!(text.contains("+50.000%") && text.contains("+200  a"), "{text}");
        assert!(!text.contains("gone"), "only the first of each: {text}");
    }
}
