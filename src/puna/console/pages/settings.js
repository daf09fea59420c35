// An endpoint's settings: those that act at once, those that make a revision, and those that need a build.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { button, check, confirm, errorCard, field, select, toast } from "../ui.js";
import { secretsPart, variablesPart, volumesPart } from "./deploy_runtime.js";
import { machinePart } from "./machine.js";

const LIVE = { min_replica: ["Replicas at least", "0: none while nobody calls"], max_replica: ["Replicas at most", ""], scale_down_delay_s: ["Idle seconds before a replica goes", ""],
  evict_after_s: ["Seconds that one may sleep", "0: none sleeps, it goes at once"], inference_time_s: ["Seconds a request may take", ""], max_queue: ["Requests that may wait", "more are refused with 429"] };
const REVISION = { container_concurrency: ["Requests at once per replica", "0: chosen by the engine"], startup_timeout_s: ["Seconds a start may take", ""] };
const WORDS = { is_dedicated: "whole GPU", gpu_type: "machine", env: "variables", secrets: "secrets", volumes: "volumes", replace: "replacing", zygote: "imports kept", auto_rebuild: "automatic rebuild", poll_s: "polling", git: "repository" };
const AT_ONCE = new Set([...Object.keys(LIVE), "replace", "zygote", "git", "auto_rebuild", "poll_s"]);

const same = (a, b) => JSON.stringify(sorted(a)) === JSON.stringify(sorted(b));
const sorted = (value) => (value && typeof value === "object" && !Array.isArray(value) ? Object.fromEntries(Object.entries(value).sort(([a], [b]) => (a < b ? -1 : 1))) : value);

export async function settings(e, page) {
  const [machine, runtimes, secrets, volumes] = await Promise.all(["/machine", "/runtimes", "/secrets", "/volumes"].map((path) => api.get(path, { signal: page.signal }).catch(() => ({ items: [], gpus: [] }))));
  const s = e.settings;
  const plan = { env: Object.entries(s.env), secrets: new Set(s.secrets), volumes: { ...s.volumes }, gpu: s.gpu_type, dedicated: s.is_dedicated };
  const numbers = (all) => Object.fromEntries(Object.keys(all).map((key) => [key, h("input", { type: "number", min: 0, step: "any", required: true, value: s[key] })]));
  const [live, slow] = [numbers(LIVE), numbers(REVISION)];
  const zygote = check("Keep a process with the app's imports done, for faster starts from zero", s.zygote);
  const instead = check("Where there is no room for both, stop the old revision before the new one starts", s.replace);
  const repository = s.git?.url ? repositoryPart(s, secrets.items) : null;
  const note = h("div", {});
  const pending = h("p", { class: "quiet", "aria-live": "polite" }, "Nothing is changed.");
  const changed = () => {
    const now = { ...s };
    for (const [key, input] of Object.entries({ ...live, ...slow })) now[key] = input.value === "" ? null : Number(input.value);
    Object.assign(now, { zygote: zygote.box.checked, replace: instead.box.checked, is_dedicated: plan.dedicated, gpu_type: plan.gpu, env: Object.fromEntries(plan.env.filter(([key]) => key)), secrets: [...plan.secrets], volumes: plan.volumes }, repository?.values());
    return Object.fromEntries(Object.entries(now).filter(([key, value]) => !same(value, s[key])));
  };
  const tell = () => {
    const keys = Object.keys(changed());
    const words = (list) => list.map((key) => (LIVE[key] ?? REVISION[key])?.[0].toLowerCase() ?? WORDS[key] ?? key).join(", ");
    const [now, later] = [keys.filter((k) => AT_ONCE.has(k)), keys.filter((k) => !AT_ONCE.has(k))];
    replace(pending, keys.length ? [now.length > 0 && `At once: ${words(now)}. `, later.length > 0 && `By a new revision: ${words(later)}.`] : "Nothing is changed.");
  };
  const save = button("Save", async () => {
    const body = changed();
    if (!Object.keys(body).length) { toast("Nothing was changed"); return; }
    try {
      const empties = Object.entries(body).filter(([, value]) => value === null);
      if (empties.length) throw { message: `${(LIVE[empties[0][0]] ?? REVISION[empties[0][0]])[0]} is empty`, hint: "type a number" };
      const made = await api.patch(`/endpoints/${part(e.name)}`, body);
      Object.assign(s, made.settings);
      toast(made.changed_revision ? `Saved; revision ${made.changed_revision} is coming` : "Saved; it acts at once");
      replace(note);
      tell();
    } catch (error) { replace(note, errorCard(error)); note.scrollIntoView({ block: "nearest" }); }
  }, { kind: "primary" });
  const grid = (all, inputs) => h("div", { class: "grid" }, Object.entries(all).map(([key, [label, hint]]) => field(label, inputs[key], { hint })));
  const form = h("div", { class: "stack", oninput: tell, onchange: tell, onclick: () => setTimeout(tell) },
    h("section", { class: "card stack" }, h("h2", {}, "At once"), h("p", { class: "quiet" }, "These act on what runs, without a new revision."), grid(LIVE, live), zygote, instead, repository?.nodes),
    h("section", { class: "card stack" }, h("h2", {}, "By a new revision, without a build"), h("p", { class: "quiet" }, "The same app starts beside the old revision with these, and takes over when it is ready."), machinePart(plan, machine, { anyway: true }).nodes, grid(REVISION, slow),
      variablesPart(plan), secretsPart(plan, secrets.items), volumesPart(plan, volumes.items)));
  return [form, h("section", { class: "card stack saving" }, note, h("div", { class: "head slim" }, pending, save)), runtimePart(e, runtimes.items), deletion(e)];
}

