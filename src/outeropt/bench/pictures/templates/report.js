// The page: what is shown (task, ruleset, optimizers, curve), the charts, sorting, and the theme.

const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const state = { task: byId("task").value, ruleset: all('input[name="ruleset"]').length ? "tuned" : "", off: new Set() };

const shown = (label, ruleset) => !state.off.has(label) && (!state.ruleset || ruleset === state.ruleset);
const visible = (line) => shown(data.entries[line.entry].label, data.entries[line.entry].ruleset);

function dressed(line, more) {
  const entry = data.entries[line.entry];
  return { name: entry.name, colour: entry.colour, dash: entry.dash, thin: entry.ruleset === "as is", ...line, ...more };
}

// ---- charts ------------------------------------------------------------------------------------------------

// One chart for the chosen task, or a small one for each; `make` gives a task's spec.
function drawTasks(host, make) {
  const picked = state.task ? [data.tasks.indexOf(state.task)] : data.tasks.map((_, i) => i);
  const few = picked.length === 1;
  host.classList.toggle("many", !few);
  host.replaceChildren();
  const cells = picked.map(() => htmlOf(host, "div", "chart"));
  picked.forEach((index, i) => drawChart(cells[i], { title: data.tasks[index], height: few ? 420 : 250, ends: few, ...make(index) }));
}

function spansDecade(lines) {
  const values = lines.flatMap((line) => line.mid);
  const range = extent(values, false);
  return range !== null && range[0] > 0 && range[1] > 10 * range[0];
}

function drawCurves() {
  const curve = byId("curve").value;
  const scale = byId("scale").value;
  const accuracy = curve.endsWith("accuracy");
  drawTasks(byId("chart-curves"), (task) => {
    const lines = data.learning[task].filter(visible).filter((line) => curve in line.curves).map((line) => dressed({ entry: line.entry, x: line.x, ...line.curves[curve] }));
    const log = scale === "log" || (scale === "auto" && !accuracy && spansDecade(lines));
    return { lines, bands: byId("bands").checked, rules: data.boundaries[task], x: { label: "inner step", log: byId("logx").checked, whole: true }, y: { label: curve, log, descending: accuracy } };
  });
}

function drawEpisodes() {
  if (!byId("episodes")) return;
  drawTasks(byId("chart-episodes"), (task) => {
    const lines = data.episodes[task].filter(visible).map((line) => dressed(line, { marker: data.entries[line.entry].marker }));
    const log = lines.flatMap((line) => line.mid).every((value) => value === null || value > 0);
    return { lines, bands: true, x: { label: "episode", whole: true }, y: { label: "train/loss at its end", log } };
  });
}

// Two charts for each task: where restarts end, and how their median gets there.
function drawRestarts() {
  if (!byId("restarts")) return;
  const host = byId("chart-restarts");
  host.replaceChildren();
  for (const panel of data.restarts.filter((each) => !state.task || each.tasks.includes(state.task))) {
    const wide = ([low, high]) => low > 0 && high > 10 * low;
    const ends = panel.ends.filter(visible).map((line) => dressed(line, { stairs: true }));
    const medians = panel.medians.filter(visible).map((line) => dressed(line));
    const look = { title: panel.title, height: 320 };
    drawChart(htmlOf(host, "div", "chart"), { ...look, lines: ends, x: { label: "final test/loss", log: wide(panel.loss), domain: panel.loss }, y: { label: "restarts at or below", domain: [0, 1.03], descending: true } });
    drawChart(htmlOf(host, "div", "chart"), { ...look, lines: medians, bands: true, x: { label: "inner step", whole: true }, y: { label: "median test/loss", log: wide(panel.height), domain: panel.height } });
  }
}

function drawSensitivity() {
  if (!byId("sensitivity")) return;
  const name = byId("hyperparameter").value;
  const xs = extent(data.sensitivity[name].flat().flatMap((line) => line.x), false);
  const log = xs !== null && xs[0] > 0 && xs[1] > 10 * xs[0];
  drawTasks(byId("chart-sensitivity"), (task) => {
    const lines = data.sensitivity[name][task].filter(visible).map((line) => dressed(line, { marker: data.entries[line.entry].marker }));
    return { lines, bands: true, x: { label: name, log }, y: { label: `final ${data.final}`, log: spansDecade(lines) } };
  });
}

function drawProfiles() {
  if (!byId("profiles")) return;
  const end = 4;
  const rows = data.profiles.filter(visible);
  const least = Math.min(0.5, ...rows.flatMap((row) => row.ratios).filter((r) => r > 0));
  const start = 2 ** Math.floor(Math.log2(least));
  const lines = rows.map((row) => {
    const jumps = [...new Set([start, ...row.ratios.filter((r) => r > start && r < end), end])];
    return dressed({ entry: row.entry, x: jumps, mid: jumps.map((tau) => row.ratios.filter((r) => r <= tau).length / row.tasks), stairs: true });
  });
  const ticks = [];
  for (let tick = start; tick <= end; tick *= 2) ticks.push(tick);
  const host = byId("chart-profiles");
  host.replaceChildren();
  drawChart(htmlOf(host, "div", "chart"), { height: 400, lines, reference: { axis: "x" }, x: { label: "steps to the target, relative to the reference", log: true, domain: [start, end], ticks }, y: { label: "share of tasks", domain: [0, 1.03], descending: true } });
}

