// One step: what it was made with, its columns with their statistics, its rejects, its shards and their speed.

import { get, link } from "./api.js";
import { bytes, count, h, number, plain, seconds, show } from "./dom.js";
import { lines } from "./charts.js";
import { progress, reasons } from "./run.js";

export async function stepView(at) {
  const step = at.one("step");
  const one = await get(at.root, "step", { step });
  const part = progress(one), spent = one.spent;
  const views = [
    one.rows_out > 0 && ["rows", `${count(one.rows_out)} rows`], Object.keys(one.rejects).length > 0 && ["rejects", "rejects"],
    one.columns.some((c) => /score|similarity/.test(`${c.name} ${c.type}`)) && one.rows_out > 0 && ["scores", "scores"],
    one.kind === "decisions" && ["duplicates", "duplicates"], one.kind === "losses" && ["losses", "losses"], one.kind === "results" && ["results", "results"], ["compare", "compare with another"],
  ].filter(Boolean);
  return {
    title: one.name, live: one.state === "running" ? true : undefined,
    nodes: [
      h("h1", {}, one.name), h("p", { class: "note" }, h("code", {}, one.use), " ", h("span", { class: `chip ${one.state}` }, one.state), " ", h("code", {}, one.folder)),
      one.warning && h("p", { class: "stopped", role: "alert" }, one.warning),
      part !== null && part < 1 && h("progress", { max: 1, value: part, "aria-label": "progress" }), one.said && one.state !== "done" && h("p", { class: "note" }, plain(one.said)),
      h("p", { class: "chips" }, views.map(([view, text]) => h("a", { class: "button", href: link(at.root, view, { step }), "data-item": true }, text))),
      h("div", { class: "tiles" }, tile(count(one.rows_in), "rows in"), tile(count(one.rows_out), "rows out"), tile(`${count(one.shards)}${one.total === null ? "" : ` of ${count(one.total)}`}`, "shards"), tile(seconds(one.seconds), "over all shards"),
        one.seconds > 0.05 && one.rows_in > 0 && tile(count(Math.round(one.rows_in / one.seconds)), "rows per second"), tile(bytes(one.bytes), "in shards")),
      spent.seconds && h("p", { class: "note" }, `of ${seconds(spent.seconds)} with a model: computing ${Math.round((100 * spent.computing) / spent.seconds)} %, waiting for input ${Math.round((100 * spent.waiting) / spent.seconds)} %`),
      h("p", { class: "note" }, one.inputs.length > 0 && ["rows from ", one.inputs.map((f) => [h("a", { href: link(at.root, "step", { step: f }) }, f.replace(/-[0-9a-f]+$/, "")), " "])], one.reads.length > 0 && ["artifacts from ", one.reads.map((f) => [h("a", { href: link(at.root, "step", { step: f }) }, f.replace(/-[0-9a-f]+$/, "")), " "])]),
      Object.keys(one.rejects).length > 0 && h("section", {}, h("h2", {}, "Rejects"), reasons(at.root, one)),
      h("div", { class: "two" },
        h("section", {}, h("h2", {}, "Parameters"), h("dl", { class: "columns" }, Object.entries(one.params).map(([name, value]) => [h("dt", {}, name), h("dd", {}, show(value))]))),
        (Object.keys(one.counts).length > 0 || one.num_artifacts > 0) && h("section", {}, Object.keys(one.counts).length > 0 && [h("h2", {}, "Counts"), h("dl", { class: "columns" }, Object.entries(one.counts).map(([name, n]) => [h("dt", {}, name), h("dd", { class: "num" }, count(n))]))],
          one.num_artifacts > 0 && [h("h2", {}, `${count(one.num_artifacts)} artifacts`), h("ul", { class: "plain" }, one.artifacts.slice(0, 20).map((name) => h("li", {}, h("code", {}, name))), one.num_artifacts > 20 && h("li", {}, "…"))])),
      one.columns.length > 0 && h("section", {}, h("h2", {}, "Columns"), h("div", { class: "scroll" }, columns(at.root, step, one))),
      one.per_shard.length > 1 && h("section", {}, h("h2", {}, "Rows per second, by shard"), lines("rows/s", [{ name: one.name, css: "c0", x: one.per_shard.map((p) => p.index), y: one.per_shard.map((p) => (p.seconds > 0 ? Math.max(p.rows_in, p.rows) / p.seconds : null)), live: false }])),
    ],
  };
}

const tile = (value, name) => h("div", {}, h("b", {}, value), h("span", {}, name));

function columns(root, step, one) {
  return h("table", {}, h("thead", {}, h("tr", {}, ["column", "type", "nulls", "min", "max", ""].map((name, n) => h("th", { class: n > 1 && n < 5 ? "num" : "" }, name)))),
    h("tbody", {}, one.columns.map((c) => h("tr", {}, h("td", {}, typeof c.min === "number" && !c.held_by ? h("a", { href: link(root, "scores", { step, column: c.name }) }, c.name) : c.name), h("td", {}, h("code", {}, c.type)),
      h("td", { class: "num" }, c.nulls === undefined ? "" : count(c.nulls)), h("td", { class: "num" }, c.min === undefined ? "" : number(c.min)), h("td", { class: "num" }, c.max === undefined ? "" : number(c.max)),
      h("td", { class: "note" }, c.held_by ? `heavy, in ${c.held_by}` : "")))));
}
