"""NF4 as bitsandbytes makes it: the same codes, the same scales, the same weights back."""

import bitsandbytes
import pytest
import torch

from puna.train.model.quant import freeze, quantise


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
    assert torch.equal(freeze(weight, dtype, nf4=True, double=double, resident=False).tensor(), expected)


def test_a_resident_weight_is_the_same_function_as_its_codes() -> None:
    weight = torch.randn(64, 128) * 0.1
    packed = freeze(weight, torch.bfloat16, nf4=True, double=True, resident=False)
    dense = freeze(weight, torch.bfloat16, nf4=True, double=True, resident=True)
    assert torch.equal(packed.tensor(), dense.tensor())
    assert dense.size_bytes == 4 * packed.size_bytes


def test_without_quantisation_the_weight_is_only_cast() -> None:
    weight = torch.randn(8, 64)
    assert torch.equal(freeze(weight, torch.float32, nf4=False, double=True, resident=True).tensor(), weight)
