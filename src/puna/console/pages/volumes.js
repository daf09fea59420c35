// Volumes: folders that outlive replicas. Make one, look into it, put files in, take them out.

import { api, part, send, session } from "../api.js";
import { h, replace } from "../dom.js";
import { ago, bytes, count, plural } from "../format.js";
import { bar, button, cards, code, confirm, dialog, download, empty, errorCard, field, row, say, toast } from "../ui.js";

const MOST_BYTES = 2 ** 30; // what is downloaded lies in the tab's memory first: a link could not carry the key
const segments = (path) => path.split("/").map(part).join("/");
const address = (name, path) => `#/volumes/${part(name)}${path ? `/${segments(path)}` : ""}`;

export async function volumesPage(main, page) {
  const list = h("div", { class: "stack" });
  const make = button("New volume", async () => {
    const input = h("input", { type: "text", required: true, spellcheck: "false", placeholder: "weights" });
    const made = await dialog({ title: "A new volume", action: "Create", body: [field("Name", input, { hint: "An app that uses it finds it at /var/nfs-mount/<name>." })], work: () => api.post("/volumes", { name: input.value.trim() }) });
    if (made) location.hash = address(made.name, "");
  }, { kind: "primary" });
  const draw = async () => {
    const { items } = await api.get("/volumes", { signal: page.signal });
    replace(list, items.length ? cards("Volumes", ["Volume", "Mounted at", "Used by", "On this machine", ""], items.map((v) => row(h("a", { href: address(v.name, "") }, v.name), h("code", {}, v.mount_path),
      v.endpoints.length ? v.endpoints.map((e, i) => [i > 0 && ", ", h("a", { href: `#/endpoints/${part(e)}` }, e)]) : h("span", { class: "quiet" }, "no endpoint"), h("code", { class: "quiet" }, v.path), removal(v, draw)))) : nothing());
  };
  replace(main, h("div", { class: "head" }, h("h1", {}, "Volumes"), make), list);
  await draw();
}

function nothing() {
  return empty("There is no volume yet", h("p", {}, "A volume is a folder that replicas see at a path: weights that are no published model, indexes, caches. It stays when they go. Make one here, or from a shell:"),
    code("puna volume create weights\npuna volume cp ./model.bin weights:/model.bin\npuna deploy my-app --volume weights"));
}

function removal(v, draw) {
  return button("Delete", async () => {
    if (!await confirm({ title: `Delete the volume ${v.name}?`, text: "All that is in it goes, and nothing brings it back.", action: "Delete", typed: v.name, danger: true })) return;
    await api.del(`/volumes/${part(v.name)}`);
    toast(`${v.name} is deleted`);
    await draw();
  }, { kind: "small danger", disabled: v.endpoints.length > 0, title: v.endpoints.length ? "an endpoint uses it" : null, "aria-label": `Delete the volume ${v.name}` });
}

export async function volumePage(main, page, name, path = "") {
  path = path.replace(/\/+$/, "");
  page.title(path ? `${name}: ${path}` : `Volume ${name}`);
  const volume = await api.get(`/volumes/${part(name)}`, { signal: page.signal });
  const list = h("div", {});
  const going = h("div", { class: "stack", "aria-live": "polite" });
  const draw = async () => {
    const { items } = await api.get(`/volumes/${part(name)}/entries?path=${part(path)}`, { signal: page.signal });
    replace(list, items.length ? table(name, items, draw) : h("p", { class: "quiet" }, path ? "This folder is empty." : "Nothing is in it yet: choose files, or drop them above."));
  };
  const here = (file) => [path, file.webkitRelativePath || file.name].filter(Boolean).join("/");
  const upload = async (files) => {
    for (const file of files) await one(name, here(file), file, going, page.signal);
    if (files.length) { toast(`${plural(files.length, "file")} uploaded`); await draw(); }
  };
  const parts = path ? path.split("/") : [];
  const crumbs = h("ol", { class: "path", "aria-label": "Folder" }, h("li", {}, parts.length ? h("a", { href: address(name, "") }, name) : h("span", { "aria-current": "page" }, name)),
    parts.map((word, i) => h("li", {}, i + 1 < parts.length ? h("a", { href: address(name, parts.slice(0, i + 1).join("/")) }, word) : h("span", { "aria-current": "page" }, word))));
  replace(main, h("div", { class: "head" }, h("div", { class: "titles" }, h("p", { class: "crumbs" }, h("a", { href: "#/volumes" }, "Volumes")), h("h1", {}, name),
    h("p", { class: "quiet" }, "Apps find it at ", h("code", {}, volume.mount_path), volume.endpoints.length ? ["; used by ", volume.endpoints.map((e, i) => [i > 0 && ", ", h("a", { href: `#/endpoints/${part(e)}/settings` }, e)])] : "; no endpoint uses it"))),
  h("div", { class: "stack" }, zone(upload), going, parts.length > 0 && crumbs, list));
  await draw();
}

