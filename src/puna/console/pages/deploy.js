// The deploy wizard: source, details, machine, runtime and environment, review; then the build.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { plural, shellQuote, short } from "../format.js";
import { button, code, errorCard, facts, field, say } from "../ui.js";
import { machineStep } from "./deploy_machine.js";
import { runtimeStep } from "./deploy_runtime.js";
import { sourceStep } from "./deploy_source.js";

// A step draws itself from the plan, and says with `valid` whether one may go on.
const STEPS = [["Source", sourceStep], ["Details", detailsStep], ["Machine", machineStep], ["Runtime and environment", runtimeStep], ["Review", reviewStep]];
const NUMBERS = { min_replica: 0, max_replica: 1, inference_time_s: 180, scale_down_delay_s: 600, container_concurrency: 0 };

export async function deployPage(main, page) {
  const ask = (path, otherwise) => api.get(path, { signal: page.signal }).catch((error) => {
    if (error.name === "AbortError") throw error;
    return otherwise;
  });
  const [machine, runtimes, secrets, volumes, models] = await Promise.all([
    ask("/machine", { gpus: [] }), ...["/runtimes", "/secrets", "/volumes", "/models"].map((path) => ask(path, { items: [] }))]);
  const known = { machine, runtimes: runtimes.items, secrets: secrets.items, volumes: volumes.items, models: models.items };
  const model = new URLSearchParams(location.hash.split("?")[1] ?? "").get("model") ?? "";
  const plan = { place: model ? "model" : "files", source: null, info: null, name: "", commit: "",
    git: { url: "", branch: "", folder: "", credential: "" }, model: { name: model, engine: "auto" },
    gpu: machine.gpus.length ? "" : "cpu", dedicated: true, numbers: { ...NUMBERS },
    runtime: "", text: "", env: [], secrets: new Set(), volumes: {}, autoRebuild: true, poll_s: 0 };
  const list = h("ol", { class: "progress", "aria-label": "Steps" });
  const heading = h("h2", { tabindex: -1 });
  const body = h("div", { class: "stack" });
  const note = h("div", {});
  const back = h("button", { type: "button", onclick: () => go(at - 1) }, "Back");
  let at = 0;
  let valid = async () => {};
  const tell = (error) => replace(note, error && errorCard(error));
  const next = button("Next", async () => {
    tell(null);
    try { await valid(); } catch (error) {
      if (error.name !== "AbortError") tell(error);
      return;
    }
    if (at < STEPS.length - 1) go(at + 1);
  }, { kind: "primary" });
  replace(main, h("div", { class: "head" }, h("h1", {}, "Deploy an app")), list,
    h("div", { class: "card stack" }, heading, body, note, h("div", { class: "row end" }, back, next)));
  function go(step, focus = true) {
    at = step;
    replace(list, STEPS.map(([title], index) => h("li", { class: index < at ? "past" : "", "aria-current": index === at ? "step" : null }, title)));
    heading.textContent = STEPS[at][0];
    back.hidden = at === 0;
    next.textContent = at === STEPS.length - 1 ? "Deploy" : "Next";
    tell(null);
    const drawn = STEPS[at][1](plan, known, page, tell);
    valid = drawn.valid;
    replace(body, drawn.nodes);
    if (focus) { heading.focus(); say(`Step ${at + 1} of ${STEPS.length}: ${STEPS[at][0]}`); }
  }
  go(0, false);
}

function detailsStep(plan) {
  const address = h("code", {});
  const tell = () => { address.textContent = `${location.origin}/v2/models/${plan.name || "…"}/infer`; };
  const name = h("input", { type: "text", value: plan.name, required: true, spellcheck: "false", oninput: (e) => { plan.name = e.target.value.trim(); tell(); } });
  tell();
  const { schema, files } = plan.info;
  return {
    nodes: [field("Name", name, { hint: "Lower-case letters, digits and dashes." }), h("p", {}, "Address: ", address),
      h("div", {}, h("h3", {}, "Inputs"), schema ? h("ul", {}, schema.map((line) => h("li", {}, h("code", {}, line)))) : h("p", { class: "quiet" }, "They are read when the app is validated.")),
      h("details", {}, h("summary", {}, plural(files.length, "file")), h("ul", {}, files.map((f) => h("li", {}, h("code", {}, f)))))],
    valid: async () => {
      if (!/^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$/.test(plan.name)) throw { message: `${plan.name || "Nothing"} is not a name`, hint: "lower-case letters, digits and dashes, e.g. my-app" };
    },
  };
}

