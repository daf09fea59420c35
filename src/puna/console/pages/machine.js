// What an app runs on: a tile for each kind of GPU, with what is free and whether the model fits, and one for the CPU.

import { h, replace } from "../dom.js";
import { bytes, plural } from "../format.js";
import { check } from "../ui.js";

// `plan` has `gpu`, as settings have it ("": any), and `dedicated`; with `anyway` any GPU may be asked for where there is none.
export function machinePart(plan, machine, { anyway = false } = {}) {
  const tiles = h("fieldset", { class: "tiles" });
  const sum = h("div", {});
  const share = check("A whole GPU (otherwise half of one)", plan.dedicated);
  const choose = (value) => {
    plan.gpu = value;
    draw();
    tiles.querySelector(":checked")?.focus();
  };
  const draw = () => {
    const need = machine.model;
    share.hidden = isCpu(plan.gpu) || !machine.gpus.length;
    replace(tiles, h("legend", {}, "Runs on"), drawTiles(plan, machine, anyway, choose));
    replace(sum, need && h("p", { class: "quiet" }, `${need.name}: ${bytes(need.weights_bytes)} of weights, ${need.kv_cache_bytes ? bytes(need.kv_cache_bytes) : "an unknown size"} of KV cache for ${plural(need.requests, "request")} of ${need.context} tokens, ${bytes(need.overhead_bytes)} beside them.`));
  };
  share.box.addEventListener("change", () => { plan.dedicated = share.box.checked; draw(); });
  draw();
  return { nodes: [tiles, sum, share], update: (newer) => { machine = newer; draw(); } };
}

const isCpu = (gpu) => ["cpu", "none"].includes(gpu.toLowerCase());

function drawTiles(plan, machine, anyway, choose) {
  const tile = (value, on, title, ...notes) => h("label", { class: "tile" }, h("input", { type: "radio", name: "gpu", value, checked: on, onchange: () => choose(value) }),
    h("span", {}, h("strong", {}, title), notes.filter(Boolean).map((n) => h("small", {}, n))));
  const kinds = Object.entries(Object.groupBy(machine.gpus, (gpu) => gpu.name));
  const onCpu = isCpu(plan.gpu);
  const named = kinds.some(([name]) => name === plan.gpu);
  const other = named || onCpu ? "" : plan.gpu; // a kind that this machine lacks
  const cpu = [machine.cpus && plural(machine.cpus, "core"), bytes(machine.memory_bytes)].filter(Boolean).join(", ");
  return [...kinds.map(([name, gpus]) => tile(name, name === plan.gpu, `${gpus.length} × ${name}`, `${bytes(gpus[0].memory_bytes)} each`, fitOf(gpus[0], plan.dedicated), ...gpus.map(roomOf))),
    (anyway || machine.gpus.length > 0) && tile(other, !named && !onCpu, other ? `Any GPU (asked for: ${other})` : "Any GPU", machine.gpus.length ? "whichever has room" : "this machine has none: the CPU, here"),
    tile(onCpu ? plan.gpu : "cpu", onCpu, "CPU only", cpu, onCpu && machine.fit && verdictOf(machine.fit))];
}

const verdictOf = (fit) => `The model ${{ fits: "fits", tight: "fits, just" }[fit.verdict] ?? "does not fit"}: ${bytes(fit.room_bytes - fit.left_bytes)} of ${bytes(fit.room_bytes)}`;
const fitOf = (gpu, whole) => gpu.fit && verdictOf(gpu.fit[whole ? "whole" : "half"]);

function roomOf(gpu) {
  const free = bytes(gpu.free_bytes ?? gpu.memory_bytes * (1 - gpu.held));
  return `GPU ${gpu.index}: ${free} free${gpu.held ? `, ${gpu.held > 0.9 ? "kept" : "half kept"} for others` : ""}`;
}
