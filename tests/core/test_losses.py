"""Numbers by hand, and two ways of computing the same thing, in float64."""

import pytest
import torch

from gspo.core import PackedLayout, PaddedLayout, gspo_loss, gspo_token_loss

BAND = {"clip_range_left": 3e-4, "clip_range_right": 4e-4}
WIDE = {"clip_range_left": 0.5, "clip_range_right": 0.5}


def batch(seed: int = 0, drift: float = 1e-3):
    """Four responses of 3, 1, 5 and 2 tokens, padded: old and new log-probabilities, advantages."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.tensor([3, 1, 5, 2])
    mask = torch.arange(5) < lengths[:, None]
    old = -3 * torch.rand(4, 5, generator=generator, dtype=torch.float64)
    new = old + drift * torch.randn(4, 5, generator=generator, dtype=torch.float64)
    advantages = torch.tensor([1.0, -1.0, 0.5, -0.7], dtype=torch.float64)
    return new.requires_grad_(), old, advantages, mask


def test_one_response_by_hand():
    # log s = (0.2 + 0.4) / 2 = 0.3; s = 1.349859; A = 2; inside a band of 0.5: loss = -2.699718
    new = torch.tensor([[-1.0, -1.0]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[-1.2, -1.4]], dtype=torch.float64)
    out = gspo_loss(new, old, torch.tensor([2.0]), PaddedLayout(torch.ones(1, 2)), **WIDE)
    out.loss_sum.backward()
    assert out.loss_sum.item() == pytest.approx(-2.6997176)
    assert out.log_ratio.tolist() == pytest.approx([0.3])
    assert out.clipped.tolist() == [False]
    # eq. 10: - s A / |y| for each token
    assert new.grad.tolist() == [pytest.approx([-1.3498588, -1.3498588])]


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "value", "clipped"),
    [
        (+0.6, +1.0, 1.5, True),  # s = 1.822 > 1.5
        (-0.9, +1.0, 0.40657, False),  # the left edge does not bind a positive advantage
        (-0.9, -1.0, -0.5, True),  # s = 0.4066 < 0.5
        (+0.6, -1.0, -1.82212, False),  # unbounded for A < 0 and s > 1: no dual clip
    ],
)
def test_the_clip_is_one_sided_by_the_sign_of_the_advantage(log_ratio, advantage, value, clipped):
    new = torch.tensor([[log_ratio]], dtype=torch.float64, requires_grad=True)
    out = gspo_loss(
        new, torch.zeros(1, 1), torch.tensor([advantage]), PaddedLayout(torch.ones(1, 1)), **WIDE
    )
    out.loss_sum.backward()
    assert -out.loss_sum.item() == pytest.approx(value, abs=1e-5)
    assert out.clipped.tolist() == [clipped]
    assert (new.grad == 0).all().item() == clipped


def test_gradient_is_equation_10():
    new, old, advantages, mask = batch()
    out = gspo_loss(new, old, advantages, PaddedLayout(mask), **WIDE)
    out.loss_sum.backward()
    ratio = out.log_ratio.exp()
    by_hand = -(ratio * advantages / mask.sum(-1))[:, None] * mask
    torch.testing.assert_close(new.grad, by_hand, rtol=1e-12, atol=0)


@pytest.mark.parametrize("band", [BAND, WIDE])
def test_token_form_equals_sequence_form_at_a_constant_advantage(band):
    new, old, advantages, mask = batch()
    layout = PaddedLayout(mask)
    sequence = gspo_loss(new, old, advantages, layout, **band)
    (sequence_grad,) = torch.autograd.grad(sequence.loss_sum, new)
    token = gspo_token_loss(new, old, layout.spread(advantages), layout, **band)
    (token_grad,) = torch.autograd.grad(token.loss_sum, new)
    torch.testing.assert_close(token.loss_sum, sequence.loss_sum, rtol=1e-12, atol=0)
    torch.testing.assert_close(token_grad, sequence_grad, rtol=1e-12, atol=0)
    assert torch.equal(token.clipped & mask, layout.spread(sequence.clipped) & mask)
    assert torch.equal(token.log_ratio, sequence.log_ratio)


def test_gradient_is_equation_17_with_token_advantages():
    new, old, _, mask = batch()
    token_advantages = torch.randn(4, 5, generator=torch.Generator().manual_seed(1)).double()
    out = gspo_token_loss(new, old, token_advantages, PaddedLayout(mask), **WIDE)
    out.loss_sum.backward()
    by_hand = -(out.log_ratio.exp() / mask.sum(-1))[:, None] * token_advantages * mask
    torch.testing.assert_close(new.grad, by_hand, rtol=1e-12, atol=0)


def test_mixed_signs_clip_only_some_tokens():
    new = torch.full((1, 2), 0.6, dtype=torch.float64, requires_grad=True)
    out = gspo_token_loss(
        new,
        torch.zeros(1, 2),
        torch.tensor([[1.0, -1.0]]),
        PaddedLayout(torch.ones(1, 2)),
        **WIDE,
    )
    out.loss_sum.backward()
    assert out.clipped.tolist() == [[True, False]]
    assert new.grad[0, 0] == 0 and new.grad[0, 1] != 0


def test_at_equal_policies_the_gradient_is_that_of_grpo():
    new, _, advantages, mask = batch()
    layout = PaddedLayout(mask)
    gspo = gspo_loss(new, new.detach(), advantages, layout, **BAND)
    (gspo_grad,) = torch.autograd.grad(gspo.loss_sum, new)
    token_ratio = (new - new.detach()).exp()  # GRPO, eq. 2: mean over tokens of w_it A_i
    grpo = -layout.mean(token_ratio * layout.spread(advantages)).sum()
    (grpo_grad,) = torch.autograd.grad(grpo, new)
    torch.testing.assert_close(gspo_grad, grpo_grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_float64_gradient_check(loss):
    new, old, advantages, mask = batch(drift=0.1)
    layout = PaddedLayout(mask)
    if loss is gspo_token_loss:
        # eq. 14 stops the gradient through s_i; at an infinitesimal band nothing else differs, so
        # check against the sequence form's own finite differences at a constant advantage.
        out = gspo_token_loss(new, old, layout.spread(advantages), layout, **WIDE)
        (grad,) = torch.autograd.grad(out.loss_sum, new)
        step = 1e-6 * torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).double()
        above = gspo_loss(new + step, old, advantages, layout, **WIDE).loss_sum
        below = gspo_loss(new - step, old, advantages, layout, **WIDE).loss_sum
        assert (above - below).item() / 2 == pytest.approx((grad * step).sum().item(), rel=1e-6)
    else:
        assert torch.autograd.gradcheck(
            lambda x: gspo_loss(x, old, advantages, layout, **WIDE).loss_sum, new
        )


@pytest.mark.parametrize("band", [BAND, WIDE])
def test_packed_equals_padded(band):
    new, old, advantages, mask = batch()
    packed_layout = PackedLayout(mask.nonzero()[:, 0], 4)
    for loss, padded_advantages, packed_advantages in (
        (gspo_loss, advantages, advantages),
        (gspo_token_loss, advantages[:, None].expand(4, 5), advantages[mask.nonzero()[:, 0]]),
    ):
        padded = loss(new, old, padded_advantages, PaddedLayout(mask), **band)
        packed = loss(new[mask], old[mask], packed_advantages, packed_layout, **band)
        torch.testing.assert_close(packed.loss_sum, padded.loss_sum, rtol=1e-12, atol=0)
        torch.testing.assert_close(packed.log_ratio, padded.log_ratio, rtol=1e-12, atol=1e-15)


def test_a_signal_of_the_bands_size_survives_float32_and_16_bit_inputs():
    # ulp(16) in float32 is 1.9e-6: log s = 3.5e-4 must come through the token form unrounded
    old = torch.full((1, 1), -16.0)
    new = (old + 3.5e-4).requires_grad_()
    layout = PaddedLayout(torch.ones(1, 1))
    exact = (new - old).item()
    token = gspo_token_loss(new, old, torch.ones(1, 1), layout, **BAND)
    assert token.log_ratio.item() == exact
    half = gspo_loss(new.bfloat16(), old.bfloat16(), torch.ones(1), layout, **BAND)
    assert half.loss_sum.dtype == torch.float32


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_no_overflow_or_nan_reaches_a_gradient(loss):
    # row 0: s overflows and is clipped; row 1: no advantage; row 2: garbage outside the mask
    inf, nan = torch.inf, torch.nan
    new = torch.tensor([[1e4, 0.0], [1e4, 0.0], [-1.0, nan]], requires_grad=True)
    old = torch.tensor([[-1e4, 0.0], [-1e4, 0.0], [-1.0, -inf]])
    layout = PaddedLayout(torch.tensor([[1, 0], [1, 0], [1, 0]]))
    advantages = torch.tensor([1.0, 0.0, 1.0])
    if loss is gspo_token_loss:
        advantages = torch.tensor([[1.0, nan], [0.0, 0.0], [1.0, inf]])
    out = loss(new, old, advantages, layout, **BAND)
    out.loss_sum.backward()
    assert out.loss_sum.isfinite()
    assert new.grad[:2].abs().max() == 0
    assert new.grad[2].tolist() == [-1.0, 0.0]


@pytest.mark.parametrize("loss", [gspo_loss, gspo_token_loss])
def test_an_empty_response_adds_nothing(loss):
    layout = PaddedLayout(torch.zeros(1, 2))
    new = torch.randn(1, 2, requires_grad=True)
    advantages = torch.ones(1) if loss is gspo_loss else torch.ones(1, 2)
    out = loss(new, torch.zeros(1, 2), advantages, layout, **BAND)
    out.loss_sum.backward()
    assert out.loss_sum == 0 and new.grad.abs().max() == 0


def test_refusals_name_the_shapes():
    layout = PaddedLayout(torch.ones(2, 3))
    x = torch.zeros(2, 3)
    with pytest.raises(ValueError, match=r"\[S\] = \[2\], got \[2, 3\]"):
        gspo_loss(x, x, x, layout, **BAND)
    with pytest.raises(ValueError, match=r"shape \[2, 3\], got \[2\]"):
        gspo_token_loss(x, x, torch.zeros(2), layout, **BAND)
    with pytest.raises(ValueError, match=r"logprobs \[3, 2\]"):
        gspo_loss(x.T, x, torch.zeros(2), layout, **BAND)
    with pytest.raises(ValueError, match="two positive widths"):
        gspo_loss(x, x, torch.zeros(2), layout, clip_range_left=-1, clip_range_right=1)
