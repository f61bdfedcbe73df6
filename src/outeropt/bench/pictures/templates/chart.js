"use strict";
// One line chart as SVG, drawn from numbers: axes, bands, lines, marks, labels at the line ends, and a
// crosshair that follows the pointer or the arrow keys. Knows nothing about optimizers.

const svgOf = (() => {
  const space = new DOMParser().parseFromString("<svg/>", "text/html").body.firstChild.namespaceURI;
  return (parent, tag, attributes = {}) => {
    const node = document.createElementNS(space, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    parent.append(node);
    return node;
  };
})();

function htmlOf(parent, tag, className = "", text = "") {
  const node = document.createElement(tag);
  if (className) node.className = className;
  node.textContent = text;
  parent.append(node);
  return node;
}

function formatNumber(value) {
  if (value === null || !Number.isFinite(value)) return "–";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e6)) return value.toExponential(2).replace(/\.?0+e/, "e").replace("e+", "e");
  return String(+value.toPrecision(4));
}

function formatTick(value) {
  const size = Math.abs(value);
  if (size >= 1e6 && size < 1e9) return `${+(value / 1e6).toPrecision(6)}M`;
  if (size >= 1e4 && size < 1e6) return `${+(value / 1e3).toPrecision(6)}k`;
  return formatNumber(value);
}

function niceTicks(low, high, count) {
  const raw = (0.75 * (high - low)) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 5, 10].find((m) => m * power >= raw) * power;
  const ticks = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) ticks.push(i * step);
  return ticks;
}

// The finest of 1-2-5, 1-3 and whole decades that gives at most `count` ticks; even ticks within less than a decade.
function logTicks(low, high, count) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const inside = (digits) => {
    const ticks = [];
    for (let p = first; p <= last; p++) for (const d of digits) ticks.push(d * 10 ** p);
    return ticks.filter((t) => t >= low * 0.999 && t <= high * 1.001);
  };
  const fitting = [[1, 2, 5], [1, 3], [1]].map(inside).find((ticks) => ticks.length <= count);
  if (fitting === undefined) return thinned(inside([1]), count);
  return fitting.length >= 3 ? fitting : niceTicks(low, high, count);
}

// Every n-th tick, counted from 1 where it is among them.
function thinned(ticks, count) {
  const stride = Math.ceil(ticks.length / Math.max(count, 1));
  const from = Math.max(ticks.indexOf(1), 0);
  return ticks.filter((_, i) => (i - from) % stride === 0);
}

// A map from data to pixels. `log` drops what is not positive.
function makeScale(domain, range, log) {
  const f = log ? Math.log : (v) => v;
  let [low, high] = domain.map(f);
  if (!(high > low)) [low, high] = [low - (Math.abs(low) || 1) * 0.05, high + (Math.abs(high) || 1) * 0.05];
  const slope = (range[1] - range[0]) / (high - low);
  const scale = (v) => (v === null || (log && v <= 0) ? NaN : range[0] + (f(v) - low) * slope);
  const back = log ? Math.exp : (v) => v;
  scale.domain = [back(low), back(high)];
  return scale;
}

function padded([low, high], log, by) {
  if (log) return [low * (low / high) ** by, high * (high / low) ** by];
  return [low - by * (high - low), high + by * (high - low)];
}

function extent(values, log) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v === null || (log && v <= 0)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : null;
}

// Labels at sorted heights, moved as little as possible to be `gap` apart: overlapping groups are pooled and centred.
function spreadOut(heights, gap, low, high) {
  const start = (g) => Math.max(low, Math.min(g.sum / g.n - (gap * (g.n - 1)) / 2, high - gap * (g.n - 1)));
  const groups = [];
  for (const h of heights) {
    groups.push({ sum: h, n: 1 });
    while (groups.length > 1) {
      const [a, b] = groups.slice(-2);
      if (start(b) - start(a) >= a.n * gap) break;
      groups.splice(-2, 2, { sum: a.sum + b.sum, n: a.n + b.n });
    }
  }
  return groups.flatMap((g) => Array.from({ length: g.n }, (_, i) => start(g) + i * gap));
}

function linePath(line, x, y) {
  let path = "", pen = false, before = NaN;
  line.x.forEach((value, i) => {
    const px = x(value), py = y(line.mid[i]);
    if (!Number.isFinite(px) || !Number.isFinite(py)) { pen = false; return; }
    path += pen ? (line.stairs ? `V${before}` : "") : "";
    path += pen && line.stairs ? `H${px.toFixed(1)}V${py.toFixed(1)}` : `${pen ? "L" : "M"}${px.toFixed(1)} ${py.toFixed(1)}`;
    before = py.toFixed(1);
    pen = true;
  });
  return path;
}

