// The playground: a form made from the endpoint's schema, its reply, and where the time went.

import { eventsOf, linesOf, part, send } from "../api.js";
import { h, replace } from "../dom.js";
import { milliseconds } from "../format.js";
import { check, code, errorCard, facts, field } from "../ui.js";

const INT = /^U?INT/;
const FLOAT = /^(FP|BF)/;

function controlOf(input) {
  const example = Array.isArray(input.example) ? input.example : [];
  const scalar = !input.shape || (input.shape.length === 1 && input.shape[0] === 1);
  if (!scalar) return h("textarea", { class: "mono", value: JSON.stringify(example) });
  if (input.datatype === "BOOL") return h("select", {}, ["true", "false"].map((v) => h("option", { value: v, selected: String(example[0]) === v }, v)));
  if (INT.test(input.datatype) || FLOAT.test(input.datatype)) return h("input", { type: "number", step: "any", value: example[0] ?? "" });
  return h("textarea", { value: example[0] ?? "" });
}

export function bodyOf(schema, values) {
  const inputs = [];
  for (const input of schema.inputs) {
    const text = values[input.name];
    if (text === undefined || (text === "" && !input.required)) continue;
    const scalar = !input.shape || (input.shape.length === 1 && input.shape[0] === 1);
    const data = !scalar ? [JSON.parse(text)].flat(Infinity) : input.datatype === "BOOL" ? [text === "true"]
      : INT.test(input.datatype) || FLOAT.test(input.datatype) ? [Number(text)] : [text];
    const shape = scalar ? [1] : input.shape.map((size) => (size === -1 ? data.length : size));
    inputs.push({ name: input.name, shape: schema.flags?.batch_size ? [1, ...shape] : shape,
      datatype: input.datatype === "STRING" ? "BYTES" : input.datatype, data });
  }
  return { inputs };
}

export const exampleBody = (schema) => bodyOf(schema, Object.fromEntries(schema.inputs.filter((i) => i.example).map((i) => {
  const scalar = !i.shape || (i.shape.length === 1 && i.shape[0] === 1);
  return [i.name, scalar ? String(i.example[0]) : JSON.stringify(i.example)];
})));

export function playground(endpoint, signal) {
  if (!endpoint.schema) return h("p", { class: "quiet" }, "The form appears once a revision serves: its schema says what it takes.");
  const schema = endpoint.schema;
  const controls = schema.inputs.map((input) => [input, controlOf(input)]);
  const stream = check("Stream the reply", Boolean(schema.flags?.streaming));
  const out = h("div", { class: "stack", "aria-live": "polite" });
  const go = h("button", { type: "submit", class: "primary" }, "Send");
  let running = null;
  signal.addEventListener("abort", () => running?.abort());
  const form = h("form", { class: "stack", onsubmit: async (event) => {
    event.preventDefault();
    if (running) { running.abort(); return; }
    running = new AbortController();
    go.textContent = "Stop";
    try { await ask(endpoint, bodyOf(schema, Object.fromEntries(controls.map(([i, c]) => [i.name, c.value]))), stream.box.checked, out, running.signal); }
    catch (error) { if (error.name !== "AbortError") replace(out, errorCard(error)); } finally { running = null; go.textContent = "Send"; }
  } }, controls.map(([input, control]) => field(input.name, control, { hint: `${input.datatype} ${JSON.stringify(input.shape ?? [1])}${input.required ? "" : ", optional"}` })),
  h("div", { class: "row" }, go, stream));
  return h("div", { class: "halves" }, h("div", { class: "card" }, h("h2", {}, "Request"), form), h("div", { class: "card" }, h("h2", {}, "Reply"), out));
}

async function ask(endpoint, body, streaming, out, signal) {
  const began = performance.now();
  replace(out, h("p", { class: "quiet" }, endpoint.state === "idle" ? "Waking a replica…" : "Waiting…"));
  const path = `/v2/models/${part(endpoint.name)}/${streaming ? "generate_stream" : "infer"}`;
  const reply = await send("POST", path, { body, signal });
  const timing = (raw) => facts([["Queue", ms(reply, "queue")], ["Wake", ms(reply, "wake")], ["Infer", ms(reply, "infer")],
    ["Tier", reply.headers.get("x-puna-tier")], ["In all", milliseconds(performance.now() - began)],
    ["Request", reply.headers.get("x-puna-request-id")], ["", raw]]);
  if (streaming && reply.headers.get("content-type")?.includes("event-stream")) {
    const text = h("pre", { class: "reply", tabindex: 0 });
    replace(out, text);
    for await (const { data } of eventsOf(linesOf(reply))) text.append(`${data}\n`);
    out.append(timing());
    return;
  }
  const answer = await reply.json();
  replace(out, (answer.outputs ?? []).map((o) => h("div", {}, h("h3", {}, o.name, h("small", {}, ` ${o.datatype}`)),
    h("pre", { class: "reply", tabindex: 0 }, o.data.length === 1 ? String(o.data[0]) : JSON.stringify(o.data)))), timing(),
  h("details", {}, h("summary", {}, "JSON"), code(JSON.stringify(answer, null, 2))));
}

function ms(reply, name) {
  const text = reply.headers.get(`x-puna-${name}-ms`);
  return text === null ? "" : milliseconds(Number(text));
}
