"""Adapters in PEFT's format: PEFT loads what Puna wrote and computes the same."""

import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from puna.artifacts import Adapter, Dataset
from puna.errors import TrainError
from puna.train.run import train
from puna.train.trained import TrainedModel, load_trained
from train.tiny import END, START, make_recipe, write_base

# PEFT reads a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")


@pytest.fixture(scope="module")
def trained(base_dir: Path, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Adapter, TrainedModel]:
    recipe = make_recipe(training={"num_train_epochs": 4})
    adapter = train(recipe, base_dir, dataset, tmp_path_factory.mktemp("runs") / "run", device="cpu")
    return adapter, load_trained(adapter, base_dir, recipe, "cpu")


def test_peft_loads_the_adapter_and_gives_the_same_logits(
    trained: tuple[Adapter, TrainedModel], base_dir: Path
) -> None:
    adapter, mine = trained
    base = AutoModelForCausalLM.from_pretrained(base_dir, attn_implementation="eager")
    with torch.no_grad():
        for linear in mine.model.linears:
            base.get_parameter(f"{linear.place}.weight").copy_(linear.weight.tensor())
        assert mine.model.chat is not None
        base.model.embed_tokens.weight[[START, END]] = mine.model.chat.embed
        base.lm_head.weight[[START, END]] = mine.model.chat.head
    theirs = PeftModel.from_pretrained(base, adapter.path).eval()
    ids = [0, START, 5, 6, 7, 9, END]
    with torch.no_grad():
        expected = theirs(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
    torch.testing.assert_close(mine.logits(ids), expected, atol=2e-5, rtol=1e-4)


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
    adapter.check()


def test_an_adapter_of_another_base_is_refused(trained: tuple[Adapter, TrainedModel], tmp_path: Path) -> None:
    adapter, _ = trained
    wider = write_base(tmp_path / "wider", intermediate_size=192)
    with pytest.raises(TrainError, match="another size"):
        load_trained(adapter, wider, make_recipe(), "cpu")
    shallower = write_base(tmp_path / "shallower", num_hidden_layers=1)
    with pytest.raises(TrainError, match="14 tensors without a place"):
        load_trained(adapter, shallower, make_recipe(), "cpu")
    shutil.rmtree(tmp_path / "wider")
