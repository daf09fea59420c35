"""NF4 as bitsandbytes makes it: the same codes, the same scales, the same weights back."""

from pathlib import Path

import bitsandbytes
import numpy as np
import pytest
import torch

from puna.artifacts import Dataset
from puna.train.model import elementwise
from puna.train.model.lora import LoraLinear, Product
from puna.train.model.quant import EightBit, FrozenWeight, freeze, quantise
from puna.train.reporting.record import Run
from puna.train.run import train
from train.tiny import make_recipe, whole


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_a_product_is_within_what_e4m3_can_tell() -> None:
    w, x, g = torch.randn(96, 64) * 0.02, torch.randn(40, 64), torch.randn(40, 96) * 1e-4
    eight = EightBit(w, elementwise.quantise_rows)
    # Three bits of mantissa: each factor is off by at most 1/16, by 2 to 3 % on average; errors of a sum cancel.
    assert 0.001 < relative(eight.forward(x), x @ w.t()) < 0.05
    assert 0.001 < relative(eight.backward(g), g @ w) < 0.05


def test_rows_of_zeros_and_of_any_size_survive() -> None:
    x = torch.stack((torch.zeros(32), torch.full((32,), 1e-20), torch.full((32,), 1e20)))
    values, scale = elementwise.quantise_rows(x)
    assert torch.isfinite(values.float()).all() and (values[0].float() == 0).all()
    torch.testing.assert_close(values[2].float() * scale[2], x[2])


@pytest.mark.parametrize("drop", [False, True])
def test_lora_beside_it_is_exact(drop: bool) -> None:
    weight = FrozenWeight(torch.zeros(24, 16), None, None, torch.float32)  # nothing but LoRA is left
    linear = LoraLinear(weight, torch.randn(24), "x")
    linear.add_lora(torch.randn(4, 16), torch.randn(24, 4), 8)
    product = Product([linear])
    product.is_fp8 = True
    product.refresh(1.0)
    assert linear.lora_a is not None and linear.lora_b is not None and product.beside == 0
    x, g = torch.randn(5, 16), torch.randn(5, 24)
    expected = 2 * (x @ linear.lora_a.t()) @ linear.lora_b.t() + linear.bias
    for forward in (product, product.apart):
        torch.testing.assert_close(forward(x, product.down(x)), expected)
    dx, dropped = product.input_gradient(g, product.back(g), drop)
    through = 2 * (g @ linear.lora_b) @ linear.lora_a
    torch.testing.assert_close(dropped if drop else dx, through)


def test_a_run_in_8_bits_has_the_loss_of_one_in_float32(base_dir: Path, dataset: Dataset, tmp_path: Path) -> None:
    curves = []
    for precision in ("bf16", "fp8"):  # a CPU computes in float32 for `bf16`, and imitates `fp8`
        settings = {"precision": precision, "max_steps": 50, "eval_steps": 50, "save_steps": 50}
        train(make_recipe(training=settings), base_dir, dataset, tmp_path / precision, device="cpu")
        losses = [line["loss"] for line in Run(tmp_path / precision).metrics() if "loss" in line]
        assert len(losses) == 50
        curves.append(np.convolve(losses, np.full(10, 0.1), mode="valid"))  # the mean of ten steps
    exact, eight = curves
    assert exact[-1] < 0.9 * exact[0]  # it has learnt
    difference = np.abs(eight - exact) / exact
    assert 0 < difference.max() < 0.005  # measured: 0.0015


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("double", [True, False])
def test_codes_and_scales_equal_those_of_bitsandbytes_linear4bit(dtype: torch.dtype, double: bool) -> None:
    weight = (torch.randn(96, 192, generator=torch.Generator().manual_seed(3)) * 0.02).to(dtype)
    linear = bitsandbytes.nn.Linear4bit(192, 96, bias=False, compress_statistics=double, quant_type="nf4")
    linear.weight = bitsandbytes.nn.Params4bit(
        weight.clone(), requires_grad=False, compress_statistics=double, quant_type="nf4", module=linear
    )
    linear.weight = linear.weight.to("cpu")
    codes, state = quantise(weight, double)
    theirs = linear.weight.quant_state
    assert torch.equal(codes, linear.weight.data)
    assert torch.equal(state.absmax, theirs.absmax)
    if double:
        assert torch.equal(state.offset, theirs.offset)
        assert torch.equal(state.state2.absmax, theirs.state2.absmax)
    expected = bitsandbytes.functional.dequantize_4bit(linear.weight.data, theirs)
    assert torch.equal(whole(freeze(weight, dtype, nf4=True, double=double, resident=False)), expected)


def test_a_resident_weight_is_the_same_function_as_its_codes() -> None:
    weight = torch.randn(64, 128) * 0.1
    packed = freeze(weight, torch.bfloat16, nf4=True, double=True, resident=False)
    dense = freeze(weight, torch.bfloat16, nf4=True, double=True, resident=True)
    assert torch.equal(whole(packed), whole(dense))
    assert dense.dense is not None and packed.codes is not None
    assert dense.dense.nbytes == 4 * packed.codes.nbytes


def test_without_quantisation_the_weight_is_only_cast() -> None:
    weight = torch.randn(8, 64)
    assert torch.equal(whole(freeze(weight, torch.float32, nf4=False, double=True, resident=True)), weight)
