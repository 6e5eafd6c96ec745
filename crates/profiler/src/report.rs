//! `report.html`: one file with everything in it, which opens from disk with no network.
//!
//! `report/page.html` is the page, with its style and its script put in, and the data as JSON. Blocks that hardly ran are left
//! out, and it says so: a browser has no use for 80,000 rows.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    flame,
    model::{Block, Code, Counts, End, Listing, Profile, Run, SymbolInfo, Tier, Timeline, Totals},
    text,
};

const PAGE: &str = include_str!("report/page.html");
const STYLE: &str = include_str!("report/style.css");
const SCRIPT: &str = include_str!("report/script.js");

/// Blocks in the report: those with the most instructions and those with the most samples, so many of each.
const MOST_BLOCKS: usize = 3000;

/// The page.
pub fn html(profile: &Profile) -> String {
    // `</script>` in a name must not end the element.
    // There is nothing in it that JSON can't say.
    let data = serde_json::to_string(&data(profile)).unwrap_or_default().replace("</", "<\\/");
    let title = escape(&format!("{}: profile", profile.run.kernel));
    PAGE.replace("{{title}}", &title)
        .replace("{{style}}", STYLE)
        .replace("{{script}}", SCRIPT)
        .replace("{{data}}", &data)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// What the script gets.
#[derive(Serialize)]
struct Data<'a> {
    complete: bool,
    run: &'a Run,
    totals: &'a Totals,
    symbols: &'a SymbolInfo,
    timeline: &'a Timeline,
    exits: &'a Counts,
    stacks: String,
    pieces: usize,
    left_out: LeftOut,
    blocks: Vec<Value>,
    code: BTreeMap<usize, CodeView<'a>>,
}

#[derive(Serialize)]
struct LeftOut {
    blocks: usize,
    instructions: u64,
}

#[derive(Serialize)]
struct CodeView<'a> {
    tier: Tier,
    end: End,
    compile_ns: u64,
    members: Vec<Value>,
    listing: &'a Option<Listing>,
}

fn data(profile: &Profile) -> Data<'_> {
    let shown = shown(profile);
    let blocks = shown.iter().map(|&n| block(profile, &profile.blocks[n])).collect();
    let wanted: BTreeSet<usize> =
        shown.iter().flat_map(|&n| &profile.blocks[n].versions).map(|version| version.code).collect();
    let code = wanted.into_iter().map(|n| (n, code(&profile.code[n]))).collect();
    let executed: u64 = shown.iter().map(|&n| profile.blocks[n].executed).sum();
    Data {
        complete: profile.complete,
        run: &profile.run,
        totals: &profile.totals,
        symbols: &profile.symbols,
        timeline: &profile.timeline,
        exits: &profile.exits,
        stacks: flame::describe(&profile.stacks),
        pieces: profile.code.len(),
        left_out: LeftOut {
            blocks: profile.blocks.len() - shown.len(),
            instructions: profile.totals.counted.saturating_sub(executed),
        },
        blocks,
        code,
    }
}

fn shown(profile: &Profile) -> Vec<usize> {
    let mut shown = BTreeSet::new();
    for order in [text::Order::Instructions, text::Order::Time] {
        let mut blocks: Vec<usize> =
            (0..profile.blocks.len()).filter(|&n| order.weight(&profile.blocks[n]) > 0).collect();
        blocks.sort_by_key(|&n| std::cmp::Reverse(order.weight(&profile.blocks[n])));
        shown.extend(blocks.into_iter().take(MOST_BLOCKS));
    }
    shown.into_iter().collect()
}

fn block(profile: &Profile, block: &Block) -> Value {
    let newest = block.versions.last().and_then(|version| profile.code.get(version.code));
    json!({
        "name": text::name(block),
        "rip": format!("{:#x}", block.rip),
        "physical": format!("{:#x}", block.physical),
        "space": format!("{:#x}", block.address_space),
        "user": block.user,
        "process": block.process,
        "file": block.file,
        "line": block.line,
        "bits": block.bits,
        "tier": text::tier(profile, block),
        "instructions": block.instructions,
        "bytes": block.bytes.len() / 2,
        "executed": block.executed,
        "executions": block.executions,
        "interpreted": [block.interpreted.executions, block.interpreted.instructions],
        "stepped": [block.stepped.executions, block.stepped.instructions],
        "samples": block.samples,
        "expansion": text::expansion(profile, block),
        "compile_ns": newest.map(|code| code.compile_ns),
        "decoded": block.decoded,
        "exits": block.exits,
        "versions": block.versions,
    })
}

fn code(code: &Code) -> CodeView<'_> {
    let members = code.members.iter().map(|member| {
        json!({
            "instructions": member.instructions,
            "executions": member.executions,
            "undone": member.undone,
            "host_bytes": member.host_bytes,
            "host_instructions": member.host_instructions,
            "samples": member.samples,
        })
    });
    CodeView {
        tier: code.tier,
        end: code.end,
        compile_ns: code.compile_ns,
        members: members.collect(),
        listing: &code.listing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_is_whole_and_needs_nothing_else() {
        let mut profile = Profile::default();
        profile.run.kernel = "<k>".into();
        profile.blocks.push(Block {
            symbol: Some("</script><b>".into()),
            executed: 1,
            executions: 1,
            ..Block::default()
        });
        let page = html(&profile);
        assert!(!page.contains("{{"), "something was not filled in");
        assert!(page.contains("&lt;k&gt;: profile"));
        assert!(!page.contains("</script><b>"), "a name can't end the data");
        for outside in ["http://", "https://", "src=", "@import", "<link"] {
            assert!(!page.contains(outside), "{outside}");
        }
    }
}
