// Published models: versions with their aliases, where each came from, and which endpoints serve it.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { bytes, plural, short, when } from "../format.js";
import { badge, button, cards, code, confirm, dialog, empty, errorCard, field, row, toast } from "../ui.js";

const segments = (name) => name.split("/").map(part).join("/");

export async function modelsPage(main, page) {
  const wanted = new URLSearchParams(location.hash.split("?")[1] ?? "").get("name");
  const list = h("div", { class: "stack" });
  const note = h("div", {});
  const draw = async () => {
    const { items } = await api.get("/models", { signal: page.signal });
    const names = [...new Set(items.map((m) => m.name))];
    replace(list, names.length ? names.map((name) => model(name, items.filter((m) => m.name === name).reverse(), draw, note)) : nothing());
    list.querySelector(`section[data-name="${CSS.escape(wanted ?? "")}"]`)?.scrollIntoView({ block: "start" });
  };
  replace(main, h("div", { class: "head" }, h("h1", {}, "Models")), h("div", { class: "stack" }, note, list));
  await draw();
}

function nothing() {
  return empty("Nothing is published yet", h("p", {}, "A finished run is merged and published under a name; versions never change, aliases move. Open a run and press Publish, or from a shell:"),
    code("puna merge RUN\npuna publish RUN owner/model"), h("p", {}, h("a", { class: "button primary", href: "#/runs" }, "See the runs")));
}

function model(name, versions, draw, note) {
  const gone = versions.every((v) => v.bytes === null);
  return h("section", { class: "card stack", "data-name": name, "aria-label": name }, h("div", { class: "head slim" }, h("h2", {}, name, " ", h("small", {}, `${plural(versions.length, "version")}`)),
    !gone && h("a", { class: "button primary small", href: `#/deploy?model=${part(name)}`, "aria-label": `Deploy ${name}` }, "Deploy")),
  cards(`Versions of ${name}`, ["Version", "Aliases", "Came from, serves", "Size", "Digest", "Published", ""], versions.map((v) => row(`${v.version}`, aliases(v, draw, note), origin(v),
    v.bytes === null ? h("span", { class: "bad-text" }, "weights are gone") : bytes(v.bytes), h("code", { title: v.digest }, short(v.digest)), when(v.created), remove(v, draw, note)))));
}

function aliases(v, draw, note) {
  const drop = (alias) => h("span", { class: "chip" }, alias, button("×", async () => {
    if (!await confirm({ title: `Remove @${alias}?`, text: `${v.name}@${alias} will mean nothing; version ${v.version} stays.`, action: "Remove", danger: true })) return;
    await tell(note, () => api.del(`/models/${segments(v.name)}/aliases/${part(alias)}`));
    await draw();
  }, { "aria-label": `Remove the alias ${alias} from version ${v.version} of ${v.name}` }));
  return h("span", { class: "row" }, v.aliases.map(drop), button("Add", async () => {
    const input = h("input", { type: "text", required: true, spellcheck: "false", placeholder: "champion" });
    const made = await dialog({ title: `An alias for ${v.name}:${v.version}`, action: "Set", body: [field("Alias", input, { hint: "Lower-case letters, digits, _ and -. One that another version has moves here." })],
      work: () => api.set(`/models/${segments(v.name)}/aliases/${part(input.value.trim())}`, { version: v.version }) });
    if (made) { toast(`@${input.value.trim()} is version ${v.version}`); await draw(); }
  }, { kind: "small plain", "aria-label": `Add an alias to version ${v.version} of ${v.name}` }));
}

function origin(v) {
  const from = v.run ? h("a", { href: `#/runs/${part(v.run)}` }, v.run) : v.lineage.base ? `base ${short(v.lineage.base)}` : "imported";
  const served = v.endpoints.map((e) => h("li", {}, h("a", { href: `#/endpoints/${part(e.endpoint)}` }, e.endpoint), h("small", {}, ` revision ${e.revision}`)));
  const verdict = v.kind === "adapter" ? badge("adapter", "adapter") : v.verification ? badge(v.verification.passed ? "done" : "failed", v.verification.passed ? "verified" : "failed its check") : badge("still", "unverified");
  return h("ul", { class: "lineage", "aria-label": "Lineage" }, h("li", {}, from), h("li", {}, verdict), served.length ? served : h("li", {}, h("span", { class: "quiet" }, "no endpoint")));
}

function remove(v, draw, note) {
  return button("Delete", async () => {
    const used = v.endpoints.map((e) => e.endpoint).join(", ");
    const text = used ? `${used} serves it, and could not be built again without it.` : "Its weights go, unless another version has the same. The number is not used again.";
    if (!await confirm({ title: `Delete ${v.name}:${v.version}?`, text, action: "Delete", typed: used ? v.name : "", danger: true })) return;
    const force = used ? "?force=1" : "";
    await tell(note, () => api.del(`/models/${segments(v.name)}/versions/${v.version}${force}`));
    await draw();
  }, { kind: "small danger", "aria-label": `Delete version ${v.version} of ${v.name}` });
}

async function tell(note, work) {
  try { await work(); replace(note); } catch (error) { replace(note, errorCard(error)); note.scrollIntoView({ block: "nearest" }); }
}
