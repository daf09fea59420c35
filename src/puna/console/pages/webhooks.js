// An endpoint's webhook: what to type into the repository's settings, and what came of each push.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, short, when } from "../format.js";
import { badge, button, check, code, errorCard, facts, field, row, table, toast } from "../ui.js";

const REFRESH_MS = 3000;

export async function webhooks(e, page) {
  if (!e.settings.git?.url) {
    return h("section", { class: "card" }, h("p", {}, "This endpoint is built from uploaded files: there is no repository that could tell of a push."),
      h("a", { class: "button", href: "#/deploy" }, "Deploy a repository"));
  }
  const path = `/endpoints/${part(e.name)}`;
  const hook = await api.get(`${path}/webhook`, { signal: page.signal });
  const list = h("div", {});
  const commit = h("code", {}, short(hook.git.commit));
  let shown = "";
  const draw = async () => {
    const { items } = await api.get(`${path}/deliveries`, { signal: page.signal });
    const now = JSON.stringify(items);
    if (now === shown || list.querySelector("details[open]")) return; // what is being read is not taken away
    shown = now;
    commit.textContent = short((await api.get(`${path}/webhook`, { signal: page.signal })).git.commit);
    replace(list, deliveries(path, items, draw));
  };
  const timer = setInterval(() => draw().catch(() => {}), REFRESH_MS);
  page.closed(() => clearInterval(timer));
  await draw();
  return [h("section", { class: "card" }, h("h2", {}, "Repository"), facts([["Address", h("code", {}, hook.git.url)], ["Branch", hook.git.branch || "its main branch"],
    ["Folder", hook.git.folder], ["Deployed commit", commit], ["Opened with", hook.git.credential]]), rebuilding(path, hook)),
  h("section", { class: "card stack" }, h("h2", {}, "For the repository's settings"), h("p", {}, "Content type JSON, push events. GitHub, Gitea and Forgejo sign with the secret, GitLab sends it as a token, the Hugging Face Hub as the webhook's secret."),
    h("h3", {}, "Address"), code(hook.url), h("h3", {}, "Secret"), secret(hook.secret)),
  h("section", { class: "stack" }, h("h2", {}, "Deliveries"), list)];
}

function rebuilding(path, hook) {
  const box = check("Build again after every push to the branch", hook.auto_rebuild);
  const poll = h("input", { type: "number", min: 0, value: hook.poll_s });
  const note = h("div", {});
  const save = button("Save", async () => {
    try {
      await api.patch(path, { auto_rebuild: box.box.checked, poll_s: Number(poll.value) });
      replace(note);
      toast("Saved; it acts at once");
    } catch (error) { replace(note, errorCard(error)); }
  }, { kind: "primary" });
  return h("div", { class: "stack" }, box, field("Ask the repository every so many seconds", poll, { hint: "0: never; for places that no webhook reaches." }), note, save);
}

function secret(text) {
  const box = h("div", {}, h("button", { type: "button", class: "small", onclick: () => { replace(box, code(text)); box.querySelector("button").focus(); } }, "Show the secret"));
  return box;
}

function deliveries(path, items, draw) {
  if (!items.length) return h("p", { class: "quiet" }, "Nothing has come yet. A push that the repository tells of appears here, with what became of it.");
  return table("Deliveries", ["Delivery", "When", "Commit", "Outcome", "What became of it", ""], items.map((d) => row(`${d.id} · ${d.sender}`, h("time", { title: when(d.at) }, ago(d.at)), h("code", {}, short(d.commit)),
    badge(d.state || d.outcome), [d.revision && h("p", {}, d.build_id ? h("a", { href: `#/builds/${d.build_id}` }, `Revision ${d.revision}`) : `Revision ${d.revision}`), d.message && h("p", {}, d.message), d.hint && h("p", { class: "quiet" }, `Next: ${d.hint}`),
      d.detail && h("details", {}, h("summary", {}, "Evidence"), h("pre", { tabindex: 0 }, d.detail))],
    button("Replay", async () => {
      await api.post(`${path}/deliveries/${d.id}/replay`);
      toast("It is done again");
      await draw();
    }, { kind: "small", "aria-label": `Replay delivery ${d.id}` }))));
}
