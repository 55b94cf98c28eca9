// Pages of rows or rejects, with conditions. The address holds step, conditions, order and place; the server counts.

import { BUNDLE, get, go, link, pairs } from "./api.js";
import { card } from "./card.js";
import { count, h, plain, show } from "./dom.js";

const PAGE = 48;
const OPS = ["=", "!=", "<", "<=", ">", ">=", "~"];

export const rowsView = (at) => gallery(at, "rows");
export const rejectsView = (at) => gallery(at, "rejects");

const rejected = (one) => Object.values(one.rejects).reduce((a, b) => a + b, 0);

/** [step of the address, or else the one that ranks highest, the last of equals; the steps to choose from]. */
export function chosen(at, run, fits, rank = () => 0) {
  const steps = run.steps.filter((one) => fits(one) && (one.current || one.folder === at.one("step")));
  const best = Math.max(...steps.map(rank));
  return [steps.find((o) => o.folder === at.one("step")) || steps.filter((o) => rank(o) === best).pop(), steps];
}

export function picker(at, view, steps, one, more = {}) {
  return h("label", {}, "step ", h("select", { id: "step", onchange: (e) => go(link(at.root, view, { step: e.target.value, ...more })) },
    steps.map((o) => h("option", { value: o.folder, selected: o === one }, o.current ? o.name : o.folder))));
}

async function gallery(at, part) {
  const run = await get(at.root, "run");
  const fits = part === "rows" ? (o) => o.rows_out > 0 : (o) => rejected(o) > 0;
  const [one, steps] = chosen(at, run, fits, part === "rows" ? (o) => Number(o.kind === "rows") + Number(o.pictures) : rejected);
  if (!one) return { nodes: [h("h1", {}, part === "rows" ? "Rows" : "Rejects"), h("p", {}, part === "rows" ? "No step has rows yet." : "No step has rejected a row.")] };
  const start = Math.max(0, Number(at.one("start", "0")) || 0), sort = at.one("sort"), sql = at.one("sql"), c = at.all("c");
  const asked = { step: one.folder, part, start, n: PAGE, c, sort, sql };
  const began = performance.now();
  const found = await get(at.root, "rows", asked);
  const took = performance.now() - began;
  const here = (change) => link(at.root, part, { step: one.folder, c, sort, sql, look: at.one("look"), ...change });
  const state = { at, part, one, found, c, sort, sql, here };
  const head = one.name;
  return {
    title: `${head}: ${part}`,
    nodes: [
      h("h1", {}, part === "rows" ? "Rows of " : "Rejects of ", h("a", { href: link(at.root, "step", { step: one.folder }), "data-up": true }, one.name)),
      h("div", { class: "controls" }, picker(at, part, steps, one), part === "rejects" && reasonsBar(state), await quick(state), pairsBar(state), chips(state), adder(state)),
      pager(state, start, took),
      found.rows.length ? listing(state) : h("p", {}, "No row meets these conditions."),
      found.rows.length > 0 && found.total > PAGE && pager(state, start),
    ],
  };
}

function reasonsBar({ at, one, c }) {
  const sorted = Object.entries(one.rejects).sort((a, b) => b[1] - a[1]);
  return h("p", { class: "reasons" }, h("a", { class: "reason", "aria-current": c.length ? null : "true", href: link(at.root, "rejects", { step: one.folder }) }, "all ", h("b", {}, count(rejected(one)))),
    sorted.map(([code, n]) => {
      const [kind, why] = [code.slice(0, code.indexOf(":")), code.slice(code.indexOf(":") + 1)];
      return h("a", { class: `reason ${kind}`, "aria-current": c.includes(`why=${why}`) ? "true" : null, href: link(at.root, "rejects", { step: one.folder, c: `why=${why}` }) }, why, " ", h("b", {}, count(n)));
    }));
}

/** Web against synthetic texts: what became of the two. `texts#2` may be another text of the row than `texts`. */
function pairsBar({ part, found, c, here }) {
  const values = ["texts.source", "texts.kept"].every((p) => found.columns.some((col) => col.path === p));
  if (part !== "rows" || !values) return null;
  const both = (web, synth) => ["texts.source=web", `texts.kept=${web}`, "texts#2.source=synth", `texts#2.kept=${synth}`];
  const all = [["synthetic kept, web dropped", both(false, true)], ["web kept, synthetic dropped", both(true, false)], ["both kept", both(true, true)], ["both dropped", both(false, false)]];
  return h("p", { class: "chips" }, h("span", { class: "note" }, "web against synthetic:"), all.map(([text, made]) => {
    const on = made.every((one) => c.includes(one));
    return h("a", { class: "chip", "aria-current": on ? "true" : null, href: here({ c: on ? [] : made, start: "" }) }, text);
  }));
}

