// Losses, also of trainings that are under way, and the table of results.

import { get, link } from "./api.js";
import { lines } from "./charts.js";
import { count, h, number } from "./dom.js";

const nameOf = (folder) => folder.replace(/-[0-9a-f]+$/, "");

export async function lossesView(at) {
  const [run, found] = await Promise.all([get(at.root, "run"), get(at.root, "losses", { step: at.all("step") })]);
  const steps = [...new Set(found.curves.map((c) => c.folder))];
  const nodes = found.curves.length ? panels(at.root, found.curves, steps) : h("p", {}, "No step of this run trains, or none has said anything yet.");
  const under = found.curves.some((c) => c.live);
  return {
    title: "Losses", live: run.holder.running,
    nodes: [h("h1", {}, "Losses"), under && h("p", { class: "live" }, "A training is under way: its curves are what it said so far."),
      h("p", { class: "chips" }, steps.map((folder, n) => h("a", { href: link(at.root, "losses", at.all("step").includes(folder) ? {} : { step: folder }), class: "chip", "aria-current": at.all("step").includes(folder) ? "true" : null }, h("span", { class: `key c${n % 8}` }), nameOf(folder)))), nodes],
  };
}

/** One panel per figure, losses first, with a curve per step. */
export function panels(root, curves, steps, label = nameOf) {
  const names = [...new Set(curves.map((c) => c.name))].sort((a, b) => order(a) - order(b) || a.localeCompare(b));
  return h("div", { class: "panels" }, names.map((name) => {
    const mine = curves.filter((c) => c.name === name).map((c) => ({ ...c, css: `c${steps.indexOf(c.folder) % 8}`, name: label(c.folder) }));
    return h("figure", { "data-item": true, tabindex: 0 }, h("figcaption", {}, h("b", {}, name), " ", mine.map((c) => {
      const values = c.y.filter((v) => v !== null), lost = c.y.length - values.length;
      return h("span", { class: "curve" }, h("span", { class: `key ${c.css}` }), c.name, " ", values.length ? `${number(values[0])} → ${number(values[values.length - 1])}` : "–", lost ? `, ${lost} not a number` : "", c.live ? " (running)" : "", " ");
    })), lines(name, mine));
  }));
}

const order = (name) => (name === "loss" ? 0 : name === "samples/s" ? 3 : /lr|temp|grad_norm/.test(name) ? 2 : 1);

export async function resultsView(at) {
  const found = await get(at.root, "results", { all: at.one("all") });
  const steps = [...new Set(found.results.map((r) => r.folder))];
  return {
    title: "Results",
    nodes: [h("h1", {}, "Results"), found.results.length ? table(at.root, found.results, steps) : h("p", {}, "No evaluation of this run is done."),
      h("p", {}, h("a", { href: link(at.root, "results", { all: at.one("all") ? "" : "1" }) }, at.one("all") ? "only the last run" : "also those of earlier parameters"))],
  };
}

function table(root, results, steps) {
  const names = [...new Set(results.map((r) => r.name))];
  const of = new Map(results.map((r) => [`${r.name}\n${r.folder}`, r]));
  return h("section", {}, h("div", { class: "scroll" }, h("table", { class: "results" },
    h("thead", {}, h("tr", {}, h("th", {}, "figure"), steps.map((f) => h("th", { class: "num" }, h("a", { href: link(root, "step", { step: f }) }, nameOf(f)))))),
    h("tbody", {}, names.map((name) => h("tr", {}, h("th", { scope: "row", class: name.includes("/") ? "sub" : "" }, name), steps.map((f) => cell(of.get(`${name}\n${f}`)))))))));
}

export function cell(one) {
  if (!one) return h("td", {});
  const share = one.value !== null && one.value >= 0 && one.value <= 1;
  return h("td", { class: "num", title: one.num_rows === null ? null : `${count(one.num_rows)} rows` }, share ? one.value.toFixed(3) : number(one.value),
    share && h("span", { class: "track" }, h("span", { class: "meter", css: { width: `${100 * one.value}%` } })));
}
