//! Guest call stacks for those who draw them: flamegraph.svg (inferno), speedscope, and perf's map of addresses.

use std::fmt::Write;

use inferno::flamegraph::{self, Options};
use serde_json::json;

use crate::{
    model::{Profile, Stacks, Tier},
    text,
};

/// Which frames there are, for the reader.
pub fn describe(stacks: &Stacks) -> String {
    match (stacks.by_tables, stacks.by_frames, stacks.leaf_only) {
        (0, 0, 0) => "no samples".into(),
        (0, 0, _) => {
            "leaf functions only: neither ORC tables nor frame pointers were found in the guest".into()
        }
        (tables, frames, leaf) => format!(
            "callers by the kernel's ORC tables in {tables} samples, by frame pointers in {frames}; \
             leaf functions only in the other {leaf}"
        ),
    }
}

/// `a;b;c 12`, one line for each stack.
pub fn folded(stacks: &Stacks) -> Vec<String> {
    let name = |&frame: &usize| stacks.frames.get(frame).map_or("?", String::as_str).replace(';', ":");
    let mut lines: Vec<String> = stacks
        .stacks
        .iter()
        .filter(|stack| !stack.frames.is_empty())
        .map(|stack| {
            let names: Vec<String> = stack.frames.iter().map(name).collect();
            format!("{} {}", names.join(";"), stack.count)
        })
        .collect();
    lines.sort();
    lines
}

/// An SVG. `None` if there are no samples.
pub fn svg(profile: &Profile) -> Option<Vec<u8>> {
    let lines = folded(&profile.stacks);
    let mut options = Options::default();
    options.title = "Guest time by call stack".into();
    options.subtitle = Some(describe(&profile.stacks));
    options.count_name = "samples".into();
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg).ok()?;
    Some(svg)
}

/// For https://www.speedscope.app, which opens files without sending them anywhere.
pub fn speedscope(profile: &Profile) -> serde_json::Value {
    let stacks = &profile.stacks;
    let frames: Vec<_> = stacks.frames.iter().map(|name| json!({ "name": name })).collect();
    let samples: Vec<_> = stacks.stacks.iter().map(|stack| &stack.frames).collect();
    let weights: Vec<u64> = stacks.stacks.iter().map(|stack| stack.count).collect();
    json!({
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": format!("transvisor {}", profile.run.transvisor),
        "name": profile.run.kernel,
        "shared": { "frames": frames },
        "profiles": [{
            "type": "sampled",
            "name": format!("guest, {}", describe(stacks)),
            "unit": "none",
            "startValue": 0,
            "endValue": weights.iter().sum::<u64>(),
            "samples": samples,
            "weights": weights,
        }],
    })
}

/// What Linux `perf` reads from `/tmp/perf-PID.map`: where which code lies in host memory.
pub fn perf_map(profile: &Profile) -> String {
    let mut map = String::new();
    for code in profile.code.iter().filter(|code| code.end == crate::model::End::Live) {
        let head = code.members.first().and_then(|member| profile.blocks.get(member.block?));
        let name = head.map_or_else(|| "?".into(), text::name).replace(' ', "_");
        let tier = match code.tier {
            Tier::Templates => "template",
            Tier::Region => "region",
            Tier::Compiled => "compiled",
        };
        // Writing to a String can't fail. The counting is part of what lies there.
        let _ = writeln!(map, "{:x} {:x} guest_{tier}:{name}", code.host_address, code.installed_bytes);
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Stack;

    fn profile() -> Profile {
        let mut profile = Profile::default();
        profile.stacks.frames = vec!["main".into(), "a;b".into()];
        let stack = |frames: Vec<usize>, count| Stack { frames, count, ..Stack::default() };
        profile.stacks.stacks = vec![stack(vec![0, 1], 3), stack(vec![0], 2)];
        profile.stacks.by_frames = 3;
        profile.stacks.leaf_only = 2;
        profile
    }

    #[test]
    fn stacks_fold() {
        assert_eq!(folded(&profile().stacks), ["main 2", "main;a:b 3"]);
    }

    #[test]
    fn the_drawing_says_what_it_could_not_see() {
        let svg = String::from_utf8(svg(&profile()).unwrap()).unwrap();
        assert!(svg.contains("leaf functions only in the other 2"), "{}", &svg[..2000]);
        assert!(svg.contains("a:b (3 samples"));
        assert!(super::svg(&Profile::default()).is_none());
    }

    #[test]
    fn speedscope_has_weights() {
        let value = speedscope(&profile());
        assert_eq!(value["profiles"][0]["samples"], json!([[0, 1], [0]]));
        assert_eq!(value["profiles"][0]["endValue"], json!(5));
    }
}
