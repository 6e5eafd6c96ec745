"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const at = (id) => document.getElementById(id);
const count = (n) => n.toLocaleString("en-US");
const share = (part, whole) => (whole ? (100 * part) / whole : 0).toFixed(2) + "%";
const COLORS = ["#d5dbe3", "#8d99ae", "#e9c46a", "#2a9d8f", "#f4a261", "#7b9ee0", "#e76f51", "#9d6bb5", "#c9ada7"];

// Builds an element; text is always text, never markup.
function make(tag, text, properties = {}) {
  const element = document.createElement(tag);
  if (text !== undefined && text !== null) element.textContent = text;
  Object.assign(element, properties);
  return element;
}

function head() {
  const { run, totals, symbols } = data;
  at("kernel").textContent = run.kernel || "profile";
  at("banner").textContent = run.banner || "";
  const facts = [
    [(run.wall_ns / 1e9).toFixed(2) + " s", "wall time"],
    [count(totals.counted), "guest instructions"],
    [share(totals.interpreted, totals.counted), "of them interpreted"],
    [count(data.blocks.length + data.left_out.blocks), "blocks executed"],
    [count(data.pieces), "pieces of host code"],
    [(totals.compile_ns / 1e9).toFixed(2) + " s", "compiling"],
    [count(totals.samples), "samples of host time"],
    [count(totals.exceptions), "exceptions"],
  ];
  for (const [value, label] of facts) {
    const fact = make("div");
    fact.append(make("b", value), make("span", label));
    at("facts").append(fact);
  }
  const notes = [run.outcome ? `Ended: ${run.outcome.split("\n")[0]}.` : ""];
  if (!data.complete) notes.push("Written while the guest ran: the end is missing.");
  else if (totals.counted === totals.instructions) notes.push("Counts are exact: blocks sum up to the vCPU's instructions.");
  else notes.push(`Blocks sum up to ${count(totals.counted)} of the vCPU's ${count(totals.instructions)} instructions.`);
  notes.push(symbols.count ? `Names: ${count(symbols.count)} from ${symbols.source}.` : "No names: no symbol table was found.");
  if (symbols.structures) notes.push(`Guest's structures: ${symbols.structures}.`);
  if (symbols.lines) notes.push(`Source lines: ${symbols.lines}.`);
  if (symbols.note) notes.push(symbols.note);
  if (data.left_out.blocks) {
    notes.push(`Left out here: ${count(data.left_out.blocks)} blocks with ${share(data.left_out.instructions, totals.counted)} of the instructions (blocks.json has them).`);
  }
  if (totals.lost) notes.push(`${count(totals.lost)} samples were lost.`);
  notes.push(`Stacks in flamegraph.svg: ${data.stacks}.`);
  at("notes").textContent = notes.filter(Boolean).join(" ");
}

function timeline() {
  const { bins, phases, bin_ns, background_ns } = data.timeline;
  const sums = phases.map((_, phase) => bins.reduce((sum, bin) => sum + bin[phase], 0));
  const all = sums.reduce((a, b) => a + b, 0);
  // As many columns as can be told apart.
  const group = Math.max(1, Math.ceil(bins.length / 400));
  const columns = [];
  for (let first = 0; first < bins.length; first += group) {
    const part = bins.slice(first, first + group);
    columns.push({
      phases: phases.map((_, phase) => part.reduce((sum, bin) => sum + bin[phase], 0)),
      background: background_ns.slice(first, first + group).reduce((a, b) => a + b, 0) / (bin_ns * part.length),
    });
  }
  const svg = document.createElementNS("http:" + "//www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", `0 0 ${Math.max(columns.length, 1)} 100`);
  svg.setAttribute("preserveAspectRatio", "none");
  const rect = (x, y, height, color, title) => {
    const bar = document.createElementNS(svg.namespaceURI, "rect");
    for (const [name, value] of Object.entries({ x, y, width: 1.02, height, fill: color })) bar.setAttribute(name, value);
    const label = document.createElementNS(svg.namespaceURI, "title");
    label.textContent = title;
    bar.append(label);
    svg.append(bar);
  };
  columns.forEach((column, x) => {
    const whole = column.phases.reduce((a, b) => a + b, 0);
    const seconds = ((x * group * bin_ns) / 1e9).toFixed(2) + " s";
    let y = 88;
    column.phases.forEach((samples, phase) => {
      if (!samples) return;
      const height = (88 * samples) / whole;
      y -= height;
      rect(x, y, height, COLORS[phase], `${seconds}: ${phases[phase]} ${share(samples, whole)}`);
    });
    const busy = Math.min(1, column.background);
    if (busy > 0) rect(x, 100 - 10 * busy, 10 * busy, "#444", `${seconds}: compiler's thread busy ${share(busy, 1)}`);
  });
  at("timeline").append(svg);
  const legend = at("legend");
  phases.forEach((phase, n) => {
    if (!sums[n]) return;
    const entry = make("span");
    const box = make("i");
    box.style.background = COLORS[n];
    entry.append(box, `${phase} ${share(sums[n], all)}`);
    legend.append(entry);
  });
  const entry = make("span");
  const box = make("i");
  box.style.background = "#444";
  entry.append(box, `below: compiler's thread, over ${((bins.length * bin_ns) / 1e9).toFixed(1)} s`);
  legend.append(entry);
}

