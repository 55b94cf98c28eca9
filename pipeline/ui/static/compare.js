// Comparison of two runs of a step: parameters, rejects, results, curves; and the rows, if asked for.

import { about, get, go, link } from "./api.js";
import { count, h, plain, seconds } from "./dom.js";
import { cell, panels } from "./training.js";

export async function compareView(at) {
  const other = at.one("other", at.root);
  const [run, second, { roots }] = await Promise.all([get(at.root, "run"), other === at.root ? null : get(other, "run"), about()]);
  const left = run.steps.filter((o) => o.state !== "waiting"), right = (second || run).steps.filter((o) => o.state !== "waiting");
  const a = at.one("step") || (left[0] || {}).folder;
  const named = (o) => o.name === (a || "").replace(/-[0-9a-f]+$/, "") && !(other === at.root && o.folder === a);
  const b = at.one("with") || (right.find(named) || {}).folder || "";
  const rows = at.one("rows");
  const to = (change) => go(link(at.root, "compare", { step: a, with: b, other: at.one("other"), ...change }));
  const pick = (id, label, steps, value, change) => h("label", {}, `${label} `, h("select", { id, onchange: (e) => change(e.target.value) }, !value && h("option", { value: "" }, "choose"), steps.map((o) => h("option", { value: o.folder, selected: o.folder === value }, o.current ? `${o.name} (${o.folder.split("-").pop()})` : `${o.folder}, earlier`))));
  const head = [h("h1", {}, "Compare two runs of a step"), h("div", { class: "controls" }, pick("a", "A", left, a, (v) => to({ step: v, with: "" })),
    roots.length > 1 && h("label", {}, "B is in ", h("select", { onchange: (e) => to({ other: e.target.value, with: "" }) }, roots.map((o, n) => h("option", { value: n, selected: String(n) === other }, o.title)))),
    pick("b", "B", right, b, (v) => to({ with: v })))];
  if (!a || !b) return { title: "Compare", nodes: [...head, h("p", {}, "Choose the step to compare with: a folder of the same step made with other parameters, or a step of another root, if several roots were given to ", h("code", {}, "vlpipe ui"), ".")] };
  const found = await get(at.root, "compare", { step: a, with: b, other, rows });
  return {
    title: "Compare",
    nodes: [...head,
      h("section", {}, h("h2", {}, "What differs"), table(["", `A ${a}`, `B ${b}`], [...found.facts, ...sizes(found.sides)])),
      found.rejects.length > 0 && h("section", {}, h("h2", {}, "Rejects"), table(["reason", "A", "B"], found.rejects.map(([code, x, y]) => [code, count(x), count(y)]), true)),
      found.results.some((r) => r.length) && h("section", {}, h("h2", {}, "Results"), results(found.results)),
      found.curves.some((r) => r.length) && curves(found.curves, at.root),
      found.rows ? rowsOf(at, found.rows, a, b, other) : h("p", {}, h("a", { class: "button", href: link(at.root, "compare", { step: a, with: b, other: at.one("other"), rows: "1" }), id: "rows" }, "compare the rows"), h("span", { class: "note" }, " reads both steps"))],
  };
}

const sizes = ([a, b]) => [["rows in", count(a.rows_in), count(b.rows_in)], ["rows out", count(a.rows_out), count(b.rows_out)], ["seconds", seconds(a.seconds), seconds(b.seconds)]];

function table(names, lines, numbers = false) {
  return h("div", { class: "scroll" }, h("table", {}, h("thead", {}, h("tr", {}, names.map((name) => h("th", {}, name)))), h("tbody", {}, lines.map((line) => h("tr", {}, line.map((one, n) => h(n ? "td" : "th", { scope: n ? null : "row", class: numbers && n ? "num" : null }, plain(one))))))));
}

function results([a, b]) {
  const names = [...new Set([...a, ...b].map((r) => r.name))];
  const of = (list, name) => list.find((r) => r.name === name);
  return h("div", { class: "scroll" }, h("table", { class: "results" }, h("thead", {}, h("tr", {}, ["figure", "A", "B", "B − A"].map((name, n) => h("th", { class: n ? "num" : "" }, name)))),
    h("tbody", {}, names.map((name) => {
      const [x, y] = [of(a, name), of(b, name)];
      const gap = x && y && x.value !== null && y.value !== null ? y.value - x.value : null;
      return h("tr", {}, h("th", { scope: "row" }, name), cell(x), cell(y), h("td", { class: "num" }, gap === null ? "" : `${gap > 0 ? "+" : ""}${gap.toFixed(3)}`));
    }))));
}

function curves([a, b], root) {
  const both = [...a.map((c) => ({ ...c, folder: "A" })), ...b.map((c) => ({ ...c, folder: "B" }))];
  return h("section", {}, h("h2", {}, "Curves"), panels(root, both, ["A", "B"], (name) => name));
}

function rowsOf(at, rows, a, b, other) {
  const ids = (list, root, step) => list.map((id) => [h("a", { href: link(root, "row", { step, id }) }, plain(id).slice(0, 12)), " "]);
  return h("section", {}, h("h2", {}, "Rows"), h("ul", {}, h("li", {}, `${count(rows.both)} rows are in both, ${count(rows.changed)} of them differ`, Object.entries(rows.columns).map(([name, n]) => `; ${name} in ${count(n)}`)),
    h("li", {}, `${count(rows.only[0])} only in A `, ids(rows.only_ids[0], at.root, a)), h("li", {}, `${count(rows.only[1])} only in B `, ids(rows.only_ids[1], other, b))),
  rows.examples.map(([label, lines]) => h("div", {}, h("code", {}, plain(label)), h("ul", {}, lines.map((line) => h("li", {}, h("bdi", { dir: "auto" }, plain(line))))))));
}
