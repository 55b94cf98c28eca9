// The frame of the page: where it is, the navigation, the keyboard, dark and light, asking again while a run is going on.

import { about, BUNDLE, get, link, newView, place } from "./api.js";
import { add, h } from "./dom.js";
import { compareView } from "./compare.js";
import { duplicatesView } from "./duplicates.js";
import { rejectsView, rowsView } from "./gallery.js";
import { findView, rowView } from "./row.js";
import { runView } from "./run.js";
import { scoresView } from "./scores.js";
import { stepView } from "./step.js";
import { lossesView, resultsView } from "./training.js";

const VIEWS = {
  run: ["Run", runView], step: ["Step", stepView], rows: ["Rows", rowsView], rejects: ["Rejects", rejectsView],
  scores: ["Scores", scoresView], duplicates: ["Duplicates", duplicatesView], losses: ["Losses", lossesView],
  results: ["Results", resultsView], compare: ["Compare", compareView], row: ["Row", rowView], find: ["Find", findView],
};
const BAR = ["run", "rows", "rejects", "scores", "duplicates", "losses", "results", "compare"];
const LIVE_MS = 2000, IDLE_MS = 10000;
const KEYS = [
  ["1 – 8", "the views of the bar above"], ["/", "find a row by id or URL, or a text in this step"],
  ["← →", "the page or row before, the next one"], ["j k", "the next card or step, the one before"],
  ["Enter", "open it"], ["u", "up: from a row to its step, from a step to the run"], ["t", "dark or light"], ["?", "this list"],
];

let roots = [], current = null, timer = 0;

function frame(at) {
  const top = document.getElementById("top");
  const step = at.one("step");
  const links = BAR.map((view, n) => {
    const on = view === at.view || (view === "run" && at.view === "step") || (view === "rows" && at.view === "row");
    const keep = step && ["rows", "rejects", "scores", "duplicates", "compare"].includes(view) ? { step } : {};
    return h("a", { href: link(at.root, view, keep), "aria-current": on ? "page" : null, title: `key ${n + 1}` }, VIEWS[view][0]);
  });
  const choose = roots.length > 1 && h("select", { "aria-label": "root", onchange: (e) => { location.hash = link(e.target.value, "run"); } },
    roots.map((one, n) => h("option", { value: n, selected: String(n) === at.root }, one.title)));
  top.replaceChildren(
    h("div", { class: "bar1" },
      h("a", { class: "home", href: link(at.root, "run") }, h("b", {}, "vlpipe"), " ", roots.length > 1 ? "" : (roots[0] || {}).title || ""),
      choose,
      BUNDLE && h("span", { class: "chip", title: "made by vlpipe ui --bundle: some rows of each step" }, "a sample"),
      h("form", { class: "find", role: "search", onsubmit: (e) => { e.preventDefault(); const t = e.target.q.value.trim(); if (t) location.hash = link(at.root, "find", { text: t }); } },
        h("input", { name: "q", id: "find", type: "search", placeholder: "id or URL of a row", "aria-label": "find a row by id or URL", value: at.view === "find" ? at.one("text") : "" })),
      h("button", { type: "button", id: "theme", title: "dark or light (t)", "aria-label": "dark or light", onclick: theme }, "◐"),
      h("button", { type: "button", title: "keys (?)", "aria-label": "keys", onclick: help }, "?")),
    h("nav", { "aria-label": "views" }, links));
  top.querySelector("nav a[aria-current]")?.scrollIntoView({ inline: "center", block: "nearest" });
}

function theme() {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
  try { localStorage.setItem("theme", root.dataset.theme); } catch { /* private windows have none */ }
}

function help() {
  const old = document.querySelector("dialog");
  if (old) { old.close(); old.remove(); return; }
  const box = h("dialog", { "aria-label": "keys" }, h("h2", {}, "Keys"),
    h("dl", { class: "keys" }, KEYS.map(([key, text]) => [h("dt", {}, h("kbd", {}, key)), h("dd", {}, text)])),
    h("form", { method: "dialog" }, h("button", { autofocus: true }, "close")));
  box.addEventListener("close", () => box.remove());
  document.body.append(box);
  box.showModal();
}

