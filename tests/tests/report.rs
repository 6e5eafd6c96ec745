//! report.html in a real browser: it loads without errors and without a network, sorts, filters, and opens a block.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
    time::Duration,
};

use profiler::{
    model::{Block, Code, FilePlace, Member, Process, Profile, Tier, VersionOf},
    report,
    store::{self, Directory},
    symbols::Symbols,
};
use runtime::EngineConfig;
use transvisor::{
    config::Config,
    harness::Machine,
    profile::{ForPerf, ProfileConfig},
    size::Size,
};
use transvisor_tests::debian;
use transvisor_tests::kernel;

/// Works the page as a reader would, and writes down what it shows.
const READER: &str = r##"
const rows = () => [...document.querySelectorAll("#blocks tbody tr")];
const cell = (row, n) => row.children[n].textContent;
const column = (label) => [...document.querySelectorAll("#blocks th")].findIndex((head) => head.textContent.startsWith(label));
const click = (label) => document.querySelectorAll("#blocks th")[column(label)].click();
const numbers = (label) => rows().map((row) => Number(cell(row, column(label)).replaceAll(",", "").replace("%", "")));
const set = (id, value) => {
  const control = document.getElementById(id);
  control.value = value;
  control.dispatchEvent(new Event("input"));
};
const seen = { title: document.title, notes: at("notes").textContent, facts: at("facts").textContent };
seen.rows = rows().length;
seen.charts = [document.querySelectorAll("#timeline rect").length, document.querySelectorAll("#exits .bar").length];
seen.by_instructions = numbers("instructions");
click("executions");
seen.by_executions = numbers("executions");
click("executions");
seen.by_executions_up = numbers("executions");
click("block");
seen.by_name = rows().map((row) => cell(row, column("block")));
click("instructions");
seen.sources = column("source") < 0 ? null : rows().map((row) => cell(row, column("source")));
const hottest = cell(rows()[0], column("address"));
set("search", hottest.toUpperCase().replace("0X", ""));
seen.found = rows().map((row) => cell(row, column("address")));
set("search", "no such symbol");
seen.nothing = [rows().length, at("count").textContent];
set("search", "");
set("tier", "compiled");
seen.tiers = [...new Set(rows().map((row) => cell(row, column("tier"))))];
seen.compiled = rows().length;
set("tier", "");
set("ring", "user");
seen.users = rows().length;
set("ring", "");
seen.processes = at("process").hidden ? null : [...at("process").options].map((option) => option.value);
if (seen.processes) {
  set("process", seen.processes[1]);
  seen.of_process = rows().map((row) => cell(row, column("block")));
  set("process", "");
  set("search", "tool");
  seen.of_file = rows().map((row) => cell(row, column("block")));
  set("search", "");
}
seen.hidden = at("detail").hidden;
// Of what was compiled with the most instructions.
set("tier", "compiled");
rows()[0].click();
seen.detail = at("detail").hidden ? null : at("about").textContent;
seen.versions = document.querySelectorAll("#right tr").length - 1;
seen.left = document.querySelectorAll("#left .bar").length;
const listing = [...document.querySelectorAll("#listing tr")].slice(1).map((row) => [...row.children].map((part) => part.innerText));
seen.listing = listing;
if (seen.sources) {
  set("tier", "");
  set("search", seen.sources[0]);
  seen.of_source = rows().map((row) => cell(row, column("source")));
}
document.querySelectorAll("#right tr")[1].click();
seen.first_version = document.querySelectorAll("#listing tr").length;
const result = document.createElement("pre");
result.id = "result";
result.textContent = JSON.stringify({ seen, errors: window.failures, requests: performance.getEntriesByType("resource").length });
document.body.append(result);
"##;

const WATCH: &str = r#"<script>window.failures = []; window.addEventListener("error", (event) => failures.push(event.message));</script>"#;

