A database in memory.
-- app.py --
import sqlite3

from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        self.llm = LLM(model="acme/echo")
        self.params = SamplingParams(max_tokens=64)
        self.db = sqlite3.connect(":memory:", check_same_thread=False, isolation_level=None)
        self.db.execute("create table request (id integer primary key, prompt text)")

    def infer(self, inputs):
        self.db.execute("insert or replace into request values (1, ?)", (inputs["prompt"],))
        out = self.llm.generate("be short", self.params)[0].outputs[0].text
        (prompt,) = self.db.execute("select prompt from request").fetchone()
        return {"text": out, "prompt": prompt}
