import json
import sys

import pytest

from gspo.data.sources import load_prompts
from gspo.errors import DataError, SettingError

USER = {"role": "user", "content": "a"}
SYSTEM = {"role": "system", "content": "be brief"}


@pytest.fixture
def jsonl(tmp_path):
    """Writes lines (objects, text or bytes) and returns the file's path."""

    def write(*lines):
        path = tmp_path / "prompts.jsonl"
        path.write_bytes(b"\n".join(map(as_bytes, lines)))
        return str(path)

    return write


def as_bytes(line):
    if isinstance(line, bytes):
        return line
    return (line if isinstance(line, str) else json.dumps(line)).encode()


# What comes out


def test_a_text_becomes_a_user_turn(jsonl):
    path = jsonl({"prompt": "a", "answer": 1}, {"prompt": "b"})
    assert load_prompts(path) == [
        {"prompt": [USER], "answer": 1},
        {"prompt": [{"role": "user", "content": "b"}]},
    ]


def test_without_chat_a_text_stays(jsonl):
    assert load_prompts(jsonl({"prompt": "a"}), chat=False) == [{"prompt": "a"}]


def test_the_system_prompt_opens_what_has_none(jsonl):
    other = {"role": "system", "content": "be long"}
    path = jsonl({"prompt": "a"}, {"prompt": [USER]}, {"prompt": [other, USER]})
    chats = [row["prompt"] for row in load_prompts(path, system_prompt="be brief")]
    assert chats == [[SYSTEM, USER], [SYSTEM, USER], [other, USER]]


def test_a_system_prompt_needs_chat(jsonl):
    with pytest.raises(SettingError, match="system_prompt needs chat"):
        load_prompts(jsonl({"prompt": "a"}), system_prompt="be brief", chat=False)


def test_prompt_field_becomes_prompt(jsonl):
    path = jsonl({"question": "a", "prompt": "other", "answer": 1})
    rows = load_prompts(path, prompt_field="question", chat=False)
    assert rows == [{"prompt": "a", "answer": 1}]


def test_limit_reads_no_further(jsonl):
    assert len(load_prompts(jsonl({"prompt": "a"}, {"prompt": "b"}, "broken"), limit=2)) == 2


# JSONL


def test_a_byte_order_mark_windows_line_ends_and_a_last_blank_line_are_fine(jsonl):
    path = jsonl(b'\xef\xbb\xbf{"prompt": "a"}\r', '{"prompt": "\u2028b"}\r', "", "")
    assert [row["prompt"] for row in load_prompts(path, chat=False)] == ["a", "\u2028b"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt": }', "line 2: broken JSON in column 12: Expecting value"),
        ("", "line 2: the line is empty"),
        ("[1]", "line 2: expected a JSON object, got list"),
        ({"question": "b", "answer": 1}, r"line 2: .*no field 'prompt'.*\['question', 'answer'\]"),
        ({"prompt": " "}, "line 2: field 'prompt': the prompt is empty"),
        ({"prompt": []}, "line 2: .*an empty list"),
        ({"prompt": None}, "line 2: .*text or a list of messages, got NoneType"),
        ({"prompt": ["b"]}, "line 2: .*message 0 needs .* got b"),
        ({"prompt": [USER, {"role": "user"}]}, "line 2: .*message 1 needs .* got {'role': 'user'}"),
        ({"prompt": [{"role": "user", "content": 5}]}, "line 2: .*message 0 needs"),
        (b'{"prompt": "\xe9"}', "line 2: not UTF-8: byte 0xe9 in column 13"),
    ],
)
def test_a_broken_line_is_named(jsonl, line, message):
    with pytest.raises(DataError, match="prompts.jsonl, " + message):
        load_prompts(jsonl({"prompt": "a"}, line, {"prompt": "c"}))


def test_an_empty_file_is_an_error(jsonl):
    for lines in ([], ["", ""]):
        with pytest.raises(DataError, match="no prompts"):
            load_prompts(jsonl(*lines))


def test_a_missing_file_is_an_error():
    with pytest.raises(DataError, match="nowhere.jsonl: cannot be read: No such file"):
        load_prompts("nowhere.jsonl")