const withOp = (c, path, op) => c.find((one) => one.startsWith(path + op)) || "";
const without = (c, path, ops) => c.filter((one) => !ops.some((op) => one.startsWith(path + op)));

/** Fields for what is asked most: a text, its source, whether it is kept and why not, and a range of scores. */
async function quick({ at, part, one, found, c, here }) {
  const has = (p) => found.columns.some((col) => col.path === p);
  const base = has("texts.text") ? "texts." : "";
  const text = base ? "texts.text" : has("detail") ? "detail" : has("text") ? "text" : "";
  const fields = [];
  const set = (path, ops, made) => go(here({ c: [...without(c, path, ops), ...made], start: "" }));
  if (text) {
    const value = withOp(c, text, "~").slice(text.length + 1);
    fields.push(h("form", { role: "search", onsubmit: (e) => { e.preventDefault(); const v = e.target.q.value.trim(); set(text, ["~"], v ? [`${text}~${v}`] : []); } },
      h("input", { type: "search", name: "q", placeholder: part === "rows" ? "search texts" : "search details", "aria-label": "search texts", value })));
  }
  for (const path of [`${base}source`, `${base}kept`, `${base}why`, "keep"].filter((p, n, all) => has(p) && all.indexOf(p) === n && !(part === "rejects" && p === "why"))) {
    const values = await get(at.root, "values", { step: one.folder, part, column: path });
    if (!values.values.length) continue;
    const value = c.find((x) => x.startsWith(`${path}=`));
    fields.push(h("label", {}, `${path.split(".").pop()} `, h("select", { onchange: (e) => set(path, ["="], e.target.value ? [e.target.value] : []) },
      h("option", { value: "" }, "any"), values.values.map(([name, n]) => h("option", { value: `${path}=${plain(name)}`, selected: value === `${path}=${plain(name)}` }, `${plain(name)} (${count(n)})`)),
      values.null > 0 && h("option", { value: `${path}=null`, selected: value === `${path}=null` }, `null (${count(values.null)})`))));
  }
  const score = `${base}score`;
  if (has(score)) {
    const low = withOp(c, score, ">=").slice(score.length + 2), high = withOp(c, score, "<").slice(score.length + 1);
    const submit = (e) => {
      e.preventDefault();
      const { low: a, high: b } = e.target.elements;
      set(score, [">=", "<"], [a.value !== "" && `${score}>=${a.value}`, b.value !== "" && `${score}<${b.value}`].filter(Boolean));
    };
    const box = (name, value, title) => h("input", { type: "number", step: "any", name, value, "aria-label": title, placeholder: name === "low" ? "min" : "max", onchange: (e) => e.target.form.requestSubmit() });
    fields.push(h("form", { class: "range", onsubmit: submit }, "score ", box("low", low, "lowest score"), " – ", box("high", high, "highest score"), h("button", {}, "set")));
  }
  return fields;
}

function chips({ c, sql, sort, here }) {
  const chip = (text, change) => h("a", { class: "chip", href: here({ ...change, start: "" }), "aria-label": `remove ${text}`, title: "remove" }, text, " ✕");
  const all = [...c.map((one) => chip(one, { c: c.filter((x) => x !== one) })), sql && chip(sql, { sql: "" }), sort && chip(`order: ${sort}`, { sort: "" })].filter(Boolean);
  return all.length > 0 && h("p", { class: "chips" }, all, all.length > 1 && h("a", { href: here({ c: [], sql: "", sort: "", start: "" }) }, "remove all"));
}

