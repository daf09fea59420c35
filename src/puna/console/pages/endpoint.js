// One endpoint: overview, playground, metrics, logs, revisions, settings, events.

import { api, part } from "../api.js";
import { chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { ago, when } from "../format.js";
import { live } from "../live.js";
import { badge, button, cards, empty, facts, loadInto, row, toast } from "../ui.js";
import { logs } from "./logs.js";
import { exampleBody, playground } from "./playground.js";
import { revisions } from "./revisions.js";
import { settings } from "./settings.js";
import { ofChat, ofInputs, panels } from "./snippets.js";
import { usage } from "./usage.js";
import { webhooks } from "./webhooks.js";

const TABS = ["overview", "playground", "metrics", "usage", "logs", "revisions", "settings", "webhooks", "events"];

export async function endpointPage(main, page, name, tab = "overview") {
  page.title(name);
  let shown = await api.get(`/endpoints/${part(name)}`, { signal: page.signal });
  const state = h("span", {}, badge(shown.state, shown.label));
  const reason = h("div", {}, shown.reason && h("p", { class: "lost" }, shown.reason));
  const act = (verb, done) => button(verb[0].toUpperCase() + verb.slice(1), async () => {
    const made = await api.post(`/endpoints/${part(name)}/${verb}`);
    toast(done);
    if (made.build_id && verb === "rebuild") location.hash = `#/builds/${made.build_id}`;
  });
  const actions = h("div", { class: "row" }, act("activate", "Active"), act("deactivate", "Deactivated"), act("rebuild", "Build queued"));
  const tabs = h("nav", { class: "tabs", "aria-label": "Endpoint" }, TABS.map((t) => h("a", { href: `#/endpoints/${part(name)}/${t}`, "aria-current": t === tab ? "page" : null }, t[0].toUpperCase() + t.slice(1))));
  const body = h("div", { class: "stack" });
  replace(main, h("div", { class: "head" }, h("div", { class: "titles" }, h("p", { class: "crumbs" }, h("a", { href: "#/" }, "Endpoints")), h("div", { class: "row" }, h("h1", {}, name), state)), actions), reason, tabs, body);
  const update = () => {
    const now = live.endpoint(name);
    if (!now) return;
    replace(state, badge(now.state, now.label));
    replace(reason, now.reason && h("p", { class: "lost" }, now.reason));
    actions.children[0].hidden = now.active;
    actions.children[1].hidden = !now.active;
    if (["overview", "playground"].includes(tab) && !shown.schema && now.revision !== shown.revision) redraw().catch(() => {}); // its first revision serves now
  };
  const draw = { overview, playground: (e) => playground(e, page.signal), metrics, usage, logs, revisions, settings, webhooks, events }[tab] ?? overview;
  async function redraw() {
    shown = { ...shown, revision: live.endpoint(name)?.revision };
    shown = await api.get(`/endpoints/${part(name)}`, { signal: page.signal });
    await loadInto(body, async () => draw(shown, page));
  }
  tabs.querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  page.watch(update);
  update();
  await loadInto(body, async () => draw(shown, page));
}

function overview(e) {
  const body = e.schema ? exampleBody(e.schema) : { inputs: [] };
  const chat = { model: e.name, messages: [{ role: "user", content: "What is AI?" }] };
  return [h("section", { class: "card" }, facts([["Address", h("code", {}, e.url)], ["Serving revision", e.revision ?? "none"], ["Replicas wanted", e.desired_replicas], ["Why", e.scaling_reason],
    ["Calls per replica", e.concurrency?.text ?? "known once it has run"], ["GPU", e.settings.gpu_type || "any"], ["Created", when(e.created)]])),
  cards("Replicas", ["Replica", "State", "Tier", "Revision", "In flight", "Since"], e.replicas.length ? e.replicas.map((r) => row(h("code", {}, r.id), badge(r.state), r.tier, r.revision, r.in_flight, ago(r.since)))
    : [h("tr", {}, h("td", { colspan: 6 }, "No replica runs: the next request starts one."))]),
  h("div", { class: "halves" }, panels([...ofInputs(e, body), ["OpenAI's client (apps with an engine)", ofChat(e, chat)[1][1]]]))];
}

function metrics(e, page) {
  const box = h("div", { class: "halves" });
  const draw = async () => {
    const { items } = await api.get(`/endpoints/${part(e.name)}/metrics`, { signal: page.signal });
    const line = (name, key) => ({ name, points: items.map((p) => [p.at, p[key]]) });
    const clock = (x) => new Date(x * 1000).toLocaleTimeString();
    replace(box, chart("Requests", [line("requests/s", "requests_per_s"), line("errors/s", "errors_per_s")], clock, "per second"),
      chart("Latency", [line("p50", "p50_ms"), line("p95", "p95_ms")], clock, "ms"),
      chart("Load", [line("in flight", "in_flight"), line("waiting", "queued")], clock), chart("Replicas", [line("ready", "replicas")], clock));
  };
  const timer = setInterval(() => { if (!box.querySelector("details[open]")) draw().catch(() => {}); }, 5000);
  page.closed(() => clearInterval(timer));
  return draw().then(() => box);
}

async function events(e, page) {
  const { items } = await api.get(`/endpoints/${part(e.name)}/events?order=newest&limit=500`, { signal: page.signal });
  return items.length ? cards("Events", ["When", "Kind", "What, and why"], items.map((event) => row(h("time", { title: when(event.at) }, ago(event.at)), event.kind, event.message))) : empty("Nothing has happened yet", h("p", {}, "Rollouts, scaling steps with their reasons and failures stand here."));
}

