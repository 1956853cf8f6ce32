import pytest
import torch

from gspo.core.linear import linear, serves


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("shape", [(1, 5), (7, 5), (2, 3, 5), (1, 33, 5)])
def test_values_and_gradients_are_those_of_torch(shape, with_bias):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator)
    weight = torch.randn(4, 5, generator=generator)
    bias = torch.randn(4, generator=generator) if with_bias else None
    pull = torch.randn(*shape[:-1], 4, generator=generator)

    def run(function, dtype):
        inputs = [None if t is None else t.to(dtype).requires_grad_() for t in (x, weight, bias)]
        value = function(*inputs)
        grads = torch.autograd.grad((value * pull).sum(), [t for t in inputs if t is not None])
        return [value.detach(), *grads]

    want = run(torch.nn.functional.linear, torch.float64)
    for got, exact in zip(run(linear, torch.float32), want, strict=True):
        torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias).double(), want[0], rtol=1e-5, atol=1e-5)


def test_a_strided_or_expanded_input():
    x = torch.randn(6, 5).T[:, ::2]  # [5, 3], neither contiguous nor transposed
    weight = torch.randn(3, 4).T
    torch.testing.assert_close(linear(x, weight), torch.nn.functional.linear(x, weight))
    ones = torch.ones(1, 1).expand(4, 3)
    weight = torch.randn(2, 3, requires_grad=True)
    linear(ones, weight).sum().backward()  # the gradient that comes in is expanded, too
    torch.testing.assert_close(weight.grad, torch.full((2, 3), 4.0))


def test_it_leaves_everything_but_float32_alone():
    x = torch.randn(3, 5)
    assert not serves(x.double(), x.double())
    assert not serves(x, x.double())
    assert not serves(torch.empty(0, 5), x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not serves(x, x)