function bandPath(line, x, y, floor) {
  let path = "", run = [];
  const close = () => {
    if (run.length > 1) path += `M${run.map((p) => `${p[0]} ${p[1]}`).join("L")}L${run.reverse().map((p) => `${p[0]} ${p[2]}`).join("L")}Z`;
    run = [];
  };
  line.x.forEach((value, i) => {
    const px = x(value), low = y(line.low[i]), high = y(line.high[i]);
    if (!Number.isFinite(px) || !Number.isFinite(high)) return close();
    run.push([px.toFixed(1), high.toFixed(1), (Number.isFinite(low) ? low : floor).toFixed(1)]);
  });
  close();
  return path;
}

function drawMark(parent, shape, px, py, r, attributes) {
  const at = (points) => `M${points.map(([a, b]) => `${(px + a * r).toFixed(1)} ${(py + b * r).toFixed(1)}`).join("L")}Z`;
  const star = (n, inner, turn) => Array.from({ length: 2 * n }, (_, i) => {
    const angle = (Math.PI * i) / n + turn, size = i % 2 ? inner : 1.3;
    return [size * Math.sin(angle), -size * Math.cos(angle)];
  });
  const shapes = {
    s: [[-0.9, -0.9], [0.9, -0.9], [0.9, 0.9], [-0.9, 0.9]], "^": [[0, -1.2], [1.1, 0.9], [-1.1, 0.9]],
    v: [[0, 1.2], [1.1, -0.9], [-1.1, -0.9]], D: [[0, -1.25], [1.25, 0], [0, 1.25], [-1.25, 0]],
    P: star(4, 0.5, 0), X: star(4, 0.5, Math.PI / 4), "*": star(5, 0.5, 0),
  };
  if (shape in shapes) return svgOf(parent, "path", { d: at(shapes[shape]), ...attributes });
  return svgOf(parent, "circle", { cx: px.toFixed(1), cy: py.toFixed(1), r, ...attributes });
}

function drawCross(parent, px, py, r, attributes) {
  const d = `M${px - r} ${py - r}L${px + r} ${py + r}M${px - r} ${py + r}L${px + r} ${py - r}`;
  return svgOf(parent, "path", { d, fill: "none", "stroke-width": 1.6, ...attributes });
}

function textWidth(host, text) {
  textWidth.context ||= document.createElement("canvas").getContext("2d");
  textWidth.context.font = `12.5px ${getComputedStyle(host).fontFamily}`;
  return textWidth.context.measureText(text).width;
}

function strokeOf(line) {
  return { stroke: `var(--s${line.colour})`, "stroke-width": line.thin ? 1.1 : 1.9, "stroke-dasharray": line.dash.map((d) => d * 1.5).join(" ") };
}

