"""Prompts from disk, from the Hugging Face hub, or from reasoning-gym, for recipes."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from gspo.data.prompts import prompt_problem
from gspo.errors import DataError, SettingError

REASONING_GYM = "reasoning_gym:"


def load_prompts(
    source: str,
    *,
    prompt_field: str = "prompt",
    split: str = "train",
    limit: int | None = None,
    system_prompt: str | None = None,
    chat: bool = True,
) -> list[dict]:
    """The prompts of `source`, each a dict with `prompt` (text or messages) and its other fields.

    `source` is one of
      * a path that ends in `.jsonl` or `.parquet`;
      * `reasoning_gym:TASK?size=100&seed=1`; the query is the task's configuration, seed 0 unless
        given, and the fields are `prompt`, `answer` and `metadata`;
      * a folder written by `Dataset.save_to_disk`, or a hub id such as `owner/name` or
        `owner/name:configuration`. `split` picks one of its splits; other sources have none.

    `prompt_field` becomes `prompt`, and replaces a field of that name. At most the first `limit`
    rows are read. With `chat` a text becomes a user turn; `system_prompt` opens every conversation
    that has no system turn. Raises DataError with the place and the reason for what is broken.
    """
    if system_prompt is not None and not chat:
        raise SettingError("system_prompt needs chat=True: a plain text has no system turn")
    rows = islice(_rows(source, split), limit)
    prompts = [_item(row, where, prompt_field, system_prompt, chat) for where, row in rows]
    if not prompts:
        raise DataError(f"{source}: it has no prompts")
    return prompts


def _rows(source: str, split: str) -> Iterator[tuple[str, dict]]:
    """Each row as it is stored, with the words that say where it stands."""
    if source.startswith(REASONING_GYM):
        return _reasoning_gym_rows(source)
    if source.endswith(".jsonl"):
        return _jsonl_rows(source)
    if source.endswith(".parquet"):
        return _parquet_rows(source)
    return _hugging_face_rows(source, split)


def _item(
    row: dict, where: str, prompt_field: str, system_prompt: str | None, chat: bool
) -> dict[str, Any]:
    if prompt_field not in row:
        raise DataError(f"{where}: there is no field {prompt_field!r}; its fields are {list(row)}")
    prompt = row[prompt_field]
    if problem := prompt_problem(prompt):
        raise DataError(f"{where}: field {prompt_field!r}: {problem}")
    others = {name: row[name] for name in row if name not in (prompt_field, "prompt")}
    return {"prompt": _conversation(prompt, system_prompt) if chat else prompt, **others}


def _conversation(prompt: str | list[dict], system_prompt: str | None) -> list[dict]:
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if system_prompt is None or any(message["role"] == "system" for message in messages):
        return messages
    return [{"role": "system", "content": system_prompt}, *messages]


def _jsonl_rows(source: str) -> Iterator[tuple[str, dict]]:
    blank = None
    try:
        with Path(source).expanduser().open("rb") as file:
            for number, line in enumerate(file, start=1):
                where = f"{source}, line {number}"
                if not line.strip():
                    blank = blank or where
                    continue
                if blank:  # only now is it known not to be the end of the file
                    raise DataError(f"{blank}: the line is empty; remove it")
                yield where, _json_object(line, where)
    except OSError as error:
        raise DataError(f"{source}: cannot be read: {error.strerror}") from error


def _json_object(line: bytes, where: str) -> dict:
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise DataError(
            f"{where}: not UTF-8: byte 0x{byte:02x} in column {error.start + 1}; "
            "save the file as UTF-8"
        ) from error
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: broken JSON in column {error.colno}: {error.msg}") from error
    if not isinstance(row, dict):
        raise DataError(f"{where}: expected a JSON object, got {type(row).__name__}")
    return row


def _parquet_rows(source: str) -> Iterator[tuple[str, dict]]:
    with _needs("pyarrow", source):
        import pyarrow
        from pyarrow.parquet import ParquetFile
    try:
        with ParquetFile(Path(source).expanduser()) as file:
            rows = (row for batch in file.iter_batches() for row in batch.to_pylist())
            for number, row in enumerate(rows):
                yield f"{source}, row {number}", row
    except (OSError, pyarrow.ArrowException) as error:
        raise DataError(f"{source}: cannot be read: {_first_line(error)}") from error


def _reasoning_gym_rows(source: str) -> Iterator[tuple[str, dict]]:
    with _needs("reasoning-gym", source):
        import reasoning_gym
    task, _, query = source.removeprefix(REASONING_GYM).partition("?")
    # Without a seed reasoning-gym draws one, and a resumed run would see other prompts.
    settings = {"seed": 0} | {name: _value(text) for name, text in parse_qsl(query)}
    try:
        rows = reasoning_gym.create_dataset(task, **settings)
    # What a task checks, it checks with assertions, TypeErrors and ValueErrors of its own.
    except Exception as error:
        raise DataError(f"{source}: reasoning-gym refused it: {_first_line(error)}") from error
    for number in range(len(rows)):
        row = rows[number]
        fields = {"prompt": row["question"], "answer": row["answer"], "metadata": row["metadata"]}
        yield f"{source}, row {number}", fields


def _value(text: str) -> Any:
    """A value of a query: a JSON number or boolean, or else the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _hugging_face_rows(source: str, split: str) -> Iterator[tuple[str, dict]]:
    path = Path(source).expanduser()
    if path.is_file():
        raise DataError(f"{source}: prompts are read from .jsonl and .parquet files; convert it")
    with _needs("datasets", source):
        import datasets
    try:
        if (path / "dataset_dict.json").exists():
            rows = datasets.load_from_disk(path / split)
        elif (path / "state.json").exists():
            rows = datasets.load_from_disk(path)
        elif path.is_dir():
            rows = datasets.load_dataset(str(path), split=split)
        else:
            name, _, configuration = source.partition(":")
            rows = datasets.load_dataset(name, configuration or None, split=split)
    # The hub, the network and the files each have their own errors; all mean "not loaded".
    except Exception as error:
        raise DataError(
            f"{source}: neither a .jsonl or .parquet file nor a Hugging Face dataset that can be "
            f"loaded with split {split!r}: {_first_line(error)}"
        ) from error
    for number, row in enumerate(rows):
        yield f"{source}, split {split!r}, row {number}", row


@contextmanager
def _needs(package: str, source: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise DataError(f"{source}: needs the package {package}: pip install {package}") from error


def _first_line(error: Exception) -> str:
    lines = str(error).splitlines()
    return lines[0] if lines else type(error).__name__
