// The same call as code: curl, Puna's client, OpenAI's.

import { h } from "../dom.js";
import { shellQuote } from "../format.js";
import { code } from "../ui.js";

// A value as Python writes it.
export function python(value) {
  if (value === null || value === undefined) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${JSON.stringify(k)}: ${python(v)}`).join(", ")}}`;
  return JSON.stringify(value); // numbers and strings are written alike
}

const curl = (url, body) => `curl -sN ${url} \\\n  -H "Authorization: Bearer $PUNA_KEY" -H 'Content-Type: application/json' \\\n  -d ${shellQuote(JSON.stringify(body))}`;

export function ofInputs(endpoint, body, streams = false) {
  const url = endpoint.url.replace(/\/infer$/, streams ? "/generate_stream" : "/infer");
  const client = `import os\nfrom puna import Client\n\nwith Client(url="${new URL(endpoint.url).origin}", key=os.environ["PUNA_KEY"]) as client:\n    print(client.infer("${endpoint.name}", ${python(body.inputs ?? [])}))`;
  return [["curl", curl(url, body)], ["Python", client]];
}

export function ofChat(endpoint, body) {
  const origin = new URL(endpoint.url).origin;
  const { model, messages, stream, stream_options: _, ...rest } = body;
  const more = Object.entries({ ...rest, ...(stream ? { stream } : {}) }).map(([k, v]) => `, ${k}=${python(v)}`).join("");
  const ask = `client.chat.completions.create(\n    model="${model}", messages=${python(messages)}${more}\n)`;
  const print = stream ? `for part in ${ask}:\n    print(part.choices[0].delta.content or "", end="", flush=True)` : `print(${ask}.choices[0].message.content)`;
  return [["curl", curl(`${origin}/v1/chat/completions`, body)], ["OpenAI's client", `import os\nfrom openai import OpenAI\n\nclient = OpenAI(base_url="${origin}/v1", api_key=os.environ["PUNA_KEY"])\n${print}`]];
}

export const panels = (snippets) => snippets.map(([title, text]) => h("section", { class: "card" }, h("h2", {}, title), code(text)));
