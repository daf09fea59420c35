// What the server says is so, as it says it: one stream for the whole page, and whoever wants to know.

import { eventsOf, lines, session } from "./api.js";

const endpoints = new Map();
const builds = new Map();
const listeners = new Set();
let running = null;
export let status = "closed"; // closed, connecting, open

export const live = {
  endpoints: () => [...endpoints.values()].sort((a, b) => a.name.localeCompare(b.name)),
  endpoint: (name) => endpoints.get(name),
  build: (id) => builds.get(id),
  builds: () => [...builds.values()],
  get loaded() { return status === "open"; },
};

export function watch(listener) {
  listeners.add(listener);
  return () => listeners.delete(listener);
}

function tell() { for (const listener of [...listeners]) listener(); }

function take(event, first) {
  if (first) { endpoints.clear(); builds.clear(); }
  for (const endpoint of event.endpoints) endpoints.set(endpoint.name, endpoint);
  for (const build of event.builds) builds.set(build.id, build);
  for (const name of event.gone) endpoints.delete(name);
}

export function start() {
  stop();
  const control = (running = new AbortController());
  (async () => {
    let pause = 250;
    while (!control.signal.aborted && session.key) {
      try {
        let first = true;
        for await (const { event, data } of eventsOf(lines("/api/v1/events/stream", { signal: control.signal }))) {
          if (event !== "state") continue;
          take(JSON.parse(data), first);
          first = false;
          pause = 250;
          status = "open";
          tell();
        }
      } catch { /* the next round tries again; a refused key has signed the tab out already */ }
      if (control.signal.aborted) return;
      status = "connecting";
      tell();
      await new Promise((done) => setTimeout(done, pause));
      pause = Math.min(pause * 2, 5000);
    }
  })();
}

export function stop() {
  running?.abort();
  running = null;
  status = "closed";
}
