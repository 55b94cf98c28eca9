// The run: the graph of its steps with live progress, and the funnel.

import { get, link } from "./api.js";
import { bytes, count, h, s, seconds, share } from "./dom.js";

const WIDE = 168, HIGH = 58, GAP_X = 22, GAP_Y = 40;
const STATES = { done: "done", running: "running", unfinished: "not finished", waiting: "not run yet" };

export async function runView(at) {
  const run = await get(at.root, "run");
  const all = at.one("all") === "1";
  const steps = run.steps.filter((one) => all || one.current);
  const running = steps.filter((one) => one.state === "running");
  const done = steps.filter((one) => one.state === "done").length;
  const warnings = steps.filter((one) => one.warning);
  const others = run.steps.length - run.steps.filter((one) => one.current).length;
  return {
    title: run.title,
    live: run.holder.running,
    nodes: [
      h("h1", {}, run.title),
      h("p", { class: "note" }, h("code", {}, run.url)),
      run.holder.text && h("p", { class: run.holder.running ? "live" : "stopped" }, run.holder.text),
      h("div", { class: "tiles" }, tile(`${done} of ${steps.length}`, "steps done"),
        tile(count(steps.filter((o) => !o.inputs.length).reduce((sum, o) => sum + o.rows_out, 0)), "rows entered"),
        tile(count(kinds(steps, "filtered")), "filtered"), tile(count(kinds(steps, "fault")), "faults"),
        tile(seconds(steps.reduce((sum, o) => sum + o.seconds, 0)), "of computing"),
        tile(bytes(steps.reduce((sum, o) => sum + o.bytes, 0)), "in shards")),
      warnings.length > 0 && h("section", { class: "warn", role: "alert" }, h("h2", {}, "Look at these"),
        h("ul", {}, warnings.map((o) => h("li", {}, stepLink(at.root, o), ": ", o.warning)))),
      running.length > 0 && h("section", {}, h("h2", {}, "Running"), running.map((o) => runningLine(at.root, o))),
      h("section", {}, h("h2", {}, "Steps"), h("div", { class: "scroll middle", tabindex: 0, "aria-label": "graph of the steps" }, graph(at.root, steps))),
      h("section", {}, h("h2", {}, "Funnel"), funnel(at.root, steps)),
      others > 0 && h("p", {}, h("a", { id: "others", href: link(at.root, "run", { all: all ? "" : "1" }) },
        all ? "only the steps of the last run" : `${others} more folder(s) of earlier parameters`)),
    ],
  };
}

const tile = (value, name) => h("div", {}, h("b", {}, value), h("span", {}, name));
const kinds = (steps, kind) => steps.reduce((sum, o) => sum + kindOf(o, kind), 0);
const kindOf = (one, kind) => Object.entries(one.rejects).reduce((sum, [code, n]) => sum + (code.startsWith(`${kind}:`) ? n : 0), 0);
export const stepLink = (root, one) => h("a", { href: link(root, "step", { step: one.folder }) }, one.name);

/** How much of a step is done, from 0 to 1; null if that is not known. */
export function progress(one) {
  if (one.state === "done") return 1;
  if (one.train[1]) return one.train[0] / one.train[1];
  return one.total ? one.shards / one.total : one.state === "waiting" ? 0 : null;
}

function runningLine(root, one) {
  const part = progress(one);
  const rate = one.rate !== null && !one.gather ? `${count(Math.round(one.rate))} rows/s` : "";
  const shards = one.total && !one.gather ? `${count(one.shards)} of ${count(one.total)} shards` : "";
  return h("div", { class: "running" }, stepLink(root, one), " ",
    h("progress", { max: 1, value: part ?? undefined, "aria-label": `progress of ${one.name}` }), " ",
    h("span", { class: "note" }, [shards, rate, one.part_rows ? `${count(one.part_rows)} rows of shards under way` : "", one.said ? (one.said.cut || one.said) : ""].filter(Boolean).join(" · ")));
}

/** Rows of the graph: each step lies one below the last of those that it reads from. */
function layers(steps) {
  const known = new Map(steps.map((one) => [one.folder, one])), depth = new Map();
  for (const one of steps) {
    const above = [...one.inputs, ...one.reads].filter((f) => depth.has(f) && known.has(f));
    depth.set(one.folder, above.length ? 1 + Math.max(...above.map((f) => depth.get(f))) : 0);
  }
  const rows = [];
  for (const one of steps) (rows[depth.get(one.folder)] ||= []).push(one);
  const x = new Map();
  for (const row of rows) {
    const mean = (one) => {
      const at = [...one.inputs, ...one.reads].filter((f) => x.has(f)).map((f) => x.get(f));
      return at.length ? at.reduce((a, b) => a + b, 0) / at.length : 0;
    };
    row.sort((a, b) => mean(a) - mean(b));
    row.forEach((one, n) => x.set(one.folder, n - (row.length - 1) / 2));
  }
  return rows;
}

