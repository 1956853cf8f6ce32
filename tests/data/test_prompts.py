import numpy
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerFast

from gspo.data.prompts import PromptReader, check_readable_again, read_items
from gspo.errors import DataError

CHAT_A = [{"role": "user", "content": "a"}]
CHAT_B = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "b"}]
TEMPLATE = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
VOCABULARY = ["<unk>", "</s>", "a", "b", "be", "brief", "<user>", "<assistant>", "<system>"]


def tiny_tokenizer(chat_template=TEMPLATE, appends_eos=False):
    ids = {word: index for index, word in enumerate(VOCABULARY)}
    tokenizer = Tokenizer(WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    if appends_eos:
        tokenizer.post_processor = TemplateProcessing("$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        eos_token="</s>",
        chat_template=chat_template,
    )


def reader(context_tokens=None, **tokenizer_settings):
    return PromptReader(tiny_tokenizer(**tokenizer_settings), context_tokens)


def items(dataloader):
    return list(read_items(dataloader))


# The stream


def test_texts_and_chats_come_one_by_one():
    assert items(["a", CHAT_A, CHAT_B]) == ["a", CHAT_A, CHAT_B]


def test_batching_has_no_meaning():
    rows = [
        {"prompt": "a", "answer": 1},
        {"prompt": "b", "answer": 2},
        {"prompt": "c", "answer": 3},
    ]
    assert items(rows) == rows
    assert items([rows[:2], tuple(rows[2:])]) == rows
    assert items(DataLoader(rows, batch_size=None)) == rows
    for batch_size in (1, 2, 3):
        assert items(DataLoader(rows, batch_size=batch_size)) == rows
        assert items(DataLoader(rows, batch_size=batch_size, collate_fn=list)) == rows


def test_a_batch_may_mix_kinds():
    assert items([["a", CHAT_A, {"prompt": CHAT_B}]]) == ["a", CHAT_A, {"prompt": CHAT_B}]


def test_texts_through_the_default_collate():
    assert items(DataLoader(["a", "b", "c"], batch_size=2)) == ["a", "b", "c"]


def test_chats_through_collate_fn_list():
    rows = [CHAT_A, CHAT_B, {"prompt": CHAT_A, "answer": [1, 2]}]
    assert items(DataLoader(rows, batch_size=2, collate_fn=list)) == rows


def test_columns_become_plain_rows():
    columns = {
        "prompt": ["a", "b"],
        "number": torch.tensor([1, 2]),
        "vector": numpy.array([[1.0, 2.0], [3.0, 4.0]]),
        "choices": [["x"], ["y", "z"]],
        "metadata": {"seed": torch.tensor([5, 6])},
    }
    first, second = items([columns])
    assert first == {
        "prompt": "a",
        "number": 1,
        "vector": [1.0, 2.0],
        "choices": ["x"],
        "metadata": {"seed": 5},
    }
    assert second["metadata"] == {"seed": 6}
    assert type(first["number"]) is int


def test_columns_of_chats():
    assert items([{"prompt": [CHAT_A, CHAT_B], "answer": ["1", "2"]}]) == [
        {"prompt": CHAT_A, "answer": "1"},
        {"prompt": CHAT_B, "answer": "2"},
    ]


def test_a_list_of_messages_under_prompt_is_one_chat():
    row = {"prompt": CHAT_B, "answer": ["x", "y"]}
    assert items([row]) == [row]


def test_ready_batches_pass_untouched():
    batch = {"input_ids": torch.zeros(2, 3), "rewards": torch.zeros(2)}
    assert items([batch])[0] is batch


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("rows", [[CHAT_A, CHAT_A], [{"prompt": CHAT_A}, {"prompt": CHAT_A}]])
def test_chats_through_the_default_collate_are_refused(rows, batch_size):
    with pytest.raises(DataError, match="item 0 .*collate_fn=list"):
        items(DataLoader(rows, batch_size=batch_size))


@pytest.mark.parametrize("choices", [["x", "y"], [1, 2], ["x", "y", "z"]])
def test_list_fields_through_the_default_collate_are_refused(choices):
    rows = [{"prompt": "a", "choices": choices}, {"prompt": "b", "choices": choices}]
    with pytest.raises(DataError, match="column 'choices' .*collate_fn=list"):
        items(DataLoader(rows, batch_size=2))


@pytest.mark.parametrize(
    ("dataloader", "message"),
    [
        (["a", 3], "item 1 of train_dataloader is a int; expected text"),
        ([["a", None]], "entry 1 of item 0 of train_dataloader is a NoneType"),
        ([[["a"]]], "entry 0 of item 0 .* is a list"),
        (
            [{"question": "a", "answer": 1}],
            r"no `prompt` or `input_ids`.*'question', 'answer'",
        ),
        ([CHAT_A[0]], "no `prompt`.*'role', 'content'"),
        ([{"prompt": 5}], "item 0 .*text or a list of messages, got int"),
        ([{"prompt": []}], "empty list"),
        ([{"prompt": [{"role": "user"}]}], "message 0 needs .*`content`, got {'role': 'user'}"),
        ([{"prompt": ["a", 5]}], "row 1 of `prompt`: .*got int"),
        ([{"prompt": ["a", "b"], "answer": [1]}], "column 'answer' has 1 values.*2 rows"),
        ([{"prompt": ["a", "b"], "answer": "42"}], "column 'answer' has 1 values.*2 rows"),
    ],
)
def test_what_is_not_a_prompt_is_named(dataloader, message):
    with pytest.raises(DataError, match=message):
        items(dataloader)


# Reading a stream again


class MapDataset(torch.utils.data.Dataset):
    def __getitem__(self, index):
        return ["a", "b"][index]


@pytest.mark.parametrize("dataloader", [["a"], DataLoader(["a"]), MapDataset()])
def test_what_can_be_read_again(dataloader):
    check_readable_again(dataloader, num_epochs=2)


def test_an_iterator_lasts_one_epoch():
    check_readable_again(iter(["a"]), num_epochs=1)
    with pytest.raises(DataError, match="list_iterator.* only once, but num_epochs is 2"):
        check_readable_again(iter(["a"]), num_epochs=2)


@pytest.mark.parametrize("dataloader", ["text", {"prompt": ["a"]}, 5, None, lambda: iter("a")])
def test_what_is_no_dataloader(dataloader):
    with pytest.raises(DataError, match="train_dataloader is"):
        check_readable_again(dataloader, num_epochs=1)


# Tokens


def test_read_text():
    prompt = reader().read("a b", epoch=2, position=5)
    assert (prompt.text, prompt.source, prompt.tokens) == ("a b", "a b", [2, 3])
    assert (prompt.fields, prompt.epoch, prompt.position) == ({}, 2, 5)


def test_read_chat_with_fields():
    prompt = reader().read({"prompt": CHAT_B, "answer": 7}, epoch=1, position=0)
    assert [VOCABULARY[token] for token in prompt.tokens] == [
        "<system>",
        "be",
        "brief",
        "<user>",
        "b",
        "<assistant>",
    ]
    assert (prompt.text, prompt.source, prompt.fields) == ("b", CHAT_B, {"answer": 7})


def test_text_of_a_chat_is_its_last_user_turn():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": " b"}]
    by_parts = (
        "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}{% endfor %}{% endfor %}"
    )
    chat = [{"role": "user", "content": parts}, {"role": "assistant", "content": []}]
    assert reader(chat_template=by_parts).read(chat, 1, 0).text == "a b"
    assert reader().read([{"role": "system", "content": "be"}], 1, 0).text == "be"


def test_an_appended_eos_is_dropped():
    closing = reader(appends_eos=True)
    assert closing.tokenizer("a").input_ids == [2, 1]
    assert closing.read("a", 1, 0).tokens == [2]


def test_an_eos_of_the_text_itself_stays():
    assert reader().read("a </s>", 1, 0).tokens == [2, 1]


def test_a_prompt_without_tokens_is_refused():
    for settings in ({}, {"appends_eos": True}):
        with pytest.raises(DataError, match="prompt 3 .* epoch 2, ' ', has no tokens"):
            reader(**settings).read(" ", epoch=2, position=3)


def test_the_context_holds_the_prompt_and_a_token_of_response():
    assert len(reader(context_tokens=3).read("a b", 1, 0).tokens) == 2
    message = "prompt 1 .*has 3 tokens.*context of 3: use shorter prompts"
    with pytest.raises(DataError, match=message):
        reader(context_tokens=3).read("a b a", 1, 1)


def test_a_chat_needs_a_template():
    with pytest.raises(DataError, match="prompt 0 .*no chat template"):
        reader(chat_template=None).read(CHAT_A, 1, 0)


def test_a_template_may_refuse_a_chat():
    picky = "{{ raise_exception('no system turn') }}"
    with pytest.raises(DataError, match="refused by the chat template: no system turn"):
        reader(chat_template=picky).read(CHAT_B, 1, 0)
