// Histograms and curves as SVG. Colours are classes, so charts follow dark and light. Bars are links.

import { count, h, number, s, visible } from "./dom.js";

const W = 460, H = 220, LEFT = 52, RIGHT = 22, TOP = 10, BOTTOM = 26;

export function ticks(low, high, about = 4) {
  if (!(high > low)) return [low];
  const rough = (high - low) / about, power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((m) => m * power).find((m) => m >= rough * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k <= high / step + 1e-9; k += 1) found.push(Number((k * step).toPrecision(12)));
  return found;
}

function scales(xLow, xHigh, yLow, yHigh) {
  const x = (v) => LEFT + ((v - xLow) / (xHigh - xLow || 1)) * (W - LEFT - RIGHT);
  const y = (v) => H - BOTTOM - ((v - yLow) / (yHigh - yLow || 1)) * (H - TOP - BOTTOM);
  const grid = [
    ticks(yLow, yHigh).map((v) => [s("line", { class: "grid", x1: LEFT, x2: W - RIGHT, y1: y(v), y2: y(v) }), s("text", { class: "tick end", x: LEFT - 6, y: y(v) + 4 }, short(v))]),
    ticks(xLow, xHigh, 5).map((v) => s("text", { class: "tick mid", x: x(v), y: H - 8 }, short(v))),
    s("line", { class: "axis", x1: LEFT, x2: W - RIGHT, y1: H - BOTTOM, y2: H - BOTTOM }),
  ];
  return { x, y, grid };
}

const short = (v) => (Math.abs(v) >= 1e6 ? `${number(v / 1e6)}M` : Math.abs(v) >= 1e4 ? `${number(v / 1e3)}k` : number(v));

/** parts: [name, class, counts per bin]; href(low, high): where a bar leads. Returns an SVG with a movable line: `.set(x)`. */
export function bars(label, edges, parts, href, at = null) {
  const totals = edges.slice(1).map((_, k) => parts.reduce((sum, [, , counts]) => sum + counts[k], 0));
  const { x, y, grid } = scales(edges[0], edges[edges.length - 1], 0, Math.max(1, ...totals) * 1.06);
  const line = s("line", { class: "threshold", y1: TOP, y2: H - BOTTOM });
  const marks = totals.map((total, k) => {
    if (!total) return null;
    const [low, high] = [edges[k], edges[k + 1]];
    let base = 0;
    const inside = parts.map(([name, css, counts]) => {
      if (!counts[k]) return null;
      const rect = s("rect", { class: css, x: x(low) + 0.5, width: Math.max(0.5, x(high) - x(low) - 1), y: y(base + counts[k]), height: y(base) - y(base + counts[k]) });
      base += counts[k];
      return [rect, name, counts[k]];
    }).filter(Boolean);
    const text = `${number(low)} to ${number(high)}: ${inside.map(([, name, n]) => `${count(n)}${name ? ` ${name}` : ""}`).join(", ")}`;
    return s("a", { href: href(low, high, k === totals.length - 1), "aria-label": text, class: "barlink" },
      s("title", {}, text), s("rect", { class: "hit", x: x(low), width: x(high) - x(low), y: TOP, height: H - TOP - BOTTOM }), inside.map(([rect]) => rect));
  });
  const svg = s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "group", "aria-label": label }, grid, marks, at !== null && line);
  svg.set = (value) => { line.setAttribute("x1", x(value)); line.setAttribute("x2", x(value)); };
  if (at !== null) svg.set(at);
  return svg;
}

function smooth(values) {
  const half = Math.max(1, Math.floor(values.length / 40));
  return values.map((_, k) => {
    const near = values.slice(Math.max(0, k - half), k + half + 1);
    return near.reduce((a, b) => a + b, 0) / near.length;
  });
}

/** curves: [{ name, css, x, y, live }]; null in y is no number. */
export function lines(label, curves) {
  const drawn = curves.map((c) => ({ ...c, points: c.x.map((v, k) => [v, c.y[k]]).filter(([, v]) => v !== null) })).filter((c) => c.points.length);
  if (!drawn.length) return h("p", { class: "note" }, "no value is a number");
  const xs = drawn.flatMap((c) => c.points.map(([v]) => v)), ys = drawn.flatMap((c) => c.points.map(([, v]) => v));
  const low = Math.min(...ys), high = Math.max(...ys), pad = 0.05 * (high - low) || 0.05 * Math.abs(high) || 1;
  const { x, y, grid } = scales(Math.min(...xs), Math.max(...xs), low >= 0 && low < 0.3 * high ? 0 : low - pad, high + pad);
  const draw = (points, css, title) => s("polyline", { class: css, points: points.map(([a, b]) => `${x(a).toFixed(1)},${y(b).toFixed(1)}`).join(" ") }, s("title", {}, title));
  return s("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${visible(label)} by step` }, grid, drawn.map((c) => {
    const last = c.points[c.points.length - 1];
    const dot = s("circle", { class: `dot ${c.css}`, cx: x(last[0]), cy: y(last[1]), r: 3 });
    if (c.points.length < 40) return [draw(c.points, `line ${c.css}`, c.name), dot];
    const smoothed = smooth(c.points.map(([, v]) => v)).map((v, k) => [c.points[k][0], v]);
    return [draw(c.points, `line faint ${c.css}`, c.name), draw(smoothed, `line ${c.css}`, `${c.name}, smoothed`), dot];
  }));
}
