"""The cache view as the Hugging Face libraries see it: `owner/name` resolves with no network at all."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from puna.artifacts import SHORT, Model, drafting
from puna.home import Home
from puna.packaging import source, template
from puna.packaging.bundle import ModelRef, app_env, bundle
from puna.packaging.environment import Environment

pytestmark = pytest.mark.process

MAKE = """
import sys, torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
torch.set_num_threads(1)
words = ["<unk>", "<|im_start|>", "<|im_end|>", "user", "assistant", "What", "is", "AI", "?", "hi"]
tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<|im_end|>",
                               additional_special_tokens=["<|im_start|>"])
fast.chat_template = ("{% for m in messages %}<|im_start|>{{ m.role }} {{ m.content }}<|im_end|>{% endfor %}"
                      "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}")
config = LlamaConfig(vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
                     num_attention_heads=2, num_key_value_heads=1, eos_token_id=2, bos_token_id=None)
LlamaForCausalLM(config).save_pretrained(sys.argv[1])
fast.save_pretrained(sys.argv[1])
"""
USE = """
import json, socket, sys
def refuse(*a, **k): raise OSError("the network was asked")
socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
from huggingface_hub import snapshot_download
folder = snapshot_download("acme/tiny", local_files_only=True)
assert snapshot_download("acme/tiny") == folder
sys.path.insert(0, ".")
import app
model = app.InferlessPythonModel()
model.initialize()
reply = model.infer({"prompt": "What is AI ?"})
model.finalize()
print(json.dumps({"folder": folder, "reply": reply}))
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Home, ModelRef]:
    home = Home(tmp_path_factory.mktemp("hf") / "home")
    with drafting("model", home.models) as draft:
        subprocess.run([sys.executable, "-c", MAKE, draft.path], check=True, capture_output=True)
    made = Model.open(draft.final)
    return home, ModelRef("acme/tiny", 1, made.digest, made.path)


def test_the_templates_app_answers_from_the_bundle_without_network(tiny: tuple[Home, ModelRef], tmp_path: Path) -> None:
    home, model = tiny
    template.init(tmp_path / "app", "acme/tiny", name="tiny", engine="transformers")
    source.check(tmp_path / "app")
    digest = "e" * 64
    environment = Environment(home.environments / digest[:SHORT], digest, Path(sys.executable), ())
    made = bundle(source.snapshot(tmp_path / "app", home), environment, [model], home)
    run = subprocess.run(
        [sys.executable, "-I", "-c", USE],
        env=app_env(made, extra={"OMP_NUM_THREADS": "1"}),
        cwd=made.path / "app",
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    shown = json.loads(run.stdout.splitlines()[-1])
    assert shown["folder"] == str(made.path / "hub" / "models--acme--tiny" / "snapshots" / model.digest[:40])
    assert isinstance(shown["reply"]["generated_text"], str)
    assert not made.damage()
