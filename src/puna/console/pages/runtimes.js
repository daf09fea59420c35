// Runtimes: named environments with immutable versions. The list, one of them, two versions compared, a new one.

import { api, part } from "../api.js";
import { diffTable, diffText } from "../diff.js";
import { h, replace } from "../dom.js";
import { ago, bytes, plural, short, when } from "../format.js";
import { live } from "../live.js";
import { badge, button, cards, code, confirm, empty, errorCard, facts, field, row, select, toast } from "../ui.js";

const STARTER = "build:\n  python_packages: []\n";
const stateOf = (r) => live.build(r.build_id)?.status ?? r.status;

export async function runtimesPage(main, page) {
  const list = h("div", {});
  const draw = async () => {
    const { items } = await api.get("/runtimes", { signal: page.signal });
    const names = [...new Set(items.map((r) => r.name))];
    replace(list, names.length ? cards("Runtimes", ["Runtime", "Newest version", "State", "Versions", "Uploaded"], names.map((name) => {
      const all = items.filter((r) => r.name === name);
      const newest = all.reduce((a, b) => (b.version > a.version ? b : a));
      return row(h("a", { href: `#/runtimes/${part(name)}` }, name), `${newest.version}`, badge(stateOf(newest)), `${all.length}`, ago(newest.created));
    })) : empty("There is no runtime yet", h("p", {}, "A runtime says which packages an app runs with: a file, built once, used by any number of endpoints. Each upload under the same name is a new version; endpoints stay on theirs until told. Upload one below, or from a shell:"),
      code("puna runtime upload inferless-runtime-config.yaml --name my-runtime")));
  };
  const known = () => live.builds().filter((b) => b.kind === "runtime").map((b) => b.id + b.status).join();
  let before = known();
  page.watch(() => { const now = known(); if (now !== before) { before = now; draw().catch(() => {}); } });
  replace(main, h("div", { class: "head" }, h("h1", {}, "Runtimes")), h("div", { class: "stack" }, list, form("", STARTER)));
  await draw();
}

export async function runtimePage(main, page, name, version = "") {
  const query = version ? `?version=${version}` : "";
  const state = h("span", {});
  const actions = h("div", { class: "row" });
  const title = h("span", { class: "quiet" });
  const body = h("div", { class: "stack" });
  let runtime = null;
  const draw = async () => {
    runtime = await api.get(`/runtimes/${part(name)}${query}`, { signal: page.signal });
    page.title(`${name}, version ${runtime.version}`);
    title.textContent = `version ${runtime.version}`;
    replace(state, badge(stateOf(runtime)));
    replace(actions, h("a", { class: "button", href: `#/builds/${runtime.build_id}` }, "Build log"));
    replace(body, runtime.error && errorCard({ message: runtime.error, hint: runtime.hint }),
      h("section", { class: "card" }, facts([["Python", runtime.python_version], ["Packages installed", runtime.packages?.length], ["Size on disk", runtime.size_bytes && bytes(runtime.size_bytes)], ["Digest", h("code", { title: runtime.digest }, short(runtime.digest))], ["Uploaded", when(runtime.created)]]), users(runtime)),
      h("div", { class: "halves" }, h("section", { class: "card" }, h("h2", {}, "File"), code(runtime.yaml)), packages(runtime)), versions(runtime, page));
  };
  await draw();
  const told = () => runtime.versions.map(stateOf).join();
  let before = told();
  page.watch(() => { const now = told(); if (now !== before) { before = now; draw().catch(() => {}); } }); // what is typed below stays
  replace(main, h("div", { class: "head" }, h("div", { class: "titles" }, h("p", { class: "crumbs" }, h("a", { href: "#/runtimes" }, "Runtimes")), h("div", { class: "row" }, h("h1", {}, name), title, state)), actions),
    h("div", { class: "stack" }, body, form(name, runtime.yaml)));
}

function users(runtime) {
  const used = runtime.endpoints;
  return h("p", {}, used.length ? ["Used by ", used.map((u, i) => [i > 0 && ", ", h("a", { href: `#/endpoints/${part(u.endpoint)}/settings` }, u.endpoint), ` (version ${u.version}, revision ${u.revision})`]), "."] : h("span", { class: "quiet" }, "No endpoint uses any of its versions."));
}

function removal(runtime, v) {
  const used = runtime.endpoints.some((u) => u.version === v.version);
  return button("Delete", async () => {
    if (!await confirm({ title: `Delete version ${v.version} of ${v.name}?`, text: "Its environment goes too, when nothing else uses it. The number is not used again.", action: "Delete", danger: true })) return;
    await api.del(`/runtimes/${part(v.name)}/versions/${part(v.version)}`);
    toast(`Version ${v.version} is deleted`);
    location.hash = runtime.versions.length > 1 && v.version !== runtime.version ? `#/runtimes/${part(v.name)}/${runtime.version}?${v.version}` : "#/runtimes";
  }, { kind: "small danger", disabled: used, title: used ? "an endpoint uses it" : null, "aria-label": `Delete version ${v.version}` });
}

