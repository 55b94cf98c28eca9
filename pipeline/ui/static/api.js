// Requests (of a bundle: files, see bundle.js), and URLs of views. A view's URL is `#/ROOT/VIEW?parameters`: all of its state, to keep or to send.

import * as bundle from "./bundle.js";

export const BUNDLE = bundle.BUNDLE;
const BASE = new URL(".", location.href.split("#")[0]);
let waiting = null; // what the view under construction asked for; another view ends it

export function newView() {
  if (waiting) waiting.abort();
  waiting = new AbortController();
  return waiting.signal;
}

export function pairs(params) {
  const found = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of Array.isArray(value) ? value : [value]) {
      if (one !== null && one !== undefined && one !== "") found.append(name, one);
    }
  }
  return found.toString();
}

export const path = (root, view, params = {}) => (BUNDLE ? bundle.path(root, view, params) : new URL(`api/${root}/${view}?${pairs(params)}`, BASE).href);

export async function get(root, view, params = {}, signal = waiting && waiting.signal) {
  if (BUNDLE) return bundle.get(root, view, params);
  return read(await fetch(path(root, view, params), { signal }));
}

export const about = async () => (BUNDLE ? bundle.about() : read(await fetch(new URL("about", BASE).href)));

async function read(response) {
  const value = await response.json();
  if (!response.ok) throw new Error(value.error || `HTTP ${response.status}`);
  return value;
}

export const link = (root, view, params = {}) => {
  const query = pairs(params);
  return `#/${root}/${view}${query ? `?${query}` : ""}`;
};

/** { root, view, one(name), all(name), params } of the address bar. */
export function place() {
  const [where, query = ""] = location.hash.replace(/^#\/?/, "").split("?");
  const [root = "0", view = "run"] = where.split("/");
  const values = new URLSearchParams(query);
  return {
    root: /^\d+$/.test(root) ? root : "0",
    view: view || "run",
    one: (name, other = "") => values.get(name) ?? other,
    all: (name) => values.getAll(name),
    params: Object.fromEntries([...new Set(values.keys())].map((name) => [name, values.getAll(name)])),
  };
}

export const go = (href) => { location.hash = href; };
export const replace = (href) => history.replaceState(null, "", href);
