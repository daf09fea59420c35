// One build: its steps with timers, the log as it is written, what went wrong, cancel and retry.

import { api, lines, part } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, seconds } from "../format.js";
import { live } from "../live.js";
import { badge, button, cards, empty, errorCard, keepingFocus, row, toast } from "../ui.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

// What a build is of: its title, where it leads when it has succeeded, and the words of that link.
export function about({ kind, subject, number, arguments: told = {} }) {
  return { revision: { title: `${subject}, revision ${number}`, target: `#/endpoints/${part(subject)}`, opens: "Open" },
    runtime: { title: `Runtime ${subject}, version ${number}`, target: `#/runtimes/${part(subject)}/${number}`, opens: "Open" },
    merge: { title: `Merge of ${subject}`, target: `#/runs/${part(subject)}`, opens: "Open the run" },
    publish: { title: `Publish ${subject}${told.name ? ` as ${told.name}` : ""}`, target: `#/models${told.name ? `?name=${part(told.name)}` : ""}`, opens: "Open the models" } }[kind];
}

function retry(build) {
  if (build.kind === "merge") return api.post(`/runs/${part(build.subject)}/merge`, build.arguments);
  if (build.kind === "publish") return api.post(`/runs/${part(build.subject)}/publish`, build.arguments);
  return api.post(`/endpoints/${part(build.subject)}/rebuild`);
}

export async function buildPage(main, page, id) {
  let build = await api.get(`/builds/${part(id)}`, { signal: page.signal });
  page.title(about(build).title);
  const top = h("div", { class: "stack" });
  const log = h("pre", { class: "log", tabindex: 0, role: "log", "aria-label": "Build log" });
  const { title, target, opens } = about(build);
  replace(main, h("p", { class: "crumbs" }, h("a", { href: "#/builds" }, "Builds")), h("h1", {}, title), h("div", { class: "stack" }, top, log));
  const started = {};
  const draw = () => {
    const now = live.build(id) ?? build;
    build = now;
    const endpoint = build.kind === "revision" ? live.endpoint(build.subject) : null;
    const end = ENDED.has(build.status);
    keepingFocus(top, () => replace(top, h("div", { class: "row" }, badge(build.status), h("span", { class: "quiet" }, ago(build.created)),
      !end && button("Cancel", async () => { await api.post(`/builds/${part(id)}/cancel`); toast("Cancelled"); }, { kind: "danger small" }),
      end && build.status !== "succeeded" && build.kind !== "runtime" && button("Retry", async () => {
        const made = await retry(build);
        location.hash = `#/builds/${made.build_id}`;
      }, { kind: "primary small" }),
      build.status === "succeeded" && h("a", { class: "button primary small", href: `${target}${endpoint ? "/playground" : ""}` }, endpoint ? "Open the playground" : opens),
      endpoint && badge(endpoint.state, `endpoint: ${endpoint.label}`)),
    h("ol", { class: "steps" }, build.steps.map((step) => {
      if (step.state === "running") started[step.name] ??= Date.now();
      const took = step.seconds ?? (step.state === "running" ? (Date.now() - started[step.name]) / 1000 : null);
      return h("li", {}, h("span", {}, step.name), h("span", { class: "row" }, seconds(took), badge(step.state)));
    })), build.error && errorCard({ message: build.error, hint: build.hint, detail: build.detail })));
  };
  page.watch(draw);
  const timer = setInterval(() => { if (!ENDED.has(build.status)) draw(); }, 1000);
  page.closed(() => clearInterval(timer));
  draw();
  (async () => {
    for await (const line of lines(`/api/v1/builds/${part(id)}/log?follow=1`, { signal: page.signal })) {
      const low = log.scrollHeight - log.scrollTop - log.clientHeight < 40;
      log.append(`${line}\n`);
      if (low) log.scrollTop = log.scrollHeight;
    }
  })().catch(() => {});
}

export async function buildsPage(main, page) {
  const list = h("div", {});
  replace(main, h("div", { class: "head" }, h("h1", {}, "Builds")), list);
  const { items } = await api.get("/builds?limit=200", { signal: page.signal });
  let before = "";
  const draw = () => {
    const known = new Map(items.map((b) => [b.id, b]));
    for (const b of live.builds()) known.set(b.id, b);
    const all = [...known.values()].sort((a, b) => b.created - a.created);
    const now = JSON.stringify(all);
    if (now === before) return;
    before = now;
    replace(list, all.length ? cards("Builds", ["Build", "State", "When", "Took", "Error"], all.map((b) => row(h("a", { href: `#/builds/${b.id}` }, about(b).title), badge(b.status), ago(b.created), seconds(took(b)) || "–", b.error || "–")))
      : empty("Nothing has been built yet", h("p", {}, "Every deploy, runtime, merge and publishing is a build, with its steps and its log."), h("p", {}, h("a", { class: "button primary", href: "#/deploy" }, "Deploy an app"))));
  };
  page.watch(draw);
  draw();
}

const took = (b) => b.steps.reduce((sum, step) => sum + (step.seconds ?? 0), 0) || null;
