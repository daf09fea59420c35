"""LoRA against PEFT on the same dequantised base: the same losses and gradients; dropout and noise that repeat."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from puna.train.batches import make_batch
from puna.train.model.elementwise import keep
from puna.train.model.llama import Llama
from puna.train.model.loading import Choices, add_fresh_lora, load_llama
from puna.train.model.lora import Dropout, fresh_pair
from puna.train.rows import count_labelled
from train.tiny import make_recipe, random_rows, whole

# PEFT reads a name that transformers has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
NF4 = Choices("cpu", torch.float32)


def peft_twin(base_dir: Path, model: Llama) -> torch.nn.Module:
    """transformers' model with our dequantised matrices and PEFT's LoRA with our masters."""
    theirs = AutoModelForCausalLM.from_pretrained(base_dir, attn_implementation="eager")
    with torch.no_grad():
        for linear in model.linears:
            theirs.get_parameter(f"{linear.place}.weight").copy_(whole(linear.weight))
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=0.0, target_modules="all-linear", task_type="CAUSAL_LM")
    wrapped = get_peft_model(theirs, config)
    with torch.no_grad():
        for name, master in model.named_masters().items():
            wrapped.get_parameter(name.replace(".weight", ".default.weight")).copy_(master)
    return wrapped


def test_losses_and_gradients_equal_pefts(base_dir: Path) -> None:
    model = load_llama(base_dir, NF4)
    add_fresh_lora(model, make_recipe())
    with torch.no_grad():  # B is zero at the start, which would leave A without a gradient
        for name, master in model.named_masters().items():
            if "lora_B" in name:
                master.copy_(torch.randn(master.shape, generator=torch.Generator().manual_seed(len(name))) * 0.05)
    theirs, rows = peft_twin(base_dir, model), random_rows(4, seed=3)
    labelled = count_labelled(rows)
    expected = torch.zeros(())
    for ids, labels in rows:
        logits = theirs(input_ids=torch.tensor(ids[None]).long(), use_cache=False).logits[0]
        targets = torch.tensor(labels[1:]).long()
        expected = expected + torch.nn.functional.cross_entropy(logits[:-1], targets, reduction="sum") / labelled
    expected.backward()
    batch = make_batch(rows, "cpu")
    loss = model.loss(batch) / labelled
    loss.backward()
    torch.testing.assert_close(loss, expected, atol=1e-6, rtol=1e-6)
    for name, master in model.named_masters().items():
        gradient = theirs.get_parameter(name.replace(".weight", ".default.weight")).grad
        torch.testing.assert_close(master.grad, gradient, atol=2e-6, rtol=2e-4, msg=name)


def test_a_fresh_pair_starts_as_pefts_does() -> None:
    linear = torch.nn.Linear(48, 32, bias=False)
    theirs = get_peft_model(torch.nn.Sequential(linear), LoraConfig(r=8, target_modules=["0"]))
    a, b = fresh_pair(32, 48, 8, torch.Generator().manual_seed(0))
    reference = dict(theirs.named_parameters())["base_model.model.0.lora_A.default.weight"]
    bound = 48**-0.5  # kaiming-uniform with a = sqrt(5) over 48 inputs
    assert a.shape == reference.shape and not b.any()
    assert reference.abs().max() <= bound and 0.95 * bound < a.abs().max() <= bound


@pytest.mark.parametrize("p", [0.05, 0.5])
def test_dropout_repeats_in_its_place_and_differs_elsewhere(p: float) -> None:
    def mask(dropout: Dropout, place: str) -> torch.Tensor:
        how = dropout.at(place)
        assert how is not None
        return keep(torch.Size((50, 401)), how, torch.device("cpu"))

    first = Dropout(p, 1, 2, 3)
    assert torch.equal(mask(first, "a"), mask(Dropout(p, 1, 2, 3), "a"))
    others = [mask(first, "b"), *(mask(Dropout(p, *at), "a") for at in ((2, 2, 3), (1, 3, 3), (1, 2, 4)))]
    # Two masks that knew nothing of each other drop the same elements in p^2 of all places.
    for other in others:
        both = float((~mask(first, "a") & ~other).float().mean())
        assert both == pytest.approx(p * p, abs=0.01)
    assert abs(float(mask(first, "a").float().mean()) - first.kept) < 0.015
    assert first.kept == pytest.approx(1 - p, abs=1e-5)


def test_without_dropout_there_is_no_mask() -> None:
    assert Dropout(0.0, 1, 2, 3).at("a") is None and Dropout(0.0, 1, 2, 3).kept == 1.0


def test_noise_repeats_in_its_pass_and_differs_in_others() -> None:
    x_TD, lengths = torch.zeros(50, 64), torch.tensor([40, 10])
    first = Dropout(0.0, 1, 2, 3, 5.0).noisy(x_TD, lengths)
    assert torch.equal(first, Dropout(0.0, 1, 2, 3, 5.0).noisy(x_TD, lengths))
    for at in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        other = Dropout(0.0, *at, 5.0).noisy(x_TD, lengths)
        assert abs(float(torch.corrcoef(torch.stack((first.flatten(), other.flatten())))[0, 1])) < 0.1
    for length, noise in zip((40, 10), first.split((40, 10)), strict=True):
        bound = 5 / (length * 64) ** 0.5  # each document has a bound of its own
        assert 0.99 * bound < noise.abs().max() <= bound and abs(float(noise.mean())) < 0.1 * bound


def test_noise_is_added_in_training_alone(base_dir: Path) -> None:
    model, batch = load_llama(base_dir, NF4), make_batch(random_rows(4, seed=3), "cpu")
    plain, noisy = model.loss(batch), model.loss(batch, Dropout(0.0, 1, 2, 3, 5.0))
    assert torch.equal(model.loss(batch, Dropout(0.0, 1, 2, 3)), plain)
    assert torch.equal(model.loss(batch, Dropout(0.0, 1, 2, 3, 5.0)), noisy) and not torch.equal(noisy, plain)
    assert torch.equal(model.loss(batch), plain)
