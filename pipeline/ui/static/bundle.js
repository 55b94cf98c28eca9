// Answers of a bundle: what the server says elsewhere is read from files here, and searched in the browser. The files are
// those that `vlpipe.pipeline.ui.bundle.write` describes.

export const BUNDLE = document.documentElement.hasAttribute("data-bundle");
const BASE = new URL(".", location.href.split("#")[0]);

const files = new Map(); // address -> promise of its content
const shown = new Map(); // "root/step/at" -> item: the files of its picture, video and subtitles

function file(name) {
  const href = new URL(`data/${name}`, BASE).href;
  if (!files.has(href)) {
    const found = fetch(href).then((response) => {
      if (!response.ok) throw new Error(`this copy has no file data/${name}`);
      return response.json();
    });
    found.catch(() => files.delete(href));
    files.set(href, found);
  }
  return files.get(href);
}

export const about = () => file("about.json");

/** The address of a picture, a video or its subtitles, of an item that `get` gave before. */
export function path(root, view, { step, at }) {
  const item = shown.get(`${root}/${step}/${at}`) || {};
  const name = { picture: item.picture, media: item.video, cues: item.cues }[view];
  return name ? new URL(name.split("/").map(encodeURIComponent).join("/"), BASE).href : "";
}

export async function get(root, view, params) {
  const one = (name, other = "") => String([params[name] ?? other].flat().pop() ?? other);
  const list = (name) => [params[name] ?? []].flat().map(String).filter((text) => text.trim());
  const asked = { root, one, list, whole: (name, other) => Math.max(0, Math.trunc(Number(one(name, other))) || 0) };
  if (!(view in VIEWS)) throw new Error(`this copy has no view ${view}`);
  return VIEWS[view](asked);
}

const VIEWS = {
  run: ({ root }) => file(`${root}/run.json`),
  step: async (asked) => (await stepOf(asked)).step,
  losses: ({ root, list }) => ofSteps(root, "losses.json", "curves", list("step")),
  results: ({ root, one }) => ofSteps(root, "results.json", "results", [], one("all") === "1"),
  rows: rowsView, row: rowView, values: valuesView, duplicates: duplicatesView, histogram: histogramView, moved: movedView,
  lineage: async ({ root, one }) => {
    const place = (await file(`${root}/ids.json`)).ids[one("id")];
    return { id: one("id"), passed: place ? (await file(`${root}/ways/${place[2]}.json`))[one("id")] : [] };
  },
  find: findView,
  compare: async ({ root, one }) => {
    const known = await file(`${root}/compare.json`);
    const found = known.find((c) => c.step === one("step") && c.with === one("with") && c.other === one("other", root));
    if (!found) throw new Error(known.length ? `this copy compares ${known.map((c) => `${c.step} with ${c.with}`).join("; ")}` : "this copy compares no runs: no step was run with several parameters");
    return file(`${root}/${found.file}`);
  },
};

async function stepOf({ root, one }, folder = one("step")) {
  const found = await file(`${root}/steps/${encodeURIComponent(folder)}.json`);
  for (const item of found.rows || []) shown.set(`${root}/${folder}/${item.at}`, item);
  return found;
}

async function withRows(asked, folder) {
  const found = await stepOf(asked, folder);
  if (!found.rows) throw new Error("this copy has no rows of earlier parameters");
  return found;
}

async function ofSteps(root, name, key, steps, all = false) {
  const [found, run] = await Promise.all([file(`${root}/${name}`), file(`${root}/run.json`)]);
  const current = new Set(run.steps.filter((step) => step.current).map((step) => step.folder));
  return { [key]: found[key].filter((x) => all || (steps.length ? steps.includes(x.folder) : current.has(x.folder))) };
}

async function rowsView(asked) {
  const rejects = asked.one("part", "rows") === "rejects", found = await withRows(asked);
  if (asked.one("sql")) throw new Error("a copy has no SQL; `vlpipe ui` has");
  const items = rejects ? found.rejects : found.rows, columns = rejects ? found.reject_columns : found.columns;
  const kept = ordered(matching(items, columns, asked.list("c")), asked.one("sort"), columns);
  const start = asked.whole("start", 0), rows = kept.slice(start, start + asked.whole("n", 48));
  return {
    total: kept.length, all: items.length, of: rejects ? found.all_rejects : found.all, start, heavy: found.heavy, columns,
    rows: rejects ? await Promise.all(rows.map(async (item) => ({ ...item, before: await placed(asked, item.before) }))) : rows,
  };
}

