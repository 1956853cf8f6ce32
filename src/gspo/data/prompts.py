"""Reads what a user gives to `trainer.train(train_dataloader)` as one stream of items."""

import random
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gspo.errors import DataError
from gspo.types import Prompt

ACCEPTED = (
    "text, a list of chat messages, a dict with `prompt` (or lists of these), "
    "or a ready batch of tensors with `input_ids`"
)


def check_readable_again(dataloader: Any, num_epochs: int) -> None:
    """Refuses a `train_dataloader` that cannot be read once for each epoch, before any is read."""
    kind = type(dataloader).__name__
    if isinstance(dataloader, str | Mapping):
        raise DataError(f"train_dataloader is one {kind}; pass a list of them, or a DataLoader")
    # A torch Dataset has no `__iter__`; `iter()` itself would start a DataLoader's workers.
    if not isinstance(dataloader, Iterable) and not hasattr(dataloader, "__getitem__"):
        raise DataError(f"train_dataloader is not iterable: expected {ACCEPTED}; got {kind}")
    if num_epochs > 1 and isinstance(dataloader, Iterator):
        raise DataError(
            f"train_dataloader is a {kind}, which can be read only once, but num_epochs is "
            f"{num_epochs}: pass a list or a DataLoader, or set num_epochs to 1"
        )


def read_items(dataloader: Iterable) -> Iterator[str | list[dict] | Mapping]:
    """One epoch of `dataloader` as single prompts (text, chat, or dict with `prompt`) and ready
    batches (a dict with `input_ids`), in order; how it was batched makes no difference."""
    for index, batch in enumerate(dataloader):
        where = f"item {index} of train_dataloader"
        if isinstance(batch, list | tuple) and not is_chat(batch):
            _refuse_collated_chat(batch, where)
            for entry, item in enumerate(batch):
                yield from _items(item, f"entry {entry} of {where}")
        else:
            yield from _items(batch, where)


def is_chat(value: Any) -> bool:
    """Whether `value` is one conversation: messages that each have `role` and `content`."""
    return isinstance(value, list | tuple) and prompt_problem(value) is None


def prompt_problem(prompt: Any) -> str | None:
    """Why `prompt` is neither text nor a conversation, in words; None where it is one."""
    if isinstance(prompt, str):
        return None if prompt.strip() else "the prompt is empty"
    if not isinstance(prompt, list | tuple):
        return f"the prompt must be text or a list of messages, got {type(prompt).__name__}"
    if not prompt:
        return "the prompt is an empty list"
    for index, message in enumerate(prompt):
        if not _is_message(message):
            return f"message {index} needs a text `role` and a `content`, got {message!s:.60}"
    return None


class ShuffledPrompts:
    """Prompts in another order in each epoch, the same order for the same seed and epoch."""

    def __init__(self, prompts: list, seed: int) -> None:
        self.prompts = prompts
        self.seed = seed
        self.epoch = 1

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator:
        order = list(range(len(self.prompts)))
        random.Random(f"{self.seed} {self.epoch}").shuffle(order)
        return (self.prompts[i] for i in order)


@dataclass(frozen=True)
class PromptReader:
    """Turns items of the stream into tokenized prompts that leave room for a response."""

    tokenizer: Any
    context_tokens: int | None
    """The most tokens that the model takes, prompt and response together; None is no limit."""
    vocabulary: int | None = None
    """How many tokens the model has, where prompts and ready batches are to be checked against."""

    def read(self, item: str | list[dict] | Mapping, epoch: int, position: int) -> Prompt:
        """`item` as the prompt that stands at `position` (from 0) of `epoch` (from 1).

        Raises DataError where it has no tokens, is too long, or is a chat that cannot be rendered.
        """
        if self.tokenizer is None:
            raise DataError("prompts came, but the trainer has no tokenizer")
        item = item if isinstance(item, Mapping) else {"prompt": item}
        source = item["prompt"]
        text = _query_text(source)
        where = f"prompt {position} (from 0) of epoch {epoch}, {text[:40]!r},"
        is_text = isinstance(source, str)
        tokens = self._text_tokens(source) if is_text else self._chat_tokens(source, where)
        self._check_length(len(tokens), where)
        if self.vocabulary is not None and max(tokens) >= self.vocabulary:
            raise DataError(
                f"{where} has the token {max(tokens)}, but the model has only the tokens 0 to "
                f"{self.vocabulary - 1}: is this its tokenizer?"
            )
        fields = {name: item[name] for name in item if name != "prompt"}
        return Prompt(text, source, tokens, fields, epoch, position)

    def _text_tokens(self, text: str) -> list[int]:
        tokens = list(self.tokenizer(text)["input_ids"])
        eos = self.tokenizer.eos_token_id
        # Some tokenizers close every text with an EOS; a response would start after the end.
        if tokens and tokens[-1] == eos and not text.endswith(self.tokenizer.eos_token):
            tokens.pop()
        return tokens

    def _chat_tokens(self, messages: list[dict], where: str) -> list[int]:
        try:
            return self.tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, return_dict=False
            )
        # A template is a program that came with the model: it may raise anything about this chat.
        except Exception as error:
            problem = f"was refused by the chat template: {error}"
            if not self.tokenizer.chat_template:
                problem = "is a chat, but the tokenizer has no chat template: give it as text"
            raise DataError(f"{where} {problem}") from error

    def _check_length(self, length: int, where: str) -> None:
        if length == 0:
            raise DataError(f"{where} has no tokens: leave it out, or give it a text")
        if self.context_tokens is not None and length >= self.context_tokens:
            raise DataError(
                f"{where} has {length} tokens and leaves no room for a response in the model's "
                f"context of {self.context_tokens}: use shorter prompts"
            )


