"""Verification against a real trained model: what PEFT and bitsandbytes run, and merges that were spoilt on purpose."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merge import tiny
from merge.conftest import Trained
from puna.artifacts import Model
from puna.errors import MergeError
from puna.merge.stream import merge
from puna.merge.verify import MAX_LOSS_RISE, Expected, Probes, Verification, compare, expect, judge, read_probes
from puna.progress import Silent

# PEFT asks transformers by a name that the latter has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def model(made: Trained) -> Model:
    return merge(made.adapter, made.base, made.home, base="dequantised", base_ref="tiny", recipe=tiny.recipe())


@pytest.fixture(scope="module")
def expected(made: Trained, trained: tiny.PeftTrained) -> Expected:
    return expect(trained, probes(made), Silent())


@pytest.fixture
def copied(model: Model, tmp_path: Path) -> Model:
    return Model.open(shutil.copytree(model.path, tmp_path / "model"))


def probes(made: Trained) -> Probes:
    return replace(read_probes(made.dataset), reply_tokens=4)


def verified(model: Model, trained: tiny.PeftTrained, made: Trained) -> Verification:
    """A merged model beside the trained one, with all of the dataset's probes."""
    every = read_probes(made.dataset)
    return compare(model, expect(trained, every, Silent()), every, Silent())


def compared(made: Trained, model: Model, expected: Expected) -> Verification:
    return compare(model, expected, probes(made), Silent())


def test_the_dequantised_merge_is_the_trained_model(made: Trained, copied: Model, trained: tiny.PeftTrained) -> None:
    found = verified(copied, trained, made)
    assert found.passed and found.exact and found.token_ids_equal, found.reasons
    assert abs(found.merged_loss - found.trained_loss) < 0.002
    # In bfloat16 the share depends on the CPU: 0.009 where products round as AVX2 does, 0.012 with its own bf16 units.
    assert found.mean_kl < 2e-4 and found.logits_share < 0.02 and found.same_top > 0.97
    assert 0 < found.logits_mean_diff < found.logits_max_diff
    assert found.replies_equal.endswith("of 2")
    assert Model.open(copied.path).manifest.metrics["verification"]["passed"] is True
    assert not Model.open(copied.path).damage()


def test_without_4_bits_the_plain_merge_must_be_the_trained_model(made: Trained, tmp_path: Path) -> None:
    recipe = tiny.recipe(quantization={"load_in_4bit": False})
    home = replace(made.home, root=tmp_path)
    merged = merge(made.adapter, made.base, home, base="original", base_ref="tiny", recipe=recipe)
    found = verified(merged, tiny.PeftTrained.load(made.base, made.peft, in_4bit=False), made)
    assert found.exact and found.passed, found.reasons


def test_the_original_base_is_told_from_the_dequantised_one(
    made: Trained, expected: Expected, model: Model, tmp_path: Path
) -> None:
    home = replace(made.home, root=tmp_path)
    original = merge(made.adapter, made.base, home, base="original", base_ref="tiny", recipe=tiny.recipe())
    found = compared(made, original, expected)
    assert not found.exact and found.logits_share > 10 * compared(made, model, expected).logits_share
    assert found.passed == (found.merged_loss - found.trained_loss <= MAX_LOSS_RISE)


def with_weights(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path / "model.safetensors")
    change(tensors)
    save_file(tensors, path / "model.safetensors", {"format": "pt"})


def undo_one_lora(path: Path, base: Path) -> None:
    name = "model.layers.1.mlp.down_proj.weight"
    with_weights(path, lambda t: t.update({name: load_file(base / "model.safetensors")[name]}))


def undo_the_rows(path: Path, base: Path) -> None:
    name = "lm_head.weight"
    with_weights(path, lambda t: t.update({name: load_file(base / "model.safetensors")[name]}))


def transpose_one(path: Path, base: Path) -> None:
    name = "model.layers.0.self_attn.o_proj.weight"
    with_weights(path, lambda t: t.update({name: t[name].T.contiguous()}))


def make_nan(path: Path, base: Path) -> None:
    with_weights(path, lambda t: t["model.norm.weight"].fill_(float("nan")))


