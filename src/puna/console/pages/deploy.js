// The deploy wizard: source, details, machine, runtime, review; then the build.

import { fromFiles } from "../archive.js";
import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { bytes, plural, shellQuote } from "../format.js";
import { button, check, code, errorCard, facts, field, say } from "../ui.js";

const STEPS = ["Source", "Details", "Machine", "Runtime and environment", "Review"];

export async function deployPage(main, page) {
  const [machine, runtimes, secrets, volumes] = await Promise.all(["/machine", "/runtimes", "/secrets", "/volumes"].map((path) => api.get(path, { signal: page.signal }).catch(() => ({ items: [], gpus: [] }))));
  const plan = { source: null, info: null, name: "", gpu: machine.gpus.length ? "any" : "cpu", dedicated: true, runtime: "", text: "", env: [], secrets: new Set(), volume: "",
    numbers: { min_replica: 0, max_replica: 1, inference_time_s: 180, scale_down_delay_s: 600, container_concurrency: 0 } };
  const list = h("ol", { class: "progress", "aria-label": "Steps" });
  const heading = h("h2", { tabindex: -1 });
  const body = h("div", { class: "stack" });
  const note = h("div", {});
  const back = h("button", { type: "button", onclick: () => go(at - 1) }, "Back");
  let at = 0;
  let valid = async () => {};
  const next = button("Next", async () => {
    replace(note);
    try { await valid(); } catch (error) { replace(note, errorCard(error)); return; }
    if (at < STEPS.length - 1) go(at + 1);
  }, { kind: "primary" });
  replace(main, h("div", { class: "head" }, h("h1", {}, "Deploy an app")), list, h("div", { class: "card stack" }, heading, body, note, h("div", { class: "row end" }, back, next)));
  const draws = [source, details, machineStep, runtimeStep, review];
  function go(step, focus = true) {
    at = step;
    replace(list, STEPS.map((title, index) => h("li", { class: index < at ? "past" : "", "aria-current": index === at ? "step" : null }, title)));
    heading.textContent = STEPS[at];
    back.hidden = at === 0;
    next.textContent = at === STEPS.length - 1 ? "Deploy" : "Next";
    replace(note);
    replace(body, draws[at]());
    if (focus) { heading.focus(); say(`Step ${at + 1} of ${STEPS.length}: ${STEPS[at]}`); }
  }

  function source() {
    const status = h("div", { "aria-live": "polite" }, plan.info && found(plan.info));
    const take = async (files) => {
      if (!files.length) return;
      replace(status, h("p", { class: "quiet" }, "Packing and uploading…"));
      try {
        const { digest } = await api.put("/sources", await fromFiles(files));
        plan.info = await api.get(`/sources/${digest}`);
        plan.source = digest;
        const p = plan.info.project;
        if (p) {
          // Without an inferless.yaml the name would be that of the snapshot's folder.
          const own = p.name === "files" ? (files[0].webkitRelativePath.split("/")[0] || files[0].name.replace(/\.(zip|tgz|tar\.gz)$/i, "")) : p.name;
          plan.name ||= own.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");
          plan.dedicated = p.is_dedicated;
          for (const key of Object.keys(plan.numbers)) if (p[key] !== null && p[key] !== undefined) plan.numbers[key] = p[key];
        }
        plan.text = plan.info.runtime ?? "";
        replace(status, found(plan.info));
      } catch (error) { plan.source = null; replace(status, errorCard(error)); }
    };
    const folder = h("input", { type: "file", webkitdirectory: true, onchange: (e) => take(e.target.files) });
    const archive = h("input", { type: "file", accept: ".zip,.tgz,.gz", onchange: (e) => take(e.target.files) });
    const zone = h("div", { class: "drop" }, field("A folder with app.py", folder), field("Or a .zip or .tar.gz of it", archive, { hint: "It can also be dropped here." }));
    zone.addEventListener("dragover", (e) => { e.preventDefault(); zone.classList.add("over"); });
    zone.addEventListener("dragleave", () => zone.classList.remove("over"));
    zone.addEventListener("drop", (e) => { e.preventDefault(); zone.classList.remove("over"); take(e.dataTransfer.files); });
    valid = async () => {
      if (!plan.source) throw { message: "There is no source yet", hint: "choose a folder or an archive" };
      if (plan.info.error) throw plan.info.error;
    };
    return [zone, status];
  }

  function found(info) {
    return info.error ? errorCard(info.error) : h("p", {}, `Uploaded: ${plural(info.files.length, "file")}; the structure is fine.`);
  }

  function details() {
    const name = h("input", { type: "text", value: plan.name, required: true, spellcheck: "false", oninput: (e) => { plan.name = e.target.value.trim(); } });
    valid = async () => { if (!/^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$/.test(plan.name)) throw { message: "This is not a name", hint: "lower-case letters, digits and dashes, e.g. my-app" }; };
    return [field("Name", name, { hint: "Stands in the address: /v2/models/<name>/infer" }),
      h("div", {}, h("h3", {}, "Inputs"), plan.info.schema ? h("ul", {}, plan.info.schema.map((line) => h("li", {}, h("code", {}, line)))) : h("p", { class: "quiet" }, "They are read when the app is validated.")),
      h("details", {}, h("summary", {}, plural(plan.info.files.length, "file")), h("ul", {}, plan.info.files.map((f) => h("li", {}, h("code", {}, f)))))];
  }

  function machineStep() {
    const tile = (value, title, ...notes) => h("label", { class: "tile" }, h("input", { type: "radio", name: "gpu", value, checked: plan.gpu === value, onchange: () => { plan.gpu = value; } }), h("span", {}, h("strong", {}, title), notes.map((n) => h("small", {}, n))));
    const gpus = Object.values(Object.groupBy(machine.gpus, (gpu) => gpu.name)).map((same) => tile(same[0].name, `${same.length} × ${same[0].name}`,
      `${bytes(same[0].memory_bytes)} each`, ...same.map((g) => `GPU ${g.index}: ${bytes(g.memory_bytes * (1 - g.held))} not booked`)));
    const labels = { min_replica: "Replicas at least", max_replica: "Replicas at most", inference_time_s: "Seconds a request may take", scale_down_delay_s: "Idle seconds before a replica goes", container_concurrency: "Requests at once per replica (0: chosen)" };
    const share = check("A whole GPU (otherwise half of one)", plan.dedicated);
    share.box.addEventListener("change", () => { plan.dedicated = share.box.checked; });
    valid = async () => { if (plan.numbers.min_replica > plan.numbers.max_replica) throw { message: "At least is more than at most", hint: "raise the one or lower the other" }; };
    return [h("fieldset", { class: "tiles" }, h("legend", {}, "Runs on"), gpus, machine.gpus.length > 0 && tile("any", "Any GPU", "whichever has room"), tile("cpu", "CPU only", `${plural(machine.cpus ?? 0, "core")}, ${bytes(machine.memory_bytes)}`)),
      machine.gpus.length > 0 && share, h("div", { class: "grid" }, Object.entries(labels).map(([key, label]) => field(label, h("input", { type: "number", min: 0, value: plan.numbers[key], oninput: (e) => { plan.numbers[key] = Number(e.target.value); } }))))];
  }

  function runtimeStep() {
    const options = [["", plan.info.runtime ? "The file beside the app" : "None: the default packages"], ...runtimes.items.map((r) => [`${r.name}:${r.version}`, `${r.name}, version ${r.version} (${r.status})`]), ["new", "A new one, pasted below"]];
    const area = h("textarea", { class: "mono", rows: 9, spellcheck: "false", value: plan.text, oninput: (e) => { plan.text = e.target.value; } });
    const lint = h("div", { "aria-live": "polite" });
    const text = h("div", { class: "stack" }, field("Runtime file", area), button("Check", async () => {
      try { const { packages, python_version: python } = await api.post("/lint/runtime", { yaml: plan.text }); replace(lint, h("p", {}, `Fine: ${plural(packages.length, "package")}, Python ${python ?? "as Puna's own"}.`)); }
      catch (error) { replace(lint, errorCard(error)); }
    }, { kind: "small" }), lint);
    text.hidden = plan.runtime !== "new";
    const choose = h("select", { onchange: (e) => { plan.runtime = e.target.value; text.hidden = plan.runtime !== "new"; } }, options.map(([v, t]) => h("option", { value: v, selected: v === plan.runtime }, t)));
    const pairs = h("div", { class: "pairs" });
    const pair = (entry) => h("div", { class: "pair" }, h("input", { type: "text", "aria-label": "Variable's name", placeholder: "NAME", value: entry[0], oninput: (e) => { entry[0] = e.target.value.trim(); } }),
      h("input", { type: "text", "aria-label": "Variable's value", placeholder: "value", value: entry[1], oninput: (e) => { entry[1] = e.target.value; } }), h("button", { type: "button", "aria-label": `Remove the variable ${entry[0]}`, onclick: () => { plan.env = plan.env.filter((other) => other !== entry); rows(); } }, "Remove"));
    const rows = () => replace(pairs, plan.env.map(pair));
    rows();
    const sets = secrets.items.map((s) => { const one = check(`${s.name} (${s.keys.join(", ")})`, plan.secrets.has(s.name)); one.box.addEventListener("change", () => (one.box.checked ? plan.secrets.add(s.name) : plan.secrets.delete(s.name))); return one; });
    const volume = h("select", { onchange: (e) => { plan.volume = e.target.value; } }, ["", ...volumes.items.map((v) => v.name)].map((v) => h("option", { value: v, selected: v === plan.volume }, v || "none")));
    valid = async () => { if (plan.runtime === "new") await api.post("/lint/runtime", { yaml: plan.text }); };
    return [field("Runtime", choose), text, h("h3", {}, "Environment variables"), pairs, button("Add a variable", async () => { plan.env.push(["", ""]); rows(); }, { kind: "small" }),
      h("h3", {}, "Secrets"), sets.length ? sets : h("p", { class: "quiet" }, "There are none; the Secrets page makes them."), volumes.items.length > 0 && field("Volume", volume)];
  }

  function settings() {
    const made = { ...plan.numbers, gpu_type: plan.gpu === "any" ? "" : plan.gpu, is_dedicated: plan.dedicated };
    const env = Object.fromEntries(plan.env.filter(([key]) => key));
    if (Object.keys(env).length) made.env = env;
    if (plan.secrets.size) made.secrets = [...plan.secrets];
    if (plan.volume) made.volumes = { [plan.volume]: `/var/nfs-mount/${plan.volume}` };
    return made;
  }

  function review() {
    const s = settings();
    const runtime = plan.runtime === "new" ? plan.name : plan.runtime;
    const words = ["puna deploy .", `--name ${plan.name}`, s.gpu_type && `--gpu ${shellQuote(s.gpu_type)}`, runtime && `--runtime ${runtime.split(":")[0]}`, `--min-replica ${s.min_replica}`, `--max-replica ${s.max_replica}`, `--inference-time ${s.inference_time_s}`, `--scale-down-delay ${s.scale_down_delay_s}`,
      s.container_concurrency > 0 && `--container-concurrency ${s.container_concurrency}`, !s.is_dedicated && "--fractional", runtime.includes(":") && `--runtime-version ${runtime.split(":")[1]}`, plan.volume && `--volume ${plan.volume}`,
      ...Object.entries(s.env ?? {}).map(([k, v]) => `--env ${shellQuote(`${k}=${v}`)}`), ...(s.secrets ?? []).map((name) => `--secret ${name}`)].filter(Boolean);
    valid = async () => {
      let [name, version] = plan.runtime.split(":");
      if (plan.runtime === "new") ({ name, version } = await api.post("/runtimes", { name: plan.name, yaml: plan.text }));
      const made = await api.post("/endpoints", { name: plan.name, source: plan.source, runtime: name || null, runtime_version: version ? Number(version) : null, settings: s });
      location.hash = made.build_id && !made.unchanged ? `#/builds/${part(made.build_id)}` : `#/endpoints/${part(made.endpoint)}`;
    };
    return [facts([["Name", plan.name], ["Runs on", s.gpu_type || "any GPU"], ["Replicas", `${s.min_replica} to ${s.max_replica}`], ["Request limit", `${s.inference_time_s} s`], ["Idle before scale-down", `${s.scale_down_delay_s} s`],
      ["Runtime", runtime || "beside the app"], ["Variables", Object.keys(s.env ?? {}).join(", ") || "none"], ["Secrets", (s.secrets ?? []).join(", ") || "none"]]), h("h3", {}, "The same from a shell, in the app's folder"), code(words.join(" \\\n  "))];
  }
  go(0, false);
}
