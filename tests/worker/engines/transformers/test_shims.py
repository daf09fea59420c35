"""transformers, changed in place: a tokenizer for many threads, and an adapter's name in an unchanged app."""

from __future__ import annotations

import importlib
import json
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from merge import tiny
from puna import demo
from puna.worker.engines import engine
from puna.worker.engines.transformers import shims

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

MODULE = "transformers.tokenization_utils_tokenizers"
THREADS, ROUNDS = 16, 40


@pytest.fixture
def tokenizer() -> Any:
    shims.shim_tokenizers(importlib.import_module(MODULE))
    made = AutoTokenizer.from_pretrained(demo.BASE)
    made.pad_token = made.pad_token or made.eos_token
    return made


def work(tokenizer: Any, number: int) -> list[Any]:
    """What one caller asks: its own length, padding and text."""
    texts = [f"caller {number} says {'word ' * (number + n)}" for n in range(2)]
    padded = tokenizer(texts, padding="max_length", max_length=8 + number, truncation=True)
    plain = tokenizer.encode(texts[1], add_special_tokens=False)
    return [padded["input_ids"], plain, tokenizer.decode(plain), tokenizer.batch_decode(padded["input_ids"])]


def test_sixteen_threads_with_different_arguments_each_get_their_own(tokenizer: Any) -> None:
    alone = [work(tokenizer, number) for number in range(THREADS)]
    wrong: list[str] = []
    start = threading.Barrier(THREADS)

    def call(number: int) -> None:
        start.wait()
        for _ in range(ROUNDS):
            try:
                found = work(tokenizer, number)
            except BaseException as error:  # noqa: BLE001 - "Already borrowed", asserted below
                wrong.append(repr(error))
                continue
            if found != alone[number]:
                wrong.append(f"caller {number} got another's")

    threads = [threading.Thread(target=call, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong, f"{len(wrong)} of {THREADS * ROUNDS}: {wrong[0]}"


def test_a_second_look_changes_nothing_more(tokenizer: Any) -> None:
    kind = importlib.import_module(MODULE).TokenizersBackend
    before = kind._decode
    shims.shim_tokenizers(importlib.import_module(MODULE))
    assert kind._decode is before and getattr(before, engine.SAFE)


class Llama(LlamaForCausalLM):
    """A class of the test's own to change."""


shims.shim_loading(SimpleNamespace(PreTrainedModel=Llama))


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}])
def test_the_adapter_is_added_as_peft_adds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, object]
) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    tiny.write_peft(tmp_path / "peft", base, **options)
    (tmp_path / "adapters.json").write_text(json.dumps({"adapters": {str(base): {"path": "peft", "rank": 4}}}))
    monkeypatch.setenv("PUNA_ADAPTERS", str(tmp_path / "adapters.json"))
    ids = torch.arange(4, 24)[None]
    with torch.no_grad():
        expected = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "peft")(ids).logits
        torch.testing.assert_close(Llama.from_pretrained(str(base))(ids).logits, expected, rtol=1e-4, atol=1e-4)
        told, _ = Llama.from_pretrained(str(base), output_loading_info=True)
        torch.testing.assert_close(told(ids).logits, expected, rtol=1e-4, atol=1e-4)
        monkeypatch.delenv("PUNA_ADAPTERS")
        alone = Llama.from_pretrained(str(base))(ids).logits
    assert not torch.allclose(alone, expected, rtol=1e-2, atol=1e-2)


def test_a_model_without_the_matrices_says_what_to_do(tmp_path: Path) -> None:
    base = tiny.write_base(tmp_path / "base", torch.float32)
    tiny.write_peft(tmp_path / "peft", base)
    inner = AutoModelForCausalLM.from_pretrained(base).model
    with pytest.raises(RuntimeError, match=r"adapter a/b cannot be added to model.layers.0.*puna merge RUN"):
        shims.add_adapter(inner, SimpleNamespace(name="a/b", path=str(tmp_path / "peft")))


def of_kind(name: str = "LlamaForCausalLM", marked: bool = True, takes_places: bool = True, **config: Any) -> Any:
    """As much of a model as says whether its calls may be joined."""

    def with_places(input_ids: Any, position_ids: Any) -> None: ...

    def without(input_ids: Any) -> None: ...

    model = type(name, (), {shims.MARK: None} if marked else {})()
    model.forward = with_places if takes_places else without
    model.config = SimpleNamespace(**config)
    return model


def test_only_models_whose_rows_do_not_meet_are_shared() -> None:
    assert shims._is_causal(of_kind()) and shims._is_causal(of_kind(rope_parameters={"rope_type": "llama3"}))
    assert not shims._is_causal(of_kind("T5ForConditionalGeneration"))
    assert not shims._is_causal(of_kind(is_encoder_decoder=True))
    assert not shims._is_causal(of_kind(marked=False)), "its generate is not the one that was changed"
    assert not shims._is_causal(of_kind(takes_places=False)), "rows of different lengths cannot be joined"
    for scaling in ({"rope_type": "dynamic"}, {"type": "longrope"}):
        assert not shims._is_causal(of_kind(rope_scaling=scaling)), "its angles are those of the longest row"
