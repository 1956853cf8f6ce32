"""The examples run, and only on what their headers say."""

import ast
import importlib.util
from pathlib import Path

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_algorithm_in_one_file_imports_only_core_and_learns(capsys):
    path = EXAMPLES / "gspo_in_one_file.py"
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            assert node.module in ("transformers", "gspo.core")
    example = load(path)
    assert example.main(steps=30) > 0.2
    first = float(capsys.readouterr().out.splitlines()[0].split()[2])
    assert first < 0.1


def test_the_quick_starts_sums_are_right_and_held_out(tmp_path):
    import json

    prepare = load(EXAMPLES / "quickstart" / "prepare.py")
    train, held_out = tmp_path / "train.jsonl", tmp_path / "heldout.jsonl"
    prepare.write_sums(train, held_out, num_train=50, num_heldout=20)
    rows = {
        path: [json.loads(line) for line in path.read_text().splitlines()]
        for path in (train, held_out)
    }
    assert (len(rows[train]), len(rows[held_out])) == (50, 20)
    pairs = {}
    for path, items in rows.items():
        numbers = [
            [int(w.strip("?")) for w in r["prompt"].split() if w.strip("?").isdigit()]
            for r in items
        ]
        assert [str(sum(pair)) for pair in numbers] == [r["answer"] for r in items]
        pairs[path] = {frozenset(pair) for pair in numbers}
    assert not pairs[train] & pairs[held_out]
