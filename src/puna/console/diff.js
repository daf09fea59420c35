// Two texts or two sets of values side by side, as lines that went and lines that came.

import { h } from "./dom.js";
import { cards, row } from "./ui.js";

const kind = (line) => (line.startsWith("@@") || line.startsWith("---") || line.startsWith("+++") ? "at" : line.startsWith("+") ? "add" : line.startsWith("-") ? "del" : "");

// A unified diff; what changed is said by its + and -, the colours only help.
export function diffText(label, text) {
  const lines = text.replace(/\n$/, "").split("\n").filter((line) => !/^(---|\+\+\+) /.test(line));
  return text.trim() ? h("pre", { class: "diff", tabindex: 0, "aria-label": label }, lines.map((line) => h("span", { class: kind(line) }, line || " ")))
    : h("p", { class: "quiet" }, `${label}: the same.`);
}

const told = (value) => (value === null || value === undefined || value === "" ? "–" : typeof value === "object" ? JSON.stringify(value) : String(value));

// [[what, before, after]]
export function diffTable(caption, heads, changes) {
  return changes.length ? cards(caption, ["", ...heads], changes.map(([what, before, after]) => row(what, h("span", { class: "bad-text" }, told(before)), h("span", { class: "good-text" }, told(after)))))
    : h("p", { class: "quiet" }, `${caption}: the same.`);
}
