// Training runs: the list as they go, and one of them with its curves, its replies, and what can be made of it.

import { api, part } from "../api.js";
import { chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { ago, bytes, count, figure, plural, seconds, short, when } from "../format.js";
import { live } from "../live.js";
import { badge, bar, button, cards, check, code, dialog, empty, errorCard, facts, field, keepingFocus, row, select, toast } from "../ui.js";

const FIGURES = [["Loss", ["loss", "eval_loss"], "", 1], ["Learning rate", ["lr"], "", 1], ["Speed", ["tokens_per_s"], "tokens/s", 1],
  ["Gradient norm", ["grad_norm"], "", 1], ["Memory", ["memory_bytes"], "GiB", 2 ** 30]];
const NAMES = { loss: "training", eval_loss: "held out", lr: "lr", tokens_per_s: "tokens/s", grad_norm: "norm", memory_bytes: "peak" };
const ENDED = new Set(["succeeded", "failed", "cancelled"]);

const time = (run) => (run.state === "running" ? (run.seconds_left === null ? "" : `${seconds(run.seconds_left)} left`) : run.seconds === null ? "" : seconds(run.seconds));
const modelLink = (v) => h("a", { href: `#/models?name=${part(v.name)}` }, `${v.name}:${v.version}`);

// Calls `draw` now and then, sooner while something moves; never while somebody reads in what it would replace.
function again(page, moving, draw) {
  let timer = 0;
  const next = () => { timer = setTimeout(async () => { await draw().catch(() => {}); if (!page.signal.aborted) next(); }, moving() ? 2000 : 4000); };
  page.closed(() => clearTimeout(timer));
  next();
}

export async function runsPage(main, page) {
  const list = h("div", {});
  replace(main, h("div", { class: "head" }, h("h1", {}, "Runs")), list);
  let items = [];
  let before = "";
  const draw = async () => {
    ({ items } = await api.get("/runs", { signal: page.signal }));
    const now = JSON.stringify(items);
    if (now === before) return;
    before = now;
    replace(list, items.length ? rows(items) : nothing());
  };
  await draw();
  again(page, () => items.some((run) => run.state === "running"), draw);
}

function nothing() {
  return empty("Nothing has been trained yet", h("p", {}, "A run fine-tunes a model as a recipe says. Look first at what it would learn and take, then start it:"),
    code("puna train examples/llama3/recipe.yaml --dry-run\npuna train examples/llama3/recipe.yaml"),
    h("p", {}, "It appears here with its curves as soon as it has begun."));
}

function rows(items) {
  return cards("Runs", ["Run", "State", "Progress", "Loss", "Held-out loss", "Tokens/s", "Time", "Published as"], [...items].reverse().map((run) => row(
    h("a", { href: `#/runs/${part(run.name)}` }, run.name), badge(run.state),
    h("span", {}, bar(`Progress of ${run.name}`, run.step, run.steps), h("small", {}, `${count(run.step)} of ${count(run.steps)}`)),
    figure(run.last.loss), figure(run.last.eval_loss), run.last.tokens_per_s ? count(Math.round(run.last.tokens_per_s)) : "–", time(run),
    run.published.length ? run.published.map((v, i) => [i > 0 && ", ", modelLink(v)]) : "–")));
}

export async function runPage(main, page, name) {
  let run = await api.get(`/runs/${part(name)}`, { signal: page.signal });
  name = run.name;
  page.title(name);
  const state = h("span", {});
  const actions = h("div", { class: "row" });
  const top = h("div", { class: "stack" });
  const curves = h("div", { class: "halves" });
  const rest = h("div", { class: "stack" });
  const smooth = check("Smooth", run.metrics.length > 60);
  smooth.box.addEventListener("change", () => drawCurves());
  replace(main, h("div", { class: "head" }, h("div", { class: "titles" }, h("p", { class: "crumbs" }, h("a", { href: "#/runs" }, "Runs")), h("div", { class: "row" }, h("h1", {}, name), state)), actions),
    h("div", { class: "stack" }, top, h("div", { class: "head slim" }, h("h2", {}, "Curves"), smooth), curves, rest));
  const drawCurves = () => {
    if (curves.querySelector("details[open]")) return;
    const shown = FIGURES.map((all) => panel(run, all, smooth.box.checked)).filter(Boolean);
    replace(curves, shown.length ? shown : h("p", { class: "quiet" }, "The first figures come with the first logged step."));
  };
  const builds = () => run.builds.map((build) => live.build(build.id) ?? build);
  const drawTop = () => {
    replace(state, badge(run.state));
    keepingFocus(actions, () => replace(actions, buttons(run, builds())));
    replace(top, progress(run), run.error && errorCard({ message: run.error, hint: run.state === "interrupted" ? `puna train RECIPE --resume ${name}` : "" }), jobs(builds()), merged(run));
  };
  let told = "";
  const draw = async () => {
    const after = run.metrics.at(-1)?.step ?? -1;
    const now = await api.get(`/runs/${part(name)}?after=${after}`, { signal: page.signal });
    const fresh = now.metrics.length > 0;
    run = { ...now, metrics: [...run.metrics, ...now.metrics] };
    drawTop();
    if (fresh) drawCurves();
    const words = JSON.stringify([run.samples, run.compared, run.state]);
    if (words !== told && !rest.querySelector("details[open]")) { told = words; replace(rest, samples(run), learnt(run)); }
  };
  told = JSON.stringify([run.samples, run.compared, run.state]);
  drawTop();
  drawCurves();
  replace(rest, samples(run), learnt(run));
  let ended = builds().filter((b) => ENDED.has(b.status)).length;
  page.watch(() => {
    drawTop();
    const now = builds().filter((b) => ENDED.has(b.status)).length;
    if (now !== ended) { ended = now; draw().catch(() => {}); }
  });
  again(page, () => run.state === "running", draw);
}

function buttons(run, builds) {
  const newest = run.published.at(-1);
  const busy = (kind) => builds.some((b) => b.kind === kind && !ENDED.has(b.status));
  const first = !run.adapter ? "it has not finished" : "";
  return [button("Merge", () => merge(run), { kind: run.merge ? "" : "primary", disabled: Boolean(first) || busy("merge"), title: first }),
    button("Publish", () => publish(run), { kind: run.merge && !newest ? "primary" : "", disabled: Boolean(first) || busy("publish"), title: first }),
    newest ? h("a", { class: "button primary", href: `#/deploy?model=${part(newest.name)}` }, "Deploy")
      : button("Deploy", async () => {}, { disabled: true, title: first || "publish it first" })];
}

function progress(run) {
  const share = run.steps ? Math.round((100 * run.step) / run.steps) : 0;
  return h("section", { class: "card stack" }, h("div", {}, bar(`Progress of ${run.name}`, run.step, run.steps), h("p", {}, `Step ${count(run.step)} of ${count(run.steps)}, ${share} %`, run.state === "running" && run.seconds_left !== null && `, ${seconds(run.seconds_left)} left`)),
    facts([["Training loss", run.last.loss && figure(run.last.loss)], ["Held-out loss", run.last.eval_loss && figure(run.last.eval_loss)], ["Speed", run.last.tokens_per_s && `${count(Math.round(run.last.tokens_per_s))} tokens/s`],
      ["Memory", run.last.memory_bytes && bytes(run.last.memory_bytes)], [run.state === "running" ? "Runs for" : "Took", seconds(run.seconds)], ["Began", run.started && when(run.started)], ["Base", run.recipe.base], ["Adapter", run.adapter && h("code", {}, short(run.adapter))]]));
}

function jobs(builds) {
  const shown = builds.slice(-4).reverse();
  return shown.length > 0 && h("ul", { class: "steps", "aria-label": "Merges and publishings" }, shown.map((b) => h("li", {}, h("span", {}, h("a", { href: `#/builds/${b.id}` }, b.kind === "merge" ? "Merge" : `Publishing${b.arguments.name ? ` as ${b.arguments.name}` : ""}`), h("small", {}, ` ${ago(b.created)}`)), h("span", { class: "row" }, b.error && h("small", {}, b.error), badge(b.status)))));
}

function merged(run) {
  const v = run.merge?.verification;
  return v && h("section", { class: "card" }, h("h2", {}, "Merged model"), h("div", { class: "row" }, badge(v.passed ? "succeeded" : "failed", v.passed ? "verified: it is the trained model" : "differs from the trained model"),
    run.published.length > 0 && h("span", {}, "Published as ", run.published.map((p, i) => [i > 0 && ", ", modelLink(p)]))),
  v.reasons?.length > 0 && h("ul", {}, v.reasons.map((reason) => h("li", {}, reason))),
  h("p", { class: "quiet" }, run.merge.why), facts([["Held-out loss, merged", figure(v.merged_loss)], ["Held-out loss, trained", figure(v.trained_loss)], ["KL divergence", figure(v.mean_kl)], ["Same likeliest token", v.same_top !== undefined && `${(100 * v.same_top).toFixed(1)} %`], ["Replies equal", v.replies_equal], ["Folder", h("code", {}, run.merge.model)]]));
}

function panel(run, [title, keys, unit, divisor], smoothed) {
  const series = keys.map((key) => ({ name: NAMES[key], points: run.metrics.filter((m) => typeof m[key] === "number").map((m) => [m.step, m[key] / divisor]) })).filter((s) => s.points.length);
  if (!series.length) return null;
  const shown = smoothed ? series.map((s) => (s.points.length > 8 ? { ...s, raw: s.points, points: averaged(s.points) } : s)) : series;
  return chart(title, shown, (x) => `step ${x}`, unit);
}

// An exponential average whose memory is a twentieth of the curve, without the pull of its start.
function averaged(points) {
  const keep = 1 - 1 / Math.max(4, points.length / 20);
  let sum = 0;
  let weight = 0;
  return points.map(([x, y]) => { sum = sum * keep + y; weight = weight * keep + 1; return [x, sum / weight]; });
}

function samples(run) {
  if (!run.samples.length) return null;
  const said = (title, text) => h("div", { class: "said" }, h("h4", {}, title), text || h("span", { class: "quiet" }, "–"));
  return h("section", { class: "card" }, h("h2", {}, "Replies before and after"), run.samples.map((s) => h("div", { class: "sample" }, h("p", { class: "prompt" }, s.prompt),
    h("div", { class: "thirds" }, said("Before", s.before), said("After", s.after), said("From the data", s.reference)))));
}

function learnt(run) {
  const r = run.recipe;
  const d = run.data;
  const plan = run.plan;
  return h("div", { class: "halves" }, h("section", { class: "card" }, h("h2", {}, "Recipe"), facts([["Base", r.base], ["LoRA", r.lora && `rank ${r.lora.lora_r}, alpha ${r.lora.lora_alpha}`], ["Learning rate", figure(r.training?.learning_rate)], ["Schedule", r.training?.lr_scheduler_type],
    ["Rows a step", plan.rows_per_step], ["Epochs", plan.epochs && figure(plan.epochs)], ["4 bits", r.quantization?.load_in_4bit ? "yes" : "no"], ["Computes in", plan.compute_dtype], ["Device", plan.device_name]]),
    h("details", {}, h("summary", {}, "All of it"), code(JSON.stringify(r, null, 2)))),
  h("section", { class: "card stack" }, h("h2", {}, "Data"), d.rows_train === undefined ? h("p", { class: "quiet" }, "The dataset is no longer here.")
    : facts([["Rows", `${count(d.rows_train)} to learn, ${count(d.rows_test)} held out`], ["Tokens", `${count(d.tokens_train)} to learn`], ["Learnt of them", d.labelled_share !== undefined && `${(100 * d.labelled_share).toFixed(0)} %`], ["Median length", d.lengths && plural(d.lengths.p50, "token")], ["Longest", d.lengths && plural(d.lengths.max, "token")], ["Dataset", h("code", {}, short(run.dataset))]]),
  run.compared.length > 0 && [h("h3", {}, "Planned and measured"), cards("Planned and measured", ["", "Planned", "Measured", "Off by"], run.compared.map((c) => row(c.name, `${figure(c.planned)} ${c.unit}`, `${figure(c.measured)} ${c.unit}`, `${c.error > 0 ? "+" : ""}${Math.round(100 * c.error)} %`)))]));
}

async function merge(run) {
  const base = select([["", `as the recipe says (${run.recipe.merge?.base ?? "auto"})`], ["auto", "auto: whichever base loses less, measured"], ["original", "original weights"], ["dequantised", "dequantised weights, as trained"]], "");
  const made = await dialog({ title: `Merge ${run.name}`, action: "Merge", body: [h("p", {}, "The adapter and its base become one model, which is verified against the trained one. It runs in a process of its own; you may leave this page."), field("Base", base),
    h("p", { class: "quiet" }, "The same from a shell: ", h("code", {}, `puna merge ${run.name}`))],
  work: () => api.post(`/runs/${part(run.name)}/merge`, base.value ? { base: base.value } : {}) });
  if (made) location.hash = `#/builds/${made.build_id}`;
}

async function publish(run) {
  const name = h("input", { type: "text", required: true, spellcheck: "false", placeholder: "owner/name", value: run.published.at(-1)?.name ?? run.recipe.publish?.name ?? `puna/${run.recipe.name}` });
  const aliases = h("input", { type: "text", spellcheck: "false", placeholder: "champion" });
  const hub = h("input", { type: "text", spellcheck: "false", placeholder: "owner/name" });
  const what = select([["model", run.merge ? "the merged model" : "the merged model: merge it first"], ["adapter", "the adapter alone: many share one engine"]], run.merge ? "model" : "adapter");
  const isPrivate = check("Keep it private there", true);
  const force = check("Although its verification failed", false);
  const failed = run.merge && !run.merge.verification.passed;
  const made = await dialog({ title: `Publish ${run.name}`, action: "Publish", body: [field("What", what), field("Name", name, { hint: "owner/name; the same name again makes the next version" }), field("Aliases", aliases, { hint: "Beside `latest`, with commas" }),
    failed && force, h("details", {}, h("summary", {}, "Also push to the Hugging Face Hub"), h("div", { class: "stack" }, field("Repository", hub, { hint: "With the HF_TOKEN that `puna up` was started with" }), isPrivate))],
  work: async () => {
    if (what.value === "model" && !run.merge) throw { message: `${run.name} has not been merged`, hint: "merge it first, or publish the adapter alone" };
    const body = { name: name.value.trim(), aliases: aliases.value.split(/[\s,]+/).filter(Boolean), adapter: what.value === "adapter", force: force.box.checked };
    if (hub.value.trim()) Object.assign(body, { hub: hub.value.trim(), private: isPrivate.box.checked });
    return api.post(`/runs/${part(run.name)}/publish`, body);
  } });
  if (made) { toast("Publishing"); location.hash = `#/builds/${made.build_id}`; }
}
