// The wizard's first step: files of this computer, a git repository, or a model.

import { fromFiles } from "../archive.js";
import { api } from "../api.js";
import { h, replace } from "../dom.js";
import { plural, short } from "../format.js";
import { button, errorCard, field, select, toast } from "../ui.js";

const PLACES = [
  ["files", "This computer", "a folder, or an archive of it", () => ({})],
  ["github", "GitHub", "a repository on github.com", () => ({ host: "https://github.com/" })],
  ["gitlab", "GitLab", "a repository on gitlab.com", () => ({ host: "https://gitlab.com/" })],
  ["git", "Another git server", "over https or ssh", () => ({ host: "" })],
  ["model", "A model", "published here, or on the Hugging Face Hub", () => ({})],
];
const MISSING = { files: ["There is no source yet", "choose a folder or an archive"], git: ["No repository was named", "its owner/name, or its whole address"], model: ["No model was named", "owner/name, as it was published"] };

export function sourceStep(plan, known, page, tell) {
  plan.provider ??= plan.place;
  const status = h("div", { "aria-live": "polite" }, plan.info && found(plan));
  const box = h("div", { class: "stack" });
  const work = { plan, known, page, status, tell, taken: plan.source ? wish(plan) : "" };
  const draws = { files: drawFiles, git: drawGit, model: drawModel };
  const choose = (value) => {
    const place = ["files", "model"].includes(value) ? value : "git";
    if (place !== plan.place) forget(work);
    Object.assign(plan, { place, provider: value });
    replace(box, draws[place](work, PLACES.find(([key]) => key === value)[3]()));
  };
  const tile = ([value, title, note]) => h("label", { class: "tile" }, h("input", { type: "radio", name: "place", value, checked: plan.provider === value, onchange: () => choose(value) }),
    h("span", {}, h("strong", {}, title), h("small", {}, note)));
  choose(plan.provider);
  return {
    nodes: [h("fieldset", { class: "tiles" }, h("legend", {}, "The app comes from"), PLACES.map(tile)), box, status],
    valid: async () => {
      const [message, hint] = MISSING[plan.place];
      if (plan.place !== "files" && !(plan.place === "git" ? plan.git.url : plan.model.name)) throw { message, hint };
      if (plan.place !== "files" && wish(plan) !== work.taken) await fetchIt(work);
      if (!plan.source) throw plan.problem ?? { message, hint };
      if (plan.info.error) throw plan.info.error;
    },
  };
}

const wish = (plan) => JSON.stringify([plan.place, plan.place === "git" ? plan.git : plan.model]);

function forget({ plan, status, tell }) {
  Object.assign(plan, { source: null, info: null, problem: null, commit: "", name: "" });
  replace(status);
  tell(null);
}

// What `make` answers is looked at, shown, and taken over into the plan.
async function take(work, saying, make) {
  const { plan, status, page, tell } = work;
  forget(work);
  replace(status, h("p", { class: "quiet" }, saying));
  try {
    const made = await make();
    plan.info = await api.get(`/sources/${made.digest}`, { signal: page.signal });
    Object.assign(plan, { source: made.digest, commit: made.commit ?? "", text: plan.info.runtime ?? "" });
    const project = { ...plan.info.project, ...made.settings };
    plan.name = (made.name ?? project.name ?? "").toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "").slice(0, 48);
    plan.dedicated = project.is_dedicated ?? true;
    if (project.gpu_type === "cpu") plan.gpu = "cpu";
    for (const key of Object.keys(plan.numbers)) if (typeof project[key] === "number") plan.numbers[key] = project[key];
    plan.env = Object.entries(project.env ?? {}).map(([k, v]) => [k, String(v)]);
    replace(status, found(plan));
  } catch (error) {
    if (error.name === "AbortError") return;
    plan.problem = error;
    replace(status);
    tell(error);
  }
}

function found(plan) {
  if (plan.info.error) return errorCard(plan.info.error);
  const what = { files: "Uploaded", git: `Commit ${short(plan.commit)}`, model: "The model's app" }[plan.place];
  return h("p", {}, `${what}: ${plural(plan.info.files.length, "file")}; the structure is fine.`);
}

async function fetchIt(work) {
  const { plan } = work;
  const [path, body, saying] = plan.place === "git" ? ["/sources/from-git", plan.git, "Fetching the repository…"] : ["/sources/from-model", { model: plan.model.name, engine: plan.model.engine }, "Looking for the model…"];
  const asked = wish(plan);
  await take(work, saying, () => api.post(path, body));
  work.taken = plan.source ? asked : "";
}

