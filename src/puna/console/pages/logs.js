// The log of an endpoint's replicas: the last lines at once, earlier ones when asked for, and those that come.

import { api, lines, part } from "../api.js";
import { h, replace } from "../dom.js";
import { count } from "../format.js";
import { button, check, field, problem, toast } from "../ui.js";

const AT_FIRST = 2000; // lines that are fetched to begin with
const ALL = 100_000; // and at most
const STEP = 1000; // lines that stand in the page, and how many more one press brings
const MOST = 20_000; // that may stand in it
const DRAW_MS = 200, AGAIN_MS = 1500;
const NEAR = 40; // pixels from the end that count as being there

export function logs(e, page) {
  const view = viewOf();
  const search = h("input", { type: "search", placeholder: "Text, or a request's id", autocomplete: "off", value: new URLSearchParams(location.hash.split("?")[1] ?? "").get("q") ?? "" });
  const replica = h("select", {});
  const follow = check("Follow", true);
  const known = new Set(e.replicas.map((r) => r.id));
  let kept = [], fetched = AT_FIRST, received = 0, stream = null, timer = 0;
  const whole = () => fetched >= ALL || received < fetched; // nothing stands above what has been fetched
  const options = () => {
    const chosen = replica.value;
    replace(replica, h("option", { value: "" }, "all replicas"), [...known].map((id) => h("option", { value: id, selected: id === chosen }, id)));
  };
  const draw = () => view.draw(kept, search.value.trim(), whole());
  const soon = (work) => { clearTimeout(timer); timer = setTimeout(work, DRAW_MS); };

  // One stream: the last `fetched` lines and what comes then. Another one when another replica or more lines are wanted.
  const open = (count) => {
    stream?.abort();
    const mine = (stream = new AbortController());
    page.signal.addEventListener("abort", () => mine.abort(), { once: true });
    [fetched, received, kept] = [count, 0, []];
    return new Promise((done) => { read(mine, done); });
  };
  const read = async (mine, done) => {
    let pending = [], loading = true, quiet = 0;
    const only = replica.value;
    const beat = setInterval(() => take(), DRAW_MS);
    const take = () => {
      if (mine.signal.aborted) { clearInterval(beat); done(); return; }
      const added = pending;
      pending = [];
      quiet = added.length ? 0 : quiet + 1;
      const before = known.size;
      if (!only) for (const line of added) mark(line, known);
      if (known.size !== before) options();
      received += added.length;
      kept = kept.concat(added).slice(-ALL);
      if (!loading) { if (added.length) view.add(added, search.value.trim(), follow.box.checked, kept.length); return; }
      if (added.length) draw();
      if (received >= fetched || quiet > (received ? 1 : 5)) { loading = false; draw(); done(); }
    };
    const again = (why) => { // Puna was started anew, or the connection broke
      view.say(why);
      setTimeout(() => { if (!mine.signal.aborted) open(fetched); }, AGAIN_MS);
    };
    try {
      const query = `follow=1&lines=${fetched}${only ? `&replica=${part(only)}` : ""}`;
      for await (const line of lines(`/api/v1/endpoints/${part(e.name)}/logs?${query}`, { signal: mine.signal })) pending.push(line);
      again("The log has ended; looking again…");
    } catch (error) {
      if (error.name === "AbortError") return;
      if (error.status >= 400) { clearInterval(beat); done(); view.say(problem(error)); } else again("Puna does not answer; trying again…");
    }
  };

  // What is searched for may stand further up than what has been fetched.
  const find = async () => {
    if (search.value.trim() && !whole()) { view.say("Looking through all lines…"); await open(ALL); } else draw();
  };
  view.earlier.addEventListener("click", async () => {
    if (view.more(!whole())) await open(ALL);
    draw();
  });
  search.addEventListener("input", () => soon(find));
  replica.addEventListener("change", () => open(search.value.trim() ? ALL : AT_FIRST));
  follow.box.addEventListener("change", () => { if (follow.box.checked) draw(); });
  page.closed(() => clearTimeout(timer));
  options();
  open(AT_FIRST);
  const save = button("Download", () => download(e.name, replica.value), { kind: "small" });
  return [h("div", { class: "grid" }, field("Search", search), field("Replica", replica)),
    h("div", { class: "row" }, follow, save, view.earlier, view.note), view.element];
}

