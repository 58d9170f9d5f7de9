"""The linear map by oneDNN: what torch's own gives, forward and backward, whatever the shape."""

import shutil

import pytest
import torch
from torch.nn import functional as F

from knockscreen.nn import linear as module
from knockscreen.nn.linear import Linear, linear

SHAPES = [((64, 16, 128), 344), ((2048, 344), 128), ((300, 7, 96), 96), ((3, 8), 5)]
"""Of the input, and the width of the output; the last is too small for oneDNN."""


def test_the_fast_way_is_taken() -> None:
    if not module.HAS_ONEDNN:
        pytest.skip("torch was built without oneDNN, so its own product is taken")
    assert 96 * 96 >= module.WORTH > 8 * 5


@pytest.mark.parametrize(("shape", "width"), SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_those_of_torch(
    shape: tuple[int, ...], width: int, bias: bool
) -> None:
    torch.manual_seed(sum(shape))
    net = Linear(shape[-1], width, bias=bias)
    x, of_out = torch.randn(shape, requires_grad=True), torch.randn(*shape[:-1], width)
    found = []
    for way in (linear, F.linear):
        out = way(x, net.weight, net.bias)
        wanted = [x, *net.parameters()]
        found.append([out.detach(), *torch.autograd.grad(out, wanted, of_out)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))


def test_slices_and_transposed_inputs_are_read_as_they_are() -> None:
    torch.manual_seed(0)
    wide, weight = torch.randn(128, 4096), torch.randn(256, 128)
    for x in (
        wide.t(),
        torch.randn(2048, 300)[:, 40:168],
        torch.randn(64, 128, 32).transpose(1, 2),
    ):
        assert torch.allclose(linear(x, weight), F.linear(x, weight), rtol=1e-5, atol=1e-4)


def test_no_rows_have_no_gradient_to_give() -> None:
    x, weight = torch.zeros(0, 128, requires_grad=True), torch.ones(512, 128, requires_grad=True)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    assert x.grad.shape == (0, 128)
    assert weight.grad is not None
    assert not weight.grad.any()


def test_other_types_and_no_gradient() -> None:
    torch.manual_seed(0)
    x, net = torch.randn(1024, 128), Linear(128, 128)
    with torch.no_grad():
        assert not net(x).requires_grad
    double = net.double()
    assert torch.equal(double(x.double()), F.linear(x.double(), double.weight, double.bias))


@pytest.mark.parametrize("rows", [2, 65, 500, 1999])
def test_a_row_does_not_depend_on_the_others(rows: int) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(2000, 128), torch.randn(344, 128)
    assert torch.equal(linear(x[:rows], weight), linear(x, weight)[:rows])


def test_gradient_is_made_of_what_is_asked_for_alone(monkeypatch) -> None:
    made = []
    whole = module.product

    def counted(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        made.append((*x.shape, len(weight)))
        return whole(x, weight)

    monkeypatch.setattr(module, "product", counted)
    net, x = Linear(128, 96, bias=False), torch.randn(64, 128)
    net(x).sum().backward()
    assert made == [(64, 128, 96), (96, 64, 128)], "no gradient of the data"


@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs g++")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_compiled_map_and_its_gradients_are_those_of_torch() -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(64, 128, requires_grad=True), torch.randn(96, 128, requires_grad=True)
    of_out = torch.randn(64, 96)
    found = []
    for way in (torch.compile(linear, dynamic=False), F.linear):
        out = way(x, weight)
        found.append([out.detach(), *torch.autograd.grad(out, (x, weight), of_out)])
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-5 * float(theirs.abs().max()))
