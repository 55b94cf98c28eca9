// Duplicates side by side: the row that is dropped, and the one that it duplicates.

import { get, go, link } from "./api.js";
import { card } from "./card.js";
import { chosen, picker } from "./gallery.js";
import { count, h, number, plain } from "./dom.js";

const PAGE = 12;

export async function duplicatesView(at) {
  const run = await get(at.root, "run");
  const [one, steps] = chosen(at, run, (o) => o.kind === "decisions");
  if (!one) return { nodes: [h("h1", {}, "Duplicates"), h("p", {}, "No step of this run looks for duplicates.")] };
  const start = Number(at.one("start", "0")) || 0, sort = at.one("sort", "-similarity"), c = at.all("c");
  const found = await get(at.root, "duplicates", { step: one.folder, start, n: PAGE, sort, c });
  const here = (change) => link(at.root, "duplicates", { step: one.folder, sort: at.one("sort"), c, ...change });
  const to = (n, text, rel) => (n < 0 || n >= found.total ? h("span", { class: "off" }, text) : h("a", { href: here({ start: n || "" }), rel }, text));
  return {
    title: `${one.name}: duplicates`,
    nodes: [h("h1", {}, "Duplicates found by ", h("a", { href: link(at.root, "step", { step: one.folder }), "data-up": true }, one.name)),
      h("div", { class: "controls" }, picker(at, "duplicates", steps, one), h("label", {}, "order ", h("select", { onchange: (e) => go(here({ sort: e.target.value, start: "" })) }, [["-similarity", "most alike first"], ["similarity", "least alike first"]].map(([v, t]) => h("option", { value: v, selected: v === sort }, t)))),
        h("a", { href: link(at.root, "scores", { step: one.folder, column: "similarity" }) }, "similarities")),
      h("nav", { class: "pager", "aria-label": "pages" }, to(start - PAGE, "← before", "prev"), to(start + PAGE, "next →", "next"), h("span", { class: "note" }, `${count(found.of ?? found.total)} rows are dropped${found.of > found.total ? `, of which ${count(found.total)} are shown` : ""}`)),
      found.pairs.length ? h("div", { class: "pairs" }, found.pairs.map((pair) => side(at.root, pair))) : h("p", {}, "None.")],
  };
}

function side(root, { decision, row, witness }) {
  const one = (item, id, title, css) => h("div", {}, h("p", { class: `note ${css}` }, title), item ? card(root, item.step, item, item.heavy) : h("p", {}, h("code", {}, plain(id))));
  return h("section", { class: "pair" }, h("h2", {}, h("span", { class: "reason filtered" }, plain(decision.why)), " ", decision.similarity === null ? "" : h("small", {}, `similarity ${number(decision.similarity)}`)),
    h("div", { class: "two" }, one(row, decision.id, "dropped", "gone"), one(witness, decision.witness, "kept, or the one it was compared with", "")));
}
