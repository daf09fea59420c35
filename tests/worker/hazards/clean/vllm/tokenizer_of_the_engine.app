Token ids by the engine's own tokenizer.
-- app.py --
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.tokenizer = self.llm.get_tokenizer()
        self.params = SamplingParams(max_tokens=64)

    def infer(self, inputs):
        chat = [{"role": "user", "content": inputs["prompt"]}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        ids = self.tokenizer.encode(text, add_special_tokens=False)
        out = self.llm.generate({"prompt_token_ids": ids}, self.params)
        return {"generated_text": out[0].outputs[0].text, "prompt_tokens": len(ids)}
