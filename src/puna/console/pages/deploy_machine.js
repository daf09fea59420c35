// The wizard's third step: what the app runs on, whether its model fits there, and how many of it.

import { api, part } from "../api.js";
import { h, replace } from "../dom.js";
import { bytes, plural } from "../format.js";
import { check, field } from "../ui.js";

const NUMBERS = {
  min_replica: ["Replicas at least", "0: none while nobody calls"], max_replica: ["Replicas at most", ""],
  inference_time_s: ["Seconds a request may take", ""], scale_down_delay_s: ["Idle seconds before a replica goes", ""],
  container_concurrency: ["Requests at once per replica", "0: chosen by the engine"],
};

export function machineStep(plan, known, page) {
  const tiles = h("fieldset", { class: "tiles" });
  const sum = h("div", {});
  const share = check("A whole GPU (otherwise half of one)", plan.dedicated);
  const draw = () => {
    share.hidden = plan.gpu === "cpu" || !known.machine.gpus.length;
    replace(tiles, h("legend", {}, "Runs on"), drawTiles(plan, known.machine, draw));
    const need = known.machine.model;
    replace(sum, need && h("p", { class: "quiet" }, `${need.name}: ${bytes(need.weights_bytes)} of weights, ${need.kv_cache_bytes ? bytes(need.kv_cache_bytes) : "an unknown size"} of KV cache for ${plural(need.requests, "request")} of ${need.context} tokens, ${bytes(need.overhead_bytes)} beside them.`));
  };
  share.box.addEventListener("change", () => { plan.dedicated = share.box.checked; draw(); });
  draw();
  // What is free may have changed since the page was opened, and only now it is known what is to fit.
  api.get(`/machine?source=${part(plan.source)}`, { signal: page.signal }).then((machine) => {
    known.machine = machine;
    draw();
  }, () => {});
  return {
    nodes: [tiles, sum, share, h("div", { class: "grid" }, Object.entries(NUMBERS).map(([key, [label, hint]]) =>
      field(label, h("input", { type: "number", min: 0, value: plan.numbers[key], oninput: (e) => { plan.numbers[key] = Number(e.target.value); } }), { hint })))],
    valid: async () => {
      const { min_replica: low, max_replica: high } = plan.numbers;
      if (high < 1) throw { message: "At most 0 replicas would never answer", hint: "at least 1" };
      if (low > high) throw { message: `At least ${low} replicas is more than at most ${high}`, hint: "raise the one or lower the other" };
    },
  };
}

function drawTiles(plan, machine, draw) {
  const choose = (value) => {
    plan.gpu = value;
    draw();
    document.querySelector(`input[name=gpu][value="${CSS.escape(value)}"]`)?.focus();
  };
  const tile = (value, title, ...notes) => h("label", { class: "tile" }, h("input", { type: "radio", name: "gpu", value, checked: plan.gpu === value, onchange: () => choose(value) }),
    h("span", {}, h("strong", {}, title), notes.filter(Boolean).map((n) => h("small", {}, n))));
  const gpus = Object.values(Object.groupBy(machine.gpus, (gpu) => gpu.name)).map((same) => tile(same[0].name, `${same.length} × ${same[0].name}`, `${bytes(same[0].memory_bytes)} each`,
    fitOf(same[0], plan.dedicated), ...same.map(roomOf)));
  const cpu = [machine.cpus && plural(machine.cpus, "core"), bytes(machine.memory_bytes)].filter(Boolean).join(", ");
  return [...gpus, machine.gpus.length > 0 && tile("any", "Any GPU", "whichever has room"), tile("cpu", "CPU only", cpu, plan.gpu === "cpu" && machine.fit && verdictOf(machine.fit))];
}

const verdictOf = (fit) => `The model ${{ fits: "fits", tight: "fits, just" }[fit.verdict] ?? "does not fit"}: ${bytes(fit.room_bytes - fit.left_bytes)} of ${bytes(fit.room_bytes)}`;
const fitOf = (gpu, whole) => gpu.fit && verdictOf(gpu.fit[whole ? "whole" : "half"]);

function roomOf(gpu) {
  const free = bytes(gpu.free_bytes ?? gpu.memory_bytes * (1 - gpu.held));
  return `GPU ${gpu.index}: ${free} free${gpu.held ? `, ${gpu.held > 0.9 ? "kept" : "half kept"} for others` : ""}`;
}
