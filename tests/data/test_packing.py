import torch

from gspo.data.packing import common_prefix, micro_batches, pack, packed_length
from gspo.types import Sample


def sample(tokens, mask):
    return Sample(torch.tensor(tokens), torch.tensor(mask, dtype=torch.bool))


def group():
    #            a  b  c  d             a  b  e
    return [sample([7, 8, 4, 2], [0, 0, 1, 1]), sample([7, 8, 5], [0, 0, 1])]


def test_a_group_on_a_literal():
    batch = pack([group()])
    assert batch.input_ids.tolist() == [7, 8, 4, 2, 5]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2]
    assert [(b.start, b.prefix, b.tails) for b in batch.blocks] == [(0, 2, (2, 1))]
    assert batch.predictors.tolist() == [1, 2, 1]
    assert batch.targets.tolist() == [4, 2, 5]


def test_without_sharing_each_sample_is_its_own_block():
    batch = pack([group()], share_prompts=False)
    assert batch.input_ids.tolist() == [7, 8, 4, 2, 7, 8, 5]
    assert batch.predictors.tolist() == [1, 2, 5]
    assert [(b.start, b.prefix, b.tails) for b in batch.blocks] == [(0, 0, (4,)), (4, 0, (3,))]


def test_holes_in_the_response_are_predicted_from_the_token_before():
    #                  p  y  tool  y
    batch = pack([[sample([3, 4, 9, 5], [0, 1, 0, 1])]])
    assert batch.predictors.tolist() == [0, 2]
    assert batch.targets.tolist() == [4, 5]


def test_the_common_prefix_ends_before_the_first_response_token():
    same = [sample([7, 8, 9], [0, 0, 1]), sample([7, 8, 9], [0, 1, 1])]
    assert common_prefix(same) == 1
    assert common_prefix([sample([7, 8, 9, 1], [0, 0, 0, 1]), sample([7, 6, 9], [0, 0, 1])]) == 1
    assert common_prefix([sample([1, 8], [0, 1]), sample([2, 8], [0, 1])]) == 0


def test_micro_batches_keep_the_budget_and_lose_nothing():
    groups = [group(), group(), group()]
    for budget in (1, 4, 5, 9, 10, 100):
        batches = list(micro_batches(groups, budget))
        sizes = [sum(packed_length(piece) for piece in batch) for batch in batches]
        singles = [max(packed_length([s]) for piece in batch for s in piece) for batch in batches]
        assert all(n <= max(budget, one) for n, one in zip(sizes, singles, strict=True))
        flat = [s for batch in batches for piece in batch for s in piece]
        assert [id(s) for s in flat] == [id(s) for g in groups for s in g]
    assert len(list(micro_batches(groups, 10))) == 2  # 5 + 5, 5