function adder({ found, c, sql, sort, here, at }) {
  const numbers = found.columns.filter((col) => col.kind === "number");
  const add = (e) => {
    e.preventDefault();
    const { column, op, value } = e.target.elements;
    go(here({ c: [...c, `${column.value}${op.value}${value.value}`], start: "" }));
  };
  return h("details", { open: Boolean(sql) }, h("summary", {}, "more conditions, order, look"),
    h("form", { onsubmit: add }, h("select", { name: "column", "aria-label": "column" }, found.columns.map((col) => h("option", {}, col.path)), numbers.map((col) => h("option", {}, `${col.path}.max`))),
      h("select", { name: "op", "aria-label": "comparison" }, OPS.map((op) => h("option", {}, op))), h("input", { name: "value", "aria-label": "value", placeholder: "value, or null" }), h("button", {}, "add")),
    !BUNDLE && h("form", { onsubmit: (e) => { e.preventDefault(); go(here({ sql: e.target.sql.value.trim(), start: "" })); } },
      h("input", { name: "sql", value: sql, "aria-label": "condition in SQL", placeholder: "SQL: len(texts) > 1 AND width < height", class: "wide" }), h("button", {}, "set")),
    h("label", {}, "order by ", h("select", { onchange: (e) => go(here({ sort: e.target.value, start: "" })) }, h("option", { value: "" }, "as stored"),
      numbers.flatMap((col) => [["-", "largest first"], ["", "smallest first"]].map(([sign, word]) => h("option", { value: sign + col.path, selected: sort === sign + col.path }, `${col.path}, ${word}`))))), " ",
    h("a", { href: here({ look: at.one("look") === "table" ? "" : "table" }) }, at.one("look") === "table" ? "as cards" : "as a table"));
}

function pager({ found, here }, start, took = null) {
  const pages = Math.max(1, Math.ceil(found.total / PAGE)), page = Math.floor(start / PAGE) + 1, last = (pages - 1) * PAGE;
  const to = (target, text, rel) => (target === start || target < 0 || target > last ? h("span", { class: "off" }, text) : h("a", { href: here({ start: target || "" }), rel }, text));
  const jump = (e) => { e.preventDefault(); const n = Math.min(pages, Math.max(1, Math.round(Number(e.target.page.value)) || 1)); go(here({ start: (n - 1) * PAGE || "" })); };
  return h("nav", { class: "pager", "aria-label": "pages" }, to(0, "first"), to(start - PAGE, "← before", "prev"),
    h("form", { onsubmit: jump }, "page ", h("input", { type: "number", name: "page", min: 1, max: pages, value: page, "aria-label": "page" }), ` of ${count(pages)}`),
    to(start + PAGE, "next →", "next"), to(last, "last"),
    h("span", { class: "note" }, counted(found), took === null ? "" : `, ${(took / 1000).toFixed(2)} s`));
}

/** What the page has of the step: `of` is the number of all rows, if the page has a sample of them. */
function counted({ total, all, of }) {
  const rows = of === undefined || of === all ? "rows" : "sampled rows", some = total === all ? count(all) : `${count(total)} of ${count(all)}`;
  return `${some} ${rows}${rows === "rows" ? "" : `; the step has ${count(of)}`}`;
}

function listing({ at, part, one, found }) {
  if (part === "rejects") return h("div", { class: "cards" }, found.rows.map((item) => reject(at.root, one, item)));
  if (at.one("look") === "table") return table(at.root, one, found);
  const sorted = at.one("sort").replace(/^-/, "").split(".")[0];
  const fields = [...new Set([sorted, ...at.all("c").map((x) => x.split(/[.=<>~!]/)[0])])].filter((name) => name && name !== "texts" && name in found.rows[0].row);
  return h("div", { class: "cards" }, found.rows.map((item) => card(at.root, one.folder, item, found.heavy, { fields })));
}

function reject(root, one, item) {
  const { kind, why, detail, id } = item.row;
  const note = h("span", { class: "verdict" }, h("span", { class: `reason ${kind === "fault" ? "fault" : "filtered"}` }, plain(why)), " ", h("small", {}, h("bdi", { dir: "auto" }, plain(detail))));
  const href = link(root, "find", { text: plain(id), step: item.before ? item.before.step : "" });
  if (item.before) return card(root, item.before.step, item.before, item.before.heavy, { note, href: link(root, "row", { step: item.before.step, at: item.before.at }) });
  return h("a", { class: "card", href, "data-item": true }, h("span", { class: "body" }, note, h("span", { class: "where" }, h("code", {}, plain(id).slice(0, 16)))));
}

function table(root, one, found) {
  const names = Object.keys(found.rows[0].row);
  return h("section", {}, h("div", { class: "scroll" }, h("table", { class: "grid" }, h("thead", {}, h("tr", {}, h("th", {}, "row"), names.map((name) => h("th", {}, name)))),
    h("tbody", {}, found.rows.map((item) => h("tr", {}, h("td", {}, h("a", { href: link(root, "row", { step: one.folder, at: item.at }), "data-item": true }, count(item.at))), names.map((name) => h("td", {}, show(item.row[name])))))))));
}

export { PAGE, pairs };
