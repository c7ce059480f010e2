"""What quantizing costs, against the error of the formats that llama.cpp's Q8_0 and Q4_0 define."""

import pytest
import torch

from quire import ops
from quire.ops.cpu.library import are_usable
from quire.ops.cpu.weights import PackedMatrix

pytestmark = pytest.mark.skipif(not are_usable(), reason="the CPU kernels are not built")

GROUP = 32


def _groups(x):
    return x.unflatten(-1, (-1, GROUP))


def q8_0(x):
    """Groups of 32 share a half-precision scale of largest / 127; activations are rounded the same way."""
    groups = _groups(x)
    scale = (groups.abs().amax(-1, keepdim=True) / 127).half().float().clamp(min=1e-12)
    return (torch.round(groups / scale) * scale).flatten(-2)


def q4_0(x):
    """Groups of 32: the number of largest size becomes -8 times a half-precision scale."""
    groups = _groups(x)
    extreme = groups.gather(-1, groups.abs().argmax(-1, keepdim=True))
    scale = (extreme / -8).half().float()
    scale = torch.where(scale == 0, 1.0, scale)
    return ((torch.floor(groups / scale + 8.5).clamp(0, 15) - 8) * scale).flatten(-2)


@pytest.mark.parametrize("width", [576, 2048])
@pytest.mark.parametrize(("weight_format", "rounded"), [("int8", q8_0), ("int4", q4_0)])
def test_a_products_error_is_below_that_of_llama_cpps_format(weight_format, rounded, width):
    generator = torch.Generator().manual_seed(width)
    weight = (torch.randn(256, width, generator=generator) * 0.02).bfloat16()
    # Channels of different size, as activations of real models have them.
    x = torch.randn(32, width, generator=generator) * torch.rand(width, generator=generator) * 3
    exact = x.double() @ weight.double().T

    def error(y):
        return float((y.double() - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    matrix = PackedMatrix(*weight.shape, weight_format)
    matrix.fill(weight, 0)
    assert error(ops.packed_linear(x, matrix)) < error(q8_0(x) @ rounded(weight.float()).T)
