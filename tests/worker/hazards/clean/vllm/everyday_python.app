Constructs of every day, all on the call's own values.
-- app.py --
import enum
import sys
from collections import Counter
from datetime import datetime
from typing import Dict, List, NamedTuple, Optional

from vllm import LLM, SamplingParams


class Style(enum.Enum):
    PLAIN = "plain"
    LOUD = "loud"
    QUIET = "quiet"


class Turn(NamedTuple):
    role: str
    content: str


def numbered(lines: List[str], start: int = 1) -> Dict[int, str]:
    return {number: line for number, line in enumerate(lines, start)}


class InferlessPythonModel:
    LIMITS = {"plain": 64, "loud": 48, "quiet": 32}

    def initialize(self):
        self.llm = LLM(model="acme/echo")

    def infer(self, inputs):
        began: datetime = datetime.now()
        style = Style(inputs.get("style", "plain"))
        turns = [Turn("system", f"be {style.value}"), Turn("user", inputs["prompt"])]
        prompt: Optional[str] = None
        while prompt is None:
            prompt = "\n".join(f"{turn.role} : {turn.content}" for turn in turns)
        words = list(map(str.strip, prompt.split(" ")))
        assert words, "nothing was asked"
        print("words:", len(words), file=sys.stderr, flush=True)
        most = Counter(words).most_common(1)[0][1]
        params = SamplingParams(max_tokens=self.LIMITS[style.value], temperature=0.0 if style is Style.PLAIN else 0.5)
        text = self.llm.generate(prompt, params)[0].outputs[0].text
        lines = numbered(sorted(text.splitlines(), key=lambda line: len(line)))
        first, *_ = lines.values() or [""]
        took = (datetime.now() - began).total_seconds()
        return {"generated_text": text, "first": first, "most": most, "took": took}
