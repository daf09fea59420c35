// Runs, models, runtimes, keys and secrets.

import { api, part } from "../api.js";
import { chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { ago, seconds, short, when } from "../format.js";
import { badge, button, code, confirm, empty, errorCard, facts, field, row, table } from "../ui.js";

const head = (title) => h("div", { class: "head" }, h("h1", {}, title));

function listing(title, path, heads, cells, nothing) {
  return async (main, page) => {
    const { items } = await api.get(path, { signal: page.signal });
    replace(main, head(title), items.length ? table(title, heads, items.map((item) => row(...cells(item)))) : empty("Nothing here yet", h("p", {}, nothing[0]), code(nothing[1])));
  };
}

export const runsPage = listing("Runs", "/runs", ["Run", "State", "Step", "Time"], (r) => [h("a", { href: `#/runs/${part(r.name)}` }, r.name), badge(r.state), `${r.step} of ${r.steps}`, seconds(r.seconds)],
  ["A run fine-tunes a model as a recipe says.", "puna train recipe.yaml"]);
export const modelsPage = listing("Models", "/models", ["Model", "Version", "Aliases", "Kind", "Made from", "When"], (m) => [m.name, m.version, (m.aliases ?? []).join(", "), m.kind, Object.entries(m.lineage ?? {}).map(([k, v]) => `${k} ${short(v)}`).join(", "), when(m.created)],
  ["Published models stand here with their versions and aliases.", "puna publish RUN owner/model"]);

export async function runPage(main, page, name) {
  const box = h("div", { class: "stack" });
  replace(main, h("p", { class: "crumbs" }, h("a", { href: "#/runs" }, "Runs")), head(name), box);
  const draw = async () => {
    const run = await api.get(`/runs/${part(name)}`, { signal: page.signal });
    const line = (key) => ({ name: key, points: run.metrics.filter((m) => typeof m[key] === "number").map((m) => [m.step, m[key]]) });
    const keys = [["Loss", ["loss", "eval_loss"]], ["Learning rate", ["lr"]], ["Tokens per second", ["tokens_per_s"]], ["Memory", ["memory_gib"]]];
    const charts = keys.map(([title, all]) => [title, all.map(line).filter((s) => s.points.length)]).filter(([, s]) => s.length);
    replace(box, facts([["State", badge(run.state)], ["Step", `${run.step} of ${run.steps}`], ["Time", seconds(run.seconds)]]), run.error && errorCard({ message: run.error }),
      h("div", { class: "halves" }, charts.map(([title, s]) => chart(title, s, (x) => `step ${x}`))), run.samples.length > 0 && h("section", { class: "card" }, h("h2", {}, "Samples"), run.samples.map((s) => facts(Object.entries(s)))),
      h("section", { class: "card" }, h("h2", {}, "Next"), code(`puna merge ${name}\npuna publish ${name} owner/model`)));
    if (run.state !== "running") clearInterval(timer);
  };
  const timer = setInterval(() => draw().catch(() => {}), 3000);
  page.closed(() => clearInterval(timer));
  await draw();
}

export async function runtimesPage(main, page) {
  const { items } = await api.get("/runtimes", { signal: page.signal });
  const name = h("input", { type: "text", placeholder: "my-runtime" });
  const text = h("textarea", { class: "mono", rows: 8, value: "build:\n  python_packages: []\n" });
  const note = h("div", {});
  const upload = button("Upload and build", async () => {
    try { const made = await api.post("/runtimes", { name: name.value.trim(), yaml: text.value }); location.hash = `#/builds/${made.build_id}`; } catch (error) { replace(note, errorCard(error)); }
  }, { kind: "primary" });
  replace(main, head("Runtimes"), h("div", { class: "stack" }, items.length > 0 && table("Runtimes", ["Runtime", "Version", "State", "When", ""], items.map((r) => row(r.name, r.version, badge(r.status), ago(r.created), r.build_id && h("a", { href: `#/builds/${r.build_id}`, "aria-label": `Build of ${r.name} version ${r.version}` }, "Build")))),
    h("section", { class: "card stack" }, h("h2", {}, "A new runtime, or a new version"), field("Name", name), field("Runtime file", text), note, h("div", { class: "row" }, upload))));
}

export async function keysPage(main, page) {
  const shown = h("div", { "aria-live": "polite" });
  const name = h("input", { type: "text", placeholder: "what it is for" });
  const scope = h("select", {}, ["infer", "deploy", "admin"].map((s) => h("option", { value: s }, s)));
  const only = h("input", { type: "text", placeholder: "all" });
  const days = h("input", { type: "number", min: 0, placeholder: "never" });
  const list = h("div", {});
  const draw = async () => {
    const { items } = await api.get("/keys", { signal: page.signal });
    replace(list, table("Keys", ["Name", "Id", "Scope", "Endpoints", "Expires", ""], items.map((k) => row(k.name || "–", h("code", {}, k.id), k.scope.join(", "), k.endpoints?.join(", ") ?? "all", k.expires ? when(k.expires) : "never", button("Revoke", async () => {
      if (await confirm({ title: "Revoke this key?", text: `Whoever uses ${k.name || k.id} is refused at once.`, action: "Revoke", danger: true })) { await api.del(`/keys/${part(k.id)}`); await draw(); }
    }, { kind: "small danger", "aria-label": `Revoke ${k.name || k.id}` })))));
  };
  const make = button("Make a key", async () => {
    const endpoints = only.value.split(/[\s,]+/).filter(Boolean);
    const made = await api.post("/keys", { name: name.value, scope: [scope.value], endpoints: endpoints.length ? endpoints : null, expires_s: days.value ? Number(days.value) * 86400 : null });
    replace(shown, h("div", { class: "card" }, h("p", {}, "It is shown now, and never again:"), code(made.key)));
    await draw();
  }, { kind: "primary" });
  await draw();
  replace(main, head("Keys"), h("div", { class: "stack" }, list, h("section", { class: "card stack" }, h("h2", {}, "A new key"), h("div", { class: "grid" }, field("Name", name), field("Scope", scope), field("Endpoints", only, { hint: "Names, with commas" }), field("Days", days)), h("div", { class: "row" }, make), shown)));
}

export async function secretsPage(main, page) {
  const list = h("div", {});
  const name = h("input", { type: "text", placeholder: "hub" });
  const values = h("textarea", { class: "mono", placeholder: "HF_TOKEN=…", autocomplete: "off", spellcheck: "false" });
  const draw = async () => {
    const { items } = await api.get("/secrets", { signal: page.signal });
    replace(list, items.length ? table("Secrets", ["Set", "Values", ""], items.map((s) => row(s.name, s.keys.join(", "), button("Delete", async () => {
      if (await confirm({ title: `Delete ${s.name}?`, text: "Replicas that start from then on do not have it.", action: "Delete", danger: true })) { await api.del(`/secrets/${part(s.name)}`); await draw(); }
    }, { kind: "small danger", "aria-label": `Delete ${s.name}` })))) : h("p", { class: "quiet" }, "There are none yet."));
  };
  const save = button("Save", async () => {
    const pairs = values.value.split("\n").filter((l) => l.includes("=")).map((l) => [l.slice(0, l.indexOf("=")).trim(), l.slice(l.indexOf("=") + 1)]);
    await api.post("/secrets", { name: name.value.trim(), values: Object.fromEntries(pairs) });
    values.value = "";
    await draw();
  }, { kind: "primary" });
  await draw();
  replace(main, head("Secrets"), h("div", { class: "stack" }, list, h("section", { class: "card stack" }, h("h2", {}, "A new set, or one of that name replaced"), field("Name", name), field("Values", values, { hint: "NAME=value, one a line. They are encrypted, and never shown again." }), h("div", { class: "row" }, save))));
}
