// What was asked of endpoints and what they held of GPUs, by endpoint, key or day; as CSV for spreadsheets.

import { api, part, send } from "../api.js";
import { chart } from "../chart.js";
import { h, replace } from "../dom.js";
import { count, seconds } from "../format.js";
import { button, cards, code, download, empty, field, row, select } from "../ui.js";

const SINCE = [["24h", "the last day"], ["7d", "the last 7 days"], ["30d", "the last 30 days"], ["365d", "the last year"]];
const BY = [["endpoint", "endpoint"], ["key", "key"], ["day", "day"], ["endpoint,key", "endpoint and key"], ["day,endpoint", "day and endpoint"], ["hour", "hour"]];
const HOURS_S = 3600;

const gpu = (s) => (s ? `${(s / HOURS_S).toFixed(s < 360 ? 4 : 2)} h` : "0");
const start = (item, by) => new Date(item.start * 1000).toLocaleString(undefined, by.includes("hour") ? { dateStyle: "medium", timeStyle: "short", timeZone: "UTC" } : { dateStyle: "medium", timeZone: "UTC" });

export async function usagePage(main, page) {
  const body = h("div", { class: "stack" });
  replace(main, h("div", { class: "head" }, h("h1", {}, "Usage")), body);
  await draw(body, page, "");
}

// The same for one endpoint, as a tab of its page.
export async function usage(e, page) {
  const body = h("div", { class: "stack" });
  await draw(body, page, e.name);
  return body;
}

async function draw(body, page, endpoint) {
  const since = select(SINCE, "7d");
  const by = select(BY.filter(([key]) => !endpoint || !key.includes("endpoint")), endpoint ? "day" : "endpoint");
  const out = h("div", { class: "stack", "aria-live": "polite" });
  const query = (words) => `since=${since.value}&by=${words}${endpoint ? `&endpoint=${part(endpoint)}` : ""}`;
  const fill = async () => {
    const words = since.value === "24h" ? "hour" : "day";
    const [found, days] = await Promise.all([query(by.value), query(words)].map((q) => api.get(`/usage?${q}`, { signal: page.signal })));
    replace(out, found.items.length ? shown(found, days, by.value.split(","), words) : nothing(endpoint));
  };
  since.addEventListener("change", fill);
  by.addEventListener("change", fill);
  replace(body, h("section", { class: "card" }, h("div", { class: "row low" }, field("Since", since), field("By", by), button("Download CSV", async () => {
    const reply = await send("GET", `/api/v1/usage.csv?${query(by.value)}`);
    download(`puna-usage${endpoint ? `-${endpoint}` : ""}.csv`, await reply.blob());
  })), h("p", { class: "quiet" }, "By whole hours in UTC. GPU time is seconds times the share of a GPU that replicas held, busy or not.")), out);
  await fill();
}

function nothing(endpoint) {
  return empty("Nothing was used in that time", h("p", {}, endpoint ? "Call it, from the playground or with a key; the hour's figures stand here within seconds." : "Each request and each GPU-second of a replica is counted here, by endpoint and key."),
    endpoint ? h("a", { class: "button primary", href: `#/endpoints/${part(endpoint)}/playground` }, "Open the playground") : code("puna call my-app prompt=\"What is AI?\"\npuna usage"));
}

function shown(found, days, by, words) {
  const total = found.total ?? {};
  const of = (key, divisor = 1) => days.items.map((item) => [item.start, item[key] / divisor]).sort(([a], [b]) => a - b);
  const label = (x) => start({ start: x }, words);
  const name = { endpoint: (i) => (i.endpoint ? h("a", { href: `#/endpoints/${part(i.endpoint)}/usage` }, i.endpoint) : "–"), key: (i) => i.key_name || i.key || "without a key", day: (i) => start(i, by), hour: (i) => start(i, by) };
  const titles = { endpoint: "Endpoint", key: "Key", day: "Day", hour: "Hour" };
  return [h("div", { class: "halves" }, chart("Requests", [{ name: "requests", points: of("requests") }, { name: "failed", points: of("failed") }], label), chart("GPU time", [{ name: "GPU hours", points: of("gpu_s", HOURS_S) }], label, "h")),
    cards("Usage", [...by.map((b) => titles[b]), "Requests", "Failed", "On replicas", "GPU time"], [...found.items.map((i) => row(...by.map((b) => name[b](i)), count(i.requests), count(i.failed), seconds(i.infer_s), gpu(i.gpu_s))),
      row("In all", ...by.slice(1).map(() => ""), count(total.requests), count(total.failed), seconds(total.infer_s), gpu(total.gpu_s))])];
}
