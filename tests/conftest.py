"""A tiny tokenizer and helpers that tests of several folders share."""

import os

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch: what is compared here is computed on CPU

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from tiny import EOS, VOCABULARY

torch.set_num_threads(1)  # tiny models: a second thread only waits for the first


@pytest.fixture(scope="session")
def tokenizer():
    """One token a word: `w0` ... `w63`; `w1` ends a text."""
    words = {f"w{i}": i for i in range(VOCABULARY)}
    inner = Tokenizer(models.WordLevel(words, unk_token="w2"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token=f"w{EOS}", unk_token="w2", pad_token=f"w{EOS}"
    )
