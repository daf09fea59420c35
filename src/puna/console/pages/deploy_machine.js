// The wizard's third step: what the app runs on, whether its model fits there, and how many of it.

import { api, part } from "../api.js";
import { h } from "../dom.js";
import { field } from "../ui.js";
import { machinePart } from "./machine.js";

const NUMBERS = {
  min_replica: ["Replicas at least", "0: none while nobody calls"], max_replica: ["Replicas at most", ""],
  inference_time_s: ["Seconds a request may take", ""], scale_down_delay_s: ["Idle seconds before a replica goes", ""],
  container_concurrency: ["Requests at once per replica", "0: chosen by the engine"],
};

export function machineStep(plan, known, page) {
  const { nodes, update } = machinePart(plan, known.machine);
  // What is free may have changed since the page was opened, and only now it is known what is to fit.
  api.get(`/machine?source=${part(plan.source)}`, { signal: page.signal }).then((machine) => {
    known.machine = machine;
    update(machine);
  }, () => {});
  return {
    nodes: [nodes, h("div", { class: "grid" }, Object.entries(NUMBERS).map(([key, [label, hint]]) =>
      field(label, h("input", { type: "number", min: 0, value: plan.numbers[key], oninput: (e) => { plan.numbers[key] = Number(e.target.value); } }), { hint })))],
    valid: async () => {
      const { min_replica: low, max_replica: high } = plan.numbers;
      if (high < 1) throw { message: "At most 0 replicas would never answer", hint: "at least 1" };
      if (low > high) throw { message: `At least ${low} replicas is more than at most ${high}`, hint: "raise the one or lower the other" };
    },
  };
}
