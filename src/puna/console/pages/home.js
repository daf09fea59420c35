// Home: every endpoint with its state and figures, as they change: a row is made anew only when its endpoint changed.

import { h, replace } from "../dom.js";
import { count, figure, milliseconds, plural } from "../format.js";
import { live } from "../live.js";
import { badge, code, empty, table } from "../ui.js";

const HEADS = ["Endpoint", "Status", "Replicas", "Waiting", "Requests", "Requests/s", "p95"];
const REASON = 120; // characters of it that are shown
const MANY = 8; // from so many on there is a filter

export function home(main, page) {
  const list = h("div", {});
  const search = h("input", { type: "search", placeholder: "Filter by name or status", "aria-label": "Filter endpoints by name or status" });
  const total = h("p", { class: "quiet", role: "status" });
  const tools = h("div", { class: "row" }, h("div", { class: "field" }, search), h("a", { class: "button primary", href: "#/deploy" }, "Deploy"));
  const body = h("tbody", {});
  const whole = table("Endpoints", HEADS, []);
  whole.classList.add("cards-on-small");
  whole.querySelector("tbody").replaceWith(body);
  const rows = new Map(); // name -> { row, text }
  replace(main, h("div", { class: "head" }, h("h1", {}, "Endpoints"), tools), total, list);
  const show = (...nodes) => { if (list.firstChild !== nodes[0]) replace(list, nodes); };
  const loading = h("p", { class: "quiet" }, "Loading…");
  const none = h("p", { class: "quiet" }, "No endpoint fits.");
  let first = null;
  const draw = () => {
    if (!live.loaded) { if (!list.firstChild) show(loading); return; }
    const all = live.endpoints();
    const words = search.value.trim().toLowerCase();
    const shown = words ? all.filter((e) => e.name.includes(words) || e.label.toLowerCase().includes(words)) : all;
    search.parentElement.hidden = all.length < MANY;
    total.hidden = all.length < MANY;
    const told = summary(all, shown);
    if (total.textContent !== told) total.textContent = told;
    fill(body, rows, shown);
    if (all.length === 0) show(first ??= nothing()); else show(shown.length ? whole : none);
  };
  search.addEventListener("input", draw);
  page.watch(draw);
  draw();
}

// The rows that `shown` has, in its order; those that say the same as before are left as they are.
function fill(body, rows, shown) {
  const names = new Set(shown.map((e) => e.name));
  for (const [name, { row }] of rows) {
    if (names.has(name)) continue;
    row.remove();
    rows.delete(name);
  }
  let after = null;
  for (const e of shown) {
    const text = JSON.stringify(e);
    let known = rows.get(e.name);
    if (!known) rows.set(e.name, known = { row: h("tr", {}, h("th", { scope: "row" }, h("a", { href: `#/endpoints/${e.name}` }, e.name))), text: "" });
    if (known.text !== text) {
      known.row.replaceChildren(known.row.firstChild, ...cells(e)); // the link stays, and whoever is on it
      known.text = text;
    }
    const place = after ? after.nextSibling : body.firstChild;
    if (place !== known.row) body.insertBefore(known.row, place);
    after = known.row;
  }
}

function cells(e) {
  const ready = e.replicas.filter((replica) => replica.state === "ready").length;
  const reason = e.reason.length > REASON ? `${e.reason.slice(0, REASON)}…` : e.reason;
  const cell = (index, ...content) => h("td", { "data-label": HEADS[index] }, content);
  return [
    cell(1, h("span", {}, badge(e.state, e.label), reason && h("small", { title: e.reason }, " ", reason))),
    cell(2, `${ready} of ${count(e.wanted)}`),
    cell(3, count(e.queued)),
    cell(4, count(e.figures.requests ?? 0)),
    cell(5, figure(e.figures.requests_per_s ?? 0)),
    cell(6, milliseconds(e.figures.p95_ms)),
  ];
}

function summary(all, shown) {
  const bad = all.filter((e) => e.state === "failing" || e.state === "failed").length;
  const ready = all.filter((e) => e.state === "ready").length;
  const parts = [plural(all.length, "endpoint"), `${ready} ready`, bad ? `${bad} failing` : ""];
  if (shown.length < all.length) parts.unshift(`${shown.length} shown`);
  return parts.filter(Boolean).join(" · ");
}

function nothing() {
  return empty("Nothing is deployed yet",
    h("p", {}, "An endpoint serves one app: a folder with ", h("code", {}, "app.py"), ", its inputs and its packages. Deploy one here, or from a shell:"),
    code("puna init owner/model my-app\npuna deploy my-app"),
    h("p", {}, h("a", { class: "button primary", href: "#/deploy" }, "Deploy your first app")));
}
