// Keys and secrets.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { when } from "../format.js";
import { button, cards, code, confirm, field, row } from "../ui.js";

const head = (title) => h("div", { class: "head" }, h("h1", {}, title));

const limitsOf = (k) => [k.rate, k.tokens && `${k.tokens} tokens`, k.concurrency && `${k.concurrency} at once`].filter(Boolean).join(", ") || "–";

export async function keysPage(main, page) {
  const shown = h("div", { "aria-live": "polite" });
  const name = h("input", { type: "text", placeholder: "what it is for" });
  const scope = h("select", {}, ["infer", "deploy", "admin"].map((s) => h("option", { value: s }, s)));
  const only = h("input", { type: "text", placeholder: "all" });
  const days = h("input", { type: "number", min: 0, placeholder: "never" });
  const rate = h("input", { type: "text", placeholder: "10/s" });
  const tokens = h("input", { type: "text", placeholder: "100k/min" });
  const concurrency = h("input", { type: "number", min: 1, placeholder: "any" });
  const list = h("div", {});
  const draw = async () => {
    const { items } = await api.get("/keys", { signal: page.signal });
    replace(list, cards("Keys", ["Name", "Id", "Scope", "Endpoints", "Limits", "Expires", ""], items.map((k) => row(k.name || "–", h("code", {}, k.id), k.scope.join(", "), k.endpoints?.join(", ") ?? "all", limitsOf(k), k.expires ? when(k.expires) : "never", button("Revoke", async () => {
      if (await confirm({ title: "Revoke this key?", text: `Whoever uses ${k.name || k.id} is refused at once.`, action: "Revoke", danger: true })) { await api.del(`/keys/${part(k.id)}`); await draw(); }
    }, { kind: "small danger", "aria-label": `Revoke ${k.name || k.id}` })))));
  };
  const make = button("Make a key", async () => {
    const endpoints = only.value.split(/[\s,]+/).filter(Boolean);
    const limits = { rate: rate.value || null, tokens: tokens.value || null, concurrency: concurrency.value ? Number(concurrency.value) : null };
    const made = await api.post("/keys", { name: name.value, scope: [scope.value], endpoints: endpoints.length ? endpoints : null, expires_s: days.value ? Number(days.value) * 86400 : null, ...limits });
    replace(shown, h("div", { class: "card" }, h("p", {}, "It is shown now, and never again:"), code(made.key)));
    await draw();
  }, { kind: "primary" });
  await draw();
  replace(main, head("Keys"), h("div", { class: "stack" }, list, h("section", { class: "card stack" }, h("h2", {}, "A new key"), h("div", { class: "grid" }, field("Name", name), field("Scope", scope), field("Endpoints", only, { hint: "Names, with commas" }), field("Days", days), field("Calls", rate, { hint: "In a time; any number when empty" }), field("Tokens", tokens, { hint: "Of OpenAI's paths" }), field("At once", concurrency)), h("div", { class: "row" }, make), shown)));
}

export async function secretsPage(main, page) {
  const list = h("div", {});
  const name = h("input", { type: "text", placeholder: "hub" });
  const values = h("textarea", { class: "mono", placeholder: "HF_TOKEN=…", autocomplete: "off", spellcheck: "false" });
  const draw = async () => {
    const { items } = await api.get("/secrets", { signal: page.signal });
    replace(list, items.length ? cards("Secrets", ["Set", "Values", ""], items.map((s) => row(s.name, s.keys.join(", "), button("Delete", async () => {
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
