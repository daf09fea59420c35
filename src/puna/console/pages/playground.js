// The playground: a form made from the schema, raw JSON or a chat; the reply as it comes, and where the time went.

import { eventsOf, linesOf, part, send } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, count, figure, milliseconds } from "../format.js";
import { button, cards, check, code, errorCard, facts, field, row, select } from "../ui.js";
import { ofChat, ofInputs } from "./snippets.js";

const INT = /^U?INT/;
const FLOAT = /^(FP|BF)/;
const KEPT = 20;
const calls = new Map(); // endpoint -> the last calls of this tab, newest first; gone with it

const isScalar = (input) => !input.shape || (input.shape.length === 1 && input.shape[0] === 1);
const isNumber = (input) => INT.test(input.datatype) || FLOAT.test(input.datatype);

function controlOf(input) {
  const example = Array.isArray(input.example) ? input.example : [];
  if (!isScalar(input)) return h("textarea", { class: "mono", spellcheck: "false", value: JSON.stringify(example) });
  if (input.datatype === "BOOL") return select(["true", "false"], String(example[0]));
  if (isNumber(input)) return h("input", { type: "number", step: INT.test(input.datatype) ? 1 : "any", value: example[0] ?? "" });
  return h("textarea", { value: example[0] ?? "" });
}

export function bodyOf(schema, values) {
  const inputs = [];
  for (const input of schema.inputs) {
    const text = values[input.name];
    if (text === undefined || (text === "" && !input.required)) continue;
    const scalar = isScalar(input);
    const data = !scalar ? [parsed(text, input.name)].flat(Infinity) : input.datatype === "BOOL" ? [text === "true"] : isNumber(input) ? [Number(text)] : [text];
    const shape = scalar ? [1] : input.shape.map((size) => (size === -1 ? data.length : size));
    inputs.push({ name: input.name, shape: schema.flags?.batch_size ? [1, ...shape] : shape, datatype: input.datatype === "STRING" ? "BYTES" : input.datatype, data });
  }
  return { inputs };
}

export const exampleBody = (schema) => bodyOf(schema, Object.fromEntries(schema.inputs.filter((i) => i.example).map((i) => [i.name, isScalar(i) ? String(i.example[0]) : JSON.stringify(i.example)])));

function parsed(text, what, hint = "a list of values, e.g. [1, 2, 3]") {
  try { return JSON.parse(text); } catch (error) { throw { message: `${what} is not JSON: ${error.message}`, hint }; }
}

export function playground(endpoint, signal) {
  if (!endpoint.schema) return h("section", { class: "card" }, h("p", {}, "The form appears once a revision serves: its schema says what it takes."), h("a", { class: "button", href: `#/endpoints/${part(endpoint.name)}/revisions` }, "See its revisions"));
  const modes = { Form: formMode(endpoint), JSON: jsonMode(endpoint), Chat: chatMode(endpoint) };
  const canStream = Boolean(endpoint.schema.flags?.streaming);
  const stream = check("Show the reply as it comes", canStream);
  const out = h("div", { class: "stack", "aria-live": "polite", "aria-atomic": "false" }, h("p", { class: "quiet" }, "The reply appears here, with where its time went."));
  const past = h("div", {});
  const snippets = h("details", {}, h("summary", {}, "As code"));
  const go = h("button", { type: "submit", class: "primary" }, "Send");
  const place = h("div", { class: "stack" });
  let mode = endpoint.schema.inputs.length ? "Form" : "Chat";
  let running = null;
  const asCode = () => {
    if (!snippets.open) return;
    const texts = (() => { try { return modes[mode].snippets(stream.box.checked); } catch (error) { return error.message; } })();
    replace(snippets, h("summary", {}, "As code"), h("div", { class: "stack" }, typeof texts === "string" ? h("p", { class: "quiet" }, texts) : texts.map(([title, text]) => h("div", {}, h("h3", {}, title), code(text)))));
  };
  const choose = (name) => {
    if (name === "JSON") modes.JSON.take(modes.Form.body);
    mode = name;
    for (const other of tabs.children) other.setAttribute("aria-pressed", String(other.textContent === name));
    replace(place, modes[name].nodes);
    asCode();
  };
  const tabs = h("div", { class: "switch", role: "group", "aria-label": "How to ask" }, Object.keys(modes).map((name) => h("button", { type: "button", class: "small", "aria-pressed": String(name === mode), onclick: () => choose(name) }, name)));
  const ask = async () => {
    const call = { at: Date.now() / 1000, mode, stream: stream.box.checked };
    try {
      Object.assign(call, modes[mode].request(call.stream));
      const list = calls.get(endpoint.name) ?? [];
      calls.set(endpoint.name, [call, ...list].slice(0, KEPT));
      running = new AbortController();
      go.textContent = "Stop";
      await modes[mode].read(call, out, running.signal);
    } catch (error) {
      call.outcome = error.name === "AbortError" ? "stopped" : error.status ? `${error.status}` : "failed";
      if (error.name === "AbortError") out.querySelector(".reply")?.classList.remove("live");
      else replace(out, errorCard(error), call.id && facts([["Request", h("code", {}, call.id)]]));
    } finally { running = null; go.textContent = "Send"; drawPast(); asCode(); }
  };
  const again = (call) => {
    stream.box.checked = call.stream;
    if (call.mode === "Chat") { choose("Chat"); modes.Chat.take(call.body); return; }
    choose("JSON");
    modes.JSON.take(() => call.body);
  };
  const drawPast = () => {
    const list = calls.get(endpoint.name) ?? [];
    replace(past, list.length > 0 && h("section", { class: "stack" }, h("h2", {}, "Last calls of this tab"), cards("Last calls", ["When", "Asked", "Outcome", "Took", "Tier", "Request", ""], list.map((call) => row(ago(call.at), call.mode, call.outcome ?? "", call.took === undefined ? "" : milliseconds(call.took), call.tier ?? "",
      call.id ? h("a", { href: `#/endpoints/${part(endpoint.name)}/logs?q=${part(call.id)}` }, h("code", {}, call.id)) : "–", button("Again", async () => again(call), { kind: "small", "aria-label": `Ask again what was asked ${ago(call.at)}` }))))));
  };
  signal.addEventListener("abort", () => running?.abort());
  snippets.addEventListener("toggle", asCode);
  stream.box.addEventListener("change", asCode);
  const form = h("form", { class: "stack", oninput: asCode, onsubmit: (event) => { event.preventDefault(); if (running) running.abort(); else ask(); },
    onkeydown: (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); form.requestSubmit(); } } },
  tabs, place, h("div", { class: "row" }, go, stream, h("small", {}, "Ctrl+Enter sends")), snippets);
  choose(mode);
  drawPast();
  return [h("div", { class: "halves" }, h("section", { class: "card" }, h("h2", {}, "Request"), form), h("section", { class: "card" }, h("h2", {}, "Reply"), out)), past];
}