function settingsOf(plan) {
  const made = { ...plan.numbers, gpu_type: plan.gpu, is_dedicated: plan.dedicated };
  const env = Object.fromEntries(plan.env.filter(([key]) => key));
  if (Object.keys(env).length) made.env = env;
  if (plan.secrets.size) made.secrets = [...plan.secrets];
  if (Object.keys(plan.volumes).length) made.volumes = { ...plan.volumes };
  if (plan.place === "git") Object.assign(made, { auto_rebuild: plan.autoRebuild, poll_s: plan.autoRebuild ? plan.poll_s : 0 });
  return made;
}

function commandOf(plan, s) {
  const [runtime, version] = (plan.runtime === "new" ? plan.name : plan.runtime).split(":");
  const { git, model } = plan;
  const source = {
    files: ["puna deploy ."],
    git: [`puna deploy --git ${shellQuote(git.url)}`, git.branch && `--branch ${shellQuote(git.branch)}`, git.folder && `--path ${shellQuote(git.folder)}`,
      git.credential && `--credential ${git.credential}`, s.auto_rebuild && "--auto-rebuild", s.poll_s > 0 && `--poll ${s.poll_s}`],
    model: [`puna deploy --model ${shellQuote(model.name)}`, model.engine !== "auto" && `--engine ${model.engine}`],
  }[plan.place];
  return [...source, `--name ${plan.name}`, s.gpu_type && `--gpu ${shellQuote(s.gpu_type)}`, !s.is_dedicated && "--fractional",
    runtime && `--runtime ${runtime}`, version && `--runtime-version ${version}`, `--min-replica ${s.min_replica}`, `--max-replica ${s.max_replica}`,
    `--inference-time ${s.inference_time_s}`, `--scale-down-delay ${s.scale_down_delay_s}`, s.container_concurrency > 0 && `--container-concurrency ${s.container_concurrency}`,
    ...Object.entries(s.volumes ?? {}).map(([name, path]) => `--volume ${shellQuote(path ? `${name}=${path}` : name)}`),
    ...Object.entries(s.env ?? {}).map(([k, v]) => `--env ${shellQuote(`${k}=${v}`)}`), ...(s.secrets ?? []).map((name) => `--secret ${name}`)].filter(Boolean).join(" \\\n  ");
}

function reviewStep(plan) {
  const s = settingsOf(plan);
  const from = { files: "uploaded files", git: `${plan.git.url}, ${plan.git.branch || "its main branch"} at ${short(plan.commit)}`, model: plan.model.name }[plan.place];
  const rebuild = !s.auto_rebuild ? "when asked" : s.poll_s > 0 ? `on every push; asked every ${s.poll_s} s` : "on every push";
  const runtime = plan.runtime === "new" ? `${plan.name}, a new one` : plan.runtime || "beside the app";
  return {
    nodes: [facts([["Name", plan.name], ["Source", from], ["Runs on", { "": "any GPU", cpu: "CPU only" }[s.gpu_type] ?? s.gpu_type], ["GPU", s.gpu_type === "cpu" ? null : s.is_dedicated ? "a whole one" : "half of one"],
      ["Replicas", `${s.min_replica} to ${s.max_replica}`], ["Request limit", `${s.inference_time_s} s`], ["Idle before scale-down", `${s.scale_down_delay_s} s`],
      ["Runtime", runtime], ["Built again", plan.place === "git" ? rebuild : null], ["Variables", Object.keys(s.env ?? {}).join(", ") || "none"],
      ["Secrets", (s.secrets ?? []).join(", ") || "none"], ["Volumes", Object.keys(s.volumes ?? {}).join(", ") || "none"]]),
    h("h3", {}, plan.place === "files" ? "The same from a shell, in the app's folder" : "The same from a shell"), code(commandOf(plan, s))],
    valid: async () => {
      let [name, version] = plan.runtime.split(":");
      if (plan.runtime === "new") ({ name, version } = await api.post("/runtimes", { name: plan.name, yaml: plan.text }));
      const source = plan.place === "git" ? { git: plan.git } : plan.place === "model" ? { model: plan.model } : { source: plan.source };
      const made = await api.post("/endpoints", { name: plan.name, ...source, runtime: name || null, runtime_version: version ? Number(version) : null, settings: s });
      location.hash = made.build_id && !made.unchanged ? `#/builds/${part(made.build_id)}` : `#/endpoints/${part(made.endpoint)}`;
    },
  };
}
