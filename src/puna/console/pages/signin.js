// Signing in: a pasted key, or the one-time link that `puna up` prints.

import { api, ApiError, session } from "../api.js";
import { h, replace } from "../dom.js";
import { errorCard, field } from "../ui.js";

export async function open(token) {
  const made = await api.post("/console/sessions", { token });
  session.key = made.key;
}

export function signIn(main, done, problem = null) {
  const input = h("input", { type: "password", autocomplete: "off", spellcheck: "false", required: true, placeholder: "puna_…" });
  const note = h("div", {}, problem && errorCard(problem));
  const submit = h("button", { type: "submit", class: "primary" }, "Sign in");
  const form = h("form", { class: "stack", onsubmit: async (event) => {
    event.preventDefault();
    submit.disabled = true;
    try {
      await api.get("/whoami", { key: input.value.trim() });
      session.key = input.value.trim();
      done();
    } catch (error) {
      const kind = error instanceof ApiError && error.status === 403;
      replace(note, errorCard(kind ? { message: "This key opens inference only", hint: "the console needs one of scope deploy or admin" } : error));
      input.focus();
    } finally { submit.disabled = false; }
  } }, field("API key", input, { hint: "Of scope deploy or admin. It stays in this tab, and is gone when the tab closes." }), submit);
  replace(main, h("div", { class: "signin stack" }, h("h1", {}, "Sign in"), note, h("div", { class: "card" }, form),
    h("p", { class: "quiet" }, "On the machine that runs Puna, ", h("code", {}, "puna console"), " prints a link that signs you in; ",
      h("code", {}, "puna key create"), " makes a key.")));
  if (!problem) input.focus();
}
