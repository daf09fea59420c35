// Small line charts in SVG, each with the same figures as a table for those who do not see it.

import { h, svg } from "./dom.js";
import { figure } from "./format.js";
import { row, table } from "./ui.js";

const W = 520, H = 150, LEFT = 48, BOTTOM = 20;

// series: [{name, points: [[x, y|null]], raw: what they are an average of, drawn faintly}]; x as `words(x)`.
export function chart(title, series, words, unit = "") {
  const points = series.flatMap((s) => [...s.points, ...(s.raw ?? [])]).filter(([, y]) => y !== null && y !== undefined);
  const top = Math.max(...points.map(([, y]) => y), 0) || 1;
  const xs = points.map(([x]) => x);
  const [low, high] = [Math.min(...xs), Math.max(...xs)];
  const px = (x) => LEFT + ((x - low) / (high - low || 1)) * (W - LEFT - 6);
  const py = (y) => 8 + (1 - y / (top * 1.08)) * (H - BOTTOM - 8);
  const last = series.map((s) => `${s.name} ${figure(s.points.at(-1)?.[1])} ${unit}`).join(", ");
  const drawn = (points) => {
    let pen = false;
    return points.map(([x, y]) => {
      if (y === null || y === undefined) { pen = false; return ""; }
      const move = pen ? "L" : "M";
      pen = true;
      return `${move}${px(x).toFixed(1)} ${py(y).toFixed(1)}`;
    }).join("") || "M0 0";
  };
  const lines = series.map((s, index) => {
    const alone = s.points.filter(([, y], i, all) => y !== null && y !== undefined && (all[i - 1]?.[1] ?? null) === null && (all[i + 1]?.[1] ?? null) === null);
    return [s.raw && svg("path", { class: `s${index + 1} raw`, d: drawn(s.raw) }), svg("path", { class: `s${index + 1}`, d: drawn(s.points) }), alone.map(([x, y]) => svg("circle", { class: `s${index + 1}`, cx: px(x), cy: py(y), r: 3 }))];
  });
  const grid = [0, top / 2, top].flatMap((y) => [svg("line", { class: "axis", x1: LEFT, x2: W, y1: py(y), y2: py(y) }),
    svg("text", { x: LEFT - 6, y: py(y) + 4, "text-anchor": "end" }, figure(y))]);
  const picture = svg("svg", { class: "chart", viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${title}: ${last}` }, grid, lines,
    points.length ? [svg("text", { x: LEFT, y: H - 4 }, words(low)), svg("text", { x: W, y: H - 4, "text-anchor": "end" }, words(high))] : []);
  const sample = series[0].points.filter((_, i, all) => all.length <= 12 || i % Math.ceil(all.length / 12) === 0);
  return h("section", { class: "card" }, h("h3", {}, title, unit && h("small", {}, ` ${unit}`)),
    points.length ? picture : h("p", { class: "quiet" }, "Nothing yet."),
    h("div", { class: "legend" }, series.length > 1 && series.map((s, i) => h("span", {}, h("i", { class: `s${i + 1}` }), s.name))),
    h("details", {}, h("summary", {}, "As a table"), table(title, ["", ...series.map((s) => s.name)],
      sample.map(([x]) => row(words(x), ...series.map((s) => figure(s.points.find(([other]) => other === x)?.[1])))))));
}
