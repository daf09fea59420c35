// One build: its steps with timers, the log as it is written, what went wrong, cancel and retry.

import { api, lines, part } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, seconds } from "../format.js";
import { live } from "../live.js";
import { badge, button, errorCard, row, table, toast } from "../ui.js";

const ENDED = new Set(["succeeded", "failed", "cancelled"]);

export async function buildPage(main, page, id) {
  let build = await api.get(`/builds/${part(id)}`, { signal: page.signal });
  page.title(`Build of ${build.subject}`);
  const top = h("div", { class: "stack" });
  const log = h("pre", { class: "log", tabindex: 0, role: "log", "aria-label": "Build log" });
  const target = build.kind === "revision" ? `#/endpoints/${part(build.subject)}` : "#/runtimes";
  replace(main, h("p", { class: "crumbs" }, h("a", { href: "#/builds" }, "Builds")), h("h1", {}, build.kind === "revision" ? `${build.subject}, revision ${build.number}` : `Runtime ${build.subject}, version ${build.number}`), h("div", { class: "stack below" }, top, log));
  const started = {};
  const draw = () => {
    const now = live.build(id) ?? build;
    build = now;
    const endpoint = build.kind === "revision" ? live.endpoint(build.subject) : null;
    const end = ENDED.has(build.status);
    replace(top, h("div", { class: "row" }, badge(build.status), h("span", { class: "quiet" }, ago(build.created)),
      !end && button("Cancel", async () => { await api.post(`/builds/${part(id)}/cancel`); toast("Cancelled"); }, { kind: "danger small" }),
      end && build.status !== "succeeded" && build.kind === "revision" && button("Retry", async () => {
        const made = await api.post(`/endpoints/${part(build.subject)}/rebuild`);
        location.hash = `#/builds/${made.build_id}`;
      }, { kind: "primary small" }),
      build.status === "succeeded" && h("a", { class: "button primary small", href: `${target}${endpoint ? "/playground" : ""}` }, endpoint ? "Open the playground" : "Open"),
      endpoint && badge(endpoint.state, `endpoint: ${endpoint.label}`)),
    h("ol", { class: "steps" }, build.steps.map((step) => {
      if (step.state === "running") started[step.name] ??= Date.now();
      const took = step.seconds ?? (step.state === "running" ? (Date.now() - started[step.name]) / 1000 : null);
      return h("li", {}, h("span", {}, step.name), h("span", { class: "row" }, seconds(took), badge(step.state)));
    })), build.error && errorCard({ message: build.error, hint: build.hint, detail: build.detail }));
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
  const { items } = await api.get("/builds?limit=200", { signal: page.signal });
  replace(main, h("div", { class: "head" }, h("h1", {}, "Builds")), table("Builds", ["Build", "Of", "State", "When", "Error"], items.map((b) =>
    row(h("a", { href: `#/builds/${b.id}` }, b.id), `${b.kind} ${b.subject} ${b.number}`, badge(b.status), ago(b.created), b.error))));
}
