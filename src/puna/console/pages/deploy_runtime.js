// The wizard's fourth step: runtime, automatic rebuild, environment variables, secrets, volumes.

import { api } from "../api.js";
import { h, replace } from "../dom.js";
import { plural } from "../format.js";
import { button, check, errorCard, field, select } from "../ui.js";

export function runtimeStep(plan, known) {
  return {
    nodes: [runtimePart(plan, known.runtimes), plan.place === "git" && rebuildPart(plan), variablesPart(plan), secretsPart(plan, known.secrets), volumesPart(plan, known.volumes)],
    valid: async () => {
      if (plan.runtime === "new") await api.post("/lint/runtime", { yaml: plan.text });
      const odd = plan.env.find(([key, value]) => (key ? !/^[A-Za-z_][A-Za-z0-9_]*$/.test(key) : value));
      if (odd) throw { message: `${odd[0] || "Nothing"} is not a variable's name`, hint: "letters, digits and underscores, not a digit first" };
    },
  };
}

function runtimePart(plan, runtimes) {
  const options = [["", plan.info.runtime ? "The file beside the app" : "None: the default packages"],
    ...runtimes.map((r) => [`${r.name}:${r.version}`, `${r.name}, version ${r.version} (${r.status})`]), ["new", "A new one, uploaded or pasted"]];
  const area = h("textarea", { class: "mono", rows: 9, spellcheck: "false", value: plan.text, oninput: (e) => { plan.text = e.target.value; } });
  const lint = h("div", { "aria-live": "polite" });
  const look = async () => {
    try {
      const { packages, python_version: python } = await api.post("/lint/runtime", { yaml: plan.text });
      replace(lint, h("p", {}, `Fine: ${plural(packages.length, "package")}, Python ${python ?? "as Puna's own"}.`));
    } catch (error) { replace(lint, errorCard(error)); }
  };
  const upload = h("input", { type: "file", accept: ".yaml,.yml", onchange: async (e) => { if (e.target.files[0]) { area.value = plan.text = await e.target.files[0].text(); await look(); } } });
  const text = h("div", { class: "stack" }, field("Upload a runtime file", upload), field("Runtime file", area), button("Check", look, { kind: "small" }), lint);
  const show = () => { text.hidden = plan.runtime !== "new"; };
  show();
  return h("div", { class: "stack" }, field("Runtime", select(options, plan.runtime, { onchange: (e) => { plan.runtime = e.target.value; show(); } })), text);
}

function rebuildPart(plan) {
  const box = check("Build again after every push to the branch", plan.autoRebuild);
  const poll = h("input", { type: "number", min: 0, value: plan.poll_s, oninput: (e) => { plan.poll_s = Number(e.target.value); } });
  const asked = field("Ask the repository every so many seconds", poll, { hint: "0: it calls the webhook, whose address and secret the endpoint's page shows." });
  const show = () => { asked.hidden = !plan.autoRebuild; };
  box.box.addEventListener("change", () => { plan.autoRebuild = box.box.checked; show(); });
  show();
  return h("section", { class: "stack" }, h("h3", {}, "Automatic rebuild"), box, asked);
}

export function variablesPart(plan) {
  const pairs = h("div", { class: "pairs" });
  const pair = (entry) => h("div", { class: "pair" }, h("input", { type: "text", "aria-label": "Variable's name", placeholder: "NAME", spellcheck: "false", value: entry[0], oninput: (e) => { entry[0] = e.target.value.trim(); } }),
    h("input", { type: "text", "aria-label": "Variable's value", placeholder: "value", spellcheck: "false", value: entry[1], oninput: (e) => { entry[1] = e.target.value; } }),
    h("button", { type: "button", "aria-label": `Remove the variable ${entry[0]}`, onclick: () => { plan.env = plan.env.filter((other) => other !== entry); draw(); } }, "Remove"));
  const draw = () => replace(pairs, plan.env.map(pair));
  draw();
  return h("section", { class: "stack" }, h("h3", {}, "Environment variables"), pairs, button("Add a variable", async () => {
    plan.env.push(["", ""]);
    draw();
    pairs.lastElementChild.querySelector("input").focus();
  }, { kind: "small" }));
}

export function secretsPart(plan, secrets) {
  const sets = secrets.map((s) => {
    const one = check(`${s.name} (${s.keys.join(", ")})`, plan.secrets.has(s.name));
    one.box.addEventListener("change", () => (one.box.checked ? plan.secrets.add(s.name) : plan.secrets.delete(s.name)));
    return one;
  });
  return h("section", { class: "stack" }, h("h3", {}, "Secrets"), sets.length ? sets : h("p", { class: "quiet" }, "There are none; the Secrets page makes them."));
}

export function volumesPart(plan, volumes) {
  if (!volumes.length) return null;
  const rows = volumes.map((v) => {
    const one = check(v.name, v.name in plan.volumes);
    const path = h("input", { type: "text", "aria-label": `Where ${v.name} is mounted`, placeholder: `/var/nfs-mount/${v.name}`, spellcheck: "false", value: plan.volumes[v.name] ?? "", oninput: (e) => { if (one.box.checked) plan.volumes[v.name] = e.target.value.trim(); } });
    one.box.addEventListener("change", () => {
      if (one.box.checked) plan.volumes[v.name] = path.value.trim();
      else delete plan.volumes[v.name];
    });
    return h("div", { class: "row" }, one, path);
  });
  return h("section", { class: "stack" }, h("h3", {}, "Volumes"), rows);
}
