// Elements, texts and numbers. Text from data only ever becomes text nodes: nothing here parses HTML.

// Control characters, invisible ones and marks that change the direction of text are drawn as their code point.
const ODD = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]/gu;

const code = (c) => "U+" + c.codePointAt(0).toString(16).toUpperCase().padStart(4, "0");

/** The text with odd characters as `[U+202E]`, for attributes and titles. */
export const visible = (value) => String(value).replace(ODD, (c) => `[${code(c)}]`);

/** Nodes of a text: odd characters stand in marked spans. */
export function textNodes(value) {
  const text = String(value), nodes = [];
  let at = 0;
  for (const found of text.matchAll(ODD)) {
    if (found.index > at) nodes.push(document.createTextNode(text.slice(at, found.index)));
    const mark = document.createElement("span");
    mark.className = "odd";
    mark.textContent = code(found[0]);
    nodes.push(mark);
    at = found.index + found[0].length;
  }
  if (at < text.length) nodes.push(document.createTextNode(text.slice(at)));
  return nodes;
}

function fill(element, props, children) {
  for (const [name, value] of Object.entries(props || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "css") Object.assign(element.style, value);
    else if (name === "value") element.value = value;
    else element.setAttribute(name, value === true ? "" : visible(value));
  }
  add(element, children);
  return element;
}

export function add(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) element.append(child);
    else element.append(...textNodes(child));
  }
  return element;
}

export const h = (tag, props, ...children) => fill(document.createElement(tag), props, children);
const SVG = "http://www.w3.org/2000/svg";
export const s = (tag, props, ...children) => fill(document.createElementNS(SVG, tag), props, children);

export const count = (n) => (n === null || n === undefined ? "" : Number(n).toLocaleString("en-US"));

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return count(value);
  return Math.abs(value) >= 10000 ? Math.round(value).toLocaleString("en-US") : String(Number(value.toPrecision(4)));
}

export function seconds(value) {
  if (value === null || value === undefined) return "";
  if (value < 60) return `${value.toFixed(1)} s`;
  const minutes = Math.floor(value / 60), hours = Math.floor(minutes / 60);
  return hours ? `${hours} h ${String(minutes % 60).padStart(2, "0")} min` : `${minutes} min ${String(Math.floor(value % 60)).padStart(2, "0")} s`;
}

export function bytes(value) {
  let unit = 0;
  while (value >= 1000 && unit < 4) { value /= 1000; unit += 1; }
  return `${unit ? value.toFixed(1) : value} ${["B", "kB", "MB", "GB", "TB"][unit]}`;
}

export const share = (part, whole) => {
  if (!whole || !part) return "0 %";
  const percent = (100 * part) / whole;
  return percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
};

/** A value of a row as nodes: structs and lists as nested lists, what the server cut with its length. */
export function show(value, depth = 0) {
  if (value === null || value === undefined) return h("span", { class: "null" }, "null");
  if (typeof value === "number") return h("span", { class: "n" }, number(value));
  if (typeof value === "boolean") return h("span", { class: "n" }, String(value));
  if (typeof value === "string") return h("bdi", { class: "t", dir: "auto" }, value);
  if ("bytes" in value && Object.keys(value).length === 1) return h("span", { class: "null" }, `${count(value.bytes)} bytes`);
  if ("cut" in value && "of" in value) {
    const what = typeof value.cut === "string" ? "characters" : "values";
    return h("span", {}, show(value.cut, depth), h("small", {}, ` … ${count(value.of)} ${what}`));
  }
  if (Array.isArray(value)) {
    if (!value.length) return h("span", { class: "null" }, "[]");
    if (value.every((one) => typeof one === "number")) return h("span", { class: "n" }, value.map(number).join(", "));
    return h("ul", { class: "values" }, value.map((one) => h("li", {}, show(one, depth + 1))));
  }
  const fields = Object.entries(value).filter(([, one]) => one !== null);
  return h("span", { class: "struct" }, fields.map(([name, one]) => [h("span", { class: "field" }, h("i", {}, name), " ", show(one, depth + 1)), " "]));
}

/** The text of a value that the server may have cut. */
export const plain = (value) => (value === null || value === undefined ? "" : typeof value === "object" && "cut" in value ? `${value.cut} …` : String(value));