/** The row at a place, as the server gives it with rejects and duplicates; null if the sample lacks it. */
async function placed(asked, place) {
  if (!place) return null;
  const found = await stepOf(asked, place.step);
  const item = (found.rows || []).find((x) => x.at === place.at);
  return item ? { ...place, row: item.row, heavy: found.heavy } : null;
}

async function rowView(asked) {
  const found = await withRows(asked), id = asked.one("id"), at = asked.one("at");
  const n = found.rows.findIndex((x) => (at === "" ? x.row.id === id : x.at === Number(at)));
  if (n < 0) throw new Error("this row is not in the sample that this copy shows");
  const item = found.rows[n], near = (k) => (found.rows[k] ? found.rows[k].at : null);
  return {
    at: item.at, all: found.all, row: item.row, heavy: found.heavy, boxes: item.boxes, size: item.size,
    media: Boolean(item.video), cues: item.cues ? 1 : 0, rank: n, before: near(n - 1), after: near(n + 1),
  };
}

async function valuesView(asked) {
  const found = await withRows(asked), rejects = asked.one("part", "rows") === "rejects", path = asked.one("column");
  const columns = rejects ? found.reject_columns : found.columns, leaf = columns.find((c) => c.path === path);
  const counted = new Map();
  let nulls = 0;
  for (const item of rejects ? found.rejects : found.rows) {
    for (const value of valuesOf(item.row, leaf)) {
      if (value === null) nulls += 1;
      else counted.set(String(value), (counted.get(String(value)) || 0) + 1);
    }
  }
  return { values: [...counted].sort((a, b) => b[1] - a[1]).slice(0, 50), null: nulls };
}

async function duplicatesView(asked) {
  const found = await withRows(asked), sign = asked.one("sort").startsWith("-") ? -1 : 1;
  const alike = (pair) => sign * (pair.decision.similarity ?? NaN);
  const kept = new Set(matching(found.pairs.map((pair) => ({ pair, row: pair.decision })), found.columns, asked.list("c")).map((x) => x.pair));
  const pairs = found.pairs.filter((pair) => kept.has(pair)).sort((a, b) => (alike(a) - alike(b)) || 0);
  const start = asked.whole("start", 0);
  const page = pairs.slice(start, start + asked.whole("n", 12));
  const full = await Promise.all(page.map(async (pair) => ({ ...pair, row: await placed(asked, pair.row) || null, witness: await placed(asked, pair.witness) || null })));
  return { total: pairs.length, of: found.dropped, start, pairs: full };
}

async function histogramView(asked) {
  const found = (await withRows(asked)).histograms[asked.one("column")];
  if (!found) throw new Error("this copy has no histogram of this column");
  return found[asked.one("bins")];
}

/** Numbers of all rows, from the fine histogram: exact at the edges of its bins. The rows are those of the sample. */
async function movedView(asked) {
  const path = asked.one("column"), at = Number(asked.one("at")), found = await withRows(asked), fine = found.histograms[path]["400"];
  const { edges } = fine, low = edges[0], high = edges[edges.length - 1], sum = (list) => list.reduce((a, b) => a + b, 0);
  const k = Math.round(((Math.min(high, Math.max(low, at)) - low) / (high - low)) * (edges.length - 1));
  const bins = fine.rows.map((_, n) => sum(fine.panels.flatMap((panel) => Object.values(panel.counts).map((counts) => counts[n]))));
  const span = [Number(asked.one("from", String(at))), at].sort((a, b) => a - b);
  const c = [`${path}.max>=${span[0]}`, `${path}.max<${span[1]}`], rows = matching(found.rows, found.columns, c);
  return {
    at, values_below: sum(bins.slice(0, k)), num_values: sum(bins), rows_below: sum(fine.rows.slice(0, k)), num_rows: sum(fine.rows),
    moved: rows.length, rows: rows.slice(0, asked.whole("n", 12)), c, heavy: found.heavy, sampled: true,
  };
}

