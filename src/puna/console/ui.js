// Parts that pages share: badges, fields, dialogs, errors, tabs, code blocks, toasts.

import { byId, freshId, h, replace } from "./dom.js";

const TONES = {
  ready: "good", serving: "good", succeeded: "good", done: "good", completed: "good", finished: "good",
  building: "busy", deploying: "busy", updating: "busy", starting: "busy", running: "busy", queued: "busy", draining: "busy",
  failing: "bad", failed: "bad", interrupted: "bad",
};

export function badge(state, label = state) {
  return h("span", { class: `badge ${TONES[state] ?? "still"}` }, label);
}

export function toast(text, tone = "good") {
  const note = h("div", { class: `toast ${tone}` }, text);
  byId("toasts").append(note);
  setTimeout(() => note.remove(), 6000);
}

export function say(text) { byId("live").textContent = text; }

export function errorCard(error, ...actions) {
  return h("div", { class: "card error", role: "alert" },
    h("p", { class: "lead" }, error.message || String(error)),
    error.hint && h("p", {}, "Next: ", error.hint),
    error.detail && h("details", {}, h("summary", {}, "Evidence"), h("pre", { tabindex: 0 }, error.detail)),
    actions.length > 0 && h("div", { class: "row" }, actions));
}

// A button that shows that it works, and what went wrong.
export function button(text, action, { kind = "", ...props } = {}) {
  const element = h("button", { type: "button", class: kind, ...props, onclick: async (event) => {
    element.disabled = true;
    element.setAttribute("aria-busy", "true");
    try { await action(event); } catch (error) { if (error.name !== "AbortError") toast(problem(error), "bad"); } finally {
      element.disabled = false;
      element.removeAttribute("aria-busy");
    }
  } }, text);
  return element;
}

export function problem(error) {
  return error.hint ? `${error.message} · ${error.hint}` : error.message || String(error);
}

export function field(label, control, { hint = "", wide = false } = {}) {
  const id = control.id || (control.id = freshId());
  const note = hint ? h("small", { id: `${id}-hint` }, hint) : null;
  if (note) control.setAttribute("aria-describedby", note.id);
  return h("div", { class: wide ? "field wide" : "field" }, h("label", { for: id }, label), control, note);
}

export function check(label, checked, props = {}) {
  const id = freshId();
  const box = h("input", { type: "checkbox", id, checked, ...props });
  const whole = h("div", { class: "check" }, box, h("label", { for: id }, label));
  whole.box = box;
  return whole;
}

export function select(options, value, props = {}) {
  return h("select", { ...props }, options.map((option) => {
    const [key, text] = Array.isArray(option) ? option : [option, option];
    return h("option", { value: key, selected: String(key) === String(value) }, text);
  }));
}

export function code(text, label = "Copy") {
  const pre = h("pre", { tabindex: 0 }, h("code", {}, text));
  return h("div", { class: "code" }, pre, button(label, async () => {
    await navigator.clipboard.writeText(text);
    toast("Copied");
  }, { kind: "small copy" }));
}

// A real dialog: focus stays inside, Escape closes it. Resolves to true, or to what was typed when a word is asked for.
export function confirm({ title, text, action, typed = "", danger = false }) {
  return new Promise((resolve) => {
    const input = typed ? h("input", { type: "text", autocomplete: "off" }) : null;
    const yes = h("button", { type: "submit", class: danger ? "danger" : "primary", disabled: Boolean(typed) }, action);
    input?.addEventListener("input", () => { yes.disabled = input.value !== typed; });
    const heading = freshId("title");
    const dialog = h("dialog", { "aria-labelledby": heading },
      h("form", { onsubmit: (event) => { event.preventDefault(); dialog.close("yes"); } },
        h("h2", { id: heading }, title), h("p", {}, text),
        input && field(`Type ${typed} to go on`, input),
        h("div", { class: "row end" }, h("button", { type: "button", onclick: () => dialog.close() }, "Cancel"), yes)));
    dialog.addEventListener("close", () => { dialog.remove(); resolve(dialog.returnValue === "yes"); });
    document.body.append(dialog);
    dialog.showModal();
  });
}

// A dialog around a form. `work` does what it is for: the dialog closes when that is done, and else says what went wrong.
// Resolves to what `work` returned, or to null when it was left.
export function dialog({ title, body, action, work, danger = false }) {
  return new Promise((resolve) => {
    let result = null;
    const heading = freshId("title");
    const note = h("div", {});
    const yes = h("button", { type: "submit", class: danger ? "danger" : "primary" }, action);
    const form = h("form", { class: "stack", onsubmit: async (event) => {
      event.preventDefault();
      yes.disabled = true;
      yes.setAttribute("aria-busy", "true");
      try { result = await work(); element.close(); } catch (error) { replace(note, errorCard(error)); } finally {
        yes.disabled = false;
        yes.removeAttribute("aria-busy");
      }
    } }, h("h2", { id: heading }, title), body, note, h("div", { class: "row end" }, h("button", { type: "button", onclick: () => element.close() }, "Cancel"), yes));
    const element = h("dialog", { "aria-labelledby": heading }, form);
    element.addEventListener("close", () => { element.remove(); resolve(result); });
    document.body.append(element);
    element.showModal();
  });
}

// A table that becomes a list of cards on a small screen.
export function cards(caption, heads, rows) {
  for (const line of rows) {
    [...line.children].forEach((cell, index) => {
      if (index && heads[index]) cell.dataset.label ??= heads[index];
      if (["", "–"].includes(cell.textContent) && !cell.children.length) cell.classList.add("none");
    });
  }
  const whole = table(caption, heads, rows);
  whole.classList.add("cards-on-small");
  return whole;
}

export const bar = (label, value, most) => h("progress", { "aria-label": label, value: String(value), max: String(Math.max(most, 1)) });

// Draws anew without taking the keyboard's place away: whatever was focused is found again by its words.
export function keepingFocus(element, draw) {
  const held = element.contains(document.activeElement) ? document.activeElement : null;
  const words = held && `${held.tagName}${held.getAttribute("aria-label") ?? held.textContent}`;
  draw();
  if (held && !held.isConnected) [...element.querySelectorAll("a, button, summary, input")].find((other) => `${other.tagName}${other.getAttribute("aria-label") ?? other.textContent}` === words)?.focus();
}

// A blob as a file of the browser's downloads.
export function download(name, blob) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

export function table(caption, heads, rows) {
  return h("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": caption }, h("table", {},
    h("caption", { class: "unseen" }, caption),
    h("thead", {}, h("tr", {}, heads.map((head) => h("th", { scope: "col" }, head)))),
    h("tbody", {}, rows)));
}

export function row(...cells) {
  return h("tr", {}, cells.map((cell, index) => (index === 0 ? h("th", { scope: "row" }, cell) : h("td", {}, cell))));
}

export function facts(pairs) {
  return h("dl", { class: "facts" }, pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")
    .map(([name, value]) => h("div", {}, h("dt", {}, name), h("dd", {}, value))));
}

export function empty(title, ...rest) {
  return h("div", { class: "card empty" }, h("h2", {}, title), rest);
}

export function loadInto(element, work) {
  replace(element, h("p", { class: "quiet" }, "Loading…"));
  return work().then((nodes) => replace(element, nodes), (error) => {
    if (error.name !== "AbortError") replace(element, errorCard(error));
  });
}
