"""Adapters in PEFT's format: PEFT loads what Puna wrote and computes the same."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from puna.artifacts import Adapter, Dataset
from puna.errors import TrainError
from puna.merge.delta import load_delta
from puna.train.run import train
from puna.train.trained import TrainedModel, load_trained
from train.tiny import END, START, make_recipe, whole, write_base

# PEFT reads a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


def train_and_load(
    base_dir: Path, dataset: Dataset, folder: Path, use_rslora: bool = False
) -> tuple[Adapter, TrainedModel]:
    recipe = make_recipe(training={"num_train_epochs": 4}, lora={"use_rslora": use_rslora})
    adapter = train(recipe, base_dir, dataset, folder / "run", device="cpu")
    return adapter, load_trained(adapter, base_dir, recipe, "cpu")


@pytest.fixture(scope="module")
def trained(base_dir: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, TrainedModel]:
    return train_and_load(base_dir, dataset, tmp_path_factory.mktemp("runs"))


def pefts_logits(adapter: Adapter, mine: TrainedModel, base_dir: Path, ids: list[int]) -> torch.Tensor:
    """Of PEFT's model from the adapter's files, on our dequantised base with our chat rows."""
    base = AutoModelForCausalLM.from_pretrained(base_dir, attn_implementation="eager")
    with torch.no_grad():
        for linear in mine.model.linears:
            base.get_parameter(f"{linear.place}.weight").copy_(whole(linear.weight))
        assert mine.model.chat is not None
        base.model.embed_tokens.weight[[START, END]] = mine.model.chat.embed
        base.lm_head.weight[[START, END]] = mine.model.chat.head
    theirs = PeftModel.from_pretrained(base, adapter.path).eval()
    with torch.no_grad():
        logits: torch.Tensor = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    return logits


def test_peft_loads_the_adapter_and_gives_the_same_logits(
    trained: tuple[Adapter, TrainedModel], base_dir: Path
) -> None:
    adapter, mine = trained
    ids = [0, START, 5, 6, 7, 9, END]
    torch.testing.assert_close(mine.logits(ids), pefts_logits(adapter, mine, base_dir, ids), atol=2e-5, rtol=1e-4)


def test_an_adapter_that_is_scaled_by_the_root_of_its_rank_is_so_in_peft_and_in_a_merge(
    base_dir: Path, dataset: Dataset, tmp_path: Path
) -> None:
    adapter, mine = train_and_load(base_dir, dataset, tmp_path, use_rslora=True)
    ids = [0, START, 5, 6, 7, 9, END]
    torch.testing.assert_close(mine.logits(ids), pefts_logits(adapter, mine, base_dir, ids), atol=2e-5, rtol=1e-4)
    assert {linear.scale for linear in mine.model.linears} == {8 / 4**0.5} == {load_delta(adapter.path).scale}


def test_a_reply_is_the_likeliest_tokens_up_to_the_stop(trained: tuple[Adapter, TrainedModel]) -> None:
    _, model = trained
    prompt, expected = [0, START, 20, 21, 22], []
    for _ in range(12):
        expected.append(int(model.logits(prompt + expected)[-1].argmax()))
    assert model.reply(prompt, 12, []) == expected
    stop = expected[4]
    assert model.reply(prompt, 12, [stop]) == expected[: expected.index(stop)]


def test_the_tokenizer_travels_with_the_adapter(trained: tuple[Adapter, TrainedModel], dataset: Dataset) -> None:
    adapter, _ = trained
    for file in (dataset.path / "tokenizer").iterdir():
        assert (adapter.path / "tokenizer" / file.name).read_bytes() == file.read_bytes()
    assert not adapter.damage()


def test_an_adapter_of_another_base_is_refused(trained: tuple[Adapter, TrainedModel], tmp_path: Path) -> None:
    adapter, _ = trained
    wider = write_base(tmp_path / "wider", intermediate_size=192)
    with pytest.raises(TrainError, match="another size"):
        load_trained(adapter, wider, make_recipe(), "cpu")
    shallower = write_base(tmp_path / "shallower", num_hidden_layers=1)
    with pytest.raises(TrainError, match="14 tensors without a place"):
        load_trained(adapter, shallower, make_recipe(), "cpu")
    shutil.rmtree(tmp_path / "wider")
