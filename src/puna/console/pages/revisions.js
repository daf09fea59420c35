// An endpoint's revisions: which serves, what each was made from, and back to an earlier one.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, short } from "../format.js";
import { live } from "../live.js";
import { badge, button, cards, empty, errorCard, keepingFocus, row, toast } from "../ui.js";

const path = (e) => `/endpoints/${part(e.name)}`;

export function revisions(e, page) {
  const list = h("div", {});
  const note = h("div", {});
  const show = (now) => keepingFocus(list, () => replace(list, now.revisions.length ? rows(now, act) : empty("No revision yet", h("p", {}, "A deploy makes one."), h("a", { class: "button primary", href: "#/deploy" }, "Deploy"))));
  const draw = async () => show(await api.get(path(e), { signal: page.signal }));
  const act = async (work, said) => {
    try { await work(); toast(said); replace(note); } catch (error) { replace(note, errorCard(error)); note.scrollIntoView({ block: "nearest" }); }
    await draw();
  };
  const told = () => JSON.stringify([live.endpoint(e.name)?.state, live.endpoint(e.name)?.revision, live.endpoint(e.name)?.newest, live.builds().filter((b) => b.subject === e.name).map((b) => b.status)]);
  let before = told();
  page.watch(() => { const now = told(); if (now !== before) { before = now; draw().catch(() => {}); } });
  show(e);
  return [note, list];
}

function rows(e, act) {
  return cards("Revisions", ["Revision", "State", "Source", "Runtime", "Since", ""], e.revisions.map((r) => row(`${r.number}`, badge(r.state),
    r.commit ? h("span", {}, "commit ", h("code", {}, short(r.commit))) : h("code", { title: r.source }, short(r.source)), r.runtime ? h("a", { href: `#/runtimes/${part(r.runtime)}/${r.runtime_version}` }, `${r.runtime}:${r.runtime_version}`) : "beside the app", ago(r.since),
    h("div", { class: "row" }, r.build_id && h("a", { class: "button small", href: `#/builds/${r.build_id}`, "aria-label": `Build of revision ${r.number}` }, "Build"),
      (r.state === "retired" || r.state === "superseded") && button("Roll back", () => act(() => api.post(`${path(e)}/rollback`, { revision: r.number }), `Revision ${r.number} is rolled out again`), { kind: "small", "aria-label": `Roll back to revision ${r.number}` }),
      r.error && h("small", { class: "bad-text" }, r.error)))));
}