function drawFiles(work) {
  const upload = async (files) => {
    if (!files.length) return;
    const named = files[0].webkitRelativePath?.split("/")[0] || files[0].name.replace(/\.(zip|tgz|tar\.gz)$/i, "");
    await take(work, "Packing and uploading…", async () => {
      const made = await api.put("/sources", await fromFiles(files));
      return made;
    });
    // Without an inferless.yaml the name would be that of the snapshot's folder.
    if (work.plan.name === "files") work.plan.name = named.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
  };
  const folder = h("input", { type: "file", webkitdirectory: true, onchange: (e) => upload(e.target.files) });
  const archive = h("input", { type: "file", accept: ".zip,.tgz,.gz", onchange: (e) => upload(e.target.files) });
  const zone = h("div", { class: "drop" }, field("A folder with app.py", folder), field("Or a .zip or .tar.gz of it", archive, { hint: "It can also be dropped here." }));
  zone.addEventListener("dragover", (e) => { e.preventDefault(); zone.classList.add("over"); });
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (e) => { e.preventDefault(); zone.classList.remove("over"); upload(e.dataTransfer.files); });
  return zone;
}

function drawGit(work, { host }) {
  const { git } = work.plan;
  const text = (key, props = {}) => h("input", { type: "text", value: git[key], spellcheck: "false", autocapitalize: "off", oninput: (e) => { git[key] = e.target.value.trim(); }, ...props });
  const short = host && git.url.startsWith(host) ? git.url.slice(host.length) : git.url;
  const address = text("url", { value: short, placeholder: host ? "owner/name" : "https://git.example.com/owner/name", required: true,
    oninput: (e) => { const said = e.target.value.trim(); git.url = said && host && !/^(\w+:\/\/|git@)/.test(said) ? host + said.replace(/^\/+/, "") : said; } });
  const opens = h("div", {});
  const drawSets = () => replace(opens, field("Opened with", select([["", "nothing: it is public"], ...work.known.secrets.map((s) => [s.name, `${s.name} (${s.keys.join(", ")})`])], git.credential,
    { onchange: (e) => { git.credential = e.target.value; } }), { hint: "A secret set with GIT_TOKEN, or GIT_SSH_KEY for a deploy key." }));
  drawSets();
  return h("div", { class: "stack" }, h("div", { class: "grid" }, field("Repository", address, { wide: true }), field("Branch", text("branch", { placeholder: "its main branch" })),
    field("Folder", text("folder", { placeholder: "its top" })), opens), newAccount(work, drawSets), button("Fetch", () => fetchIt(work), { kind: "small" }));
}

function newAccount({ plan, known }, draw) {
  const name = h("input", { type: "text", spellcheck: "false", placeholder: "my-git" });
  const kind = select([["GIT_TOKEN", "Access token"], ["GIT_SSH_KEY", "Deploy key (ssh, private part)"]], "GIT_TOKEN");
  const value = h("textarea", { class: "mono", rows: 2, spellcheck: "false", autocomplete: "off" });
  const box = h("details", {}, h("summary", {}, "Add an account"), h("div", { class: "grid" }, field("Account's name", name), field("Opens with", kind), field("Token or key", value, { wide: true })),
    button("Keep it", async () => {
      // A key file ends with a line break, or ssh does not read it.
      const said = kind.value === "GIT_SSH_KEY" ? `${value.value.trim()}\n` : value.value.trim();
      const made = await api.post("/secrets", { name: name.value.trim(), values: { [kind.value]: said } });
      known.secrets = [...known.secrets.filter((s) => s.name !== made.name), made];
      plan.git.credential = made.name;
      value.value = "";
      box.open = false;
      draw();
      toast(`${made.name} is kept, encrypted`);
    }, { kind: "small" }));
  return box;
}

function drawModel(work) {
  const { model } = work.plan;
  const names = [...new Set(work.known.models.map((m) => m.name))];
  const name = h("input", { type: "text", value: model.name, list: "model-names", placeholder: "owner/name", spellcheck: "false", autocapitalize: "off", oninput: (e) => { model.name = e.target.value.trim(); } });
  const engine = select([["auto", "chosen for this machine"], ["vllm", "vLLM"], ["transformers", "transformers"]], model.engine, { onchange: (e) => { model.engine = e.target.value; } });
  return h("div", { class: "stack" }, h("div", { class: "grid" }, field("Model", name, { hint: names.length ? `${plural(names.length, "model")} published here; others are looked for on the Hub.` : "Nothing is published here yet; the Hub is asked." }),
    field("Engine", engine)), h("datalist", { id: "model-names" }, names.map((n) => h("option", { value: n }))), button("Look", () => fetchIt(work), { kind: "small" }));
}
