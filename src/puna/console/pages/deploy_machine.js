// The wizard's third step: what the app runs on, and how many of it.

import { h } from "../dom.js";
import { bytes, plural } from "../format.js";
import { check, field } from "../ui.js";

const NUMBERS = {
  min_replica: ["Replicas at least", "0: none while nobody calls"], max_replica: ["Replicas at most", ""],
  inference_time_s: ["Seconds a request may take", ""], scale_down_delay_s: ["Idle seconds before a replica goes", ""],
  container_concurrency: ["Requests at once per replica", "0: chosen by the engine"],
};

export function machineStep(plan, { machine }) {
  const share = check("A whole GPU (otherwise half of one)", plan.dedicated);
  const show = () => { share.hidden = plan.gpu === "cpu"; };
  share.box.addEventListener("change", () => { plan.dedicated = share.box.checked; });
  const tile = (value, title, ...notes) => h("label", { class: "tile" }, h("input", { type: "radio", name: "gpu", value, checked: plan.gpu === value, onchange: () => { plan.gpu = value; show(); } }),
    h("span", {}, h("strong", {}, title), notes.map((n) => h("small", {}, n))));
  const gpus = Object.values(Object.groupBy(machine.gpus, (gpu) => gpu.name)).map((same) => tile(same[0].name, `${same.length} × ${same[0].name}`,
    `${bytes(same[0].memory_bytes)} each`, ...same.map((g) => `GPU ${g.index}: ${bytes(g.memory_bytes * (1 - g.held))} not booked`)));
  show();
  return {
    nodes: [h("fieldset", { class: "tiles" }, h("legend", {}, "Runs on"), gpus, machine.gpus.length > 0 && tile("any", "Any GPU", "whichever has room"),
      tile("cpu", "CPU only", [machine.cpus && plural(machine.cpus, "core"), bytes(machine.memory_bytes)].filter(Boolean).join(", "))), machine.gpus.length > 0 && share,
    h("div", { class: "grid" }, Object.entries(NUMBERS).map(([key, [label, hint]]) => field(label, h("input", { type: "number", min: 0, value: plan.numbers[key], oninput: (e) => { plan.numbers[key] = Number(e.target.value); } }), { hint })))],
    valid: async () => {
      const { min_replica: low, max_replica: high } = plan.numbers;
      if (high < 1) throw { message: "At most 0 replicas would never answer", hint: "at least 1" };
      if (low > high) throw { message: `At least ${low} replicas is more than at most ${high}`, hint: "raise the one or lower the other" };
    },
  };
}
