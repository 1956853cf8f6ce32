import pytest
import torch

from gspo.core import PaddedLayout, k2, k3, kl_penalty


def test_estimators_on_a_literal():
    # x = log pi_ref - log pi = 0.5: k2 = 0.125, k3 = e^0.5 - 0.5 - 1 = 0.1487213
    logprobs, ref = torch.tensor([[-1.5, 9.0]]), torch.tensor([[-1.0, torch.inf]])
    layout = PaddedLayout(torch.tensor([[1, 0]]))
    assert kl_penalty(logprobs, ref, layout, k2).item() == pytest.approx(0.125)
    assert kl_penalty(logprobs, ref, layout, k3).item() == pytest.approx(0.1487213)


@pytest.mark.parametrize("estimator", [k2, k3])
def test_values_estimate_the_reverse_kl_of_close_distributions(estimator):
    p = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    q = torch.tensor([0.51, 0.28, 0.21], dtype=torch.float64)
    kl = (p * (p / q).log()).sum()
    assert (p * estimator(p.log(), q.log())).sum().item() == pytest.approx(kl.item(), rel=0.05)


def test_the_k2_gradient_is_that_of_the_reverse_kl():
    z = torch.tensor([0.1, -0.2, 0.3], dtype=torch.float64, requires_grad=True)
    q = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    p = z.softmax(0)
    (want,) = torch.autograd.grad((p * (p.log() - q.log())).sum(), z)
    log_p = z.log_softmax(0)
    (got,) = torch.autograd.grad((log_p.exp().detach() * k2(log_p, q.log())).sum(), z)
    torch.testing.assert_close(got, want)
