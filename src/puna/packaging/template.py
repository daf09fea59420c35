"""`puna init`: the four files of a project, in the tutorial's shape."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Literal

from puna.config.runtime import has_nvidia
from puna.config.settings import DEFAULTS
from puna.errors import ConflictError, ProjectError

_VLLM_APP = """\
from transformers import AutoTokenizer
from vllm import LLM, SamplingParams


class InferlessPythonModel:
    def initialize(self):
        model_id = {model}{revision}
        # How the model's next token is drawn, and where it stops at the latest
        self.sampling_params = SamplingParams(temperature=0.7, top_p=0.95, max_tokens=128)
        self.llm = LLM(model=model_id{pinned})
        self.tokenizer = AutoTokenizer.from_pretrained(model_id{pinned})

    def infer(self, inputs):
        chat = [{{"role": "user", "content": inputs["prompt"]}}]
        text = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        # The template has written the special tokens already
        prompt = {{"prompt_token_ids": self.tokenizer.encode(text, add_special_tokens=False)}}
        result = self.llm.generate(prompt, self.sampling_params)
        return {{"generated_text": result[0].outputs[0].text}}

    def finalize(self):
        self.llm = None
"""
_TRANSFORMERS_APP = """\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


class InferlessPythonModel:
    def initialize(self):
        model_id = {model}{revision}
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.tokenizer = AutoTokenizer.from_pretrained(model_id{pinned})
        self.model = AutoModelForCausalLM.from_pretrained(model_id{pinned}).to(self.device).eval()

    def infer(self, inputs):
        chat = [{{"role": "user", "content": inputs["prompt"]}}]
        prompt = self.tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.device)
        with torch.inference_mode():
            # The model's own generation_config names the tokens that end a reply
            output = self.model.generate(
                **prompt, max_new_tokens=128, do_sample=False, pad_token_id=self.tokenizer.eos_token_id
            )
        reply = output[0, prompt["input_ids"].shape[1] :]
        return {{"generated_text": self.tokenizer.decode(reply, skip_special_tokens=True)}}

    def finalize(self):
        self.model = None
"""
_SCHEMA = """\
INPUT_SCHEMA = {
    "prompt": {
        "datatype": "STRING",
        "required": True,
        "shape": [1],
        "example": ["What is AI?"],
    }
}
"""
_RUNTIME = """\
build:
{cuda}  python_packages:
{packages}"""
_PROJECT = """\
version: 1.0.0
name: {name}
import_source: LOCAL
source_framework_type: PYTORCH
configuration:
  custom_runtime_name: ''      # an uploaded runtime; empty: inferless-runtime-config.yaml beside this file
  custom_volume_name: ''
  gpu_type: '{gpu}'
  is_dedicated: true           # a whole GPU; false: half of one
  is_serverless: false
  min_replica: '0'             # 0: scales to zero
  max_replica: '1'
  scale_down_delay: '{idle:g}'      # seconds without a request until a replica sleeps, or goes
  inference_time: '{limit:g}'        # seconds a request may take
env:
secrets:
optional:
  runtime_file_name: inferless-runtime-config.yaml
{models}"""
_PACKAGES = {
    "vllm": ("vllm==0.25.1", "transformers==5.23.0"),
    "transformers": ("torch==2.13.0", "transformers==5.23.0", "safetensors==0.8.0"),
}
_APPS = {"vllm": _VLLM_APP, "transformers": _TRANSFORMERS_APP}

Engine = Literal["vllm", "transformers"]
ENGINES = ("auto", *_APPS)


def chosen(engine: str) -> Engine:
    """The engine that `auto` means on this machine: vLLM where there is a GPU.

    Raises:
        ProjectError: there is no such engine.
    """
    if engine not in ENGINES:
        raise ProjectError(f"there is no engine {engine!r}", f"one of {', '.join(ENGINES)}")
    if engine == "auto":
        return "vllm" if has_nvidia() else "transformers"
    return "vllm" if engine == "vllm" else "transformers"


def init(
    folder: Path,
    model: str,
    *,
    name: str,
    engine: Engine,
    force: bool = False,
    published: str | None = None,
    revision: str | None = None,
) -> list[Path]:
    """Write app.py, input_schema.py, inferless-runtime-config.yaml and inferless.yaml for `model`.

    `published` is the one version that its name means (`owner/name:3`), `revision` the commit on the hub.

    Raises:
        ConflictError: a file of that name is there and says something else, and `force` is off; nothing is written.
    """
    packages = "".join(f'    - "{package}"\n' for package in _PACKAGES[engine])
    texts = {
        "app.py": _APPS[engine].format(
            model=json.dumps(model),
            revision=f"\n        revision = {json.dumps(revision)}" if revision else "",
            pinned=", revision=revision" if revision else "",
        ),
        "input_schema.py": _SCHEMA,
        "inferless-runtime-config.yaml": _RUNTIME.format(
            cuda='  cuda_version: "13.0"\n' if engine == "vllm" else "", packages=packages
        ),
        "inferless.yaml": _PROJECT.format(
            name=json.dumps(name),
            idle=DEFAULTS.scale_down_delay_s,
            limit=DEFAULTS.inference_time_s,
            gpu="A100" if engine == "vllm" else "",
            models=f"models:\n  - {json.dumps(published)}\n" if published else "",
        ),
    }
    changed = [n for n, text in texts.items() if (folder / n).exists() and (folder / n).read_text() != text]
    if changed and not force:
        raise ConflictError(
            f"{folder} holds other files already: {', '.join(changed)}", "choose another folder, or add --force"
        )
    folder.mkdir(parents=True, exist_ok=True)
    for file, text in texts.items():
        (folder / file).write_text(text)
    return [folder / file for file in texts]


def check_update(folder: Path, model: str) -> None:
    """Refuse a folder that `update` cannot bring to another version of `model`.

    Raises:
        ConflictError: the app there does not name the model.
    """
    app, file = folder / "app.py", folder / "inferless.yaml"
    if json.dumps(model) not in app.read_text() or not file.exists():
        raise ConflictError(f"{folder} holds another app: it does not name {model}", "choose another --folder")


def update(folder: Path, model: str, published: str) -> None:
    """The app that an earlier `init` wrote for `model`, edited since perhaps, now for the version `published`.

    Only the `models` of its inferless.yaml change.

    Raises:
        ConflictError: the app there does not name the model; nothing is written.
    """
    check_update(folder, model)
    file = folder / "inferless.yaml"
    others = re.sub(r"(?m)^models:.*\n(?:[ \t]+.*\n|- .*\n)*", "", file.read_text().rstrip("\n") + "\n")
    file.write_text(f"{others}models:\n  - {json.dumps(published)}\n")
