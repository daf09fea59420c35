// The page's frame: who is signed in, which page is shown, and the theme.

import { api, onRefused, session } from "./api.js";
import { byId, h, replace } from "./dom.js";
import * as live from "./live.js";
import { errorCard, say } from "./ui.js";
import { open, signIn } from "./pages/signin.js";
import { buildPage, buildsPage } from "./pages/build.js";
import { deployPage } from "./pages/deploy.js";
import { endpointPage } from "./pages/endpoint.js";
import { home } from "./pages/home.js";
import { keysPage, secretsPage } from "./pages/lists.js";
import { modelsPage } from "./pages/models.js";
import { runPage, runsPage } from "./pages/runs.js";
import { runtimePage, runtimesPage } from "./pages/runtimes.js";
import { usagePage } from "./pages/usage.js";
import { volumePage, volumesPage } from "./pages/volumes.js";

const PAGES = [
  ["Endpoints", "#/", [[/^\/$/, home], [/^\/endpoints\/([^/]+)(?:\/(\w+))?$/, endpointPage]]],
  ["Deploy", "#/deploy", [[/^\/deploy$/, deployPage]]],
  ["Builds", "#/builds", [[/^\/builds$/, buildsPage], [/^\/builds\/([^/]+)$/, buildPage]]],
  ["Runs", "#/runs", [[/^\/runs$/, runsPage], [/^\/runs\/([^/]+)$/, runPage]]],
  ["Models", "#/models", [[/^\/models$/, modelsPage]]],
  ["Runtimes", "#/runtimes", [[/^\/runtimes$/, runtimesPage], [/^\/runtimes\/([^/]+)(?:\/(\d+))?$/, runtimePage]]],
  ["Volumes", "#/volumes", [[/^\/volumes$/, volumesPage], [/^\/volumes\/([^/]+)(?:\/(.*))?$/, volumePage]]],
  ["Usage", "#/usage", [[/^\/usage$/, usagePage]]],
  ["Keys", "#/keys", [[/^\/keys$/, keysPage]]],
  ["Secrets", "#/secrets", [[/^\/secrets$/, secretsPage]]],
];
let close = () => {};

function route() {
  const path = location.hash.replace(/^#/, "").split("?")[0] || "/";
  for (const [title, , patterns] of PAGES) {
    for (const [pattern, page] of patterns) {
      const match = pattern.exec(path);
      if (match) return { title, page, words: match.slice(1).map((word) => word && decodeURIComponent(word)) };
    }
  }
  return null;
}

function frame(title) {
  const links = PAGES.map(([name, href]) => h("a", { href, "aria-current": name === title ? "page" : null }, name));
  replace(byId("nav"), session.key ? links : []);
  byId("nav").querySelector("[aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });
  replace(byId("tools"), themeButton(), session.key && h("button", { type: "button", class: "small", onclick: signOut }, "Sign out"));
}

function themeButton() {
  const dark = document.documentElement.dataset.theme === "dark" ||
    (!document.documentElement.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  const next = dark ? "light" : "dark";
  return h("button", { type: "button", class: "small", "aria-label": `Use the ${next} theme`, onclick: () => {
    document.documentElement.dataset.theme = next;
    try { localStorage.setItem("puna-theme", next); } catch { /* not kept, then */ }
    frame(route()?.title);
  } }, dark ? "Light" : "Dark");
}

function signOut() {
  live.stop();
  session.key = "";
  location.hash = "#/";
  show();
}

async function show() {
  close();
  close = () => {};
  const main = byId("main");
  const token = /^#\/open\/([\w-]+)$/.exec(location.hash);
  if (token) {
    history.replaceState(null, "", "#/"); // the token is used up now; it need not stay in the address
    await open(token[1]).catch((error) => { frame(); signIn(main, enter, error); });
    if (session.key) enter();
    return;
  }
  if (!session.key) {
    frame();
    document.title = "Sign in · Puna";
    signIn(main, enter);
    return;
  }
  const found = route();
  frame(found?.title);
  const control = new AbortController();
  const unwatch = [];
  close = () => { control.abort(); unwatch.forEach((end) => end()); };
  const page = { signal: control.signal, title: (text) => { document.title = `${text} · Puna`; },
    watch: (listener) => unwatch.push(live.watch(listener)), closed: (end) => unwatch.push(end) };
  if (!found) {
    replace(main, errorCard({ message: `There is no page ${location.hash}`, hint: "choose one above" }));
    return;
  }
  page.title(found.title);
  try { await found.page(main, page, ...found.words); } catch (error) {
    if (error.name !== "AbortError") replace(main, h("h1", {}, found.title), errorCard(error));
  }
}

function enter() {
  live.start();
  show();
}

let shown = location.hash.split("?")[0];
addEventListener("hashchange", () => {
  if (location.hash === "#main") { // the link that skips to the content is no page
    byId("main").focus();
    history.replaceState(null, "", shown || "#/");
    return;
  }
  shown = location.hash;
  show().then(() => { byId("main").focus(); say(document.title); });
});
onRefused(() => { if (session.key) { signOut(); signIn(byId("main"), enter, { message: "The key is no longer valid", hint: "sign in again" }); } });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => frame(route()?.title));
live.watch(() => {
  const lost = live.status === "connecting" && session.key;
  let bar = byId("lost");
  if (lost && !bar) byId("main").before(bar = h("p", { class: "lost", id: "lost", role: "status" }, "Puna does not answer; trying again…"));
  else if (!lost && bar) bar.remove();
});
if (session.key && !/^#\/open\//.test(location.hash)) {
  api.get("/whoami").catch(() => {});
  enter();
} else show();