function drawTunability() {
  if (!byId("tunability")) return;
  const host = byId("chart-tunability");
  const x = { label: "settings tried", whole: true };
  if (!state.task && data.speedup.length) {
    host.classList.remove("many");
    host.replaceChildren();
    const lines = data.speedup.filter(visible).map((line) => dressed(line));
    drawChart(htmlOf(host, "div", "chart"), { title: "all tasks", height: 400, ends: true, lines, reference: { axis: "y" }, x, y: { label: "expected speed-up of the best", descending: true } });
    return;
  }
  drawTasks(host, (task) => {
    const lines = data.tunability[task].filter(visible).map((line) => dressed(line));
    return { lines, x, y: { label: `expected final ${data.final}`, log: spansDecade(lines) } };
  });
}

// ---- what is shown -----------------------------------------------------------------------------------------

function applyFilter() {
  const words = byId("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const node of all("[data-ruleset]")) {
    const found = !("filter" in node.dataset) || words.every((word) => node.textContent.toLowerCase().includes(word));
    node.hidden = !found || !shown(node.dataset.label, node.dataset.ruleset);
  }
}

function refresh() {
  for (const chip of all("[data-chip]")) chip.setAttribute("aria-pressed", String(!state.off.has(chip.dataset.chip)));
  byId("all").textContent = state.off.size ? "show all" : "hide all";
  applyFilter();
  drawCurves();
  drawEpisodes();
  drawRestarts();
  drawSensitivity();
  drawProfiles();
  drawTunability();
}

// Pointing at a chip or at a label beside a chart fades all other curves.
function pointOut(event) {
  const target = event.target.closest?.("[data-chip], .end");
  const names = new Set(!target ? [] : target.dataset.name ? [target.dataset.name] : data.entries.filter((entry) => entry.label === target.dataset.chip).map((entry) => entry.name));
  document.body.classList.toggle("hot", names.size > 0);
  for (const node of all(".series")) node.classList.toggle("hot", names.has(node.dataset.name));
}
for (const kind of ["pointerover", "focusin"]) document.addEventListener(kind, pointOut);

// Under one ruleset best first; under both, each optimizer's tuned row beside its as-is row.
function orderRanking() {
  const body = document.querySelector("#ranking tbody");
  if (!body) return;
  const key = state.ruleset ? "place" : "pair";
  body.append(...[...body.rows].sort((a, b) => a.dataset[key] - b.dataset[key]));
  for (const header of all("#ranking th[aria-sort]")) header.removeAttribute("aria-sort");
}

for (const chip of all("[data-chip]")) {
  const label = chip.dataset.chip;
  chip.addEventListener("click", () => {
    if (!state.off.delete(label)) state.off.add(label);
    refresh();
  });
  chip.addEventListener("dblclick", () => {
    state.off = new Set(data.entries.map((entry) => entry.label).filter((other) => other !== label));
    refresh();
  });
}
byId("all").addEventListener("click", () => {
  state.off = state.off.size ? new Set() : new Set(data.entries.map((entry) => entry.label));
  refresh();
});
byId("task").addEventListener("change", (event) => { state.task = event.target.value; refresh(); });
for (const radio of all('input[name="ruleset"]')) radio.addEventListener("change", () => { state.ruleset = radio.value; orderRanking(); refresh(); });
for (const id of ["curve", "scale", "logx", "bands"]) byId(id).addEventListener("change", drawCurves);
byId("hyperparameter")?.addEventListener("change", drawSensitivity);
byId("filter").addEventListener("input", applyFilter);
for (const radio of all('input[name="heat"]')) {
  radio.addEventListener("change", () => { for (const id of ["heat-speedups", "heat-losses"]) byId(id).hidden = id !== radio.value; });
}
for (const button of all("[data-go]")) {
  button.addEventListener("click", () => {
    state.task = byId("task").value = button.dataset.go;
    refresh();
    byId("curves").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
  });
}

// ---- sorting -----------------------------------------------------------------------------------------------

// Numbers start with the largest, texts with a; a missing number always goes last.
function sortBy(header) {
  const table = header.closest("table");
  const column = [...header.parentNode.children].indexOf(header);
  const numeric = header.dataset.sort === "number";
  const before = header.getAttribute("aria-sort");
  const upwards = before ? before === "descending" : !numeric;
  for (const other of all("th[aria-sort]", table)) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", upwards ? "ascending" : "descending");
  const key = (row) => {
    const cell = row.children[column];
    const text = cell.dataset.value ?? cell.textContent;
    return numeric ? (text === "" ? null : Number(text)) : text.trim().toLowerCase();
  };
  const compare = (a, b) => {
    if (a === null || b === null) return (a === null) - (b === null);
    return (numeric ? a - b : a.localeCompare(b, undefined, { numeric: true })) * (upwards ? 1 : -1);
  };
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [key(row), row]).sort(([a], [b]) => compare(a, b));
  body.append(...rows.map(([, row]) => row));
}
for (const header of all("table.sortable th[data-sort]")) header.querySelector("button").addEventListener("click", () => sortBy(header));

// ---- theme -------------------------------------------------------------------------------------------------

const THEMES = ["auto", "light", "dark"];
function setTheme(theme) {
  if (theme === "auto") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = theme;
  byId("theme").textContent = `Theme: ${theme}`;
  byId("theme").setAttribute("aria-label", `Colour theme: ${theme === "auto" ? "as the system" : theme}`);
}
function stored(action) {
  try { return action(window.localStorage); } catch { return null; } // a page from a file may have no storage
}
let theme = THEMES.includes(location.hash.slice(1)) ? location.hash.slice(1) : stored((s) => s.getItem("outeropt-theme")) || "auto";
setTheme(theme);
byId("theme").addEventListener("click", () => {
  theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
  setTheme(theme);
  stored((s) => s.setItem("outeropt-theme", theme));
});

// ---- start -------------------------------------------------------------------------------------------------

refresh();
let width = byId("main").clientWidth;
new ResizeObserver(() => {
  if (byId("main").clientWidth === width) return;
  width = byId("main").clientWidth;
  refresh();
}).observe(byId("main"));
