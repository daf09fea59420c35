// An endpoint's revisions: which serve and with what share, how two differ, promote and roll back.

import { api, part } from "../api.js";
import { diffTable, diffText } from "../diff.js";
import { h, replace } from "../dom.js";
import { ago, count, milliseconds, short } from "../format.js";
import { live } from "../live.js";
import { badge, button, cards, confirm, empty, errorCard, field, keepingFocus, row, select, toast } from "../ui.js";

const REFRESH_MS = 3000;
const SPLITTABLE = new Set(["retired", "superseded", "built", "starting", "queued", "building"]);
const path = (e) => `/endpoints/${part(e.name)}`;

export function revisions(e, page) {
  const [list, note, traffic] = [h("div", {}), h("div", {}), h("div", {})];
  let now = e;
  let shown = "";
  const show = () => {
    keepingFocus(list, () => replace(list, now.revisions.length ? rows(now, act) : empty("No revision yet", h("p", {}, "A deploy makes one."), h("a", { class: "button primary", href: "#/deploy" }, "Deploy"))));
    const told = JSON.stringify([now.revision, now.traffic, now.revisions.map((r) => [r.number, r.state])]);
    if (told !== shown && !traffic.contains(document.activeElement)) { shown = told; replace(traffic, shares(now, act)); }
  };
  const draw = async () => { now = await api.get(path(e), { signal: page.signal }); show(); };
  const act = async (work, said) => {
    try { await work(); toast(said); replace(note); } catch (error) { replace(note, errorCard(error)); note.scrollIntoView({ block: "nearest" }); }
    document.activeElement?.blur();
    await draw();
  };
  const told = () => { const seen = live.endpoint(e.name); return JSON.stringify([seen?.state, seen?.revision, seen?.newest, seen?.traffic, live.builds().filter((b) => b.subject === e.name).map((b) => b.status)]); };
  let before = told();
  page.watch(() => { const seen = told(); if (seen !== before) { before = seen; draw().catch(() => {}); } });
  const timer = setInterval(() => { if (now.traffic.length > 1) draw().catch(() => {}); }, REFRESH_MS); // what each has answered
  page.closed(() => clearInterval(timer));
  show();
  return [note, list, traffic, comparison(e, page)];
}

function rows(e, act) {
  const of = Object.fromEntries(e.traffic.map((share) => [share.revision, share]));
  const says = (share) => (share.percent === share.wanted ? `${share.percent} %` : `${share.percent} %, ${share.wanted} % coming`);
  return cards("Revisions", ["Revision", "State", "Requests", "Source", "Runtime", "Since", ""], e.revisions.map((r) => row(`${r.number}`, badge(r.state), of[r.number] ? says(of[r.number]) : "–",
    r.commit ? h("span", {}, "commit ", h("code", { title: r.commit }, short(r.commit))) : h("code", { title: r.source }, short(r.source)), r.runtime ? h("a", { href: `#/runtimes/${part(r.runtime)}/${r.runtime_version}` }, `${r.runtime}:${r.runtime_version}`) : "beside the app", ago(r.since),
    h("div", { class: "row" }, r.build_id && h("a", { class: "button small", href: `#/builds/${r.build_id}`, "aria-label": `Build of revision ${r.number}` }, "Build"),
      (r.state === "retired" || r.state === "superseded") && button("Roll back", () => act(() => api.post(`${path(e)}/rollback`, { revision: r.number }), `Revision ${r.number} is rolled out again`), { kind: "small", "aria-label": `Roll back to revision ${r.number}` }),
      r.error && h("small", { class: "bad-text" }, r.error)))));
}

