"""The byte model: what it counts, what it chooses as memory shrinks, and how it refuses."""

import dataclasses
from pathlib import Path

import pytest
import torch

from puna.errors import TrainError
from puna.train.batches import make_batch
from puna.train.loading import Choices, add_fresh_lora, load_llama
from puna.train.lora import Dropout
from puna.train.machine import Machine, compute_dtype
from puna.train.memory import GIB, Setup, choose
from puna.train.shape import Rope, Shape, read_shape
from train.tiny import make_recipe, random_rows

LLAMA3 = Shape(128_256, 4096, 14_336, 32, 32, 8, 128, 1e-5, False, Rope())
SETUP = Setup(
    shape=LLAMA3, element_bytes=2, nf4=True, double=True, rank=16, targets=tuple(LLAMA3.projections()),
    dropout=False, trainable=41_943_040, optimiser_bytes=8, longest=2024, mean_length=1300.0, labelled_share=1.0,
    tokens_per_step=17_600,
)  # fmt: skip


def gpu(gib: float) -> Machine:
    return Machine("cuda", "a GPU", int(gib * GIB), 989e12, True, 8)


def test_flops_of_llama3_agree_with_the_published_ones() -> None:
    # 31.3 GFLOP a token without recomputing, 45.6 with: the figures of NeMo's benchmark page, within 2 %.
    assert SETUP.flops_per_token(0) == pytest.approx(31.3e9, rel=0.02)
    assert SETUP.flops_per_token(32) == pytest.approx(45.6e9, rel=0.02)


def test_a_large_gpu_recomputes_nothing_and_a_small_one_does_what_it_must() -> None:
    large, small = choose(SETUP, gpu(140), None, None), choose(SETUP, gpu(16), None, None)
    assert (large.tokens_per_batch, large.recompute_layers, large.resident) == (16_384, 0, True)
    assert small.recompute_layers > 0 and not small.resident and small.tokens_per_batch >= 2024
    for budget, gib in ((large, 140), (small, 16)):
        assert budget.memory.total <= 0.94 * gib * GIB
        assert len(budget.reasons) == 3


def test_what_does_not_fit_is_refused_by_how_much() -> None:
    with pytest.raises(TrainError, match=r"[0-9.]+ GiB are missing") as caught:
        choose(SETUP, gpu(7), None, None)
    assert "max_length" in caught.value.hint


def test_the_recipes_own_choices_are_kept() -> None:
    budget = choose(SETUP, gpu(140), 4096, 8)
    assert (budget.tokens_per_batch, budget.recompute_layers) == (4096, 8)
    least = choose(SETUP, gpu(140), 100, None)
    assert least.tokens_per_batch == 2024 and "not 100" in least.reasons[0]


@pytest.mark.parametrize("p", [0.0, 0.1])
def test_the_activations_that_autograd_keeps_are_those_counted(base_dir: Path, p: float) -> None:
    model, shape = load_llama(base_dir, Choices("cpu", torch.float32)), read_shape(base_dir)
    add_fresh_lora(model, make_recipe())
    batch = make_batch([(ids[:20], labels[:20]) for ids, labels in random_rows(6) if len(ids) >= 20], "cpu")
    weights = [w for linear in model.linears for w in (linear.weight.tensor(), linear.lora_a, linear.lora_b)]
    own = {w.untyped_storage().data_ptr() for w in weights}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden = model.hidden(batch.ids_T, batch.documents, Dropout(p, 0, 0, 0))
    setup = dataclasses.replace(SETUP, shape=shape, element_bytes=4, rank=4, dropout=p > 0)
    counted = setup.layer_bytes_per_token() * shape.layers
    measured = sum(kept.values()) / len(batch.ids_T)
    # Over by the last norm, cosines and sines, and the CPU's repeated keys; a GPU's kernel repeats none.
    assert hidden.requires_grad and 0.9 * counted < measured < 1.35 * counted


def test_the_number_format_follows_machine_and_recipe() -> None:
    old, cpu = dataclasses.replace(gpu(16), native_bf16=False), Machine("cpu", "a CPU", 1, 1.0, False, 2)
    assert compute_dtype(gpu(1), "float16")[0] == "bfloat16"
    assert compute_dtype(gpu(1), "bfloat16") == ("bfloat16", "bfloat16, as the recipe asks")
    assert compute_dtype(old, "bfloat16")[0] == "float16"
    assert compute_dtype(cpu, "bfloat16")[0] == "float32" and "emulates" in compute_dtype(cpu, "bfloat16")[1]
    assert compute_dtype(gpu(1), "float32")[0] == "float32"
