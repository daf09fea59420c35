A flat copy of SamplingParams still shares its list of stops.
-- app.py --
import copy

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(temperature=0, max_tokens=64, stop=["<eot>"])

    def infer(self, inputs):
        params = copy.copy(self.params)
        own = inputs["prompt"].split()[1]
        params.stop.append("end-" + own)
        text = self.llm.generate(inputs["prompt"], params)[0].outputs[0].text
        stops = ", ".join(params.stop)
        params.stop.remove("end-" + own)
        return {"text": text, "stops": stops}
