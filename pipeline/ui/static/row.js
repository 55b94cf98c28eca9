// One row: its picture with boxes, its video with subtitles, all columns, and its way through the steps.

import { BUNDLE, get, go, link, path, replace } from "./api.js";
import { card, picture, texts } from "./card.js";
import { count, h, plain, s, show } from "./dom.js";
import { graph } from "./run.js";

const WORDS = {
  new: "enters", changed: "changed", same: "unchanged", dropped: "dropped", decided: "decided", read: "read by it",
  children: "made into rows", pending: "not there yet",
};

export async function rowView(at) {
  const step = at.one("step");
  const [run, found] = await Promise.all([get(at.root, "run"), get(at.root, "row", { step, at: at.one("at"), id: at.one("id") })]);
  if (at.one("at") === "") replace(link(at.root, "row", { step, at: found.at }));
  const row = found.row, name = step.replace(/-[0-9a-f]+$/, "");
  const [prev, next] = "rank" in found ? [found.before, found.after] : [found.at - 1, found.at + 1], rank = found.rank ?? found.at;
  const to = (n, text, rel) => (n === null || n < 0 || n >= found.all ? h("span", { class: "off" }, text) : h("a", { href: link(at.root, "row", { step, at: n }), rel }, text));
  const way = h("div", {}, h("p", { class: "note" }, "looking it up …"));
  if (row.id) lineage(at.root, run, plain(row.id), step, way);
  return {
    title: `row ${count(found.at)} of ${name}`,
    nodes: [
      h("nav", { class: "pager", "aria-label": "rows" }, h("a", { href: link(at.root, "rows", { step, start: Math.floor(rank / 48) * 48 || "" }), "data-up": true }, `rows of ${name}`), to(prev, "← before", "prev"), to(next, "next →", "next")),
      h("h1", {}, `Row ${count(found.at)} of `, h("a", { href: link(at.root, "step", { step }) }, name)),
      h("div", { class: "one" },
        h("div", { class: "left" }, found.heavy.includes("image") && figure(at.root, step, found), found.media && video(at.root, step, found), !found.media && row.video && h("p", { class: "note" }, BUNDLE ? "The video is not in this copy." : "The video is not on this machine, or in no folder that the steps name.")),
        h("section", {}, row.texts && texts(row.texts), h("dl", { class: "columns" }, Object.entries(row).map(([key, value]) => [h("dt", {}, key), h("dd", {}, show(value))])),
          found.heavy.filter((c) => c !== "image").length > 0 && h("p", { class: "note" }, "heavy columns: ", found.heavy.join(", ")))),
      h("section", {}, h("h2", {}, "Its way through the steps"), row.id ? way : h("p", {}, "The rows of this step have no id.")),
    ],
  };
}

function figure(root, step, found) {
  const img = picture(root, step, found.at, "", false), box = h("figure", { class: "boxed" }, img);
  if (!found.boxes.length) return box;
  const list = h("ol", { class: "boxes" });
  img.addEventListener("load", () => {
    const [width, height] = found.size || [img.naturalWidth, img.naturalHeight];
    const over = s("svg", { viewBox: `0 0 ${width} ${height}`, class: "over", "aria-hidden": "true", preserveAspectRatio: "none" });
    found.boxes.forEach((one, n) => {
      const [x1, y1, x2, y2] = one.box || [];
      if (!(x2 > x1 && y2 > y1)) return;
      const rect = s("rect", { x: x1, y: y1, width: x2 - x1, height: y2 - y1, class: `box c${n % 8}` }, s("title", {}, `${plain(one.label)} ${one.score === null ? "" : one.score.toFixed(2)}`));
      over.append(rect);
      const on = (yes) => () => rect.classList.toggle("on", yes);
      list.append(h("li", { tabindex: 0, onmouseenter: on(true), onmouseleave: on(false), onfocus: on(true), onblur: on(false) }, h("span", { class: `key c${n % 8}` }), plain(one.label), " ", one.score !== null && h("span", { class: "score" }, one.score.toFixed(2))));
    });
    box.append(over);
  });
  return [box, h("p", { class: "note" }, `${count(found.boxes.length)} boxes`), list];
}

