// Home: every endpoint with its state and figures, as they change.

import { h, replace } from "../dom.js";
import { count, figure, milliseconds, plural } from "../format.js";
import { live } from "../live.js";
import { badge, code, empty, table } from "../ui.js";

export function home(main, page) {
  const list = h("div", {});
  const search = h("input", { type: "search", placeholder: "Filter by name", "aria-label": "Filter endpoints by name" });
  const tools = h("div", { class: "row" }, search, h("a", { class: "button primary", href: "#/deploy" }, "Deploy"));
  replace(main, h("div", { class: "head" }, h("h1", {}, "Endpoints"), tools), list);
  let before = "";
  const draw = () => {
    if (!live.loaded) { if (!before) replace(list, h("p", { class: "quiet" }, "Loading…")); return; }
    const all = live.endpoints();
    search.hidden = all.length < 8;
    const shown = all.filter((endpoint) => endpoint.name.includes(search.value.trim().toLowerCase()));
    const now = JSON.stringify([shown, all.length]);
    if (now === before) return;
    before = now;
    const focused = document.activeElement?.closest?.("a[data-name]")?.dataset.name;
    replace(list, all.length === 0 ? nothing() : shown.length ? rows(shown) : h("p", { class: "quiet" }, "No endpoint of that name."));
    if (focused) list.querySelector(`a[data-name="${CSS.escape(focused)}"]`)?.focus();
  };
  search.addEventListener("input", draw);
  page.watch(draw);
  draw();
}

function nothing() {
  return empty("Nothing is deployed yet",
    h("p", {}, "An endpoint serves one app: a folder with ", h("code", {}, "app.py"), ", its inputs and its packages. Deploy one here, or from a shell:"),
    code("puna init owner/model my-app\npuna deploy my-app"),
    h("p", {}, h("a", { class: "button primary", href: "#/deploy" }, "Deploy your first app")));
}

function rows(endpoints) {
  const heads = ["Endpoint", "Status", "Replicas", "Waiting", "Requests", "Requests/s", "p95"];
  const whole = table("Endpoints", heads, endpoints.map((e) => {
    const ready = e.replicas.filter((replica) => replica.state === "ready").length;
    const cell = (label, content, kind = "") => h("td", { "data-label": label, class: kind }, content);
    return h("tr", {},
      h("th", { scope: "row" }, h("a", { href: `#/endpoints/${e.name}`, "data-name": e.name }, e.name)),
      cell("Status", h("span", {}, badge(e.state, e.label), e.reason && h("small", { title: e.reason }, " ", e.reason.length > 120 ? `${e.reason.slice(0, 120)}…` : e.reason))),
      cell("Replicas", `${ready} of ${plural(e.wanted, "replica").replace(/ replicas?/, "")}`),
      cell("Waiting", count(e.queued)),
      cell("Requests", count(e.figures.requests ?? 0)),
      cell("Requests/s", figure(e.figures.requests_per_s ?? 0)),
      cell("p95", milliseconds(e.figures.p95_ms)));
  }));
  whole.classList.add("cards-on-small");
  return whole;
}
