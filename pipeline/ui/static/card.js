// One row as a card: its picture, which the browser loads when it comes into view, its texts with scores, id and URL.

import { link, path } from "./api.js";
import { h, number, plain, show } from "./dom.js";

const FATES = { true: "in", false: "out" };

export function picture(root, step, at, alt, lazy = true) {
  const img = h("img", { src: path(root, "picture", { step, at, column: "image" }), alt, loading: lazy ? "lazy" : null, decoding: "async" });
  img.addEventListener("load", () => { if (Math.max(img.naturalWidth, img.naturalHeight) <= 96) img.classList.add("tiny"); });
  img.addEventListener("error", () => img.replaceWith(h("span", { class: "nopicture" }, "no picture")));
  return img;
}

export function texts(list) {
  const items = (list && list.cut ? list.cut : list) || [];
  return h("ul", { class: "texts" }, items.filter(Boolean).map((one) => h("li", { class: FATES[one.kept] || "" },
    one.source && h("span", { class: `source ${["web", "synth", "human"].includes(one.source) ? one.source : ""}` }, one.source), " ",
    h(one.kept === false ? "s" : "span", {}, h("bdi", { dir: "auto" }, plain(one.text))), " ",
    typeof one.score === "number" && h("span", { class: "score" }, one.score.toFixed(2)), " ",
    one.why && h("span", { class: "why" }, plain(one.why)))),
  list && list.of && h("li", {}, h("small", {}, `… ${list.of} texts`)));
}

const ROLES = new Set(["id", "url", "texts", "image"]);

/** fields: the columns to name besides texts, id and URL. note: nodes at the top. */
export function card(root, step, item, heavy, { note = null, fields = [], href = null } = {}) {
  const row = item.row, id = plain(row.id);
  const first = ((row.texts && (row.texts.cut || row.texts)) || [])[0];
  const alt = first ? plain(first.text) : "";
  const rest = row.texts ? fields : Object.keys(row).filter((name) => !ROLES.has(name)).slice(0, 8);
  return h("a", { class: "card", href: href || link(root, "row", { step, at: item.at }), "data-item": true },
    heavy.includes("image") && h("span", { class: "frame" }, picture(root, step, item.at, alt)),
    h("span", { class: "body" }, note, row.texts && texts(row.texts),
      rest.length > 0 && h("span", { class: "fields" }, rest.map((name) => h("span", {}, h("i", {}, name), " ", show(row[name])))),
      h("span", { class: "where" }, h("code", {}, id.slice(0, 10)), " ", h("bdi", {}, plain(row.url)))));
}

export const scoreOf = (value) => (typeof value === "number" ? number(value) : "");