function shares(e, act) {
  const serving = e.revision;
  const second = e.traffic.find((share) => share.revision !== serving);
  const choices = e.revisions.filter((r) => r.number !== serving && (SPLITTABLE.has(r.state) || r.number === second?.revision));
  if (serving === null || !choices.length) return null;
  const other = select(choices.map((r) => [r.number, `revision ${r.number} (${r.state})`]), second?.revision ?? choices[0].number);
  const begin = second?.wanted && second.wanted < 100 ? second.wanted : second?.percent ?? 10;
  const slider = h("input", { type: "range", min: 1, max: 99, value: begin, "aria-label": "Percent of the requests for the second revision" });
  const number = h("input", { type: "number", min: 1, max: 99, value: begin });
  const rest = h("span", {});
  const tell = (from, to) => { to.value = from.value; rest.textContent = `${Number(from.value) || 0} % to revision ${other.value}, ${100 - (Number(from.value) || 0)} % to revision ${serving}`; };
  slider.addEventListener("input", () => tell(slider, number));
  number.addEventListener("input", () => tell(number, slider));
  other.addEventListener("change", () => tell(number, slider));
  tell(number, slider);
  const put = () => act(() => api.set(`${path(e)}/traffic`, { shares: { [serving]: 100 - Number(number.value), [other.value]: Number(number.value) } }), `Revision ${other.value} is to have ${number.value} %`);
  return h("section", { class: "card stack" }, h("h2", {}, "Who gets the requests"), second ? figures(e) : h("p", { class: "quiet" }, `Revision ${serving} has all of them. Give a second one a few first, look at how it answers, then promote it or take it back.`),
    h("div", { class: "row low" }, field("Second revision", other), field("Percent", number), button(second ? "Change the shares" : "Divide the requests", put, { kind: second ? "" : "primary" })), slider, h("p", { "aria-live": "polite" }, rest),
    second && h("div", { class: "row" }, button(`Promote revision ${second.revision}`, async () => {
      if (await confirm({ title: `All requests to revision ${second.revision}?`, text: `It gets the replicas for them first; then revision ${serving} is drained and retired.`, action: "Promote" })) await act(() => api.post(`${path(e)}/promote`, { revision: second.revision }), `Revision ${second.revision} is promoted`);
    }, { kind: "primary" }), button(`Take it back: all to revision ${serving}`, () => act(() => api.post(`${path(e)}/rollback`, { revision: serving }), `Revision ${serving} has all requests`))));
}

function figures(e) {
  return cards("Shares", ["Revision", "Share", "Requests", "Errors", "p50", "p95"], e.traffic.map((s) => row(`${s.revision}${s.revision === e.revision ? ", serving" : ""}`, s.percent === s.wanted ? `${s.percent} %` : `${s.percent} %, then ${s.wanted} %`, count(s.requests), count(s.errors), milliseconds(s.p50_ms), milliseconds(s.p95_ms))));
}

function comparison(e, page) {
  if (e.revisions.length < 2) return null;
  const numbers = e.revisions.map((r) => [r.number, `revision ${r.number}`]);
  const from = select(numbers, e.revisions.find((r) => r.number < (e.revision ?? Infinity))?.number ?? e.revisions.at(-1).number);
  const to = select(numbers, e.revision ?? e.revisions[0].number);
  const out = h("div", { class: "stack", "aria-live": "polite" });
  const compare = button("Compare", async () => {
    try { replace(out, difference(await api.get(`${path(e)}/revisions/${part(from.value)}/diff/${part(to.value)}`, { signal: page.signal }))); } catch (error) { replace(out, errorCard(error)); }
  });
  return h("section", { class: "card stack" }, h("h2", {}, "What changed"), h("div", { class: "row low" }, field("From", from), field("To", to), compare), out);
}

function difference({ from, to, settings, packages: p, files, is_cut: isCut }) {
  const heads = [`Revision ${from.revision}`, `Revision ${to.revision}`];
  const facts = [["commit", from.commit, to.commit], ["runtime", from.runtime && `${from.runtime}:${from.runtime_version}`, to.runtime && `${to.runtime}:${to.runtime_version}`]].filter(([, a, b]) => a !== b);
  const changed = p && [...p.removed.map((x) => [x.name, x.version, null]), ...p.added.map((x) => [x.name, null, x.version]), ...p.changed.map((x) => [x.name, x.before, x.after])].sort(([a], [b]) => (a < b ? -1 : 1));
  return [h("h3", {}, "Settings"), diffTable("Settings", heads, [...facts, ...settings.map((s) => [s.name, s.before, s.after])]),
    h("h3", {}, "Packages as installed"), changed ? diffTable("Packages", heads, changed) : h("p", { class: "quiet" }, "One of the two environments is not there any more."),
    h("h3", {}, "Files"), !files ? h("p", { class: "quiet" }, "One of the two sources has been cleared away.") : files.length ? files.map((f) => h("details", { open: files.length < 4 }, h("summary", {}, h("code", {}, f.path), ` ${f.change}`), f.lines === null ? h("p", { class: "quiet" }, f.why) : diffText(f.path, f.lines))) : h("p", { class: "quiet" }, "Files: the same."), isCut && h("p", { class: "quiet" }, "More files differ; `puna diff` tells of them.")];
}
