// One endpoint: overview, playground, metrics, logs, revisions, settings, events.

import { api, part } from "../api.js";
import { chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { ago, short, when } from "../format.js";
import { live } from "../live.js";
import { badge, button, code, confirm, errorCard, facts, field, loadInto, row, table, toast } from "../ui.js";
import { logs } from "./logs.js";
import { exampleBody, playground } from "./playground.js";
import { webhooks } from "./webhooks.js";

const TABS = ["overview", "playground", "metrics", "logs", "revisions", "settings", "webhooks", "events"];

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
    if (!shown.schema && now.revision !== shown.revision) redraw().catch(() => {}); // its first revision serves now
  };
  const draw = { overview, playground: (e) => playground(e, page.signal), metrics, logs, revisions, settings, webhooks, events }[tab] ?? overview;
  async function redraw() {
    shown = { ...shown, revision: live.endpoint(name)?.revision };
    shown = await api.get(`/endpoints/${part(name)}`, { signal: page.signal });
    await loadInto(body, async () => draw(shown, page));
  }
  page.watch(update);
  update();
  await loadInto(body, async () => draw(shown, page));
}

function overview(e) {
  const body = JSON.stringify(e.schema ? exampleBody(e.schema) : { inputs: [] });
  const origin = new URL(e.url).origin;
  const curl = `curl -s ${e.url} -H "Authorization: Bearer $PUNA_KEY" \\\n  -H 'Content-Type: application/json' -d '${body.replaceAll("'", "'\\''")}'`;
  const python = `from puna import Client\n\nwith Client(url="${origin}", key="puna_...") as client:\n    print(client.infer("${e.name}", ${JSON.stringify(JSON.parse(body).inputs).replace(/:true\b|\[true\b/g, (m) => m[0] + "True").replace(/:false\b|\[false\b/g, (m) => m[0] + "False")}))`;
  const openai = `from openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key="puna_...")\nprint(client.chat.completions.create(\n    model="${e.name}", messages=[{"role": "user", "content": "What is AI?"}]\n).choices[0].message.content)`;
  return [h("section", { class: "card" }, facts([["Address", h("code", {}, e.url)], ["Serving revision", e.revision ?? "none"], ["Replicas wanted", e.wish], ["Why", e.wish_reason],
    ["GPU", e.settings.gpu_type || "any"], ["Created", when(e.created)]])),
  table("Replicas", ["Replica", "State", "Tier", "Revision", "In flight", "Since"], e.replicas.length ? e.replicas.map((r) => row(h("code", {}, r.id), badge(r.state), r.tier, r.revision, r.in_flight, ago(r.since)))
    : [h("tr", {}, h("td", { colspan: 6 }, "No replica runs: the next request starts one."))]),
  h("div", { class: "halves" }, [["curl", curl], ["Python", python], ["OpenAI's client (chat apps)", openai]].map(([title, text]) => h("section", { class: "card" }, h("h2", {}, title), code(text))))];
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

function revisions(e) {
  return table("Revisions", ["Revision", "State", "Source", "Runtime", "Since", ""], e.revisions.map((r) => row(`${r.number}`, badge(r.state), h("code", {}, short(r.source)),
    r.runtime ? `${r.runtime}:${r.runtime_version}` : "beside the app", ago(r.since), h("div", { class: "row" },
      r.build_id && h("a", { class: "button small", href: `#/builds/${r.build_id}`, "aria-label": `Build of revision ${r.number}` }, "Build"),
      (r.state === "retired" || r.state === "superseded") && button("Roll back", async () => {
        await api.post(`/endpoints/${part(e.name)}/rollback`, { revision: r.number });
        toast(`Revision ${r.number} is rolled out again`);
      }, { kind: "small", "aria-label": `Roll back to revision ${r.number}` }), r.error && h("small", {}, r.error)))));
}

const LIVE = [["min_replica", "Replicas at least"], ["max_replica", "Replicas at most"], ["scale_down_delay_s", "Idle seconds before one goes"], ["inference_time_s", "Seconds a request may take"], ["max_queue", "Requests that may wait"]];
const REVISION = [["container_concurrency", "Requests at once per replica (0: chosen)"], ["startup_timeout_s", "Seconds a start may take"]];

function settings(e) {
  const inputs = Object.fromEntries([...LIVE, ...REVISION].map(([key]) => [key, h("input", { type: "number", min: 0, value: e.settings[key] })]));
  const note = h("div", {});
  const save = button("Save", async () => {
    const changed = Object.entries(inputs).filter(([key, input]) => Number(input.value) !== e.settings[key]);
    if (!changed.length) { toast("Nothing was changed"); return; }
    try {
      const now = await api.patch(`/endpoints/${part(e.name)}`, Object.fromEntries(changed.map(([key, input]) => [key, Number(input.value)])));
      e.settings = now.settings;
      toast(now.changed_revision ? `Revision ${now.changed_revision} is coming` : "Saved; it acts at once");
      replace(note);
    } catch (error) { replace(note, errorCard(error)); }
  }, { kind: "primary" });
  const remove = button("Delete endpoint", async () => {
    if (!await confirm({ title: `Delete ${e.name}?`, text: "Its replicas stop, and callers get 404.", action: "Delete", typed: e.name, danger: true })) return;
    await api.del(`/endpoints/${part(e.name)}`);
    location.hash = "#/";
  }, { kind: "danger" });
  const group = (title, list) => h("section", { class: "card" }, h("h2", {}, title), h("div", { class: "grid" }, list.map(([key, label]) => field(label, inputs[key]))));
  return [note, group("At once", LIVE), group("By a new revision, without a build", REVISION), h("div", { class: "row" }, save),
    h("section", { class: "card" }, h("h2", {}, "Delete"), h("p", {}, "Everything of this endpoint but its build caches goes."), remove)];
}

async function events(e, page) {
  const { items } = await api.get(`/endpoints/${part(e.name)}/events?order=newest&limit=500`, { signal: page.signal });
  return table("Events", ["When", "Kind", "What, and why"], items.map((event) => row(h("time", { title: when(event.at) }, ago(event.at)), event.kind, event.message)));
}

