import pytest
import torch

from gspo.config import GSPOConfig
from gspo.data.padded import read_ready_batch
from gspo.errors import DataError

PAIRS = GSPOConfig(group_size=2)


def batch(**changes):
    return {
        #                       left padded       right padded
        "input_ids": torch.tensor([[0, 7, 4, 5], [7, 6, 2, 0]]),
        "attention_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]]),
        "response_mask": torch.tensor([[0, 0, 1, 1], [0, 1, 1, 0]]),
        "rewards": torch.tensor([1.0, 0.0]),
    } | changes


def test_either_padding_side_gives_the_tokens_alone():
    (group,) = read_ready_batch(batch(), PAIRS)
    assert [s.tokens.tolist() for s in group.samples] == [[7, 4, 5], [7, 6, 2]]
    assert [s.response_mask.tolist() for s in group.samples] == [[0, 1, 1], [0, 1, 1]]
    assert [s.advantage for s in group.samples] == pytest.approx([0.70710678, -0.70710678])


def test_per_token_values_stand_at_their_own_index():
    logprobs = torch.tensor([[0.0, 0.0, -1.0, -2.0], [0.0, -3.0, -4.0, 0.0]])
    (group,) = read_ready_batch(batch(old_logprobs=logprobs), PAIRS)
    assert [s.old_logprobs.tolist() for s in group.samples] == [[-1.0, -2.0], [-3.0, -4.0]]


def test_unscored_and_all_masked_rows_have_no_vote():
    (group,) = read_ready_batch(batch(rewards=torch.tensor([1.0, torch.nan])), PAIRS)
    assert [s.votes for s in group.samples] == [True, False]
    (group,) = read_ready_batch(
        batch(response_mask=torch.tensor([[0, 0, 1, 1], [0, 0, 0, 0]])), PAIRS
    )
    assert [s.votes for s in group.samples] == [True, False]
    assert group.samples[0].advantage == pytest.approx(0.70710678)  # its reward still counts


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"rewards": torch.ones(3)}, r"rewards must be \[B\] = \[2\], got \[3\]"),
        ({"rewards": torch.tensor([torch.inf, 0.0])}, "infinity"),
        ({"response_mask": torch.ones(2, 3)}, "response_mask must have the shape of input_ids"),
        ({"response_mask": torch.tensor([[0, 1, 1, 1], [1, 1, 1, 0]])}, "marks the first token"),
        ({"response_mask": torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]])}, "marks a padding token"),
        ({"input_ids": torch.ones(4)}, r"input_ids must be \[B, T\]"),
        ({"token_advantages": torch.ones(2, 4)}, "use_token_level=True"),
    ],
)
def test_what_does_not_fit_is_one_sentence(changes, sentence):
    with pytest.raises(DataError, match=sentence):
        read_ready_batch(batch(**changes), PAIRS)


def test_missing_fields_and_broken_groups():
    without = batch()
    del without["attention_mask"]
    with pytest.raises(DataError, match="'attention_mask' is missing"):
        read_ready_batch(without, PAIRS)
    with pytest.raises(DataError, match="2 rows are no whole groups of group_size = 8"):
        read_ready_batch(batch(), GSPOConfig())
    with pytest.raises(DataError, match="no group to compare with"):
        read_ready_batch(batch(), GSPOConfig(group_size=1))
