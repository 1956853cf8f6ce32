import pytest
import torch

from gspo.core import PackedLayout, PaddedLayout


def test_padded_layout_on_a_literal():
    layout = PaddedLayout(torch.tensor([[0, 1, 1], [0, 0, 1], [0, 0, 0]]))
    x = torch.tensor([[9.0, 1.0, 3.0], [9.0, 9.0, 5.0], [9.0, 9.0, 9.0]])
    assert layout.lengths.tolist() == [2, 1, 0]
    assert layout.sum(x).tolist() == [4.0, 5.0, 0.0]
    assert layout.mean(x).tolist() == [2.0, 5.0, 0.0]
    assert layout.spread(torch.tensor([7.0, 8.0, 9.0])).tolist()[1] == [8.0, 8.0, 8.0]


def test_packed_layout_on_a_literal():
    layout = PackedLayout(torch.tensor([0, 0, 2]), 4)
    x = torch.tensor([1.0, 3.0, 5.0])
    assert layout.lengths.tolist() == [2, 0, 1, 0]
    assert layout.sum(x).tolist() == [4.0, 0.0, 5.0, 0.0]
    assert layout.mean(x).tolist() == [2.0, 0.0, 5.0, 0.0]
    assert layout.spread(torch.tensor([7.0, 8.0, 9.0, 1.0])).tolist() == [7.0, 7.0, 9.0]


def test_what_lies_outside_the_mask_is_never_read():
    layout = PaddedLayout(torch.tensor([[1, 0]]))
    x = torch.tensor([[2.0, torch.nan]], requires_grad=True)
    layout.mean(x).sum().backward()
    assert layout.sum(x).tolist() == [2.0]
    assert x.grad.tolist() == [[1.0, 0.0]]


def test_layouts_refuse_what_does_not_fit():
    with pytest.raises(ValueError, match=r"\[B, T\]"):
        PaddedLayout(torch.ones(3))
    with pytest.raises(ValueError, match="go up to 3, but num_sequences is 2"):
        PackedLayout(torch.tensor([0, 3]), 2)