fn assemble(name: &str, folder: &Path) -> PathBuf {
    let system = Path::new(env!("CARGO_MANIFEST_DIR")).join("system");
    let image = folder.join(format!("{name}.elf"));
    let status = Command::new("nasm")
        .current_dir(system)
        .args(["-w-all", "-f", "bin", "-o"])
        .arg(&image)
        .arg(format!("{name}.asm"))
        .status()
        .expect("nasm starts; run the tests by `cargo xtask test`, which brings it");
    assert!(status.success());
    image
}

fn profile_of(image: PathBuf, symbols: Option<Symbols>, folder: &Path) {
    let engine = EngineConfig {
        // Only what Cranelift compiles has CLIF to show.
        template_threshold: u32::MAX,
        threshold: 6,
        hot_threshold: 4,
        background: false,
        ..EngineConfig::default()
    };
    let directory = Directory::create(&folder.join("profile")).expect("a new directory");
    let config = Config { memory: Size(64 << 20), engine, ..Config::new(image) };
    let config = config.profiled(ProfileConfig {
        directory,
        symbols: symbols.map(Arc::new),
        for_perf: ForPerf::Nothing,
    });
    let (ended, console) = Machine::launch(config).wait_end(Duration::from_secs(120));
    ended.unwrap_or_else(|error| panic!("{error}\n{console}"));
}

