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
  const share = check("A whole GPU (otherwise half of one)", plan.dedicated);
  const draw = () => {
    share.hidden = plan.gpu === "cpu" || !known.machine.gpus.length;
    replace(tiles, h("legend", {}, "Runs on"), drawTiles(plan, known.machine, draw));
  };
  share.box.addEventListener("change", () => { plan.dedicated = share.box.checked; draw(); });
  draw();
  // What is free may have changed since the page was opened, and only now it is known what is to fit.
  api.get(`/machine?source=${part(plan.source)}`, { signal: page.signal }).then((machine) => {
    known.machine = machine;
    draw();
  }, () => {});
  return {
    nodes: [tiles, share, h("div", { class: "grid" }, Object.entries(NUMBERS).map(([key, [label, hint]]) =>
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
  const gpus = Object.values(Object.groupBy(machine.gpus, (gpu) => gpu.name)).map((same) => tile(same[0].name, `${same.length} × ${same[0].name}`, `${bytes(same[0].memory_bytes)} each`, ...same.flatMap((g) => gpuNotes(g, plan.dedicated))));
  const cpu = [machine.cpus && plural(machine.cpus, "core"), bytes(machine.memory_bytes)].filter(Boolean).join(", ");
  return [...gpus, machine.gpus.length > 0 && tile("any", "Any GPU", "whichever has room"), tile("cpu", "CPU only", cpu, plan.gpu === "cpu" && machine.fit?.said)];
}

function gpuNotes(gpu, whole) {
  const free = bytes(gpu.free_bytes ?? gpu.memory_bytes * (1 - gpu.held));
  const fit = gpu.fit?.[whole ? "whole" : "half"];
  return [`GPU ${gpu.index}: ${free} free, ${Math.round(gpu.held * 100)} % kept for others`, fit && `${fit.said}${fit.free_now ? "" : "; not free now"}`];
}
