// Histograms of scores. Bars lead to their rows; a moved threshold shows at once how many texts and rows go, and which.

import { get, go, link, replace } from "./api.js";
import { bars } from "./charts.js";
import { card } from "./card.js";
import { chosen, picker } from "./gallery.js";
import { count, h, number, share } from "./dom.js";

const FATES = [["true", "kept", "kept"], ["false", "dropped", "fault"], ["null", "", "made"]];
const BINS = 50, FINE = 400, WAIT_MS = 40;

export async function scoresView(at) {
  const run = await get(at.root, "run");
  const judges = (o) => 2 * Number(/^filter\.(itm|clip|vqa)/.test(o.use)) + Number(o.kind === "rows");
  const [one, steps] = chosen(at, run, (o) => o.rows_out > 0 && o.kind !== "losses" && o.kind !== "results", judges);
  if (!one) return { nodes: [h("h1", {}, "Scores"), h("p", {}, "No step has rows yet.")] };
  const [step, page] = await Promise.all([get(at.root, "step", { step: one.folder }), get(at.root, "rows", { step: one.folder, n: 1 })]);
  const numbers = page.columns.filter((c) => c.kind === "number").map((c) => c.path);
  const column = numbers.includes(at.one("column")) ? at.one("column") : numbers.find((p) => /score/.test(p)) || numbers.find((p) => /similarity/.test(p)) || numbers[0];
  const head = [h("h1", {}, "Scores of ", h("a", { href: link(at.root, "step", { step: one.folder }), "data-up": true }, one.name)),
    h("div", { class: "controls" }, picker(at, "scores", steps, one), h("label", {}, "column ", h("select", { id: "column", onchange: (e) => go(link(at.root, "scores", { step: one.folder, column: e.target.value })) }, numbers.map((p) => h("option", { selected: p === column }, p)))))];
  if (!column) return { nodes: [...head, h("p", {}, "This step has no column of numbers.")] };
  const list = column.includes(".") ? column.split(".")[0] : "";
  const by = page.columns.some((c) => c.path === `${list}.source`) ? `${list}.source` : "";
  const c = at.all("c");
  const [found, fine] = await Promise.all([get(at.root, "histogram", { step: one.folder, column, by, bins: BINS, c }), get(at.root, "histogram", { step: one.folder, column, bins: FINE, c })]);
  const edges = found.edges, low = edges[0], high = edges[edges.length - 1];
  const before = typeof step.params.threshold === "number" ? step.params.threshold : (low + high) / 2;
  const now = Math.min(high, Math.max(low, Number(at.one("at", String(before)))));
  const charts = found.panels.map((panel) => {
    const to = (a, b, last) => link(at.root, "rows", { step: one.folder, c: [...c, panel.name && (panel.name === "null" ? `${by}=null` : panel.name === "others" ? "" : `${by}=${panel.name}`), `${column}>=${round(a)}`, last ? `${column}<=${round(b)}` : `${column}<${round(b)}`].filter(Boolean) });
    const kept = panel.counts.true ? panel.counts.true.reduce((a, b) => a + b, 0) : 0;
    const chart = bars(`${column} ${panel.name}`, edges, FATES.filter(([f]) => panel.counts[f]).map(([f, name, css]) => [name, css, panel.counts[f]]), to, now);
    return [h("figure", {}, h("figcaption", {}, h("b", {}, panel.name || column), " ", h("span", { class: "note" }, `${count(panel.num - panel.num_null)} values`, panel.counts.true ? `, ${count(kept)} kept (${share(kept, panel.num - panel.num_null)})` : "", panel.num_null ? `, ${count(panel.num_null)} null` : "")), chart), chart];
  });
  const threshold = mover({ at, one, column, now, before, fine, charts: charts.map(([, chart]) => chart), heavy: page.heavy, list, c });
  return {
    title: `${one.name}: ${column}`,
    nodes: [...head, found.panels.length ? h("div", { class: "panels" }, charts.map(([figure]) => figure)) : h("p", {}, "No value."),
      h("p", { class: "legend" }, FATES.slice(0, 2).map(([, name, css]) => [h("span", { class: `key ${css}` }), name, " "]), "A click on a bar shows its rows."), threshold],
  };
}

const round = (value) => Number(value.toPrecision(9));

/** The slider. Numbers come at once from the histogram's fine bins, exact ones and the rows a moment later. */
function mover({ at, one, column, now, before, fine, charts, heavy, list, c }) {
  const edges = fine.edges, low = edges[0], high = edges[edges.length - 1], what = list || "values";
  const below = [0];
  for (const n of fine.rows) below.push(below[below.length - 1] + n);
  const rows = below[below.length - 1];
  const said = h("p", { class: "big", role: "status", "aria-live": "polite" }), which = h("div", {}), value = h("input", { type: "number", step: "any", min: low, max: high, value: now, "aria-label": "threshold", id: "threshold" });
  const slider = h("input", { type: "range", min: low, max: high, step: (high - low) / 1000, value: now, "aria-label": `threshold of ${column}`, id: "slider" });
  let timer = 0, asked = 0;
  const set = (to) => {
    const v = Math.min(high, Math.max(low, Number(to)));
    if (!Number.isFinite(v)) return;
    slider.value = value.value = round(v);
    charts.forEach((chart) => chart.set(v));
    const k = Math.round(((v - low) / (high - low)) * (edges.length - 1));
    tell(said, below[k], rows, null, null, what, false);
    clearTimeout(timer);
    timer = setTimeout(() => exact(v), WAIT_MS);
  };
  const exact = async (v) => {
    const mine = (asked += 1);
    replace(link(at.root, "scores", { step: one.folder, column, at: round(v), c }));
    try {
      const found = await get(at.root, "moved", { step: one.folder, column, at: round(v), from: before, n: 12 });
      if (mine !== asked) return;
      tell(said, found.rows_below, found.num_rows, found.values_below, found.num_values, what, true);
      const verb = v > before ? "would go" : "would stay";
      which.replaceChildren(...(found.moved ? [
        h("p", {}, h("a", { href: link(at.root, "rows", { step: one.folder, c: found.c }), id: "which" }, `${count(found.moved)} ${found.sampled ? "sampled rows" : "rows"}`), ` ${verb} if the threshold were ${number(round(v))} instead of ${number(before)}`),
        h("div", { class: "cards" }, found.rows.map((item) => card(at.root, one.folder, item, heavy)))] : [h("p", { class: "note" }, v === before ? `${number(before)} is the step's threshold; move it to see which rows change.` : "No row changes.")]));
    } catch (error) { if (error.name !== "AbortError") which.replaceChildren(h("p", { role: "alert" }, error.message)); }
  };
  slider.addEventListener("input", () => set(slider.value));
  value.addEventListener("change", () => set(value.value));
  set(now);
  return h("section", { class: "mover" }, h("h2", {}, "If the threshold were"), h("div", { class: "slide" }, slider, value, h("button", { type: "button", onclick: () => set(before) }, `back to ${number(before)}`)), said, which);
}

function tell(said, rowsBelow, rows, valuesBelow, values, what, exact) {
  said.replaceChildren(h("b", {}, count(rowsBelow)), ` of ${count(rows)} rows go (${share(rowsBelow, rows)}): no value of theirs is as high`,
    values === null ? "" : `; ${count(valuesBelow)} of ${count(values)} ${what} are lower`, exact ? "." : " …");
}
