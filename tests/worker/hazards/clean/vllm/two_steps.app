A draft and an answer, both locals.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.draft_params = SamplingParams(max_tokens=6)
        self.answer_params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        draft = self.llm.generate(inputs["prompt"], self.draft_params)[0].outputs[0].text
        lines = [f"context : {draft}"]
        lines += ["question : " + inputs["prompt"]]
        answer = self.llm.generate("\n".join(lines), self.answer_params)[0].outputs[0].text
        return {"draft": draft, "answer": answer}