function packages(runtime) {
  const all = (runtime.packages ?? []).map((p) => [p.name, p.version]);
  if (!all.length) return h("section", { class: "card" }, h("h2", {}, "Packages"), h("p", { class: "quiet" }, stateOf(runtime) === "succeeded" ? "Only Python itself." : "They are listed here, with their versions, once it is built."));
  const search = h("input", { type: "search", placeholder: "torch" });
  const list = h("div", { class: "scroll tall", tabindex: 0, role: "region", "aria-label": "Packages as installed" });
  const draw = () => {
    const found = all.filter(([n]) => n.toLowerCase().includes(search.value.trim().toLowerCase()));
    replace(list, found.length ? h("table", {}, h("caption", { class: "unseen" }, "Packages as installed"), h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Package"), h("th", { scope: "col" }, "Version"))),
      h("tbody", {}, found.map((p) => row(...p)))) : h("p", { class: "quiet" }, "No package of that name."));
  };
  search.addEventListener("input", draw);
  draw();
  return h("section", { class: "card stack" }, h("h2", {}, "Packages ", h("small", {}, `${all.length}, as installed`)), all.length > 8 && field("Filter", search), list);
}

function versions(runtime, page) {
  const all = [...runtime.versions].sort((a, b) => b.version - a.version);
  const choices = all.map((v) => [v.version, `version ${v.version}`]);
  const from = select(choices, all.find((v) => v.version < runtime.version)?.version ?? all.at(-1).version);
  const to = select(choices, runtime.version);
  const out = h("div", { class: "stack", "aria-live": "polite" });
  const compare = button("Compare", async () => {
    try { replace(out, difference(await api.get(`/runtimes/${part(runtime.name)}/versions/${part(from.value)}/diff/${part(to.value)}`, { signal: page.signal }))); } catch (error) { replace(out, errorCard(error)); }
  });
  return h("section", { class: "card stack" }, h("h2", {}, "Versions"), cards("Versions", ["Version", "State", "Uploaded", "Build", ""], all.map((v) => row(
    v.version === runtime.version ? `${v.version}, shown here` : h("a", { href: `#/runtimes/${part(v.name)}/${v.version}` }, `${v.version}`), badge(stateOf(v)), ago(v.created),
    v.build_id ? h("a", { href: `#/builds/${v.build_id}`, "aria-label": `Build of version ${v.version}` }, "Log") : "–", removal(runtime, v)))),
  all.length > 1 && [h("h3", {}, "Compare two"), h("div", { class: "row low" }, field("From", from), field("To", to), compare), out]);
}

function difference(found) {
  const p = found.packages;
  const changed = p && [...p.removed.map((x) => [x.name, x.version, null]), ...p.added.map((x) => [x.name, null, x.version]), ...p.changed.map((x) => [x.name, x.before, x.after])].sort(([a], [b]) => (a < b ? -1 : 1));
  return [h("h3", {}, "File"), diffText("The file", found.yaml), h("h3", {}, "Packages as installed"), changed ? diffTable("Packages", [`Version ${found.from}`, `Version ${found.to}`], changed) : h("p", { class: "quiet" }, "Both must have been built for that.")];
}

// A new runtime, or a new version of one: pasted, chosen or dropped; checked before it is sent.
function form(known, yaml) {
  const name = h("input", { type: "text", value: known, required: true, spellcheck: "false", placeholder: "my-runtime" });
  const text = h("textarea", { class: "mono", rows: 9, spellcheck: "false", value: yaml });
  const note = h("div", { "aria-live": "polite" });
  const file = h("input", { type: "file", accept: ".yaml,.yml" });
  const take = async (chosen) => {
    if (!chosen) return;
    text.value = await chosen.text();
    if (!name.value) name.value = chosen.name.replace(/\.ya?ml$/i, "").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
    await lint();
  };
  const lint = async () => {
    try {
      const { packages: found, python_version: python } = await api.post("/lint/runtime", { yaml: text.value });
      replace(note, h("p", { class: "good-text" }, `Fine: ${plural(found.length, "package")}, Python ${python ?? "as Puna's own"}.`));
      return true;
    } catch (error) { replace(note, errorCard(error)); return false; }
  };
  file.addEventListener("change", () => take(file.files[0]));
  const whole = h("section", { class: "card stack drop-here" }, h("h2", {}, known ? `A new version of ${known}` : "A new runtime, or a new version"),
    h("div", { class: "grid" }, !known && field("Name", name), field("Choose a file", file, { hint: "Or paste it below, or drop it here." })), field("Runtime file", text), note,
    h("div", { class: "row" }, button("Check", lint), button("Upload and build", async () => {
      if (!await lint()) return;
      try {
        const made = await api.post("/runtimes", { name: name.value.trim(), yaml: text.value });
        location.hash = made.build_id && stateOf(made) !== "succeeded" ? `#/builds/${made.build_id}` : `#/runtimes/${part(made.name)}/${made.version}`;
      } catch (error) { replace(note, errorCard(error)); }
    }, { kind: "primary" })));
  whole.addEventListener("dragover", (event) => { event.preventDefault(); whole.classList.add("over"); });
  whole.addEventListener("dragleave", () => whole.classList.remove("over"));
  whole.addEventListener("drop", (event) => { event.preventDefault(); whole.classList.remove("over"); take(event.dataTransfer.files[0]); });
  return whole;
}