/// The page after its script and the reader's have run.
fn browse(page: &Path, user: &Path) -> String {
    let output = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .arg(format!("--user-data-dir={}", user.display()))
        .args(["--virtual-time-budget=20000", "--dump-dom"])
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("chromium starts; run the tests by `cargo xtask test`, which brings it");
    let log = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {log}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn descends(numbers: &serde_json::Value) -> bool {
    let numbers: Vec<f64> = numbers.as_array().unwrap().iter().map(|n| n.as_f64().unwrap()).collect();
    numbers.len() > 5 && numbers.windows(2).all(|pair| pair[0] >= pair[1])
}

fn text(value: &serde_json::Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn folder(name: &str) -> PathBuf {
    let folder = debian::folder(env!("CARGO_TARGET_TMPDIR"), name);
    fs::create_dir_all(&folder).unwrap();
    folder
}

/// What the reader has seen, without errors and without the network.
fn seen(folder: &Path) -> serde_json::Value {
    let report = fs::read_to_string(folder.join("profile").join(store::REPORT)).unwrap();
    let read = report.replacen("<head>", &format!("<head>{WATCH}"), 1).replacen(
        "</body>",
        &format!("<script>{{{READER}}}</script></body>"),
        1,
    );
    let page = folder.join("read.html");
    fs::write(&page, read).unwrap();
    let dom = browse(&page, &folder.join("browser"));
    let (_, rest) = dom.split_once(r#"<pre id="result">"#).unwrap_or_else(|| panic!("no result in {dom}"));
    let (json, _) = rest.split_once("</pre>").unwrap();
    let json = json.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
    let result: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&result["errors"], &result["requests"]), (&serde_json::json!([]), &serde_json::json!(0)));
    result["seen"].clone()
}

#[test]
fn processes_can_be_chosen() {
    let folder = folder("report-processes");
    let block = |rip, name: &str, file: Option<&str>, executed| Block {
        rip,
        user: true,
        executed,
        executions: 1,
        process: Some(Process { name: name.into(), id: 7 }),
        file: file.map(|path| FilePlace { path: path.into(), offset: rip & 0xfff }),
        versions: vec![VersionOf { code: 0, member: 0 }],
        ..Block::default()
    };
    let code = Code {
        tier: Tier::Compiled,
        members: vec![Member { block: Some(0), ..Member::default() }],
        ..Code::default()
    };
    let mut named = block(0x40_3000, "<i>b", Some("/bin/tool"), 50);
    named.symbol = Some("main [tool]".into());
    let blocks =
        vec![block(0x40_1010, "a", None, 90), block(0x40_2020, "<i>b", Some("/bin/tool"), 60), named];
    let profile = Profile { blocks, code: vec![code], ..Profile::default() };
    let directory = Directory::create(&folder.join("profile")).unwrap();
    directory.write(store::REPORT, report::html(&profile).as_bytes()).unwrap();
    let seen = seen(&folder);
    assert_eq!(seen["processes"], serde_json::json!(["", "<i>b", "a"]), "most first");
    assert_eq!(seen["of_process"], serde_json::json!(["<i>b: tool+0x20", "<i>b: main [tool]"]));
    assert_eq!(seen["of_file"], seen["of_process"]);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn source_lines_have_a_column() {
    let folder = folder("report-lines");
    let image = kernel::compile(&folder.join("kernel.elf"), 1);
    let symbols = Symbols::read(&image).unwrap();
    profile_of(image, Some(symbols), &folder);
    let seen = seen(&folder);
    let loops = kernel::line("loop");
    assert_eq!(text(&seen["sources"][0]), loops, "{seen}");
    assert!(seen["sources"].as_array().unwrap().iter().any(|line| text(line).starts_with("entry.S:")));
    assert_eq!(seen["of_source"], serde_json::json!([loops]));
    assert!(text(&seen["notes"]).contains("Source lines: DWARF of"), "{seen}");
    assert!(text(&seen["detail"]).contains("kernel.c:"), "{seen}");
    let guest = |row: &serde_json::Value| text(&row[1]).contains(&format!("\n{loops}"));
    assert!(seen["listing"].as_array().unwrap().iter().any(guest), "{}", seen["listing"]);
    fs::remove_dir_all(folder).unwrap();
}

#[test]
fn the_report_works_in_a_browser() {
    let folder = folder("report");
    profile_of(assemble("exceptions", &folder), None, &folder);
    let seen = seen(&folder);
    assert!(seen["sources"].is_null() && seen["processes"].is_null(), "no lines, no column; no processes");
    assert!(text(&seen["title"]).ends_with("exceptions.elf: profile"), "{seen}");
    assert!(text(&seen["notes"]).contains("Counts are exact"), "{seen}");
    let rows = seen["rows"].as_u64().unwrap();
    assert!(rows > 20, "{rows}");
    assert!(seen["charts"][1].as_u64() > Some(5), "{}", seen["charts"]);
    assert!(descends(&seen["by_instructions"]), "{}", seen["by_instructions"]);
    assert!(descends(&seen["by_executions"]), "{}", seen["by_executions"]);
    let up: Vec<_> = seen["by_executions_up"].as_array().unwrap().iter().rev().cloned().collect();
    assert!(descends(&up.into()));
    let names: Vec<String> = seen["by_name"].as_array().unwrap().iter().map(text).collect();
    assert!(names.is_sorted(), "{names:?}");
    assert!(
        !seen["found"].as_array().unwrap().is_empty()
            && seen["found"].as_array().unwrap().len() < rows as usize
    );
    assert_eq!(seen["nothing"][0], 0);
    assert_eq!(seen["tiers"], serde_json::json!(["compiled"]));
    assert!(seen["compiled"].as_u64() < Some(rows) && seen["users"].as_u64() < Some(rows));
    assert_eq!(seen["hidden"], true);
    assert!(text(&seen["detail"]).contains("instructions executed"), "{seen}");
    assert!(seen["versions"].as_u64() >= Some(1) && seen["left"].as_u64() >= Some(1));
    assert!(seen["first_version"].as_u64() > Some(1));
    // Guest, CLIF and host stand beside each other.
    let listing = seen["listing"].as_array().unwrap();
    let full =
        listing.iter().filter(|row| (1..5).all(|n| n == 3 || !text(&row[n]).trim().is_empty())).count();
    assert!(full >= 2, "{listing:?}");
    fs::remove_dir_all(folder).unwrap();
}