function repositoryPart(s, secrets) {
  const branch = h("input", { type: "text", spellcheck: "false", value: s.git.branch ?? "", placeholder: "its main branch" });
  const folder = h("input", { type: "text", spellcheck: "false", value: s.git.folder ?? "", placeholder: "the top" });
  const credential = select([["", "none: it is public"], ...secrets.map((set) => [set.name, set.name])], s.git.credential ?? "");
  const auto = check("Build again after every push to the branch", s.auto_rebuild);
  const poll = h("input", { type: "number", min: 0, value: s.poll_s });
  const values = () => {
    const now = { branch: branch.value.trim(), folder: folder.value.trim(), credential: credential.value };
    const git = Object.fromEntries(Object.entries(now).filter(([key, value]) => value !== (s.git[key] ?? "")));
    return { auto_rebuild: auto.box.checked, poll_s: Number(poll.value), git: Object.keys(git).length ? git : s.git };
  };
  return { values, nodes: [h("h3", {}, "Repository"), h("p", {}, h("code", {}, s.git.url)), h("div", { class: "grid" }, field("Branch", branch), field("Folder in it", folder), field("Secret that opens it", credential), field("Ask it every so many seconds", poll, { hint: "0: never; a webhook tells" })), auto,
    h("p", { class: "quiet" }, "Another branch or folder is built at the next push, or with Rebuild.")] };
}

function runtimePart(e, runtimes) {
  const newest = e.revisions.find((r) => r.number === e.revision) ?? e.revisions[0];
  if (!newest) return null;
  const now = newest.runtime ? `${newest.runtime}:${newest.runtime_version}` : "";
  const choose = select([["", "the file beside the app, or the default packages"], ...runtimes.map((r) => [`${r.name}:${r.version}`, `${r.name}, version ${r.version} (${r.status})`])], now);
  const note = h("div", {});
  const build = button("Build with it", async () => {
    if (choose.value === now) { toast("It runs with that already"); return; }
    const [name, version] = choose.value.split(":");
    try {
      const made = await api.patch(`/endpoints/${part(e.name)}`, { runtime: name, ...(version && { runtime_version: Number(version) }) });
      const build = made.revisions.find((r) => r.number === made.changed_revision)?.build_id;
      location.hash = build ? `#/builds/${build}` : `#/endpoints/${part(e.name)}/revisions`;
    } catch (error) { replace(note, errorCard(error)); }
  });
  return h("section", { class: "card stack" }, h("h2", {}, "Runtime: by a new build"), h("p", { class: "quiet" }, "An endpoint stays on its version of a runtime until it is told here. The same source is built on the other."), field("Runtime", choose), note, build);
}

function deletion(e) {
  return h("section", { class: "card stack" }, h("h2", {}, "Delete"), h("p", {}, "Its replicas stop, its revisions, logs and figures go. Volumes, runtimes, models and secrets stay."), button("Delete endpoint", async () => {
    if (!await confirm({ title: `Delete ${e.name}?`, text: "Its replicas stop, and callers get 404.", action: "Delete", typed: e.name, danger: true })) return;
    await api.del(`/endpoints/${part(e.name)}`);
    location.hash = "#/";
  }, { kind: "danger" }));
}