export function graph(root, steps, marks = null) {
  const rows = layers(steps), widest = Math.max(...rows.map((row) => row.length), 1);
  const width = widest * (WIDE + GAP_X) + GAP_X, height = rows.length * (HIGH + GAP_Y) + 8, at = new Map();
  rows.forEach((row, y) => row.forEach((one, n) => {
    at.set(one.folder, [width / 2 + (n - (row.length - 1) / 2) * (WIDE + GAP_X) - WIDE / 2, y * (HIGH + GAP_Y) + 4]);
  }));
  const edges = steps.flatMap((one) => [...one.inputs.map((f) => [f, one.folder, ""]), ...one.reads.map((f) => [f, one.folder, " reads"])])
    .filter(([from]) => at.has(from));
  const passed = (from, to) => marks && marks.has(from) && marks.has(to) && marks.get(from) !== "read";
  return s("svg", { class: "graph", width, height, viewBox: `0 0 ${width} ${height}`, role: "group", "aria-label": "steps" },
    edges.map(([from, to, kind]) => edge(at.get(from), at.get(to), kind, passed(from, to) && !kind)),
    steps.map((one) => node(root, one, at.get(one.folder), marks)));
}

function edge([x1, y1], [x2, y2], kind, on) {
  const a = x1 + WIDE / 2, b = y1 + HIGH, c = x2 + WIDE / 2, half = Math.min(60, (y2 - b) / 2);
  return s("path", { class: `edge${kind}${on ? " on" : ""}`, d: `M${a} ${b} C${a} ${b + half} ${c} ${y2 - half} ${c} ${y2}` });
}

function node(root, one, [x, y], marks) {
  const part = progress(one), mark = marks ? marks.get(one.folder) || "off" : "";
  const rows = one.rows_out ? `${count(one.rows_out)} rows` : one.state === "done" ? "done" : STATES[one.state];
  const rejects = Object.values(one.rejects).reduce((a, b) => a + b, 0);
  const label = `${one.name}, ${STATES[one.state]}, ${rows}${rejects ? `, ${count(rejects)} rejected` : ""}${mark && mark !== "off" ? `, the row: ${mark}` : ""}`;
  const name = one.name.length > 20 ? `${one.name.slice(0, 19)}…` : one.name;
  return s("a", { href: link(root, "step", { step: one.folder }), class: `node ${one.state}${one.warning ? " bad" : ""}${mark ? ` m-${mark}` : ""}`, "aria-label": label, id: `n-${one.folder}`, "data-item": marks ? null : true },
    s("title", {}, `${one.name}: ${one.use}`),
    s("rect", { x, y, width: WIDE, height: HIGH, rx: 9 }),
    s("text", { x: x + 12, y: y + 23, class: "name" }, name),
    s("text", { x: x + 12, y: y + 41, class: "what" }, mark && mark !== "off" ? mark : one.state === "running" && one.train[1] ? `step ${count(one.train[0])} of ${count(one.train[1])}` : rows),
    rejects > 0 && !marks && s("text", { x: x + WIDE - 10, y: y + 41, class: "what end gone" }, `−${count(rejects)}`),
    !marks && part !== null && part < 1 && s("rect", { class: "part", x: x + 8, y: y + HIGH - 8, width: Math.max(2, (WIDE - 16) * part), height: 3, rx: 1.5 }));
}

export function funnel(root, steps) {
  const drops = (one) => one.rows_in > 0 && one.rows_in === one.rows_out + Object.values(one.rejects).reduce((a, b) => a + b, 0);
  const most = Math.max(1, ...steps.filter(drops).map((one) => one.rows_in));
  return h("div", { class: "scroll" }, h("table", { class: "funnel" },
    h("thead", {}, h("tr", {}, ["step", "rows", "in", "out", "rows/s", "time", "size"].map((name) => h("th", { class: ["step", "rows"].includes(name) ? "" : "num" }, name)))),
    h("tbody", {}, steps.map((one) => h("tr", {},
      h("td", { class: "name" }, stepLink(root, one), one.state !== "done" && h("span", { class: `chip ${one.state}` }, STATES[one.state]), h("br"), h("code", {}, one.use)),
      h("td", { class: "wide" }, drops(one) && bar(one, most), reasons(root, one)),
      h("td", { class: "num" }, count(one.rows_in)),
      h("td", { class: "num" }, one.rows_out ? h("a", { href: link(root, "rows", { step: one.folder }) }, count(one.rows_out)) : "0"),
      h("td", { class: "num" }, speed(one)),
      h("td", { class: "num" }, seconds(one.seconds)),
      h("td", { class: "num" }, one.bytes ? bytes(one.bytes) : ""))))));
}

const speed = (one) => (one.rate ? count(Math.round(one.rate)) : one.seconds > 0.05 && one.rows_in ? count(Math.round(one.rows_in / one.seconds)) : "");

function bar(one, most) {
  const parts = [["kept", one.rows_out], ["filtered", kindOf(one, "filtered")], ["fault", kindOf(one, "fault")]];
  return h("div", { class: "hbar", role: "img", "aria-label": parts.map(([name, n]) => `${name} ${count(n)}`).join(", ") },
    parts.filter(([, n]) => n).map(([name, n]) => h("i", { class: name, title: `${name}: ${count(n)}`, css: { width: `${(100 * n) / most}%` } })));
}

export function reasons(root, one) {
  const sorted = Object.entries(one.rejects).sort((a, b) => b[1] - a[1]);
  return sorted.length > 0 && h("div", { class: "reasons" }, sorted.slice(0, 12).map(([code, n]) => {
    const [kind, why] = [code.slice(0, code.indexOf(":")), code.slice(code.indexOf(":") + 1)];
    return h("a", { class: `reason ${kind}`, href: link(root, "rejects", { step: one.folder, c: `why=${why}` }) }, why, " ", h("b", {}, count(n)), " ", h("small", {}, share(n, one.rows_in)));
  }));
}
