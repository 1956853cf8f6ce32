import numpy as np
import pytest
import torch
from scipy import stats

from gspo.engines.sampling import draw, sample, stream_key, truncate, uniforms


def test_uniforms_are_uniform_and_their_own():
    keys = np.array([stream_key(0, 1, p, r) for p in range(50) for r in range(8)])
    assert len(set(keys)) == 400
    u = np.concatenate([uniforms(keys, np.full(400, t)) for t in range(50)])
    assert stats.kstest(u, "uniform").pvalue > 1e-3
    assert abs(np.corrcoef(u[:-400], u[400:])[0, 1]) < 0.03  # a stream's next number
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03  # the neighbour's stream


def test_a_token_number_belongs_to_its_stream_alone():
    a, b = stream_key(3, 1, 7, 0), stream_key(3, 1, 7, 1)
    together = uniforms(np.array([a, b]), np.array([5, 2]))
    assert uniforms(np.array([b]), np.array([2]))[0] == together[1]


def test_draw_inverts_the_cumulative_sum():
    # p = 0.1, 0.2, 0, 0.7: ends at 0.1, 0.3, 0.3, 1
    logits = torch.tensor([0.1, 0.2, 0.0, 0.7], dtype=torch.float64).log().expand(5, 4)
    u = torch.tensor([0.0, 0.09, 0.11, 0.31, 1 - 2**-53], dtype=torch.float64)
    tokens, logprobs = draw(logits, u)
    assert tokens.tolist() == [0, 0, 1, 3, 3]
    torch.testing.assert_close(logprobs.exp(), torch.tensor([0.1, 0.1, 0.2, 0.7, 0.7]).double())


def test_frequencies_match_a_softmax_over_many_blocks():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, generator=generator) * 2  # 1000 tokens are four blocks
    keys = np.array([stream_key(1, 1, i, 0) for i in range(40_000)])
    u = torch.from_numpy(uniforms(keys, np.zeros(40_000)))
    tokens = torch.cat([draw(logits.expand(4000, -1), part)[0] for part in u.split(4000)])
    expected = logits.double().softmax(0) * 40_000
    common = expected >= 5
    seen = torch.bincount(tokens, minlength=1000)
    observed = torch.cat([seen[common], seen[~common].sum()[None]])
    wanted = torch.cat([expected[common], expected[~common].sum()[None]])
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > 1e-3


def test_truncation_keeps_the_likeliest():
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    assert truncate(logits, 2, 1.0).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0, 0.6).isfinite().tolist() == [[True, True, False, False]]
    assert truncate(logits, 0, 0.4).isfinite().tolist() == [[True, False, False, False]]


def test_temperature_divides_and_zero_is_greedy():
    logits = torch.tensor([[1.0, 3.0, 2.0]])
    tokens, logprobs = sample(logits, np.array([0.5]), 0, 0, 1.0)
    assert tokens.tolist() == [1]
    assert logprobs.item() == pytest.approx(logits.log_softmax(-1)[0, 1].item())
    _, logprobs = sample(logits, np.array([0.5]), 2.0, 0, 1.0)
    assert logprobs.item() == pytest.approx((logits / 2).log_softmax(-1)[0, 1].item())
