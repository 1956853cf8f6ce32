import subprocess
import sys

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerFast,
)

from gspo.errors import DataError, SettingError
from gspo.rewards import HFRewardModel
from gspo.rewards.base import as_reward, score

WORDS = ["[pad]", "[eos]", "[unk]", "user", "assistant", "system", "a", "b", "c", "d", "e"]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
QUERIES = ["a b", "a", "c c c c"]
RESPONSES = ["c", "d e d e d", "b"]


def make_tokenizer(**special_tokens):
    vocabulary = {word: index for index, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[unk]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special_tokens)


def make_config(**settings):
    return LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.5,
        **settings,
    )


def make_model(pad_token_id=None, num_labels=1):
    torch.manual_seed(0)
    return LlamaForSequenceClassification(
        make_config(pad_token_id=pad_token_id, num_labels=num_labels)
    )


def logit(model, text):
    """The reward of one text, without any padding: read at its last token."""
    tokens = torch.tensor([[WORDS.index(word) for word in text.split()]])
    with torch.no_grad():
        return model.score(model.model(tokens).last_hidden_state[0, -1]).item()


def test_the_rewards_are_the_raw_logits_of_query_and_response():
    model = make_model(pad_token_id=0)
    reward = HFRewardModel(model, make_tokenizer(pad_token="[pad]"), batch_size=2)
    rewards = reward(QUERIES, RESPONSES)
    expected = [logit(model, f"{q} {r}") for q, r in zip(QUERIES, RESPONSES, strict=True)]
    assert rewards.shape == (3,) and rewards.dtype == torch.float32
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)
    assert not model.training


def test_the_chat_template_is_used_and_the_whole_conversation_where_there_is_one():
    model = make_model(pad_token_id=0)
    tokenizer = make_tokenizer(pad_token="[pad]", chat_template=TEMPLATE)
    chat = [{"role": "system", "content": "e"}, {"role": "user", "content": "a"}]
    scores = score(
        as_reward(HFRewardModel(model, tokenizer)),
        queries=["a b", "a"],
        responses=["c", "d"],
        named={"prompts": ["a b", chat]},
    )
    expected = [
        logit(model, "user a b assistant c"),
        logit(model, "system e user a assistant d"),
    ]
    assert scores.rewards.tolist() == pytest.approx(expected, abs=1e-5)


def test_without_a_pad_token_eos_is_borrowed():
    model = make_model()
    tokenizer = make_tokenizer(eos_token="[eos]")
    rewards = HFRewardModel(model, tokenizer)(QUERIES, RESPONSES)
    expected = [logit(model, f"{q} {r}") for q, r in zip(QUERIES, RESPONSES, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)
    assert model.config.pad_token_id == 1
    assert tokenizer.pad_token is None


def test_the_models_own_pad_token_wins_over_the_tokenizers():
    model = make_model(pad_token_id=0)
    rewards = HFRewardModel(model, make_tokenizer(pad_token="[unk]"))(QUERIES, RESPONSES)
    expected = [logit(model, f"{q} {r}") for q, r in zip(QUERIES, RESPONSES, strict=True)]
    assert rewards.tolist() == pytest.approx(expected, abs=1e-5)


def test_without_pad_and_eos_the_error_says_so():
    with pytest.raises(DataError, match="neither a pad nor an EOS token"):
        HFRewardModel(make_model(), make_tokenizer())


def test_what_is_too_long_is_unscored_with_one_warning():
    model = make_model(pad_token_id=0)
    reward = HFRewardModel(model, make_tokenizer(pad_token="[pad]"), max_tokens=5)
    with pytest.warns(UserWarning, match="longer than 5 tokens .* the longest has 6") as warned:
        rewards = reward(QUERIES, RESPONSES)
        reward(QUERIES, RESPONSES)
    assert len(warned) == 1
    assert rewards.isnan().tolist() == [False, True, False]
    assert rewards[2].item() == pytest.approx(logit(model, "c c c c b"), abs=1e-5)


def test_the_models_context_is_a_limit():
    tokenizer = make_tokenizer(pad_token="[pad]")
    assert HFRewardModel(make_model(pad_token_id=0), tokenizer).max_tokens == 32
    assert HFRewardModel(make_model(pad_token_id=0), tokenizer, max_tokens=99).max_tokens == 32


def test_a_path_brings_its_tokenizer_along(tmp_path):
    model = make_model(pad_token_id=0)
    model.save_pretrained(tmp_path)
    make_tokenizer(pad_token="[pad]").save_pretrained(tmp_path)
    rewards = HFRewardModel(tmp_path, device="cpu")(["a b"], ["c"])
    assert rewards.tolist() == pytest.approx([logit(model, "a b c")], abs=1e-5)


def test_a_model_with_several_labels_is_refused():
    with pytest.raises(DataError, match="has 1 label, llama has 3"):
        HFRewardModel(make_model(num_labels=3), make_tokenizer(eos_token="[eos]"))


def test_a_language_model_without_a_trained_head_is_refused(tmp_path):
    LlamaForCausalLM(make_config(pad_token_id=0, num_labels=1)).save_pretrained(tmp_path)
    with pytest.raises(DataError, match="no weights for score.weight, which would be random"):
        HFRewardModel(tmp_path)


def test_bad_settings_are_refused():
    with pytest.raises(SettingError, match="without its tokenizer; pass tokenizer="):
        HFRewardModel(make_model(pad_token_id=0))
    with pytest.raises(SettingError, match="at least 1, got 0 and None"):
        HFRewardModel("nowhere", batch_size=0)


def test_transformers_and_math_verify_are_imported_only_where_they_are_needed():
    check = (
        "import sys, gspo.rewards; "
        "assert not {'transformers', 'math_verify'} & set(sys.modules); "
        "gspo.rewards.HFRewardModel"
    )
    subprocess.run([sys.executable, "-c", check], check=True)