function formMode(endpoint) {
  const { schema } = endpoint;
  const controls = schema.inputs.map((input) => [input, controlOf(input)]);
  const body = () => bodyOf(schema, Object.fromEntries(controls.map(([i, c]) => [i.name, c.value])));
  return { body, ...inference(endpoint, body), nodes: controls.length ? controls.map(([input, control]) => field(input.name, control, { hint: `${input.datatype} ${JSON.stringify(input.shape ?? [1])}${input.required ? "" : ", optional"}` }))
    : h("p", { class: "quiet" }, "This app declares no inputs: send JSON, or chat where it holds an engine.") };
}

function jsonMode(endpoint) {
  const area = h("textarea", { class: "mono", rows: 14, spellcheck: "false", value: JSON.stringify(exampleBody(endpoint.schema), null, 2) });
  const body = () => parsed(area.value, "The body", "the form fills it in rightly: press Form, then JSON");
  const take = (from) => { try { area.value = JSON.stringify(from(), null, 2); } catch { /* the form is half filled in: what stood here stays */ } };
  return { take, ...inference(endpoint, body), nodes: field("Body", area, { hint: "As KServe v2 has it: inputs with name, shape, datatype and data" }) };
}

// What form and JSON share: an `infer`, or a `generate_stream` that is shown as it comes.
function inference(endpoint, body) {
  return {
    request: (streams) => ({ body: body(), path: `/v2/models/${part(endpoint.name)}/${streams ? "generate_stream" : "infer"}` }),
    snippets: (streams) => ofInputs(endpoint, body(), streams),
    read: async (call, out, signal) => {
      const { reply, began } = await begin(endpoint, call, out, signal);
      if (reply.headers.get("content-type")?.includes("event-stream")) {
        await streamed(reply, call, began, out, (event) => Object.entries(event).filter(([key]) => !["model_name", "model_version", "id"].includes(key)).map(([, value]) => (typeof value === "string" ? value : JSON.stringify(value))).join(""));
        return;
      }
      const answer = await reply.json();
      call.took = performance.now() - began;
      replace(out, (answer.outputs ?? []).map((o) => h("div", {}, h("h3", {}, o.name, h("small", {}, ` ${o.datatype} ${JSON.stringify(o.shape)}`)), h("pre", { class: "reply", tabindex: 0, "aria-label": o.name }, o.data.length === 1 ? String(o.data[0]) : JSON.stringify(o.data)))),
        timings(reply, call), h("details", {}, h("summary", {}, "JSON"), code(JSON.stringify(answer, null, 2))));
    } };
}