// spec: {title, height, ends, bands, x: {label, log, domain?}, y: {label, log, domain?}, reference?, rules?, lines}
// line: {name, colour, dash, thin, x, mid, low?, high?, marker?, crosses?, stairs?}; missing numbers are null.
function drawChart(host, spec) {
  host.replaceChildren();
  const title = htmlOf(host, "h3", "chart-title", spec.title || "");
  title.hidden = !spec.title;
  const xs = extent(spec.x.domain || spec.lines.flatMap((l) => l.x), spec.x.log);
  const ys = extent(spec.y.domain || spec.lines.flatMap((l) => l.mid), spec.y.log) || (spec.lines.some((l) => l.crosses?.length) ? [0, 1] : null);
  if (!xs || !ys) {
    htmlOf(host, "p", "empty", spec.lines.length ? "No finite values to draw." : "Nothing selected.");
    return;
  }
  const width = Math.max(host.clientWidth, 240);
  const stacks = new Map();
  for (const line of spec.lines) for (const v of line.crosses || []) stacks.set(v, (stacks.get(v) || 0) + 1);
  const labels = spec.ends && width > 620 ? Math.min(Math.max(...spec.lines.map((l) => textWidth(host, l.name))) + 34, 280) : 10;
  const box = { left: 52, right: width - labels, top: 8 + 7 * Math.min(Math.max(0, ...stacks.values()), 12), bottom: spec.height - 38 };
  const x = makeScale(padded(xs, spec.x.log, 0.02), [box.left, box.right], spec.x.log);
  const y = makeScale(spec.y.domain || padded(ys, spec.y.log, 0.05), [box.bottom, box.top], spec.y.log);

  const svg = svgOf(host, "svg", { width, height: spec.height, viewBox: `0 0 ${width} ${spec.height}`, role: "img", tabindex: 0,
    "aria-label": `${spec.title || ""} ${spec.y.label} by ${spec.x.label}. Arrow keys move along the horizontal axis.` });
  const axes = svgOf(svg, "g", { class: "axes" });
  const levels = Math.max(3, Math.floor((box.bottom - box.top) / 48));
  const yTicks = spec.y.log ? logTicks(...y.domain, levels) : niceTicks(...y.domain, levels);
  for (const tick of yTicks) {
    svgOf(axes, "line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "rule" });
    svgOf(axes, "text", { x: box.left - 7, y: y(tick) + 4, "text-anchor": "end" }).textContent = formatTick(tick);
  }
  const room = Math.max(2, Math.floor((box.right - box.left) / 58));
  const xTicks = spec.x.ticks ? thinned(spec.x.ticks, room) : spec.x.log ? logTicks(...x.domain, room) : niceTicks(...x.domain, room);
  for (const tick of xTicks) {
    if (spec.x.whole && tick % 1) continue;
    svgOf(axes, "line", { x1: x(tick), x2: x(tick), y1: box.bottom, y2: box.bottom + 4, class: "tick" });
    svgOf(axes, "text", { x: x(tick), y: box.bottom + 17, "text-anchor": "middle" }).textContent = formatTick(tick);
  }
  svgOf(axes, "line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, class: "tick" });
  svgOf(axes, "text", { x: (box.left + box.right) / 2, y: spec.height - 4, "text-anchor": "middle", class: "name" }).textContent = spec.x.label;
  svgOf(axes, "text", { x: 0, y: 0, transform: `translate(11 ${(box.top + box.bottom) / 2}) rotate(-90)`, "text-anchor": "middle", class: "name" }).textContent = spec.y.label;

  const clip = `clip${drawChart.count = (drawChart.count || 0) + 1}`;
  svgOf(svgOf(svg, "clipPath", { id: clip }), "rect", { x: box.left, y: box.top - 3, width: Math.max(box.right - box.left, 0), height: box.bottom - box.top + 3 });
  for (const at of spec.rules ?? []) svgOf(svg, "line", { x1: x(at), x2: x(at), y1: box.top, y2: box.bottom, class: "boundary" });
  if (spec.reference) {
    const at = spec.reference.axis === "x" ? { x1: x(1), x2: x(1), y1: box.top, y2: box.bottom } : { x1: box.left, x2: box.right, y1: y(1), y2: y(1) };
    if (spec.reference.axis === "x" ? x(1) >= box.left && x(1) <= box.right : y(1) >= box.top && y(1) <= box.bottom) svgOf(svg, "line", { ...at, class: "reference" });
  }
  const inside = svgOf(svg, "g", { "clip-path": `url(#${clip})` });
  const above = svgOf(svg, "g");
  const taken = new Map();
  for (const line of spec.lines) {
    const group = svgOf(inside, "g", { class: "series", "data-name": line.name });
    const colour = `var(--s${line.colour})`;
    if (spec.bands && line.low) svgOf(group, "path", { d: bandPath(line, x, y, box.bottom), fill: colour, class: "band" });
    svgOf(group, "path", { d: linePath(line, x, y), fill: "none", "stroke-linejoin": "round", ...strokeOf(line) });
    const finite = line.mid.map((v, i) => i).filter((i) => Number.isFinite(y(line.mid[i])) && Number.isFinite(x(line.x[i])));
    for (const i of line.marker ? finite : finite.length === 1 ? finite : []) drawMark(group, line.marker, x(line.x[i]), y(line.mid[i]), 3.2, { fill: colour });
    const last = finite.at(-1);
    if (!line.marker && !line.stairs && last !== undefined && last < line.x.length - 1) drawCross(group, x(line.x[last]), y(line.mid[last]), 4, { stroke: colour });
    const marks = svgOf(above, "g", { class: "series", "data-name": line.name });
    for (const v of line.crosses || []) {
      const level = taken.get(v) || 0;
      taken.set(v, level + 1);
      drawCross(marks, x(v), box.top - 2 - 7 * Math.min(level, 11), 2.6, { stroke: colour });
    }
    line.end = last === undefined ? null : Math.max(box.top, Math.min(y(line.mid[last]), box.bottom));
  }
  if (labels > 10) {
    const ended = spec.lines.filter((l) => l.end !== null).sort((a, b) => a.end - b.end);
    spreadOut(ended.map((l) => l.end), Math.min(15, (box.bottom - box.top) / Math.max(ended.length - 1, 1)), box.top, box.bottom).forEach((h, i) => {
      const group = svgOf(above, "g", { class: "series end", "data-name": ended[i].name });
      svgOf(group, "line", { x1: box.right + 6, x2: box.right + 24, y1: h, y2: h, ...strokeOf(ended[i]) });
      svgOf(group, "text", { x: box.right + 29, y: h + 4 }).textContent = ended[i].name;
    });
  }
  addCrosshair(host, svg, spec, x, y, box);
}

function valueAt(line, at, x) {
  if (line.stairs) {
    let found = -1;
    line.x.forEach((v, i) => { if (v <= at * (1 + 1e-9)) found = i; });
    return found;
  }
  let best = -1, gap = 14;
  line.x.forEach((v, i) => {
    const d = Math.abs(x(v) - x(at));
    if (d < gap) { gap = d; best = i; }
  });
  return best;
}

function addCrosshair(host, svg, spec, x, y, box) {
  const stops = [...new Set(spec.lines.flatMap((l) => l.x))].filter((v) => Number.isFinite(x(v)) && x(v) >= box.left - 1 && x(v) <= box.right + 1).sort((a, b) => a - b);
  const layer = svgOf(svg, "g", { class: "crosshair" });
  const tip = htmlOf(host, "div", "tip");
  tip.setAttribute("role", "status");
  tip.hidden = true;
  let place = -1;
  const hide = () => { layer.replaceChildren(); tip.hidden = true; place = -1; };
  const show = (index) => {
    place = Math.max(0, Math.min(index, stops.length - 1));
    const at = stops[place];
    layer.replaceChildren();
    svgOf(layer, "line", { x1: x(at), x2: x(at), y1: box.top, y2: box.bottom });
    tip.replaceChildren();
    htmlOf(tip, "strong", "", `${spec.x.label} ${formatNumber(at)}`);
    const table = htmlOf(tip, "table");
    spec.lines.map((line) => ({ line, i: valueAt(line, at, x) })).filter(({ i }) => i >= 0)
      .sort((a, b) => ((a.line.mid[a.i] ?? Infinity) - (b.line.mid[b.i] ?? Infinity)) * (spec.y.descending ? -1 : 1))
      .forEach(({ line, i }) => {
        const row = htmlOf(table, "tr"), value = line.mid[i];
        htmlOf(htmlOf(row, "td"), "i", "dot").style.background = `var(--s${line.colour})`;
        htmlOf(row, "td", "", line.name);
        htmlOf(row, "td", "number", value === null ? "diverged" : formatNumber(value));
        const wide = line.low && value !== null && line.low[i] !== line.high[i];
        htmlOf(row, "td", "number quiet", wide ? `${formatNumber(line.low[i])} to ${formatNumber(line.high[i])}` : "");
        if (value !== null && y(value) >= box.top - 3 && y(value) <= box.bottom + 3) svgOf(layer, "circle", { cx: x(line.stairs ? at : line.x[i]), cy: y(value), r: 3.5, fill: `var(--s${line.colour})` });
      });
    tip.hidden = false;
    const left = x(at) + 14 + tip.offsetWidth > host.clientWidth ? x(at) - 14 - tip.offsetWidth : x(at) + 14;
    tip.style.left = `${Math.max(0, left)}px`;
    tip.style.top = `${svg.offsetTop || (host.querySelector("h3").offsetHeight + box.top)}px`;
  };
  const follow = (event) => {
    const px = event.clientX - svg.getBoundingClientRect().left;
    if (!stops.length || px < box.left - 20 || px > box.right + 20) return hide();
    let best = 0;
    stops.forEach((v, i) => { if (Math.abs(x(v) - px) < Math.abs(x(stops[best]) - px)) best = i; });
    if (best !== place) show(best);
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const jump = { ArrowRight: place + 1, ArrowLeft: place < 0 ? stops.length - 1 : place - 1, Home: 0, End: stops.length - 1 }[event.key];
    if (event.key === "Escape") hide();
    if (jump === undefined || !stops.length) return;
    event.preventDefault();
    show(jump);
  });
}