export function say(text) { document.getElementById("status").textContent = text; }

async function draw({ again = false } = {}) {
  const at = place(), main = document.getElementById("main");
  const [title, view] = VIEWS[at.view] || VIEWS.run;
  clearTimeout(timer);
  if (again && document.hidden) { timer = setTimeout(() => draw({ again: true }), IDLE_MS); return; }
  const signal = again ? undefined : newView();
  const mine = {};
  if (!again) { current = mine; frame(at); say(""); main.setAttribute("aria-busy", "true"); }
  const started = again ? current : mine;
  try {
    const made = await view(at, { again, signal });
    if (started !== current) return;
    if (made) {
      const focused = document.activeElement && document.activeElement.id;
      const scrolled = () => [...main.querySelectorAll(".scroll")];
      const lefts = again ? scrolled().map((one) => one.scrollLeft) : [];
      main.replaceChildren(...[made.nodes].flat().filter(Boolean));
      scrolled().forEach((one, n) => { one.scrollLeft = lefts[n] ?? (one.matches(".middle") ? (one.scrollWidth - one.clientWidth) / 2 : 0); });
      if (again && focused) document.getElementById(focused)?.focus();
      document.title = `${made.title || title} – vlpipe`;
      if (!again && !document.activeElement.closest("#top")) main.focus({ preventScroll: true });
      if (!again) scrollTo(0, 0);
      if (made.live !== undefined && !BUNDLE) timer = setTimeout(() => draw({ again: true }), made.live ? LIVE_MS : IDLE_MS);
    }
  } catch (error) {
    if (error.name === "AbortError" || started !== current) return;
    if (!again) main.replaceChildren(h("section", { class: "error", role: "alert" }, h("h1", {}, "This cannot be shown"), h("p", {}, error.message || "the server does not answer"), h("p", {}, h("a", { href: link(at.root, "run") }, "to the run"))));
    else { say("the server does not answer; trying again"); timer = setTimeout(() => draw({ again: true }), IDLE_MS); }
  } finally {
    if (!again && started === current) main.removeAttribute("aria-busy");
  }
}

function keys(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const inField = event.target.matches("input, select, textarea");
  if (event.key === "Escape" && inField) { event.target.blur(); return; }
  if (inField || document.querySelector("dialog[open]")) return;
  const at = place(), click = (which) => { const one = document.querySelector(which); if (one) { one.click(); event.preventDefault(); } };
  const n = "12345678".indexOf(event.key);
  if (event.key.length === 1 && n >= 0) click(`#top nav a:nth-child(${n + 1})`);
  else if (event.key === "/") { (document.querySelector("#main input[type=search]") || document.getElementById("find")).focus(); event.preventDefault(); }
  else if (event.key === "ArrowRight" && !event.target.matches("video")) click("a[rel=next]");
  else if (event.key === "ArrowLeft" && !event.target.matches("video")) click("a[rel=prev]");
  else if (event.key === "j" || event.key === "k") move(event.key === "j" ? 1 : -1);
  else if (event.key === "u") click("a[data-up]") || (at.view === "step" && (location.hash = link(at.root, "run")));
  else if (event.key === "t") theme();
  else if (event.key === "?") help();
}

function move(by) {
  const all = [...document.querySelectorAll("#main [data-item]")];
  const at = all.indexOf(document.activeElement.closest("[data-item]"));
  const next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
  if (next) { next.focus(); next.scrollIntoView({ block: "nearest" }); }
}

async function start() {
  try { const kept = localStorage.getItem("theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* none */ }
  addEventListener("hashchange", () => draw());
  addEventListener("keydown", keys);
  document.addEventListener("visibilitychange", () => { if (!document.hidden && timer) draw({ again: true }); });
  document.querySelector(".skip").addEventListener("click", (e) => { e.preventDefault(); document.getElementById("main").focus(); });
  try { roots = (await about()).roots; } catch (error) { add(document.getElementById("main"), [h("p", { role: "alert" }, error.message)]); return; }
  await draw();
}

start();