function table(name, items, draw) {
  const folders = items.filter((e) => e.kind === "folder");
  const sorted = [...folders, ...items.filter((e) => !folders.includes(e))];
  return cards("Files", ["Name", "Size", "Changed", ""], sorted.map((e) => {
    const is = folders.includes(e);
    const short = e.path.split("/").pop();
    return row(is ? h("a", { href: address(name, e.path) }, `${short}/`) : short, is ? "" : bytes(e.bytes), ago(e.modified), h("span", { class: "row" },
      e.kind === "file" && button("Download", async () => {
        if (e.bytes > MOST_BYTES) throw { message: `${short} has ${bytes(e.bytes)}: more than a browser holds`, hint: `puna volume cp ${name}:${e.path} .` };
        const reply = await send("GET", `/api/v1/volumes/${part(name)}/files/${segments(e.path)}`);
        download(short, await reply.blob());
      }, { kind: "small", "aria-label": `Download ${short}` }),
      button("Remove", async () => {
        if (!await confirm({ title: `Remove ${short}?`, text: is ? "The folder goes, with all that is in it." : "The file goes.", action: "Remove", danger: true })) return;
        await api.del(`/volumes/${part(name)}/files/${segments(e.path)}`);
        await draw();
        say(`${short} is removed`);
      }, { kind: "small danger", "aria-label": `Remove ${short}` })));
  }));
}

function zone(upload) {
  const files = h("input", { type: "file", multiple: true });
  const folder = h("input", { type: "file", webkitdirectory: true });
  const whole = h("div", { class: "drop" }, h("div", { class: "grid" }, field("Upload files", files, { hint: "They can also be dropped here." }), field("Or a folder", folder)));
  for (const input of [files, folder]) {
    input.addEventListener("change", async () => {
      const chosen = [...input.files];
      input.value = "";
      await upload(chosen).catch((error) => toast(error.message, "bad"));
    });
  }
  whole.addEventListener("dragover", (event) => { event.preventDefault(); whole.classList.add("over"); });
  whole.addEventListener("dragleave", () => whole.classList.remove("over"));
  whole.addEventListener("drop", (event) => {
    event.preventDefault();
    whole.classList.remove("over");
    upload([...event.dataTransfer.files]).catch((error) => toast(error.message, "bad"));
  });
  return whole;
}

// One file: fetch tells nothing of how far it is, XMLHttpRequest does. The file appears whole or not at all.
function one(name, path, file, going, signal) {
  const meter = bar(`Upload of ${path}`, 0, file.size);
  const words = h("span", {}, "0 %");
  const stop = h("button", { type: "button", class: "small", "aria-label": `Stop the upload of ${path}` }, "Stop");
  const line = h("div", { class: "card" }, h("div", { class: "head slim" }, h("strong", {}, path), h("span", { class: "row" }, words, stop)), meter);
  going.append(line);
  return new Promise((resolve, reject) => {
    const request = new XMLHttpRequest();
    const failed = (error) => { line.replaceWith(errorCard(error)); reject(error); };
    request.open("PUT", `/api/v1/volumes/${part(name)}/files/${segments(path)}`);
    request.setRequestHeader("authorization", `Bearer ${session.key}`);
    request.upload.addEventListener("progress", (event) => {
      meter.value = event.loaded;
      words.textContent = `${Math.floor((100 * event.loaded) / Math.max(event.total, 1))} % of ${bytes(file.size)}`;
    });
    request.addEventListener("load", () => {
      if (request.status < 300) { line.remove(); resolve(count(file.size)); return; }
      let said = {};
      try { said = JSON.parse(request.responseText).error; } catch { /* no JSON: the status alone speaks */ }
      failed({ message: `${path}: ${said.message ?? `HTTP ${request.status}`}`, hint: said.hint });
    });
    request.addEventListener("error", () => failed({ message: `${path}: the connection broke`, hint: "upload it again: nothing half-written was kept" }));
    request.addEventListener("abort", () => { line.remove(); reject(Object.assign(new Error(`${path}: stopped`), { name: "Stopped" })); });
    stop.addEventListener("click", () => request.abort());
    signal.addEventListener("abort", () => request.abort());
    request.send(file);
  });
}