@pytest.mark.parametrize("spoil", [undo_one_lora, undo_the_rows, transpose_one, make_nan])
def test_one_altered_tensor_is_caught(
    made: Trained, copied: Model, expected: Expected, spoil: Callable[[Path, Path], None]
) -> None:
    spoil(copied.path, made.base)
    found = compared(made, copied, expected)
    assert not found.passed and found.reasons
    assert Model.open(copied.path).manifest.metrics["verification"]["passed"] is False


def edit(path: Path, change: Callable[[Any], None]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_a_wrong_eos_is_caught(made: Trained, copied: Model, expected: Expected, file: str) -> None:
    edit(copied.path / file, lambda config: config.update(eos_token_id=1))
    found = compared(made, copied, expected)
    assert not found.passed and any(file in reason and "[1]" in reason for reason in found.reasons)


def test_a_tokenizer_with_the_wrong_eos_is_caught(made: Trained, copied: Model, expected: Expected) -> None:
    for file in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(copied.path / file, lambda config: config.update(eos_token=tiny.BOS))
    found = compared(made, copied, expected)
    assert any("the tokenizer's eos is 0" in reason for reason in found.reasons)


def test_a_tokenizer_that_adds_bos_to_the_rendered_text_is_caught(
    made: Trained, copied: Model, expected: Expected
) -> None:
    bos = {"SpecialToken": {"id": tiny.BOS, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    ids = {tiny.BOS: {"id": tiny.BOS, "ids": [0], "tokens": [tiny.BOS]}}
    both = {"type": "TemplateProcessing", "single": [bos, text], "pair": [bos, text, text], "special_tokens": ids}
    edit(copied.path / "tokenizer.json", lambda value: value.update(post_processor=both))
    found = compared(made, copied, expected)
    assert not found.token_ids_equal and not found.passed
    assert "render, then encode" in found.reasons[0] and "from token 0" in found.reasons[0]


def test_another_template_is_caught(made: Trained, copied: Model, expected: Expected) -> None:
    template = tiny.TEMPLATE.replace("<|im_end|>\n", "<|im_end|>")
    (copied.path / "chat_template.jinja").write_text(template)
    edit(copied.path / "tokenizer_config.json", lambda config: config.update(chat_template=template))
    assert not compared(made, copied, expected).token_ids_equal


def test_config_generation_config_and_tokenizer_agree_with_the_data(model: Model, made: Trained) -> None:
    for file in ("config.json", "generation_config.json"):
        settings = json.loads((model.path / file).read_text())
        assert settings["eos_token_id"] == [3, 1] and settings["bos_token_id"] == 0 and settings["pad_token_id"] == 4
    assert json.loads((model.path / "config.json").read_text())["dtype"] == "bfloat16"
    assert (model.path / "tokenizer.json").read_bytes() == (made.tokenizer / "tokenizer.json").read_bytes()
    assert (model.path / "LICENSE").read_text() == "Herders' licence\n"


def test_an_adapter_whose_tokenizer_contradicts_its_data_is_refused(made: Trained, tmp_path: Path) -> None:
    tiny.write_tokenizer(tmp_path / "tokenizer", eos="<|end_of_text|>")
    home = replace(made.home, root=tmp_path / "home")
    shutil.copytree(made.home.datasets, home.datasets, dirs_exist_ok=True)
    adapter = tiny.seal_adapter(home, made.peft, tmp_path / "tokenizer", made.dataset)
    with pytest.raises(MergeError, match="ends a reply with 1, the training data with 3"):
        merge(adapter, made.base, home, base="original", base_ref="tiny", recipe=tiny.recipe())


FIGURES = tiny.FIGURES


def test_figures_within_the_limits_pass_and_each_one_beyond_is_named() -> None:
    assert judge(FIGURES) == []
    assert "KL" in judge(replace(FIGURES, mean_kl=0.02))[0]
    assert "spread" in judge(replace(FIGURES, logits_share=0.2))[0]
    assert "held-out loss" in judge(replace(FIGURES, merged_loss=0.9))[0]
    assert judge(replace(FIGURES, mean_kl=float("nan"))) != []


def test_an_original_merge_may_be_better_but_not_worse() -> None:
    original = replace(FIGURES, base="original", exact=False, logits_share=0.3, mean_kl=0.1)
    assert judge(replace(original, merged_loss=0.5)) == []
    assert "rose from 1.0000 to 1.0200" in judge(replace(original, merged_loss=1.02))[0]
    assert judge(replace(original, merged_loss=float("nan"))) != []