function bars(target, counts, most = 60) {
  const rows = Object.entries(counts).sort((a, b) => b[1] - a[1]);
  const longest = rows.length ? Math.log1p(rows[0][1]) : 1;
  for (const [name, number] of rows.slice(0, most)) {
    const row = make("div", null, { className: "bar" });
    const bar = make("div");
    // Logarithmic: a chain is left a million times as often as by an exception.
    bar.style.width = (100 * Math.log1p(number)) / longest + "%";
    row.append(make("span", name, { title: name }), bar, make("span", count(number)));
    target.append(row);
  }
}

const COLUMNS = [
  { label: "instructions", key: (b) => b.executed, show: (b) => share(b.executed, data.totals.counted) },
  { label: "host time", key: (b) => b.samples, show: (b) => share(b.samples, data.totals.samples) },
  { label: "executions", key: (b) => b.executions, show: (b) => count(b.executions) },
  { label: "guest insns", key: (b) => b.instructions, show: (b) => b.instructions },
  { label: "host/guest", key: (b) => b.expansion || 0, show: (b) => (b.expansion ? b.expansion.toFixed(1) : "") },
  { label: "compile ms", key: (b) => b.compile_ns || 0, show: (b) => (b.compile_ns ? (b.compile_ns / 1e6).toFixed(2) : "") },
  { label: "versions", key: (b) => b.versions.length, show: (b) => b.versions.length },
  { label: "tier", key: (b) => b.tier, show: (b) => b.tier, text: true },
  { label: "block", key: (b) => b.name, show: (b) => b.name, text: true },
  ...(data.blocks.some((b) => b.line) ? [{ label: "source", key: (b) => b.line || "", show: (b) => b.line || "", text: true }] : []),
  { label: "address", key: (b) => b.rip.padStart(18, "0"), show: (b) => b.rip, text: true },
];
const PAGE = 300;
let sorted = { column: 0, down: true };
let rows = PAGE;
let opened = null;

function filtered() {
  const wanted = at("search").value.trim().toLowerCase();
  const tier = at("tier").value;
  const ring = at("ring").value;
  const process = at("process").value;
  const found = data.blocks.filter((block) =>
    (!wanted || [block.name, block.file && block.file.path, block.line].some((text) => (text || "").toLowerCase().includes(wanted)) || block.rip.includes(wanted) || block.physical.includes(wanted)) &&
    (!tier || block.tier === tier) &&
    (!ring || block.user === (ring === "user")) &&
    (!process || (block.process && block.process.name === process)));
  const key = COLUMNS[sorted.column].key;
  const sign = sorted.down ? -1 : 1;
  return found.sort((a, b) => sign * (key(a) < key(b) ? -1 : key(a) > key(b) ? 1 : 0));
}

function table() {
  const line = make("tr");
  COLUMNS.forEach((column, n) => {
    const arrow = n === sorted.column ? (sorted.down ? " ▾" : " ▴") : "";
    const cell = make("th", column.label + arrow, { className: column.text ? "text" : "" });
    cell.onclick = () => {
      sorted = { column: n, down: n === sorted.column ? !sorted.down : !column.text };
      table();
    };
    line.append(cell);
  });
  at("blocks").tHead.replaceChildren(line);
  const found = filtered();
  const body = found.slice(0, rows).map((block) => {
    const row = make("tr", null, { className: block === opened ? "open" : "" });
    for (const column of COLUMNS) row.append(make("td", column.show(block), { className: column.text ? "text" : "" }));
    row.onclick = () => { open(block); table(); };
    return row;
  });
  at("blocks").tBodies[0].replaceChildren(...body);
  const executed = found.reduce((sum, block) => sum + block.executed, 0);
  at("count").textContent = `${count(found.length)} blocks, ${share(executed, data.totals.counted)} of the instructions`;
  at("more").hidden = found.length <= rows;
}