function chatMode(endpoint) {
  const list = h("div", { class: "turns" });
  const [most, heat] = [h("input", { type: "number", min: 1, value: 256 }), h("input", { type: "number", min: 0, max: 2, step: 0.1, value: 0.7 })];
  const turn = (role, content) => {
    const whole = h("div", { class: "turn" }, select(["system", "user", "assistant"], role, { "aria-label": "Who says it" }), h("textarea", { rows: 2, "aria-label": "What is said", value: content }), h("button", { type: "button", class: "small plain", "aria-label": "Remove this message", onclick: () => { if (list.children.length > 1) whole.remove(); } }, "×"));
    return whole;
  };
  const say = (role, content = "") => list.append(turn(role, content));
  say("user", "What is AI?");
  const request = (stream) => {
    const messages = [...list.children].map((line) => ({ role: line.children[0].value, content: line.children[1].value })).filter((m) => m.content.trim());
    if (!messages.length) throw { message: "Nothing is said yet", hint: "type a message" };
    const body = { model: endpoint.name, messages, max_tokens: Number(most.value), temperature: Number(heat.value) };
    return { path: "/v1/chat/completions", body: stream ? { ...body, stream: true, stream_options: { include_usage: true } } : body };
  };
  const take = (body) => { list.replaceChildren(); for (const m of body.messages) say(m.role, m.content); };
  return { request, take, snippets: (stream) => ofChat(endpoint, request(stream).body),
    nodes: [h("p", { class: "quiet" }, "OpenAI's way, for apps that hold an engine."), list, h("div", { class: "row" }, button("Add a message", async () => { say("user"); list.lastElementChild.children[1].focus(); }, { kind: "small" })), h("div", { class: "grid" }, field("Most tokens", most), field("Temperature", heat))],
    read: async (call, out, signal) => {
      const { reply, began } = await begin(endpoint, call, out, signal);
      let text = "";
      if (call.stream) text = await streamed(reply, call, began, out, (event) => event.choices?.[0]?.delta?.content ?? "");
      else {
        const answer = await reply.json();
        call.took = performance.now() - began;
        text = answer.choices[0].message.content ?? "";
        const made = answer.usage?.completion_tokens;
        replace(out, h("pre", { class: "reply", tabindex: 0, "aria-label": "Reply" }, text), timings(reply, call, [["Tokens", made], ["Tokens/s", made && figure((1000 * made) / call.took)], ["Ended by", answer.choices[0].finish_reason]]), h("details", {}, h("summary", {}, "JSON"), code(JSON.stringify(answer, null, 2))));
      }
      if (text) { say("assistant", text); say("user"); }
    } };
}

async function begin(endpoint, call, out, signal) {
  const began = performance.now();
  replace(out, h("p", { class: "quiet" }, ["idle", "asleep"].includes(endpoint.state) ? "Waking a replica…" : "Waiting…"));
  const reply = await send("POST", call.path, { body: call.body, signal }).catch((error) => { Object.assign(call, { took: performance.now() - began, id: error.request }); throw error; });
  Object.assign(call, { id: reply.headers.get("x-puna-request-id"), tier: reply.headers.get("x-puna-tier"), outcome: `${reply.status}` });
  return { reply, began };
}

// Events as they come, joined to the text that `textOf` finds in them; speed from the first one on.
async function streamed(reply, call, began, out, textOf) {
  const text = h("pre", { class: "reply live", tabindex: 0, "aria-label": "Reply" });
  const speed = h("div", {});
  replace(out, text, speed);
  let [events, first, whole, tokens, drawn] = [0, null, "", null, 0];
  const draw = () => {
    const now = performance.now();
    call.took = now - began;
    const pace = first !== null && events > 1 ? (1000 * ((tokens ?? events) - 1)) / Math.max(now - first, 1) : null;
    replace(speed, timings(reply, call, [["First event", first === null ? "" : milliseconds(first - began)], [tokens === null ? "Events" : "Tokens", count(tokens ?? events)], [tokens === null ? "Events/s" : "Tokens/s", pace && figure(pace)]]));
  };
  try {
    for await (const { data } of eventsOf(linesOf(reply))) {
      if (data === "[DONE]") continue;
      const event = JSON.parse(data);
      if (event.error) throw { message: event.error.message ?? String(event.error), hint: "the log of the call may say more" };
      if (event.usage) tokens = event.usage.completion_tokens;
      const piece = textOf(event);
      if (piece) { events += 1; first ??= performance.now(); whole += piece; text.append(piece); }
      if (performance.now() - drawn > 200) { drawn = performance.now(); draw(); }
    }
  } finally { text.classList.remove("live"); draw(); }
  return whole;
}

function timings(reply, call, more = []) {
  const ms = (name) => { const text = reply.headers.get(`x-puna-${name}-ms`); return text === null ? "" : milliseconds(Number(text)); };
  return facts([["Queue", ms("queue")], ["Wake", ms("wake")], [call.stream ? "Infer, to the first event" : "Infer", ms("infer")], ["Tier", call.tier], ["In all", milliseconds(call.took)], ...more, ["Request", call.id && h("code", {}, call.id)]]);
}