const amount = (n) => `${count(n)} line${n === 1 ? "" : "s"}`;

function mark(line, known) {
  const end = line.indexOf(" | ");
  if (end > 0 && end < 64) known.add(line.slice(0, end));
}

async function download(name, replica) {
  const text = await api.text(`/endpoints/${part(name)}/logs?lines=${ALL}${replica ? `&replica=${part(replica)}` : ""}`);
  const link = h("a", { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: `${replica || name}.log` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
  toast("Downloaded");
}

// The lines in the page: never more than `room`, so that a log of any length costs the same.
function viewOf() {
  const earlier = h("button", { type: "button", class: "small" }, "Show earlier lines");
  const note = h("span", { class: "quiet", role: "status" });
  const element = h("pre", { class: "log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Call log" });
  let fit = [], room = STEP, sought = "", isMore = false;
  const say = (text) => { if (note.textContent !== text) note.textContent = text; };
  const told = (all, above) => {
    const shown = Math.min(fit.length, room);
    if (sought) say(`${amount(fit.length)} of ${count(all)} with “${sought}”${shown < fit.length ? `, the last ${count(shown)} shown` : ""}`);
    else say(above || shown < fit.length ? `the last ${amount(shown)}` : amount(shown));
  };
  const offer = () => { earlier.hidden = room >= MOST || (fit.length <= room && !isMore); };
  const render = () => replace(element, fit.length ? fit.slice(-room).map((line) => row(line, sought)) : sought ? "No line fits.\n" : "Nothing was printed yet.\n");
  return {
    element, note, earlier, say,
    draw(lines, words, whole) {
      if (words !== sought) room = STEP;
      sought = words;
      fit = fits(lines, words);
      const height = element.scrollHeight - element.scrollTop;
      render();
      isMore = !whole;
      offer();
      element.scrollTop = room > STEP ? element.scrollHeight - height : element.scrollHeight; // what was read stays where it was
      told(lines.length, isMore);
    },
    add(lines, words, follow, all) {
      const more = fits(lines, words);
      fit = fit.concat(more).slice(-ALL);
      offer();
      if (!follow) { say(`${amount(all)}, not followed`); return; }
      if (more.length) {
        const stays = element.scrollHeight - element.scrollTop - element.clientHeight > NEAR; // somebody reads further up
        if (!element.firstElementChild) replace(element);
        element.append(...more.slice(-room).map((line) => row(line, sought)));
        while (element.childElementCount > room) element.firstChild.remove();
        if (!stays) element.scrollTop = element.scrollHeight;
      }
      told(all, isMore);
    },
    more(isAbove) { // room for more lines, before they come: they may come slowly; true when they have to be fetched
      if (fit.length > room || isAbove) room = Math.min(room + STEP, MOST);
      return isAbove && fit.length < room;
    },
  };
}

function fits(lines, words) {
  if (!words) return lines.slice();
  const sought = words.toLowerCase();
  return lines.filter((line) => line.toLowerCase().includes(sought));
}

// A line with its replica set apart and what was sought marked.
function row(line, sought) {
  const end = line.indexOf(" | ");
  const isMarked = end > 0 && end < 64;
  const text = isMarked ? line.slice(end + 3) : line;
  const at = sought ? text.toLowerCase().indexOf(sought.toLowerCase()) : -1;
  const shown = at < 0 ? [text] : [text.slice(0, at), h("mark", {}, text.slice(at, at + sought.length)), text.slice(at + sought.length)];
  return h("span", {}, isMarked && h("span", { class: "rep" }, `${line.slice(0, end)} `), shown, "\n");
}
