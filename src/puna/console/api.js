// The JSON API: every call carries the key of this tab, and every failure is an ApiError with the server's own words.

const SLOT = "puna-key";

export class ApiError extends Error {
  constructor(status, { code = "http", message = "", hint = "", detail = "" } = {}) {
    super(message || `HTTP ${status}`);
    Object.assign(this, { status, code, hint, detail });
  }
}

export const session = {
  get key() { return sessionStorage.getItem(SLOT) ?? ""; },
  set key(text) { text ? sessionStorage.setItem(SLOT, text) : sessionStorage.removeItem(SLOT); },
};

let refused = () => {};
export function onRefused(listener) { refused = listener; }

async function failure(reply) {
  let body = {};
  try { body = (await reply.json()).error; } catch { /* no JSON: the status alone speaks */ }
  return new ApiError(reply.status, typeof body === "string" ? { message: body } : body ?? {});
}

export async function send(method, path, { body, raw, signal, headers = {}, key = session.key } = {}) {
  const all = { ...headers };
  if (key) all.authorization = `Bearer ${key}`;
  if (body !== undefined) all["content-type"] = "application/json";
  let reply;
  try {
    reply = await fetch(path, { method, headers: all, body: raw ?? (body === undefined ? undefined : JSON.stringify(body)), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { code: "unreachable", message: "Puna does not answer", hint: "is `puna up` still running?" });
  }
  if (!reply.ok) {
    const error = Object.assign(await failure(reply), { request: reply.headers.get("x-puna-request-id") });
    if (reply.status === 401 && key === session.key && path.startsWith("/api/")) refused(error);
    throw error;
  }
  return reply;
}

const call = (method) => async (path, body, options = {}) => (await send(method, `/api/v1${path}`, { ...options, body })).json();

// A list comes in pages: all of them are asked for, unless the path says how many items are enough.
async function get(path, options) {
  const first = await call("GET")(path, undefined, options);
  if (!first.next || /[?&]limit=/.test(path)) return first;
  const items = [...first.items];
  for (let { next } = first; next;) {
    const page = await call("GET")(`${path}${path.includes("?") ? "&" : "?"}after=${part(next)}`, undefined, options);
    items.push(...page.items);
    next = page.next;
  }
  return { ...first, items, next: null };
}

export const api = {
  get,
  post: call("POST"),
  set: call("PUT"),
  patch: call("PATCH"),
  del: (path) => call("DELETE")(path),
  text: async (path, options) => (await send("GET", `/api/v1${path}`, options)).text(),
  put: async (path, raw) => (await send("PUT", `/api/v1${path}`, { raw, headers: { "content-type": "application/gzip" } })).json(),
};

export const part = encodeURIComponent;

// Lines of a reply that goes on for as long as it likes.
export async function* lines(path, options = {}) {
  const reply = await send(options.method ?? "GET", path, options);
  yield* linesOf(reply);
}

export async function* linesOf(reply) {
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) break;
      const found = (rest + value).split("\n");
      rest = found.pop();
      yield* found;
    }
    if (rest) yield rest;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Server-sent events, read with fetch so that the bearer key goes along: EventSource cannot send it.
export async function* eventsOf(source) {
  let event = "message";
  let data = [];
  for await (const raw of source) {
    const line = raw.endsWith("\r") ? raw.slice(0, -1) : raw;
    if (line === "") {
      if (data.length) yield { event, data: data.join("\n") };
      event = "message";
      data = [];
    } else if (line.startsWith("data:")) data.push(line.slice(5).trimStart());
    else if (line.startsWith("event:")) event = line.slice(6).trim();
  }
}