function open(block) {
  opened = block;
  at("detail").hidden = false;
  at("name").textContent = block.name;
  const whose = [
    block.user ? `user, address space ${block.space}` : "kernel",
    block.process && `first run by ${block.process.name} (${block.process.id})`,
    block.file && `${block.file.path} at ${block.file.offset}`,
    block.line,
  ];
  const ring = whose.filter(Boolean).join(", ");
  at("about").textContent =
    `virtual ${block.rip}, physical ${block.physical}, ${ring}, ${block.bits}-bit; ${block.instructions} instructions, ${block.bytes} bytes, ` +
    `decoded ${block.decoded}×; ${count(block.executed)} instructions executed: ${count(block.interpreted[1])} interpreted in ` +
    `${count(block.interpreted[0])} runs, ${count(block.stepped[1])} stepped, the rest in ${block.versions.length} version(s) of host code`;
  at("left").replaceChildren(make("h2", "How it is left"));
  bars(at("left"), block.exits);
  const list = make("table");
  const line = make("tr");
  for (const label of ["version", "tier", "executions", "insns", "undone", "host insns", "host bytes", "ms", "samples", "end"]) {
    line.append(make("th", label));
  }
  list.append(line);
  block.versions.forEach((version) => {
    const code = data.code[version.code];
    const member = code.members[version.member];
    const row = make("tr");
    const cells = [
      "#" + version.code + (code.members.length > 1 ? ` (${code.members.length} blocks)` : ""), code.tier, count(member.executions), member.instructions,
      count(member.undone), member.host_instructions, member.host_bytes, (code.compile_ns / 1e6).toFixed(2), member.samples, code.end,
    ];
    for (const cell of cells) row.append(make("td", cell));
    row.onclick = () => show(row, code);
    list.append(row);
  });
  at("right").replaceChildren(make("h2", "Versions (click for the code)"), list);
  const last = block.versions.length - 1;
  at("listing").replaceChildren();
  if (last >= 0) show(list.rows[last + 1], data.code[block.versions[last].code]);
}

function show(row, code) {
  for (const other of row.parentNode.children) other.classList.toggle("open", other === row);
  if (!code.listing) {
    at("listing").replaceChildren(make("p", "No listing: only the code that matters most has one."));
    return;
  }
  const hasClif = code.listing.rows.some((line) => line.clif && line.clif.length);
  const list = make("table");
  const line = make("tr");
  for (const label of ["executions", "guest", hasClif ? "CLIF" : "", "samples", "host (with the counting for this profile)"]) line.append(make("th", label));
  list.append(line);
  let member = null;
  for (const entry of code.listing.rows) {
    const begins = entry.member !== null && entry.member !== member;
    member = entry.member;
    const line = make("tr", null, { className: (entry.member === null ? "other" : "") + (begins ? " begins" : "") });
    const samples = make("td", null, { className: "number" });
    const host = make("td");
    for (const instruction of entry.host) {
      const hot = (instruction.samples || 0) > 0;
      samples.append(make("div", hot ? instruction.samples : " ", { className: hot ? "hot" : "" }));
      host.append(make("div", instruction.offset.toString(16).padStart(4) + "  " + instruction.text, { className: hot ? "hot" : "" }));
    }
    line.append(
      make("td", entry.member === null ? "" : count(entry.executions), { className: "number" }),
      make("td", entry.guest + (entry.line ? "\n" + entry.line : ""), { className: "guest" }), make("td", (entry.clif || []).join("\n")), samples, host);
    list.append(line);
  }
  at("listing").replaceChildren(list);
}

// Those whose code has executed most come first.
function processes() {
  const sums = new Map();
  for (const block of data.blocks) {
    if (block.process) sums.set(block.process.name, (sums.get(block.process.name) || 0) + block.executed);
  }
  const names = [...sums].sort((a, b) => b[1] - a[1]).map(([name]) => name);
  at("process").append(...names.map((name) => make("option", name, { value: name })));
  at("process").hidden = !names.length;
}

head();
timeline();
processes();
bars(at("exits"), data.exits);
for (const id of ["search", "tier", "ring", "process"]) at(id).oninput = () => { rows = PAGE; table(); };
at("more").onclick = () => { rows += PAGE; table(); };
table();