function video(root, step, found) {
  const { start_s: start, end_s: end } = found.row;
  const player = h("video", { controls: true, preload: "metadata", playsinline: true },
    h("source", { src: path(root, "media", { step, at: found.at }) }),
    found.cues > 0 && h("track", { kind: "subtitles", label: "subtitles", default: true, srclang: "und", src: path(root, "cues", { step, at: found.at }) }));
  if (typeof start === "number") {
    player.addEventListener("loadedmetadata", () => { player.currentTime = start; });
    player.addEventListener("timeupdate", () => { if (typeof end === "number" && player.currentTime >= end && !player.paused) { player.pause(); player.currentTime = start; } });
  }
  player.addEventListener("error", () => player.replaceWith(h("p", { class: "note" }, "The browser cannot play this video.")), true);
  return [player, typeof start === "number" && h("p", { class: "note" }, `clip from ${start.toFixed(1)} s to ${Number(end).toFixed(1)} s`)];
}

async function lineage(root, run, id, step, box) {
  try {
    const found = await get(root, "lineage", { id, step });
    const known = new Map(run.steps.map((one) => [one.folder, one])), marks = new Map();
    for (const one of found.passed) marks.set(one.folder, one.what);
    const steps = run.steps.filter((one) => marks.has(one.folder) || one.current);
    box.replaceChildren(h("ol", { class: "way" }, found.passed.map((one) => passed(root, known.get(one.folder), one, id))),
      h("details", {}, h("summary", {}, "drawn in the graph of steps"), h("div", { class: "scroll", tabindex: 0, "aria-label": "graph" }, graph(root, steps, marks))));
  } catch (error) {
    if (error.name !== "AbortError") box.replaceChildren(h("p", { role: "alert" }, error.message));
  }
}

function passed(root, one, item, id) {
  const href = item.at === null ? link(root, "step", { step: item.folder }) : link(root, "row", { step: item.folder, at: item.at });
  const lines = item.what === "dropped" ? [h("b", {}, plain(item.lines[0])), ...item.lines.slice(1)] : item.lines;
  return h("li", { class: `w-${item.what}` }, h("a", { href, "data-item": true }, one ? one.name : item.folder), " ",
    h("span", { class: "what" }, WORDS[item.what]), item.row_id !== id && h("small", {}, " (the row that it was made from)"), one && h("code", {}, one.use),
    lines.length > 0 && h("ul", {}, lines.map((line) => h("li", {}, line instanceof Node ? line : [h("bdi", { dir: "auto" }, plain(line)), witness(root, plain(line))]))),
    item.children.length > 0 && h("p", {}, item.children.map((child) => [h("a", { href: link(root, "row", { step: item.folder, id: child }) }, child.slice(0, 12)), " "])));
}

/** A link to the row that a decision or a reject names. */
function witness(root, line) {
  const found = /^(?:\+ witness: |duplicate of )([^\s,]{8,})/.exec(line);
  return found && [" ", h("a", { href: link(root, "find", { text: found[1] }) }, "see it")];
}

export async function findView(at) {
  const text = at.one("text");
  const { found } = await get(at.root, "find", { text });
  if (found.length) {
    go(link(at.root, "row", { step: found[0].step, at: found[0].at }));
    return { nodes: [h("p", {}, "found")] };
  }
  return { title: "Find", nodes: [h("h1", {}, "No row found"), h("p", {}, "No row of this run has the id or URL ", h("b", {}, h("bdi", {}, text)), BUNDLE ? ", or it is not in the sample that this copy shows" : "", ". A whole id or URL is wanted; texts are searched in the view ", h("a", { href: link(at.root, "rows") }, "Rows"), ".")] };
}

export { card };