def _items(item: Any, where: str) -> Iterator[str | list[dict] | Mapping]:
    if isinstance(item, str) or is_chat(item):
        yield item
    elif not isinstance(item, Mapping):
        raise DataError(f"{where} is a {type(item).__name__}; expected {ACCEPTED}")
    elif "input_ids" in item:
        yield item
    elif "prompt" in item:
        yield from _rows(item, where)
    else:
        raise DataError(f"{where} has no `prompt` or `input_ids`; its fields are {list(item)}")


def _rows(item: Mapping, where: str) -> Iterator[Mapping]:
    """The prompts of a dict: itself, or one for each row where it is a dict of columns."""
    prompt = _plain(item["prompt"])
    if isinstance(prompt, str) or is_chat(prompt):
        yield item
        return
    _refuse_collated_chat(prompt, where)
    if not isinstance(prompt, list | tuple) or not prompt or isinstance(prompt[0], Mapping):
        raise DataError(f"{where}: {prompt_problem(prompt)}")
    fields = [name for name in item if name != "prompt"]
    columns = {name: _column(item[name], name, len(prompt), where) for name in fields}
    for row, value in enumerate(prompt):
        if not isinstance(value, str) and not is_chat(value):
            raise DataError(f"{where}, row {row} of `prompt`: {prompt_problem(value)}")
        yield {"prompt": value} | {name: column[row] for name, column in columns.items()}


def _column(value: Any, name: str, rows: int, where: str) -> list:
    """`value` as a list of `rows` plain Python values."""
    if isinstance(value, Mapping):  # the default collate makes a dict of columns of a dict field
        inner = {key: _column(value[key], f"{name}.{key}", rows, where) for key in value}
        return [{key: inner[key][row] for key in inner} for row in range(rows)]
    value = _plain(value)
    values = list(value) if isinstance(value, list | tuple) else [value]
    # Of rows ['x', 'y'] and ['z', 'w'] the default collate makes [('x', 'z'), ('y', 'w')].
    inner_lengths = [len(v) for v in values if isinstance(v, tuple) or getattr(v, "ndim", 0)]
    transposed = inner_lengths == [rows] * rows
    if len(values) != rows or transposed:
        got = "is transposed" if transposed else f"has {len(values)} values"
        raise DataError(
            f"{where}: column {name!r} {got}, but `prompt` has {rows} rows: give one value a row, "
            "or pass `collate_fn=list` to the DataLoader"
        )
    return [_plain(entry) for entry in values]


def _refuse_collated_chat(value: Any, where: str) -> None:
    """The default collate merges the chats of a batch into one whose roles are lists."""
    entries = value if isinstance(value, list | tuple) else []
    if any(isinstance(e, Mapping) and isinstance(e.get("role"), list | tuple) for e in entries):
        raise DataError(
            f"{where}: the DataLoader's default collate merged the chats of a batch into one; "
            "pass `collate_fn=list` to the DataLoader"
        )


def _is_message(value: Any) -> bool:
    if not isinstance(value, Mapping) or not isinstance(value.get("role"), str):
        return False
    content = value.get("content")
    if content is None:  # an assistant's turn that only calls tools
        return "tool_calls" in value
    parts = content if isinstance(content, list) else []
    return isinstance(content, str | list) and all(isinstance(part, Mapping) for part in parts)


def _query_text(source: str | list[dict]) -> str:
    """The text, or that of a chat's last user turn; where there is none, of its last turn."""
    if isinstance(source, str):
        return source
    turns = [message for message in source if message["role"] == "user"] or source
    content = turns[-1]["content"]
    if isinstance(content, str):
        return content
    return "".join(part["text"] for part in content if part.get("type") == "text")


def _plain(value: Any) -> Any:
    """Tensors and arrays as Python numbers and lists, everything else as it is."""
    return value.tolist() if hasattr(value, "tolist") else value