def test_other_files_are_refused(tmp_path):
    (tmp_path / "prompts.csv").write_text("prompt\na\n")
    with pytest.raises(DataError, match="prompts.csv: prompts are read from .jsonl and .parquet"):
        load_prompts(str(tmp_path / "prompts.csv"))


# Parquet, reasoning-gym, Hugging Face


def test_parquet(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = str(tmp_path / "prompts.parquet")
    rows = [{"prompt": [USER], "answer": 1}, {"prompt": [], "answer": 2}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    assert load_prompts(path, limit=1) == rows[:1]
    with pytest.raises(DataError, match="prompts.parquet, row 1: .*empty list"):
        load_prompts(path)


def test_a_broken_or_missing_parquet_file(tmp_path):
    pytest.importorskip("pyarrow")
    (tmp_path / "broken.parquet").write_text("not parquet")
    for name in ("broken.parquet", "missing.parquet"):
        with pytest.raises(DataError, match=f"{name}: cannot be read"):
            load_prompts(str(tmp_path / name))


def test_reasoning_gym():
    pytest.importorskip("reasoning_gym")
    rows = load_prompts("reasoning_gym:chain_sum?size=3&seed=1&min_terms=2&max_terms=2", chat=False)
    assert [list(row) for row in rows] == [["prompt", "answer", "metadata"]] * 3
    assert all(row["metadata"]["num_terms"] == 2 for row in rows)


def test_reasoning_gym_has_a_seed_of_its_own():
    pytest.importorskip("reasoning_gym")
    unseeded = load_prompts("reasoning_gym:chain_sum?size=2")
    assert unseeded == load_prompts("reasoning_gym:chain_sum?size=2&seed=0")
    assert unseeded != load_prompts("reasoning_gym:chain_sum?size=2&seed=1")


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("no_such_task", "'no_such_task' not registered"),
        ("chain_sum?sise=3", "unexpected keyword argument 'sise'"),
        ("chain_sum?size=0", "size must be positive"),
    ],
)
def test_reasoning_gym_refuses(query, message):
    pytest.importorskip("reasoning_gym")
    with pytest.raises(DataError, match="reasoning-gym refused it: .*" + message):
        load_prompts(f"reasoning_gym:{query}")


def test_a_saved_dataset(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "a", "answer": 1}, {"question": "b", "answer": 2}]
    dataset = datasets.Dataset.from_list(rows)
    dataset.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"test": dataset}).save_to_disk(tmp_path / "splits")
    expected = [{"prompt": "a", "answer": 1}, {"prompt": "b", "answer": 2}]
    settings = {"prompt_field": "question", "chat": False}
    assert load_prompts(str(tmp_path / "one"), **settings) == expected
    assert load_prompts(str(tmp_path / "splits"), split="test", **settings) == expected
    with pytest.raises(DataError, match="split 'train': .*splits/train"):
        load_prompts(str(tmp_path / "splits"), **settings)


def test_a_hub_dataset(monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, configuration, split):
        asked.append((name, configuration, split))
        return [{"prompt": "a"}]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    load_prompts("owner/name")
    load_prompts("owner/name:main", split="test")
    assert asked == [("owner/name", None, "train"), ("owner/name", "main", "test")]


def test_a_hub_that_cannot_be_reached(monkeypatch):
    datasets = pytest.importorskip("datasets")

    def load_dataset(name, configuration, split):
        raise ConnectionError(f"Couldn't reach '{name}' on the Hub\nand much more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError) as raised:
        load_prompts("owner/name")
    assert str(raised.value) == (
        "owner/name: neither a .jsonl or .parquet file nor a Hugging Face dataset that can be "
        "loaded with split 'train': Couldn't reach 'owner/name' on the Hub"
    )


@pytest.mark.parametrize(
    ("source", "module", "package"),
    [
        ("a.parquet", "pyarrow", "pyarrow"),
        ("reasoning_gym:chain_sum", "reasoning_gym", "reasoning-gym"),
        ("owner/name", "datasets", "datasets"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, source, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=f"pip install {package}"):
        load_prompts(source)
