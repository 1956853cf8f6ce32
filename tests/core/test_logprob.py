import pytest
import torch

from gspo.core import chunked_logprobs

N, H, V = 7, 5, 11


def inputs(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(N, H, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(V, H, generator=generator, dtype=dtype).requires_grad_()
    bias = torch.randn(V, generator=generator, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (N,), generator=generator)
    return hidden, weight, bias, targets


def plain(hidden, weight, bias, targets, temperature, scale, softcap):
    z = (hidden @ weight.T + bias) * scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    log_p = torch.log_softmax(z / temperature, -1)
    return log_p[torch.arange(N), targets], -(log_p.exp() * log_p).sum(-1)


@pytest.mark.parametrize("rows", [1, 3, 100])
@pytest.mark.parametrize(
    ("temperature", "scale", "softcap"), [(1.0, 1.0, None), (0.7, 0.5, None), (1.3, 2.0, 3.0)]
)
def test_values_and_gradients_equal_the_plain_computation(rows, temperature, scale, softcap):
    hidden, weight, bias, targets = inputs()
    pull = torch.randn(2, N, generator=torch.Generator().manual_seed(1)).double()
    want = plain(hidden, weight, bias, targets, temperature, scale, softcap)
    want_grads = torch.autograd.grad(
        (pull[0] * want[0] + pull[1] * want[1]).sum(), [hidden, weight, bias]
    )
    got = chunked_logprobs(
        hidden,
        weight,
        targets,
        bias=bias,
        temperature=temperature,
        scale=scale,
        softcap=softcap,
        chunk_bytes=rows * V * 8,
    )
    got_grads = torch.autograd.grad(
        (pull[0] * got.logprobs + pull[1] * got.entropy).sum(), [hidden, weight, bias]
    )
    torch.testing.assert_close(tuple(got), want, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(got_grads, want_grads, rtol=1e-10, atol=1e-12)


def test_float64_gradient_check():
    hidden, weight, bias, targets = inputs()
    assert torch.autograd.gradcheck(
        lambda h, w, b: tuple(
            chunked_logprobs(h, w, targets, bias=b, softcap=4.0, chunk_bytes=2 * V * 8)
        ),
        (hidden, weight, bias),
    )


def test_sixteen_bit_inputs_are_computed_in_float32():
    hidden, weight, _, targets = inputs()
    hidden, weight = hidden.detach().bfloat16(), weight.detach().bfloat16()
    got = chunked_logprobs(hidden, weight, targets)
    want = torch.log_softmax(hidden.float() @ weight.float().T, -1)[torch.arange(N), targets]
    assert got.logprobs.dtype == torch.float32
    torch.testing.assert_close(got.logprobs, want)


def test_a_frozen_head_gets_no_gradient():
    hidden, weight, _, targets = inputs()
    chunked_logprobs(hidden, weight.detach(), targets).logprobs.sum().backward()
    assert hidden.grad is not None and weight.grad is None