async function findView({ root, one }) {
  const { ids, urls } = await file(`${root}/ids.json`), text = one("text").trim();
  const id = text in ids ? text : (urls.find(([url]) => url === text || url === text.replace(/[?#][^\s"'<>]*/, "")) || [])[1];
  const place = id === undefined ? null : ids[id];
  return { found: place && place[0] !== null ? [{ step: place[0], at: place[1] }] : [] };
}

// Conditions, as `vlpipe.pipeline.inspect.rows.conditions` has them.

const WRITTEN = /^\s*([\w.@#-]+?)\s*(!=|<=|>=|=|<|>|~)\s*([^]*?)\s*$/;
const COMPARE = {
  "=": (a, b) => a === b, "!=": (a, b) => a !== b, "<": (a, b) => a < b, "<=": (a, b) => a <= b, ">": (a, b) => a > b, ">=": (a, b) => a >= b,
};

const whole = (value) => (value !== null && typeof value === "object" && "cut" in value ? value.cut : value);

/** The elements that a column has values of: those of its list, or the row itself. */
function elements(row, leaf) {
  if (!leaf.list) return [row];
  return (whole(row[leaf.list]) || []).map((one) => ({ [leaf.list]: one }));
}

function valueOf(element, leaf) {
  let value = element;
  for (const name of leaf.path.split(".")) value = whole(value === null || value === undefined ? null : value[name] ?? null);
  return value;
}

const valuesOf = (row, leaf) => elements(row, leaf).map((element) => valueOf(element, leaf));

/** The largest value of a row; NaN without any. */
function best(row, leaf) {
  const values = valuesOf(row, leaf).filter((value) => value !== null);
  return values.length ? Math.max(...values) : NaN;
}

function parsed(text, columns) {
  const found = WRITTEN.exec(text);
  if (!found) throw new Error(`wanted COLUMN, one of = != < <= > >= ~, and a value; got ${text}`);
  const isBest = found[1].endsWith(".max"), element = (/#([^.]*)/.exec(found[1]) || ["", ""])[1];
  const path = found[1].replace(`#${element}`, "").replace(/\.max$/, isBest ? "" : ".max");
  const leaf = columns.find((column) => column.path === path);
  if (!leaf) throw new Error(`there is no column ${path} to filter by`);
  return { leaf, element, isBest, op: found[2], value: found[3] };
}

function test({ leaf, op, value }) {
  if (value === "null" && (op === "=" || op === "!=")) return (x) => (x === null) === (op === "=");
  if (leaf.kind !== "number") {
    if (op === "~") return (x) => x !== null && String(x).toLowerCase().includes(value.toLowerCase());
    return (x) => x !== null && COMPARE[op](String(x), value);
  }
  const wanted = leaf.single ? Math.fround(Number(value)) : Number(value);
  if (Number.isNaN(wanted)) throw new Error(`column ${leaf.path} holds numbers; got ${value}`);
  if (op === "~") throw new Error(`column ${leaf.path} holds numbers, in which ~ finds nothing`);
  return (x) => x !== null && COMPARE[op](leaf.single ? Math.fround(x) : x, wanted);
}

/** The items whose rows meet all conditions. Those on one list must hold for the same element of it. */
function matching(items, columns, conditions) {
  const alone = [], lists = new Map();
  for (const one of conditions.map((text) => parsed(text, columns))) {
    const holds = test(one);
    if (one.isBest) alone.push((row) => { const x = best(row, one.leaf); return holds(Number.isNaN(x) ? null : x); });
    else if (one.leaf.list && one.op === "=" && one.value === "none") alone.push((row) => !elements(row, one.leaf).length);
    else if (one.leaf.list) lists.set(`${one.leaf.list}#${one.element}`, [...(lists.get(`${one.leaf.list}#${one.element}`) || []), [one.leaf, holds]]);
    else alone.push((row) => holds(valueOf(row, one.leaf)));
  }
  const all = [...alone, ...[...lists.values()].map((tests) => (row) => elements(row, tests[0][0]).some((element) => tests.every(([leaf, holds]) => holds(valueOf(element, leaf)))))];
  return items.filter((item) => all.every((holds) => holds(item.row)));
}

function ordered(items, order, columns) {
  if (!order) return items;
  const path = order.replace(/^-/, "").replace(/\.max$/, ""), leaf = columns.find((column) => column.path === path);
  if (!leaf || leaf.kind !== "number") throw new Error(`column ${path} holds no numbers to order by`);
  const sign = order.startsWith("-") ? -1 : 1, keys = new Map(items.map((item) => [item, sign * best(item.row, leaf)]));
  const last = (a, b) => Number(Number.isNaN(keys.get(a))) - Number(Number.isNaN(keys.get(b)));
  return [...items].sort((a, b) => last(a, b) || keys.get(a) - keys.get(b) || 0);
}
